//! `GET /environments/{id}/attach`: the WebSocket.

mod bulk;
mod credentials;
mod ending;
mod terminal;

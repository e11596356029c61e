//! The HTTP edge around every handler: admission, bodies, errors, traces, connections.

mod activity;
pub(crate) mod admit;
pub(crate) mod client_address;
mod client_stream;
pub(crate) mod cors;
pub(crate) mod error;
pub(crate) mod headers;
pub(crate) mod json;
pub(crate) mod list_header;
pub(crate) mod path;
pub(crate) mod query;
mod request_body;
pub(crate) mod server;
pub(crate) mod slots;
pub(crate) mod trace;
pub(crate) mod unmatched;

pub(crate) use admit::Caller;
pub(crate) use error::Answer;
pub(crate) use json::Json;
pub(crate) use path::Path;
pub(crate) use query::Query;

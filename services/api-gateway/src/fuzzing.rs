//! The parsers of what a client sends, for the fuzz targets in `loadtest/fuzz`.

use agentbox_contracts::error::Error;
use agentbox_contracts::exec::ToBox;
use serde::de::DeserializeOwned;

use crate::{attach, edge};

/// Reads the body of a request.
///
/// # Errors
/// As the answer to the request.
pub fn parse_body<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Error> {
    edge::json::parse(bytes)
}

/// Reads a text frame of an attached client.
///
/// # Errors
/// As the error message to the client.
pub fn parse_frame(text: &str) -> Result<Vec<ToBox>, Error> {
    attach::parse_frame(text)
}

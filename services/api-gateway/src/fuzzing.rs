//! The parsers of what a client sends, for the fuzz targets in `loadtest/fuzz`.

use agentbox_contracts::error::Error;
use agentbox_contracts::exec::ToBox;
use serde::de::DeserializeOwned;

use crate::{attach, edge, exec};

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

/// Reads a form with the boundary `b`, whose body arrives in frames of at most `frame` bytes: the names
/// and the contents of its parts.
///
/// # Errors
/// As the answer to the request.
pub fn parse_form(body: &[u8], frame: usize) -> Result<Vec<(String, Vec<u8>)>, Error> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .map_err(|_| Error::internal())?;
    runtime.block_on(exec::parse_form(body, frame))
}

//! The parsers of what a client sends, for the fuzz targets in `loadtest/fuzz`.

use agentbox_contracts::error::Error;
use agentbox_contracts::exec::ToBox;
use axum::http::{HeaderMap, HeaderValue, header};
use serde::de::DeserializeOwned;

use crate::{attach, edge, exec, files};

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

/// Reads the path in a query.
///
/// # Errors
/// As the answer to the request.
pub fn parse_file_path(query: &str) -> Result<Vec<u8>, Error> {
    files::path::of_query(query).map(Into::into)
}

/// The value of `Content-Disposition` for a download of this path.
#[must_use]
pub fn disposition_of_file(path: &[u8]) -> HeaderValue {
    files::disposition_of(path)
}

/// Reads a value as each header that a file operation has.
///
/// # Errors
/// As the answer to the request.
pub fn parse_file_headers(value: &HeaderValue) -> Result<(), Error> {
    let mut headers = HeaderMap::new();
    for name in [
        header::ACCEPT,
        header::RANGE,
        header::IF_RANGE,
        header::IF_MATCH,
        header::IF_NONE_MATCH,
        header::HeaderName::from_static("content-digest"),
    ] {
        headers.clear();
        headers.insert(header::RANGE, HeaderValue::from_static("bytes=0-"));
        headers.insert(name, value.clone());
        files::parse_headers(&headers)?;
    }
    Ok(())
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

//! `/environments/{id}/files…`: the files of an environment.
//!
//! * I1. Content is streamed: of a transfer only the messages of its session are in memory, whatever
//!   its size. A slow client or box slows its own transfer only.
//! * I2. The box evaluates paths, permissions, conditions and ranges. The gateway never decides on a
//!   file that may change meanwhile.
//! * I3. A download is complete, or its connection is aborted.
//! * I4. The box is told the end of an upload only when all of it has arrived. An upload that ends
//!   before leaves the file as it was.
//! * I5. An operation without content ends within [`operation::OPERATION_TIMEOUT`]. A transfer makes
//!   progress in each such time, or it ends.

pub(crate) mod change;
mod conditions;
mod digest;
mod disposition;
pub(crate) mod download;
mod media_type;
mod metadata;
mod operation;
mod outgoing;
pub(crate) mod path;
mod range;
pub(crate) mod upload;
pub(crate) mod view;
pub(crate) mod watch;

/// Reads all that a file operation takes from its headers, and writes a name, for the fuzz targets in
/// `loadtest/fuzz`.
///
/// # Errors
/// As the answer to the request.
#[cfg(fuzzing)]
pub(crate) fn parse_headers(
    headers: &axum::http::HeaderMap,
) -> Result<(), agentbox_contracts::error::Error> {
    let _ = (range::requested(headers), media_type::accepted(headers));
    conditions::if_match(headers)?;
    conditions::if_absent(headers)?;
    digest::content_digests(headers).map(drop)
}

/// The `Content-Disposition` of a path, for the fuzz targets.
#[cfg(fuzzing)]
pub(crate) fn disposition_of(path: &[u8]) -> axum::http::HeaderValue {
    disposition::attachment(path::name(path))
}

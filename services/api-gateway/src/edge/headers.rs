//! The headers of every answer.

use axum::http::{HeaderValue, header};
use axum::response::Response;

/// Adds the headers that forbid caching (unless the handler set its own rule) and guessing of
/// content types.
pub(crate) async fn add_common(mut response: Response) -> Response {
    let headers = response.headers_mut();
    headers
        .entry(header::CACHE_CONTROL)
        .or_insert(HeaderValue::from_static("no-store"));
    headers.insert(
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
    response
}

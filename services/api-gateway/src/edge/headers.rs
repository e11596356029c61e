//! Headers that every answer carries, whoever made it.

use axum::http::{HeaderValue, header};
use axum::response::Response;

/// Nothing here is for caches or for guessing content types: answers are one caller's.
pub(crate) async fn finish(mut response: Response) -> Response {
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

//! The headers of requests and of every answer.

use agentbox_contracts::error::{Error, ErrorCode};
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderValue, Uri, Version, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::error::ApiError;

/// The largest head of a request over HTTP/2, in bytes. hyper limits the head over HTTP/1.
const MAX_HTTP2_HEAD: usize = 16 * 1024;

/// The size of the lines of a head, as HTTP/2 counts it (RFC 9113, section 10.5.1).
fn head_size(uri: &Uri, headers: &HeaderMap) -> usize {
    const OVERHEAD: usize = 32;
    let line = |name: &str, value: usize| name.len() + value + OVERHEAD;
    let path = uri.path_and_query().map_or(0, |path| path.as_str().len());
    let lines = headers.iter();
    line(":path", path)
        + lines
            .map(|(name, value)| line(name.as_str(), value.len()))
            .sum::<usize>()
}

/// Refuses a head over HTTP/2 that is too large.
pub(crate) async fn check_size(request: Request, next: Next) -> Response {
    let size = head_size(request.uri(), request.headers());
    if request.version() < Version::HTTP_2 || size <= MAX_HTTP2_HEAD {
        return next.run(request).await;
    }
    let error = Error::new(
        ErrorCode::HeadersTooLarge,
        format!(
            "the head of a request over HTTP/2 must be at most {MAX_HTTP2_HEAD} bytes, has {size}"
        ),
    );
    ApiError(error).into_response()
}

/// What a browser that shows an answer as a page may load, and who may show it in a frame: nothing
/// and nobody.
const POLICY: &str = "default-src 'none'; frame-ancestors 'none'";

/// Adds the headers that forbid caching and active content (unless the handler set its own rule),
/// guessing of content types, and sending of the address, which may contain a ticket, to others.
pub(crate) async fn add_common(mut response: Response) -> Response {
    let headers = response.headers_mut();
    headers
        .entry(header::CACHE_CONTROL)
        .or_insert(HeaderValue::from_static("no-store"));
    headers
        .entry(header::CONTENT_SECURITY_POLICY)
        .or_insert(HeaderValue::from_static(POLICY));
    headers.insert(
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
    headers.insert(
        header::REFERRER_POLICY,
        HeaderValue::from_static("no-referrer"),
    );
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn size_of_a_head_counts_every_line() {
        let mut headers = HeaderMap::new();
        headers.append("a", "12345".parse().unwrap());
        headers.append("a", "1".parse().unwrap());
        let uri: Uri = "/x?y".parse().unwrap();
        assert_eq!(head_size(&uri, &headers), 9 + 32 + 6 + 32 + 2 + 32);
    }
}

//! The headers of requests and of every answer.

use agentbox_contracts::error::{Error, ErrorCode};
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderValue, Uri, Version, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::client_address::OverTls;
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

/// Refuses a head over HTTP/2 that is too large, and one with several hosts (RFC 9112, section 3.2): a
/// proxy may have decided by another one.
pub(crate) async fn check(request: Request, next: Next) -> Response {
    if request.headers().get_all(header::HOST).iter().count() > 1 {
        let message = "Host: must be given once, is given several times";
        return ApiError(Error::new(ErrorCode::BadRequest, message)).into_response();
    }
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

/// The headers of every answer. They forbid caches, because an answer may hold a secret, and forbid
/// browsers to guess content types, to show an answer in a frame, to load anything for it and to send
/// its address elsewhere, because a query may hold a ticket.
const COMMON: [(&str, &str); 5] = [
    ("cache-control", "no-store"),
    (
        "content-security-policy",
        "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    ("referrer-policy", "no-referrer"),
    ("x-content-type-options", "nosniff"),
    ("x-frame-options", "DENY"),
];

/// How long a browser uses TLS only (RFC 6797): a year.
const TRANSPORT_SECURITY: &str = "max-age=31536000";

/// Adds [`COMMON`], except headers that the handler set itself, and asks the browsers that use TLS to
/// use nothing else.
pub(crate) async fn add_common(request: Request, next: Next) -> Response {
    let is_over_tls = request.extensions().get::<OverTls>().is_some();
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    add_to(headers);
    if is_over_tls {
        headers.insert(
            header::STRICT_TRANSPORT_SECURITY,
            HeaderValue::from_static(TRANSPORT_SECURITY),
        );
    }
    response
}

/// Adds [`COMMON`], except headers that are there already.
pub(crate) fn add_to(headers: &mut HeaderMap) {
    for (name, value) in COMMON {
        headers
            .entry(name)
            .or_insert(HeaderValue::from_static(value));
    }
}

/// [`COMMON`] as lines of HTTP/1.1, for answers that are not written by hyper.
pub(super) fn common_lines() -> String {
    let mut lines = String::new();
    for (name, value) in COMMON {
        lines.extend([name, ": ", value, "\r\n"]);
    }
    lines
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::body::Body;
    use axum::http::StatusCode;
    use axum::middleware::from_fn;
    use tower::ServiceExt as _;

    use super::*;

    #[tokio::test]
    async fn request_with_several_hosts_is_refused() {
        let router: Router = Router::new()
            .fallback(|| async { StatusCode::OK })
            .layer(from_fn(check));
        for (hosts, expected) in [
            (0, StatusCode::OK),
            (1, StatusCode::OK),
            (2, StatusCode::BAD_REQUEST),
        ] {
            let mut request = Request::new(Body::empty());
            for _ in 0..hosts {
                let host = HeaderValue::from_static("api.example");
                request.headers_mut().append(header::HOST, host);
            }
            let answer = router.clone().oneshot(request).await.unwrap();
            assert_eq!(answer.status(), expected, "{hosts}");
        }
    }

    #[test]
    fn size_of_a_head_counts_every_line() {
        let mut headers = HeaderMap::new();
        headers.append("a", "12345".parse().unwrap());
        headers.append("a", "1".parse().unwrap());
        let uri: Uri = "/x?y".parse().unwrap();
        assert_eq!(head_size(&uri, &headers), 9 + 32 + 6 + 32 + 2 + 32);
    }

    #[test]
    fn common_headers_are_whole_lines() {
        let lines = common_lines();
        assert_eq!(lines.split("\r\n").count(), COMMON.len() + 1);
        assert!(lines.contains("x-frame-options: DENY\r\n"), "{lines}");
        assert!(lines.ends_with("\r\n"));
    }
}

//! Requests of browser pages of another origin (the CORS protocol of the Fetch standard).
//!
//! * I1. Without configured origins no answer has a CORS header, so browsers refuse such requests.
//! * I2. Browsers send the handshake of a WebSocket without asking first, and pages of any origin could
//!   read what it carries. So the gateway itself refuses one of another origin.
//! * I3. Only a preflight is answered here. It has no credential, so it cannot be authorized. Every other
//!   OPTIONS request reaches its route: a server in a box answers it itself.
//! * I4. A page sends its token in a header that it sets itself; no cookie is a credential. So an allowed
//!   origin gives a page no right that it does not have by its token.

use std::time::Duration;

use agentbox_contracts::error::{Error, ErrorCode, shortened};
use axum::extract::{Request, State};
use axum::http::header::{
    ACCEPT_RANGES, ACCESS_CONTROL_REQUEST_METHOD, ALLOW, AUTHORIZATION, CONTENT_DISPOSITION,
    CONTENT_RANGE, CONTENT_TYPE, ETAG, HOST, IF_MATCH, IF_NONE_MATCH, IF_RANGE, ORIGIN, RANGE,
    RETRY_AFTER, WWW_AUTHENTICATE,
};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method};
use axum::middleware::Next;
use axum::response::Response;
use tower::{Layer as _, ServiceExt as _};
use tower_http::cors::CorsLayer;

use super::trace::TRACE_ID;

/// How long a browser may keep the answer of a preflight request.
const MAX_AGE: Duration = Duration::from_secs(600);

#[derive(Debug, thiserror::Error)]
#[error("must be an origin such as `https://app.example`, without a path, is `{0}`")]
pub(crate) struct InvalidOrigin(String);

/// Reads an origin as browsers send it (RFC 6454).
///
/// # Errors
/// When the text is not an origin of `http` or `https` in lower case.
pub(crate) fn origin(text: &str) -> Result<HeaderValue, InvalidOrigin> {
    let is_allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-._:[]".contains(&b);
    let host = text
        .strip_prefix("https://")
        .or_else(|| text.strip_prefix("http://"))
        .filter(|host| !host.is_empty() && host.bytes().all(is_allowed));
    host.and_then(|_| HeaderValue::from_str(text).ok())
        .ok_or_else(|| InvalidOrigin(text.to_owned()))
}

/// Checks the origin of a WebSocket's handshake (RFC 6455, section 10.2). Programs that are no browser
/// send none.
///
/// # Errors
/// [`ErrorCode::Forbidden`] when it is neither the API's own origin nor among `origins`.
pub(crate) fn check_origin(headers: &HeaderMap, origins: &[HeaderValue]) -> Result<(), Error> {
    let host = headers.get(HOST).map(HeaderValue::as_bytes);
    for origin in headers.get_all(ORIGIN) {
        let address = [&b"https://"[..], b"http://"]
            .into_iter()
            .find_map(|scheme| origin.as_bytes().strip_prefix(scheme));
        let is_own = address
            .zip(host)
            .is_some_and(|(address, host)| address.eq_ignore_ascii_case(host));
        if !is_own && !origins.contains(origin) {
            let shown = shortened(&String::from_utf8_lossy(origin.as_bytes()));
            return Err(Error::new(
                ErrorCode::Forbidden,
                format!(
                    "Origin: must be the API's own origin, or one that the operator allows \
                     (AGENTBOX_CORS_ORIGINS), is `{shown}`"
                ),
            ));
        }
    }
    Ok(())
}

/// Whether an OPTIONS request is a browser's question before a page's request (Fetch, "CORS-preflight
/// request").
fn is_preflight(headers: &HeaderMap) -> bool {
    headers.contains_key(ORIGIN) && headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD)
}

/// Answers preflight requests, and adds the CORS headers of `rules` to the other answers.
pub(crate) async fn apply(
    State(rules): State<CorsLayer>,
    request: Request,
    next: Next,
) -> Response {
    if request.method() == Method::OPTIONS && !is_preflight(request.headers()) {
        // The layer takes every OPTIONS request for a preflight.
        return next.run(request).await;
    }
    let answer = rules.layer(next).oneshot(request).await;
    answer.unwrap_or_else(|never| match never {})
}

/// What pages of `origins` may send and read.
pub(crate) fn rules(origins: &[HeaderValue]) -> CorsLayer {
    CorsLayer::new()
        .allow_origin(origins.to_vec())
        .allow_methods([
            Method::GET,
            Method::POST,
            Method::PUT,
            Method::PATCH,
            Method::DELETE,
        ])
        .allow_headers([
            AUTHORIZATION,
            CONTENT_TYPE,
            RANGE,
            IF_MATCH,
            IF_NONE_MATCH,
            IF_RANGE,
            HeaderName::from_static("content-digest"),
            HeaderName::from_static("idempotency-key"),
            HeaderName::from_static("last-event-id"),
            HeaderName::from_static("traceparent"),
        ])
        .expose_headers([
            ACCEPT_RANGES,
            ALLOW,
            CONTENT_DISPOSITION,
            CONTENT_RANGE,
            ETAG,
            RETRY_AFTER,
            WWW_AUTHENTICATE,
            TRACE_ID,
            HeaderName::from_static("x-ratelimit-limit"),
            HeaderName::from_static("x-ratelimit-remaining"),
            HeaderName::from_static("x-ratelimit-reset"),
        ])
        .max_age(MAX_AGE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_origins_are_accepted() {
        for text in [
            "https://app.example",
            "http://localhost:3000",
            "http://[::1]:3000",
        ] {
            assert_eq!(origin(text).unwrap(), text);
        }
        for text in [
            "",
            "*",
            "null",
            "app.example",
            "https://",
            "https://app.example/",
            "https://App.example",
            "ftp://app.example",
            "https://*.example",
        ] {
            let error = origin(text).unwrap_err();
            assert!(error.to_string().ends_with(&format!("is `{text}`")));
        }
    }

    #[test]
    fn preflight_names_its_origin_and_the_method_that_it_asks_for() {
        for (names, expected) in [
            (&["origin", "access-control-request-method"][..], true),
            (&["origin"], false),
            (&["access-control-request-method"], false),
            (&[], false),
        ] {
            let mut headers = HeaderMap::new();
            for name in names {
                headers.insert(*name, HeaderValue::from_static("x"));
            }
            assert_eq!(is_preflight(&headers), expected, "{names:?}");
        }
    }

    #[test]
    fn handshake_is_accepted_from_the_own_origin_a_configured_one_and_none() {
        let configured = [HeaderValue::from_static("https://app.example")];
        for (origin, expected) in [
            (None, true),
            (Some("https://API.example:8443"), true),
            (Some("http://api.example:8443"), true),
            (Some("https://app.example"), true),
            (Some("http://app.example"), false),
            (Some("https://api.example"), false),
            (Some("https://api.example:8443.evil.example"), false),
            (Some("ws://api.example:8443"), false),
            (Some("null"), false),
            (Some(""), false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(HOST, HeaderValue::from_static("api.example:8443"));
            if let Some(origin) = origin {
                headers.insert(ORIGIN, HeaderValue::from_static(origin));
            }
            let outcome = check_origin(&headers, &configured);
            assert_eq!(outcome.is_ok(), expected, "{origin:?}");
            // A request without a host has no own origin.
            headers.remove(HOST);
            let outcome = check_origin(&headers, &[]);
            assert_eq!(outcome.is_ok(), origin.is_none(), "{origin:?}");
        }
    }
}

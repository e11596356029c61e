//! Requests of browser pages of another origin (the CORS protocol of the Fetch standard).
//!
//! * I1. Without configured origins no answer has a CORS header, so browsers refuse such requests.
//! * I2. A page sends its token in a header that it sets itself; no cookie is a credential. So an allowed
//!   origin gives a page no right that it does not have by its token.

use std::time::Duration;

use axum::http::header::{ALLOW, AUTHORIZATION, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderName, HeaderValue, Method};
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

/// Answers preflight requests, and adds the CORS headers to the answers for `origins`.
pub(crate) fn layer(origins: &[HeaderValue]) -> CorsLayer {
    CorsLayer::new()
        .allow_origin(origins.to_vec())
        .allow_methods([Method::GET, Method::POST, Method::PATCH, Method::DELETE])
        .allow_headers([
            AUTHORIZATION,
            CONTENT_TYPE,
            HeaderName::from_static("idempotency-key"),
            HeaderName::from_static("last-event-id"),
            HeaderName::from_static("traceparent"),
        ])
        .expose_headers([
            ALLOW,
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
}

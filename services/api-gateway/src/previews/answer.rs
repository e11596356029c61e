//! Answers on the origin of a preview: those of the box, and AgentBox's own.

use agentbox_contracts::error::{Error, ErrorCode};
use axum::http::header::{
    ACCEPT, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, LOCATION, SET_COOKIE,
    WWW_AUTHENTICATE, X_FRAME_OPTIONS,
};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, Utc};

use crate::edge::error::ApiError;
use crate::edge::headers::add_to;
use crate::ports::cookies::{PREVIEW_COOKIE, own_cookies_only};
use crate::ports::headers::OF_THE_ORIGIN;

/// Changes the headers of an answer of a box.
pub(super) fn from_box(headers: &mut HeaderMap, port: u16, is_public: bool) {
    own_cookies_only(headers);
    for name in &OF_THE_ORIGIN {
        headers.remove(name);
    }
    // In addition to a policy of the box: browsers apply both.
    headers.append(
        CONTENT_SECURITY_POLICY,
        HeaderValue::from_static("frame-ancestors 'self'"),
    );
    headers
        .entry(X_FRAME_OPTIONS)
        .or_insert(HeaderValue::from_static("SAMEORIGIN"));
    // A page cannot give up its origin for that of the domain (`document.domain`).
    headers.insert(
        HeaderName::from_static("origin-agent-cluster"),
        HeaderValue::from_static("?1"),
    );
    if !is_public {
        headers.insert(
            HeaderName::from_static("cross-origin-resource-policy"),
            HeaderValue::from_static("same-origin"),
        );
        headers
            .entry(CACHE_CONTROL)
            .or_insert(HeaderValue::from_static("private"));
    }
    if let Some(path) = headers.get(LOCATION).and_then(|to| own_path(to, port)) {
        headers.insert(LOCATION, path);
    }
}

/// The path of an address that the server in the box made of the host that it was told.
fn own_path(location: &HeaderValue, port: u16) -> Option<HeaderValue> {
    let rest = location.to_str().ok()?.strip_prefix("http://localhost:")?;
    let rest = rest.strip_prefix(&port.to_string())?;
    match rest.as_bytes().first() {
        None => Some(HeaderValue::from_static("/")),
        Some(b'/') if !rest.starts_with("//") => HeaderValue::from_str(rest).ok(),
        Some(_) => None,
    }
}

/// The answer to a link: the cookie, and the way to the page.
pub(super) fn opened(secret: &str, expires_at: DateTime<Utc>) -> Response {
    let seconds = (expires_at - Utc::now()).num_seconds().max(0);
    let cookie = format!(
        "{PREVIEW_COOKIE}={secret}; Path=/; Secure; HttpOnly; SameSite=Lax; Max-Age={seconds}"
    );
    let mut response = StatusCode::SEE_OTHER.into_response();
    let headers = response.headers_mut();
    headers.insert(LOCATION, HeaderValue::from_static("/"));
    if let Ok(cookie) = HeaderValue::from_str(&cookie) {
        headers.insert(SET_COOKIE, cookie);
    }
    add_to(headers);
    response
}

/// An error, as a page for browsers and in the shape of every error for programs.
pub(super) fn error(error: Error, request: &HeaderMap) -> Response {
    let accepts_pages = request
        .get_all(ACCEPT)
        .iter()
        .any(|value| value.as_bytes().windows(9).any(|text| text == b"text/html"));
    let page = accepts_pages.then(|| page(&error));
    let mut response = ApiError(error).into_response();
    if let Some(page) = page {
        let content_type = HeaderValue::from_static("text/html; charset=utf-8");
        let (mut parts, _) = response.into_parts();
        parts.headers.insert(CONTENT_TYPE, content_type);
        response = Response::from_parts(parts, page.into());
    }
    let headers = response.headers_mut();
    // A preview takes no token of the API.
    headers.remove(WWW_AUTHENTICATE);
    add_to(headers);
    response
}

fn page(error: &Error) -> String {
    let title = match error.code {
        ErrorCode::NotFound => "This preview does not exist",
        ErrorCode::Unauthorized => "This preview is not open to you",
        ErrorCode::NothingListening => "The server does not answer",
        _ => "The preview cannot be shown",
    };
    let message = error
        .message
        .replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;");
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{title}</title></head>\
         <body><h1>{title}</h1><p>{message}</p></body></html>\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answer_of_a_preview_stays_on_its_own_origin() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("set-cookie", "a=1; Domain=previews.example"),
            ("clear-site-data", "\"cookies\""),
            ("strict-transport-security", "max-age=1; includeSubDomains"),
            ("cross-origin-resource-policy", "cross-origin"),
            ("location", "http://localhost:8080/next"),
        ] {
            headers.insert(name, HeaderValue::from_static(value));
        }
        from_box(&mut headers, 8080, false);
        for (name, expected) in [
            ("set-cookie", Some("a=1")),
            ("clear-site-data", None),
            ("strict-transport-security", None),
            ("cross-origin-resource-policy", Some("same-origin")),
            ("content-security-policy", Some("frame-ancestors 'self'")),
            ("x-frame-options", Some("SAMEORIGIN")),
            ("origin-agent-cluster", Some("?1")),
            ("location", Some("/next")),
        ] {
            let found = headers.get(name).map(|value| value.to_str().unwrap());
            assert_eq!(found, expected, "{name}");
        }
    }

    #[test]
    fn only_an_address_of_the_port_itself_becomes_a_path() {
        for (location, expected) in [
            ("http://localhost:8080", Some("/")),
            ("http://localhost:8080/a?b", Some("/a?b")),
            ("http://localhost:8080//evil.example", None),
            ("http://localhost:80801/", None),
            ("http://localhost:8081/", None),
            ("https://elsewhere.example/", None),
            ("/a", None),
        ] {
            let path = own_path(&HeaderValue::from_static(location), 8080);
            let path = path.as_ref().map(|path| path.to_str().unwrap());
            assert_eq!(path, expected, "{location}");
        }
    }

    #[tokio::test]
    async fn error_is_a_page_for_browsers_and_json_for_programs() {
        let mut request = HeaderMap::new();
        let answer = error(Error::not_found("preview"), &request);
        assert_eq!(answer.headers()[CONTENT_TYPE], "application/json");
        let accept = HeaderValue::from_static("text/html,application/xhtml+xml,*/*;q=0.8");
        request.insert(ACCEPT, accept);
        let refused = Error::new(ErrorCode::Unauthorized, "<script>");
        let answer = error(refused, &request);
        assert_eq!(answer.status(), StatusCode::UNAUTHORIZED);
        assert_eq!(answer.headers()[CONTENT_TYPE], "text/html; charset=utf-8");
        assert!(!answer.headers().contains_key(WWW_AUTHENTICATE));
        assert!(answer.headers().contains_key(CONTENT_SECURITY_POLICY));
        let body = axum::body::to_bytes(answer.into_body(), 4096)
            .await
            .unwrap();
        let body = String::from_utf8(body.to_vec()).unwrap();
        assert!(body.contains("&lt;script&gt;"), "{body}");
    }
}

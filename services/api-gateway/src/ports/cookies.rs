//! The cookies of requests to servers in boxes, and those that the servers set. Pure.
//!
//! * I1. AgentBox's own cookie is not sent to a box, and a box cannot set it.

use axum::http::header::{COOKIE, SET_COOKIE};
use axum::http::{HeaderMap, HeaderValue};

/// The cookie of a browser that has opened the link of a preview. Browsers accept the prefix only
/// without a domain, so that no other host can set it (RFC 6265bis, section 4.1.3.2).
pub(crate) const PREVIEW_COOKIE: &str = "__Host-agentbox-preview";

/// The cookies of a request, or the parts of one that is set.
fn parts(value: &HeaderValue) -> impl Iterator<Item = &[u8]> {
    let parts = value.as_bytes().split(|byte| *byte == b';');
    parts
        .map(<[u8]>::trim_ascii)
        .filter(|part| !part.is_empty())
}

/// The name and the value of a cookie.
fn name_and_value(cookie: &[u8]) -> (&[u8], &[u8]) {
    match cookie.iter().position(|byte| *byte == b'=') {
        Some(at) => (
            cookie.get(..at).unwrap_or_default().trim_ascii(),
            cookie.get(at + 1..).unwrap_or_default().trim_ascii(),
        ),
        None => (&[], cookie),
    }
}

/// The secret in the cookie of a preview.
pub(crate) fn preview_cookie(headers: &HeaderMap) -> Option<String> {
    headers.get_all(COOKIE).iter().find_map(|value| {
        parts(value).find_map(|cookie| match name_and_value(cookie) {
            (name, secret) if name == PREVIEW_COOKIE.as_bytes() => {
                String::from_utf8(secret.to_vec()).ok()
            }
            _ => None,
        })
    })
}

fn is_preview_cookie(name: &[u8]) -> bool {
    name.eq_ignore_ascii_case(PREVIEW_COOKIE.as_bytes())
}

/// Removes AgentBox's own cookie from a request. The others become one header: HTTP/2 splits it, and
/// HTTP/1 has only one (RFC 9113, section 8.2.3).
pub(super) fn remove_preview_cookie(headers: &mut HeaderMap) {
    let kept: Vec<&[u8]> = headers
        .get_all(COOKIE)
        .iter()
        .flat_map(parts)
        .filter(|cookie| !is_preview_cookie(name_and_value(cookie).0))
        .collect();
    let kept = kept.join(&b"; "[..]);
    headers.remove(COOKIE);
    if !kept.is_empty()
        && let Ok(kept) = HeaderValue::from_bytes(&kept)
    {
        headers.insert(COOKIE, kept);
    }
}

/// Changes the cookies that a server in a box sets into cookies of its own host: without a domain.
/// Those with the name of AgentBox's own, and those without a name, which could have it in their
/// value, are dropped.
pub(crate) fn own_cookies_only(headers: &mut HeaderMap) {
    let kept: Vec<Vec<u8>> = headers
        .get_all(SET_COOKIE)
        .iter()
        .filter_map(|value| {
            let (name, _) = name_and_value(parts(value).next()?);
            if name.is_empty() || is_preview_cookie(name) {
                return None;
            }
            let kept: Vec<&[u8]> = parts(value)
                .enumerate()
                .filter(|(index, part)| *index == 0 || !is_domain(part))
                .map(|(_, part)| part)
                .collect();
            Some(kept.join(&b"; "[..]))
        })
        .collect();
    headers.remove(SET_COOKIE);
    for value in kept {
        if let Ok(value) = HeaderValue::from_bytes(&value) {
            headers.append(SET_COOKIE, value);
        }
    }
}

/// Whether an attribute of a cookie is its domain, with or without a value.
fn is_domain(attribute: &[u8]) -> bool {
    let (name, value) = name_and_value(attribute);
    let without_value = name.is_empty() && value.eq_ignore_ascii_case(b"domain");
    name.eq_ignore_ascii_case(b"domain") || without_value
}

#[cfg(test)]
mod tests {
    use super::super::headers::testing::map;
    use super::*;

    #[test]
    fn cookie_of_a_box_is_one_of_its_own_host() {
        for (set, expected) in [
            ("a=1; Path=/", Some("a=1; Path=/")),
            ("a=1; Domain=example.org; Secure", Some("a=1; Secure")),
            ("a=1;domain = .example.org;DOMAIN", Some("a=1")),
            ("domain=1; Secure", Some("domain=1; Secure")),
            ("__Host-agentbox-preview=x; Secure", None),
            ("__host-Agentbox-Preview=x", None),
            ("=__Host-agentbox-preview=x", None),
            ("__Host-agentbox-preview", None),
            ("", None),
        ] {
            let mut headers = map(&[("set-cookie", set)]);
            own_cookies_only(&mut headers);
            let kept = headers.get(SET_COOKIE).map(|value| value.to_str().unwrap());
            assert_eq!(kept, expected, "{set}");
        }
    }

    #[test]
    fn secret_of_the_preview_cookie_is_found_by_its_exact_name() {
        let secret = |cookies| preview_cookie(&map(&[("cookie", cookies)]));
        assert_eq!(
            secret("a=1; __Host-agentbox-preview=s1").as_deref(),
            Some("s1")
        );
        assert_eq!(secret("__host-agentbox-preview=s1"), None);
        assert_eq!(secret("a=__Host-agentbox-preview"), None);
    }
}

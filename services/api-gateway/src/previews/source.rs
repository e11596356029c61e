//! Where a request with the cookie of a preview comes from. Pure.
//!
//! * I1. A page of another origin causes nothing in a preview with the cookie of its visitor, except
//!   that it can link to the preview. Previews of one domain are the same site, so the attribute
//!   `SameSite` of the cookie does not separate them.

use agentbox_contracts::error::{Error, ErrorCode};
use axum::http::header::ORIGIN;
use axum::http::{HeaderMap, Method};

/// Checks the headers with which browsers name the source of a request (Fetch Metadata, RFC 6454).
///
/// # Errors
/// [`ErrorCode::Forbidden`] for a request of another origin that is not a visit of the page.
pub(super) fn check(headers: &HeaderMap, method: &Method, host: &str) -> Result<(), Error> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let is_visit = matches!(*method, Method::GET | Method::HEAD)
        && text("sec-fetch-mode") == Some("navigate")
        && text("sec-fetch-dest") == Some("document");
    let site = text("sec-fetch-site");
    // Browsers hide the origin (`null`) of a form of a page with `Referrer-Policy: no-referrer`.
    let is_same_origin = site == Some("same-origin");
    let is_from_no_page = matches!(site, None | Some("none"));
    let is_own_origin = headers.get_all(ORIGIN).iter().all(|origin| {
        let origin = origin.to_str().unwrap_or("");
        let address = ["https://", "http://"]
            .into_iter()
            .find_map(|scheme| origin.strip_prefix(scheme));
        address.is_some_and(|address| address.eq_ignore_ascii_case(host))
    });
    if is_visit || is_same_origin || (is_from_no_page && is_own_origin) {
        return Ok(());
    }
    Err(Error::new(
        ErrorCode::Forbidden,
        "a page of another origin may only link to the preview",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_of_another_origin_may_only_link_to_a_preview() {
        const HOST: &str = "8080-preview-0123456789abcdef.previews.example";
        let own = format!("https://{HOST}");
        let own = own.as_str();
        let sibling = "https://8081-preview-0123456789abcdef.previews.example";
        let visit = ("navigate", "document");
        for (method, site, (mode, dest), origin, expected) in [
            (Method::GET, "none", visit, None, true),
            (Method::GET, "cross-site", visit, None, true),
            (Method::GET, "same-site", visit, None, true),
            (
                Method::GET,
                "same-site",
                ("navigate", "iframe"),
                None,
                false,
            ),
            (Method::POST, "same-site", visit, Some(sibling), false),
            (Method::GET, "same-site", ("no-cors", "image"), None, false),
            (
                Method::GET,
                "same-site",
                ("cors", "empty"),
                Some(sibling),
                false,
            ),
            (
                Method::GET,
                "",
                ("websocket", "websocket"),
                Some(sibling),
                false,
            ),
            (Method::GET, "", ("", ""), Some("null"), false),
            (Method::POST, "cross-site", visit, Some("null"), false),
            (Method::POST, "same-origin", visit, Some("null"), true),
            (Method::GET, "", ("websocket", "websocket"), Some(own), true),
            (
                Method::POST,
                "same-origin",
                ("cors", "empty"),
                Some(own),
                true,
            ),
            (Method::GET, "", ("", ""), None, true),
        ] {
            let mut headers = HeaderMap::new();
            for (name, value) in [
                ("sec-fetch-site", site),
                ("sec-fetch-mode", mode),
                ("sec-fetch-dest", dest),
            ] {
                if !value.is_empty() {
                    headers.insert(name, value.parse().unwrap());
                }
            }
            if let Some(origin) = origin {
                headers.insert(ORIGIN, origin.parse().unwrap());
            }
            let outcome = check(&headers, &method, HOST);
            assert_eq!(outcome.is_ok(), expected, "{method} {headers:?}");
        }
    }
}

//! Headers whose value is a list (RFC 9110, section 5.6.1). Pure.

use axum::http::{HeaderMap, HeaderName};

/// The elements of all lines of a header, in their order, without the white space around them. A line
/// that is not text has none. An element may be empty.
pub(crate) fn elements<'a>(
    headers: &'a HeaderMap,
    name: &HeaderName,
) -> impl Iterator<Item = &'a str> + use<'a> {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;
    use axum::http::header::{ACCEPT, CONNECTION};

    use super::*;

    #[test]
    fn elements_of_all_lines_that_are_text_are_in_their_order() {
        let mut headers = HeaderMap::new();
        headers.append(CONNECTION, HeaderValue::from_static(" a ,,b;c=d"));
        headers.append(CONNECTION, HeaderValue::from_bytes(b"\xff, x").unwrap());
        headers.append(CONNECTION, HeaderValue::from_static("e"));
        let found: Vec<&str> = elements(&headers, &CONNECTION).collect();
        assert_eq!(found, ["a", "", "b;c=d", "e"]);
        assert_eq!(elements(&headers, &ACCEPT).count(), 0);
    }
}

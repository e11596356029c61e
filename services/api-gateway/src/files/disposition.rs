//! `Content-Disposition`: the name under which a client stores a download (RFC 6266). Pure.

use axum::http::HeaderValue;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};

/// Bytes that are escaped in `filename*`: all but `attr-char` (RFC 8187, section 3.2.1).
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'!')
    .remove(b'#')
    .remove(b'$')
    .remove(b'&')
    .remove(b'+')
    .remove(b'-')
    .remove(b'.')
    .remove(b'^')
    .remove(b'_')
    .remove(b'`')
    .remove(b'|')
    .remove(b'~');

/// The header of a download with this name, which need not be UTF-8.
pub(super) fn attachment(name: &[u8]) -> HeaderValue {
    let name = String::from_utf8_lossy(name);
    let is_plain =
        |c: char| (c.is_ascii_graphic() || c == ' ') && !matches!(c, '"' | '\\' | '%' | '/');
    let plain: String = name
        .chars()
        .map(|c| if is_plain(c) { c } else { '_' })
        .collect();
    let mut text = format!("attachment; filename=\"{plain}\"");
    if plain != name {
        text.push_str("; filename*=UTF-8''");
        text.extend(percent_encode(name.as_bytes(), ESCAPED));
    }
    // It has printable ASCII characters only.
    HeaderValue::from_str(&text).unwrap_or(HeaderValue::from_static("attachment"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_of_any_bytes_is_written_as_ascii() {
        let table: [(&[u8], &str); 5] = [
            (b"a b.csv", "attachment; filename=\"a b.csv\""),
            (
                "ä€.txt".as_bytes(),
                "attachment; filename=\"__.txt\"; filename*=UTF-8''%C3%A4%E2%82%AC.txt",
            ),
            (
                b"a\"\\\r\n%41",
                "attachment; filename=\"a_____41\"; filename*=UTF-8''a%22%5C%0D%0A%2541",
            ),
            (
                b"\xff",
                "attachment; filename=\"_\"; filename*=UTF-8''%EF%BF%BD",
            ),
            (b"/", "attachment; filename=\"_\"; filename*=UTF-8''%2F"),
        ];
        for (name, expected) in table {
            assert_eq!(attachment(name), expected, "{expected}");
        }
    }
}

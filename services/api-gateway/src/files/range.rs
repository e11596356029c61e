//! The requested part of a file (RFC 9110, section 14). Pure.
//!
//! A `Range` that is malformed, of another unit than bytes, or of several parts is ignored, as the
//! RFC permits: the answer is the whole file.

use agentbox_contracts::files::ByteRange;
use axum::http::{HeaderMap, header};

/// The requested range, and the condition of `If-Range`, empty without one.
pub(super) fn requested(headers: &HeaderMap) -> Option<(ByteRange, String)> {
    let mut values = headers.get_all(header::RANGE).iter();
    let value = values.next()?;
    if values.next().is_some() {
        return None;
    }
    let range = parse(value.to_str().ok()?)?;
    let condition = match headers.get(header::IF_RANGE) {
        None => "",
        // A condition that cannot be read does not hold.
        Some(condition) => condition.to_str().ok().filter(|text| !text.is_empty())?,
    };
    Some((range, condition.to_owned()))
}

fn parse(text: &str) -> Option<ByteRange> {
    let (unit, range) = text.split_once('=')?;
    if !unit.trim().eq_ignore_ascii_case("bytes") {
        return None;
    }
    let (first, last) = range.trim().split_once('-')?;
    let (first, last) = match (first.trim(), last.trim()) {
        ("", last) => (None, Some(position(last)?)),
        (first, "") => (Some(position(first)?), None),
        (first, last) => {
            let (first, last) = (position(first)?, position(last)?);
            (first <= last).then_some((Some(first), Some(last)))?
        }
    };
    Some(ByteRange { first, last })
}

/// A position too large for a file is the largest one.
fn position(text: &str) -> Option<u64> {
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| text.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(&'static str, &'static [u8])]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, axum::http::HeaderValue::from_bytes(value).unwrap());
        }
        headers
    }

    #[test]
    fn one_range_of_bytes_is_read() {
        for (text, first, last) in [
            ("bytes=0-0", Some(0), Some(0)),
            ("bytes=5-", Some(5), None),
            ("bytes=-5", None, Some(5)),
            ("Bytes = 2 - 3", Some(2), Some(3)),
            ("bytes=1-99999999999999999999", Some(1), Some(u64::MAX)),
        ] {
            assert_eq!(parse(text), Some(ByteRange { first, last }), "{text}");
        }
    }

    #[test]
    fn other_ranges_are_ignored() {
        for text in [
            "",
            "bytes",
            "bytes=",
            "bytes=-",
            "bytes=3-2",
            "bytes=0-1,3-4",
            "bytes=a-b",
            "bytes=+1-2",
            "bytes=1",
            "lines=0-1",
            "bytes=--1",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
        let twice = headers(&[("range", b"bytes=0-1"), ("range", b"bytes=2-3")]);
        assert_eq!(requested(&twice), None);
    }

    #[test]
    fn range_has_its_condition() {
        let condition = |lines: &[(&'static str, &'static [u8])]| {
            requested(&headers(lines)).map(|(_, condition)| condition)
        };
        let range = ("range", b"bytes=0-1".as_slice());
        assert_eq!(condition(&[range]).as_deref(), Some(""));
        let with_etag = condition(&[range, ("if-range", b"\"a\"")]);
        assert_eq!(with_etag.as_deref(), Some("\"a\""));
        assert_eq!(condition(&[range, ("if-range", b"\"\xff\"")]), None);
        assert_eq!(condition(&[("if-range", b"\"a\"")]), None);
    }
}

//! The conditions of a request on the ETag of a file (RFC 9110, section 13). Pure.
//!
//! * I1. A condition that cannot be read is refused. An upload without its condition would replace
//!   what the caller wants to keep.

use agentbox_contracts::error::{Error, shortened};
use axum::http::{HeaderMap, HeaderName, header};

/// The ETags of `If-None-Match`, of which one that matches means that the file is unchanged. They are
/// compared weakly: `W/` does not count.
///
/// # Errors
/// [`agentbox_contracts::error::ErrorCode::Validation`], naming the header.
pub(super) fn if_none_match(headers: &HeaderMap) -> Result<Vec<String>, Error> {
    let mut tags = etags(headers, &header::IF_NONE_MATCH, "If-None-Match")?;
    for tag in &mut tags {
        if let Some(strong) = tag.strip_prefix("W/") {
            *tag = strong.to_owned();
        }
    }
    Ok(tags)
}

/// The ETags of `If-Match`. They are compared strongly: one with `W/` matches no file.
///
/// # Errors
/// As [`if_none_match`].
pub(super) fn if_match(headers: &HeaderMap) -> Result<Vec<String>, Error> {
    etags(headers, &header::IF_MATCH, "If-Match")
}

/// Whether an upload must not replace a file: `If-None-Match: *`.
///
/// # Errors
/// As [`if_none_match`]; also for an ETag, because an upload has no use for it.
pub(super) fn if_absent(headers: &HeaderMap) -> Result<bool, Error> {
    let tags = if_none_match(headers)?;
    match tags.as_slice() {
        [] => Ok(false),
        [any] if any == "*" => Ok(true),
        [tag, ..] => Err(Error::value(
            "If-None-Match",
            "must be `*` for an upload",
            tag,
        )),
    }
}

/// The ETags of a header, with quotes, or `*` alone. Empty: the header is absent.
fn etags(headers: &HeaderMap, name: &HeaderName, shown: &str) -> Result<Vec<String>, Error> {
    let mut tags = Vec::new();
    for value in headers.get_all(name) {
        let text = String::from_utf8_lossy(value.as_bytes());
        let listed = list(&text).ok_or_else(|| {
            let rule = "must be `*`, or ETags in quotes, separated by commas";
            Error::field(shown, format_args!("{rule}, is `{}`", shortened(&text)))
        })?;
        tags.extend(listed);
    }
    let has_any = tags.iter().any(|tag| tag == "*");
    if has_any && tags.len() > 1 {
        return Err(Error::field(shown, "must not have `*` beside an ETag"));
    }
    Ok(tags)
}

fn list(text: &str) -> Option<Vec<String>> {
    if text.trim() == "*" {
        return Some(vec!["*".to_owned()]);
    }
    let mut tags = Vec::new();
    let mut rest = text.trim();
    loop {
        // A comma may be in an ETag, so the list is not split at commas.
        let opaque = rest.strip_prefix("W/").unwrap_or(rest);
        let content = opaque.strip_prefix('"')?;
        let (content, after) = content.split_once('"')?;
        if content.chars().any(|c| c.is_control() || c == ' ') {
            return None;
        }
        let length = rest.len() - after.len();
        tags.push(rest.get(..length)?.to_owned());
        rest = after.trim_start();
        if rest.is_empty() {
            return Some(tags);
        }
        rest = rest.strip_prefix(',')?.trim_start();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(name: HeaderName, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(name, value.parse().unwrap())])
    }

    #[test]
    fn etags_are_read_with_their_quotes() {
        let read = |value| if_match(&with(header::IF_MATCH, value)).unwrap();
        assert_eq!(read("*"), ["*"]);
        assert_eq!(read("\"a\""), ["\"a\""]);
        assert_eq!(
            read("\"a,b\" , W/\"c\",\"\""),
            ["\"a,b\"", "W/\"c\"", "\"\""]
        );
        assert!(if_match(&HeaderMap::new()).unwrap().is_empty());
        let weak = if_none_match(&with(header::IF_NONE_MATCH, "W/\"a\", \"b\""));
        assert_eq!(weak.unwrap(), ["\"a\"", "\"b\""]);
    }

    #[test]
    fn unreadable_condition_is_refused_by_name() {
        for bad in [
            "",
            "a",
            "\"a",
            "\"a\" \"b\"",
            "\"a\",",
            "*, \"a\"",
            "w/\"a\"",
            "\"a b\"",
        ] {
            let error = if_match(&with(header::IF_MATCH, bad)).unwrap_err();
            assert!(error.message.starts_with("If-Match: "), "{bad}: {error}");
        }
    }

    #[test]
    fn upload_may_only_ask_for_an_absent_file() {
        let read = |value| if_absent(&with(header::IF_NONE_MATCH, value));
        assert_eq!(if_absent(&HeaderMap::new()), Ok(false));
        assert_eq!(read("*"), Ok(true));
        let error = read("\"a\"").unwrap_err();
        assert!(error.message.starts_with("If-None-Match: "), "{error}");
    }
}

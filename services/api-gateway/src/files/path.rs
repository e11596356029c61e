//! The paths of files: absolute bytes, percent-encoded in a query, text or base64 in a body.

use std::fmt::Display;

use agentbox_contracts::error::{Error, ErrorCode, shortened};
use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;

use crate::edge::error::ApiError;
use crate::edge::query;
use crate::state::Gateway;

/// The longest path in bytes: `PATH_MAX` of Linux without its NUL.
const MAX_PATH: usize = 4095;

/// The path in the query.
pub(crate) struct FilePath(pub Bytes);

impl FromRequestParts<Gateway> for FilePath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &Gateway) -> Result<Self, ApiError> {
        Ok(Self(of_query(parts.uri.query().unwrap_or(""))?))
    }
}

/// The path of a query.
///
/// # Errors
/// [`ErrorCode::InvalidPath`]; [`ErrorCode::Validation`] without one.
pub(crate) fn of_query(query: &str) -> Result<Bytes, Error> {
    match query::bytes(query, "path") {
        Some(path) => check("path", path),
        None => Err(Error::field("path", "is required")),
    }
}

/// The path of the field `field` of a body, or of `<field>_base64`.
///
/// # Errors
/// [`ErrorCode::InvalidPath`] or [`ErrorCode::Validation`], naming the field.
pub(crate) fn of_body(
    field: &str,
    text: Option<&str>,
    base64: Option<&str>,
) -> Result<Bytes, Error> {
    match (text, base64) {
        (Some(text), None) => check(field, text.as_bytes().to_vec()),
        (None, Some(base64)) => {
            let field = format!("{field}_base64");
            let path = STANDARD
                .decode(base64)
                .map_err(|_| Error::value(&field, "must be base64 (RFC 4648)", base64))?;
            check(&field, path)
        }
        (None, None) => Err(Error::field(
            field,
            format_args!("is required, or `{field}_base64` instead"),
        )),
        (Some(_), Some(_)) => Err(Error::field(
            field,
            format_args!("must be absent if `{field}_base64` is given"),
        )),
    }
}

fn check(field: &str, path: Vec<u8>) -> Result<Bytes, Error> {
    let broken = |rule: &dyn Display| {
        let message = format!("{field}: {rule}");
        Err(Error::new(ErrorCode::InvalidPath, message))
    };
    let shown = || shortened(&String::from_utf8_lossy(&path));
    if path.len() > MAX_PATH {
        return broken(&format_args!(
            "must be at most {MAX_PATH} bytes, has {}",
            path.len()
        ));
    }
    if path.contains(&0) {
        return broken(&format_args!("must not contain NUL, is `{}`", shown()));
    }
    if !path.starts_with(b"/") {
        return broken(&format_args!(
            "must be absolute, that is begin with `/`, is `{}`",
            shown()
        ));
    }
    Ok(path.into())
}

/// The last part of a path; of the root the root itself.
pub(super) fn name(path: &[u8]) -> &[u8] {
    path.rsplit(|byte| *byte == b'/')
        .find(|part| !part.is_empty())
        .unwrap_or(b"/".as_slice())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn path_of_a_query_may_have_any_bytes_but_nul() {
        let table: [(&str, &[u8]); 3] = [
            ("path=/a%2Fb%20c", b"/a/b c"),
            ("path=%2F%ff%0a", b"/\xff\n"),
            ("path=/", b"/"),
        ];
        for (query, expected) in table {
            assert_eq!(of_query(query).unwrap(), expected, "{query}");
        }
        let longest = format!("path=/{}", "x".repeat(MAX_PATH - 1));
        assert_eq!(of_query(&longest).unwrap().len(), MAX_PATH);
    }

    #[test]
    fn path_that_breaks_a_rule_is_refused_by_field() {
        use ErrorCode::{InvalidPath, Validation};
        let long = format!("path=/{}", "x".repeat(MAX_PATH));
        for (query, code, text) in [
            ("path=", InvalidPath, "path: must be absolute"),
            ("path=a/b", InvalidPath, "is `a/b`"),
            ("path=/a%00b", InvalidPath, "path: must not contain NUL"),
            (long.as_str(), InvalidPath, "at most 4095 bytes, has 4096"),
            ("paths=/a", Validation, "path: is required"),
        ] {
            let error = of_query(query).unwrap_err();
            assert_eq!(error.code, code, "{error}");
            assert!(error.message.contains(text), "{error}");
        }
    }

    #[test]
    fn path_of_a_body_is_text_or_base64() {
        assert_eq!(of_body("to", Some("/ä"), None).unwrap(), "/ä".as_bytes());
        assert_eq!(of_body("to", None, Some("L2H/")).unwrap(), &b"/a\xff"[..]);
        for (text, base64, expected) in [
            (None, None, "to: is required"),
            (Some("/a"), Some("L2E="), "to: must be absent"),
            (None, Some("%"), "to_base64: must be base64"),
            (None, Some("YQ=="), "to_base64: must be absolute"),
            (Some("a"), None, "to: must be absolute"),
        ] {
            let error = of_body("to", text, base64).unwrap_err();
            assert!(error.message.starts_with(expected), "{error}");
        }
    }

    #[test]
    fn name_is_the_last_part() {
        for (path, expected) in [
            ("/a/b", "b"),
            ("/a/", "a"),
            ("/a", "a"),
            ("/", "/"),
            ("//", "/"),
        ] {
            assert_eq!(name(path.as_bytes()), expected.as_bytes(), "{path}");
        }
    }
}

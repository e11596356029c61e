//! Query strings, read as strictly as bodies: an unknown or repeated parameter, or a value
//! outside its rule, is an error that names the parameter.

use agentbox_contracts::error::{Error, ErrorCode, shortened};
use axum::extract::FromRequestParts;
use axum::http::Uri;
use axum::http::request::Parts;
use percent_encoding::percent_decode_str;
use serde::de::DeserializeOwned;

use super::error::ApiError;
use super::json::shortened_rule;
use crate::state::Gateway;

/// The page size of a list when the request does not give one.
const DEFAULT_LIMIT: u32 = 100;
const MAX_LIMIT: u32 = 1000;

/// The query string.
pub(crate) struct Query<T>(pub T);

/// # Errors
/// [`ErrorCode::Validation`], naming the parameter and its value.
pub(crate) fn parse<T: DeserializeOwned>(uri: &Uri) -> Result<T, Error> {
    axum::extract::Query::try_from_uri(uri)
        .map(|axum::extract::Query(value)| value)
        .map_err(|error| {
            let text = error.body_text();
            let rule = text
                .strip_prefix("Failed to deserialize query string: ")
                .unwrap_or(&text);
            let rule = shortened_rule(rule);
            let rule = rule.as_str();
            let query = uri.query().unwrap_or("");
            let message = rule.split_once(": ").map_or(rule, |(_, message)| message);
            let quoted = |prefix| {
                let name = message.strip_prefix(prefix)?.split('`').next()?;
                Some(shortened(name))
            };
            if let Some(name) = quoted("unknown field `") {
                return Error::field(&name, "is not a parameter of this request");
            }
            if let Some(name) = quoted("missing field `") {
                return Error::field(&name, "is required");
            }
            if let Some(name) = quoted("duplicate field `") {
                return Error::field(&name, "must be given once, is given twice");
            }
            // The message `name: rule` names the parameter. Its value is added if there is one.
            let given = rule
                .split_once(": ")
                .and_then(|(name, _)| value(query, name));
            let message = match given {
                Some(value) => format!("{rule}, is `{}`", shortened(&value)),
                None => rule.to_owned(),
            };
            Error::new(ErrorCode::Validation, message)
        })
}

/// The bytes of the first value of the parameter `name`, which need not be UTF-8. As in every query,
/// `+` is a space.
pub(crate) fn bytes(query: &str, name: &str) -> Option<Vec<u8>> {
    let decode = |text: &str| percent_decode_str(&text.replace('+', " ")).collect::<Vec<u8>>();
    query
        .split('&')
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .find(|(key, _)| decode(key) == name.as_bytes())
        .map(|(_, value)| decode(value))
}

/// The first value of the parameter `name`.
pub(crate) fn value(query: &str, name: &str) -> Option<String> {
    form_urlencoded::parse(query.as_bytes())
        .find(|(key, _)| key == name)
        .map(|(_, value)| value.into_owned())
}

impl<T: DeserializeOwned> FromRequestParts<Gateway> for Query<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &Gateway) -> Result<Self, ApiError> {
        Ok(Self(parse(&parts.uri)?))
    }
}

/// Limit and offset of a list: 100 and 0 when absent, the limit 1 to 1000.
///
/// # Errors
/// [`ErrorCode::Validation`], naming the parameter.
pub(crate) fn page(limit: Option<u32>, offset: Option<u64>) -> Result<(u32, u64), Error> {
    let limit = limit.unwrap_or(DEFAULT_LIMIT);
    if !(1..=MAX_LIMIT).contains(&limit) {
        return Err(Error::value(
            "limit",
            format_args!("must be 1 to {MAX_LIMIT}"),
            limit,
        ));
    }
    let offset = offset.unwrap_or(0);
    if i64::try_from(offset).is_err() {
        return Err(Error::value(
            "offset",
            format_args!("must be at most {}", i64::MAX),
            offset,
        ));
    }
    Ok((limit, offset))
}

#[cfg(test)]
mod tests {
    use agentbox_api::environment::ListQuery;
    use agentbox_api::logs::LogsQuery;

    use super::*;

    fn read<T: DeserializeOwned>(query: &str) -> Result<T, Error> {
        parse(&format!("/x?{query}").parse().unwrap())
    }

    #[test]
    fn invalid_query_is_refused_by_parameter() {
        for (query, text) in [
            ("limit=ten", "`ten`"),
            ("limit=ten", "limit"),
            ("status=lost", "status"),
            ("lable=a%3Db", "lable: is not a parameter of this request"),
            (
                "limit=1&limit=2",
                "limit: must be given once, is given twice",
            ),
        ] {
            let error = read::<ListQuery>(query).err().unwrap();
            assert_eq!(error.code, ErrorCode::Validation);
            assert!(error.message.contains(text), "{query}: {}", error.message);
        }
        let long = format!("status={}", "x".repeat(10_000));
        let error = read::<ListQuery>(&long).err().unwrap();
        assert!(error.message.len() < 400, "{}", error.message);
        assert!(error.message.contains("expected"), "{}", error.message);
        assert!(read::<LogsQuery>("follow=maybe").is_err());
        assert!(read::<LogsQuery>("since=yesterday").is_err());
    }

    #[test]
    fn bytes_of_a_parameter_need_not_be_utf8() {
        let table: [(&str, Option<&[u8]>); 7] = [
            ("a=1&path=/a%2Fb", Some(b"/a/b")),
            ("path=%2Fa%ff%00+%2B", Some(b"/a\xff\0 +")),
            ("p%61th=/x&path=/y", Some(b"/x")),
            ("path", Some(b"")),
            ("path=/a%", Some(b"/a%")),
            ("paths=/a", None),
            ("", None),
        ];
        for (query, expected) in table {
            assert_eq!(bytes(query, "path").as_deref(), expected, "{query}");
        }
    }

    #[test]
    fn empty_query_has_all_defaults() {
        let query = read::<LogsQuery>("").unwrap();
        assert!(query.timestamps && !query.follow && query.tail.is_none());
        let query = read::<LogsQuery>("since=2026-01-22T10%3A00%3A00Z&tail=0").unwrap();
        assert!(query.since.is_some());
        assert_eq!(query.tail, Some(0));
    }

    #[test]
    fn page_limit_and_offset_are_bounded() {
        assert_eq!(page(None, None).unwrap(), (100, 0));
        assert_eq!(page(Some(1000), Some(5)).unwrap(), (1000, 5));
        assert!(page(Some(0), None).is_err());
        assert!(page(Some(1001), None).is_err());
        assert!(page(None, Some(u64::MAX)).is_err());
    }
}

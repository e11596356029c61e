//! Bodies, paths and queries: read strictly, refused by name.

use std::str::FromStr;
use std::time::Duration;

use agentbox_contracts::error::{Error, ErrorCode};
use axum::body::Body;
use axum::extract::{FromRequest, FromRequestParts, RawPathParams, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::DeserializeOwned;

use super::error::ApiError;
use crate::state::Gateway;

/// Bytes of JSON in one request.
const MAX_BODY: usize = 1024 * 1024;

/// A JSON body.
pub(crate) struct Json<T>(pub T);

/// The one path parameter, as an id. What is not an id does not exist.
pub(crate) struct Path<T>(pub T);

/// The query string.
pub(crate) struct Query<T>(pub T);

fn too_large() -> Error {
    Error::new(
        ErrorCode::PayloadTooLarge,
        format!("the body is over {MAX_BODY} bytes"),
    )
}

fn check_head(headers: &HeaderMap) -> Result<(), Error> {
    let declared = headers
        .get(header::CONTENT_LENGTH)
        .and_then(|length| length.to_str().ok())
        .and_then(|length| length.parse::<u64>().ok());
    if declared.is_some_and(|length| length > MAX_BODY as u64) {
        return Err(too_large());
    }
    let content_type = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok());
    let essence = content_type
        .unwrap_or("")
        .split(';')
        .next()
        .unwrap_or("")
        .trim();
    if essence.eq_ignore_ascii_case("application/json") {
        Ok(())
    } else {
        Err(Error::new(
            ErrorCode::UnsupportedMediaType,
            "the Content-Type must be application/json",
        ))
    }
}

async fn read(body: Body, deadline: Duration) -> Result<axum::body::Bytes, Error> {
    let body = Limited::new(body, MAX_BODY).collect();
    match tokio::time::timeout(deadline, body).await {
        Err(_) => Err(Error::new(
            ErrorCode::RequestTimeout,
            format!("the body did not arrive within {} s", deadline.as_secs()),
        )),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large()),
        Ok(Err(_)) => Err(Error::new(ErrorCode::BadRequest, "the body broke off")),
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
    }
}

/// Reads JSON; the error names the field.
pub(crate) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Error> {
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut reader).map_err(|error| {
        let path = error.path().to_string();
        let inner = error.into_inner();
        if inner.is_data() {
            let field = if path == "." {
                String::new()
            } else {
                format!("{path}: ")
            };
            Error::new(
                ErrorCode::Validation,
                format!("{field}{}", without_place(&inner)),
            )
        } else {
            Error::new(
                ErrorCode::BadRequest,
                format!("the body is not JSON: {inner}"),
            )
        }
    })?;
    reader.end().map_err(|error| {
        Error::new(
            ErrorCode::BadRequest,
            format!("the body is not JSON: {error}"),
        )
    })?;
    Ok(value)
}

fn without_place(error: &serde_json::Error) -> String {
    let text = error.to_string();
    text.rfind(" at line ")
        .map_or(text.clone(), |at| text[..at].to_owned())
}

impl<T: DeserializeOwned> FromRequest<Gateway> for Json<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, gateway: &Gateway) -> Result<Self, ApiError> {
        check_head(request.headers())?;
        let deadline = Duration::from_secs(gateway.config.body_timeout_s);
        let bytes = read(request.into_body(), deadline).await?;
        Ok(Self(parse(&bytes)?))
    }
}

impl<T> FromRequestParts<Gateway> for Path<T>
where
    T: FromStr + Send,
{
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, gateway: &Gateway) -> Result<Self, ApiError> {
        let parameters = RawPathParams::from_request_parts(parts, gateway)
            .await
            .map_err(|_| Error::new(ErrorCode::BadRequest, "the path cannot be read"))?;
        let (name, value) = parameters
            .iter()
            .next()
            .ok_or_else(|| Error::new(ErrorCode::BadRequest, "the path has no id"))?;
        let what = match name {
            "user" => "user",
            "key" => "API key",
            _ => "environment",
        };
        value
            .parse()
            .map(Self)
            .map_err(|_| ApiError(Error::not_found(what)))
    }
}

impl<T: DeserializeOwned> FromRequestParts<Gateway> for Query<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &Gateway) -> Result<Self, ApiError> {
        axum::extract::Query::try_from_uri(&parts.uri)
            .map(|axum::extract::Query(value)| Self(value))
            .map_err(|error| {
                let text = error.body_text();
                let rule = text
                    .strip_prefix("Failed to deserialize query string: ")
                    .unwrap_or(&text);
                ApiError(Error::new(ErrorCode::Validation, format!("query: {rule}")))
            })
    }
}

/// Limit and offset of a list: 100 and 0 when absent, the limit 1 to 1000.
///
/// # Errors
/// [`ErrorCode::Validation`], naming the parameter.
pub(crate) fn page(limit: Option<u32>, offset: Option<u64>) -> Result<(u32, u64), Error> {
    let limit = limit.unwrap_or(100);
    if !(1..=1000).contains(&limit) {
        return Err(Error::field(
            "limit",
            format!("must be 1 to 1000, is {limit}"),
        ));
    }
    let offset = offset.unwrap_or(0);
    if offset > i64::MAX as u64 {
        return Err(Error::field("offset", format!("is too large: {offset}")));
    }
    Ok((limit, offset))
}

#[cfg(test)]
mod tests {
    use agentbox_api::environment::CreateEnvironment;

    use super::*;

    #[test]
    fn a_bad_body_is_refused_by_the_name_of_its_field() {
        let table = [
            (r#"{"name": 5}"#, ErrorCode::Validation, "name: "),
            (
                r#"{"name":"a","image":"b","resources":{"cpu":1}}"#,
                ErrorCode::Validation,
                "resources.cpu: ",
            ),
            (
                r#"{"name":"a","image":"b","resources":{"cpu":"1","memory":"1","storage":"1"},"x":1}"#,
                ErrorCode::Validation,
                "unknown field `x`",
            ),
            (
                r#"{"name":"a"}"#,
                ErrorCode::Validation,
                "missing field `image`",
            ),
            (r#"{"name""#, ErrorCode::BadRequest, "not JSON"),
            ("", ErrorCode::BadRequest, "not JSON"),
            ("{} {}", ErrorCode::Validation, "missing field"),
        ];
        for (body, code, text) in table {
            let error = parse::<CreateEnvironment>(body.as_bytes()).unwrap_err();
            assert_eq!(error.code, code, "{body}: {error}");
            assert!(error.message.contains(text), "{body}: {error}");
        }
    }

    #[test]
    fn a_page_is_bounded() {
        assert_eq!(page(None, None).unwrap(), (100, 0));
        assert_eq!(page(Some(1000), Some(5)).unwrap(), (1000, 5));
        assert!(page(Some(0), None).is_err());
        assert!(page(Some(1001), None).is_err());
    }

    #[test]
    fn a_declared_length_over_the_limit_and_a_wrong_type_are_refused_from_the_head() {
        let mut headers = HeaderMap::new();
        assert_eq!(
            check_head(&headers).unwrap_err().code,
            ErrorCode::UnsupportedMediaType
        );
        headers.insert(
            header::CONTENT_TYPE,
            "application/json; charset=utf-8".parse().unwrap(),
        );
        assert!(check_head(&headers).is_ok());
        headers.insert(header::CONTENT_LENGTH, "1048577".parse().unwrap());
        assert_eq!(
            check_head(&headers).unwrap_err().code,
            ErrorCode::PayloadTooLarge
        );
    }
}

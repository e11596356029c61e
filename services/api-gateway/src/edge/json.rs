//! JSON bodies, read strictly: the head is checked before the body, the body is read within a
//! deadline, and an error names the field, the rule and the value. The bytes of one user's bodies
//! that have arrived, and of all users' bodies, are bounded until they are parsed.

use std::time::Duration;

use agentbox_contracts::error::{Error, ErrorCode, shortened};
use agentbox_contracts::ids::UserId;
use axum::body::Body;
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderMap, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::DeserializeOwned;

mod objects;

use self::objects::Objects;
use super::admit::Caller;
use super::error::ApiError;
use crate::shares::{Resource, Share};
use crate::state::Gateway;

/// The largest body of a request, in bytes.
const MAX_BODY: usize = 1024 * 1024;
/// The largest body with a command, in bytes: arguments and variables may have two MiB.
pub(crate) const MAX_COMMAND_BODY: usize = 4 * 1024 * 1024;
/// The largest body of a request without a caller, such as a login.
const MAX_OPEN_BODY: usize = 64 * 1024;

/// The memory of bodies that arrive.
pub(crate) const BODIES: Resource = Resource {
    labels: ["body_bytes_per_user", "body_bytes"],
    before: "the bodies of",
    holders: ["your requests", "all requests"],
    after: "that arrive take all memory that they may have; try again",
};

/// A JSON body.
pub(crate) struct Json<T>(pub T);

/// A JSON body with a command.
pub(crate) struct LargeJson<T>(pub T);

fn too_large(limit: usize) -> Error {
    Error::new(
        ErrorCode::PayloadTooLarge,
        format!("the body must be at most {limit} bytes, is larger"),
    )
}

/// Refuses a body by its head alone.
fn check_head(headers: &HeaderMap, limit: usize) -> Result<(), Error> {
    let declared = headers
        .get(header::CONTENT_LENGTH)
        .and_then(|length| length.to_str().ok())
        .and_then(|length| length.parse::<u64>().ok());
    if declared.is_some_and(|length| length > limit as u64) {
        return Err(too_large(limit));
    }
    let content_type = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or("");
    let essence = content_type.split(';').next().unwrap_or("").trim();
    if essence.eq_ignore_ascii_case("application/json") {
        return Ok(());
    }
    Err(Error::new(
        ErrorCode::UnsupportedMediaType,
        if essence.is_empty() {
            "the Content-Type must be `application/json`, is absent".to_owned()
        } else {
            let shown: String = essence.chars().take(80).collect();
            format!("the Content-Type must be `application/json`, is `{shown}`")
        },
    ))
}

/// Reads a body of at most `limit` bytes. `share` grows with it.
async fn collect(
    body: Body,
    limit: usize,
    share: &mut Option<Share<UserId>>,
) -> Result<Vec<u8>, Error> {
    let mut body = Limited::new(body, limit);
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| {
            if error.is::<LengthLimitError>() {
                return too_large(limit);
            }
            Error::new(
                ErrorCode::BadRequest,
                "the connection ended before the body was complete",
            )
        })?;
        if let Some(data) = frame.data_ref() {
            if let Some(share) = share.as_mut() {
                share
                    .grow(data.len() as u64)
                    .map_err(|exceeded| BODIES.unavailable(exceeded))?;
            }
            bytes.extend_from_slice(data);
        }
    }
    Ok(bytes)
}

async fn read(
    body: Body,
    limit: usize,
    deadline: Duration,
    share: &mut Option<Share<UserId>>,
) -> Result<Vec<u8>, Error> {
    match tokio::time::timeout(deadline, collect(body, limit, share)).await {
        Err(_) => Err(Error::new(
            ErrorCode::RequestTimeout,
            format!(
                "the body must arrive within {} seconds, did not",
                deadline.as_secs()
            ),
        )),
        Ok(collected) => collected,
    }
}

fn not_json(error: &serde_json::Error) -> Error {
    Error::new(
        ErrorCode::BadRequest,
        format!("the body is not JSON: {error}"),
    )
}

/// Reads JSON; the error names the field.
pub(crate) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Error> {
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(Objects(&mut reader)).map_err(|error| {
        let path = error.path().to_string();
        let inner = error.into_inner();
        let rule = strip_position(&inner);
        if !inner.is_data() && rule != OUT_OF_RANGE {
            return not_json(&inner);
        }
        let (field, rule) = field_and_rule(&path, &rule);
        Error::field(&shortened(&field), rule)
    })?;
    reader.end().map_err(|error| not_json(&error))?;
    Ok(value)
}

/// serde_json's message for a number such as `1e999`, which is JSON.
const OUT_OF_RANGE: &str = "number out of range";

/// The field that broke a rule, and the rule. The path of a missing, unknown or repeated field
/// is that of its parent, and serde's message names the field.
fn field_and_rule(path: &str, rule: &str) -> (String, String) {
    let within = |name: &str| match path {
        "." => name.to_owned(),
        parent if parent == name || parent.ends_with(&format!(".{name}")) => parent.to_owned(),
        parent => format!("{parent}.{name}"),
    };
    for (prefix, plain) in [
        ("missing field `", "is required"),
        ("unknown field `", "is not a field of this request"),
        ("duplicate field `", "must be given once, is given twice"),
    ] {
        if let Some((name, _)) = rule.strip_prefix(prefix).and_then(|r| r.split_once('`')) {
            return (within(name), plain.to_owned());
        }
    }
    let rule = if rule == OUT_OF_RANGE {
        "must be a number from -1.7e308 to 1.7e308, is outside this range".to_owned()
    } else {
        shortened_rule(rule)
    };
    match path {
        "." => ("body".to_owned(), rule),
        path => (path.to_owned(), rule),
    }
}

/// serde's message for a value, which may be as long as the request.
pub(super) fn shortened_rule(rule: &str) -> String {
    match rule.rsplit_once(", expected ") {
        Some((given, expected)) => format!("{}, expected {expected}", shortened(given)),
        None => shortened(rule),
    }
}

/// The message of an error, without its line and column.
fn strip_position(error: &serde_json::Error) -> String {
    let text = error.to_string();
    text.rfind(" at line ")
        .map_or(text.clone(), |at| text[..at].to_owned())
}

/// Reads the JSON body of a request. `max` is its limit if it has a caller.
async fn read_body<T: DeserializeOwned>(
    request: Request,
    gateway: &Gateway,
    max: usize,
) -> Result<T, Error> {
    let caller = request.extensions().get::<Caller>();
    let user = caller.map(|Caller(principal)| principal.user.clone());
    let limit = match user {
        Some(_) => max,
        None => MAX_OPEN_BODY,
    };
    check_head(request.headers(), limit)?;
    // Held until the body is parsed.
    let share = user.map(|user| gateway.bodies.take(&user, 0)).transpose();
    let mut share = share.map_err(|exceeded| BODIES.unavailable(exceeded))?;
    let deadline = gateway.config.body_timeout();
    let bytes = read(request.into_body(), limit, deadline, &mut share).await?;
    parse(&bytes)
}

impl<T: DeserializeOwned> FromRequest<Gateway> for Json<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, gateway: &Gateway) -> Result<Self, ApiError> {
        Ok(Self(read_body(request, gateway, MAX_BODY).await?))
    }
}

impl<T: DeserializeOwned> FromRequest<Gateway> for LargeJson<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, gateway: &Gateway) -> Result<Self, ApiError> {
        Ok(Self(read_body(request, gateway, MAX_COMMAND_BODY).await?))
    }
}

#[cfg(test)]
mod tests;

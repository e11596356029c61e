//! The one parameter of a path.

use std::str::FromStr;

use agentbox_contracts::error::Error;
use axum::extract::{FromRequestParts, RawPathParams};
use axum::http::request::Parts;

use super::error::ApiError;
use crate::state::Gateway;

/// The path's id. What is not an id names nothing, and so is not found.
pub(crate) struct Path<T>(pub T);

/// # Errors
/// [`agentbox_contracts::error::ErrorCode::NotFound`]
pub(crate) async fn id<T: FromStr>(parts: &mut Parts) -> Result<T, Error> {
    let parameters = RawPathParams::from_request_parts(parts, &())
        .await
        .map_err(|_| Error::not_found("resource"))?;
    let (name, value) = parameters
        .iter()
        .next()
        .ok_or_else(|| Error::not_found("resource"))?;
    let what = match name {
        "user" => "user",
        "key" => "API key",
        _ => "environment",
    };
    value.parse().map_err(|_| Error::not_found(what))
}

impl<T: FromStr + Send> FromRequestParts<Gateway> for Path<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &Gateway) -> Result<Self, ApiError> {
        Ok(Self(id(parts).await?))
    }
}

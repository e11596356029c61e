//! Errors on their way out, in the one shape.

use agentbox_api::error::ErrorBody;
use agentbox_contracts::error::{Error, ErrorCode};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

/// An error as a response.
#[derive(Debug)]
pub(crate) struct ApiError(pub Error);

/// What a handler answers.
pub(crate) type Answer<T> = Result<T, ApiError>;

impl From<Error> for ApiError {
    fn from(error: Error) -> Self {
        Self(error)
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let Self(error) = self;
        let status =
            StatusCode::from_u16(error.code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, axum::Json(ErrorBody::from(&error))).into_response();
        let headers = response.headers_mut();
        if let Some(seconds) = error.retry_after_s {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(
                header::WWW_AUTHENTICATE,
                HeaderValue::from_static("Bearer realm=\"agentbox\""),
            );
        }
        response
    }
}

/// No such route.
pub(crate) async fn no_route() -> ApiError {
    ApiError(Error::new(
        ErrorCode::NotFound,
        "there is nothing at this path",
    ))
}

/// A route, but not with this method; the `Allow` header says which.
pub(crate) async fn no_method() -> ApiError {
    ApiError(Error::new(
        ErrorCode::MethodNotAllowed,
        "this path does not take this method",
    ))
}

//! Errors as HTTP responses, in the one shape.

use agentbox_api::error::ErrorBody;
use agentbox_contracts::error::Error;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

/// An error as a response.
#[derive(Debug)]
pub(crate) struct ApiError(pub Error);

/// The result of a handler.
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

#[cfg(test)]
mod tests {
    use agentbox_contracts::error::ErrorCode;

    use super::*;

    #[tokio::test]
    async fn every_error_code_renders_the_one_shape_with_its_headers() {
        for code in ErrorCode::ALL {
            let response = ApiError(Error::new(*code, "why")).into_response();
            assert_eq!(response.status().as_u16(), code.status());
            let has = |name| response.headers().contains_key(name);
            assert_eq!(has(header::WWW_AUTHENTICATE), code.status() == 401);
            assert_eq!(has(header::RETRY_AFTER), code.status() == 503, "{code:?}");
            let body = axum::body::to_bytes(response.into_body(), 4096)
                .await
                .unwrap();
            let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
            let expected = serde_json::json!({
                "error": code.as_str(), "message": "why", "code": code.status()
            });
            assert_eq!(body, expected);
        }
    }
}

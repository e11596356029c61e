//! Requests that match no route. They are counted by the client's address.

use agentbox_contracts::error::{Error, ErrorCode};
use axum::extract::{Request, State};
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Response};

use super::client_address::ClientAddress;
use super::error::ApiError;
use crate::rate_limit::{CallerKey, Category};
use crate::state::Gateway;

/// Counts the request, and answers with `answer` if its caller is below the limit.
async fn count_and_answer(gateway: &Gateway, client: ClientAddress, answer: Response) -> Response {
    let key = CallerKey::address(client);
    let rate_limit = gateway.limiter.count(&key, Category::Other).await;
    let mut response = match rate_limit.check() {
        Ok(()) => answer,
        Err(error) => ApiError(error).into_response(),
    };
    rate_limit.write(response.headers_mut());
    response
}

/// Answers a request whose path matches no route.
pub(crate) async fn no_route(State(gateway): State<Gateway>, request: Request) -> Response {
    let client = ClientAddress::from_extensions(request.extensions());
    let error = Error::new(ErrorCode::NotFound, "no resource has this path");
    count_and_answer(&gateway, client, ApiError(error).into_response()).await
}

/// Answers a request whose path does not accept its method. The router adds the `Allow` header,
/// which lists the methods that it accepts; OPTIONS asks for them.
pub(crate) async fn no_method(State(gateway): State<Gateway>, request: Request) -> Response {
    let client = ClientAddress::from_extensions(request.extensions());
    let answer = if request.method() == Method::OPTIONS {
        StatusCode::NO_CONTENT.into_response()
    } else {
        ApiError(Error::new(
            ErrorCode::MethodNotAllowed,
            format!(
                "this path does not accept the method {}; see `Allow`",
                request.method()
            ),
        ))
        .into_response()
    };
    count_and_answer(&gateway, client, answer).await
}

//! `/auth`: login, logout, the caller, its password.

use agentbox_api::user::{ChangePassword, Login, LoginReply, UserBody};
use agentbox_contracts::identity::rpc;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};

use crate::edge::admit::{Caller, Counted};
use crate::edge::error::ApiError;
use crate::edge::{Answer, Json};
use crate::rate_limit::{CallerKey, Category};
use crate::state::{AUTH_DEADLINE, CREDENTIAL_CHANGE_DEADLINE, Gateway};

/// Log in
///
/// Exchanges a username and password for a token. Attempts are counted by client address, and
/// failed ones also by username, with a far higher limit: a name that many addresses try is
/// answered more slowly, and only then refused.
#[utoipa::path(post, operation_id = "login", path = "/auth/login", tag = "auth", request_body = Login,
    responses((status = 200, description = "The token and its user.", body = LoginReply)))]
pub(crate) async fn login(State(gateway): State<Gateway>, Json(body): Json<Login>) -> Response {
    // The address was counted on admission, with a limit that leaves one network few attempts for
    // all names together. The name's own limit is high, so that strangers cannot lock a user out.
    // An attempt counts as failed until it has succeeded, so that concurrent ones are counted.
    let key = CallerKey::username(&body.username);
    let rate_limit = gateway.limiter.count(&key, Category::FailedLogin).await;
    let answer = async {
        rate_limit.check()?;
        tokio::time::sleep(rate_limit.delay()).await;
        let request = rpc::LoginRequest {
            username: body.username,
            password: rpc::Secret(body.password),
        };
        gateway
            .bus
            .call::<rpc::Login>(&request, AUTH_DEADLINE)
            .await
    }
    .await;
    if answer.is_ok() {
        gateway.limiter.uncount(&key, rate_limit).await;
    }
    let mut response = match answer {
        Ok(reply) => axum::Json(LoginReply {
            token: reply.token.0,
            expires_at: reply.expires_at,
            user: reply.user.into(),
        })
        .into_response(),
        Err(error) => ApiError(error).into_response(),
    };
    response.extensions_mut().insert(Counted(rate_limit));
    response
}

/// Get the caller
///
/// Returns the user whose credential the request carries.
#[utoipa::path(get, operation_id = "getMyself", path = "/auth/me", tag = "auth",
    responses((status = 200, description = "The caller.", body = UserBody)))]
pub(crate) async fn me(
    State(gateway): State<Gateway>,
    Caller(principal): Caller,
) -> Answer<axum::Json<UserBody>> {
    // Auth has read it to confirm the credential.
    if let Some(user) = principal.to_user() {
        return Ok(axum::Json(user.into()));
    }
    let request = rpc::UserRequest { id: principal.user };
    let user = gateway
        .bus
        .call::<rpc::GetUser>(&request, AUTH_DEADLINE)
        .await?;
    Ok(axum::Json(user.into()))
}

/// Log out
///
/// Revokes the token of this request at once. Only a login can be logged out: revoke an API key
/// with `DELETE /api-keys/{key}`.
#[utoipa::path(post, operation_id = "logout", path = "/auth/logout", tag = "auth",
    responses((status = 204, description = "The token is revoked.")))]
pub(crate) async fn logout(
    State(gateway): State<Gateway>,
    Caller(principal): Caller,
) -> Answer<StatusCode> {
    gateway
        .bus
        .call::<rpc::Logout>(
            &rpc::LogoutRequest { principal },
            CREDENTIAL_CHANGE_DEADLINE,
        )
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Change the caller's password
///
/// Revokes every earlier login of the caller, the one of this request included. API keys stay
/// valid unless `revoke_keys` is true.
#[utoipa::path(post, operation_id = "changePassword", path = "/auth/change-password", tag = "auth",
    request_body = ChangePassword,
    responses((status = 204, description = "The password is changed.")))]
pub(crate) async fn change_password(
    State(gateway): State<Gateway>,
    Caller(principal): Caller,
    Json(body): Json<ChangePassword>,
) -> Answer<StatusCode> {
    let request = rpc::ChangePasswordRequest {
        user: principal.user,
        current_password: rpc::Secret(body.current_password),
        new_password: rpc::Secret(body.new_password),
        revoke_keys: body.revoke_keys.unwrap_or(false),
    };
    gateway
        .bus
        .call::<rpc::ChangePassword>(&request, CREDENTIAL_CHANGE_DEADLINE)
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

//! `/users`, for administrators.

use agentbox_api::user::{CreateUser, PageQuery, PatchUser, UserBody, UserList};
use agentbox_contracts::error::Error;
use agentbox_contracts::identity::rpc;
use agentbox_contracts::ids::UserId;
use agentbox_contracts::limits::UserLimits;
use axum::extract::State;
use axum::http::StatusCode;

use crate::edge::path::UserParameter;
use crate::edge::query::page;
use crate::edge::{Answer, Caller, Json, Path, Query};
use crate::state::{AUTH_DEADLINE, CREDENTIAL_CHANGE_DEADLINE, Gateway};

/// Create a user
///
/// The user can log in at once.
#[utoipa::path(post, operation_id = "createUser", path = "/users", tag = "users", request_body = CreateUser,
    responses((status = 201, description = "The new user.", body = UserBody)))]
pub(crate) async fn create(
    State(gateway): State<Gateway>,
    Caller(principal): Caller,
    Json(body): Json<CreateUser>,
) -> Answer<(StatusCode, axum::Json<UserBody>)> {
    let request = rpc::CreateUserRequest {
        actor: Some(principal.user),
        username: body.username,
        email: body.email,
        password: rpc::Secret(body.password),
        role: body.role,
    };
    let user = gateway
        .bus
        .call::<rpc::CreateUser>(&request, AUTH_DEADLINE)
        .await?;
    Ok((StatusCode::CREATED, axum::Json(user.into())))
}

/// List users
///
/// Returns one page of all users, newest first.
#[utoipa::path(get, operation_id = "listUsers", path = "/users", tag = "users", params(PageQuery),
    responses((status = 200, description = "One page of users.", body = UserList)))]
pub(crate) async fn list(
    State(gateway): State<Gateway>,
    Query(query): Query<PageQuery>,
) -> Answer<axum::Json<UserList>> {
    let (limit, offset) = page(query.limit, query.offset)?;
    let request = rpc::PageRequest { limit, offset };
    let reply = gateway
        .bus
        .call::<rpc::ListUsers>(&request, AUTH_DEADLINE)
        .await?;
    Ok(axum::Json(UserList {
        users: reply.users.into_iter().map(UserBody::from).collect(),
        total: reply.total,
        limit,
        offset,
    }))
}

/// Get a user
///
/// Returns one user by its id.
#[utoipa::path(get, operation_id = "getUser", path = "/users/{user}", tag = "users", params(UserParameter),
    responses((status = 200, description = "The user's record.", body = UserBody)))]
pub(crate) async fn get(
    State(gateway): State<Gateway>,
    Path(id): Path<UserId>,
) -> Answer<axum::Json<UserBody>> {
    let user = gateway
        .bus
        .call::<rpc::GetUser>(&rpc::UserRequest { id }, AUTH_DEADLINE)
        .await?;
    Ok(axum::Json(user.into()))
}

/// Change a user
///
/// Changes the email address, the role, the password or the limits. A new password revokes the user's
/// earlier logins, and `revoke_keys` the API keys. The last administrator keeps its role.
#[utoipa::path(patch, operation_id = "patchUser", path = "/users/{user}", tag = "users",
    params(UserParameter), request_body = PatchUser,
    responses((status = 200, description = "The changed user.", body = UserBody)))]
pub(crate) async fn patch(
    State(gateway): State<Gateway>,
    Caller(principal): Caller,
    Path(id): Path<UserId>,
    Json(body): Json<PatchUser>,
) -> Answer<axum::Json<UserBody>> {
    if body.email.is_none()
        && body.role.is_none()
        && body.password.is_none()
        && body.revoke_keys.is_none()
        && body.limits.is_none()
    {
        return Err(Error::field(
            "body",
            "must have at least one of email, role, password, revoke_keys and limits, has none",
        )
        .into());
    }
    let request = rpc::PatchUserRequest {
        actor: Some(principal.user),
        id,
        email: body.email,
        role: body.role,
        password: body.password.map(rpc::Secret),
        revoke_keys: body.revoke_keys.unwrap_or(false),
        limits: body.limits.map(UserLimits::try_from).transpose()?,
    };
    let user = gateway
        .bus
        .call::<rpc::PatchUser>(&request, CREDENTIAL_CHANGE_DEADLINE)
        .await?;
    Ok(axum::Json(user.into()))
}

/// Delete a user
///
/// Revokes the user's logins and API keys at once and deletes the user's environments. The last
/// administrator cannot be deleted.
#[utoipa::path(delete, operation_id = "deleteUser", path = "/users/{user}", tag = "users", params(UserParameter),
    responses((status = 204, description = "The user is deleted.")))]
pub(crate) async fn delete(
    State(gateway): State<Gateway>,
    Caller(principal): Caller,
    Path(id): Path<UserId>,
) -> Answer<StatusCode> {
    let request = rpc::DeleteUserRequest {
        actor: Some(principal.user),
        id,
    };
    gateway
        .bus
        .call::<rpc::DeleteUser>(&request, CREDENTIAL_CHANGE_DEADLINE)
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

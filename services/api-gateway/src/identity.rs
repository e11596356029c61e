//! `/auth` and `/users`: who callers are.

use agentbox_api::error::ErrorBody;
use agentbox_api::user::{
    ChangePassword, CreateTicket, CreateUser, Login, LoginReply, PageQuery, PatchUser, TicketReply,
    UserBody, UserList,
};
use agentbox_contracts::error::Error;
use agentbox_contracts::identity::TicketAction;
use agentbox_contracts::identity::rpc;
use agentbox_contracts::ids::{EnvironmentId, UserId};
use axum::extract::State;
use axum::http::StatusCode;

use crate::authorize::{Action, authorize};
use crate::edge::input::page;
use crate::edge::{Answer, Caller, Json, Path, Query};
use crate::lookup;
use crate::rate_limit::{self, Category};
use crate::state::{AUTH_DEADLINE, Gateway};

#[utoipa::path(post, path = "/api/v1/auth/login", tag = "auth", request_body = Login,
    responses((status = 200, body = LoginReply), (status = "default", body = ErrorBody)))]
pub(crate) async fn login(
    State(gateway): State<Gateway>,
    Json(body): Json<Login>,
) -> Answer<axum::Json<LoginReply>> {
    // Guessing one user's password from many addresses is limited too.
    let guessed = rate_limit::token(&body.username.to_lowercase());
    let standing = rate_limit::count(&gateway, &guessed, Category::Auth).await;
    standing.check(Category::Auth, rate_limit::now_unix_s())?;
    let request = rpc::LoginRequest {
        username: body.username,
        password: rpc::Secret(body.password),
    };
    let reply = gateway
        .bus
        .call::<rpc::Login>(&request, AUTH_DEADLINE)
        .await?;
    Ok(axum::Json(LoginReply {
        token: reply.token.0,
        expires_at: reply.expires_at,
        user: reply.user.into(),
    }))
}

#[utoipa::path(get, path = "/api/v1/auth/me", tag = "auth",
    responses((status = 200, body = UserBody), (status = "default", body = ErrorBody)))]
pub(crate) async fn me(
    State(gateway): State<Gateway>,
    Caller(principal): Caller,
) -> Answer<axum::Json<UserBody>> {
    authorize(&principal, Action::Myself, None)?;
    let user = rpc::UserRequest { id: principal.user };
    Ok(axum::Json(
        gateway
            .bus
            .call::<rpc::GetUser>(&user, AUTH_DEADLINE)
            .await?
            .into(),
    ))
}

#[utoipa::path(post, path = "/api/v1/auth/logout", tag = "auth",
    responses((status = 204), (status = "default", body = ErrorBody)))]
pub(crate) async fn logout(
    State(gateway): State<Gateway>,
    Caller(principal): Caller,
) -> Answer<StatusCode> {
    authorize(&principal, Action::Myself, None)?;
    gateway
        .bus
        .call::<rpc::Logout>(&rpc::LogoutRequest { principal }, AUTH_DEADLINE)
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

#[utoipa::path(post, path = "/api/v1/auth/change-password", tag = "auth",
    request_body = ChangePassword,
    responses((status = 204), (status = "default", body = ErrorBody)))]
pub(crate) async fn change_password(
    State(gateway): State<Gateway>,
    Caller(principal): Caller,
    Json(body): Json<ChangePassword>,
) -> Answer<StatusCode> {
    authorize(&principal, Action::Myself, None)?;
    let request = rpc::ChangePasswordRequest {
        user: principal.user,
        current_password: rpc::Secret(body.current_password),
        new_password: rpc::Secret(body.new_password),
    };
    gateway
        .bus
        .call::<rpc::ChangePassword>(&request, AUTH_DEADLINE)
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

#[utoipa::path(post, path = "/api/v1/auth/tickets", tag = "auth", request_body = CreateTicket,
    responses((status = 201, body = TicketReply), (status = "default", body = ErrorBody)))]
pub(crate) async fn create_ticket(
    State(gateway): State<Gateway>,
    Caller(principal): Caller,
    Json(body): Json<CreateTicket>,
) -> Answer<(StatusCode, axum::Json<TicketReply>)> {
    let id: EnvironmentId = body
        .environment_id
        .parse()
        .map_err(|_| Error::not_found("environment"))?;
    let action = match body.action {
        TicketAction::Logs => Action::TicketForLogs,
        TicketAction::Attach => Action::TicketForAttach,
    };
    lookup::environment(&gateway, &principal, action, &id).await?;
    let request = rpc::TicketRequest {
        principal,
        environment: id,
        action: body.action,
    };
    let reply = gateway
        .bus
        .call::<rpc::IssueTicket>(&request, AUTH_DEADLINE)
        .await?;
    let body = TicketReply {
        ticket: reply.ticket.0,
        expires_at: reply.expires_at,
    };
    Ok((StatusCode::CREATED, axum::Json(body)))
}

#[utoipa::path(post, path = "/api/v1/users", tag = "users", request_body = CreateUser,
    responses((status = 201, body = UserBody), (status = "default", body = ErrorBody)))]
pub(crate) async fn create_user(
    State(gateway): State<Gateway>,
    Caller(principal): Caller,
    Json(body): Json<CreateUser>,
) -> Answer<(StatusCode, axum::Json<UserBody>)> {
    authorize(&principal, Action::ManageUsers, None)?;
    let request = rpc::CreateUserRequest {
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

#[utoipa::path(get, path = "/api/v1/users", tag = "users", params(PageQuery),
    responses((status = 200, body = UserList), (status = "default", body = ErrorBody)))]
pub(crate) async fn list_users(
    State(gateway): State<Gateway>,
    Caller(principal): Caller,
    Query(query): Query<PageQuery>,
) -> Answer<axum::Json<UserList>> {
    authorize(&principal, Action::ManageUsers, None)?;
    let (limit, offset) = page(query.limit, query.offset)?;
    let request = rpc::PageRequest { limit, offset };
    let reply = gateway
        .bus
        .call::<rpc::ListUsers>(&request, AUTH_DEADLINE)
        .await?;
    let users = reply.users.into_iter().map(UserBody::from).collect();
    Ok(axum::Json(UserList {
        users,
        total: reply.total,
        limit,
        offset,
    }))
}

#[utoipa::path(get, path = "/api/v1/users/{user}", tag = "users", params(("user" = String, Path)),
    responses((status = 200, body = UserBody), (status = "default", body = ErrorBody)))]
pub(crate) async fn get_user(
    State(gateway): State<Gateway>,
    Caller(principal): Caller,
    Path(id): Path<UserId>,
) -> Answer<axum::Json<UserBody>> {
    authorize(&principal, Action::ManageUsers, None)?;
    let user = gateway
        .bus
        .call::<rpc::GetUser>(&rpc::UserRequest { id }, AUTH_DEADLINE)
        .await?;
    Ok(axum::Json(user.into()))
}

#[utoipa::path(patch, path = "/api/v1/users/{user}", tag = "users", params(("user" = String, Path)),
    request_body = PatchUser,
    responses((status = 200, body = UserBody), (status = "default", body = ErrorBody)))]
pub(crate) async fn patch_user(
    State(gateway): State<Gateway>,
    Caller(principal): Caller,
    Path(id): Path<UserId>,
    Json(body): Json<PatchUser>,
) -> Answer<axum::Json<UserBody>> {
    authorize(&principal, Action::ManageUsers, None)?;
    let request = rpc::PatchUserRequest {
        id,
        email: body.email,
        role: body.role,
        password: body.password.map(rpc::Secret),
    };
    let user = gateway
        .bus
        .call::<rpc::PatchUser>(&request, AUTH_DEADLINE)
        .await?;
    Ok(axum::Json(user.into()))
}

#[utoipa::path(delete, path = "/api/v1/users/{user}", tag = "users", params(("user" = String, Path)),
    responses((status = 204), (status = "default", body = ErrorBody)))]
pub(crate) async fn delete_user(
    State(gateway): State<Gateway>,
    Caller(principal): Caller,
    Path(id): Path<UserId>,
) -> Answer<StatusCode> {
    authorize(&principal, Action::ManageUsers, None)?;
    gateway
        .bus
        .call::<rpc::DeleteUser>(&rpc::UserRequest { id }, AUTH_DEADLINE)
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

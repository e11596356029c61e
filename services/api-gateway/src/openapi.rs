//! The contract for machines (`/openapi.json`) and for people (`/docs`), from the code.

use axum::response::{Html, IntoResponse, Response};
use utoipa::OpenApi;
use utoipa::openapi::OpenApi as Document;
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityRequirement, SecurityScheme};

use crate::{api_keys, environments, events, exec, health, identity, logs};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "AgentBox",
        description = "Isolated execution environments for AI agents and CI."
    ),
    paths(
        identity::login,
        identity::me,
        identity::logout,
        identity::change_password,
        identity::create_ticket,
        identity::create_user,
        identity::list_users,
        identity::get_user,
        identity::patch_user,
        identity::delete_user,
        api_keys::create,
        api_keys::list,
        api_keys::get,
        api_keys::revoke,
        environments::create,
        environments::list,
        environments::get,
        environments::patch,
        environments::delete,
        exec::exec,
        logs::logs,
        events::of_one,
        events::of_all,
        health::health,
    )
)]
struct Api;

/// The OpenAPI 3.1 document.
#[must_use]
pub fn document() -> Document {
    let mut document = Api::openapi();
    let scheme = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
    document
        .components
        .get_or_insert_default()
        .security_schemes
        .insert("bearer".to_owned(), scheme.into());
    document.security = Some(vec![SecurityRequirement::new(
        "bearer",
        Vec::<String>::new(),
    )]);
    document
}

pub(crate) async fn json() -> Response {
    axum::Json(document()).into_response()
}

/// A page of its own, without anything from elsewhere: it reads `/openapi.json`.
pub(crate) async fn docs() -> Html<&'static str> {
    Html(include_str!("openapi/docs.html"))
}

//! The contract for machines (`/openapi.json`) and for people (`/docs`), from the code.

mod page;

use std::sync::LazyLock;

use agentbox_api::attach::{ClientMessage, ServerMessage};
use agentbox_contracts::error::ErrorCode;
use axum::http::header;
use axum::response::{Html, IntoResponse, Response};
use bytes::Bytes;
use utoipa::OpenApi;
use utoipa::openapi::OpenApi as Document;
use utoipa::openapi::header::HeaderBuilder;
use utoipa::openapi::response::Response as Described;
use utoipa::openapi::schema::{Object, Type};
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{RefOr, path::Operation};

use crate::{api_keys, attach, auth, environments, events, exec, health, logs, tickets, users};

#[derive(OpenApi)]
#[openapi(
    info(title = "AgentBox"),
    paths(
        auth::login,
        auth::me,
        auth::logout,
        auth::change_password,
        tickets::create,
        users::create,
        users::list,
        users::get,
        users::patch,
        users::delete,
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
        attach::attach,
        events::of_one,
        events::of_all,
        health::health,
        health::live,
        health::ready,
        json,
        page,
    ),
    components(schemas(ClientMessage, ServerMessage)),
    tags(
        (name = "auth", description = "Logging in, and who one is"),
        (name = "users", description = "For administrators"),
        (name = "api-keys", description = "Long-lived tokens for programs"),
        (name = "environments", description = "Isolated execution environments"),
        (name = "exec", description = "Running commands"),
        (name = "logs", description = "The output of the main command"),
        (name = "attach", description = "Terminals over WebSocket"),
        (name = "events", description = "What happens to environments"),
        (name = "system", description = "Health, and this description"),
    )
)]
struct Api;

fn description() -> String {
    let mut text = String::from(
        "Isolated execution environments for AI agents and CI. Send \
         `Authorization: Bearer <token>` with a login's token or an API key. Every error is \
         `{\"error\", \"message\", \"code\"}`; `error` is one of:\n\n",
    );
    for code in ErrorCode::ALL {
        text.push_str(&format!("* `{}` ({})\n", code.word(), code.status()));
    }
    text
}

/// The headers that every answer carries.
const HEADERS: [(&str, &str, Type); 4] = [
    (
        "X-RateLimit-Limit",
        "Requests a minute of this kind",
        Type::Integer,
    ),
    (
        "X-RateLimit-Remaining",
        "Those left in this minute",
        Type::Integer,
    ),
    (
        "X-RateLimit-Reset",
        "When the minute ends, Unix seconds",
        Type::Integer,
    ),
    ("X-Trace-Id", "The trace of this request", Type::String),
];

fn complete(response: &mut Described, is_error: bool) {
    if is_error {
        response.description = "An error: `error` is a stable word, `code` the status".to_owned();
    }
    for (name, description, of_type) in HEADERS {
        let header = HeaderBuilder::new()
            .schema(Some(Object::with_type(of_type)))
            .description(Some(description))
            .build();
        response.headers.insert(name.to_owned(), header.into());
    }
}

fn complete_operation(operation: &mut Operation) {
    for (status, response) in &mut operation.responses.responses {
        if let RefOr::T(response) = response {
            complete(response, status == "default");
        }
    }
}

/// The OpenAPI 3.1 document.
#[must_use]
pub fn document() -> Document {
    let mut document = Api::openapi();
    document.info.description = Some(description());
    document.info.license = None;
    document
        .components
        .get_or_insert_default()
        .security_schemes
        .insert(
            "bearer".to_owned(),
            SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer)).into(),
        );
    let bearer = SecurityRequirement::new("bearer", Vec::<String>::new());
    document.security = Some(vec![bearer]);
    for path in document.paths.paths.values_mut() {
        for operation in [
            &mut path.get,
            &mut path.post,
            &mut path.patch,
            &mut path.delete,
        ]
        .into_iter()
        .flatten()
        {
            complete_operation(operation);
        }
    }
    document
}

/// As it is served and as it is kept in `docs/openapi.json`.
fn written() -> String {
    // A document of plain data always serializes.
    let mut text = document().to_pretty_json().unwrap_or_default();
    text.push('\n');
    text
}

static JSON: LazyLock<Bytes> = LazyLock::new(|| Bytes::from(written()));
static PAGE: LazyLock<String> = LazyLock::new(|| page::render(&document()));

/// This document.
#[utoipa::path(get, path = "/api/v1/openapi.json", tag = "system", security(()),
    responses((status = 200, description = "OpenAPI 3.1", body = Object),
        (status = "default", body = agentbox_api::error::ErrorBody)))]
pub(crate) async fn json() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], JSON.clone()).into_response()
}

/// The same for people: one page, without anything from elsewhere.
#[utoipa::path(get, path = "/api/v1/docs", tag = "system", security(()),
    responses((status = 200, description = "A page", body = String, content_type = "text/html"),
        (status = "default", body = agentbox_api::error::ErrorBody)))]
pub(crate) async fn page() -> Html<&'static str> {
    Html(PAGE.as_str())
}

#[cfg(test)]
mod tests;

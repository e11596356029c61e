//! The contract for machines (`/openapi.json`) and for people (`/docs`), from the code.

mod errors;
mod page;

use std::sync::LazyLock;

use agentbox_api::attach::{ClientMessage, ServerMessage};
use agentbox_api::error::ErrorBody;
use agentbox_contracts::error::ErrorCode;
use axum::http::header;
use axum::response::{Html, IntoResponse, Response};
use bytes::Bytes;
use utoipa::OpenApi;
use utoipa::openapi::OpenApi as Document;
use utoipa::openapi::RefOr;
use utoipa::openapi::header::{Header, HeaderBuilder};
use utoipa::openapi::response::Response as Described;
use utoipa::openapi::schema::{Object, Type};
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityRequirement, SecurityScheme};

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
    components(schemas(ClientMessage, ServerMessage, ErrorBody)),
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
        text.push_str(&format!("* `{}` ({})\n", code.as_str(), code.status()));
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

fn header(description: &str, of_type: Type) -> Header {
    HeaderBuilder::new()
        .schema(Some(Object::with_type(of_type)))
        .description(Some(description))
        .build()
}

fn with_headers<'a>(answers: impl Iterator<Item = &'a mut RefOr<Described>>) {
    for answer in answers {
        let RefOr::T(answer) = answer else { continue };
        for (name, description, of_type) in HEADERS {
            let header = header(description, of_type);
            answer.headers.insert(name.to_owned(), header.into());
        }
    }
}

/// The OpenAPI 3.1 document.
#[must_use]
pub fn document() -> Document {
    let mut document = Api::openapi();
    document.info.description = Some(description());
    document.info.license = None;
    let components = document.components.get_or_insert_default();
    components.security_schemes.insert(
        "bearer".to_owned(),
        SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer)).into(),
    );
    errors::define(components);
    with_headers(components.responses.values_mut());
    let bearer = SecurityRequirement::new("bearer", Vec::<String>::new());
    document.security = Some(vec![bearer]);
    for (path, item) in &mut document.paths.paths {
        let methods = [
            &mut item.get,
            &mut item.post,
            &mut item.patch,
            &mut item.delete,
        ];
        for operation in methods.into_iter().flatten() {
            // What needs no credential says so; all else has the document's.
            let needs_credential = operation.security.is_none();
            with_headers(operation.responses.responses.values_mut());
            errors::complete(path, operation, needs_credential);
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
#[utoipa::path(get, operation_id = "getOpenApi", path = "/api/v1/openapi.json", tag = "system", security(()),
    responses((status = 200, description = "OpenAPI 3.1", body = Object)))]
pub(crate) async fn json() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], JSON.clone()).into_response()
}

/// The same for people: one page, without anything from elsewhere.
#[utoipa::path(get, operation_id = "getReference", path = "/api/v1/docs", tag = "system", security(()),
    responses((status = 200, description = "A page", body = String, content_type = "text/html")))]
pub(crate) async fn page() -> Html<&'static str> {
    Html(PAGE.as_str())
}

#[cfg(test)]
mod tests;

//! The API's description: an OpenAPI document for programs (`/openapi.json`), and a
//! reference page for people (`/docs`).
//!
//! * I1. Paths, methods, schemas and texts come from the handlers and the contract's types.
//!   Errors, headers and authentication, which all operations share, are added here.
//! * I2. The page loads nothing from another host, and its Content-Security-Policy forbids it.

mod errors;
mod page;

use std::collections::BTreeMap;

use agentbox_api::attach::{ClientMessage, ServerMessage};
use agentbox_api::error::ErrorBody;
use agentbox_api::exec::{ExecExitEvent, ExecOutputEvent};
use agentbox_api::execution::{GapEvent, OutputEvent};
use agentbox_api::file::FileChange;
use agentbox_contracts::error::ErrorCode;
use axum::Extension;
use axum::http::header::{CACHE_CONTROL, CONTENT_ENCODING, CONTENT_SECURITY_POLICY, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use utoipa::OpenApi;
use utoipa::openapi::header::{Header, HeaderBuilder};
use utoipa::openapi::response::Response as ResponseDescription;
use utoipa::openapi::schema::{ObjectBuilder, Type};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{OpenApi as Document, PathItem, RefOr, Schema};

use crate::edge::path::BASE;

#[derive(OpenApi)]
#[openapi(
    info(
        title = "AgentBox",
        license(name = "Apache-2.0", identifier = "Apache-2.0")
    ),
    servers((url = "/", description = "The server that this document comes from")),
    components(schemas(
        ClientMessage,
        ServerMessage,
        ErrorBody,
        FileChange,
        OutputEvent,
        GapEvent,
        ExecOutputEvent,
        ExecExitEvent
    )),
    tags(
        (name = "auth", description = "Log in and out, change the password, get tickets for browsers."),
        (name = "users", description = "Manage users. For administrators only."),
        (name = "api-keys", description = "Manage API keys: long-lived credentials for programs."),
        (name = "registries", description = "Manage your logins at registries, which the pulls of your images use."),
        (name = "pools", description = "Manage warm pools, whose boxes make creates fast. For administrators only."),
        (name = "environments", description = "Create, find, change and delete isolated execution environments."),
        (name = "exec", description = "Run a command in an environment and get its result."),
        (name = "executions", description = "Start, watch and end commands that outlive the requests of their clients."),
        (name = "files", description = "Read, write and follow the files of an environment."),
        (name = "logs", description = "Read or follow the output of an environment's main command."),
        (name = "attach", description = "Open an interactive terminal over WebSocket."),
        (name = "ports", description = "Send requests to servers in an environment, or give them an origin for browsers."),
        (name = "events", description = "List or follow the events of environments."),
        (name = "webhooks", description = "Send the events of your environments to a URL."),
        (name = "audit", description = "List recorded actions: who did what, when and from where."),
        (name = "clusters", description = "Manage the clusters of the deployment. For administrators only."),
        (name = "dead-letters", description = "Manage messages that could not be processed. For administrators only."),
        (name = "system", description = "Health of the system, and this description of the API."),
    )
)]
struct Api;

/// The documented operations of one route.
pub(crate) struct Operations {
    /// The schemas that they refer to, by name.
    pub schemas: Vec<(String, RefOr<Schema>)>,
    /// By path, without [`BASE`].
    pub paths: BTreeMap<String, PathItem>,
    /// Whether they need no credential.
    pub is_open: bool,
}

const INTRODUCTION: &str = "\
Isolated execution environments for AI agents and CI.

**Authentication.** Send `Authorization: Bearer <token>`, where the token is an API key or the \
token of a login. Browsers, which cannot set this header for server-sent events and WebSockets, \
use a ticket.

**Requests.** Bodies are JSON of at most 1 MiB, of exec and executions 4 MiB; the contents of files have any \
size. An unknown field or parameter is refused.

**Lists.** `limit` and `offset` select a page. The answer repeats both, and `total` counts the \
entries of all pages.

**Rate limits.** Requests are counted per minute, by user or by client address. The \
`X-RateLimit-*` headers of each answer show the state of the count; beyond the limit the answer \
is 429 with `Retry-After`.

**Errors.** The body of every error is `{\"error\", \"message\", \"code\"}`. `error` is one of:

";

fn description() -> String {
    let mut text = String::from(INTRODUCTION);
    for code in ErrorCode::ALL {
        text.push_str(&format!(
            "* `{}` ({}): {}\n",
            code.as_str(),
            code.status(),
            code.description()
        ));
    }
    text
}

/// The headers of every answer: name, description, type, example.
const HEADERS: [(&str, &str, Type, &str); 4] = [
    (
        "X-RateLimit-Limit",
        "The number of requests of this kind that the caller may send in one minute.",
        Type::Integer,
        "200",
    ),
    (
        "X-RateLimit-Remaining",
        "The number of requests that the caller may still send in this minute.",
        Type::Integer,
        "199",
    ),
    (
        "X-RateLimit-Reset",
        "When the minute ends and the count begins again, in Unix seconds.",
        Type::Integer,
        "1769076060",
    ),
    (
        "X-Trace-Id",
        "The id of this request in the server's traces and logs: 32 hexadecimal digits.",
        Type::String,
        "4bf92f3577b34da6a3ce929d0e0e4736",
    ),
];

fn header(description: &str, schema_type: Type, example: &str) -> Header {
    let example = match schema_type {
        Type::Integer => serde_json::from_str(example).unwrap_or_default(),
        _ => serde_json::Value::from(example),
    };
    let schema = ObjectBuilder::new()
        .schema_type(schema_type)
        .examples([example]);
    HeaderBuilder::new()
        .schema(Some(schema))
        .description(Some(description))
        .build()
}

fn add_headers<'a>(responses: impl Iterator<Item = &'a mut RefOr<ResponseDescription>>) {
    for response in responses {
        let RefOr::T(response) = response else {
            continue;
        };
        for (name, description, schema_type, example) in HEADERS {
            let header = header(description, schema_type, example);
            response.headers.insert(name.to_owned(), header.into());
        }
    }
}

/// The OpenAPI 3.1 document of these routes.
pub(crate) fn document(routes: impl Iterator<Item = Operations>) -> Document {
    let mut document = Api::openapi();
    document.info.description = Some(description());
    document.security = Some(vec![SecurityRequirement::new(
        "bearer",
        Vec::<String>::new(),
    )]);
    let components = document.components.get_or_insert_default();
    let bearer = HttpBuilder::new()
        .scheme(HttpAuthScheme::Bearer)
        .description(Some("An API key, or the token of a login."))
        .build();
    let bearer = SecurityScheme::Http(bearer);
    components
        .security_schemes
        .insert("bearer".to_owned(), bearer.into());
    errors::define(components);
    add_headers(components.responses.values_mut());
    for operations in routes {
        components.schemas.extend(operations.schemas);
        for (path, mut item) in operations.paths {
            let methods = [
                &mut item.get,
                &mut item.post,
                &mut item.put,
                &mut item.patch,
                &mut item.delete,
            ];
            for operation in methods.into_iter().flatten() {
                if operations.is_open {
                    operation.security = Some(vec![SecurityRequirement::default()]);
                }
                add_headers(operation.responses.responses.values_mut());
                errors::complete(&path, operation, !operations.is_open);
            }
            let path = format!("{BASE}{path}");
            let path_item = document.paths.paths.entry(path).or_default();
            path_item.merge_operations(item);
        }
    }
    let components = document.components.get_or_insert_default();
    for schema in components.schemas.values_mut() {
        describe_optional_references(schema);
    }
    document
}

/// Moves the description of an optional reference to its field. Readers of the document look for
/// it there.
fn describe_optional_references(schema: &mut RefOr<Schema>) {
    let RefOr::T(Schema::Object(object)) = schema else {
        return;
    };
    for property in object.properties.values_mut() {
        let RefOr::T(Schema::OneOf(variants)) = property else {
            continue;
        };
        let reference = variants.items.iter_mut().find_map(|item| match item {
            RefOr::Ref(reference) => Some(&mut reference.description),
            RefOr::T(_) => None,
        });
        if let (None, Some(description)) = (&variants.description, reference) {
            variants.description = Some(std::mem::take(description));
        }
    }
}

/// The text that is served and kept as `docs/openapi.json`.
fn to_text(document: &Document) -> String {
    // A document of plain data always serializes.
    let mut text = document.to_pretty_json().unwrap_or_default();
    text.push('\n');
    text
}

/// The document and the page, as they are served.
#[derive(Clone)]
pub(crate) struct Reference {
    json: Bytes,
    page: Bytes,
}

impl Reference {
    pub(crate) fn new(document: &Document) -> Self {
        Self {
            json: to_text(document).into(),
            page: page::render(document).into(),
        }
    }
}

/// Get the OpenAPI document
///
/// This document: OpenAPI 3.1, as JSON. It is also served at `/openapi.json`.
#[utoipa::path(get, operation_id = "getOpenApi", path = "/openapi.json", tag = "system",
    responses((status = 200, description = "The OpenAPI document.", body = Object,
        example = json!({"openapi": "3.1.0", "info": {"title": "AgentBox", "version": "0.1.0"}, "paths": {}}))))]
pub(crate) async fn json(Extension(reference): Extension<Reference>) -> Response {
    ([(CONTENT_TYPE, "application/json")], reference.json).into_response()
}

/// Read the reference page
///
/// This document as a web page. It is also served at `/docs`.
#[utoipa::path(get, operation_id = "getReference", path = "/docs", tag = "system",
    responses((status = 200, description = "The reference page, as HTML.", body = String, content_type = "text/html",
        example = "<!DOCTYPE html>")))]
pub(crate) async fn page(Extension(reference): Extension<Reference>) -> Response {
    let headers = [
        (CONTENT_TYPE, "text/html; charset=utf-8"),
        (CONTENT_SECURITY_POLICY, page::POLICY),
    ];
    (headers, reference.page).into_response()
}

/// Get the script of the reference page
///
/// Redoc, the program that renders the reference page. It is compressed with gzip.
#[utoipa::path(get, operation_id = "getReferenceScript", path = "/docs/redoc.js", tag = "system",
    responses((status = 200, description = "The script.", body = String, content_type = "text/javascript",
        example = "/* Redoc */")))]
pub(crate) async fn script() -> Response {
    let headers = [
        (CONTENT_TYPE, "text/javascript"),
        (CONTENT_ENCODING, "gzip"),
        (CACHE_CONTROL, "public, max-age=86400"),
    ];
    (headers, Bytes::from_static(page::SCRIPT)).into_response()
}

#[cfg(test)]
mod tests;

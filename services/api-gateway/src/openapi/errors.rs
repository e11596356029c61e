//! The errors in the document. Each status has one response, which lists its error codes. The
//! statuses of an operation are derived from its parameters, its body and its tags.

use agentbox_contracts::error::ErrorCode;
use axum::http::StatusCode;
use utoipa::openapi::example::{Example, ExampleBuilder};
use utoipa::openapi::path::Operation;
use utoipa::openapi::response::{Response, ResponseBuilder};
use utoipa::openapi::schema::Type;
use utoipa::openapi::{Components, ContentBuilder, Ref, RefOr};

use super::header;

/// The tags of operations that connect to a box.
const BOX_TAGS: [&str; 6] = ["exec", "executions", "files", "logs", "attach", "ports"];

/// The name of a status' response: `NotFound`.
fn response_name(status: u16) -> String {
    let reason = StatusCode::from_u16(status)
        .ok()
        .and_then(|status| status.canonical_reason());
    reason.unwrap_or_default().replace(' ', "")
}

fn codes(status: u16) -> impl Iterator<Item = ErrorCode> {
    let codes = ErrorCode::ALL.iter().copied();
    codes.filter(move |code| code.status() == status)
}

fn example(code: ErrorCode) -> (&'static str, Example) {
    let body = serde_json::json!({
        "error": code.as_str(), "message": code.description(), "code": code.status()
    });
    let example = ExampleBuilder::new().summary(code.description());
    (code.as_str(), example.value(Some(body)).build())
}

fn response(status: u16) -> Response {
    let description: Vec<String> = codes(status)
        .map(|code| format!("`{}`: {}", code.as_str(), code.description()))
        .collect();
    let response = ResponseBuilder::new()
        .description(description.join("\n\n"))
        .content(
            "application/json",
            ContentBuilder::new()
                .schema(Some(Ref::from_schema_name("ErrorBody")))
                .examples_from_iter(codes(status).map(example))
                .build(),
        );
    let response = match status {
        401 => response.header(
            "WWW-Authenticate",
            header(
                "How to authenticate (RFC 9110).",
                Type::String,
                "Bearer realm=\"agentbox\"",
            ),
        ),
        405 => response.header(
            "Allow",
            header(
                "The methods that the path accepts.",
                Type::String,
                "GET,HEAD,POST",
            ),
        ),
        429 | 503 => response.header(
            "Retry-After",
            header(
                "The number of seconds after which to try again.",
                Type::Integer,
                "1",
            ),
        ),
        _ => response,
    };
    response.build()
}

/// Adds one response for each status that an error can have.
pub(super) fn define(components: &mut Components) {
    for code in ErrorCode::ALL {
        let status = code.status();
        let response = RefOr::T(response(status));
        components.responses.insert(response_name(status), response);
    }
}

/// The statuses of the errors of an operation on `path`.
fn statuses(path: &str, operation: &Operation, needs_credential: bool) -> Vec<u16> {
    let tags = || operation.tags.iter().flatten().map(String::as_str);
    let connects_to_box = tags().any(|tag| BOX_TAGS.contains(&tag));
    let takes_body = operation.request_body.is_some();
    let takes_json = match &operation.request_body {
        Some(RefOr::T(body)) => body.content.contains_key("application/json"),
        _ => false,
    };
    let has_parameter = |name: &str| {
        let parameters = operation.parameters.iter().flatten();
        let mut parameters = parameters.filter_map(|parameter| match parameter {
            RefOr::T(parameter) => Some(parameter),
            RefOr::Ref(_) => None,
        });
        parameters.any(|parameter| parameter.name == name)
    };
    let logs_in = path.ends_with("/login");
    let mut statuses = vec![400, 408, 429, 500, 503, 504];
    if needs_credential || logs_in {
        statuses.push(401);
    }
    if needs_credential {
        statuses.push(403);
    }
    // The path, or an `environment_id` in the body, names a resource.
    if path.contains('{') || path.ends_with("/tickets") || path.ends_with("/api-keys") {
        statuses.push(404);
    }
    if takes_json {
        statuses.extend([413, 415]);
    }
    if has_parameter("If-Match") {
        statuses.push(412);
    }
    if has_parameter("Range") {
        statuses.push(416);
    }
    if takes_body && tags().any(|tag| tag == "files") {
        statuses.push(507);
    }
    let depends_on_state = path.ends_with('}') || path.ends_with("/replay");
    if (needs_credential && takes_body) || connects_to_box || depends_on_state {
        statuses.push(409);
    }
    if connects_to_box {
        statuses.push(502);
    }
    statuses
}

/// Adds the errors that an operation can answer with, except those that it documents itself.
pub(super) fn complete(path: &str, operation: &mut Operation, needs_credential: bool) {
    for status in statuses(path, operation, needs_credential) {
        operation
            .responses
            .responses
            .entry(status.to_string())
            .or_insert_with(|| RefOr::Ref(Ref::from_response_name(response_name(status))));
    }
}

//! The errors in the document: one answer a status, with the words it may carry, and which
//! of them an operation can give, told from what it takes.

use agentbox_contracts::error::ErrorCode;
use axum::http::StatusCode;
use utoipa::openapi::path::Operation;
use utoipa::openapi::response::{Response, ResponseBuilder};
use utoipa::openapi::schema::Type;
use utoipa::openapi::{Components, ContentBuilder, Ref, RefOr};

use super::header;

/// Of an operation that talks to a box.
const OF_BOXES: [&str; 3] = ["exec", "logs", "attach"];

/// `Not Found` as `NotFound`.
fn name(status: u16) -> String {
    let reason = StatusCode::from_u16(status)
        .ok()
        .and_then(|status| status.canonical_reason());
    reason.unwrap_or_default().replace(' ', "")
}

fn words(status: u16) -> Vec<&'static str> {
    let of_status = |code: &&ErrorCode| code.status() == status;
    let codes = ErrorCode::ALL.iter().filter(of_status);
    codes.map(|code| code.as_str()).collect()
}

fn answer(status: u16) -> Response {
    let mut answer = ResponseBuilder::new()
        .description(format!("`{}`", words(status).join("`, `")))
        .content(
            "application/json",
            ContentBuilder::new()
                .schema(Some(Ref::from_schema_name("ErrorBody")))
                .build(),
        );
    answer = match status {
        401 => answer.header(
            "WWW-Authenticate",
            header("How to authenticate", Type::String),
        ),
        405 => answer.header("Allow", header("What the path takes", Type::String)),
        429 | 503 => answer.header(
            "Retry-After",
            header("Seconds after which to try again", Type::Integer),
        ),
        _ => answer,
    };
    answer.build()
}

/// Adds one answer for each status that an error can have.
pub(super) fn define(components: &mut Components) {
    for code in ErrorCode::ALL {
        let status = code.status();
        let answer = RefOr::T(answer(status));
        components.responses.insert(name(status), answer);
    }
}

/// The statuses of the errors of an operation on `path`.
fn statuses(path: &str, operation: &Operation, needs_credential: bool) -> Vec<u16> {
    let of_box = operation
        .tags
        .iter()
        .flatten()
        .any(|tag| OF_BOXES.contains(&tag.as_str()));
    let takes_body = operation.request_body.is_some();
    let logs_in = path.ends_with("/login");
    let mut statuses = vec![400, 408, 429, 500, 503, 504];
    if needs_credential || logs_in {
        statuses.push(401);
    }
    if needs_credential {
        statuses.push(403);
    }
    // By its path, or by an `environment_id` in its body.
    if path.contains('{') || path.ends_with("/tickets") || path.ends_with("/api-keys") {
        statuses.push(404);
    }
    if takes_body {
        statuses.extend([413, 415]);
    }
    if (needs_credential && takes_body) || of_box || path.ends_with("}") {
        statuses.push(409);
    }
    if of_box {
        statuses.push(502);
    }
    statuses
}

/// Adds to an operation the errors that it can answer with; those it describes itself stay.
pub(super) fn complete(path: &str, operation: &mut Operation, needs_credential: bool) {
    for status in statuses(path, operation, needs_credential) {
        operation
            .responses
            .responses
            .entry(status.to_string())
            .or_insert_with(|| RefOr::Ref(Ref::from_response_name(name(status))));
    }
}

//! `/dead-letters`: messages that could not be processed. For administrators.

use agentbox_api::dead_letter::{DeadLetterBody, DeadLetterContentBody, DeadLetterList};
use agentbox_api::user::PageQuery;
use agentbox_contracts::audit::AuditAction;
use agentbox_contracts::dead_letter::{DeadLetterContent, rpc};
use axum::extract::State;
use axum::http::StatusCode;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::audit::accept_target;
use crate::edge::path::{DeadLetterNumber, DeadLetterParameter};
use crate::edge::query::page;
use crate::edge::{Answer, Path, Query};
use crate::state::{Gateway, SCHEDULER_DEADLINE};

/// List dead letters
///
/// Returns one page of the messages that no replica could process, newest first. They are kept for 7
/// days.
#[utoipa::path(get, operation_id = "listDeadLetters", path = "/dead-letters", tag = "dead-letters", params(PageQuery),
    responses((status = 200, description = "One page of dead letters.", body = DeadLetterList)))]
pub(crate) async fn list(
    State(gateway): State<Gateway>,
    Query(query): Query<PageQuery>,
) -> Answer<axum::Json<DeadLetterList>> {
    let (limit, offset) = page(query.limit, query.offset)?;
    let request = rpc::ListDeadLettersRequest { limit, offset };
    let reply = gateway
        .bus
        .call::<rpc::ListDeadLetters>(&request, SCHEDULER_DEADLINE)
        .await?;
    Ok(axum::Json(DeadLetterList {
        dead_letters: reply
            .letters
            .into_iter()
            .map(DeadLetterBody::from)
            .collect(),
        total: reply.total,
        limit,
        offset,
    }))
}

/// Get a dead letter
///
/// Returns one dead letter with its headers and its content.
#[utoipa::path(get, operation_id = "getDeadLetter", path = "/dead-letters/{letter}", tag = "dead-letters",
    params(DeadLetterParameter),
    responses((status = 200, description = "The dead letter with its content.", body = DeadLetterContentBody)))]
pub(crate) async fn get(
    State(gateway): State<Gateway>,
    Path(letter): Path<DeadLetterNumber>,
) -> Answer<axum::Json<DeadLetterContentBody>> {
    let request = rpc::DeadLetterRequest { number: letter };
    let content = gateway
        .bus
        .call::<rpc::GetDeadLetter>(&request, SCHEDULER_DEADLINE)
        .await?;
    Ok(axum::Json(shown(content)))
}

/// A message that is UTF-8 as text, another one in base64.
fn shown(content: DeadLetterContent) -> DeadLetterContentBody {
    let (body, body_base64) = match String::from_utf8(content.body) {
        Ok(text) => (Some(text), None),
        Err(error) => (None, Some(STANDARD.encode(error.as_bytes()))),
    };
    DeadLetterContentBody {
        letter: content.letter.into(),
        headers: content.headers,
        body,
        body_base64,
    }
}

/// Replay a dead letter
///
/// Queues its command again and removes the dead letter. A command names an environment to reconcile,
/// so it may be repeated. If it fails again, it becomes a new dead letter. Other messages are refused
/// with 409.
#[utoipa::path(post, operation_id = "replayDeadLetter", path = "/dead-letters/{letter}/replay", tag = "dead-letters",
    params(DeadLetterParameter),
    responses((status = 204, description = "The command is queued, and the dead letter removed.")))]
pub(crate) async fn replay(
    State(gateway): State<Gateway>,
    Path(letter): Path<DeadLetterNumber>,
) -> Answer<StatusCode> {
    let target = letter.to_string();
    accept_target(&gateway, AuditAction::ReplayDeadLetter, Some(&target), &[]).await?;
    let request = rpc::DeadLetterRequest { number: letter };
    gateway
        .bus
        .call::<rpc::ReplayDeadLetter>(&request, SCHEDULER_DEADLINE)
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Discard a dead letter
///
/// Removes the dead letter. It succeeds for one that is gone.
#[utoipa::path(delete, operation_id = "discardDeadLetter", path = "/dead-letters/{letter}", tag = "dead-letters",
    params(DeadLetterParameter),
    responses((status = 204, description = "The dead letter is removed.")))]
pub(crate) async fn discard(
    State(gateway): State<Gateway>,
    Path(letter): Path<DeadLetterNumber>,
) -> Answer<StatusCode> {
    let target = letter.to_string();
    accept_target(&gateway, AuditAction::DiscardDeadLetter, Some(&target), &[]).await?;
    let request = rpc::DeadLetterRequest { number: letter };
    gateway
        .bus
        .call::<rpc::DiscardDeadLetter>(&request, SCHEDULER_DEADLINE)
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use agentbox_contracts::dead_letter::DeadLetter;
    use chrono::DateTime;

    use super::*;

    #[test]
    fn body_that_is_not_utf8_is_shown_in_base64() {
        let body = |bytes: &[u8]| {
            let at = DateTime::UNIX_EPOCH;
            let content = DeadLetterContent {
                letter: DeadLetter::new(1, "abx.v1.x", String::new(), at, 1),
                headers: BTreeMap::new(),
                body: bytes.to_vec(),
            };
            let shown = shown(content);
            (shown.body, shown.body_base64)
        };
        assert_eq!(body(b"null"), (Some("null".to_owned()), None));
        assert_eq!(body(&[0xff]), (None, Some("/w==".to_owned())));
    }
}

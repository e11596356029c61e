//! The RPCs about dead letters: an operator lists, replays and discards them.
//!
//! The gateway records each replay and discard in the audit trail before it asks for it.

use std::time::Duration;

use agentbox_bus::{Bus, BusError};
use agentbox_contracts::ErrorChain;
use agentbox_contracts::dead_letter::rpc::{
    DeadLetterRequest, ListDeadLettersReply, ListDeadLettersRequest,
};
use agentbox_contracts::dead_letter::{DeadLetterContent, DeadLetterKind, MAX_DEAD_LETTER_BYTES};
use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::rpc::Empty;

const MAX_PAGE: u32 = 1000;
/// How long a replayed command may wait for a replica.
const REPLAY_TTL: Duration = Duration::from_secs(300);

fn unavailable(error: &BusError) -> Error {
    tracing::warn!(error = %ErrorChain(error), "dead letters not read or not changed");
    Error::new(
        ErrorCode::Unavailable,
        "the message bus does not answer; try again",
    )
}

fn not_found() -> Error {
    Error::not_found("dead letter")
}

/// Checks that a letter can be replayed.
fn check_replayable(content: &DeadLetterContent) -> Result<(), Error> {
    let refuse = |message: &str| Err(Error::new(ErrorCode::Conflict, message));
    match content.letter.kind {
        DeadLetterKind::Audit => refuse(
            "an audit entry cannot be replayed, because it would be refused again; read it, then discard it",
        ),
        DeadLetterKind::Other => {
            refuse("this version does not know the message and cannot replay it; discard it")
        }
        DeadLetterKind::Command if content.body.len() >= MAX_DEAD_LETTER_BYTES => {
            refuse("the command was too long to be kept whole and cannot be replayed; discard it")
        }
        DeadLetterKind::Command => Ok(()),
    }
}

/// Returns one page, newest first.
///
/// # Errors
/// `Validation` for the limit; `Unavailable` without the bus.
pub async fn list(
    bus: &Bus,
    request: ListDeadLettersRequest,
) -> Result<ListDeadLettersReply, Error> {
    if !(1..=MAX_PAGE).contains(&request.limit) {
        return Err(Error::field(
            "limit",
            format_args!("must be between 1 and {MAX_PAGE}, got {}", request.limit),
        ));
    }
    let listed = bus.dead_letters(request.limit, request.offset).await;
    let (letters, total) = listed.map_err(|error| unavailable(&error))?;
    Ok(ListDeadLettersReply { letters, total })
}

/// Returns one dead letter with its content.
///
/// # Errors
/// `NotFound`; `Unavailable` without the bus.
pub async fn get(bus: &Bus, request: DeadLetterRequest) -> Result<DeadLetterContent, Error> {
    let letter = bus.dead_letter(request.number).await;
    let letter = letter.map_err(|error| unavailable(&error))?;
    letter.ok_or_else(not_found)
}

/// Queues the command of a dead letter again, then removes the letter.
///
/// # Errors
/// `NotFound`; `Conflict` for a letter that cannot be replayed; `Unavailable` without the bus: the letter
/// is still there, or its command is queued.
pub async fn replay(bus: &Bus, request: DeadLetterRequest) -> Result<Empty, Error> {
    let number = request.number;
    let content = get(bus, request).await?;
    check_replayable(&content)?;
    let replayed = bus.replay_dead_letter(&content, REPLAY_TTL).await;
    replayed.map_err(|error| unavailable(&error))?;
    tracing::info!(
        number,
        subject = content.letter.subject,
        "dead letter replayed"
    );
    discard(bus, DeadLetterRequest { number }).await
}

/// Removes a dead letter.
///
/// # Errors
/// `Unavailable` without the bus.
pub async fn discard(bus: &Bus, request: DeadLetterRequest) -> Result<Empty, Error> {
    let discarded = bus.discard_dead_letter(request.number).await;
    discarded.map_err(|error| unavailable(&error))?;
    Ok(Empty {})
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use agentbox_contracts::audit::AuditAction;
    use agentbox_contracts::dead_letter::DeadLetter;
    use agentbox_contracts::ids::EnvironmentId;
    use agentbox_contracts::subjects;
    use chrono::DateTime;

    use super::*;

    fn content(subject: &str, bytes: usize) -> DeadLetterContent {
        let at = DateTime::UNIX_EPOCH;
        DeadLetterContent {
            letter: DeadLetter::new(1, subject, "failed".into(), at, bytes as u64),
            headers: BTreeMap::new(),
            body: vec![0; bytes],
        }
    }

    #[test]
    fn only_whole_commands_are_replayed() {
        let command = subjects::command("local", "reconcile", &EnvironmentId::random());
        let audit = subjects::audit(AuditAction::Exec);
        assert!(check_replayable(&content(&command, 4)).is_ok());
        for (subject, bytes) in [
            (command.as_str(), MAX_DEAD_LETTER_BYTES),
            (audit.as_str(), 4),
            ("abx.v9.x", 4),
        ] {
            let refused = check_replayable(&content(subject, bytes)).unwrap_err();
            assert_eq!(refused.code, ErrorCode::Conflict, "{subject}");
        }
    }
}

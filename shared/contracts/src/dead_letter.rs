//! Dead letters: messages that no replica could process, and the scheduler's RPCs about them.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::ids::EnvironmentId;
use crate::logs::base64_bytes;
use crate::subjects::Subject;

/// The most bytes of a message that its dead letter keeps, so that a few large messages cannot
/// displace all others.
pub const MAX_DEAD_LETTER_BYTES: usize = 64 * 1024;

/// The kind of the message: `command` for an environment, which can be replayed, or an entry of the
/// `audit` trail. `other` is a message of another version of AgentBox.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Hash,
    Serialize,
    Deserialize,
    strum::Display,
    strum::IntoStaticStr,
)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "openapi", schema(example = "command"))]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase", const_into_str)]
pub enum DeadLetterKind {
    /// A command for an environment.
    Command,
    /// An entry of the audit trail that no version of a service sends.
    Audit,
    /// A message of another version.
    Other,
}

impl DeadLetterKind {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        self.into_str()
    }
}

/// One dead letter, without its content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeadLetter {
    /// Its number in the stream. It never changes.
    pub number: u64,
    pub kind: DeadLetterKind,
    /// The subject of the message.
    pub subject: String,
    /// The environment that the command is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub environment: Option<EnvironmentId>,
    pub reason: String,
    /// When it became a dead letter.
    pub at: DateTime<Utc>,
    pub bytes: u64,
}

impl DeadLetter {
    /// The dead letter of a message on `subject`.
    #[must_use]
    pub fn new(number: u64, subject: &str, reason: String, at: DateTime<Utc>, bytes: u64) -> Self {
        let (kind, environment) = match Subject::parse(subject) {
            Some(Subject::Command { id, .. }) => (DeadLetterKind::Command, Some(id)),
            Some(Subject::Audit { .. }) => (DeadLetterKind::Audit, None),
            _ => (DeadLetterKind::Other, None),
        };
        Self {
            number,
            kind,
            subject: subject.to_owned(),
            environment,
            reason,
            at,
            bytes,
        }
    }
}

/// One dead letter, with its content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeadLetterContent {
    #[serde(flatten)]
    pub letter: DeadLetter,
    pub headers: BTreeMap<String, Vec<String>>,
    /// At most [`MAX_DEAD_LETTER_BYTES`] of the message.
    #[serde(with = "base64_bytes")]
    pub body: Vec<u8>,
}

pub mod rpc {
    //! The scheduler's RPCs about dead letters. The gateway's `authorize` decides who may use them.

    use super::{DeadLetter, DeadLetterContent, Deserialize, Serialize};
    use crate::rpc::{Empty, rpc};

    /// One page, newest first.
    #[derive(Clone, Debug, Serialize, Deserialize)]
    pub struct ListDeadLettersRequest {
        pub limit: u32,
        pub offset: u64,
    }

    #[derive(Clone, Debug, Serialize, Deserialize)]
    pub struct ListDeadLettersReply {
        pub letters: Vec<DeadLetter>,
        pub total: u64,
    }

    #[derive(Clone, Debug, Serialize, Deserialize)]
    pub struct DeadLetterRequest {
        pub number: u64,
    }

    rpc!(ListDeadLetters: "scheduler", "list-dead-letters",
        ListDeadLettersRequest => ListDeadLettersReply);
    rpc!(GetDeadLetter: "scheduler", "get-dead-letter", DeadLetterRequest => DeadLetterContent);
    rpc!(
        /// `Conflict` for a letter that cannot be replayed.
        ReplayDeadLetter: "scheduler", "replay-dead-letter", DeadLetterRequest => Empty
    );
    rpc!(DiscardDeadLetter: "scheduler", "discard-dead-letter", DeadLetterRequest => Empty);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::AuditAction;
    use crate::subjects;

    #[test]
    fn kind_and_environment_follow_from_the_subject() {
        let id = EnvironmentId::random();
        let letter = |subject: &str| {
            let letter = DeadLetter::new(1, subject, "broken".into(), DateTime::UNIX_EPOCH, 4);
            (letter.kind, letter.environment)
        };
        let command = subjects::command("local", "reconcile", &id);
        assert_eq!(letter(&command), (DeadLetterKind::Command, Some(id)));
        let audit = subjects::audit(AuditAction::Exec);
        assert_eq!(letter(&audit), (DeadLetterKind::Audit, None));
        assert_eq!(letter("abx.v2.x"), (DeadLetterKind::Other, None));
        assert_eq!(DeadLetterKind::Command.as_str(), "command");
    }
}

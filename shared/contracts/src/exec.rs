//! User input and output between api-gateway and exec-proxy: how a session is opened and
//! the messages that flow in it.
//!
//! A session is opened by one request on `abx.v1.rpc.exec.<cluster>.open` whose body is an
//! [`Open`]. What follows are [`ToBox`] and [`FromBox`] messages, carried in order by
//! `agentbox-bus`. A short exec is one request and one answer: the first message back is
//! its [`FromBox::Result`], and the last.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::environment::Status;
use crate::ids::{EnvironmentId, ExecId};
use crate::logs::{LogEntry, base64_bytes};

/// The method of `exec_rpc` that opens a session.
pub const OPEN: &str = "open";
/// One box's usage: [`UsageRequest`] to [`UsageReply`].
pub const USAGE: &str = "usage";
/// Store a box's last output before it is removed: [`ArchiveRequest`] to [`ArchiveReply`].
pub const ARCHIVE: &str = "archive";

/// No data message carries more bytes of user output or input than this.
pub const MAX_CHUNK: usize = 32 * 1024;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Open {
    pub environment: EnvironmentId,
    /// Where the box was last known to listen; absent for logs of an ended environment.
    #[serde(default)]
    pub address: Option<SocketAddr>,
    pub status: Status,
    pub kind: OpenKind,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OpenKind {
    Exec(ExecRequest),
    Attach(AttachRequest),
    Logs(LogsRequest),
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ExecRequest {
    pub id: ExecId,
    pub command: Vec<String>,
    #[serde(default)]
    pub working_dir: Option<String>,
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// The whole of stdin. Longer than one message may be: it follows as [`ToBox::Stdin`]
    /// and [`ToBox::Eof`] when `stdin_follows`.
    #[serde(default, with = "optional_base64")]
    pub stdin: Option<Vec<u8>>,
    #[serde(default)]
    pub stdin_follows: bool,
    pub timeout_ms: u64,
    /// Each of stdout and stderr keeps at most this many bytes.
    pub max_output_bytes: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AttachRequest {
    pub id: ExecId,
    /// Empty: the image's shell.
    #[serde(default)]
    pub command: Vec<String>,
    /// `None`: no terminal; stdout and stderr apart.
    #[serde(default)]
    pub tty: Option<TerminalSize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalSize {
    pub cols: u16,
    pub rows: u16,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct LogsRequest {
    /// The first entry wanted: one after the last the client has.
    #[serde(default)]
    pub from_sequence: Option<u64>,
    #[serde(default)]
    pub tail: Option<u64>,
    #[serde(default)]
    pub since: Option<DateTime<Utc>>,
    #[serde(default)]
    pub follow: bool,
}

/// How a command ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    pub exit_code: i32,
    #[serde(default)]
    pub timed_out: bool,
    #[serde(default)]
    pub oom_killed: bool,
    pub duration_ms: u64,
}

/// An exec's whole answer, when it fits one message ([`MAX_INLINE_RESULT`]).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecResult {
    #[serde(with = "base64_bytes")]
    pub stdout: Vec<u8>,
    #[serde(with = "base64_bytes")]
    pub stderr: Vec<u8>,
    #[serde(default)]
    pub stdout_truncated: bool,
    #[serde(default)]
    pub stderr_truncated: bool,
    pub exit: Exit,
}

/// Stdout and stderr together, up to which an exec answers in one message. Above it they
/// come first, as [`FromBox::Stdout`] and [`FromBox::Stderr`], and the result's are empty.
pub const MAX_INLINE_RESULT: usize = 256 * 1024;

/// Gateway to exec-proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToBox {
    Stdin(Bytes),
    Eof,
    Resize(TerminalSize),
    /// `SIGINT`, `INT`.
    Signal(String),
}

/// Exec-proxy to gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FromBox {
    /// The command has been started (attach only).
    Started(ExecId),
    Stdout(Bytes),
    Stderr(Bytes),
    /// Ends an attach.
    Exit(Exit),
    /// Ends an exec.
    Result(ExecResult),
    Logs(Vec<LogEntry>),
    /// So many log entries were wanted and are no longer kept.
    LogsLost(u64),
    /// Ends a log stream: the environment has ended, or all there is was sent.
    LogsEnd {
        ended: bool,
    },
}

/// A message that cannot be read; both ends are ours, so a version mismatch.
#[derive(Debug, thiserror::Error)]
#[error("a session message with tag {tag} cannot be read: {reason}")]
pub struct MalformedMessage {
    pub tag: u8,
    pub reason: String,
}

fn json<T: Serialize>(value: &T) -> Bytes {
    // Plain data with string keys always serializes.
    serde_json::to_vec(value)
        .map(Bytes::from)
        .unwrap_or_default()
}

fn read<T: serde::de::DeserializeOwned>(tag: u8, body: &[u8]) -> Result<T, MalformedMessage> {
    serde_json::from_slice(body).map_err(|error| MalformedMessage {
        tag,
        reason: error.to_string(),
    })
}

/// A message as the session layer carries it: one tag byte and a body.
pub trait SessionMessage: Sized + Send {
    fn encode(self) -> (u8, Bytes);
    /// # Errors
    /// When the tag is unknown or the body is not what the tag says.
    fn decode(tag: u8, body: Bytes) -> Result<Self, MalformedMessage>;
}

impl SessionMessage for ToBox {
    fn encode(self) -> (u8, Bytes) {
        match self {
            Self::Stdin(bytes) => (1, bytes),
            Self::Eof => (2, Bytes::new()),
            Self::Resize(size) => (3, json(&size)),
            Self::Signal(name) => (4, json(&name)),
        }
    }

    fn decode(tag: u8, body: Bytes) -> Result<Self, MalformedMessage> {
        Ok(match tag {
            1 => Self::Stdin(body),
            2 => Self::Eof,
            3 => Self::Resize(read(tag, &body)?),
            4 => Self::Signal(read(tag, &body)?),
            _ => {
                return Err(MalformedMessage {
                    tag,
                    reason: "unknown tag".into(),
                });
            }
        })
    }
}

impl SessionMessage for FromBox {
    fn encode(self) -> (u8, Bytes) {
        match self {
            Self::Started(id) => (1, json(&id)),
            Self::Stdout(bytes) => (2, bytes),
            Self::Stderr(bytes) => (3, bytes),
            Self::Exit(exit) => (4, json(&exit)),
            Self::Result(result) => (5, json(&result)),
            Self::Logs(entries) => (6, json(&entries)),
            Self::LogsLost(count) => (7, json(&count)),
            Self::LogsEnd { ended } => (8, json(&ended)),
        }
    }

    fn decode(tag: u8, body: Bytes) -> Result<Self, MalformedMessage> {
        Ok(match tag {
            1 => Self::Started(read(tag, &body)?),
            2 => Self::Stdout(body),
            3 => Self::Stderr(body),
            4 => Self::Exit(read(tag, &body)?),
            5 => Self::Result(read(tag, &body)?),
            6 => Self::Logs(read(tag, &body)?),
            7 => Self::LogsLost(read(tag, &body)?),
            8 => Self::LogsEnd {
                ended: read(tag, &body)?,
            },
            _ => {
                return Err(MalformedMessage {
                    tag,
                    reason: "unknown tag".into(),
                });
            }
        })
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct UsageRequest {
    pub environment: EnvironmentId,
    pub address: SocketAddr,
}

/// What a running box uses now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsageReply {
    pub cpu_milli: u64,
    pub memory_bytes: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ArchiveRequest {
    pub environment: EnvironmentId,
    #[serde(default)]
    pub address: Option<SocketAddr>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ArchiveReply {
    pub entries: u64,
}

mod optional_base64 {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::base64_bytes;

    #[derive(Serialize, Deserialize)]
    struct Wrapped(#[serde(with = "base64_bytes")] Vec<u8>);

    pub fn serialize<S: Serializer>(bytes: &Option<Vec<u8>>, s: S) -> Result<S::Ok, S::Error> {
        match bytes {
            Some(bytes) => base64_bytes::serialize(bytes, s),
            None => s.serialize_none(),
        }
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Option<Vec<u8>>, D::Error> {
        Ok(Option::<Wrapped>::deserialize(d)?.map(|wrapped| wrapped.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_message_survives_the_session() {
        let id = ExecId::random();
        for message in [
            FromBox::Started(id),
            FromBox::Stdout(Bytes::from_static(b"\xff\x00")),
            FromBox::Stderr(Bytes::from_static(b"e")),
            FromBox::Exit(Exit {
                exit_code: 137,
                oom_killed: true,
                ..Exit::default()
            }),
            FromBox::Result(ExecResult {
                stdout: vec![0, 255],
                ..ExecResult::default()
            }),
            FromBox::LogsLost(3),
            FromBox::LogsEnd { ended: true },
        ] {
            let (tag, body) = message.clone().encode();
            assert_eq!(FromBox::decode(tag, body).unwrap(), message);
        }
        for message in [
            ToBox::Stdin(Bytes::from_static(b"in")),
            ToBox::Eof,
            ToBox::Resize(TerminalSize { cols: 80, rows: 24 }),
            ToBox::Signal("SIGINT".into()),
        ] {
            let (tag, body) = message.clone().encode();
            assert_eq!(ToBox::decode(tag, body).unwrap(), message);
        }
        assert!(FromBox::decode(99, Bytes::new()).is_err());
    }

    #[test]
    fn stdin_is_optional_and_exact() {
        let request = |stdin| ExecRequest {
            id: ExecId::random(),
            command: vec!["true".into()],
            working_dir: None,
            env: BTreeMap::new(),
            stdin,
            stdin_follows: false,
            timeout_ms: 1,
            max_output_bytes: 1,
        };
        for stdin in [None, Some(vec![]), Some(vec![0, 255])] {
            let json = serde_json::to_string(&request(stdin.clone())).unwrap();
            assert_eq!(
                serde_json::from_str::<ExecRequest>(&json).unwrap().stdin,
                stdin
            );
        }
    }
}

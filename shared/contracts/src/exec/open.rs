//! The protobuf encoding of the request that opens a session.
//!
//! * I1. Bytes of users travel as bytes.
//! * I2. A field number keeps its meaning: both ends may be of different versions.
//! * I3. Malformed or unknown content is an error.
//!
//! Requests on files, executions and ports are the messages that boxd receives.

use std::net::SocketAddr;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use prost::Message as _;

use super::{
    AttachRequest, ExecRequest, LogsRequest, MalformedMessage, Open, OpenKind, SessionMessage,
    TerminalSize,
};
use crate::environment::Status;
use crate::executions::Size;
use crate::ids::{EnvironmentId, ExecId, UserId};

impl SessionMessage for Open {
    fn encode(self) -> Bytes {
        let open = wire::Open {
            environment: self.environment.to_string(),
            owner: self.owner.map(|owner| owner.to_string()),
            address: self.address.map(|address| address.to_string()),
            status: self.status.as_str().to_owned(),
            kind: Some(self.kind.into()),
        };
        open.encode_to_vec().into()
    }

    fn decode(body: Bytes) -> Result<Self, MalformedMessage> {
        let open = wire::Open::decode(body)?;
        let owner = open
            .owner
            .map(|owner| owner.parse::<UserId>())
            .transpose()?;
        let address = open.address.map(|address| address.parse::<SocketAddr>());
        Ok(Self {
            environment: open.environment.parse::<EnvironmentId>()?,
            owner,
            address: address
                .transpose()
                .map_err(|_| MalformedMessage::Field("address"))?,
            status: open
                .status
                .parse::<Status>()
                .map_err(|_| MalformedMessage::Field("status"))?,
            kind: open.kind.ok_or(MalformedMessage::Unknown)?.try_into()?,
        })
    }
}

impl From<OpenKind> for wire::open::Kind {
    fn from(kind: OpenKind) -> Self {
        match kind {
            OpenKind::Exec(request) => Self::Exec(request.into()),
            OpenKind::Attach(request) => Self::Attach(request.into()),
            OpenKind::Logs(request) => Self::Logs(request.into()),
            OpenKind::Files(request) => Self::Files(request),
            OpenKind::Execution(request) => Self::Execution(request),
            OpenKind::Port(request) => Self::Port(request),
            OpenKind::Ports => Self::Ports(()),
        }
    }
}

impl TryFrom<wire::open::Kind> for OpenKind {
    type Error = MalformedMessage;

    fn try_from(kind: wire::open::Kind) -> Result<Self, MalformedMessage> {
        use wire::open::Kind;
        Ok(match kind {
            Kind::Exec(request) => Self::Exec(request.try_into()?),
            Kind::Attach(request) => Self::Attach(request.try_into()?),
            Kind::Logs(request) => Self::Logs(request.into()),
            Kind::Files(request) => Self::Files(request),
            Kind::Execution(request) => Self::Execution(request),
            Kind::Port(request) => Self::Port(request),
            Kind::Ports(()) => Self::Ports,
        })
    }
}

impl From<ExecRequest> for wire::Exec {
    fn from(request: ExecRequest) -> Self {
        Self {
            id: request.id.to_string(),
            command: request.command,
            working_dir: request.working_dir,
            env: request.env,
            user: request.user,
            merge_stderr: request.merge_stderr,
            stream: request.stream,
            stdin: request.stdin,
            stdin_follows: request.stdin_follows,
            timeout_ms: request.timeout_ms,
            max_output_bytes: request.max_output_bytes,
        }
    }
}

impl TryFrom<wire::Exec> for ExecRequest {
    type Error = MalformedMessage;

    fn try_from(request: wire::Exec) -> Result<Self, MalformedMessage> {
        Ok(Self {
            id: request.id.parse::<ExecId>()?,
            command: request.command,
            working_dir: request.working_dir,
            env: request.env,
            user: request.user,
            merge_stderr: request.merge_stderr,
            stream: request.stream,
            stdin: request.stdin,
            stdin_follows: request.stdin_follows,
            timeout_ms: request.timeout_ms,
            max_output_bytes: request.max_output_bytes,
        })
    }
}

impl From<AttachRequest> for wire::Attach {
    fn from(request: AttachRequest) -> Self {
        Self {
            id: request.id.to_string(),
            command: request.command,
            working_dir: request.working_dir,
            env: request.env,
            tty: request.tty.map(|size| Size {
                cols: size.cols.into(),
                rows: size.rows.into(),
            }),
        }
    }
}

impl TryFrom<wire::Attach> for AttachRequest {
    type Error = MalformedMessage;

    fn try_from(request: wire::Attach) -> Result<Self, MalformedMessage> {
        Ok(Self {
            id: request.id.parse::<ExecId>()?,
            command: request.command,
            working_dir: request.working_dir,
            env: request.env,
            tty: request.tty.map(|size| TerminalSize {
                cols: size.cols.try_into().unwrap_or(u16::MAX),
                rows: size.rows.try_into().unwrap_or(u16::MAX),
            }),
        })
    }
}

impl From<LogsRequest> for wire::Logs {
    fn from(request: LogsRequest) -> Self {
        Self {
            from_sequence: request.from_sequence,
            tail: request.tail,
            since_unix_nanos: request.since.map(unix_nanos),
            follow: request.follow,
        }
    }
}

impl From<wire::Logs> for LogsRequest {
    fn from(request: wire::Logs) -> Self {
        Self {
            from_sequence: request.from_sequence,
            tail: request.tail,
            since: request
                .since_unix_nanos
                .map(DateTime::<Utc>::from_timestamp_nanos),
            follow: request.follow,
        }
    }
}

/// An instant before the year 1678 or after 2262 becomes the nearest one that fits.
fn unix_nanos(instant: DateTime<Utc>) -> i64 {
    let nearest = match instant.timestamp() {
        ..0 => i64::MIN,
        0.. => i64::MAX,
    };
    instant.timestamp_nanos_opt().unwrap_or(nearest)
}

/// The protobuf messages behind [`Open`].
mod wire {
    use std::collections::BTreeMap;

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Open {
        #[prost(string, tag = "1")]
        pub environment: String,
        #[prost(string, optional, tag = "2")]
        pub owner: Option<String>,
        #[prost(string, optional, tag = "3")]
        pub address: Option<String>,
        #[prost(string, tag = "4")]
        pub status: String,
        #[prost(oneof = "open::Kind", tags = "10, 11, 12, 13, 14, 15, 16")]
        pub kind: Option<open::Kind>,
    }

    pub mod open {
        #[derive(Clone, PartialEq, prost::Oneof)]
        pub enum Kind {
            #[prost(message, tag = "10")]
            Exec(super::Exec),
            #[prost(message, tag = "11")]
            Attach(super::Attach),
            #[prost(message, tag = "12")]
            Logs(super::Logs),
            #[prost(message, tag = "13")]
            Files(crate::files::FileRequest),
            #[prost(message, tag = "14")]
            Execution(crate::executions::ExecutionRequest),
            #[prost(message, tag = "15")]
            Port(crate::ports::ConnectPort),
            #[prost(message, tag = "16")]
            Ports(()),
        }
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Exec {
        #[prost(string, tag = "1")]
        pub id: String,
        #[prost(string, repeated, tag = "2")]
        pub command: Vec<String>,
        #[prost(string, optional, tag = "3")]
        pub working_dir: Option<String>,
        #[prost(btree_map = "string, string", tag = "4")]
        pub env: BTreeMap<String, String>,
        #[prost(string, optional, tag = "5")]
        pub user: Option<String>,
        #[prost(bool, tag = "6")]
        pub merge_stderr: bool,
        #[prost(bool, tag = "7")]
        pub stream: bool,
        #[prost(bytes = "vec", optional, tag = "8")]
        pub stdin: Option<Vec<u8>>,
        #[prost(bool, tag = "9")]
        pub stdin_follows: bool,
        #[prost(uint64, tag = "10")]
        pub timeout_ms: u64,
        #[prost(uint64, tag = "11")]
        pub max_output_bytes: u64,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Attach {
        #[prost(string, tag = "1")]
        pub id: String,
        #[prost(string, repeated, tag = "2")]
        pub command: Vec<String>,
        #[prost(string, optional, tag = "3")]
        pub working_dir: Option<String>,
        #[prost(btree_map = "string, string", tag = "4")]
        pub env: BTreeMap<String, String>,
        #[prost(message, optional, tag = "5")]
        pub tty: Option<crate::executions::Size>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Logs {
        #[prost(uint64, optional, tag = "1")]
        pub from_sequence: Option<u64>,
        #[prost(uint64, optional, tag = "2")]
        pub tail: Option<u64>,
        #[prost(int64, optional, tag = "3")]
        pub since_unix_nanos: Option<i64>,
        #[prost(bool, tag = "4")]
        pub follow: bool,
    }
}

#[cfg(test)]
mod tests;

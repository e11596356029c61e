//! The messages of a session, and their protobuf encoding.
//!
//! * I1. Bytes of users travel as bytes: a message holds neither JSON nor base64.
//! * I2. A field number keeps its meaning: both ends may be of different versions while
//!   the services are being upgraded.
//! * I3. No message encodes to zero bytes.

use bytes::Bytes;
use chrono::{DateTime, Utc};
use prost::Message as _;

use super::TerminalSize;
use crate::executions::ExecutionOutput;
use crate::files::FileOutput;
use crate::ids::InvalidId;
use crate::logs::{LogEntry, OutputStream};
use crate::ports::{PortList, PortOutput};

/// The size limit, for stdout and stderr together, of an exec answered by one message.
///
/// Larger output is sent before the result, as [`FromBox::Stdout`] and
/// [`FromBox::Stderr`]; the result's own output is then empty.
pub const MAX_INLINE_RESULT: usize = 256 * 1024;

/// A message of the gateway to the exec-proxy, which passes it to the box.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToBox {
    /// Stdin, the content of a file, or bytes for a port.
    Data(Bytes),
    /// The end of the data.
    End,
    Resize(TerminalSize),
    /// `SIGINT`, `INT`.
    Signal(String),
    /// Take the input of an execution from the client that holds it.
    TakeInput,
}

/// A message of the exec-proxy to the gateway, mostly what the box has answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FromBox {
    /// The command of a streamed exec was started. It is not sent for one that could not be started.
    CommandStarted,
    Stdout(Bytes),
    Stderr(Bytes),
    /// Ends a streamed exec.
    Exit(Exit),
    /// Ends an exec that is not streamed.
    Result(ExecResult),
    Logs(Vec<LogEntry>),
    /// The number of requested log entries that are no longer kept.
    LogsLost(u64),
    /// Ends a log stream. `ended`: the environment has ended; otherwise all kept entries
    /// were sent.
    LogsEnd {
        ended: bool,
    },
    File(FileOutput),
    Execution(ExecutionOutput),
    Port(PortOutput),
    Ports(PortList),
}

/// How a command ended.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Exit {
    #[prost(int32, tag = "1")]
    pub exit_code: i32,
    #[prost(bool, tag = "2")]
    pub timed_out: bool,
    #[prost(bool, tag = "3")]
    pub oom_killed: bool,
    #[prost(uint64, tag = "4")]
    pub duration_ms: u64,
}

/// The complete result of an exec, see [`MAX_INLINE_RESULT`].
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct ExecResult {
    #[prost(bytes = "vec", tag = "1")]
    pub stdout: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    pub stderr: Vec<u8>,
    #[prost(bool, tag = "3")]
    pub stdout_truncated: bool,
    #[prost(bool, tag = "4")]
    pub stderr_truncated: bool,
    #[prost(message, required, tag = "5")]
    pub exit: Exit,
}

/// A session message that cannot be decoded. Both ends are ours: their versions differ.
#[derive(Debug, thiserror::Error)]
pub enum MalformedMessage {
    #[error("a session message is not valid protobuf")]
    Protobuf(#[from] prost::DecodeError),
    #[error("a session message has no content that this version knows")]
    Unknown,
    #[error("a session message carries an invalid id")]
    Id(#[from] InvalidId),
    #[error("a session message has an invalid {0}")]
    Field(&'static str),
}

/// A message that the session layer can carry.
pub trait SessionMessage: Sized + Send {
    fn encode(self) -> Bytes;
    /// # Errors
    /// [`MalformedMessage`] when `body` was not encoded from a known message.
    fn decode(body: Bytes) -> Result<Self, MalformedMessage>;
}

impl SessionMessage for ToBox {
    fn encode(self) -> Bytes {
        use wire::to_box::Content;
        let content = match self {
            Self::Data(bytes) => Content::Data(bytes),
            Self::End => Content::End(()),
            Self::Resize(size) => Content::Resize(wire::TerminalSize {
                cols: size.cols.into(),
                rows: size.rows.into(),
            }),
            Self::Signal(name) => Content::Signal(name),
            Self::TakeInput => Content::TakeInput(()),
        };
        wire::ToBox::from(content).encode_to_vec().into()
    }

    fn decode(body: Bytes) -> Result<Self, MalformedMessage> {
        use wire::to_box::Content;
        let content = wire::ToBox::decode(body)?.content;
        Ok(match content.ok_or(MalformedMessage::Unknown)? {
            Content::Data(bytes) => Self::Data(bytes),
            Content::End(()) => Self::End,
            Content::Resize(size) => Self::Resize(TerminalSize {
                cols: size.cols.try_into().unwrap_or(u16::MAX),
                rows: size.rows.try_into().unwrap_or(u16::MAX),
            }),
            Content::Signal(name) => Self::Signal(name),
            Content::TakeInput(()) => Self::TakeInput,
        })
    }
}

impl SessionMessage for FromBox {
    fn encode(self) -> Bytes {
        use wire::from_box::Content;
        let content = match self {
            Self::CommandStarted => Content::CommandStarted(()),
            Self::Stdout(bytes) => Content::Stdout(bytes),
            Self::Stderr(bytes) => Content::Stderr(bytes),
            Self::Exit(exit) => Content::Exit(exit),
            Self::Result(result) => Content::Result(result),
            Self::Logs(entries) => Content::Logs(wire::LogBatch {
                entries: entries.into_iter().map(wire::LogEntry::from).collect(),
            }),
            Self::LogsLost(count) => Content::LogsLost(count),
            Self::LogsEnd { ended } => Content::LogsEnd(ended),
            Self::File(output) => Content::File(output),
            Self::Execution(output) => Content::Execution(output),
            Self::Port(output) => Content::Port(output),
            Self::Ports(ports) => Content::Ports(ports),
        };
        wire::FromBox::from(content).encode_to_vec().into()
    }

    fn decode(body: Bytes) -> Result<Self, MalformedMessage> {
        use wire::from_box::Content;
        let content = wire::FromBox::decode(body)?.content;
        Ok(match content.ok_or(MalformedMessage::Unknown)? {
            Content::CommandStarted(()) => Self::CommandStarted,
            Content::Stdout(bytes) => Self::Stdout(bytes),
            Content::Stderr(bytes) => Self::Stderr(bytes),
            Content::Exit(exit) => Self::Exit(exit),
            Content::Result(result) => Self::Result(result),
            Content::Logs(batch) => {
                Self::Logs(batch.entries.into_iter().map(LogEntry::from).collect())
            }
            Content::LogsLost(count) => Self::LogsLost(count),
            Content::LogsEnd(ended) => Self::LogsEnd { ended },
            Content::File(output) => Self::File(output),
            Content::Execution(output) => Self::Execution(output),
            Content::Port(output) => Self::Port(output),
            Content::Ports(ports) => Self::Ports(ports),
        })
    }
}

/// The protobuf messages behind [`ToBox`] and [`FromBox`].
mod wire {
    use super::{DateTime, OutputStream, Utc};

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct ToBox {
        #[prost(oneof = "to_box::Content", tags = "1, 2, 3, 4, 5")]
        pub content: Option<to_box::Content>,
    }

    pub mod to_box {
        #[derive(Clone, PartialEq, prost::Oneof)]
        pub enum Content {
            #[prost(bytes = "bytes", tag = "1")]
            Data(bytes::Bytes),
            #[prost(message, tag = "2")]
            End(()),
            #[prost(message, tag = "3")]
            Resize(super::TerminalSize),
            #[prost(string, tag = "4")]
            Signal(String),
            #[prost(message, tag = "5")]
            TakeInput(()),
        }
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct FromBox {
        #[prost(
            oneof = "from_box::Content",
            tags = "2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13"
        )]
        pub content: Option<from_box::Content>,
    }

    pub mod from_box {
        #[derive(Clone, PartialEq, prost::Oneof)]
        pub enum Content {
            // 1 is reserved: the id of an attached command.
            #[prost(bytes = "bytes", tag = "2")]
            Stdout(bytes::Bytes),
            #[prost(bytes = "bytes", tag = "3")]
            Stderr(bytes::Bytes),
            #[prost(message, tag = "4")]
            Exit(super::super::Exit),
            #[prost(message, tag = "5")]
            Result(super::super::ExecResult),
            #[prost(message, tag = "6")]
            Logs(super::LogBatch),
            #[prost(uint64, tag = "7")]
            LogsLost(u64),
            #[prost(bool, tag = "8")]
            LogsEnd(bool),
            #[prost(message, tag = "9")]
            File(crate::files::FileOutput),
            #[prost(message, tag = "10")]
            Execution(crate::executions::ExecutionOutput),
            #[prost(message, tag = "11")]
            Port(crate::ports::PortOutput),
            #[prost(message, tag = "12")]
            Ports(crate::ports::PortList),
            #[prost(message, tag = "13")]
            CommandStarted(()),
        }
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct TerminalSize {
        #[prost(uint32, tag = "1")]
        pub cols: u32,
        #[prost(uint32, tag = "2")]
        pub rows: u32,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct LogBatch {
        #[prost(message, repeated, tag = "1")]
        pub entries: Vec<LogEntry>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct LogEntry {
        #[prost(uint64, tag = "1")]
        pub sequence: u64,
        /// Nanoseconds since the Unix epoch.
        #[prost(int64, tag = "2")]
        pub unix_nanos: i64,
        /// False: stdout.
        #[prost(bool, tag = "3")]
        pub stderr: bool,
        #[prost(bytes = "vec", tag = "4")]
        pub line: Vec<u8>,
        #[prost(bool, tag = "5")]
        pub partial: bool,
    }

    impl From<to_box::Content> for ToBox {
        fn from(content: to_box::Content) -> Self {
            let content = Some(content);
            Self { content }
        }
    }

    impl From<from_box::Content> for FromBox {
        fn from(content: from_box::Content) -> Self {
            let content = Some(content);
            Self { content }
        }
    }

    impl From<super::LogEntry> for LogEntry {
        fn from(entry: super::LogEntry) -> Self {
            Self {
                sequence: entry.sequence,
                // An instant after the year 2262 does not fit.
                unix_nanos: entry.timestamp.timestamp_nanos_opt().unwrap_or(i64::MAX),
                stderr: entry.stream == OutputStream::Stderr,
                line: entry.line,
                partial: entry.partial,
            }
        }
    }

    impl From<LogEntry> for super::LogEntry {
        fn from(entry: LogEntry) -> Self {
            let stream = match entry.stderr {
                true => OutputStream::Stderr,
                false => OutputStream::Stdout,
            };
            Self {
                sequence: entry.sequence,
                timestamp: DateTime::<Utc>::from_timestamp_nanos(entry.unix_nanos),
                stream,
                line: entry.line,
                partial: entry.partial,
            }
        }
    }
}

#[cfg(test)]
mod tests;

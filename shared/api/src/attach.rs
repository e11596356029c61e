//! The messages of an attached terminal, as JSON text frames.

use agentbox_contracts::ids::ExecId;
use agentbox_contracts::logs::OutputStream;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The longest time between two pings of the server, in seconds. An operator may choose a shorter
/// one.
pub const MAX_PING_INTERVAL_S: u64 = 30;

/// A message from the client of an attached terminal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"type": "stdin", "data": "ls\n"}))]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum ClientMessage {
    /// Input for the command.
    Stdin {
        /// The text to write to the command's stdin. Send other bytes as a binary frame.
        #[schema(example = "ls\n")]
        data: String,
    },
    /// The new size of the client's terminal.
    Resize {
        /// Columns, in characters, 1 to 4096.
        #[schema(minimum = 1, maximum = 4096, example = 120)]
        cols: u16,
        /// Rows, in characters, 1 to 4096.
        #[schema(minimum = 1, maximum = 4096, example = 40)]
        rows: u16,
    },
    /// A POSIX signal for the command's process group.
    Signal {
        /// The signal's name, with or without `SIG`: `SIGINT` or `INT`. Another one is answered
        /// with an `error` message.
        #[schema(example = "SIGINT")]
        signal: String,
    },
    /// The end of the command's stdin, on a terminal also after an unfinished line.
    Eof {},
    /// Take the input from the client that holds it. Only the input of one client reaches the command.
    TakeInput {},
}

/// The number of bytes of each stream before the output that follows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"stdout": 4096, "stderr": 0}))]
pub struct OutputOffsets {
    /// Bytes of stdout.
    #[schema(example = 4096)]
    pub stdout: u64,
    /// Bytes of stderr.
    #[schema(example = 0)]
    pub stderr: u64,
}

/// A message to the client of an attached terminal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"type": "stdout", "data": "42\n"}))]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ServerMessage {
    /// The command has started. This is the first message.
    Ready {
        /// The id of the execution. With it the session is resumed after a lost connection.
        #[schema(value_type = ExecId)]
        session_id: String,
        /// Where the output that follows begins.
        #[serde(default)]
        offsets: OutputOffsets,
        /// Whether this client holds the input.
        #[serde(default)]
        #[schema(example = true)]
        has_input: bool,
    },
    /// Output of the command. With a terminal, stderr arrives here too.
    Stdout {
        /// The text that was written. Bytes that are not UTF-8 become U+FFFD; `binary=true`
        /// delivers them unchanged.
        #[schema(example = "42\n")]
        data: String,
    },
    /// Error output of the command, without a terminal only.
    Stderr {
        /// The text that was written. Bytes that are not UTF-8 become U+FFFD.
        #[schema(example = "No such file or directory\n")]
        data: String,
    },
    /// Output that is no longer kept, of an execution that drops output.
    Gap {
        /// The stream that it was written to.
        stream: OutputStream,
        /// The number of bytes that are missing.
        #[schema(example = 4096)]
        bytes: u64,
    },
    /// Another client has taken the input. The input of this client is dropped from now on.
    InputTaken {},
    /// This client holds the input from now on: it has taken it, or its holder has left.
    InputGranted {},
    /// The command has ended. This is the last message before the close frame (code 1000).
    Exit {
        /// The exit code. 124: timed out, 126: not executable, 127: not found, 128+N: killed by
        /// signal N.
        #[schema(example = 0)]
        exit_code: i32,
        /// The command was ended because its time was over. Absent: false.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        #[schema(example = false)]
        timed_out: bool,
        /// The kernel ended the command because the environment was out of memory. Absent:
        /// false.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        #[schema(example = false)]
        oom_killed: bool,
    },
    /// A message of the client was refused. The session continues.
    Error {
        /// The reason why the message was refused.
        #[schema(example = "cols: must be 1 to 4096, is `0`")]
        message: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attach_messages_have_the_documented_json() {
        let read = |text: &str| serde_json::from_str::<ClientMessage>(text);
        assert_eq!(
            read(r#"{"type":"stdin","data":"ls\n"}"#).unwrap(),
            ClientMessage::Stdin {
                data: "ls\n".into()
            }
        );
        assert_eq!(read(r#"{"type":"eof"}"#).unwrap(), ClientMessage::Eof {});
        for bad in [
            r#"{"type":"stdin"}"#,
            r#"{"type":"stdin","data":"a","x":1}"#,
            r#"{"type":"resize","cols":-1,"rows":2}"#,
            r#"{"type":"nothing"}"#,
            "[]",
        ] {
            assert!(read(bad).is_err(), "{bad}");
        }
        let exit = ServerMessage::Exit {
            exit_code: 0,
            timed_out: false,
            oom_killed: false,
        };
        assert_eq!(
            serde_json::to_string(&exit).unwrap(),
            r#"{"type":"exit","exit_code":0}"#
        );
    }
}

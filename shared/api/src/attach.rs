//! The messages of an attached terminal, as JSON text frames.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Client to server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum ClientMessage {
    Stdin {
        data: String,
    },
    /// The terminal's size, in characters.
    Resize {
        #[schema(minimum = 1)]
        cols: u16,
        #[schema(minimum = 1)]
        rows: u16,
    },
    /// A POSIX signal by name, to the process group: `SIGINT` or `INT`.
    Signal {
        signal: String,
    },
    /// No more stdin will come.
    Eof {},
}

/// Server to client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ServerMessage {
    /// The command runs.
    Ready {
        session_id: String,
    },
    Stdout {
        data: String,
    },
    Stderr {
        data: String,
    },
    /// The last message before the close frame (code 1000).
    Exit {
        exit_code: i32,
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        timed_out: bool,
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        oom_killed: bool,
    },
    Error {
        message: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_messages_are_the_guides() {
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

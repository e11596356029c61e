//! Reads the messages of an attached client. Pure.
//!
//! serde's own way to read an enum by its tag loses the path of a field that breaks a rule. So the
//! tag is read first, and then the fields of that kind of message.

use agentbox_api::attach::ClientMessage;
use agentbox_contracts::error::Error;
use serde::Deserialize;

use crate::edge::json;

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Kind {
    Stdin,
    Resize,
    Signal,
    Eof,
    TakeInput,
}

#[derive(Deserialize)]
struct Tag {
    #[serde(rename = "type")]
    kind: Kind,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Stdin {
    #[serde(rename = "type")]
    _kind: Kind,
    data: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Resize {
    #[serde(rename = "type")]
    _kind: Kind,
    cols: u16,
    rows: u16,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Signal {
    #[serde(rename = "type")]
    _kind: Kind,
    signal: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Bare {
    #[serde(rename = "type")]
    _kind: Kind,
}

/// Reads the text of one message.
///
/// # Errors
/// When it is not JSON, or a field breaks its rule; the error names the field.
pub(super) fn parse(text: &str) -> Result<ClientMessage, Error> {
    let text = text.as_bytes();
    Ok(match json::parse::<Tag>(text)?.kind {
        Kind::Stdin => {
            let Stdin { data, .. } = json::parse(text)?;
            ClientMessage::Stdin { data }
        }
        Kind::Resize => {
            let Resize { cols, rows, .. } = json::parse(text)?;
            ClientMessage::Resize { cols, rows }
        }
        Kind::Signal => {
            let Signal { signal, .. } = json::parse(text)?;
            ClientMessage::Signal { signal }
        }
        Kind::Eof => {
            json::parse::<Bare>(text)?;
            ClientMessage::Eof {}
        }
        Kind::TakeInput => {
            json::parse::<Bare>(text)?;
            ClientMessage::TakeInput {}
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_message_is_read_as_it_is_written() {
        for message in [
            ClientMessage::Stdin {
                data: "ls\n".into(),
            },
            ClientMessage::Resize { cols: 80, rows: 24 },
            ClientMessage::Signal {
                signal: "INT".into(),
            },
            ClientMessage::Eof {},
            ClientMessage::TakeInput {},
        ] {
            let text = serde_json::to_string(&message).unwrap();
            assert_eq!(parse(&text), Ok(message), "{text}");
        }
        let integral = r#"{"rows":24.0,"type":"resize","cols":80}"#;
        let message = ClientMessage::Resize { cols: 80, rows: 24 };
        assert_eq!(parse(integral), Ok(message));
    }

    #[test]
    fn field_of_the_wrong_kind_is_named() {
        for (text, begin) in [
            (r#"{"data":"a"}"#, "type: is required"),
            (r#"{"type":5}"#, "type: invalid type: integer `5`"),
            (r#"{"type":"exit"}"#, "type: unknown variant `exit`"),
            (r#"{"type":"stdin"}"#, "data: is required"),
            (
                r#"{"type":"stdin","data":7}"#,
                "data: invalid type: integer `7`, expected a string",
            ),
            (
                r#"{"type":"resize","cols":"80","rows":24}"#,
                "cols: invalid type: string \"80\", expected an integer from 0 to 65535",
            ),
            (
                r#"{"type":"resize","cols":70000,"rows":24}"#,
                "cols: invalid value: integer `70000`, expected an integer from 0 to 65535",
            ),
            (
                r#"{"type":"eof","data":""}"#,
                "data: is not a field of this request",
            ),
            (
                r#"["eof"]"#,
                "body: invalid type: sequence, expected an object",
            ),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.message.starts_with(begin), "{text}: {error}");
        }
    }
}

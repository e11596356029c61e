//! The rules for an execution to start, and its message to the box. Pure.

use std::time::Duration;

use agentbox_api::execution::{MAX_KEEP_BYTES, OnFull, StartExecution, Stdin, TerminalSize};
use agentbox_contracts::environment::MAX_TIMEOUT_S;
use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::executions::{self as wire, ExecutionStart, Size, StdinMode};
use agentbox_contracts::ids::ExecId;
use agentbox_contracts::labels::check_labels;

use super::idempotency::is_reserved;
use crate::attach::terminal_size;
use crate::exec::{check_command, check_timeout, check_user, decode_base64};

const MAX_NAME: usize = 128;

fn check_name(text: &str) -> Result<(), Error> {
    let length = text.chars().count();
    if (1..=MAX_NAME).contains(&length) && !text.chars().any(char::is_control) {
        return Ok(());
    }
    Err(Error::value(
        "name",
        format_args!("must be 1 to {MAX_NAME} characters without control characters"),
        text,
    ))
}

fn check_keep_bytes(bytes: u64) -> Result<(), Error> {
    if (1..=MAX_KEEP_BYTES).contains(&bytes) {
        return Ok(());
    }
    Err(Error::value(
        "keep_bytes",
        format_args!("must be 1 to {MAX_KEEP_BYTES}"),
        bytes,
    ))
}

/// The size of a terminal for the box.
///
/// # Errors
/// [`ErrorCode::Validation`] when a side is not 1 to 4096.
pub(super) fn size(size: TerminalSize) -> Result<Size, Error> {
    let size = terminal_size(size.cols, size.rows)?;
    Ok(Size {
        cols: size.cols.into(),
        rows: size.rows.into(),
    })
}

fn tty(tty: TerminalSize) -> Result<Size, Error> {
    size(tty).map_err(|error| Error::new(error.code, format!("tty.{}", error.message)))
}

/// The mode of stdin, and its bytes.
fn stdin(stdin: Option<Stdin>, has_terminal: bool) -> Result<(StdinMode, Vec<u8>), Error> {
    Ok(match stdin {
        None if has_terminal => (StdinMode::Open, Vec::new()),
        None | Some(Stdin::None) => (StdinMode::None, Vec::new()),
        Some(Stdin::Open) => (StdinMode::Open, Vec::new()),
        Some(Stdin::Text(text)) => (StdinMode::Bytes, text.into_bytes()),
        Some(Stdin::Base64(text)) => (StdinMode::Bytes, decode_base64("stdin.base64", &text)?),
    })
}

/// Checks a request, and makes its message.
///
/// # Errors
/// [`ErrorCode::Validation`], naming the field.
pub(super) fn start(id: &ExecId, body: StartExecution) -> Result<ExecutionStart, Error> {
    check_command(&body.command, body.working_dir.as_deref(), &body.env)?;
    if let Some(text) = &body.user {
        check_user(text)?;
    }
    if let Some(text) = &body.name {
        check_name(text)?;
    }
    check_labels("labels", &body.labels)?;
    if let Some(label) = body.labels.keys().find(|label| is_reserved(label)) {
        return Err(Error::value(
            "labels",
            "a key must not begin with `agentbox.io/`",
            label,
        ));
    }
    if let Some(bytes) = body.keep_bytes {
        check_keep_bytes(bytes)?;
    }
    let timeout = body
        .timeout
        .map(|seconds| check_timeout(seconds, MAX_TIMEOUT_S))
        .transpose()?;
    let tty = body.tty.map(tty).transpose()?;
    if tty.is_some() && body.merge_stderr {
        return Err(Error::new(
            ErrorCode::Validation,
            "merge_stderr: must be false with `tty`, whose output is one stream, is `true`",
        ));
    }
    let (mode, stdin_bytes) = stdin(body.stdin, tty.is_some())?;
    let on_full = match body.on_full {
        OnFull::Drop => wire::OnFull::Drop,
        OnFull::Block => wire::OnFull::Block,
    };
    Ok(ExecutionStart {
        id: id.to_string(),
        command: body.command,
        user: body.user.unwrap_or_default(),
        working_dir: body.working_dir.unwrap_or_default(),
        env: body.env.into_iter().collect(),
        stdin: mode.into(),
        stdin_bytes: stdin_bytes.into(),
        tty,
        merge_stderr: body.merge_stderr,
        timeout_ms: timeout.map_or(0, milliseconds),
        name: body.name.unwrap_or_default(),
        labels: body.labels.into_iter().collect(),
        on_full: on_full.into(),
        keep_bytes: body.keep_bytes.unwrap_or(0),
        orphan_grace_ms: 0,
    })
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: serde_json::Value) -> Result<ExecutionStart, Error> {
        start(&ExecId::random(), serde_json::from_value(json).unwrap())
    }

    #[test]
    fn request_has_the_documented_defaults() {
        let message = read(serde_json::json!({"command": ["true"]})).unwrap();
        let expected = ExecutionStart {
            id: message.id.clone(),
            command: vec!["true".into()],
            ..ExecutionStart::default()
        };
        assert_eq!(message, expected);
        assert_eq!(message.stdin(), StdinMode::None);
        assert_eq!(message.on_full(), wire::OnFull::Drop);
        let terminal = serde_json::json!({"command": ["sh"], "tty": {"cols": 80, "rows": 24}});
        assert_eq!(read(terminal).unwrap().stdin(), StdinMode::Open);
    }

    #[test]
    fn every_field_reaches_the_box() {
        let message = read(serde_json::json!({
            "command": ["cat", "-"], "user": "nobody", "working_dir": "/tmp", "env": {"A": "b"},
            "stdin": {"base64": "AP8="}, "merge_stderr": true, "timeout": 1.5, "name": "a b",
            "labels": {"x.io/a": "b"}, "on_full": "block", "keep_bytes": 4096
        }))
        .unwrap();
        assert_eq!(
            (message.user.as_str(), message.working_dir.as_str()),
            ("nobody", "/tmp")
        );
        assert_eq!(message.env["A"], "b");
        assert_eq!(message.stdin(), StdinMode::Bytes);
        assert_eq!(message.stdin_bytes[..], [0, 255]);
        assert!(message.merge_stderr);
        assert_eq!((message.timeout_ms, message.keep_bytes), (1500, 4096));
        assert_eq!(
            (message.name.as_str(), message.labels["x.io/a"].as_str()),
            ("a b", "b")
        );
        assert_eq!(message.on_full(), wire::OnFull::Block);
    }

    #[test]
    fn invalid_request_is_refused_by_field() {
        for (field, value) in [
            ("command", serde_json::json!([])),
            ("command", serde_json::json!([""])),
            ("user", serde_json::json!("")),
            ("user", serde_json::json!("a\u{0}")),
            ("working_dir", serde_json::json!("tmp")),
            ("env", serde_json::json!({"A=": ""})),
            ("stdin", serde_json::json!({"base64": "?"})),
            ("tty", serde_json::json!({"cols": 0, "rows": 24})),
            ("tty", serde_json::json!({"cols": 80, "rows": 5000})),
            ("timeout", serde_json::json!(0.05)),
            ("timeout", serde_json::json!(-1)),
            ("timeout", serde_json::json!(1e300)),
            ("name", serde_json::json!("")),
            ("name", serde_json::json!("a\n")),
            ("labels", serde_json::json!({"-": ""})),
            ("labels", serde_json::json!({"agentbox.io/request": "a"})),
            ("keep_bytes", serde_json::json!(0)),
            ("keep_bytes", serde_json::json!(MAX_KEEP_BYTES + 1)),
        ] {
            let mut body = serde_json::json!({"command": ["true"]});
            body[field] = value.clone();
            let error = read(body).unwrap_err();
            assert_eq!(error.code, ErrorCode::Validation, "{field} {value}");
            assert!(error.message.starts_with(field), "{value}: {error}");
        }
        let both = serde_json::json!({
            "command": ["sh"], "tty": {"cols": 80, "rows": 24}, "merge_stderr": true
        });
        let error = read(both).unwrap_err();
        assert!(error.message.starts_with("merge_stderr: "), "{error}");
    }
}

//! `POST /environments/{id}/exec`: runs one command and returns its output and exit.
//!
//! * I1. When the client disconnects its command is killed: the handler's future is dropped, with
//!   it the session, and the exec-proxy kills the process group.
//! * I2. The output of one command takes at most twice the cap in memory, once for each of stdout
//!   and stderr. The exec-proxy truncates it.
//! * I3. The exit code comes from the box. The gateway never invents one.

mod request;
mod run;

use std::time::Duration;

use agentbox_api::exec::{ExecBody, ExecReply, OutputEncoding};
use agentbox_contracts::audit::AuditAction;
use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::exec::{ExecResult, MAX_CHUNK, ToBox};
use axum::extract::State;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;

use crate::audit;
use crate::box_loss;
use crate::edge::admit::Admitted;
use crate::edge::path::EnvironmentParameter;
use crate::edge::{Answer, Json};
use crate::state::Gateway;
use crate::text;

pub(crate) use request::{command_line, total_size, variables, working_dir};

/// How long the exec-proxy may take to answer the first message of a session.
pub(crate) const OPEN_DEADLINE: Duration = Duration::from_secs(5);
/// Added to the command's own timeout: to start and kill the command, and to receive its output.
const ANSWER_GRACE: Duration = Duration::from_secs(30);

/// Splits stdin into messages of a session.
pub(crate) fn stdin_messages(mut bytes: Bytes) -> Vec<ToBox> {
    // The caller may append the end of stdin.
    let mut messages = Vec::with_capacity(bytes.len().div_ceil(MAX_CHUNK) + 1);
    while !bytes.is_empty() {
        messages.push(ToBox::Stdin(bytes.split_to(bytes.len().min(MAX_CHUNK))));
    }
    messages
}

fn encoded(bytes: Vec<u8>, encoding: OutputEncoding) -> String {
    match encoding {
        OutputEncoding::Utf8 => text::decode_lossy(bytes),
        OutputEncoding::Base64 => STANDARD.encode(bytes),
    }
}

fn reply(result: ExecResult, encoding: OutputEncoding) -> ExecReply {
    ExecReply {
        stdout: encoded(result.stdout, encoding),
        stderr: encoded(result.stderr, encoding),
        exit_code: result.exit.exit_code,
        duration_ms: result.exit.duration_ms,
        timed_out: result.exit.timed_out,
        stdout_truncated: result.stdout_truncated,
        stderr_truncated: result.stderr_truncated,
        oom_killed: result.exit.oom_killed,
    }
}

/// Run a command
///
/// Runs a command in a running environment and answers when it has ended. A command that fails
/// is answered with 200 too: see `exit_code`. If the client disconnects, the command is killed.
/// Processes that a command leaves in the background keep running; their later output is dropped.
#[utoipa::path(post, operation_id = "execInEnvironment", path = "/environments/{id}/exec", tag = "exec",
    params(EnvironmentParameter), request_body = ExecBody,
    responses((status = 200, description = "The result of the command.", body = ExecReply)))]
pub(crate) async fn exec(
    State(gateway): State<Gateway>,
    Admitted(location): Admitted,
    Json(body): Json<ExecBody>,
) -> Answer<axum::Json<ExecReply>> {
    request::check(&body, gateway.config.max_exec_timeout_s)?;
    let location = location.require_running()?;
    audit::accept(&gateway, AuditAction::Exec, &location.id, &body.command).await?;
    let timeout = Duration::from_secs(body.timeout);
    let encoding = body.output_encoding;
    let command = request::command(body, gateway.config.max_exec_output_bytes);
    let running = run::run(&gateway, &location, command);
    let outcome = tokio::time::timeout(timeout + ANSWER_GRACE, running)
        .await
        .map_err(|_| {
            Error::new(
                ErrorCode::Timeout,
                "the result of the command did not arrive in time; the command is killed",
            )
        })?;
    match outcome {
        Ok(result) => Ok(axum::Json(reply(result, encoding))),
        Err(error) => Err(box_loss::with_reason(&gateway, &location.id, error)
            .await
            .into()),
    }
}

#[cfg(test)]
mod tests {
    use agentbox_contracts::exec::Exit;

    use super::*;

    #[test]
    fn invalid_utf8_is_replaced_in_text_and_kept_in_base64() {
        assert_eq!(encoded(vec![b'a', 0xff], OutputEncoding::Utf8), "a\u{fffd}");
        assert_eq!(encoded(vec![b'a', 0xff], OutputEncoding::Base64), "Yf8=");
    }

    #[test]
    fn reply_has_the_documented_fields() {
        let result = ExecResult {
            stdout: b"Hello, World!\n".to_vec(),
            exit: Exit {
                duration_ms: 125,
                ..Exit::default()
            },
            ..ExecResult::default()
        };
        let answer = serde_json::to_value(reply(result, OutputEncoding::Utf8)).unwrap();
        for (field, value) in [
            ("stdout", serde_json::json!("Hello, World!\n")),
            ("stderr", serde_json::json!("")),
            ("exit_code", serde_json::json!(0)),
            ("duration_ms", serde_json::json!(125)),
            ("timed_out", serde_json::json!(false)),
        ] {
            assert_eq!(answer[field], value, "{field}");
        }
    }
}

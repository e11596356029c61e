//! `POST /environments/{id}/exec`: one command, its output, its end.
//!
//! * I1. The client that goes takes its command with it: the handler's future is dropped,
//!   with it the session, and the exec-proxy kills the process group.
//! * I2. Of one command no more is held than both caps together.
//! * I3. An exit code is the box's word, never made up here.

mod request;
mod run;

use std::time::Duration;

use agentbox_api::exec::{ExecBody, ExecReply, OutputEncoding};
use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::exec::ExecResult;
use axum::extract::State;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::edge::admit::Admitted;
use crate::edge::{Answer, Json};
use crate::lost;
use crate::state::Gateway;
use crate::text;

pub(crate) use request::command_line;

/// How long the exec-proxy may take to say its first word.
pub(crate) const OPEN_DEADLINE: Duration = Duration::from_secs(5);
/// Beyond the command's own timeout: for starting and killing it, and for what it said to
/// arrive.
const ANSWER_GRACE: Duration = Duration::from_secs(30);

fn encoded(bytes: Vec<u8>, encoding: OutputEncoding) -> String {
    match encoding {
        OutputEncoding::Utf8 => text::whole(bytes),
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

/// A command that fails is still 200. 409 when the environment does not run, 502 when the
/// box is lost meanwhile.
#[utoipa::path(post, operation_id = "execInEnvironment", path = "/api/v1/environments/{id}/exec", tag = "exec",
    params(("id" = String, Path, description = "The environment")), request_body = ExecBody,
    responses((status = 200, description = "How the command ended", body = ExecReply)))]
pub(crate) async fn exec(
    State(gateway): State<Gateway>,
    Admitted(place): Admitted,
    Json(body): Json<ExecBody>,
) -> Answer<axum::Json<ExecReply>> {
    request::check(&body, gateway.config.max_exec_timeout_s)?;
    let place = place.running()?;
    let timeout = Duration::from_secs(body.timeout);
    let encoding = body.output_encoding;
    let command = request::command(body, gateway.config.max_exec_output_bytes);
    let running = run::run(&gateway, &place, command);
    let outcome = tokio::time::timeout(timeout + ANSWER_GRACE, running)
        .await
        .map_err(|_| {
            Error::new(
                ErrorCode::Timeout,
                "the command's end did not arrive in time",
            )
        })?;
    match outcome {
        Ok(result) => Ok(axum::Json(reply(result, encoding))),
        Err(error) => Err(lost::explained(&gateway, &place.id, error).await.into()),
    }
}

#[cfg(test)]
mod tests {
    use agentbox_contracts::exec::Exit;

    use super::*;

    #[test]
    fn bytes_are_replaced_in_text_and_exact_in_base64() {
        assert_eq!(encoded(vec![b'a', 0xff], OutputEncoding::Utf8), "a\u{fffd}");
        assert_eq!(encoded(vec![b'a', 0xff], OutputEncoding::Base64), "Yf8=");
    }

    #[test]
    fn the_answer_is_the_guides() {
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

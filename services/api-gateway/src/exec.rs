//! `POST /environments/{id}/exec`: one command, its output, its end.

use std::time::Duration;

use agentbox_api::error::ErrorBody;
use agentbox_api::exec::{ExecBody, ExecReply, OutputEncoding};
use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::exec::{ExecRequest, ExecResult, FromBox, OPEN, Open, OpenKind, ToBox};
use agentbox_contracts::ids::{EnvironmentId, ExecId};
use agentbox_contracts::subjects;
use axum::extract::State;
use base64::Engine as _;

use crate::authorize::Action;
use crate::edge::{Answer, Caller, Json, Path};
use crate::lookup::{self, Place};
use crate::state::Gateway;

/// How long the exec-proxy may take to say its first word.
pub(crate) const OPEN_DEADLINE: Duration = Duration::from_secs(5);
/// Beyond the command's own timeout, for killing it and sending what it said.
const ANSWER_GRACE: Duration = Duration::from_secs(30);
const MAX_ARGUMENTS: usize = 4096;

fn check(body: &ExecBody, max_timeout_s: u64) -> Result<(), Error> {
    if body.command.is_empty() || body.command[0].is_empty() {
        return Err(Error::field("command", "must name a program"));
    }
    if body.command.len() > MAX_ARGUMENTS {
        return Err(Error::field(
            "command",
            format!("has more than {MAX_ARGUMENTS} parts"),
        ));
    }
    if let Some(part) = body.command.iter().find(|part| part.contains('\0')) {
        return Err(Error::field(
            "command",
            format!("a part holds a NUL character: {part:?}"),
        ));
    }
    if body.timeout == 0 || body.timeout > max_timeout_s {
        return Err(Error::field(
            "timeout",
            format!("must be 1 to {max_timeout_s} seconds, is {}", body.timeout),
        ));
    }
    for (name, value) in &body.env {
        if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
            return Err(Error::field(
                "env",
                format!("`{name}` is not a variable's name and value"),
            ));
        }
    }
    if body
        .working_dir
        .as_ref()
        .is_some_and(|dir| !dir.starts_with('/') || dir.contains('\0'))
    {
        return Err(Error::field("working_dir", "must be an absolute path"));
    }
    Ok(())
}

fn text(bytes: Vec<u8>, encoding: OutputEncoding) -> String {
    match encoding {
        OutputEncoding::Utf8 => String::from_utf8(bytes)
            .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned()),
        OutputEncoding::Base64 => base64::engine::general_purpose::STANDARD.encode(bytes),
    }
}

fn reply(result: ExecResult, encoding: OutputEncoding) -> ExecReply {
    ExecReply {
        stdout: text(result.stdout, encoding),
        stderr: text(result.stderr, encoding),
        exit_code: result.exit.exit_code,
        duration_ms: result.exit.duration_ms,
        timed_out: result.exit.timed_out,
        stdout_truncated: result.stdout_truncated,
        stderr_truncated: result.stderr_truncated,
        oom_killed: result.exit.oom_killed,
    }
}

/// Runs `request` and collects its whole answer. Dropping the future kills the command.
async fn run(
    gateway: &Gateway,
    id: EnvironmentId,
    place: Place,
    request: ExecRequest,
) -> Result<ExecResult, Error> {
    let open = Open {
        environment: id,
        address: place.address,
        status: place.status,
        kind: OpenKind::Exec(request),
    };
    let subject = subjects::exec_rpc(&place.cluster, OPEN);
    let mut session = gateway
        .bus
        .open_session::<ToBox, FromBox>(subject, &open, OPEN_DEADLINE)
        .await?;
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    while let Some(message) = session.recv().await? {
        match message {
            FromBox::Stdout(bytes) => stdout.extend_from_slice(&bytes),
            FromBox::Stderr(bytes) => stderr.extend_from_slice(&bytes),
            FromBox::Result(mut result) => {
                if result.stdout.is_empty() {
                    result.stdout = stdout;
                }
                if result.stderr.is_empty() {
                    result.stderr = stderr;
                }
                return Ok(result);
            }
            _ => return Err(Error::internal()),
        }
    }
    Err(Error::new(
        ErrorCode::BoxLost,
        "the command's end is not known",
    ))
}

#[utoipa::path(post, path = "/api/v1/environments/{id}/exec", tag = "exec",
    params(("id" = String, Path)), request_body = ExecBody,
    responses((status = 200, body = ExecReply), (status = "default", body = ErrorBody)))]
pub(crate) async fn exec(
    State(gateway): State<Gateway>,
    Caller(principal): Caller,
    Path(id): Path<EnvironmentId>,
    Json(body): Json<ExecBody>,
) -> Answer<axum::Json<ExecReply>> {
    let place = lookup::running(&gateway, &principal, Action::Exec, &id).await?;
    check(&body, gateway.config.max_exec_timeout_s)?;
    let timeout = Duration::from_secs(body.timeout);
    let request = ExecRequest {
        id: ExecId::random(),
        command: body.command,
        working_dir: body.working_dir,
        env: body.env,
        stdin: body.stdin.map(String::into_bytes),
        stdin_follows: false,
        timeout_ms: body.timeout.saturating_mul(1000),
        max_output_bytes: gateway.config.max_exec_output_bytes,
    };
    let result = tokio::time::timeout(timeout + ANSWER_GRACE, run(&gateway, id, place, request))
        .await
        .map_err(|_| {
            Error::new(
                ErrorCode::Timeout,
                "the command's end did not arrive in time",
            )
        })??;
    Ok(axum::Json(reply(result, body.output_encoding)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(command: &[&str]) -> ExecBody {
        ExecBody {
            command: command.iter().map(|part| (*part).to_owned()).collect(),
            timeout: 30,
            ..ExecBody::default()
        }
    }

    #[test]
    fn what_cannot_be_run_is_refused_by_field() {
        assert!(check(&body(&["true"]), 3600).is_ok());
        for (bad, field) in [
            (body(&[]), "command"),
            (body(&[""]), "command"),
            (body(&["a\0b"]), "command"),
            (
                ExecBody {
                    timeout: 0,
                    ..body(&["a"])
                },
                "timeout",
            ),
            (
                ExecBody {
                    timeout: 3601,
                    ..body(&["a"])
                },
                "timeout",
            ),
            (
                ExecBody {
                    working_dir: Some("tmp".into()),
                    ..body(&["a"])
                },
                "working_dir",
            ),
            (
                ExecBody {
                    env: [("A=B".to_owned(), String::new())].into(),
                    ..body(&["a"])
                },
                "env",
            ),
        ] {
            let error = check(&bad, 3600).unwrap_err();
            assert!(error.message.starts_with(field), "{error}");
        }
    }

    #[test]
    fn bytes_are_replaced_in_text_and_exact_in_base64() {
        assert_eq!(text(vec![b'a', 0xff], OutputEncoding::Utf8), "a\u{fffd}");
        assert_eq!(text(vec![b'a', 0xff], OutputEncoding::Base64), "Yf8=");
    }
}

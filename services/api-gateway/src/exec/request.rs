//! The rules for a command, and its message to the exec-proxy. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use agentbox_api::exec::ExecBody;
use agentbox_api::seconds::Seconds;
use agentbox_contracts::command::{
    MAX_ARGUMENT_BYTES, MAX_ARGUMENTS, MAX_EXEC_BYTES, check_variable_size, is_variable_name,
    size_on_stack,
};
use agentbox_contracts::error::{Error, shortened};
use agentbox_contracts::exec::ExecRequest;
use agentbox_contracts::ids::ExecId;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// The largest stdin, in bytes, that is sent with the command. A larger one is sent after it.
const MAX_INLINE_STDIN: usize = 64 * 1024;

/// The longest name of a user, with a group, in bytes.
const MAX_USER: usize = 256;
/// The shortest timeout of a command.
const MIN_TIMEOUT: Duration = Duration::from_millis(100);

/// Checks a timeout of at most `max_s` seconds.
///
/// # Errors
/// [`agentbox_contracts::error::ErrorCode::Validation`]
pub(crate) fn check_timeout(seconds: Seconds, max_s: u64) -> Result<Duration, Error> {
    seconds
        .duration()
        .filter(|timeout| (MIN_TIMEOUT..=Duration::from_secs(max_s)).contains(timeout))
        .ok_or_else(|| {
            Error::value(
                "timeout",
                format_args!("must be 0.1 to {max_s} seconds"),
                seconds,
            )
        })
}

/// Checks the name of the user who runs a command. The box knows which users it has.
///
/// # Errors
/// [`agentbox_contracts::error::ErrorCode::Validation`]
pub(crate) fn check_user(text: &str) -> Result<(), Error> {
    if (1..=MAX_USER).contains(&text.len()) && !text.chars().any(char::is_control) {
        return Ok(());
    }
    Err(Error::value(
        "user",
        format_args!(
            "must be a name or uid, and optionally `:` with a group or gid, 1 to {MAX_USER} bytes"
        ),
        text,
    ))
}

/// Reads bytes in base64.
///
/// # Errors
/// [`agentbox_contracts::error::ErrorCode::Validation`]
pub(crate) fn decode_base64(field: &str, text: &str) -> Result<Vec<u8>, Error> {
    let decoded = STANDARD.decode(text);
    decoded.map_err(|_| Error::value(field, "must be base64 (RFC 4648, section 4)", text))
}

/// Checks a command with its directory and its variables.
///
/// # Errors
/// [`agentbox_contracts::error::ErrorCode::Validation`], naming the field.
pub(crate) fn check_command(
    command: &[String],
    directory: Option<&str>,
    env: &BTreeMap<String, String>,
) -> Result<(), Error> {
    check_command_line("command", command)?;
    if command.is_empty() {
        return Err(Error::field(
            "command",
            "must have at least one element, the program; is empty",
        ));
    }
    if let Some(directory) = directory {
        check_working_dir(directory)?;
    }
    check_variables(env)?;
    check_total_size(command, env)
}

/// Checks a request, except the rules that its JSON types enforce. Returns its timeout.
///
/// # Errors
/// [`agentbox_contracts::error::ErrorCode::Validation`], naming the field.
pub(crate) fn check(body: &ExecBody, max_timeout_s: u64) -> Result<Duration, Error> {
    check_command(&body.command, body.working_dir.as_deref(), &body.env)?;
    if let Some(text) = &body.user {
        check_user(text)?;
    }
    if body.stdin.is_some() && body.stdin_base64.is_some() {
        return Err(Error::field(
            "stdin_base64",
            "must be absent with `stdin`, is given",
        ));
    }
    check_timeout(body.timeout, max_timeout_s)
}

/// Checks a working directory.
///
/// # Errors
/// [`agentbox_contracts::error::ErrorCode::Validation`], naming the field.
pub(crate) fn check_working_dir(directory: &str) -> Result<(), Error> {
    if !directory.starts_with('/') || directory.contains('\0') || directory.len() > 4096 {
        return Err(Error::value(
            "working_dir",
            "must be an absolute path of at most 4096 bytes without NUL",
            directory,
        ));
    }
    Ok(())
}

/// Checks the environment variables of a command.
///
/// # Errors
/// [`agentbox_contracts::error::ErrorCode::Validation`], naming the variable.
pub(crate) fn check_variables(env: &BTreeMap<String, String>) -> Result<(), Error> {
    for (name, value) in env {
        let field = || format!("env.{}", shortened(name));
        if !is_variable_name(name) {
            return Err(Error::field(
                &field(),
                "is not the name of a variable: it must not be empty or contain `=` or NUL",
            ));
        }
        if value.contains('\0') {
            return Err(Error::field(&field(), "must not contain NUL"));
        }
        check_variable_size(name, value).map_err(|rule| Error::field(&field(), rule))?;
    }
    Ok(())
}

/// The bytes that the kernel needs for a command and its environment variables.
pub(crate) fn command_size<'a>(
    command: &[String],
    env: impl Iterator<Item = (&'a String, &'a String)>,
) -> usize {
    let variables: usize = env
        .map(|(name, value)| size_on_stack(name.len() + 1 + value.len()))
        .sum();
    let arguments: usize = command.iter().map(|part| size_on_stack(part.len())).sum();
    variables + arguments
}

/// Checks the size of a command and its environment variables together.
///
/// # Errors
/// [`agentbox_contracts::error::ErrorCode::Validation`].
pub(crate) fn check_total_size(
    command: &[String],
    env: &BTreeMap<String, String>,
) -> Result<(), Error> {
    let size = command_size(command, env.iter());
    if size > MAX_EXEC_BYTES {
        return Err(Error::field(
            "command",
            format_args!(
                "must have, together with env, at most {MAX_EXEC_BYTES} bytes, each argument and \
                 variable counted with its NUL and a pointer of 8 bytes; has {size}"
            ),
        ));
    }
    Ok(())
}

/// Checks a program and its arguments. An empty list is accepted; the caller checks it.
///
/// # Errors
/// [`agentbox_contracts::error::ErrorCode::Validation`], naming the element.
pub(crate) fn check_command_line(field: &str, command: &[String]) -> Result<(), Error> {
    if command.first().is_some_and(String::is_empty) {
        return Err(Error::field(
            &format!("{field}[0]"),
            "must name a program, is empty",
        ));
    }
    if command.len() > MAX_ARGUMENTS {
        return Err(Error::field(
            field,
            format_args!(
                "must have at most {MAX_ARGUMENTS} elements, has {}",
                command.len()
            ),
        ));
    }
    for (index, part) in command.iter().enumerate() {
        let element = || format!("{field}[{index}]");
        if part.contains('\0') {
            return Err(Error::field(&element(), "must not contain NUL"));
        }
        if part.len() >= MAX_ARGUMENT_BYTES {
            return Err(Error::field(
                &element(),
                format_args!(
                    "must be shorter than {MAX_ARGUMENT_BYTES} bytes, has {}",
                    part.len()
                ),
            ));
        }
    }
    Ok(())
}

/// A command for the exec-proxy.
pub(super) struct Command {
    pub request: ExecRequest,
    /// The stdin that is sent after the request.
    pub stdin: Option<Vec<u8>>,
}

/// Makes the message of a request that [`check`] has accepted.
///
/// # Errors
/// [`agentbox_contracts::error::ErrorCode::Validation`] when `stdin_base64` is not base64.
pub(super) fn command(
    body: ExecBody,
    timeout: Duration,
    max_output_bytes: u64,
) -> Result<Command, Error> {
    let stdin = match body.stdin_base64 {
        Some(text) => Some(decode_base64("stdin_base64", &text)?),
        None => body.stdin.map(String::into_bytes),
    };
    let (inline, later) = match stdin {
        Some(bytes) if bytes.len() > MAX_INLINE_STDIN => (None, Some(bytes)),
        small => (small, None),
    };
    Ok(Command {
        request: ExecRequest {
            id: ExecId::random(),
            command: body.command,
            working_dir: body.working_dir,
            env: body.env,
            user: body.user,
            merge_stderr: body.merge_stderr,
            stream: false,
            stdin: inline,
            stdin_follows: later.is_some(),
            timeout_ms: u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX),
            max_output_bytes,
        },
        stdin: later,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(command: &[&str]) -> ExecBody {
        ExecBody {
            command: command.iter().map(|part| (*part).to_owned()).collect(),
            timeout: Seconds(30.0),
            ..ExecBody::default()
        }
    }

    fn with_env(name: &str, value: &str) -> ExecBody {
        ExecBody {
            env: [(name.to_owned(), value.to_owned())].into(),
            ..body(&["a"])
        }
    }

    fn with_timeout(seconds: f64) -> ExecBody {
        ExecBody {
            timeout: Seconds(seconds),
            ..body(&["a"])
        }
    }

    fn with_directory(directory: &str) -> ExecBody {
        ExecBody {
            working_dir: Some(directory.to_owned()),
            ..body(&["a"])
        }
    }

    #[test]
    fn invalid_command_is_refused_by_field() {
        let long = "x".repeat(MAX_ARGUMENT_BYTES);
        let much = vec![&long[1..]; MAX_EXEC_BYTES / MAX_ARGUMENT_BYTES];
        let both = ExecBody {
            stdin: Some(String::new()),
            stdin_base64: Some(String::new()),
            ..body(&["a"])
        };
        let with_user = |user: &str| ExecBody {
            user: Some(user.to_owned()),
            ..body(&["a"])
        };
        let accepted = Ok(Duration::from_secs(30));
        assert_eq!(check(&body(&["sh", "-c", ""]), 3600), accepted);
        assert_eq!(check(&with_env("A.b-c", ""), 3600), accepted);
        assert_eq!(check(&with_env("A", &long[3..]), 3600), accepted);
        assert_eq!(check(&body(&much[1..]), 3600), accepted);
        assert_eq!(check(&with_user("nobody:0"), 3600), accepted);
        let short = check(&with_timeout(0.1), 3600);
        assert_eq!(short, Ok(Duration::from_millis(100)));
        for (bad, field) in [
            (body(&[]), "command: "),
            (body(&[""]), "command[0]: "),
            (body(&["a", "b\0"]), "command[1]: "),
            (body(&["a", &long]), "command[1]: "),
            (body(&much), "command: "),
            (body(&vec!["a"; MAX_ARGUMENTS + 1]), "command: "),
            (with_timeout(0.0), "timeout: "),
            (with_timeout(0.05), "timeout: "),
            (with_timeout(-1.0), "timeout: "),
            (with_timeout(3600.5), "timeout: "),
            (with_timeout(f64::NAN), "timeout: "),
            (with_user(""), "user: "),
            (with_user("a\nb"), "user: "),
            (both, "stdin_base64: "),
            (with_directory("tmp"), "working_dir: "),
            (with_directory(""), "working_dir: "),
            (with_env("A=B", ""), "env.A=B: "),
            (with_env("", ""), "env.: "),
            (with_env("A", "\0"), "env.A: "),
            (with_env("A", &long), "env.A: "),
        ] {
            let error = check(&bad, 3600).unwrap_err();
            assert!(error.message.starts_with(field), "{error}");
        }
    }

    fn message(body: ExecBody) -> Result<Command, Error> {
        command(body, Duration::from_millis(1500), 1)
    }

    #[test]
    fn small_stdin_is_sent_with_the_command() {
        let with = |length: usize| {
            let stdin = Some("x".repeat(length));
            let body = ExecBody {
                stdin,
                ..body(&["cat"])
            };
            message(body).unwrap()
        };
        let small = with(MAX_INLINE_STDIN);
        assert!(small.request.stdin.is_some() && !small.request.stdin_follows);
        assert!(small.stdin.is_none());
        let large = with(MAX_INLINE_STDIN + 1);
        assert!(large.request.stdin.is_none() && large.request.stdin_follows);
        assert_eq!(large.stdin.unwrap().len(), MAX_INLINE_STDIN + 1);
    }

    #[test]
    fn stdin_in_base64_is_decoded() {
        let with = |text: &str| {
            message(ExecBody {
                stdin_base64: Some(text.to_owned()),
                merge_stderr: true,
                user: Some("nobody".to_owned()),
                ..body(&["cat"])
            })
        };
        let request = with("AP8=").ok().unwrap().request;
        assert_eq!(request.stdin, Some(vec![0, 255]));
        assert!(request.merge_stderr && !request.stream);
        assert_eq!(request.user.as_deref(), Some("nobody"));
        assert_eq!(request.timeout_ms, 1500);
        let error = with("AP8").err().unwrap();
        assert!(error.message.starts_with("stdin_base64: "), "{error}");
    }
}

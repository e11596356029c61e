//! The rules for a command, and its message to the exec-proxy. Pure.

use std::collections::BTreeMap;

use agentbox_api::exec::ExecBody;
use agentbox_contracts::command::{
    MAX_ARGUMENT_BYTES, MAX_ARGUMENTS, MAX_EXEC_BYTES, check_variable_size, is_variable_name,
};
use agentbox_contracts::error::{Error, shortened};
use agentbox_contracts::exec::ExecRequest;
use agentbox_contracts::ids::ExecId;

/// The largest stdin, in bytes, that is sent with the command. A larger one is sent after it.
const MAX_INLINE_STDIN: usize = 64 * 1024;

/// Checks a request, except the rules that its JSON types enforce.
///
/// # Errors
/// [`agentbox_contracts::error::ErrorCode::Validation`], naming the field.
pub(crate) fn check(body: &ExecBody, max_timeout_s: u64) -> Result<(), Error> {
    command_line("command", &body.command)?;
    if body.command.is_empty() {
        return Err(Error::field(
            "command",
            "must have at least one element, the program; is empty",
        ));
    }
    if !(1..=max_timeout_s).contains(&body.timeout) {
        return Err(Error::field(
            "timeout",
            format_args!("must be 1 to {max_timeout_s} seconds, is {}", body.timeout),
        ));
    }
    if let Some(directory) = &body.working_dir {
        working_dir(directory)?;
    }
    variables(&body.env)?;
    total_size(&body.command, &body.env)
}

/// Checks a working directory.
///
/// # Errors
/// [`agentbox_contracts::error::ErrorCode::Validation`], naming the field.
pub(crate) fn working_dir(directory: &str) -> Result<(), Error> {
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
pub(crate) fn variables(env: &BTreeMap<String, String>) -> Result<(), Error> {
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

/// Checks the size of a command and its environment variables together.
///
/// # Errors
/// [`agentbox_contracts::error::ErrorCode::Validation`].
pub(crate) fn total_size(command: &[String], env: &BTreeMap<String, String>) -> Result<(), Error> {
    let variables: usize = env
        .iter()
        .map(|(name, value)| name.len() + value.len() + 2)
        .sum();
    let arguments: usize = command.iter().map(|part| part.len() + 1).sum();
    if variables + arguments > MAX_EXEC_BYTES {
        return Err(Error::field(
            "command",
            format_args!(
                "must have, together with env, at most {MAX_EXEC_BYTES} bytes, has {}",
                variables + arguments
            ),
        ));
    }
    Ok(())
}

/// Checks a program and its arguments. An empty list is accepted; the caller checks it.
///
/// # Errors
/// [`agentbox_contracts::error::ErrorCode::Validation`], naming the element.
pub(crate) fn command_line(field: &str, command: &[String]) -> Result<(), Error> {
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

pub(super) fn command(body: ExecBody, max_output_bytes: u64) -> Command {
    let stdin = body.stdin.map(String::into_bytes);
    let (inline, later) = match stdin {
        Some(bytes) if bytes.len() > MAX_INLINE_STDIN => (None, Some(bytes)),
        small => (small, None),
    };
    Command {
        request: ExecRequest {
            id: ExecId::random(),
            command: body.command,
            working_dir: body.working_dir,
            env: body.env,
            stdin: inline,
            stdin_follows: later.is_some(),
            timeout_ms: body.timeout.saturating_mul(1000),
            max_output_bytes,
        },
        stdin: later,
    }
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

    fn with_env(name: &str, value: &str) -> ExecBody {
        ExecBody {
            env: [(name.to_owned(), value.to_owned())].into(),
            ..body(&["a"])
        }
    }

    fn with_timeout(timeout: u64) -> ExecBody {
        ExecBody {
            timeout,
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
        let much = ["sh", &long[1..], &long[1..], &long[1..]];
        assert_eq!(check(&body(&["sh", "-c", ""]), 3600), Ok(()));
        assert_eq!(check(&with_env("A.b-c", ""), 3600), Ok(()));
        assert_eq!(check(&with_env("A", &long[3..]), 3600), Ok(()));
        for (bad, field) in [
            (body(&[]), "command: "),
            (body(&[""]), "command[0]: "),
            (body(&["a", "b\0"]), "command[1]: "),
            (body(&["a", &long]), "command[1]: "),
            (body(&much), "command: "),
            (body(&vec!["a"; MAX_ARGUMENTS + 1]), "command: "),
            (with_timeout(0), "timeout: "),
            (with_timeout(3601), "timeout: "),
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

    #[test]
    fn small_stdin_is_sent_with_the_command() {
        let with = |length: usize| {
            let stdin = Some("x".repeat(length));
            command(
                ExecBody {
                    stdin,
                    ..body(&["cat"])
                },
                1,
            )
        };
        let small = with(MAX_INLINE_STDIN);
        assert!(small.request.stdin.is_some() && !small.request.stdin_follows);
        assert!(small.stdin.is_none());
        let large = with(MAX_INLINE_STDIN + 1);
        assert!(large.request.stdin.is_none() && large.request.stdin_follows);
        assert_eq!(large.stdin.unwrap().len(), MAX_INLINE_STDIN + 1);
    }
}

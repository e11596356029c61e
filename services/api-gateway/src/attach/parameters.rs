//! The query parameters of an attach. Pure.

use std::collections::BTreeMap;

use agentbox_contracts::error::{Error, shortened};
use agentbox_contracts::exec::TerminalSize;
use agentbox_contracts::executions::Offsets;
use agentbox_contracts::ids::ExecId;
use serde::Deserialize;
use utoipa::IntoParams;

use crate::exec::{
    check_command_line, check_total_size, check_user, check_variables, check_working_dir,
};
use crate::executions::parse_position;

const MAX_SIDE: u16 = 4096;
const DEFAULT_SIZE: TerminalSize = TerminalSize { cols: 80, rows: 24 };

/// The parameters, validated.
#[derive(Debug, PartialEq)]
pub(super) struct Parameters {
    pub target: Target,
    pub binary: bool,
}

/// What the socket is connected to.
#[derive(Debug, PartialEq)]
pub(super) enum Target {
    Start(Start),
    Resume(Resume),
}

/// A new command.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Start {
    /// The size of the terminal; `None`: no terminal.
    pub tty: Option<TerminalSize>,
    /// The program and its arguments; empty: the image's shell.
    pub command: Vec<String>,
    /// `None`: the environment's.
    pub user: Option<String>,
    /// `None`: the image's.
    pub working_dir: Option<String>,
    /// Added to the variables of the environment.
    pub env: BTreeMap<String, String>,
}

/// A command whose connection was lost.
#[derive(Debug, PartialEq)]
pub(super) struct Resume {
    pub id: ExecId,
    pub from: Option<Offsets>,
    /// The size of the client's terminal, if it gave one.
    pub size: Option<TerminalSize>,
}

/// The documentation of the query.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[allow(
    dead_code,
    reason = "describes parameters that `Parameters::read` parses"
)]
struct Documented {
    /// Give the command a terminal. Without one, stdout and stderr are separate. Default: true.
    #[param(default = true, example = true)]
    tty: Option<bool>,
    /// The terminal's columns, in characters, 1 to 4096. Default: 80.
    #[param(minimum = 1, maximum = 4096, default = 80, example = 120)]
    cols: Option<u16>,
    /// The terminal's rows, in characters, 1 to 4096. Default: 24.
    #[param(minimum = 1, maximum = 4096, default = 24, example = 40)]
    rows: Option<u16>,
    /// The program and its arguments: one parameter each, in order. Default: the image's shell,
    /// bash or else sh, with and without a terminal.
    #[param(example = json!(["bash", "-l"]))]
    command: Option<Vec<String>>,
    /// Environment variables, `NAME=value`, one parameter each, added to those of the environment.
    /// A name and its value have together at most 131070 bytes. Default: none.
    #[param(example = json!(["MY_VAR=my-value"]))]
    env: Option<Vec<String>>,
    /// The working directory, an absolute path of at most 4096 bytes. Default: the image's. If it does
    /// not exist or cannot be entered, the handshake is refused with 400, `working_dir_not_found`.
    #[param(example = "/tmp")]
    working_dir: Option<String>,
    /// The user who runs the command: a name or uid, and optionally `:` with a group or gid. Default: the
    /// environment's user.
    #[param(example = "nobody")]
    user: Option<String>,
    /// Resume this session, whose connection was lost at most 60 seconds ago: the `session_id` of its
    /// `ready` message. Not with `tty`, `command`, `env`, `working_dir` or `user`. Default: start a command.
    #[param(example = "exec-0123456789abcdef")]
    session_id: Option<String>,
    /// With `session_id`: the bytes of stdout and of stderr that the client has, `<stdout>-<stderr>`. The
    /// output continues there. Default: the last screenful of a terminal, else all kept output.
    #[param(example = "4096-0")]
    from: Option<String>,
    /// Send output as binary frames instead of text messages: one byte that names the stream (1:
    /// stdout, 2: stderr), then the output, byte for byte. Default: false.
    #[param(default = false, example = false)]
    binary: Option<bool>,
    /// A single-use ticket for `attach`, instead of an Authorization header.
    #[param(example = "ticket_0123456789abcdef0123456789abcdef")]
    ticket: Option<String>,
}

impl IntoParams for Parameters {
    fn into_params(
        parameter_in: impl Fn() -> Option<utoipa::openapi::path::ParameterIn>,
    ) -> Vec<utoipa::openapi::path::Parameter> {
        Documented::into_params(parameter_in)
    }
}

fn parse_flag(name: &str, value: &str) -> Result<bool, Error> {
    match value {
        "true" => Ok(true),
        "false" => Ok(false),
        other => Err(Error::value(name, "must be true or false", other)),
    }
}

fn parse_side(name: &str, value: &str) -> Result<u16, Error> {
    match value.parse() {
        Ok(side @ 1..=MAX_SIDE) => Ok(side),
        _ => Err(Error::value(
            name,
            format_args!("must be 1 to {MAX_SIDE}"),
            value,
        )),
    }
}

/// Splits `NAME=value`.
fn parse_variable(text: &str) -> Result<(String, String), Error> {
    match text.split_once('=') {
        Some((name, value)) => Ok((name.to_owned(), value.to_owned())),
        None => Err(Error::value("env", "must be NAME=value", text)),
    }
}

/// Validates the size of a terminal.
///
/// # Errors
/// When a side is not 1 to [`MAX_SIDE`].
pub(crate) fn size(cols: u16, rows: u16) -> Result<TerminalSize, Error> {
    Ok(TerminalSize {
        cols: parse_side("cols", &cols.to_string())?,
        rows: parse_side("rows", &rows.to_string())?,
    })
}

impl Parameters {
    /// Reads and validates the query.
    ///
    /// # Errors
    /// [`agentbox_contracts::error::ErrorCode::Validation`], naming the parameter.
    pub(super) fn read(query: &str) -> Result<Self, Error> {
        let (mut tty, mut binary) = (true, false);
        let TerminalSize { mut cols, mut rows } = DEFAULT_SIZE;
        let (mut start, mut session, mut from) = (Start::default(), None, None);
        let mut seen = std::collections::BTreeSet::new();
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            match name.as_ref() {
                "command" => start.command.push(value.into_owned()),
                "env" => {
                    let (name, value) = parse_variable(&value)?;
                    if start.env.insert(name.clone(), value).is_some() {
                        return Err(Error::field(
                            &format!("env.{}", shortened(&name)),
                            "must be given once, is given twice",
                        ));
                    }
                }
                "working_dir" => {
                    check_working_dir(&value)?;
                    start.working_dir = Some(value.into_owned());
                }
                "user" => {
                    check_user(&value)?;
                    start.user = Some(value.into_owned());
                }
                "tty" => tty = parse_flag("tty", &value)?,
                "cols" => cols = parse_side("cols", &value)?,
                "rows" => rows = parse_side("rows", &value)?,
                "binary" => binary = parse_flag("binary", &value)?,
                "session_id" => session = Some(parse_session_id(&value)?),
                "from" => from = Some(parse_position("from", &value)?),
                // It was read with the credentials.
                "ticket" => {}
                other => {
                    return Err(Error::field(
                        &shortened(other),
                        "is not a parameter of this request",
                    ));
                }
            }
            let may_repeat = matches!(name.as_ref(), "command" | "env");
            if !seen.insert(name.clone()) && !may_repeat {
                return Err(Error::field(&name, "must be given once, is given twice"));
            }
        }
        let size = TerminalSize { cols, rows };
        let target = match session {
            Some(id) => {
                for name in ["tty", "command", "env", "working_dir", "user"] {
                    if seen.contains(name) {
                        return Err(Error::field(
                            name,
                            "must be absent with `session_id`, is given",
                        ));
                    }
                }
                let is_sized = seen.contains("cols") || seen.contains("rows");
                let size = is_sized.then_some(size);
                Target::Resume(Resume { id, from, size })
            }
            None if from.is_some() => {
                return Err(Error::field(
                    "from",
                    "must be absent without `session_id`, is given",
                ));
            }
            None => {
                check_command_line("command", &start.command)?;
                check_variables(&start.env)?;
                check_total_size(&start.command, &start.env)?;
                start.tty = tty.then_some(size);
                Target::Start(start)
            }
        };
        Ok(Self { target, binary })
    }
}

/// Parses the id of a session. Text that is not an id names none.
fn parse_session_id(text: &str) -> Result<ExecId, Error> {
    text.parse().map_err(|_| {
        Error::value(
            "session_id",
            "must be the `session_id` of a `ready` message",
            text,
        )
    })
}

#[cfg(test)]
mod tests {
    use agentbox_contracts::error::ErrorCode;

    use super::*;

    #[test]
    fn empty_query_requests_a_terminal_of_default_size() {
        let start = Start {
            tty: Some(DEFAULT_SIZE),
            ..Start::default()
        };
        assert_eq!(
            Parameters::read("").unwrap(),
            Parameters {
                target: Target::Start(start),
                binary: false
            }
        );
    }

    fn start(query: &str) -> Start {
        match Parameters::read(query).unwrap().target {
            Target::Start(start) => start,
            resume => panic!("{resume:?}"),
        }
    }

    #[test]
    fn session_is_resumed_by_its_id() {
        let resume = |query: &str| {
            let query = format!("session_id=exec-0123456789abcdef{query}");
            Parameters::read(&query).map(|read| (read.target, read.binary))
        };
        let id: ExecId = "exec-0123456789abcdef".parse().unwrap();
        let target = |from, size| {
            let id = id.clone();
            Target::Resume(Resume { id, from, size })
        };
        assert_eq!(resume(""), Ok((target(None, None), false)));
        let offsets = Offsets {
            stdout: 7,
            stderr: 0,
        };
        let size = TerminalSize { cols: 80, rows: 9 };
        let expected = target(Some(offsets), Some(size));
        assert_eq!(resume("&from=7-0&rows=9&binary=true"), Ok((expected, true)));
        for (bad, field) in [
            ("&command=sh", "command: "),
            ("&env=A%3D1", "env: "),
            ("&tty=true", "tty: "),
            ("&user=root", "user: "),
            ("&working_dir=/", "working_dir: "),
            ("&from=7", "from: "),
            ("&session_id=exec-0123456789abcdef", "session_id: "),
        ] {
            let error = resume(bad).unwrap_err();
            assert!(error.message.starts_with(field), "{bad}: {error}");
        }
        for (bad, field) in [("session_id=x", "session_id: "), ("from=1-2", "from: ")] {
            let error = Parameters::read(bad).unwrap_err();
            assert!(error.message.starts_with(field), "{bad}: {error}");
        }
    }

    #[test]
    fn invalid_parameter_is_refused_by_name() {
        let query = "cols=100&rows=30&command=sh&command=-c&command=ls+-l&binary=true&ticket=t";
        assert!(Parameters::read(query).unwrap().binary);
        let read = start(query);
        assert_eq!(
            read.tty,
            Some(TerminalSize {
                cols: 100,
                rows: 30
            })
        );
        assert_eq!(read.command, ["sh", "-c", "ls -l"]);
        assert_eq!(start("tty=false").tty, None);
        let read = start("env=A%3Db%3Dc&env=B%3D&working_dir=/tmp&user=nobody:0");
        assert_eq!(read.user.as_deref(), Some("nobody:0"));
        let expected = [("A", "b=c"), ("B", "")].map(|(k, v)| (k.to_owned(), v.to_owned()));
        assert_eq!(read.env, BTreeMap::from(expected));
        assert_eq!(read.working_dir.as_deref(), Some("/tmp"));
        for (bad, field) in [
            ("cols=0", "cols: "),
            ("rows=x", "rows: "),
            ("rows=70000", "rows: "),
            ("tty=maybe", "tty: "),
            ("nope=1", "nope: "),
            ("user=", "user: "),
            ("tty=true&tty=false", "tty: "),
            ("command=", "command[0]: "),
            ("command=a%00", "command[0]: "),
            ("env=A", "env: "),
            ("env=%3Da", "env.: "),
            ("env=A%3D%00", "env.A: "),
            ("env=A%3D1&env=A%3D2", "env.A: "),
            ("working_dir=tmp", "working_dir: "),
            ("working_dir=/a&working_dir=/b", "working_dir: "),
        ] {
            let error = Parameters::read(bad).unwrap_err();
            assert_eq!(error.code, ErrorCode::Validation, "{bad}");
            assert!(error.message.starts_with(field), "{bad}: {error}");
        }
    }
}

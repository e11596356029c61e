//! The query parameters of an attach. Pure.

use std::collections::BTreeMap;

use agentbox_contracts::error::{Error, shortened};
use agentbox_contracts::exec::TerminalSize;
use serde::Deserialize;
use utoipa::IntoParams;

use crate::exec::{command_line, total_size, variables, working_dir};

const MAX_SIDE: u16 = 4096;
const DEFAULT_SIZE: TerminalSize = TerminalSize { cols: 80, rows: 24 };

/// The parameters, validated.
#[derive(Debug, PartialEq)]
pub(super) struct Parameters {
    /// The size of the terminal; `None`: no terminal.
    pub tty: Option<TerminalSize>,
    /// The program and its arguments; empty: the image's shell.
    pub command: Vec<String>,
    /// `None`: the image's.
    pub working_dir: Option<String>,
    /// Added to the variables of the environment.
    pub env: BTreeMap<String, String>,
    pub binary: bool,
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
    /// The working directory, an absolute path of at most 4096 bytes. Default: the image's.
    #[param(example = "/tmp")]
    working_dir: Option<String>,
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

fn flag(name: &str, value: &str) -> Result<bool, Error> {
    match value {
        "true" => Ok(true),
        "false" => Ok(false),
        other => Err(Error::value(name, "must be true or false", other)),
    }
}

fn side(name: &str, value: &str) -> Result<u16, Error> {
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
fn variable(text: &str) -> Result<(String, String), Error> {
    match text.split_once('=') {
        Some((name, value)) => Ok((name.to_owned(), value.to_owned())),
        None => Err(Error::value("env", "must be NAME=value", text)),
    }
}

/// Validates the size of a terminal.
///
/// # Errors
/// When a side is not 1 to [`MAX_SIDE`].
pub(super) fn size(cols: u16, rows: u16) -> Result<TerminalSize, Error> {
    Ok(TerminalSize {
        cols: side("cols", &cols.to_string())?,
        rows: side("rows", &rows.to_string())?,
    })
}

impl Parameters {
    /// # Errors
    /// [`agentbox_contracts::error::ErrorCode::Validation`], naming the parameter.
    pub(super) fn read(query: &str) -> Result<Self, Error> {
        let (mut tty, mut binary) = (true, false);
        let TerminalSize { mut cols, mut rows } = DEFAULT_SIZE;
        let mut command = Vec::new();
        let (mut env, mut directory) = (BTreeMap::new(), None);
        let mut seen = std::collections::BTreeSet::new();
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            match name.as_ref() {
                "command" => {
                    command.push(value.into_owned());
                    continue;
                }
                "env" => {
                    let (name, value) = variable(&value)?;
                    if env.insert(name.clone(), value).is_some() {
                        return Err(Error::field(
                            &format!("env.{}", shortened(&name)),
                            "must be given once, is given twice",
                        ));
                    }
                    continue;
                }
                "working_dir" => {
                    working_dir(&value)?;
                    directory = Some(value.into_owned());
                }
                "tty" => tty = flag("tty", &value)?,
                "cols" => cols = side("cols", &value)?,
                "rows" => rows = side("rows", &value)?,
                "binary" => binary = flag("binary", &value)?,
                // The credentials include the ticket.
                "ticket" => {}
                other => {
                    return Err(Error::field(
                        &shortened(other),
                        "is not a parameter of this request",
                    ));
                }
            }
            if !seen.insert(name.clone()) {
                return Err(Error::field(&name, "must be given once, is given twice"));
            }
        }
        command_line("command", &command)?;
        variables(&env)?;
        total_size(&command, &env)?;
        Ok(Self {
            tty: tty.then_some(TerminalSize { cols, rows }),
            command,
            working_dir: directory,
            env,
            binary,
        })
    }
}

#[cfg(test)]
mod tests {
    use agentbox_contracts::error::ErrorCode;

    use super::*;

    #[test]
    fn empty_query_requests_a_terminal_of_default_size() {
        assert_eq!(
            Parameters::read("").unwrap(),
            Parameters {
                tty: Some(DEFAULT_SIZE),
                command: vec![],
                working_dir: None,
                env: BTreeMap::new(),
                binary: false
            }
        );
    }

    #[test]
    fn invalid_parameter_is_refused_by_name() {
        let query = "cols=100&rows=30&command=sh&command=-c&command=ls+-l&binary=true&ticket=t";
        let read = Parameters::read(query).unwrap();
        assert_eq!(
            read.tty,
            Some(TerminalSize {
                cols: 100,
                rows: 30
            })
        );
        assert_eq!(read.command, ["sh", "-c", "ls -l"]);
        assert!(read.binary);
        assert_eq!(Parameters::read("tty=false").unwrap().tty, None);
        let read = Parameters::read("env=A%3Db%3Dc&env=B%3D&working_dir=/tmp").unwrap();
        let expected = [("A", "b=c"), ("B", "")].map(|(k, v)| (k.to_owned(), v.to_owned()));
        assert_eq!(read.env, BTreeMap::from(expected));
        assert_eq!(read.working_dir.as_deref(), Some("/tmp"));
        for (bad, field) in [
            ("cols=0", "cols: "),
            ("rows=x", "rows: "),
            ("rows=70000", "rows: "),
            ("tty=maybe", "tty: "),
            ("nope=1", "nope: "),
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

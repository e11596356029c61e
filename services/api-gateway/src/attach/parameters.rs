//! The query parameters of an attach. Pure.

use agentbox_contracts::error::{Error, shortened};
use agentbox_contracts::exec::TerminalSize;
use serde::Deserialize;
use utoipa::IntoParams;

use crate::exec::command_line;

const MAX_SIDE: u16 = 4096;
const DEFAULT_SIZE: TerminalSize = TerminalSize { cols: 80, rows: 24 };

/// The parameters, validated.
#[derive(Debug, PartialEq)]
pub(super) struct Parameters {
    /// The size of the terminal; `None`: no terminal.
    pub tty: Option<TerminalSize>,
    /// The program and its arguments; empty: the image's shell.
    pub command: Vec<String>,
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
    /// The program and its arguments: one parameter each, in order. Default: the image's shell.
    #[param(example = json!(["bash", "-l"]))]
    command: Option<Vec<String>>,
    /// Send output as binary frames, byte for byte, instead of text messages. Default: false.
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
        let mut seen = std::collections::BTreeSet::new();
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            match name.as_ref() {
                "command" => {
                    command.push(value.into_owned());
                    continue;
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
        Ok(Self {
            tty: tty.then_some(TerminalSize { cols, rows }),
            command,
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
        for (bad, field) in [
            ("cols=0", "cols: "),
            ("rows=x", "rows: "),
            ("rows=70000", "rows: "),
            ("tty=maybe", "tty: "),
            ("nope=1", "nope: "),
            ("tty=true&tty=false", "tty: "),
            ("command=", "command[0]: "),
            ("command=a%00", "command[0]: "),
        ] {
            let error = Parameters::read(bad).unwrap_err();
            assert_eq!(error.code, ErrorCode::Validation, "{bad}");
            assert!(error.message.starts_with(field), "{bad}: {error}");
        }
    }
}

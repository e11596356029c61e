//! The command line.
//!
//! `boxd run [-- command…]`, `boxd install <path>`, `boxd --version`; `boxd serve` is
//! boxd's own second step (see [`crate::conceal`]).

use std::ffi::OsString;
use std::path::PathBuf;

#[derive(Debug, PartialEq, Eq)]
pub enum Invocation {
    Run {
        command: Vec<OsString>,
    },
    Serve {
        settings_fd: i32,
        command: Vec<OsString>,
    },
    Install {
        path: PathBuf,
    },
    Version,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("usage: boxd run [-- command…] | boxd install <path> | boxd --version")]
pub struct InvocationError;

impl Invocation {
    /// `arguments` as the process got them, its name first.
    ///
    /// # Errors
    /// [`InvocationError`] for anything else than what the module says.
    pub fn parse(mut arguments: impl Iterator<Item = OsString>) -> Result<Self, InvocationError> {
        let _name = arguments.next();
        let verb = arguments.next().ok_or(InvocationError)?;
        match verb.to_str() {
            Some("--version") => Ok(Self::Version),
            Some("install") => {
                let path = arguments.next().ok_or(InvocationError)?;
                Ok(Self::Install { path: path.into() })
            }
            Some("run") => Ok(Self::Run {
                command: command(arguments)?,
            }),
            Some("serve") => {
                let settings_fd = arguments
                    .next()
                    .and_then(|text| text.to_str().and_then(|text| text.parse().ok()))
                    .ok_or(InvocationError)?;
                Ok(Self::Serve {
                    settings_fd,
                    command: command(arguments)?,
                })
            }
            _ => Err(InvocationError),
        }
    }
}

fn command(mut rest: impl Iterator<Item = OsString>) -> Result<Vec<OsString>, InvocationError> {
    match rest.next() {
        None => Ok(Vec::new()),
        Some(dashes) if dashes == "--" => Ok(rest.collect()),
        Some(_) => Err(InvocationError),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Result<Invocation, InvocationError> {
        Invocation::parse(words.iter().map(OsString::from))
    }

    #[test]
    fn a_command_is_what_follows_the_dashes_verbatim() {
        let command = ["sh", "--", "-c"].map(OsString::from).to_vec();
        assert_eq!(
            parse(&["boxd", "run", "--", "sh", "--", "-c"]),
            Ok(Invocation::Run { command })
        );
        for idle in [&["boxd", "run"][..], &["boxd", "run", "--"]] {
            assert_eq!(parse(idle), Ok(Invocation::Run { command: vec![] }));
        }
    }

    #[test]
    fn anything_else_is_refused() {
        for words in [
            &["boxd"][..],
            &["boxd", "run", "sh"],
            &["boxd", "install"],
            &["boxd", "x"],
            &["boxd", "serve", "x"],
            &[],
        ] {
            assert_eq!(parse(words), Err(InvocationError), "{words:?}");
        }
    }
}

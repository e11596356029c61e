//! The command line.
//!
//! `boxd run [-- command…]`, `boxd install <path>`, `boxd --version`; `boxd serve` is
//! boxd's own second start (see [`crate::reexec`]), and `boxd files` and `boxd remove-unfinished` are
//! processes that boxd starts (see [`crate::files`]).

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
    Files,
    RemoveUnfinished,
    Version,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("usage: boxd run [-- command…] | boxd install <path> | boxd --version")]
pub struct UsageError;

impl Invocation {
    /// Parses the process's arguments, its name first.
    ///
    /// # Errors
    /// [`UsageError`] for anything but the forms above.
    pub fn parse(mut arguments: impl Iterator<Item = OsString>) -> Result<Self, UsageError> {
        let _name = arguments.next();
        let verb = arguments.next().ok_or(UsageError)?;
        match verb.to_str() {
            Some("--version") => Ok(Self::Version),
            Some("files") => Ok(Self::Files),
            Some("remove-unfinished") => Ok(Self::RemoveUnfinished),
            Some("install") => {
                let path = arguments.next().ok_or(UsageError)?;
                Ok(Self::Install { path: path.into() })
            }
            Some("run") => Ok(Self::Run {
                command: command(arguments)?,
            }),
            Some("serve") => {
                let settings_fd = arguments
                    .next()
                    .and_then(|text| text.to_str().and_then(|text| text.parse().ok()))
                    .ok_or(UsageError)?;
                Ok(Self::Serve {
                    settings_fd,
                    command: command(arguments)?,
                })
            }
            _ => Err(UsageError),
        }
    }
}

fn command(mut rest: impl Iterator<Item = OsString>) -> Result<Vec<OsString>, UsageError> {
    match rest.next() {
        None => Ok(Vec::new()),
        Some(dashes) if dashes == "--" => Ok(rest.collect()),
        Some(_) => Err(UsageError),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Result<Invocation, UsageError> {
        Invocation::parse(words.iter().map(OsString::from))
    }

    #[test]
    fn arguments_after_dashes_are_the_command() {
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
    fn processes_of_boxd_have_their_own_forms() {
        assert_eq!(parse(&["boxd", "files"]), Ok(Invocation::Files));
        let removal = parse(&["boxd", "remove-unfinished"]);
        assert_eq!(removal, Ok(Invocation::RemoveUnfinished));
        let serve = Invocation::Serve {
            settings_fd: 3,
            command: vec![],
        };
        assert_eq!(parse(&["boxd", "serve", "3", "--"]), Ok(serve));
    }

    #[test]
    fn unknown_arguments_are_rejected() {
        for words in [
            &["boxd"][..],
            &["boxd", "run", "sh"],
            &["boxd", "install"],
            &["boxd", "x"],
            &["boxd", "serve", "x"],
            &[],
        ] {
            assert_eq!(parse(words), Err(UsageError), "{words:?}");
        }
    }
}

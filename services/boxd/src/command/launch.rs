//! Prepares the process of a command: everything that its creation must not allocate.

use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use super::CommandSpec;

/// The command's standard streams.
pub enum StandardStreams {
    Pipes {
        stdin: OwnedFd,
        stdout: OwnedFd,
        stderr: OwnedFd,
    },
    /// The tty, which becomes the controlling terminal.
    Terminal(OwnedFd),
}

/// A process that can be created. It leads its own session and process group, has default signal
/// dispositions and no blocked signal, and is the OOM killer's first choice.
///
/// Another user than boxd's own enters the working directory and executes the program: the kernel
/// decides whether that user may.
pub struct NewProcess {
    pub(super) file: CString,
    /// Never empty.
    pub(super) arguments: Vec<CString>,
    /// `NAME=value` each.
    pub(super) variables: Vec<CString>,
    /// `None`: boxd's own.
    pub(super) directory: Option<CString>,
    /// Standard input, output and error. Their numbers are above those of the standard streams.
    pub(super) streams: [OwnedFd; 3],
    pub(super) terminal: bool,
    /// `None`: boxd's own.
    pub(super) user: Option<Ids>,
}

/// The ids of another user.
pub(super) struct Ids {
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// The supplementary groups.
    pub(super) groups: Vec<u32>,
}

impl NewProcess {
    /// Prepares the process of `spec`, whose program resolved to `file`.
    ///
    /// # Errors
    /// As `dup(2)`; `InvalidInput` for a text with a NUL.
    pub fn new(spec: &CommandSpec, file: &Path, streams: StandardStreams) -> io::Result<Self> {
        let terminal = matches!(streams, StandardStreams::Terminal(_));
        let [stdin, stdout, stderr] = match streams {
            StandardStreams::Pipes {
                stdin,
                stdout,
                stderr,
            } => [stdin, stdout, stderr],
            StandardStreams::Terminal(tty) => [tty.try_clone()?, tty.try_clone()?, tty],
        };
        let file = c_string(file.as_os_str())?;
        let mut arguments = Vec::with_capacity(spec.argv.len().max(1));
        for argument in &spec.argv {
            arguments.push(c_string(argument)?);
        }
        if arguments.is_empty() {
            arguments.push(file.clone());
        }
        let variables = spec.variables.iter();
        let variables = variables.map(|(name, value)| -> io::Result<CString> {
            let mut variable = name.as_bytes().to_vec();
            variable.push(b'=');
            variable.extend_from_slice(value.as_bytes());
            Ok(CString::new(variable)?)
        });
        let directory = spec.working_dir.as_deref().map(Path::as_os_str);
        Ok(Self {
            file,
            arguments,
            variables: variables.collect::<io::Result<_>>()?,
            directory: directory.map(c_string).transpose()?,
            streams: [
                above_standard(stdin)?,
                above_standard(stdout)?,
                above_standard(stderr)?,
            ],
            terminal,
            user: spec.user.as_ref().map(|user| Ids {
                uid: user.uid,
                gid: user.gid,
                groups: user.groups.clone(),
            }),
        })
    }
}

fn c_string(text: &OsStr) -> io::Result<CString> {
    Ok(CString::new(text.as_bytes())?)
}

/// Makes sure that no stream is overwritten before it is duplicated, and that duplicating removes
/// its close-on-exec flag.
fn above_standard(stream: OwnedFd) -> io::Result<OwnedFd> {
    if stream.as_raw_fd() > 2 {
        return Ok(stream);
    }
    // Duplicates to a number of at least 3.
    stream.try_clone()
}

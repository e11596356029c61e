//! boxd: PID 1 of every box.
//!
//! Owns the processes of one box: it starts them, reaps them, kills their groups,
//! serves their terminals and keeps the main command's output. It holds one secret, the
//! box's token, and hides it from the commands.
//!
//! The modules from the outside in: [`invocation`] (the command line) → [`reexec`]
//! (removes the token from the environment) → [`init`] (start-up, signals, shutdown) →
//! [`connections`] (TLS) → [`service`] (gRPC) → [`run`] and [`executions`] (a caller's
//! command, both by [`process`]), [`files`] (file operations), [`main_command`] (the box's
//! own), [`logs`], [`ports`], [`usage`]. [`identity`] changes files of the image at the start.
//!
//! boxd depends on no caller and on no cluster's API.
//!
//! A warm box starts without a main command and gets it, with its user and variables, by the `Configure`
//! call of a driver's claim. Until then it starts no command of a caller.

mod allocator;
mod background_output;
mod command;
mod connections;
mod environment;
mod executions;
mod files;
mod identity;
mod init;
mod install;
mod invocation;
mod reexec;

mod logs;
mod main_command;
mod null_device;
mod ports;
mod process;
mod pump;
mod reaper;
mod regular_file;
mod run;
mod service;
mod settings;
mod signals;
mod status;
mod stderr;
mod terminal;
mod termination_file;
mod trace;
mod usage;
mod user;

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

use invocation::Invocation;

/// The arguments and variables of a request to start a command, for the fuzz targets in
/// `loadtest/fuzz`. `None` when boxd refuses the request.
#[cfg(fuzzing)]
#[must_use]
pub fn accepted_start(
    start: agentbox_box_protocol::proto::StartCommand,
) -> Option<(Vec<OsString>, Vec<(OsString, OsString)>)> {
    let spec = run::RunSpec::try_from(start).ok()?;
    Some((spec.process.argv, spec.process.variables))
}

/// The names of an archive's entries as boxd would create them, up to the first that it refuses or
/// cannot read, for the fuzz targets.
#[cfg(fuzzing)]
#[must_use]
pub fn unpacked_names(archive: agentbox_contracts::files::Archive, content: &[u8]) -> Vec<Vec<u8>> {
    files::unpacked_names(archive, content)
}

/// The names of a listing's cursor, for the fuzz targets. `None` when boxd refuses it.
#[cfg(fuzzing)]
#[must_use]
pub fn cursor_names(cursor: &[u8]) -> Option<Vec<Vec<u8>>> {
    files::cursor_names(cursor)
}

/// Runs the command line. The exit code is the main command's, 0 for a box that idled,
/// 2 for a wrong command line and 125 when boxd itself failed.
pub fn main(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    match Invocation::parse(arguments) {
        Ok(Invocation::Version) => {
            println!("boxd {}", env!("CARGO_PKG_VERSION"));
            ExitCode::SUCCESS
        }
        Ok(Invocation::Install { path }) => finish(install::install(&path).map(|()| 0)),
        Ok(Invocation::Run { command }) => finish(reexec::run(command)),
        Ok(Invocation::Files) => finish(files::process::run().map(|()| 0)),
        Ok(Invocation::RemoveUnfinished) => finish(files::removal::run().map(|()| 0)),
        Ok(Invocation::Serve {
            settings_fd,
            command,
        }) => finish(reexec::serve(settings_fd, command)),
        Err(error) => {
            print_error(&format!("boxd: {error}"));
            ExitCode::from(2)
        }
    }
}

fn finish<E: std::error::Error>(result: Result<u8, E>) -> ExitCode {
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            let mut line = format!("boxd: {error}");
            let mut cause = error.source();
            while let Some(next) = cause {
                line.push_str(&format!(": {next}"));
                cause = next.source();
            }
            print_error(&line);
            ExitCode::from(125)
        }
    }
}

/// Unlike `eprintln`, does not panic when nobody reads stderr: the exit code matters more.
fn print_error(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

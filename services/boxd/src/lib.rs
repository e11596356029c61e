//! boxd: PID 1 of every box.
//!
//! Owns the processes of one box: it starts them, reaps them, kills their groups,
//! serves their terminals and keeps the main command's output. It holds one secret, the
//! token that opens this box, and hides it from what it starts.
//!
//! The way through: [`invocation`] (what was asked on the command line) → [`conceal`]
//! (the token leaves the environment) → [`life`] (start, signals, end) → [`service`]
//! (gRPC) → [`run`] (a command of a caller), [`main_command`] (the box's own),
//! [`logs`], [`usage`].
//!
//! Nothing here knows who calls, or what a cluster is.

mod command;
mod conceal;
mod environment;
mod install;
mod invocation;
mod life;
mod lock;
mod logs;
mod main_command;
mod pump;
mod reaper;
mod run;
mod service;
mod settings;
mod signals;
mod terminal;
mod trace;
mod usage;

use std::ffi::OsString;
use std::process::ExitCode;

use invocation::Invocation;

/// Does what the command line says. The exit code is the main command's, 0 for a box
/// that idled, 2 for a wrong command line and 125 when boxd itself failed.
pub fn main(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    match Invocation::parse(arguments) {
        Ok(Invocation::Version) => {
            println!("boxd {}", env!("CARGO_PKG_VERSION"));
            ExitCode::SUCCESS
        }
        Ok(Invocation::Install { path }) => finish(install::install(&path).map(|()| 0)),
        Ok(Invocation::Run { command }) => finish(conceal::run(command)),
        Ok(Invocation::Serve {
            settings_fd,
            command,
        }) => finish(conceal::serve(settings_fd, command)),
        Err(error) => {
            eprintln!("boxd: {error}");
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
            eprintln!("{line}");
            ExitCode::from(125)
        }
    }
}

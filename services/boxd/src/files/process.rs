//! `boxd files`: the process that performs one file operation, as its user.
//!
//! It reads the request and content from its stdin and writes outputs to its stdout. It has one
//! thread. Its caller ends it by closing the connection and sending SIGTERM; then it removes its
//! temporary files. Its stderr is the record of a file that is not complete ([`super::record`]).

use std::io;

use agentbox_contracts::error::ErrorCode;
use agentbox_contracts::files::FileRequest;
use agentbox_contracts::files::file_input::Input;
use agentbox_contracts::files::file_output::Output;
use agentbox_contracts::files::file_request::Operation;
use nix::sys::prctl;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::stat::{Mode, umask};

use super::caller::Caller;
use super::failure::{Failure, Result};
use super::location::check_path;
use super::metadata::Describer;
use super::{change, copy, delete, list, read, relocate, stop, watch, write};

/// Runs the process. The exit code is 0 also for an operation that fails.
///
/// # Errors
/// When the standard streams cannot be used.
pub fn run() -> io::Result<()> {
    stop::listen();
    // Executed from /proc/self/exe the process would be named "exe". Cosmetic: errors are ignored.
    let _ = prctl::set_name(c"boxd-files");
    // Modes are explicit everywhere.
    umask(Mode::empty());
    allow_open_files();
    let mut caller = Caller::at_standard_streams()?;
    let last = match perform(&mut caller) {
        Ok(()) => Output::Done(()),
        Err(failure) => Output::Failed(failure.into()),
    };
    // The caller may be gone.
    let _ = caller.send(last);
    Ok(())
}

/// Raises the soft limit to the hard one: a tree takes a descriptor for each of its levels.
fn allow_open_files() {
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        // Without it, deep trees fail with a message.
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}

fn perform(caller: &mut Caller) -> Result<()> {
    let Some(Input::Request(request)) = caller.receive()? else {
        return Err(Failure::new(
            ErrorCode::BadRequest,
            "the first input must be the request",
        ));
    };
    let FileRequest {
        path, operation, ..
    } = request;
    check_path(&path)?;
    match operation {
        Some(Operation::Stat(stat)) => {
            let metadata = Describer::read().describe(&path, stat.follow)?;
            caller.send(Output::Metadata(metadata))
        }
        Some(Operation::List(request)) => list::list(caller, &path, &request),
        Some(Operation::Read(request)) => read::read(caller, &path, &request),
        Some(Operation::Write(request)) => write::write(caller, &path, &request),
        Some(Operation::MakeDirectory(request)) => change::make_directory(caller, &path, &request),
        Some(Operation::Move(request)) => relocate::relocate(&path, &request),
        Some(Operation::Copy(request)) => copy::copy(&path, &request),
        Some(Operation::Change(request)) => change::change(caller, &path, &request),
        Some(Operation::Delete(request)) => delete::delete(&path, request.recursive),
        Some(Operation::Watch(request)) => watch::watch(caller, &path, &request),
        None => Err(Failure::new(
            ErrorCode::BadRequest,
            "operation: is not known to this box",
        )),
    }
}

//! Hides the box's token from the commands in the box, by executing boxd a second time.
//!
//! `boxd run` reads its variables, writes them to an anonymous file and executes itself
//! again as `boxd serve` without them, so that `/proc/1/environ` does not contain the
//! token. The second boxd closes the file before it starts anything, and makes itself not
//! dumpable: then `/proc/1/{mem,environ,maps}` and ptrace need CAP_SYS_PTRACE, even for
//! root, and container runtimes do not grant it. A box that has it can read boxd's memory,
//! and finds only the token of its own box.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::Command;

use agentbox_box_protocol::variables;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::prctl;

use crate::allocator;
use crate::init::{self, InitError};
use crate::reaper::THREAD_STACK_BYTES;
use crate::settings::{Settings, SettingsError};

#[derive(Debug, thiserror::Error)]
pub enum ReexecError {
    #[error("the configuration is invalid")]
    Settings(#[from] SettingsError),
    #[error("passing the settings to the second boxd failed")]
    Pass(#[source] io::Error),
    #[error("the settings cannot be encoded or decoded")]
    Encoding(#[source] serde_json::Error),
    #[error("making boxd not dumpable failed")]
    Protect(#[source] nix::Error),
    #[error("starting the async runtime failed")]
    Runtime(#[source] io::Error),
    #[error("boxd failed")]
    Init(#[from] InitError),
}

/// Runs `boxd run`. Returns only when it fails, or when there is no `/proc` to execute
/// from: then this process serves the box itself.
///
/// # Errors
/// [`ReexecError`].
pub fn run(command: Vec<OsString>) -> Result<u8, ReexecError> {
    close_inherited();
    let settings = Settings::from_variables(|name| std::env::var(name).ok())?;
    let json = serde_json::to_vec(&settings).map_err(ReexecError::Encoding)?;
    // Without MFD_CLOEXEC: the second boxd inherits it.
    let mut file = memfd_create(c"boxd", MFdFlags::empty())
        .map(File::from)
        .map_err(|error| ReexecError::Pass(error.into()))?;
    file.write_all(&json).map_err(ReexecError::Pass)?;
    let mut second = Command::new("/proc/self/exe");
    second
        .arg0("boxd")
        .arg("serve")
        .arg(file.as_raw_fd().to_string());
    second.arg("--").args(&command);
    for (name, _) in std::env::vars_os() {
        if name
            .as_encoded_bytes()
            .starts_with(variables::PREFIX.as_bytes())
        {
            second.env_remove(&name);
        }
    }
    // Returns only when it failed, as without /proc; the box then works without this protection.
    let _ = second.exec();
    drop(file);
    protect_and_run(settings, command)
}

/// Runs `boxd serve`, the second boxd.
///
/// # Errors
/// [`ReexecError`].
pub fn serve(settings_fd: i32, command: Vec<OsString>) -> Result<u8, ReexecError> {
    let json = fs::read(format!("/proc/self/fd/{settings_fd}")).map_err(ReexecError::Pass)?;
    nix::unistd::close(settings_fd).map_err(|error| ReexecError::Pass(error.into()))?;
    let settings = serde_json::from_slice(&json).map_err(ReexecError::Encoding)?;
    protect_and_run(settings, command)
}

/// Closes inherited descriptors: commands would inherit them too. Must be called before
/// anything is opened.
fn close_inherited() {
    let Ok(open) = fs::read_dir("/proc/self/fd") else {
        return;
    };
    let numbers: Vec<i32> = open
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    for number in numbers.into_iter().filter(|number| *number > 2) {
        // The descriptor of the listing is among them and already closed.
        let _ = nix::unistd::close(number);
    }
}

fn protect_and_run(settings: Settings, command: Vec<OsString>) -> Result<u8, ReexecError> {
    prctl::set_dumpable(false).map_err(ReexecError::Protect)?;
    // Executed from /proc/self/exe the process would be named "exe". Cosmetic: errors are
    // ignored.
    let _ = prctl::set_name(c"boxd");
    allocator::return_large_allocations();
    // All threads start here or in `Reaper::new`. The runtime's pool for blocking calls creates
    // threads on demand, and panics when the kernel refuses one: boxd must not use it.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_stack_size(THREAD_STACK_BYTES)
        .thread_name("boxd")
        .enable_all()
        .build()
        .map_err(ReexecError::Runtime)?;
    let result = runtime.block_on(init::run(settings, command));
    // A system call that hangs in a worker must not delay the exit.
    runtime.shutdown_timeout(std::time::Duration::from_millis(100));
    Ok(result?)
}

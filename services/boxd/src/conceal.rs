//! Keeps the box's token from the commands in the box.
//!
//! `boxd run` reads its variables, puts them into an anonymous file and executes itself
//! again as `boxd serve` without them: nothing of the token is left in
//! `/proc/1/environ`. The second boxd closes the file before it starts anything, and is
//! not dumpable: `/proc/1/{mem,environ,maps}` and ptrace need CAP_SYS_PTRACE then, even
//! for root, which container runtimes do not give. A box that has it can read boxd's
//! memory; what it finds is the token of its own box alone.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::Command;

use agentbox_box_protocol::variables;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::prctl;

use crate::life::{self, LifeError};
use crate::settings::{Settings, SettingsError};

#[derive(Debug, thiserror::Error)]
pub enum ConcealError {
    #[error("boxd is not configured")]
    Settings(#[from] SettingsError),
    #[error("the settings could not be handed over")]
    HandOver(#[source] io::Error),
    #[error("the settings that were handed over are damaged")]
    Damaged(#[source] serde_json::Error),
    #[error("the kernel refused to protect boxd")]
    Protect(#[source] nix::Error),
    #[error("the runtime could not start")]
    Runtime(#[source] io::Error),
    #[error("the box failed")]
    Life(#[from] LifeError),
}

/// `boxd run`: does not return, unless it fails or there is no `/proc` to execute from;
/// then it serves as it is.
///
/// # Errors
/// [`ConcealError`].
pub fn run(command: Vec<OsString>) -> Result<u8, ConcealError> {
    close_inherited();
    let settings = Settings::from_variables(|name| std::env::var(name).ok())?;
    let json = serde_json::to_vec(&settings).map_err(ConcealError::Damaged)?;
    // Without MFD_CLOEXEC: it is meant to be inherited, once.
    let mut file = memfd_create(c"boxd", MFdFlags::empty())
        .map(File::from)
        .map_err(|error| ConcealError::HandOver(error.into()))?;
    file.write_all(&json).map_err(ConcealError::HandOver)?;
    let mut again = Command::new("/proc/self/exe");
    again
        .arg0("boxd")
        .arg("serve")
        .arg(file.as_raw_fd().to_string());
    again.arg("--").args(&command);
    for (name, _) in std::env::vars_os() {
        if name
            .as_encoded_bytes()
            .starts_with(variables::PREFIX.as_bytes())
        {
            again.env_remove(&name);
        }
    }
    // Returns only when it failed, which is no reason to have no box.
    let _no_proc = again.exec();
    drop(file);
    protect_and_live(settings, command)
}

/// `boxd serve`: the second step.
///
/// # Errors
/// [`ConcealError`].
pub fn serve(settings_fd: i32, command: Vec<OsString>) -> Result<u8, ConcealError> {
    let json = fs::read(format!("/proc/self/fd/{settings_fd}")).map_err(ConcealError::HandOver)?;
    nix::unistd::close(settings_fd).map_err(|error| ConcealError::HandOver(error.into()))?;
    let settings = serde_json::from_slice(&json).map_err(ConcealError::Damaged)?;
    protect_and_live(settings, command)
}

/// What a careless runtime left open in us would be left open in every command. To be
/// called before anything is opened.
fn close_inherited() {
    let Ok(open) = fs::read_dir("/proc/self/fd") else {
        return;
    };
    let numbers: Vec<i32> = open
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    for number in numbers.into_iter().filter(|number| *number > 2) {
        // The listing's own descriptor is among them, closed by now.
        let _ = nix::unistd::close(number);
    }
}

fn protect_and_live(settings: Settings, command: Vec<OsString>) -> Result<u8, ConcealError> {
    prctl::set_dumpable(false).map_err(ConcealError::Protect)?;
    // Executed from /proc/self/exe we would be called "exe"; a name is cosmetic.
    let _ = prctl::set_name(c"boxd");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(16)
        .thread_name("boxd")
        .enable_all()
        .build()
        .map_err(ConcealError::Runtime)?;
    let result = runtime.block_on(life::live(settings, command));
    // A start that hangs in the kernel must not hold the box.
    runtime.shutdown_timeout(std::time::Duration::from_millis(100));
    Ok(result?)
}

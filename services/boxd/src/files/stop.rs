//! The request to stop, which boxd sends to a file process as SIGTERM: the process removes its
//! temporary files and ends.

#![allow(
    unsafe_code,
    reason = "sigaction(2) is the only way to handle a signal without a thread"
)]

use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

use super::caller::aborted;
use super::failure::Result;

static STOPPED: AtomicBool = AtomicBool::new(false);

extern "C" fn note(_signal: nix::libc::c_int) {
    STOPPED.store(true, Ordering::Relaxed);
}

/// Handles SIGTERM from now on. Errors are ignored: then the signal ends the process at once.
pub fn listen() {
    let action = SigAction::new(
        SigHandler::Handler(note),
        SaFlags::SA_RESTART,
        SigSet::empty(),
    );
    // SAFETY: the handler only stores to an atomic.
    let _ = unsafe { sigaction(Signal::SIGTERM, &action) };
}

/// # Errors
/// [`aborted`], when the process was asked to stop. Called in every loop whose length the box or
/// the caller decides.
pub fn check() -> Result<()> {
    if STOPPED.load(Ordering::Relaxed) {
        return Err(aborted());
    }
    Ok(())
}

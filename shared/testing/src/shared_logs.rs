//! Keeps the logs of instances that several tests share.
//!
//! Such an instance is never dropped: it ends with the process, and its supervisor removes the logs. So
//! the first panic of a test marks the logs of all running instances as kept. An instance that is dropped
//! later belongs to one test alone, which decides for itself.

use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, Once, PoisonError};

use crate::paths::Layout;

/// The directories and the markers of the running instances.
static RUNNING: Mutex<Vec<(PathBuf, PathBuf)>> = Mutex::new(Vec::new());

fn running() -> MutexGuard<'static, Vec<(PathBuf, PathBuf)>> {
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Adds a running instance.
pub(crate) fn register(layout: &Layout) {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let print = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            print(panic);
            for (logs, marker) in &*running() {
                // In the failed test's output, where a person looks for it.
                if std::fs::write(marker, "").is_ok() {
                    eprintln!(
                        "if this system is shared, its logs are kept: {}",
                        logs.display()
                    );
                }
            }
        }));
    });
    running().push((layout.logs(), layout.keep_marker()));
}

/// Removes an instance that ends before the process.
pub(crate) fn unregister(layout: &Layout) {
    let marker = layout.keep_marker();
    let mut running = running();
    if let Some(index) = running.iter().position(|(_, other)| *other == marker) {
        running.swap_remove(index);
        let _ = std::fs::remove_file(marker);
    }
}

//! Runs code in the network namespace of a box. A program such as `nsenter` would cost each box one
//! process more.

use std::fs::File;
use std::io;
use std::path::PathBuf;

use nix::sched::{CloneFlags, setns};
use tokio::runtime::Handle;
use tokio::sync::oneshot;

/// Runs `work` on a thread in a network namespace. Processes that it starts are in the namespace too.
///
/// # Errors
/// Those of `work`, or when the namespace cannot be entered.
pub async fn enter<T: Send + 'static>(
    namespace: PathBuf,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let runtime = Handle::current();
    let (finished, outcome) = oneshot::channel();
    let enter_and_work = move || {
        // Tokio's processes need it.
        let _runtime = runtime.enter();
        let run = || {
            setns(File::open(namespace)?, CloneFlags::CLONE_NEWNET)?;
            work()
        };
        // Nobody waits for it any more: the creation of the box was cancelled.
        let _ = finished.send(run());
    };
    // The thread ends after its work, so that nothing else runs in the namespace.
    std::thread::Builder::new()
        .name("box-network".to_owned())
        .spawn(enter_and_work)?;
    let closed = |_| io::Error::other("the thread in the namespace panicked");
    outcome.await.map_err(closed)?
}

//! The events that stop an instance.

use tokio::net::unix::pipe;
use tokio::signal::unix::{SignalKind, signal};

/// Resolves on SIGTERM and SIGINT; with `until_stdin_ends`, also when standard input ends.
pub(super) fn stop_signal(until_stdin_ends: bool) -> std::io::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    // Ignored: the terminal in which `up` ran may close.
    let mut hangup = signal(SignalKind::hangup())?;
    let stdin = if until_stdin_ends {
        use std::os::fd::AsFd;
        Some(pipe::Receiver::from_owned_fd(
            std::io::stdin().as_fd().try_clone_to_owned()?,
        )?)
    } else {
        None
    };
    Ok(async move {
        loop {
            tokio::select! {
                _ = terminate.recv() => return,
                _ = interrupt.recv() => return,
                _ = hangup.recv() => {}
                () = end_of(stdin.as_ref()) => return,
            }
        }
    })
}

/// Resolves when the pipe's other end is closed. Data from the pipe are discarded.
async fn end_of(stdin: Option<&pipe::Receiver>) {
    let Some(stdin) = stdin else {
        return std::future::pending().await;
    };
    let mut buffer = [0; 64];
    while stdin.readable().await.is_ok() {
        match stdin.try_read(&mut buffer) {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
    }
}

//! When an instance shall end.

use tokio::net::unix::pipe;
use tokio::signal::unix::{SignalKind, signal};

/// Resolves when the instance shall end.
pub(super) fn stop_request(until_stdin_ends: bool) -> std::io::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    // The terminal that it was started from may close.
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
                () = ended(stdin.as_ref()) => return,
            }
        }
    })
}

/// Resolves when the pipe's other end is closed; what comes through it is of no interest.
async fn ended(stdin: Option<&pipe::Receiver>) {
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

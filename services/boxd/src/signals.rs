//! Signals by name, and those that boxd passes on.

use std::io;

use nix::sys::signal::Signal;
use tokio::signal::unix::{Signal as Stream, SignalKind, signal};

/// `SIGINT` or `INT`, in any case.
#[must_use]
pub fn parse(name: &str) -> Option<Signal> {
    let name = name.to_ascii_uppercase();
    let full = if name.starts_with("SIG") {
        name
    } else {
        format!("SIG{name}")
    };
    full.parse().ok()
}

/// Whether a box without a main command ends on it.
#[must_use]
pub fn ends_an_idle_box(signal: Signal) -> bool {
    matches!(signal, Signal::SIGTERM | Signal::SIGINT | Signal::SIGQUIT)
}

/// What the runtime sends to PID 1 is meant for the main command.
pub struct Forwarded {
    streams: [(Signal, Stream); 6],
}

impl Forwarded {
    /// From now on these signals do not end boxd.
    ///
    /// # Errors
    /// As `sigaction(2)`.
    pub fn listen() -> io::Result<Self> {
        let stream = |which: Signal| {
            signal(SignalKind::from_raw(which as i32)).map(|stream| (which, stream))
        };
        Ok(Self {
            streams: [
                stream(Signal::SIGTERM)?,
                stream(Signal::SIGINT)?,
                stream(Signal::SIGQUIT)?,
                stream(Signal::SIGHUP)?,
                stream(Signal::SIGUSR1)?,
                stream(Signal::SIGUSR2)?,
            ],
        })
    }

    /// The next one.
    pub async fn next(&mut self) -> Signal {
        std::future::poll_fn(|context| {
            for (which, stream) in &mut self.streams {
                if stream.poll_recv(context).is_ready() {
                    return std::task::Poll::Ready(*which);
                }
            }
            std::task::Poll::Pending
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_has_two_names_in_any_case() {
        for name in ["SIGINT", "INT", "int", "sigint"] {
            assert_eq!(parse(name), Some(Signal::SIGINT), "{name}");
        }
        for name in ["", "SIG", "SIGFOO", "9"] {
            assert_eq!(parse(name), None, "{name}");
        }
    }
}

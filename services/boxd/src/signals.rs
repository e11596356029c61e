//! Signal names, and the signals that boxd forwards.

use std::io;

use nix::sys::signal::Signal;
use tokio::signal::unix::{Signal as Stream, SignalKind, signal};

/// Parses a signal's name: `SIGINT` or `INT`, in any case.
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

/// Whether the signal ends a box without a main command.
#[must_use]
pub fn stops_idle_box(signal: Signal) -> bool {
    matches!(signal, Signal::SIGTERM | Signal::SIGINT | Signal::SIGQUIT)
}

/// The signals that the runtime sends to PID 1, to be forwarded to the main command.
pub struct ForwardedSignals {
    streams: [(Signal, Stream); 6],
}

impl ForwardedSignals {
    /// Installs the handlers: from now on these signals do not end boxd.
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

    /// The next signal.
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
    use agentbox_contracts::signal;

    use super::{Signal, parse};

    #[test]
    fn signal_name_parses_with_and_without_prefix_in_any_case() {
        for name in ["SIGINT", "INT", "int", "sigint"] {
            assert_eq!(parse(name), Some(Signal::SIGINT), "{name}");
        }
        for name in ["", "SIG", "SIGFOO", "9"] {
            assert_eq!(parse(name), None, "{name}");
        }
    }

    #[test]
    fn parsed_names_are_those_of_the_contract() {
        for name in signal::NAMES {
            assert!(parse(name).is_some(), "{name}");
        }
        for known in Signal::iterator() {
            assert!(signal::is_signal_name(known.as_str()), "{known}");
        }
    }
}

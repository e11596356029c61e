//! The messages that one side has sent and the peer has not consumed yet. Pure: no clock, no
//! network.
//!
//! * I1. At most [`WINDOW`] messages are in it.
//! * I2. The bytes of a message are kept until it has arrived, and no longer.

use std::collections::VecDeque;

use bytes::Bytes;
use tokio::sync::oneshot;

use super::WINDOW;

struct Sent {
    sequence: u64,
    /// Empty once it has arrived.
    frame: Bytes,
    /// For the last message: resolved when the peer has consumed it.
    fin: Option<oneshot::Sender<()>>,
}

/// The effect of an acknowledgement.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum AckOutcome {
    Unchanged,
    Progress,
    /// The last message has been consumed.
    Finished,
}

pub(super) struct Window {
    sent: u64,
    arrived: u64,
    messages: VecDeque<Sent>,
}

impl Window {
    pub(super) fn new() -> Self {
        Self {
            sent: 0,
            arrived: 0,
            messages: VecDeque::with_capacity(WINDOW),
        }
    }

    pub(super) fn has_room(&self) -> bool {
        self.messages.len() < WINDOW
    }

    /// The sequence of the next message, from 1.
    pub(super) fn next_sequence(&self) -> u64 {
        self.sent + 1
    }

    /// Adds the frame with the number [`Self::next_sequence`]. True: every earlier message has
    /// arrived.
    pub(super) fn push(&mut self, frame: Bytes, fin: Option<oneshot::Sender<()>>) -> bool {
        let is_alone = self.all_arrived();
        self.sent += 1;
        self.messages.push_back(Sent {
            sequence: self.sent,
            frame,
            fin,
        });
        is_alone
    }

    /// The peer has consumed every message up to `consumed` and received every one up to
    /// `received`. Both only increase, so a frame that arrives late changes nothing.
    pub(super) fn acknowledge(&mut self, consumed: u64, received: u64) -> AckOutcome {
        // The peer cannot have messages that were not sent.
        let consumed = consumed.min(self.sent);
        let received = received.max(consumed).min(self.sent);
        let mut outcome = AckOutcome::Unchanged;
        while self
            .messages
            .front()
            .is_some_and(|first| first.sequence <= consumed)
        {
            if outcome == AckOutcome::Unchanged {
                outcome = AckOutcome::Progress;
            }
            if let Some(fin) = self.messages.pop_front().and_then(|first| first.fin) {
                // The sender may have stopped waiting.
                let _ = fin.send(());
                outcome = AckOutcome::Finished;
            }
        }
        if received > self.arrived {
            self.arrived = received;
            for message in &mut self.messages {
                if message.sequence <= received {
                    message.frame = Bytes::new();
                }
            }
            if outcome == AckOutcome::Unchanged {
                outcome = AckOutcome::Progress;
            }
        }
        outcome
    }

    pub(super) fn all_arrived(&self) -> bool {
        self.arrived == self.sent
    }

    /// The messages that have not arrived, in order.
    pub(super) fn missing(&self) -> Vec<Bytes> {
        self.messages
            .iter()
            .filter(|message| message.sequence > self.arrived)
            .map(|message| message.frame.clone())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(n: u64) -> Bytes {
        Bytes::from(n.to_string())
    }

    fn filled(count: u64) -> Window {
        let mut window = Window::new();
        for n in 1..=count {
            assert_eq!(window.next_sequence(), n);
            window.push(frame(n), None);
        }
        window
    }

    #[test]
    fn missing_returns_only_unreceived_messages() {
        for (consumed, received, missing) in [
            (0, 0, vec![1, 2, 3, 4]),
            (0, 3, vec![4]),
            (2, 3, vec![4]),
            (2, 0, vec![3, 4]),
            (0, 4, vec![]),
            (4, 4, vec![]),
            (9, 9, vec![]),
        ] {
            let mut window = filled(4);
            window.acknowledge(consumed, received);
            let expected: Vec<Bytes> = missing.into_iter().map(frame).collect();
            assert_eq!(window.missing(), expected, "{consumed} {received}");
            assert_eq!(window.all_arrived(), expected.is_empty());
        }
    }

    #[test]
    fn window_frees_space_on_consumption_not_on_arrival() {
        let mut window = filled(WINDOW as u64);
        assert!(!window.has_room());
        assert_eq!(window.acknowledge(0, WINDOW as u64), AckOutcome::Progress);
        assert!(!window.has_room());
        assert_eq!(window.acknowledge(1, WINDOW as u64), AckOutcome::Progress);
        assert!(window.has_room());
    }

    #[test]
    fn stale_or_false_acknowledgement_changes_nothing() {
        let mut window = filled(4);
        assert_eq!(window.acknowledge(3, 4), AckOutcome::Progress);
        for (consumed, received) in [(0, 0), (2, 3), (3, 4)] {
            assert_eq!(
                window.acknowledge(consumed, received),
                AckOutcome::Unchanged
            );
        }
        let mut empty = Window::new();
        assert_eq!(empty.acknowledge(u64::MAX, u64::MAX), AckOutcome::Unchanged);
        assert!(empty.push(frame(1), None));
        assert_eq!(empty.missing(), vec![frame(1)]);
    }

    #[test]
    fn last_message_finishes_when_consumed() {
        let mut window = filled(1);
        let (fin, mut finished) = oneshot::channel();
        window.push(frame(2), Some(fin));
        assert_eq!(window.acknowledge(1, 2), AckOutcome::Progress);
        assert!(finished.try_recv().is_err());
        assert_eq!(window.acknowledge(2, 2), AckOutcome::Finished);
        assert_eq!(finished.try_recv(), Ok(()));
    }
}

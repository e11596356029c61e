//! What one side has sent and the peer has not yet consumed. Pure: no clock, no network.
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
    /// Told when the peer has consumed the last message.
    fin: Option<oneshot::Sender<()>>,
}

/// What an acknowledgement changed.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Change {
    Nothing,
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

    /// Takes up the frame of [`Self::next_sequence`]; true when nothing else is on its way.
    pub(super) fn push(&mut self, frame: Bytes, fin: Option<oneshot::Sender<()>>) -> bool {
        let first = self.arrived == self.sent;
        self.sent += 1;
        self.messages.push_back(Sent {
            sequence: self.sent,
            frame,
            fin,
        });
        first
    }

    /// The peer has consumed all up to `consumed` and received all up to `received`. Both
    /// only rise; a frame that was overtaken changes nothing.
    pub(super) fn acknowledge(&mut self, consumed: u64, received: u64) -> Change {
        // What the peer has not been sent it cannot have.
        let consumed = consumed.min(self.sent);
        let received = received.max(consumed).min(self.sent);
        let mut change = Change::Nothing;
        while self
            .messages
            .front()
            .is_some_and(|first| first.sequence <= consumed)
        {
            if change == Change::Nothing {
                change = Change::Progress;
            }
            if let Some(fin) = self.messages.pop_front().and_then(|first| first.fin) {
                // The sender may have stopped waiting.
                let _ = fin.send(());
                change = Change::Finished;
            }
        }
        if received > self.arrived {
            self.arrived = received;
            for message in &mut self.messages {
                if message.sequence <= received {
                    message.frame = Bytes::new();
                }
            }
            if change == Change::Nothing {
                change = Change::Progress;
            }
        }
        change
    }

    pub(super) fn is_all_arrived(&self) -> bool {
        self.arrived == self.sent
    }

    /// What has not arrived, in order.
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
    fn only_what_has_not_arrived_is_missing() {
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
            assert_eq!(window.is_all_arrived(), expected.is_empty());
        }
    }

    #[test]
    fn room_opens_when_messages_are_consumed_not_when_they_arrive() {
        let mut window = filled(WINDOW as u64);
        assert!(!window.has_room());
        assert_eq!(window.acknowledge(0, WINDOW as u64), Change::Progress);
        assert!(!window.has_room());
        assert_eq!(window.acknowledge(1, WINDOW as u64), Change::Progress);
        assert!(window.has_room());
    }

    #[test]
    fn an_overtaken_or_false_acknowledgement_changes_nothing() {
        let mut window = filled(4);
        assert_eq!(window.acknowledge(3, 4), Change::Progress);
        for (consumed, received) in [(0, 0), (2, 3), (3, 4)] {
            assert_eq!(window.acknowledge(consumed, received), Change::Nothing);
        }
        let mut empty = Window::new();
        assert_eq!(empty.acknowledge(u64::MAX, u64::MAX), Change::Nothing);
        assert!(empty.push(frame(1), None));
        assert_eq!(empty.missing(), vec![frame(1)]);
    }

    #[test]
    fn the_last_message_is_finished_when_it_is_consumed() {
        let mut window = filled(1);
        let (fin, mut told) = oneshot::channel();
        window.push(frame(2), Some(fin));
        assert_eq!(window.acknowledge(1, 2), Change::Progress);
        assert!(told.try_recv().is_err());
        assert_eq!(window.acknowledge(2, 2), Change::Finished);
        assert_eq!(told.try_recv(), Ok(()));
    }
}

//! The attached clients of one execution, and which of them holds its input.
//!
//! * I1. At most one client holds the input. The first one gets it; `take_input` passes it on; when
//!   the holder leaves, the client that is attached for longest gets it.

use std::collections::BTreeSet;

use parking_lot::Mutex;
use tokio::sync::watch;

#[derive(Default)]
pub struct Clients {
    attached: Mutex<Attached>,
    holder: watch::Sender<Option<u64>>,
}

#[derive(Default)]
struct Attached {
    numbers: BTreeSet<u64>,
    next: u64,
}

impl Clients {
    /// Adds a client; returns its number.
    pub fn join(&self, takes_input: bool) -> u64 {
        let mut attached = self.attached.lock();
        let number = attached.next;
        attached.next += 1;
        attached.numbers.insert(number);
        if takes_input || self.holder.borrow().is_none() {
            self.holder.send_replace(Some(number));
        }
        number
    }

    /// Passes the input to this client.
    pub fn take_input(&self, number: u64) {
        let attached = self.attached.lock();
        if attached.numbers.contains(&number) {
            self.holder.send_replace(Some(number));
        }
    }

    pub fn leave(&self, number: u64) {
        let mut attached = self.attached.lock();
        attached.numbers.remove(&number);
        if self.holds_input(number) {
            self.holder.send_replace(attached.numbers.first().copied());
        }
    }

    #[must_use]
    pub fn holds_input(&self, number: u64) -> bool {
        *self.holder.borrow() == Some(number)
    }

    #[must_use]
    pub fn holders(&self) -> watch::Receiver<Option<u64>> {
        self.holder.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn input_passes_to_the_taker_and_then_to_the_oldest_client() {
        let clients = Clients::default();
        let holder = || *clients.holder.borrow();
        let (first, second) = (clients.join(false), clients.join(false));
        assert_eq!(holder(), Some(first));
        clients.take_input(second);
        assert_eq!(holder(), Some(second));
        let third = clients.join(true);
        assert!(clients.holds_input(third) && !clients.holds_input(second));
        clients.leave(second);
        assert_eq!(holder(), Some(third));
        clients.take_input(second);
        assert_eq!(holder(), Some(third), "it has left");
        clients.leave(third);
        assert_eq!(holder(), Some(first));
        clients.leave(first);
        assert_eq!(holder(), None);
        assert_eq!(Some(clients.join(false)), holder());
    }
}

//! The fair share of the sessions of one cluster: an owner of environments may have as many
//! sessions as are still free.
//!
//! One owner alone gets half of all sessions, a second one half of the rest, and so on. So an owner
//! without sessions finds a free one, whatever the others do.

use std::collections::HashMap;
use std::sync::Arc;

use agentbox_contracts::ids::UserId;
use parking_lot::Mutex;

pub struct FairShare {
    limit: usize,
    open: Mutex<Open>,
}

#[derive(Default)]
struct Open {
    total: usize,
    by_owner: HashMap<UserId, usize>,
}

impl FairShare {
    /// `limit`: the sessions of all owners together.
    #[must_use]
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self {
            limit,
            open: Mutex::default(),
        })
    }

    /// Counts a session until the guard is dropped. `None`: the owner has more sessions than are
    /// free.
    pub fn begin(self: &Arc<Self>, owner: &UserId) -> Option<OwnedSession> {
        let mut open = self.open.lock();
        let held = open.by_owner.get(owner).copied().unwrap_or(0);
        let free = self.limit.saturating_sub(open.total);
        if free == 0 || held > free {
            return None;
        }
        open.by_owner.insert(owner.clone(), held + 1);
        open.total += 1;
        Some(OwnedSession {
            share: Arc::clone(self),
            owner: owner.clone(),
        })
    }
}

/// One session of an owner.
pub struct OwnedSession {
    share: Arc<FairShare>,
    owner: UserId,
}

impl Drop for OwnedSession {
    fn drop(&mut self) {
        let mut open = self.share.open.lock();
        open.total -= 1;
        if let Some(held) = open.by_owner.get_mut(&self.owner) {
            *held -= 1;
            if *held == 0 {
                open.by_owner.remove(&self.owner);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owner_with_many_sessions_leaves_some_for_others() {
        let share = FairShare::new(100);
        let take_all = |owner: &UserId| {
            let mut held = Vec::new();
            while let Some(session) = share.begin(owner) {
                held.push(session);
            }
            held
        };
        let owners: [UserId; 3] = std::array::from_fn(|_| UserId::random());
        let first = take_all(&owners[0]);
        let second = take_all(&owners[1]);
        let third = take_all(&owners[2]);
        assert_eq!([first.len(), second.len(), third.len()], [51, 25, 13]);
        assert!(share.begin(&owners[0]).is_none());
        drop((second, third));
        assert!(share.begin(&owners[1]).is_some());
        drop(first);
        let open = share.open.lock();
        assert_eq!((open.total, open.by_owner.len()), (0, 0));
    }

    #[test]
    fn one_owner_may_have_the_only_session() {
        let share = FairShare::new(1);
        let owner = UserId::random();
        let held = share.begin(&owner);
        assert!(held.is_some());
        assert!(share.begin(&owner).is_none());
    }
}

//! The changes that wait at once until their network policy is applied.
//!
//! * I1. They leave most requests of this replica to others.
//! * I2. The changes of one owner leave places to other owners.

use agentbox_contracts::ids::UserId;
use agentbox_service::shares::{Exceeded, Share, Shares};

/// Changes of all owners. A part of the requests that a server of the bus has in flight (256).
const MAX_CHANGES: u64 = 64;
/// Changes of the environments of one owner.
const MAX_CHANGES_PER_OWNER: u64 = 16;

pub(super) struct PolicyChanges(Shares<UserId>);

impl PolicyChanges {
    pub(super) fn new() -> Self {
        Self(Shares::fair(MAX_CHANGES_PER_OWNER, MAX_CHANGES))
    }

    /// Counts a change of an environment of `owner` until the share is dropped.
    ///
    /// # Errors
    /// The bound that is reached, for the message of an error.
    pub(super) fn begin(&self, owner: &UserId) -> Result<Share<UserId>, String> {
        self.0.take(owner, 1).map_err(|exceeded| match exceeded {
            Exceeded::PerHolder => format!(
                "{MAX_CHANGES_PER_OWNER} changes of environments of its owner wait for their \
                 clusters, the most that one owner may have"
            ),
            Exceeded::Total => format!(
                "the changes that wait for their clusters leave none of their {MAX_CHANGES} places \
                 to another of this owner"
            ),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take_all(changes: &PolicyChanges, owner: &UserId) -> (Vec<Share<UserId>>, String) {
        let mut held = Vec::new();
        loop {
            match changes.begin(owner) {
                Ok(share) => held.push(share),
                Err(bound) => return (held, bound),
            }
        }
    }

    #[test]
    fn owner_with_many_changes_leaves_places_to_others() {
        let changes = PolicyChanges::new();
        let first = UserId::random();
        let (held, bound) = take_all(&changes, &first);
        assert_eq!(held.len(), 16);
        assert!(bound.contains("one owner may have"), "{bound}");
        let mut others = Vec::new();
        for _ in 0..6 {
            let (taken, bound) = take_all(&changes, &UserId::random());
            assert!(!taken.is_empty(), "{bound}");
            others.push((taken, bound));
        }
        let (_, bound) = others.last().unwrap();
        assert!(bound.contains("64 places"), "{bound}");
        drop((held, others));
        assert_eq!(take_all(&changes, &first).0.len(), 16);
    }
}

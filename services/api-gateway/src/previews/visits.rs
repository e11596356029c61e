//! The visits of public previews, and their entries in the audit trail.
//!
//! Everybody may send requests to a public preview. With an entry for each, strangers could fill the trail,
//! which refuses the commands of all users while it is full.
//!
//! * I1. A client network has an entry when it first visits a public preview, and again after
//!   [`WINDOW`]. Its other requests have none.
//! * I2. The entries of all public previews of one creator are bounded. Beyond the bound a visit has no
//!   entry, which is counted.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::time::Duration;

use agentbox_contracts::audit::AuditAction;
use agentbox_contracts::error::Error;
use agentbox_contracts::ids::{PreviewId, UserId};
use agentbox_contracts::preview::Preview;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::audit;
use crate::edge::client_address::ClientAddress;
use crate::metrics;
use crate::state::Gateway;

/// How long the entry of a visitor counts for its other requests.
const WINDOW: Duration = Duration::from_secs(60 * 60);
/// Entries of the visitors of one creator's previews in [`WINDOW`].
const MAX_ENTRIES: usize = 1_000;
/// Creators in memory above which those without visits are forgotten.
const MAX_IDLE: usize = 1_024;

/// A preview, and the network of a client.
type Visitor = (PreviewId, IpAddr);

/// The visits with an entry, of each creator of previews.
#[derive(Default)]
pub(crate) struct Visits(Mutex<HashMap<UserId, Recent>>);

struct Recent {
    since: Instant,
    /// Entries that were begun.
    entries: usize,
    visitors: HashSet<Visitor>,
}

impl Recent {
    fn new(now: Instant) -> Self {
        Self {
            since: now,
            entries: 0,
            visitors: HashSet::new(),
        }
    }

    fn is_over(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.since) >= WINDOW
    }
}

/// Whether a visit needs an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Entry {
    Due,
    Recorded,
    BeyondTheBound,
}

impl Visits {
    /// Decides about a visit, and counts its entry if it is due.
    fn begin(&self, creator: &UserId, visitor: &Visitor, now: Instant) -> Entry {
        let mut creators = self.0.lock();
        if creators.len() >= MAX_IDLE && !creators.contains_key(creator) {
            creators.retain(|_, recent| !recent.is_over(now));
        }
        let recent = creators
            .entry(creator.clone())
            .or_insert_with(|| Recent::new(now));
        if recent.is_over(now) {
            *recent = Recent::new(now);
        }
        if recent.visitors.contains(visitor) {
            return Entry::Recorded;
        }
        if recent.entries >= MAX_ENTRIES {
            return Entry::BeyondTheBound;
        }
        recent.entries += 1;
        Entry::Due
    }

    /// Ends what [`Self::begin`] has begun. The entry of a caller that is gone before counts, because it
    /// may be stored.
    fn end(&self, creator: &UserId, visitor: Visitor, is_stored: bool) {
        let mut creators = self.0.lock();
        let Some(recent) = creators.get_mut(creator) else {
            return;
        };
        if is_stored {
            recent.visitors.insert(visitor);
        } else {
            recent.entries = recent.entries.saturating_sub(1);
        }
    }
}

/// Records a request to a preview before it is sent to the box, unless it is one of a visitor of a public
/// preview who has an entry.
///
/// # Errors
/// As [`audit::accept`].
pub(super) async fn record(
    gateway: &Gateway,
    preview: &Preview,
    creator: &UserId,
    client: ClientAddress,
) -> Result<(), Error> {
    let store = audit::accept(gateway, AuditAction::UsePort, &preview.environment, &[]);
    if !preview.public {
        return store.await;
    }
    let visitor = (preview.id.clone(), client.network());
    match gateway.visits.begin(creator, &visitor, Instant::now()) {
        Entry::Due => {
            let stored = store.await;
            gateway.visits.end(creator, visitor, stored.is_ok());
            stored
        }
        Entry::Recorded => Ok(()),
        Entry::BeyondTheBound => {
            metrics::limit_reached("audit_entries_of_visitors");
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(number: usize) -> IpAddr {
        IpAddr::from(u32::try_from(number).unwrap().to_be_bytes())
    }

    #[test]
    fn visitor_has_one_entry_for_each_preview_in_an_hour() {
        let (visits, creator, now) = (Visits::default(), UserId::random(), Instant::now());
        let (first, second) = (PreviewId::random(), PreviewId::random());
        let visit = |preview: &PreviewId, number, now| {
            let visitor = (preview.clone(), network(number));
            let entry = visits.begin(&creator, &visitor, now);
            if entry == Entry::Due {
                visits.end(&creator, visitor, true);
            }
            entry
        };
        assert_eq!(visit(&first, 1, now), Entry::Due);
        assert_eq!(visit(&first, 1, now), Entry::Recorded);
        assert_eq!(visit(&first, 2, now), Entry::Due);
        assert_eq!(visit(&second, 1, now), Entry::Due);
        let last = now + WINDOW - Duration::from_secs(1);
        assert_eq!(visit(&first, 1, last), Entry::Recorded);
        assert_eq!(visit(&first, 1, now + WINDOW), Entry::Due);
    }

    #[test]
    fn entries_of_one_creator_are_bounded_and_one_that_was_not_stored_is_due_again() {
        let (visits, creator, now) = (Visits::default(), UserId::random(), Instant::now());
        let preview = PreviewId::random();
        let visitor = |number| (preview.clone(), network(number));
        for number in 0..MAX_ENTRIES {
            assert_eq!(visits.begin(&creator, &visitor(number), now), Entry::Due);
        }
        let next = visitor(MAX_ENTRIES);
        assert_eq!(visits.begin(&creator, &next, now), Entry::BeyondTheBound);
        let other = UserId::random();
        assert_eq!(visits.begin(&other, &next, now), Entry::Due);
        visits.end(&creator, visitor(0), false);
        assert_eq!(visits.begin(&creator, &visitor(0), now), Entry::Due);
        assert_eq!(visits.begin(&creator, &next, now), Entry::BeyondTheBound);
    }

    #[test]
    fn creators_without_visits_are_forgotten() {
        let (visits, now) = (Visits::default(), Instant::now());
        let visitor = (PreviewId::random(), network(1));
        for _ in 0..MAX_IDLE {
            visits.begin(&UserId::random(), &visitor, now);
        }
        visits.begin(&UserId::random(), &visitor, now + WINDOW);
        assert_eq!(visits.0.lock().len(), 1);
    }
}

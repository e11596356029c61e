//! Tells which boxes may have changed.
//!
//! The stream does its own work while it is polled and owns no task: dropping it ends
//! it. It wakes on containerd's events and every [`POLL`], compares what it sees with
//! what it saw, and between that ends boxes that are over their storage limit and repairs the
//! firewall.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use agentbox_contracts::ids::EnvironmentId;
use agentbox_runtime::{Change, ChangeStream, RuntimeError};
use futures::{StreamExt as _, stream};
use tokio::time::Instant;

use crate::driver::Inner;
use crate::events::{self, Wakes};
use crate::observe::Objects;
use crate::repair;
use crate::storage::{self, Ledger};

/// Without events: as fast as a change can be noticed.
const POLL_ALONE: Duration = Duration::from_millis(200);
/// With events, which may be missed.
const POLL: Duration = Duration::from_secs(1);
/// One change of a box is several events.
const SETTLE: Duration = Duration::from_millis(20);
/// CRI shows a change a little after its event, and later on a machine that has much to
/// do: after an event it is looked again after pauses that double from [`SETTLE`] to this.
const ATTENTIVE: Duration = Duration::from_millis(500);

/// What a change is noticed by: containerd's states, and when our facts changed.
type Fingerprint = (Vec<(String, i32)>, Option<SystemTime>);

struct Watch {
    inner: Arc<Inner>,
    before: BTreeMap<EnvironmentId, Fingerprint>,
    events: Option<Wakes>,
    /// An event has come: they can be relied on a little.
    are_told: bool,
    ready: VecDeque<Change>,
    next_poll: Instant,
    /// After the next poll.
    pause: Duration,
    next_storage: Instant,
    next_repair: Instant,
    ledger: Ledger,
}

/// # Errors
/// When containerd does not answer now.
pub async fn watch(inner: Arc<Inner>) -> Result<ChangeStream, RuntimeError> {
    let events = Some(events::wakes(&inner.cri));
    let before = fingerprints(&inner).await?;
    let now = Instant::now();
    let watch = Watch {
        inner,
        before,
        events,
        are_told: false,
        ready: VecDeque::from([Change { id: None }]),
        next_poll: now,
        pause: POLL_ALONE,
        next_storage: now,
        next_repair: now,
        ledger: Ledger::default(),
    };
    Ok(Box::pin(stream::unfold(watch, |mut watch| async {
        match watch.next().await {
            Ok(change) => Some((change, watch)),
            Err(error) => {
                tracing::info!(%error, "the watch of containerd ended");
                None
            }
        }
    })))
}

impl Watch {
    async fn next(&mut self) -> Result<Change, RuntimeError> {
        loop {
            if let Some(change) = self.ready.pop_front() {
                return Ok(change);
            }
            self.wait().await;
            let now = Instant::now();
            if now >= self.next_storage {
                self.look_after().await?;
                self.next_storage = Instant::now() + storage::INTERVAL;
            }
            if now >= self.next_poll {
                let after = fingerprints(&self.inner).await?;
                let changed = changed(&self.before, &after);
                self.ready
                    .extend(changed.into_iter().map(|id| Change { id: Some(id) }));
                self.before = after;
                self.next_poll = Instant::now() + self.pause;
                self.pause = next_pause(self.pause, self.are_told);
            }
        }
    }

    /// What one replica does for all.
    async fn look_after(&mut self) -> Result<(), RuntimeError> {
        let Some(lead) = self.inner.facts.try_lead()? else {
            self.ledger.forget();
            return Ok(());
        };
        self.inner.check_storage(&lead, &mut self.ledger).await?;
        if Instant::now() >= self.next_repair {
            self.inner.repair_firewall(&lead).await?;
            self.next_repair = Instant::now() + repair::INTERVAL;
        }
        Ok(())
    }

    async fn wait(&mut self) {
        let until = self.next_poll.min(self.next_storage);
        let Some(events) = &mut self.events else {
            return tokio::time::sleep_until(until).await;
        };
        match tokio::time::timeout_at(until, events.next()).await {
            Ok(Some(())) => {
                self.are_told = true;
                self.next_poll = self.next_poll.min(Instant::now() + SETTLE);
                self.pause = SETTLE * 2;
            }
            // They ended; whether containerd did too shows at the next poll.
            Ok(None) => {
                self.events = None;
                self.are_told = false;
                self.next_poll = Instant::now();
                self.pause = POLL_ALONE;
            }
            Err(_) => {}
        }
    }
}

/// The pause after the one after the next poll.
fn next_pause(pause: Duration, are_told: bool) -> Duration {
    match are_told {
        false => POLL_ALONE,
        true if pause >= ATTENTIVE => POLL,
        true => pause * 2,
    }
}

async fn fingerprints(inner: &Inner) -> Result<BTreeMap<EnvironmentId, Fingerprint>, RuntimeError> {
    let mut all = inner.all_objects().await?;
    for id in inner.facts.ids().await? {
        all.entry(id).or_default();
    }
    let mut prints = BTreeMap::new();
    for (id, objects) in all {
        let changed_at = inner.facts.changed_at(&id).await;
        prints.insert(id, (states(&objects), changed_at));
    }
    Ok(prints)
}

fn states(objects: &Objects) -> Vec<(String, i32)> {
    let sandboxes = objects
        .sandboxes
        .iter()
        .map(|sandbox| (sandbox.id.clone(), sandbox.state));
    let containers = objects.containers.iter().map(|c| (c.id.clone(), c.state));
    let mut states: Vec<_> = sandboxes.chain(containers).collect();
    states.sort();
    states
}

/// Those that came, went, or are not as they were.
fn changed<T: PartialEq>(
    before: &BTreeMap<EnvironmentId, T>,
    after: &BTreeMap<EnvironmentId, T>,
) -> Vec<EnvironmentId> {
    let ids: BTreeSet<_> = before.keys().chain(after.keys()).collect();
    ids.into_iter()
        .filter(|id| before.get(*id) != after.get(*id))
        .cloned()
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_an_event_it_is_looked_often_and_then_seldom() {
        let mut pause = SETTLE * 2;
        let mut pauses = Vec::new();
        for _ in 0..7 {
            pauses.push(u64::try_from(pause.as_millis()).unwrap());
            pause = next_pause(pause, true);
        }
        assert_eq!(pauses, [40, 80, 160, 320, 640, 1000, 1000]);
        assert_eq!(next_pause(SETTLE, false), POLL_ALONE);
    }

    #[test]
    fn a_box_that_came_went_or_differs_is_a_change() {
        let ids: Vec<_> = (0..4).map(|_| EnvironmentId::random()).collect();
        let before = BTreeMap::from([
            (ids[0].clone(), 1),
            (ids[1].clone(), 1),
            (ids[2].clone(), 1),
        ]);
        let after = BTreeMap::from([
            (ids[1].clone(), 2),
            (ids[2].clone(), 1),
            (ids[3].clone(), 1),
        ]);
        let mut expected = vec![ids[0].clone(), ids[1].clone(), ids[3].clone()];
        expected.sort();
        assert_eq!(changed(&before, &after), expected);
        assert!(changed(&after, &after).is_empty());
    }
}

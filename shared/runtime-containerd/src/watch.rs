//! The stream of changes for the scheduler.
//!
//! The stream works while it is polled: it wakes on containerd's events and every [`POLL`], and compares
//! the boxes with those of the last poll. It owns the task of the checks of all boxes ([`Maintenance`]),
//! which also works between polls: dropping the stream ends both.
//!
//! * I1. Only containerd ends the stream, when it does not answer.
//! * I2. The stream holds no lock: its reader may stop polling it at any point.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use agentbox_contracts::ErrorChain;
use agentbox_contracts::ids::EnvironmentId;
use agentbox_runtime::{Change, ChangeStream, RuntimeError};
use futures::{StreamExt as _, stream};
use tokio::time::Instant;

use crate::context::Context;
use crate::events::{self, TaskEvents};
use crate::maintenance::Maintenance;
use crate::observe::Objects;

/// The pause between two polls without events.
const POLL_WITHOUT_EVENTS: Duration = Duration::from_millis(200);
/// The pause between two polls with events, some of which may be missed.
const POLL: Duration = Duration::from_secs(1);
/// The pause after an event: one change of a box is several events.
const SETTLE: Duration = Duration::from_millis(20);
/// CRI lists a change a little after its event, later on a busy machine. The pauses after an event
/// double from [`SETTLE`] to this.
const MAX_PAUSE_AFTER_EVENT: Duration = Duration::from_millis(500);

/// The data of a box that two polls compare: containerd's states, and the state file's modification
/// time.
type Fingerprint = (Vec<(String, i32)>, Option<SystemTime>);

struct Watch {
    context: Arc<Context>,
    before: BTreeMap<EnvironmentId, Fingerprint>,
    events: Option<TaskEvents>,
    /// Whether an event has arrived, so that polls may be less frequent.
    events_work: bool,
    ready: VecDeque<Change>,
    next_poll: Instant,
    /// The pause after the next poll.
    pause: Duration,
}

/// # Errors
/// When containerd does not answer now.
pub async fn watch(context: Arc<Context>) -> Result<ChangeStream, RuntimeError> {
    let events = Some(events::subscribe(&context.cri));
    let before = fingerprints(&context).await?;
    let maintenance = Maintenance::start(context.clone());
    let watch = Watch {
        context,
        before,
        events,
        events_work: false,
        ready: VecDeque::from([Change { id: None }]),
        next_poll: Instant::now(),
        pause: POLL_WITHOUT_EVENTS,
    };
    Ok(Box::pin(stream::unfold(
        (watch, maintenance),
        |(mut watch, mut maintenance)| async move {
            let change = tokio::select! {
                change = watch.next() => change,
                defect = maintenance.ended() => Err(defect),
            };
            match change {
                Ok(change) => Some((change, (watch, maintenance))),
                Err(error) => {
                    tracing::info!(error = %ErrorChain(&error), "the watch of containerd ended");
                    None
                }
            }
        },
    )))
}

impl Watch {
    async fn next(&mut self) -> Result<Change, RuntimeError> {
        loop {
            if let Some(change) = self.ready.pop_front() {
                return Ok(change);
            }
            self.wait().await;
            if Instant::now() >= self.next_poll {
                let after = fingerprints(&self.context).await?;
                let changed = changed(&self.before, &after);
                self.ready
                    .extend(changed.into_iter().map(|id| Change { id: Some(id) }));
                self.before = after;
                self.next_poll = Instant::now() + self.pause;
                self.pause = next_pause(self.pause, self.events_work);
            }
        }
    }

    async fn wait(&mut self) {
        let Some(events) = &mut self.events else {
            return tokio::time::sleep_until(self.next_poll).await;
        };
        match tokio::time::timeout_at(self.next_poll, events.next()).await {
            Ok(Some(())) => {
                self.events_work = true;
                self.next_poll = self.next_poll.min(Instant::now() + SETTLE);
                self.pause = SETTLE * 2;
            }
            // The events ended. The next poll fails if containerd is down.
            Ok(None) => {
                self.events = None;
                self.events_work = false;
                self.next_poll = Instant::now();
                self.pause = POLL_WITHOUT_EVENTS;
            }
            Err(_) => {}
        }
    }
}

/// The pause that follows a `pause` between two polls.
fn next_pause(pause: Duration, events_work: bool) -> Duration {
    match events_work {
        false => POLL_WITHOUT_EVENTS,
        true if pause >= MAX_PAUSE_AFTER_EVENT => POLL,
        true => pause * 2,
    }
}

async fn fingerprints(
    context: &Context,
) -> Result<BTreeMap<EnvironmentId, Fingerprint>, RuntimeError> {
    let mut all = context.all_objects().await?;
    for id in context.states.ids().await? {
        all.entry(id).or_default();
    }
    let mut prints = BTreeMap::new();
    for (id, objects) in all {
        let changed_at = context.states.changed_at(&id).await;
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

/// The boxes that were added, removed or changed.
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
    fn poll_interval_doubles_after_an_event() {
        let mut pause = SETTLE * 2;
        let mut pauses = Vec::new();
        for _ in 0..7 {
            pauses.push(u64::try_from(pause.as_millis()).unwrap());
            pause = next_pause(pause, true);
        }
        assert_eq!(pauses, [40, 80, 160, 320, 640, 1000, 1000]);
        assert_eq!(next_pause(SETTLE, false), POLL_WITHOUT_EVENTS);
    }

    #[test]
    fn added_removed_and_changed_boxes_are_changes() {
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

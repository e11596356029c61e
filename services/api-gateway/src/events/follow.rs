//! Follows events: sends them as they are published.

use agentbox_api::event::EventBody;
use agentbox_bus::{EventStream, StoredEvent};
use agentbox_contracts::environment::Visibility;
use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::ids::UserId;
use futures::StreamExt;
use serde_json::json;

use super::{is_visible, report_unavailable};
use crate::shares::Share;
use crate::stream::sse::{self, EventQueue, Source};

/// When the stream ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Until {
    Forever,
    EnvironmentEnds,
}

pub(super) struct Follower {
    /// `None`: no more events will come.
    stream: Option<EventStream>,
    ready: EventQueue,
    last: Option<u64>,
    visible: Visibility,
    until: Until,
    /// The reader's share of the events in `ready`.
    share: Option<Share<UserId>>,
}

impl Follower {
    /// Follows an environment that has not ended.
    pub(super) fn environment(stream: EventStream, last: Option<u64>, visible: Visibility) -> Self {
        Self {
            stream: Some(stream),
            ready: EventQueue::default(),
            last,
            visible,
            until: Until::EnvironmentEnds,
            share: None,
        }
    }

    /// Replays the events of an environment that has ended: no more will come.
    pub(super) fn ended(stored: Vec<StoredEvent>, last: Option<u64>) -> Self {
        let mut follower = Self {
            stream: None,
            ready: EventQueue::default(),
            last,
            visible: Visibility::All,
            until: Until::EnvironmentEnds,
            share: None,
        };
        let last_status = stored.last().map(|stored| stored.event.status);
        for stored in stored {
            follower.push(stored);
        }
        let status = last_status.map_or_else(|| json!({}), |status| json!({"status": status}));
        follower.ready.push_back(sse::named("end", &status));
        follower
    }

    /// Follows all visible events.
    pub(super) fn all(stream: EventStream, last: Option<u64>, visible: Visibility) -> Self {
        Self {
            stream: Some(stream),
            ready: EventQueue::default(),
            last,
            visible,
            until: Until::Forever,
            share: None,
        }
    }

    /// Holds the share of the events that are in memory until they are sent.
    pub(super) fn with_share(mut self, share: Share<UserId>) -> Self {
        self.share = Some(share);
        self
    }

    /// Reports first that requested events are no longer stored, if there `is_gap`. Their number
    /// is unknown: the sequences in the gap are those of all users' events.
    pub(super) fn with_gap(mut self, is_gap: bool) -> Self {
        if is_gap {
            self.ready.push_front(sse::named("gap", &json!({})));
        }
        self
    }

    fn push(&mut self, stored: StoredEvent) {
        let is_new = self.last.is_none_or(|last| stored.sequence > last);
        let status = stored.event.status;
        if is_new && is_visible(&self.visible, &stored.event) {
            self.last = Some(stored.sequence);
            let body = EventBody::new(stored.sequence, stored.event);
            self.ready.push_back(sse::data(body.id, &body));
        }
        if self.until == Until::EnvironmentEnds && self.stream.is_some() && status.is_ended() {
            self.ready
                .push_back(sse::named("end", &json!({"status": status})));
            self.stream = None;
        }
    }

    fn fail(&mut self, error: &Error) {
        self.ready.fail(error);
        self.stream = None;
    }
}

impl Source for Follower {
    fn queue(&mut self) -> &mut EventQueue {
        &mut self.ready
    }

    async fn fill(&mut self) {
        let Some(stream) = &mut self.stream else {
            self.ready.end();
            return;
        };
        match stream.next().await {
            Some(Ok(stored)) => self.push(stored),
            Some(Err(error)) => self.fail(&report_unavailable(&error)),
            None => self.fail(&Error::new(
                ErrorCode::Unavailable,
                "the event stream was interrupted; connect again with Last-Event-ID",
            )),
        }
    }

    fn sent(&mut self) {
        if let Some(share) = &mut self.share {
            share.shrink(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use agentbox_contracts::environment::{EnvironmentEvent, EventKind, Status};
    use agentbox_contracts::ids::{EnvironmentId, UserId};
    use chrono::Utc;

    use super::*;
    use crate::shares::Shares;
    use crate::stream::sse::testing::on_the_wire;

    fn stored(sequence: u64, kind: EventKind, status: Status) -> StoredEvent {
        StoredEvent {
            sequence,
            event: EnvironmentEvent {
                environment_id: EnvironmentId::random(),
                owner: UserId::random(),
                kind,
                status,
                status_reason: None,
                status_message: None,
                exit_code: None,
                pool: None,
                execution: None,
                at: Utc::now(),
            },
            pending: 0,
        }
    }

    async fn count(mut follower: Follower) -> usize {
        let mut count = 0;
        while sse::next(&mut follower).await.is_some() {
            count += 1;
        }
        count
    }

    #[tokio::test]
    async fn ended_environment_replays_events_after_the_last_id_and_ends() {
        let past = || {
            vec![
                stored(3, EventKind::Created, Status::Pending),
                stored(5, EventKind::Failed, Status::Failed),
            ]
        };
        assert_eq!(count(Follower::ended(past(), None)).await, 3);
        assert_eq!(count(Follower::ended(past(), Some(3))).await, 2);
        assert_eq!(count(Follower::ended(past(), Some(5))).await, 1);
        assert_eq!(count(Follower::ended(vec![], None)).await, 1);
    }

    #[tokio::test]
    async fn sent_event_returns_its_part_of_the_share() {
        let shares = Shares::new(1, 1);
        let user = UserId::random();
        let past = vec![stored(3, EventKind::Created, Status::Pending)];
        let share = shares.take(&user, 1).unwrap();
        let mut follower = Follower::ended(past, None).with_share(share);
        assert!(shares.take(&user, 1).is_err());
        assert!(sse::next(&mut follower).await.is_some());
        assert!(shares.take(&user, 1).is_ok());
    }

    #[tokio::test]
    async fn gap_is_reported_first_and_without_a_count() {
        let mut follower = Follower::ended(vec![], Some(3)).with_gap(true);
        let mut events = Vec::new();
        while let Some(event) = sse::next(&mut follower).await {
            events.push(event);
        }
        assert_eq!(
            on_the_wire(events).await,
            "event: gap\ndata: {}\n\nevent: end\ndata: {}\n\n"
        );
        let without = Follower::ended(vec![], Some(3)).with_gap(false);
        assert_eq!(count(without).await, 1);
    }
}

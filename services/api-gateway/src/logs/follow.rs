//! Follows logs: sends entries as they are written.
//!
//! * I1. The id of an event is the entry's sequence number. When the exec-proxy, the box or the
//!   bus interrupts a stream, it continues at the next number, here or at another gateway: no
//!   entry is repeated, and none is left out without `event: gap`.
//! * I2. `event: end` is sent when the environment has ended, with its final status.
//! * I3. A stream that cannot be read for [`RETRY_TIMEOUT`] ends with `event: error`.

use std::time::Duration;

use agentbox_api::logs::LogLine;
use agentbox_bus::RouteWatch;
use agentbox_contracts::ErrorChain;
use agentbox_contracts::environment::{Environment, Status};
use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::exec::{FromBox, LogsRequest, OpenKind};
use agentbox_contracts::logs::LogEntry;
use axum::response::sse::Event;
use serde_json::json;
use tokio::time::{Instant, sleep};

use super::wait::WAITING;
use crate::authorize::Action;
use crate::box_session::{self, BoxSession};
use crate::lookup::{self, EnvironmentLocation};
use crate::state::Gateway;
use crate::stream::sse::{self, EventQueue, Source};

/// How long failed reads are retried.
const RETRY_TIMEOUT: Duration = Duration::from_secs(30);
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

pub(super) struct Follower {
    gateway: Gateway,
    location: EnvironmentLocation,
    request: LogsRequest,
    /// The last entry that was sent, or that the client has from an earlier stream.
    last: Option<u64>,
    timestamps: bool,
    ready: EventQueue,
    phase: Phase,
    /// Set while the environment is pending.
    start: Option<RouteWatch>,
    retry: Option<Retry>,
}

enum Phase {
    Open,
    Read(Box<BoxSession>),
    /// Find the environment again.
    Locate,
    End,
    Done,
}

/// The state of retries, from the first failure to the next success.
#[derive(Clone, Copy)]
struct Retry {
    /// The time of the first failure.
    since: Instant,
    /// How long to wait before the next attempt.
    pause: Duration,
}

/// The request of the next session, which continues after the entry `last`.
fn continued(request: &LogsRequest, last: Option<u64>) -> LogsRequest {
    match last {
        // `tail` and `since` selected the first entry. A later session continues by sequence.
        Some(last) => LogsRequest {
            from_sequence: Some(last.saturating_add(1)),
            tail: None,
            since: None,
            follow: true,
        },
        None => LogsRequest {
            follow: true,
            ..request.clone()
        },
    }
}

/// The last event. Its fields are absent when the environment no longer exists.
fn end_event(environment: Option<&Environment>) -> Event {
    let body = environment.map_or_else(
        || json!({}),
        |environment| {
            json!({
                "status": environment.status,
                "status_reason": environment.status_reason,
                "exit_code": environment.exit_code,
            })
        },
    );
    sse::named("end", &body)
}

impl Follower {
    pub(super) fn new(
        gateway: Gateway,
        location: EnvironmentLocation,
        request: LogsRequest,
        last: Option<u64>,
        timestamps: bool,
    ) -> Self {
        Self {
            gateway,
            location,
            request,
            last,
            timestamps,
            ready: EventQueue::default(),
            phase: Phase::Open,
            start: None,
            retry: None,
        }
    }

    fn push(&mut self, entries: &[LogEntry]) {
        for entry in entries {
            // A source may begin earlier than requested; repeated entries are skipped.
            if self.last.is_some_and(|last| entry.sequence <= last) {
                continue;
            }
            self.last = Some(entry.sequence);
            let line = LogLine::new(entry, self.timestamps);
            self.ready.push_back(sse::data(entry.sequence, &line));
        }
        self.retry = None;
    }

    /// Waits before the next attempt, or fails if attempts have failed for [`RETRY_TIMEOUT`].
    async fn retry(&mut self, error: &Error) {
        let retry = self.retry.unwrap_or(Retry {
            since: Instant::now(),
            pause: FIRST_PAUSE,
        });
        if retry.since.elapsed() >= RETRY_TIMEOUT {
            self.ready.fail(error);
            return;
        }
        tracing::debug!(error = %ErrorChain(error), "reading logs failed; it will be retried");
        sleep(retry.pause).await;
        self.retry = Some(Retry {
            pause: (retry.pause * 2).min(LONGEST_PAUSE),
            ..retry
        });
        self.phase = Phase::Locate;
    }

    async fn open(&mut self) {
        if self.location.status == Status::Pending {
            self.wait_for_start().await;
            self.phase = Phase::Locate;
            return;
        }
        self.start = None;
        let request = continued(&self.request, self.last);
        let kind = OpenKind::Logs(request);
        match box_session::open(&self.gateway, &self.location, kind).await {
            Ok(session) => self.phase = Phase::Read(Box::new(session)),
            Err(error) => self.retry(&error).await,
        }
    }

    /// Waits until a pending environment may have changed. The first call only begins to watch the
    /// route. The environment is read again afterwards, so an earlier change is not missed.
    async fn wait_for_start(&mut self) {
        match &mut self.start {
            Some(route) => WAITING.for_change(route).await,
            None => self.start = Some(self.gateway.routes.watch(&self.location.id)),
        }
    }

    async fn locate(&mut self) {
        let id = self.location.id.clone();
        // After a failure the route mirror may be outdated.
        let located = if self.retry.is_some() {
            lookup::read_location(&self.gateway, id).await
        } else {
            lookup::locate(&self.gateway, Action::ReadLogs, id).await
        };
        match located {
            Ok(location) => {
                self.location = location;
                self.phase = Phase::Open;
            }
            Err(error) if error.code == ErrorCode::NotFound => self.ready.fail(&error),
            Err(error) => self.retry(&error).await,
        }
    }

    async fn read(&mut self, mut session: Box<BoxSession>) {
        match session.recv().await {
            Ok(Some(FromBox::Logs(entries))) => {
                self.push(&entries);
                self.phase = Phase::Read(session);
            }
            Ok(Some(FromBox::LogsLost(count))) => {
                self.ready
                    .push_back(sse::named("gap", &json!({"lost": count})));
                self.phase = Phase::Read(session);
            }
            Ok(Some(FromBox::LogsEnd { ended: true })) => self.phase = Phase::End,
            Ok(Some(FromBox::LogsEnd { ended: false }) | None) => {
                let error = Error::new(ErrorCode::BoxLost, "the connection to the logs was lost");
                self.retry(&error).await;
            }
            Ok(Some(_)) => self.ready.fail(&Error::internal()),
            Err(error) => self.retry(&error).await,
        }
    }

    /// Sends the end, after all entries, as soon as the scheduler has recorded it.
    async fn end(&mut self) {
        let (gateway, id) = (&self.gateway, &self.location.id);
        let mut route = gateway.routes.watch(id);
        let read_record = || lookup::read_record(gateway, id.clone());
        self.ready
            .push_back(match WAITING.for_end(&mut route, read_record).await {
                Ok(environment) => end_event(environment.as_ref()),
                Err(error) => sse::failure(&error),
            });
        self.phase = Phase::Done;
    }
}

impl Source for Follower {
    fn queue(&mut self) -> &mut EventQueue {
        &mut self.ready
    }

    async fn fill(&mut self) {
        // A phase that does not set the next one ends the stream.
        match std::mem::replace(&mut self.phase, Phase::Done) {
            Phase::Open => self.open().await,
            Phase::Read(session) => self.read(session).await,
            Phase::Locate => self.locate().await,
            Phase::End => self.end().await,
            Phase::Done => self.ready.end(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resumed_stream_continues_at_the_next_sequence() {
        let request = LogsRequest {
            from_sequence: None,
            tail: Some(10),
            since: None,
            follow: true,
        };
        let first = continued(&request, None);
        assert_eq!((first.from_sequence, first.tail), (None, Some(10)));
        let next = continued(&request, Some(41));
        assert_eq!((next.from_sequence, next.tail), (Some(42), None));
        assert!(first.follow && next.follow);
    }
}

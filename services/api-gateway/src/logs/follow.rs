//! Logs as they come.
//!
//! * I1. The id of an event is the entry's number. Wherever a stream breaks off — the
//!   exec-proxy, the box, the bus — it goes on at the next number, here or at another
//!   gateway: nothing is repeated, and nothing left out without `event: gap`.
//! * I2. `event: end` is sent when the environment has ended, with how it ended.
//! * I3. What cannot be read for [`PATIENCE`] ends the stream with `event: error`.

use std::collections::VecDeque;
use std::time::Duration;

use agentbox_contracts::environment::{Environment, Status};
use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::exec::{FromBox, LogsRequest};
use agentbox_contracts::logs::LogEntry;
use axum::response::sse::Event;
use serde_json::json;
use tokio::time::{Instant, sleep};

use super::lines::Lines;
use super::{LogsSession, open};
use crate::authorize::Action;
use crate::lookup::{self, EnvironmentLocation};
use crate::state::Gateway;
use crate::stream::sse::{self, Source};

/// How long a stream that cannot be read is tried again.
const PATIENCE: Duration = Duration::from_secs(30);
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// How often it is looked whether a pending environment runs.
const PENDING_PAUSE: Duration = Duration::from_millis(250);
/// How long the scheduler may take to notice that the environment has ended.
const END_PATIENCE: Duration = Duration::from_secs(10);

pub(super) struct Follower {
    gateway: Gateway,
    location: EnvironmentLocation,
    wanted: LogsRequest,
    /// The last entry that was sent, or that the client said it has.
    last: Option<u64>,
    lines: Lines,
    ready: VecDeque<Event>,
    phase: Phase,
    trouble: Option<Trouble>,
}

enum Phase {
    Open,
    Read(Box<LogsSession>),
    /// Look again where the environment is.
    Find,
    End,
    Over,
}

/// Since when nothing could be read, and how long to wait next.
#[derive(Clone, Copy)]
struct Trouble {
    since: Instant,
    pause: Duration,
}

/// From where a session is to read.
fn request(wanted: &LogsRequest, last: Option<u64>) -> LogsRequest {
    match last {
        // `tail` and `since` chose where to begin; from there on the number says it.
        Some(last) => LogsRequest {
            from_sequence: Some(last.saturating_add(1)),
            tail: None,
            since: None,
            follow: true,
        },
        None => LogsRequest {
            follow: true,
            ..wanted.clone()
        },
    }
}

/// What the last event says of the environment.
fn end(environment: Option<&Environment>) -> Event {
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
        wanted: LogsRequest,
        last: Option<u64>,
        timestamps: bool,
    ) -> Self {
        Self {
            gateway,
            location,
            wanted,
            last,
            lines: Lines::new(timestamps),
            ready: VecDeque::new(),
            phase: Phase::Open,
            trouble: None,
        }
    }

    fn give(&mut self, entries: &[LogEntry]) {
        for entry in entries {
            // A source that begins earlier than it was asked to repeats nothing.
            if self.last.is_some_and(|last| entry.sequence <= last) {
                continue;
            }
            self.last = Some(entry.sequence);
            let line = self.lines.line(entry);
            self.ready.push_back(sse::data(entry.sequence, &line));
        }
        self.trouble = None;
    }

    fn fail(&mut self, error: &Error) {
        self.ready.push_back(sse::failure(error));
        self.phase = Phase::Over;
    }

    /// Tries again after a pause, unless that has been done for long enough.
    async fn try_again(&mut self, error: &Error) {
        let trouble = self.trouble.unwrap_or(Trouble {
            since: Instant::now(),
            pause: FIRST_PAUSE,
        });
        if trouble.since.elapsed() >= PATIENCE {
            self.fail(error);
            return;
        }
        tracing::debug!(%error, "following goes on in a moment");
        sleep(trouble.pause).await;
        self.trouble = Some(Trouble {
            pause: (trouble.pause * 2).min(LONGEST_PAUSE),
            ..trouble
        });
        self.phase = Phase::Find;
    }

    async fn open(&mut self) {
        if self.location.status == Status::Pending {
            sleep(PENDING_PAUSE).await;
            self.phase = Phase::Find;
            return;
        }
        let request = request(&self.wanted, self.last);
        match open(&self.gateway, &self.location, request).await {
            Ok(session) => self.phase = Phase::Read(Box::new(session)),
            Err(error) => self.try_again(&error).await,
        }
    }

    async fn find(&mut self) {
        let id = self.location.id.clone();
        // In trouble the mirror may be what is wrong.
        let found = if self.trouble.is_some() {
            lookup::record(&self.gateway, id)
                .await
                .map(EnvironmentLocation::from)
        } else {
            lookup::locate(&self.gateway, Action::ReadLogs, id).await
        };
        match found {
            Ok(location) => {
                self.location = location;
                self.phase = Phase::Open;
            }
            Err(error) if error.code == ErrorCode::NotFound => self.fail(&error),
            Err(error) => self.try_again(&error).await,
        }
    }

    async fn read(&mut self, mut session: Box<LogsSession>) {
        match session.recv().await {
            Ok(Some(FromBox::Logs(entries))) => {
                self.give(&entries);
                self.phase = Phase::Read(session);
            }
            Ok(Some(FromBox::LogsLost(count))) => {
                self.ready
                    .push_back(sse::named("gap", &json!({"lost": count})));
                self.phase = Phase::Read(session);
            }
            Ok(Some(FromBox::LogsEnd { ended: true })) => self.phase = Phase::End,
            Ok(Some(FromBox::LogsEnd { ended: false }) | None) => {
                let error = Error::new(ErrorCode::BoxLost, "the logs broke off");
                self.try_again(&error).await;
            }
            Ok(Some(_)) => self.fail(&Error::internal()),
            Err(error) => self.try_again(&error).await,
        }
    }

    /// All lines were sent; says how the environment ended, as soon as that is known.
    async fn end(&mut self) {
        let give_up = Instant::now() + END_PATIENCE;
        loop {
            match lookup::record(&self.gateway, self.location.id.clone()).await {
                Ok(environment) if environment.status.is_ended() => {
                    self.ready.push_back(end(Some(&environment)));
                    break;
                }
                Err(error) if error.code == ErrorCode::NotFound => {
                    self.ready.push_back(end(None));
                    break;
                }
                Ok(environment) if Instant::now() >= give_up => {
                    self.ready.push_back(end(Some(&environment)));
                    break;
                }
                Err(error) if Instant::now() >= give_up => {
                    self.ready.push_back(sse::failure(&error));
                    break;
                }
                Ok(_) | Err(_) => sleep(FIRST_PAUSE).await,
            }
        }
        self.phase = Phase::Over;
    }
}

impl Source for Follower {
    async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(event);
            }
            // Whatever is not put back has come to its end.
            match std::mem::replace(&mut self.phase, Phase::Over) {
                Phase::Open => self.open().await,
                Phase::Read(session) => self.read(session).await,
                Phase::Find => self.find().await,
                Phase::End => self.end().await,
                Phase::Over => return None,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_goes_on_at_the_next_number_whatever_it_began_with() {
        let wanted = LogsRequest {
            from_sequence: None,
            tail: Some(10),
            since: None,
            follow: true,
        };
        let first = request(&wanted, None);
        assert_eq!((first.from_sequence, first.tail), (None, Some(10)));
        let next = request(&wanted, Some(41));
        assert_eq!((next.from_sequence, next.tail), (Some(42), None));
        assert!(first.follow && next.follow);
    }
}

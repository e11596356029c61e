//! Opens one stream of each kind on every replica, and checks how they end.

use std::time::Duration;

use serde_json::json;
use tokio::time::{Instant, timeout, timeout_at};

use super::TIMEOUT;
use super::caller::Caller;
use super::eventually_some;
use super::socket::Socket;
use super::sse::Events;

/// How soon a stream must end after its credential was revoked or its caller lost access.
pub const END_DEADLINE: Duration = Duration::from_secs(5);

pub struct Streams {
    /// Streams of one environment.
    pub events: Vec<Events>,
    /// Streams of all visible events.
    pub lists: Vec<Events>,
    pub sockets: Vec<Socket>,
    mark: String,
}

impl Streams {
    pub async fn open(caller: &Caller, id: &str) -> Self {
        let mark = format!("6{:06}", rand::random::<u32>() % 1_000_000);
        let mut streams = Self {
            events: Vec::new(),
            lists: Vec::new(),
            sockets: Vec::new(),
            mark,
        };
        let query = streams.query();
        for gateway in 0..caller.gateways() {
            let path = format!("/environments/{id}/logs?follow=true");
            let logs = Events::resume(caller, gateway, &path, None).await;
            streams.events.push(logs);
            let all = Events::resume(caller, gateway, "/events?follow=true", None).await;
            streams.lists.push(all);
            let mut socket = Socket::open_on(caller, gateway, id, &query)
                .await
                .unwrap_or_else(|(status, body)| panic!("{status} {body}"));
            socket.ready().await;
            streams.sockets.push(socket);
        }
        streams
    }

    /// The query of an attach with a command that can be found by its mark.
    pub fn query(&self) -> String {
        let mark = &self.mark;
        format!("tty=false&command=sh&command=-c&command=sleep%20{mark}%3B%20true")
    }

    /// Reads all streams until `when`, and asserts that none sends anything.
    pub async fn expect_silence_until(&mut self, when: Instant) {
        let streams = self.events.iter_mut().chain(&mut self.lists);
        let events = streams.map(async |events| {
            let received = timeout_at(when, events.next()).await;
            assert!(received.is_err(), "{received:?}");
        });
        let sockets = self.sockets.iter_mut().map(async |socket| {
            let received = timeout_at(when, socket.next()).await;
            assert!(received.is_err(), "{received:?}");
        });
        tokio::join!(
            futures::future::join_all(events),
            futures::future::join_all(sockets)
        );
    }

    /// Asserts that all streams end with 401, and that their commands are killed. Returns how long the
    /// last stream took. `observer` has access to the environment still.
    pub async fn expect_unauthorized(self, observer: &Caller, id: &str) -> Duration {
        self.expect_end(401, 401, 4401, observer, id).await
    }

    /// Asserts that all streams end: those of the environment and those of all events with these error
    /// codes, the sockets with this close code. Returns how long the last one took.
    pub async fn expect_end(
        self,
        environment_code: u16,
        list_code: u16,
        close: u16,
        observer: &Caller,
        id: &str,
    ) -> Duration {
        let begun = Instant::now();
        let events = self
            .events
            .into_iter()
            .map(|events| (events, environment_code));
        let lists = self.lists.into_iter().map(|events| (events, list_code));
        for (events, code) in events.chain(lists) {
            let rest = timeout(TIMEOUT, events.read_to_end())
                .await
                .expect("events end");
            let last = rest.last().expect("a last event");
            assert_eq!(
                (last.name.as_str(), &last.json()["code"]),
                ("error", &json!(code))
            );
        }
        for mut socket in self.sockets {
            let output = timeout(TIMEOUT, socket.read_to_end())
                .await
                .expect("sockets close");
            assert_eq!(output.close.0, close, "{output:?}");
            assert!(
                output.exit.is_none() && output.error.is_some(),
                "{output:?}"
            );
        }
        let took = begun.elapsed();
        let text = format!("sleep {}", self.mark);
        eventually_some("their commands are killed", END_DEADLINE, async || {
            (!observer.has_process(id, &text).await).then_some(())
        })
        .await;
        took
    }
}

//! Opens one stream of each kind on every replica, and checks how they end.

use std::time::Duration;

use serde_json::json;
use tokio::time::{Instant, timeout, timeout_at};

use super::caller::Caller;
use super::socket::Socket;
use super::sse::Events;
use super::within;

/// How soon a stream must end after its credential or right.
pub const AT_MOST: Duration = Duration::from_secs(5);

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

    /// Reads all streams until `when`; none may send anything.
    pub async fn are_quiet_until(&mut self, when: Instant) {
        let of_one = self.events.iter_mut();
        let events = of_one.chain(&mut self.lists).map(async |events| {
            let said = timeout_at(when, events.next()).await;
            assert!(said.is_err(), "{said:?}");
        });
        let sockets = self.sockets.iter_mut().map(async |socket| {
            let said = timeout_at(when, socket.next()).await;
            assert!(said.is_err(), "{said:?}");
        });
        tokio::join!(
            futures::future::join_all(events),
            futures::future::join_all(sockets)
        );
    }

    /// Asserts that all end with 401 by the deadline. `still` checks that their commands are killed.
    pub async fn end(self, still: &Caller, id: &str) {
        self.end_with(401, 401, 4401, still, id).await;
    }

    /// Asserts that all end by the deadline, with these codes.
    pub async fn end_with(self, of_one: u16, of_all: u16, close: u16, still: &Caller, id: &str) {
        let deadline = Instant::now() + AT_MOST;
        let left = || deadline.saturating_duration_since(Instant::now());
        let events = self.events.into_iter().map(|events| (events, of_one));
        let lists = self.lists.into_iter().map(|events| (events, of_all));
        for (events, code) in events.chain(lists) {
            let rest = timeout(left(), events.rest())
                .await
                .expect("events end in time");
            let last = rest.last().expect("a last word");
            assert_eq!(
                (last.name.as_str(), &last.json()["code"]),
                ("error", &json!(code))
            );
        }
        for mut socket in self.sockets {
            let said = timeout(left(), socket.rest())
                .await
                .expect("sockets close in time");
            assert_eq!(said.close.0, close, "{said:?}");
            assert!(said.exit.is_none() && said.error.is_some(), "{said:?}");
        }
        let text = format!("sleep {}", self.mark);
        within(AT_MOST, "their commands are killed", async || {
            (!still.runs(id, &text).await).then_some(())
        })
        .await;
    }
}

//! A client of server-sent events, which also sees comments.

use std::time::Duration;

use reqwest::Method;
use serde_json::Value;

use super::answer::{Answer, check_head, header};
use super::caller::Caller;

/// How long the next event may take.
const NEXT: Duration = Duration::from_secs(40);

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    pub id: Option<String>,
    /// `message` for an event without a name.
    pub name: String,
    pub data: String,
    /// The block was a comment.
    pub is_comment: bool,
}

impl Event {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.data).unwrap()
    }

    pub fn number(&self) -> u64 {
        self.id.as_ref().unwrap().parse().unwrap()
    }

    fn parse(block: &str) -> Self {
        let mut event = Self {
            id: None,
            name: "message".to_owned(),
            data: String::new(),
            is_comment: block.lines().all(|line| line.starts_with(':')),
        };
        for line in block.lines() {
            let (field, value) = line.split_once(':').unwrap_or((line, ""));
            let value = value.strip_prefix(' ').unwrap_or(value);
            match field {
                "event" => value.clone_into(&mut event.name),
                "id" => event.id = Some(value.to_owned()),
                "data" => event.data.push_str(value),
                _ => {}
            }
        }
        event
    }
}

/// An open stream. Dropping it closes the connection.
pub struct Events {
    response: reqwest::Response,
    buffer: String,
}

impl Events {
    pub async fn open(caller: &Caller, path: &str) -> Self {
        Self::resume(caller, caller.next_gateway(), path, None).await
    }

    /// Resumes at one gateway, after an event.
    pub async fn resume(caller: &Caller, gateway: usize, path: &str, last: Option<u64>) -> Self {
        match Self::try_open(caller, gateway, path, last).await {
            Ok(events) => events,
            Err(answer) => panic!("{answer:?}"),
        }
    }

    pub async fn try_open(
        caller: &Caller,
        gateway: usize,
        path: &str,
        last: Option<u64>,
    ) -> Result<Self, Answer> {
        let mut request = caller
            .request_on(gateway, Method::GET, path)
            .timeout(Duration::from_secs(600))
            .header("accept", "text/event-stream");
        if let Some(last) = last {
            request = request.header("last-event-id", last);
        }
        let response = request.send().await.unwrap();
        if response.status() != 200 {
            return Err(Answer::read(response).await);
        }
        let headers = response.headers();
        assert_eq!(header(headers, "content-type"), Some("text/event-stream"));
        check_head(200, headers);
        Ok(Self {
            response,
            buffer: String::new(),
        })
    }

    /// The next event or comment; `None` at the end of the stream.
    pub async fn next_block(&mut self) -> Option<Event> {
        loop {
            if let Some(end) = self.buffer.find("\n\n") {
                let rest = self.buffer.split_off(end + 2);
                let block = std::mem::replace(&mut self.buffer, rest);
                return Some(Event::parse(block.trim_end()));
            }
            let chunk = tokio::time::timeout(NEXT, self.response.chunk()).await;
            // A broken connection ends the stream too.
            let chunk = chunk.expect("the next event in time").ok().flatten()?;
            // Tests write ASCII.
            self.buffer.push_str(std::str::from_utf8(&chunk).unwrap());
        }
    }

    /// The next event, without comments.
    pub async fn next(&mut self) -> Option<Event> {
        loop {
            let event = self.next_block().await?;
            if !event.is_comment {
                return Some(event);
            }
        }
    }

    pub async fn take(&mut self, count: usize) -> Vec<Event> {
        let mut events = Vec::new();
        while events.len() < count {
            events.push(self.next().await.expect("another event"));
        }
        events
    }

    /// All events until the end of the stream.
    pub async fn read_to_end(mut self) -> Vec<Event> {
        let mut events = Vec::new();
        while let Some(event) = self.next().await {
            events.push(event);
        }
        events
    }
}

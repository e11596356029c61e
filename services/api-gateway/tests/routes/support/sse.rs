//! A client of server-sent events, which also sees comments.

use std::time::Duration;

use reqwest::{Method, RequestBuilder};
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

/// The offset after the empty line that ends the first block.
fn block_end(text: &str) -> Option<usize> {
    let mut lines = text.match_indices('\n').map(|(at, _)| at + 1);
    let empty = lines.find(|at| text[*at..].starts_with('\n'))?;
    Some(empty + 1)
}

/// An open stream. Dropping it closes the connection.
pub struct Events {
    response: reqwest::Response,
    buffer: String,
    /// Bytes after it, the beginning of a character.
    incomplete: Vec<u8>,
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
        let last = last.map(|last| last.to_string());
        Self::open_after(caller, gateway, path, last.as_deref())
            .await
            .unwrap()
    }

    /// Opens a stream after the event with the id `last`. The outer error: the gateway cannot be
    /// reached.
    pub async fn open_after(
        caller: &Caller,
        gateway: usize,
        path: &str,
        last: Option<&str>,
    ) -> Result<Result<Self, Answer>, reqwest::Error> {
        let mut request = caller.request_on(gateway, Method::GET, path);
        if let Some(last) = last {
            request = request.header("last-event-id", last);
        }
        Self::send(request).await
    }

    /// Sends a request whose answer is a stream. The outer error: the gateway cannot be reached.
    pub async fn send(request: RequestBuilder) -> Result<Result<Self, Answer>, reqwest::Error> {
        let response = request
            .timeout(Duration::from_secs(600))
            .header("accept", "text/event-stream")
            .send()
            .await?;
        if response.status() != 200 {
            return Ok(Err(Answer::read(response).await));
        }
        let headers = response.headers();
        assert_eq!(header(headers, "content-type"), Some("text/event-stream"));
        check_head(200, headers);
        Ok(Ok(Self {
            response,
            buffer: String::new(),
            incomplete: Vec::new(),
        }))
    }

    /// The next event or comment; `None` at the end of the stream.
    pub async fn next_block(&mut self) -> Option<Event> {
        loop {
            if let Some(end) = block_end(&self.buffer) {
                let rest = self.buffer.split_off(end);
                let block = std::mem::replace(&mut self.buffer, rest);
                return Some(Event::parse(block.trim_end()));
            }
            let chunk = tokio::time::timeout(NEXT, self.response.chunk()).await;
            // A broken connection ends the stream too.
            let chunk = chunk.expect("the next event in time").ok().flatten()?;
            self.push(&chunk);
        }
    }

    fn push(&mut self, chunk: &[u8]) {
        self.incomplete.extend_from_slice(chunk);
        let complete = match std::str::from_utf8(&self.incomplete) {
            Ok(text) => text.len(),
            Err(error) => error.valid_up_to(),
        };
        let rest = self.incomplete.split_off(complete);
        let text = String::from_utf8(std::mem::replace(&mut self.incomplete, rest));
        self.buffer.push_str(&text.unwrap());
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

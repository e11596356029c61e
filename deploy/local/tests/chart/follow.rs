//! Followed logs: a short one, and a long one that resumes as an EventSource does.

use std::time::Duration;

use reqwest::Method;
use serde_json::Value;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::load::Client;

const EVENT_DEADLINE: Duration = Duration::from_secs(20);

/// An open stream.
struct Stream {
    response: reqwest::Response,
    buffer: Vec<u8>,
}

/// An event with its id.
struct Line {
    id: u64,
    message: String,
}

impl Stream {
    async fn open(client: &Client, id: &str, after: Option<u64>) -> Result<Self, String> {
        let path = format!("/environments/{id}/logs?follow=true");
        let mut request = client.request(Method::GET, &path);
        if let Some(last) = after {
            request = request.header("Last-Event-ID", last.to_string());
        }
        let response = tokio::time::timeout(EVENT_DEADLINE, request.send())
            .await
            .map_err(|_| format!("{path}: no answer"))?
            .map_err(|error| format!("{path}: {error:?}"))?;
        if response.status() != 200 {
            let status = response.status();
            let body = response.text().await.unwrap_or_default();
            return Err(format!("{path}: {status} {body}"));
        }
        Ok(Self {
            response,
            buffer: Vec::new(),
        })
    }

    /// `None` when the server has ended the stream in order.
    async fn next(&mut self) -> Result<Option<Line>, String> {
        loop {
            while let Some(end) = self.buffer.windows(2).position(|two| two == b"\n\n") {
                let block: Vec<u8> = self.buffer.drain(..end + 2).collect();
                if let Some(line) = parse(&String::from_utf8_lossy(&block))? {
                    return Ok(Some(line));
                }
            }
            let chunk = tokio::time::timeout(EVENT_DEADLINE, self.response.chunk())
                .await
                .map_err(|_| "a followed log is silent".to_owned())?
                .map_err(|error| format!("a followed log broke: {error:?}"))?;
            match chunk {
                Some(bytes) => self.buffer.extend_from_slice(&bytes),
                None => return Ok(None),
            }
        }
    }
}

/// Parses an event; `None` for a comment.
fn parse(block: &str) -> Result<Option<Line>, String> {
    let field = |name: &str| block.lines().find_map(|line| line.strip_prefix(name));
    if let Some(event) = field("event: ") {
        return Err(format!("a followed log sent the event {event}: {block}"));
    }
    let Some(data) = field("data: ") else {
        return Ok(None);
    };
    let data: Value = serde_json::from_str(data).map_err(|error| error.to_string())?;
    let id = field("id: ").and_then(|id| id.parse().ok());
    Ok(Some(Line {
        id: id.ok_or("a line without a number")?,
        message: data["message"].as_str().unwrap_or_default().to_owned(),
    }))
}

/// Follows a log for ten consecutive lines.
pub async fn follow_ten_lines(client: &Client, id: &str) -> Result<(), String> {
    let mut stream = Stream::open(client, id, None).await?;
    let mut last = None;
    for _ in 0..10 {
        let line = stream
            .next()
            .await?
            .ok_or("a followed log ended after some lines")?;
        if last.is_some_and(|last| line.id != last + 1) {
            return Err(format!("line {} comes after {last:?}", line.id));
        }
        last = Some(line.id);
    }
    Ok(())
}

/// The lines that an EventSource has received.
#[derive(Debug, Default)]
pub struct Followed {
    pub lines: usize,
    /// The number of times that it resumed.
    pub resumed: usize,
    pub failures: Vec<String>,
}

/// Follows the numbers of a box. When the stream ends, as it does when a gateway stops, it resumes
/// after the last line.
pub fn follow_until_stopped(
    client: Client,
    id: String,
    stop: CancellationToken,
) -> JoinHandle<Followed> {
    tokio::spawn(async move {
        let mut followed = Followed::default();
        let mut last: Option<Line> = None;
        while !stop.is_cancelled() {
            let opened = Stream::open(&client, &id, last.as_ref().map(|line| line.id)).await;
            let mut stream = match opened {
                Ok(stream) => stream,
                Err(why) => {
                    followed.failures.push(why);
                    continue;
                }
            };
            while !stop.is_cancelled() {
                match stream.next().await {
                    Ok(Some(line)) => {
                        let before = last.as_ref().and_then(|l| l.message.parse::<u64>().ok());
                        let now = line.message.parse::<u64>().ok();
                        if before.is_some() && now != before.map(|n| n + 1) {
                            followed
                                .failures
                                .push(format!("{now:?} comes after {before:?}"));
                        }
                        followed.lines += 1;
                        last = Some(line);
                    }
                    Ok(None) => {
                        followed.resumed += 1;
                        break;
                    }
                    Err(why) => {
                        followed.failures.push(why);
                        break;
                    }
                }
            }
        }
        followed
    })
}

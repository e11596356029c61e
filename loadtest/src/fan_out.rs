//! Measures the way of a line to many readers: from a client that sends it to the environment's main
//! command, until each follower of the log has it as a server-sent event.
//!
//! The main command prints what it reads from a FIFO. A second command, whose stdin is a WebSocket,
//! writes to the FIFO.
//!
//! * I1. The environment is deleted at the end, also after a failure.

use std::time::{Duration, Instant};

use agentbox_api::attach::ClientMessage;
use agentbox_client::{AttachSession, Client, LogItem};
use agentbox_contracts::ids::EnvironmentId;
use anyhow::{Context as _, anyhow, bail};
use serde_json::json;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{interval, timeout};

use crate::environment::{Size, delete, request, start};
use crate::figures::{Figure, Samples};
use crate::report::Measured;
use crate::target::Api;

const FOLLOWERS: [usize; 3] = [1, 32, 256];
const LINES: usize = 50;
const LINE_INTERVAL: Duration = Duration::from_millis(100);
/// For one case: its followers' connections and all lines.
const CASE_DEADLINE: Duration = Duration::from_secs(120);
const SIZE: Size = Size {
    cpu: "2",
    memory: "256Mi",
    storage: "64Mi",
};
const LIFETIME_S: u64 = 900;
/// Open for reading and writing, so that the end of a writer is not the end of the input.
const MAIN_COMMAND: &str = "mkfifo /tmp/lines && exec 3<>/tmp/lines && exec cat <&3";
const WRITER: &str = "until [ -p /tmp/lines ]; do sleep 1; done; exec cat >/tmp/lines";

/// # Errors
/// When the environment does not run, or its commands do not.
pub async fn measure(api: &Api) -> anyhow::Result<Measured> {
    let mut body = request("bench-fan-out", SIZE, LIFETIME_S);
    body["command"] = json!(["sh", "-c", MAIN_COMMAND]);
    let (id, started) = start(api, &body).await;
    let figures = match (&id, started) {
        (Some(id), Ok(_)) => cases(&api.client, id).await,
        (_, Err(error)) => Err(error),
        (None, Ok(_)) => Err(anyhow!("an environment without an id")),
    };
    delete(api, id, true).await;
    Ok(Measured {
        figures: figures?,
        ..Measured::default()
    })
}

async fn cases(client: &Client, id: &EnvironmentId) -> anyhow::Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for followers in FOLLOWERS {
        let case = case(client, id, followers);
        let figure = timeout(CASE_DEADLINE, case)
            .await
            .with_context(|| format!("{followers} followers after {CASE_DEADLINE:?}"))??;
        figures.push(figure);
    }
    Ok(figures)
}

async fn case(client: &Client, id: &EnvironmentId, followers: usize) -> anyhow::Result<Figure> {
    let query = [
        ("command", "sh"),
        ("command", "-c"),
        ("command", WRITER),
        ("tty", "false"),
    ];
    // For one case only: nobody reads what the server sends to it, its pings included.
    let mut writer = client.attach(id, &query).await?;
    let (ready, mut all_ready) = mpsc::channel(followers);
    let mut readers = JoinSet::new();
    for _ in 0..followers {
        let follower = follow(client.clone(), id.clone(), followers, ready.clone());
        readers.spawn(follower);
    }
    drop(ready);
    // Each follower reports the first line, which may be a kept one: its stream is open then.
    send(&mut writer, &line(followers, 0)).await?;
    for _ in 0..followers {
        tokio::select! {
            Some(()) = all_ready.recv() => {}
            Some(ended) = readers.join_next() => {
                ended??;
                bail!("a follower ended before the others had the first line");
            }
            else => bail!("all followers ended before the first line"),
        }
    }
    let started = Instant::now();
    let mut ticks = interval(LINE_INTERVAL);
    let mut sent = vec![started];
    for number in 1..=LINES {
        ticks.tick().await;
        sent.push(Instant::now());
        send(&mut writer, &line(followers, number)).await?;
    }
    let mut results = Vec::new();
    while let Some(reader) = readers.join_next().await {
        match reader? {
            Ok(arrivals) => results.extend(
                arrivals
                    .into_iter()
                    .zip(&sent)
                    .skip(1)
                    .map(|(arrived, sent)| Ok(arrived.saturating_duration_since(*sent))),
            ),
            Err(error) => results.push(Err(error)),
        }
    }
    writer.close().await?;
    let name = format!("a line to {followers} followers of a log");
    Ok(Samples::concurrent(results, started.elapsed()).figure(&name))
}

/// The lines of a case have a prefix of their own, because a follower gets those of earlier cases too.
fn line(followers: usize, number: usize) -> String {
    format!("case {followers} line {number}")
}

async fn send(writer: &mut AttachSession, line: &str) -> anyhow::Result<()> {
    let data = format!("{line}\n");
    Ok(writer.send(&ClientMessage::Stdin { data }).await?)
}

/// Follows the log until the last line of the case. Gives the arrival of each line.
async fn follow(
    client: Client,
    id: EnvironmentId,
    followers: usize,
    ready: mpsc::Sender<()>,
) -> anyhow::Result<Vec<Instant>> {
    let mut log = client.follow(&id, None).await?;
    let mut arrivals = Vec::new();
    while arrivals.len() <= LINES {
        match log.next().await? {
            Some(LogItem::Line { line: seen, .. }) => {
                if seen.message == line(followers, arrivals.len()) {
                    arrivals.push(Instant::now());
                    if arrivals.len() == 1 {
                        ready.send(()).await?;
                    }
                }
            }
            Some(LogItem::Event { name, data }) => bail!("{name} in the log: {data}"),
            None => bail!("the log ended after {} lines", arrivals.len()),
        }
    }
    Ok(arrivals)
}

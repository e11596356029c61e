//! Measures the echo of a terminal: a character to the terminal, until its echo arrives.
//!
//! `cat` runs on the terminal; the kernel's line discipline echoes each character at once.
//!
//! * I1. The environment is deleted at the end, also after a failure.

use std::time::{Duration, Instant};

use agentbox_api::attach::{ClientMessage, ServerMessage};
use agentbox_client::{AttachSession, Client};
use agentbox_contracts::ids::EnvironmentId;
use anyhow::{Context as _, bail};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::environment::{Size, create_all, delete_all};
use crate::figures::{Figure, Samples};
use crate::report::Measured;
use crate::target::Api;

/// Terminals at the same time, and echoes on each.
const CASES: [(usize, usize); 2] = [(1, 300), (32, 60)];
const ECHO_DEADLINE: Duration = Duration::from_secs(10);
const SIZE: Size = Size {
    cpu: "2",
    memory: "256Mi",
    storage: "64Mi",
};
const LIFETIME_S: u64 = 900;

/// # Errors
/// When the environment does not run.
pub async fn measure(api: &Api) -> anyhow::Result<Measured> {
    let ids = create_all(api, "bench-attach", SIZE, LIFETIME_S, 1).await?;
    let mut figures = Vec::new();
    for (terminals, echoes) in CASES {
        if let Some(id) = ids.first() {
            figures.push(case(api, id, terminals, echoes).await);
        }
    }
    delete_all(api, ids).await;
    Ok(Measured {
        figures,
        ..Measured::default()
    })
}

async fn case(api: &Api, id: &EnvironmentId, terminals: usize, echoes: usize) -> Figure {
    let mut sessions = JoinSet::new();
    let started = Instant::now();
    for _ in 0..terminals {
        let (client, id) = (api.client.clone(), id.clone());
        sessions.spawn(async move {
            let mut samples = Samples::default();
            if let Err(error) = terminal(&client, &id, echoes, &mut samples).await {
                samples.record(Err(error));
            }
            samples
        });
    }
    let mut all = Samples::default();
    for samples in sessions.join_all().await {
        all.merge(samples);
    }
    all.within(started.elapsed())
        .figure(&format!("echo of a terminal, {terminals} at once"))
}

async fn terminal(
    client: &Client,
    id: &EnvironmentId,
    echoes: usize,
    samples: &mut Samples,
) -> anyhow::Result<()> {
    let mut session = client.attach(id, &[("command", "cat")]).await?;
    for _ in 0..echoes {
        let sent = Instant::now();
        let data = "x".to_owned();
        session.send(&ClientMessage::Stdin { data }).await?;
        timeout(ECHO_DEADLINE, echo(&mut session))
            .await
            .with_context(|| format!("no echo within {ECHO_DEADLINE:?}"))??;
        samples.record(Ok(sent.elapsed()));
    }
    session.close().await?;
    Ok(())
}

async fn echo(session: &mut AttachSession) -> anyhow::Result<()> {
    loop {
        match session.next().await? {
            Some(ServerMessage::Stdout { data }) if data.contains('x') => return Ok(()),
            Some(_) => {}
            None => bail!("the terminal was closed"),
        }
    }
}

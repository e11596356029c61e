//! Measures streams through the public API: a file up, down and as an archive, and the output of an
//! execution that waits for its reader. All content is in one box.
//!
//! In the same run one publisher and one subscriber of the system's NATS exchange the frames that carry
//! such a stream, because every byte of it passes through NATS once.
//!
//! * I1. The environment is deleted at the end, also after a failure.

mod figure;
mod memory;
mod nats;
mod transfer;

use std::time::Instant;

use agentbox_api::exec::{DEFAULT_TIMEOUT, ExecBody};
use agentbox_client::Client;
use agentbox_contracts::ids::EnvironmentId;
use agentbox_testing::System;
use anyhow::{Context as _, ensure};
use tokio::task::JoinSet;

use crate::environment::{Size, delete, request, start};
use crate::target::Api;
use figure::{Outcome, StreamFigure};
use memory::Memory;
use transfer::{BYTES, Kind, Transfer};

pub use figure::Streams;

const AT_ONCE: [usize; 2] = [1, 8];
/// The server deletes the box after this time, if its deletion here failed.
const LIFETIME_S: u64 = 3600;

/// # Errors
/// When NATS or the box cannot be used at all. A failed stream is counted.
pub async fn measure(api: &Api, system: &System) -> anyhow::Result<Streams> {
    println!("measuring streams of {} MiB each", BYTES >> 20);
    let nats = nats::megabytes_per_second(system).await?;
    // Eight files, one of which is replaced by a complete copy.
    let size = Size {
        cpu: "2",
        memory: "1Gi",
        storage: "12Gi",
    };
    let body = request("bench-streams", size, LIFETIME_S);
    let (id, started) = start(api, &body).await;
    let figures = match (&id, started) {
        (Some(id), Ok(_)) => cases(&api.client, system, id, nats).await,
        (_, started) => Err(started.err().context("creating a box for streams")?),
    };
    delete(api, id, true).await;
    Ok(Streams {
        megabytes_each: BYTES as f64 / 1e6,
        nats_megabytes_per_second: nats,
        figures: figures?,
    })
}

async fn cases(
    client: &Client,
    system: &System,
    id: &EnvironmentId,
    nats: f64,
) -> anyhow::Result<Vec<StreamFigure>> {
    let memory = Memory::of(system, id)?;
    let mut figures = Vec::new();
    for kind in Kind::ALL {
        for at_once in AT_ONCE {
            let figure = case(client, id, &memory, kind, at_once).await;
            figures.push(figure.compared_with(nats));
        }
        if kind == Kind::Upload {
            leave_one_file(client, id).await?;
        }
    }
    Ok(figures)
}

/// Runs one kind of stream, `at_once` of them at the same time.
async fn case(
    client: &Client,
    id: &EnvironmentId,
    memory: &Memory,
    kind: Kind,
    at_once: usize,
) -> StreamFigure {
    println!("  {}, {at_once} at once", kind.name());
    let started = Instant::now();
    let mut streams = JoinSet::new();
    for number in 0..at_once {
        let transfer = Transfer::new(client.clone(), id.clone(), number);
        streams.spawn(async move {
            let result = transfer.run(kind).await;
            (result, started.elapsed())
        });
    }
    let finished = async {
        let mut outcomes = Vec::new();
        while let Some(joined) = streams.join_next().await {
            outcomes.push(match joined {
                Ok((Ok(()), took)) => Outcome::Complete(took),
                Ok((Err(error), _)) => Outcome::Failed(format!("{error:#}")),
                Err(error) => Outcome::Failed(error.to_string()),
            });
        }
        outcomes
    };
    let (outcomes, growth) = memory.during(finished).await;
    StreamFigure::new(kind.name(), BYTES, started.elapsed(), outcomes, growth)
}

/// Deletes the files of the uploads but the first, which the other cases read.
async fn leave_one_file(client: &Client, id: &EnvironmentId) -> anyhow::Result<()> {
    let script = format!(
        "cd {} && for file in *; do [ $file = 0 ] || rm $file; done",
        transfer::DIRECTORY
    );
    let body = ExecBody {
        command: ["sh", "-c", &script].map(str::to_owned).to_vec(),
        timeout: DEFAULT_TIMEOUT,
        ..ExecBody::default()
    };
    let reply = client.exec(id, &body).await.context("deleting files")?;
    ensure!(reply.exit_code == 0, "deleting files: {}", reply.stderr);
    Ok(())
}

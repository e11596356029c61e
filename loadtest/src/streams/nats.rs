//! The rate of NATS alone: one publisher and one subscriber, without sessions.

use std::time::{Duration, Instant};

use agentbox_contracts::exec::MAX_CHUNK;
use agentbox_testing::System;
use agentbox_testing::endpoint::nats::ALL_ACCESS_USER;
use anyhow::{Context as _, ensure};
use bytes::Bytes;
use futures::StreamExt as _;
use futures::future::try_join;
use tokio::sync::Semaphore;

use super::transfer::BYTES;
use crate::bus::connect;

const SUBJECT: &str = "bench.frames";
/// A frame of a session: its header and one chunk.
const FRAME_BYTES: usize = 25 + MAX_CHUNK;
/// The most frames on their way, so that the server does not treat the subscriber as a slow one.
const IN_FLIGHT: usize = 512;
const DEADLINE: Duration = Duration::from_secs(300);

/// Measures the rate of the content, without headers.
///
/// # Errors
/// When NATS does not carry all frames in time.
pub async fn megabytes_per_second(system: &System) -> anyhow::Result<f64> {
    let publisher = connect(system, ALL_ACCESS_USER).await?;
    let subscriber = connect(system, ALL_ACCESS_USER).await?;
    let mut frames = subscriber.client().subscribe(SUBJECT).await?;
    subscriber.client().flush().await?;
    let frame = Bytes::from(vec![b'x'; FRAME_BYTES]);
    let count = BYTES / MAX_CHUNK as u64;
    let free = Semaphore::new(IN_FLIGHT);
    let started = Instant::now();
    let publish = async {
        for _ in 0..count {
            free.acquire().await?.forget();
            publisher.client().publish(SUBJECT, frame.clone()).await?;
        }
        publisher.client().flush().await?;
        anyhow::Ok(())
    };
    let receive = async {
        for _ in 0..count {
            let frame = frames.next().await.context("the subscription has ended")?;
            ensure!(frame.payload.len() == FRAME_BYTES, "another message");
            free.add_permits(1);
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(DEADLINE, try_join(publish, receive))
        .await
        .context("NATS did not carry the frames in time")??;
    let took = started.elapsed();
    publisher.close().await;
    subscriber.close().await;
    Ok(BYTES as f64 / 1e6 / took.as_secs_f64())
}

//! Sends requests at given times, whether earlier ones are answered or not, as independent clients do.
//!
//! The time of a request begins when it is due, not when it is sent, so that a wait behind a slow answer
//! counts. A thread of its own keeps the times, because the runtime's timer has a resolution of 1 ms.
//!
//! * I1. At most [`MAX_IN_FLIGHT`] requests wait for their answers. One that is due then is counted as
//!   failed and not sent.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::anyhow;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::figures::Samples;

const MAX_IN_FLIGHT: usize = 2_048;
/// From the call to the first arrival's origin, so that the thread has started.
const LEAD: Duration = Duration::from_millis(20);

/// Sends one request for each arrival, and waits for all answers. Gives the samples by kind.
pub async fn open_loop<K, F>(
    arrivals: impl IntoIterator<Item = (Duration, K)> + Send + 'static,
    request: impl Fn(K) -> F,
) -> BTreeMap<K, Samples>
where
    K: Copy + Ord + Send + 'static,
    F: Future<Output = anyhow::Result<()>> + Send + 'static,
{
    let origin = Instant::now() + LEAD;
    // A request that waits here is due, so its time runs.
    let (sender, mut due_requests) = mpsc::channel(1);
    let clock = tokio::task::spawn_blocking(move || {
        for (offset, kind) in arrivals {
            let due = origin + offset;
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            // Closed when the caller was cancelled.
            if sender.blocking_send((due, kind)).is_err() {
                return;
            }
        }
    });
    let mut samples: BTreeMap<K, Samples> = BTreeMap::new();
    let mut in_flight = JoinSet::new();
    loop {
        tokio::select! {
            due = due_requests.recv() => match due {
                Some((due, kind)) if in_flight.len() < MAX_IN_FLIGHT => {
                    let answer = request(kind);
                    in_flight.spawn(async move { (kind, answer.await.map(|()| due.elapsed())) });
                }
                Some((_, kind)) => samples
                    .entry(kind)
                    .or_default()
                    .record(Err(anyhow!("not sent: {MAX_IN_FLIGHT} requests wait for answers"))),
                None => break,
            },
            Some(answered) = in_flight.join_next(), if !in_flight.is_empty() => {
                record(&mut samples, answered);
            }
        }
    }
    while let Some(answered) = in_flight.join_next().await {
        record(&mut samples, answered);
    }
    // It has ended: the channel is closed.
    let _ = clock.await;
    let wall = origin.elapsed();
    let within = |(kind, samples): (K, Samples)| (kind, samples.within(wall));
    samples.into_iter().map(within).collect()
}

type Answered<K> = Result<(K, anyhow::Result<Duration>), tokio::task::JoinError>;

fn record<K: Ord>(samples: &mut BTreeMap<K, Samples>, answered: Answered<K>) {
    // A request that panicked has printed why, and its kind is lost with it.
    if let Ok((kind, result)) = answered {
        samples.entry(kind).or_default().record(result);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::sync::Barrier;

    use super::*;

    fn at_once(count: usize) -> Vec<(Duration, u8)> {
        vec![(Duration::ZERO, 0); count]
    }

    #[tokio::test]
    async fn slow_answer_does_not_delay_the_next_request() {
        // Each request waits for all others: in a closed loop none would end.
        let all = Arc::new(Barrier::new(20));
        let samples = open_loop(at_once(20), |_| {
            let all = Arc::clone(&all);
            async move {
                all.wait().await;
                Ok(())
            }
        })
        .await;
        let figure = samples.into_iter().next().unwrap().1.figure("f");
        assert_eq!((figure.samples, figure.failures), (20, 0));
    }

    #[tokio::test]
    async fn failures_are_counted_by_kind() {
        let arrivals = vec![
            (Duration::ZERO, 'a'),
            (Duration::ZERO, 'b'),
            (Duration::from_millis(1), 'b'),
        ];
        let samples = open_loop(arrivals, |kind| async move {
            anyhow::ensure!(kind == 'b', "refused");
            Ok(())
        })
        .await;
        let figures: Vec<_> = samples
            .into_iter()
            .map(|(kind, samples)| (kind, samples.figure("f")))
            .map(|(kind, figure)| (kind, figure.samples, figure.failures))
            .collect();
        assert_eq!(figures, [('a', 0, 1), ('b', 2, 0)]);
    }

    #[tokio::test]
    async fn request_above_the_bound_is_a_failure_that_names_it() {
        let (release, released) = tokio::sync::watch::channel(false);
        // Nobody is answered before a request above the bound was due: the last arrival is asked for when
        // the one before it is in the channel, and those before that were received.
        let count = MAX_IN_FLIGHT + 4;
        let arrivals = (0..count).map(move |number| {
            if number == count - 1 {
                let _ = release.send(true);
            }
            (Duration::ZERO, 0)
        });
        let samples = open_loop(arrivals, move |_| {
            let mut released = released.clone();
            async move {
                released.wait_for(|released| *released).await?;
                Ok(())
            }
        })
        .await;
        let figure = samples.into_iter().next().unwrap().1.figure("f");
        assert!((1..=4).contains(&figure.failures), "{figure:?}");
        assert_eq!(figure.samples + figure.failures, count as u64);
        let why = figure.first_failure.unwrap();
        assert!(why.contains("not sent: 2048 requests"), "{why}");
    }
}

//! A mixed load, as an open loop: reads, commands, lists, logins, and environments that are created,
//! used and deleted.
//!
//! * I1. The environments are deleted at the end, also after a failure.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use agentbox_contracts::ids::EnvironmentId;
use anyhow::Context as _;

use crate::arrivals::{Sequence, poisson};
use crate::environment::{Size, create, create_all, delete, delete_all, exec};
use crate::figures::Figure;
use crate::open_loop::open_loop;
use crate::report::Measured;
use crate::target::Api;

/// The average rate, unless another one is asked for.
pub const PER_SECOND: f64 = 40.0;
const LENGTH: Duration = Duration::from_secs(30);
const BOXES: usize = 4;
const SIZE: Size = Size {
    cpu: "1",
    memory: "128Mi",
    storage: "64Mi",
};
const LIFETIME_S: u64 = 7_200;

/// A request of the mix. The order is that of the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    Get,
    Exec,
    List,
    Login,
    Create,
}

/// The operations with their parts of all requests, in thousandths. With the default rate an hour has
/// 10,000 logins.
const MIX: [(Operation, u32); 5] = [
    (Operation::Get, 500),
    (Operation::Exec, 300),
    (Operation::List, 110),
    (Operation::Login, 70),
    (Operation::Create, 20),
];

impl Operation {
    const fn name(self) -> &'static str {
        match self {
            Self::Get => "mixed load: GET /environments/{id}",
            Self::Exec => "mixed load: exec `true`",
            Self::List => "mixed load: GET /environments",
            Self::Login => "mixed load: login",
            Self::Create => "mixed load: create, exec and delete",
        }
    }

    /// The operation at this point of the mix, a fraction below 1.
    fn at(fraction: f64) -> Self {
        let mut thousandths = fraction * 1_000.0;
        for (operation, part) in MIX {
            thousandths -= f64::from(part);
            if thousandths < 0.0 {
                return operation;
            }
        }
        Self::Get
    }
}

/// # Errors
/// When an environment does not run.
pub async fn measure(api: &Api, per_second: Option<f64>) -> anyhow::Result<Measured> {
    let ids = environments(api).await?;
    let figures = load(api, &ids, per_second.unwrap_or(PER_SECOND), LENGTH).await;
    delete_all(api, ids).await;
    Ok(Measured {
        figures,
        ..Measured::default()
    })
}

/// The environments of a load that a caller starts and ends itself.
///
/// # Errors
/// When one does not run.
pub async fn environments(api: &Api) -> anyhow::Result<Vec<EnvironmentId>> {
    create_all(api, "bench-mixed", SIZE, LIFETIME_S, BOXES).await
}

/// Runs the load for `length`, and gives the figure of each operation.
pub async fn load(
    api: &Api,
    ids: &[EnvironmentId],
    per_second: f64,
    length: Duration,
) -> Vec<Figure> {
    let mut sequence = Sequence::new(16);
    let arrivals = poisson(per_second, length, 15)
        .into_iter()
        .map(move |at| (at, Operation::at(sequence.next_fraction())));
    let turn = AtomicUsize::new(0);
    let samples = open_loop(arrivals, |operation| {
        // The environments take turns.
        let number = turn.fetch_add(1, Ordering::Relaxed);
        let id = ids.get(number % ids.len().max(1)).cloned();
        run(api.clone(), operation, id)
    })
    .await;
    samples
        .into_iter()
        .map(|(operation, samples)| samples.figure(operation.name()))
        .collect()
}

async fn run(api: Api, operation: Operation, id: Option<EnvironmentId>) -> anyhow::Result<()> {
    let id = id.context("no environment")?;
    match operation {
        Operation::Get => {
            let path = format!("/api/v1/environments/{id}");
            api.http.get(&path).await?;
        }
        Operation::Exec => {
            exec(&api, &id).await?;
        }
        Operation::List => {
            api.http.get("/api/v1/environments?limit=20").await?;
        }
        Operation::Login => {
            api.http.post("/api/v1/auth/login", &api.login).await?;
        }
        Operation::Create => {
            let (id, created) = create(&api, "bench-mixed-create").await;
            let worked = match (&id, created) {
                (Some(id), Ok(_)) => exec(&api, id).await.map(|_| ()),
                (_, created) => created.map(|_| ()),
            };
            delete(&api, id, false).await;
            worked?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mix_has_its_parts() {
        assert_eq!(MIX.iter().map(|(_, part)| part).sum::<u32>(), 1_000);
        let mut sequence = Sequence::new(1);
        let chosen: Vec<Operation> = (0..10_000)
            .map(|_| Operation::at(sequence.next_fraction()))
            .collect();
        for (operation, part) in MIX {
            let count = chosen.iter().filter(|one| **one == operation).count() as f64;
            let expected = f64::from(part) * 10.0;
            // Five standard deviations.
            let error = (count - expected).abs();
            assert!(error < 5.0 * expected.sqrt(), "{operation:?}: {count}");
        }
    }

    #[test]
    fn ends_of_the_mix_are_its_first_and_last_operation() {
        assert_eq!(Operation::at(0.0), Operation::Get);
        assert_eq!(Operation::at(0.999_999), Operation::Create);
    }
}

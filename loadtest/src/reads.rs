//! Measures reads: as many as 64 clients get, and then an open loop at a rate.
//!
//! `GET /health/live` is the cost of HTTP alone: it needs no credential and no other service. The rates
//! of the other reads are reported as parts of its rate in the same turn.
//!
//! * I1. The environment is deleted at the end, also after a failure.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use tokio::task::JoinSet;

use crate::arrivals::poisson;
use crate::environment::{create_all, delete_all, small};
use crate::figures::{Figure, Samples};
use crate::http::Http;
use crate::open_loop::open_loop;
use crate::report::{Gauge, Measured};
use crate::statistics::Better;
use crate::target::Api;

const CLIENTS: usize = 64;
const LENGTH: Duration = Duration::from_secs(5);
const OPEN_LOOP_LENGTH: Duration = Duration::from_secs(10);
const SEED: u64 = 15;
const LIFETIME_S: u64 = 900;
const LIVE: &str = "/api/v1/health/live";

struct Case {
    name: &'static str,
    path: String,
    /// The rate of the open loop as a part of the rate of `/health/live`: half of the target.
    open_loop_part: f64,
}

/// # Errors
/// When the environment does not run, or no request is answered.
pub async fn measure(api: &Api, per_second: Option<f64>) -> anyhow::Result<Measured> {
    let ids = create_all(api, "bench-reads", small(), LIFETIME_S, 1).await?;
    let measured = match ids.first() {
        Some(id) => {
            let cases = [
                Case {
                    name: "GET /auth/me",
                    path: "/api/v1/auth/me".to_owned(),
                    open_loop_part: 0.33 / 2.0,
                },
                Case {
                    name: "GET /environments/{id}",
                    path: format!("/api/v1/environments/{id}"),
                    open_loop_part: 0.18 / 2.0,
                },
            ];
            measure_cases(&api.http, &cases, per_second).await
        }
        None => Err(anyhow::anyhow!("no environment")),
    };
    delete_all(api, ids).await;
    measured
}

async fn measure_cases(
    http: &Http,
    cases: &[Case],
    per_second: Option<f64>,
) -> anyhow::Result<Measured> {
    let mut measured = Measured::default();
    let live = closed_loop(http, "GET /health/live", LIVE).await;
    anyhow::ensure!(live.samples > 0, "{LIVE} does not answer: {live:?}");
    for case in cases {
        let closed = closed_loop(http, case.name, &case.path).await;
        measured.gauges.push(Gauge::new(
            format!("{}: rate / rate of /health/live", case.name),
            "×",
            closed.per_second / live.per_second,
            Better::Higher,
        ));
        measured.figures.push(closed);
    }
    for case in cases {
        let rate = per_second.unwrap_or(live.per_second * case.open_loop_part);
        let figure = at_rate(http, case, rate).await?;
        measured
            .findings
            .push(format!("{}: {rate:.0} a second", figure.name));
        measured.figures.push(figure);
    }
    measured.figures.insert(0, live);
    Ok(measured)
}

/// Each client sends its next request when it has the answer of the last one.
async fn closed_loop(http: &Http, name: &str, path: &str) -> Figure {
    let started = Instant::now();
    let mut clients = JoinSet::new();
    for _ in 0..CLIENTS {
        let (http, path) = (http.clone(), path.to_owned());
        clients.spawn(async move {
            let mut samples = Samples::default();
            while started.elapsed() < LENGTH {
                let sent = Instant::now();
                let answer = http.get(&path).await;
                samples.record(answer.map(|_| sent.elapsed()));
            }
            samples
        });
    }
    let mut all = Samples::default();
    for samples in clients.join_all().await {
        all.merge(samples);
    }
    let name = format!("{name}, {CLIENTS} clients");
    all.within(started.elapsed()).figure(&name)
}

async fn at_rate(http: &Http, case: &Case, per_second: f64) -> anyhow::Result<Figure> {
    let arrivals = poisson(per_second, OPEN_LOOP_LENGTH, SEED);
    let arrivals = arrivals.into_iter().map(|at| (at, ()));
    let (http, path) = (http.clone(), case.path.clone());
    let samples = open_loop(arrivals, move |()| {
        let (http, path) = (http.clone(), path.clone());
        async move {
            http.get(&path).await?;
            Ok(())
        }
    })
    .await;
    let samples = samples.into_values().next();
    let samples = samples.with_context(|| format!("{}: no request was due", case.name))?;
    Ok(samples.figure(&format!("{}, open loop", case.name)))
}

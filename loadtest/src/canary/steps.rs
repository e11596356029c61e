//! The steps of a run.

use std::time::{Duration, Instant, SystemTime};

use agentbox_api::environment::CreateEnvironment;
use agentbox_api::exec::{DEFAULT_TIMEOUT, ExecBody};
use agentbox_api::execution::StartExecution;
use agentbox_client::{Client, OutputItem};
use agentbox_contracts::environment::Status;
use agentbox_contracts::ids::EnvironmentId;
use anyhow::{Context as _, bail, ensure};
use chrono::{DateTime, Utc};
use serde_json::json;

use super::metrics;

const LOGIN: &str = "login";
const CREATE: &str = "create";
const EXEC: &str = "exec";
const FOLLOW: &str = "follow";
const DELETE: &str = "delete";
pub(super) const STEPS: [&str; 5] = [LOGIN, CREATE, EXEC, FOLLOW, DELETE];
/// The server deletes the environment after this time, if its deletion here failed.
pub(super) const LIFETIME_S: u64 = 300;
const STEP_DEADLINE: Duration = Duration::from_secs(60);
const CLOCK_DEADLINE: Duration = Duration::from_secs(5);
/// What the followed execution writes.
const TEXT: &str = "canary";

pub(super) struct Canary {
    client: Client,
    http: reqwest::Client,
    url: String,
    username: String,
    password: String,
    image: String,
}

impl Canary {
    /// # Errors
    /// When the URL is invalid.
    pub(super) fn new(
        url: &str,
        username: String,
        password: String,
        image: String,
    ) -> anyhow::Result<Self> {
        Ok(Self {
            client: Client::new(url)?,
            http: reqwest::Client::new(),
            url: url.trim_end_matches('/').to_owned(),
            username,
            password,
            image,
        })
    }

    /// Does all steps once, until one fails.
    pub(super) async fn run(&self) {
        match self.clock_offset().await {
            Ok(seconds) => metrics::clock_offset(seconds),
            Err(error) => println!("clock: {error:#}"),
        }
        let login = async {
            let (client, _) = self.client.login(&self.username, &self.password).await?;
            anyhow::Ok(client)
        };
        let Some(client) = step(LOGIN, login).await else {
            return;
        };
        let mut id = None;
        let created = step(CREATE, self.create(&client, &mut id)).await;
        let Some(id) = id else {
            return;
        };
        if created.is_some() && step(EXEC, exec(&client, &id)).await.is_some() {
            step(FOLLOW, follow(&client, &id)).await;
        }
        step(DELETE, delete(&client, &id)).await;
    }

    /// Creates an environment and waits until it runs. `id` is set as soon as it exists.
    async fn create(&self, client: &Client, id: &mut Option<EnvironmentId>) -> anyhow::Result<()> {
        let made = client.create(&self.request()?).await?.id;
        let id = id.insert(made);
        client
            .wait_until(id, Status::Running, STEP_DEADLINE)
            .await?;
        Ok(())
    }

    fn request(&self) -> anyhow::Result<CreateEnvironment> {
        let body = json!({
            "name": "canary",
            "image": self.image,
            "resources": { "cpu": "100m", "memory": "64Mi", "storage": "64Mi" },
            "timeout": LIFETIME_S,
            "labels": { "purpose": "canary" },
        });
        serde_json::from_value(body).context("the request is not the API's")
    }

    /// The clock of the API minus the clock of this machine, in seconds.
    async fn clock_offset(&self) -> anyhow::Result<f64> {
        let begun = SystemTime::now();
        let response = self
            .http
            .get(format!("{}/api/v1/health/live", self.url))
            .timeout(CLOCK_DEADLINE)
            .send()
            .await?;
        let date = response
            .headers()
            .get("date")
            .and_then(|value| value.to_str().ok())
            .context("the answer has no date")?;
        let theirs = DateTime::parse_from_rfc2822(date).context("the date is not one of HTTP")?;
        Ok(offset(
            theirs.to_utc(),
            begun.into(),
            SystemTime::now().into(),
        ))
    }
}

/// The difference between `theirs`, a time that was cut to whole seconds, and the middle of the request.
fn offset(theirs: DateTime<Utc>, begun: DateTime<Utc>, ended: DateTime<Utc>) -> f64 {
    let middle = begun + (ended - begun) / 2;
    // In milliseconds. The date is cut to whole seconds, which takes half a second off on average.
    let millis = (theirs - middle).num_milliseconds() + 500;
    Duration::from_millis(millis.unsigned_abs()).as_secs_f64() * if millis < 0 { -1.0 } else { 1.0 }
}

/// Measures a step, counts it, and prints its error. `None`: it failed.
async fn step<T>(name: &'static str, work: impl Future<Output = anyhow::Result<T>>) -> Option<T> {
    let begun = Instant::now();
    let outcome = match tokio::time::timeout(STEP_DEADLINE, work).await {
        Ok(outcome) => outcome,
        Err(_) => Err(anyhow::anyhow!("not done within {STEP_DEADLINE:?}")),
    };
    metrics::step_ended(name, outcome.is_ok().then(|| begun.elapsed()));
    match outcome {
        Ok(value) => Some(value),
        Err(error) => {
            println!("{name}: {error:#}");
            None
        }
    }
}

async fn exec(client: &Client, id: &EnvironmentId) -> anyhow::Result<()> {
    let body = ExecBody {
        command: vec!["true".to_owned()],
        timeout: DEFAULT_TIMEOUT,
        ..ExecBody::default()
    };
    let reply = client.exec(id, &body).await?;
    ensure!(
        reply.exit_code == 0,
        "`true` exited with {}",
        reply.exit_code
    );
    Ok(())
}

/// Starts an execution and follows its output to its end.
async fn follow(client: &Client, id: &EnvironmentId) -> anyhow::Result<()> {
    let body: StartExecution = serde_json::from_value(json!({ "command": ["echo", TEXT] }))?;
    let execution = client.start_execution(id, &body).await?;
    let mut output = client.follow_output(id, &execution.id).await?;
    let mut text = String::new();
    while let Some(item) = output.next().await? {
        match item {
            OutputItem::Output(event) => text.push_str(&event.data.unwrap_or_default()),
            OutputItem::Gap(gap) => bail!("{} bytes of output are missing", gap.bytes),
            OutputItem::End(_) => {
                ensure!(text.trim_end() == TEXT, "the output was {text:?}");
                return Ok(());
            }
        }
    }
    bail!("the output ended before the execution")
}

/// Deletes an environment and waits for its end.
async fn delete(client: &Client, id: &EnvironmentId) -> anyhow::Result<()> {
    client.delete(id, true).await?;
    client
        .wait_until(id, Status::Terminated, STEP_DEADLINE)
        .await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> DateTime<Utc> {
        text.parse().unwrap()
    }

    #[test]
    fn clock_offset_is_the_difference_to_the_middle_of_the_request() {
        let (begun, ended) = (at("2026-11-30T12:00:00Z"), at("2026-11-30T12:00:01Z"));
        assert_eq!(offset(at("2026-11-30T12:00:00Z"), begun, ended), 0.0);
        assert_eq!(offset(at("2026-11-30T12:00:10Z"), begun, ended), 10.0);
        assert_eq!(offset(at("2026-11-30T11:59:50Z"), begun, ended), -10.0);
    }

    #[test]
    fn request_of_the_canary_is_one_of_the_api() {
        let canary = Canary::new(
            "http://127.0.0.1:1",
            "canary".to_owned(),
            "password".to_owned(),
            "busybox".to_owned(),
        )
        .unwrap();
        let body = canary.request().unwrap();
        assert_eq!((body.image.as_str(), body.timeout), ("busybox", LIFETIME_S));
    }
}

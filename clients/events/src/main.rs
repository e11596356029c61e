//! Prints environment events, one JSON object a line, and acknowledges each after it is printed. It
//! continues where it ended, whatever ended it.

use std::io::Write as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use agentbox_contracts::ErrorChain;
use agentbox_events::{Login, Start, SubscribeError, Subscription};
use anyhow::Context as _;
use chrono::{DateTime, Utc};
use clap::Parser;
use serde_json::json;

/// How long one wait for an event takes.
const WAIT: Duration = Duration::from_secs(5);
/// How long NATS may take to start.
const OPEN_DEADLINE: Duration = Duration::from_secs(30);
/// The wait after a failure of NATS.
const RETRY_DELAY: Duration = Duration::from_millis(500);

#[derive(Parser)]
#[command(name = "agentbox-events", version, about = "Prints environment events")]
struct Arguments {
    /// The URL of NATS.
    #[arg(long, env = "AGENTBOX_EVENTS_URL")]
    url: String,

    /// The NATS user, whose name the durable consumer has.
    #[arg(long, env = "AGENTBOX_EVENTS_USER")]
    user: String,

    /// The password of that user.
    #[arg(
        long,
        env = "AGENTBOX_EVENTS_PASSWORD",
        hide_env_values = true,
        hide = true
    )]
    password: String,

    /// A PEM file with the authorities of the server's certificate.
    #[arg(long)]
    tls_ca: Option<PathBuf>,

    /// Begin again at the first event from this time on (RFC 3339), and give up the position.
    #[arg(long)]
    replay_from: Option<DateTime<Utc>>,
}

/// Opens the subscription, also while NATS starts.
async fn open(login: &Login) -> Result<Subscription, SubscribeError> {
    let began_at = Instant::now();
    loop {
        match Subscription::open(login, Start::Oldest).await {
            Ok(events) => return Ok(events),
            Err(error) if began_at.elapsed() < OPEN_DEADLINE => {
                eprintln!("agentbox-events: {}; retried", ErrorChain(&error));
                tokio::time::sleep(RETRY_DELAY).await;
            }
            Err(error) => return Err(error),
        }
    }
}

#[tokio::main]
async fn main() -> Result<(), anyhow::Error> {
    let arguments = Arguments::parse();
    let login = Login {
        url: arguments.url,
        user: arguments.user,
        password: arguments.password,
        tls_ca: arguments.tls_ca,
    };
    let mut events = open(&login).await?;
    if let Some(time) = arguments.replay_from {
        events.replay(Start::At(time)).await?;
    }
    loop {
        match events.next(WAIT).await {
            Ok(Some(received)) => {
                let line = json!({
                    "id": received.id, "sequence": received.sequence, "event": received.event,
                });
                let mut out = std::io::stdout().lock();
                writeln!(out, "{line}")
                    .and_then(|()| out.flush())
                    .context("cannot print an event")?;
                drop(out);
                if let Err(error) = received.acknowledge().await {
                    let error = ErrorChain(&error);
                    eprintln!("agentbox-events: {error}; the event is delivered again");
                }
            }
            Ok(None) => {}
            Err(error) => {
                eprintln!("agentbox-events: {}; retried", ErrorChain(&error));
                tokio::time::sleep(RETRY_DELAY).await;
            }
        }
    }
}

//! The streams, buckets and stores of JetStream. The provisioner creates and updates them, and
//! the services wait until those that they use exist.

use std::time::{Duration, Instant};

use agentbox_contracts::ErrorChain;
use agentbox_contracts::permissions;
use agentbox_contracts::subjects::{
    ALL_AUDIT, ALL_COMMANDS, ALL_DEAD_LETTERS, ALL_EVENTS, ALL_LIMITS, AUDIT_HEAD,
    AUDIT_HEADS_STREAM, AUDIT_STREAM, COMMANDS_STREAM, DEAD_LETTERS_STREAM, EVENTS_STREAM,
    LIMITS_STREAM, OUTPUT_BUCKET, OUTPUT_STREAM, ROUTES_BUCKET,
};
use async_nats::jetstream::stream::{Config, DiscardPolicy, RetentionPolicy, StorageType};
use async_nats::jetstream::{Context, kv};

use crate::error::BusError;
use crate::routes::MARKER_TTL;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// How long events and the output of ended environments can be read.
const RETENTION: Duration = Duration::from_secs(7 * DAY.as_secs());
/// How long the heads of the audit trail can be read: longer than the trail itself by default.
const HEADS_RETENTION: Duration = Duration::from_secs(400 * DAY.as_secs());
/// Longer than the longest rate-limit window, twice.
const LIMITS_MAX_AGE: Duration = Duration::from_secs(120);
/// A second message with the same id within this time is a duplicate.
const DUPLICATE_WINDOW: Duration = Duration::from_secs(120);
/// How long a service waits for its streams: the provisioner may be starting too.
const WAIT_DEADLINE: Duration = Duration::from_secs(60);
/// The wait between two looks for a stream that does not exist yet.
const RETRY_DELAY: Duration = Duration::from_millis(250);
/// JetStream reserves the sizes below at once, so they must fit on a small machine.
const MIB: i64 = 1 << 20;

fn commands() -> Config {
    Config {
        name: COMMANDS_STREAM.to_owned(),
        description: Some("environment commands, each processed at least once".to_owned()),
        subjects: vec![ALL_COMMANDS.to_owned()],
        retention: RetentionPolicy::WorkQueue,
        storage: StorageType::File,
        max_age: DAY,
        max_bytes: 64 * MIB,
        discard: DiscardPolicy::New,
        duplicate_window: DUPLICATE_WINDOW,
        ..Config::default()
    }
}

fn events() -> Config {
    Config {
        name: EVENTS_STREAM.to_owned(),
        description: Some("environment events".to_owned()),
        subjects: vec![ALL_EVENTS.to_owned()],
        retention: RetentionPolicy::Limits,
        storage: StorageType::File,
        max_age: RETENTION,
        max_bytes: 512 * MIB,
        discard: DiscardPolicy::Old,
        duplicate_window: DUPLICATE_WINDOW,
        allow_direct: true,
        ..Config::default()
    }
}

fn dead_letters() -> Config {
    Config {
        name: DEAD_LETTERS_STREAM.to_owned(),
        description: Some("commands that could not be processed".to_owned()),
        subjects: vec![ALL_DEAD_LETTERS.to_owned()],
        retention: RetentionPolicy::Limits,
        storage: StorageType::File,
        max_age: RETENTION,
        max_bytes: 64 * MIB,
        discard: DiscardPolicy::Old,
        ..Config::default()
    }
}

fn limits() -> Config {
    Config {
        name: LIMITS_STREAM.to_owned(),
        description: Some("rate-limit counters, one subject per window".to_owned()),
        subjects: vec![ALL_LIMITS.to_owned()],
        retention: RetentionPolicy::Limits,
        storage: StorageType::Memory,
        max_age: LIMITS_MAX_AGE,
        max_messages_per_subject: 1,
        max_bytes: 64 * MIB,
        discard: DiscardPolicy::Old,
        allow_message_counter: true,
        allow_direct: true,
        ..Config::default()
    }
}

/// An object store. The client library would permit direct reads of it, which JetStream delivers
/// to any subject ([`permissions`], I3).
fn output() -> Config {
    Config {
        name: OUTPUT_STREAM.to_owned(),
        description: Some("the last output of ended environments".to_owned()),
        subjects: vec![
            format!("$O.{OUTPUT_BUCKET}.C.>"),
            format!("$O.{OUTPUT_BUCKET}.M.>"),
        ],
        retention: RetentionPolicy::Limits,
        storage: StorageType::File,
        max_age: RETENTION,
        max_bytes: 1024 * MIB,
        discard: DiscardPolicy::New,
        allow_rollup: true,
        allow_direct: false,
        ..Config::default()
    }
}

/// An entry stays until it is in the trail, however long that takes. When the stream is full it
/// refuses entries, and with them the actions that would not be recorded.
fn audit() -> Config {
    Config {
        name: AUDIT_STREAM.to_owned(),
        description: Some("audit entries that auth has yet to chain".to_owned()),
        subjects: vec![ALL_AUDIT.to_owned()],
        retention: RetentionPolicy::WorkQueue,
        storage: StorageType::File,
        max_bytes: 128 * MIB,
        discard: DiscardPolicy::New,
        duplicate_window: DUPLICATE_WINDOW,
        ..Config::default()
    }
}

fn audit_heads() -> Config {
    Config {
        name: AUDIT_HEADS_STREAM.to_owned(),
        description: Some("the end of the audit trail's chain, once an hour".to_owned()),
        subjects: vec![AUDIT_HEAD.to_owned()],
        retention: RetentionPolicy::Limits,
        storage: StorageType::File,
        max_age: HEADS_RETENTION,
        max_bytes: 16 * MIB,
        discard: DiscardPolicy::Old,
        deny_delete: true,
        deny_purge: true,
        duplicate_window: DUPLICATE_WINDOW,
        ..Config::default()
    }
}

/// Creates or updates all streams, buckets and stores.
pub(crate) async fn provision(jetstream: &Context) -> Result<(), BusError> {
    for config in [
        commands(),
        events(),
        dead_letters(),
        limits(),
        output(),
        audit(),
        audit_heads(),
    ] {
        ensure_stream(jetstream, config).await?;
    }
    ensure_routes(jetstream).await
}

/// Waits until the streams that `service` uses exist.
pub(crate) async fn wait(jetstream: &Context, service: &str) -> Result<(), BusError> {
    let started_at = Instant::now();
    for &stream in permissions::streams_of(service) {
        while let Err(error) = jetstream.get_stream(stream).await {
            if started_at.elapsed() > WAIT_DEADLINE {
                return Err(BusError::nats("waiting for the provisioner's streams")(
                    error,
                ));
            }
            tracing::info!(stream, error = %ErrorChain(&error), "stream not found; retried");
            tokio::time::sleep(RETRY_DELAY).await;
        }
    }
    Ok(())
}

async fn ensure_stream(jetstream: &Context, config: Config) -> Result<(), BusError> {
    jetstream
        .create_or_update_stream(config)
        .await
        .map(|_| ())
        .map_err(BusError::nats("creating a stream"))
}

async fn ensure_routes(jetstream: &Context) -> Result<(), BusError> {
    jetstream
        .create_or_update_key_value(kv::Config {
            bucket: ROUTES_BUCKET.to_owned(),
            description: "environment id to where it runs".to_owned(),
            history: 1,
            // The marker of a deleted route expires.
            limit_markers: Some(MARKER_TTL),
            storage: StorageType::File,
            ..kv::Config::default()
        })
        .await
        .map(|_| ())
        .map_err(BusError::nats("creating the route bucket"))
}

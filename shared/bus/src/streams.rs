//! The streams, buckets and stores, each made by the service that owns it.

use std::time::Duration;

use agentbox_contracts::subjects::{
    ALL_COMMANDS, ALL_DEAD_LETTERS, ALL_EVENTS, ALL_LIMITS, COMMANDS_STREAM, DEAD_LETTERS_STREAM,
    EVENTS_STREAM, LIMITS_STREAM, OUTPUT_BUCKET, ROUTES_BUCKET,
};
use async_nats::jetstream::stream::{Config, DiscardPolicy, RetentionPolicy, StorageType};
use async_nats::jetstream::{kv, object_store};

use crate::connection::Bus;
use crate::error::BusError;
use crate::routes::MARKER_TTL;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// How long events and the output of ended environments can be read.
const RETENTION: Duration = Duration::from_secs(7 * DAY.as_secs());
/// Longer than the longest rate-limit window, twice.
const LIMITS_MAX_AGE: Duration = Duration::from_secs(120);
/// A republished outbox row within this time is recognised as the same.
const DUPLICATE_WINDOW: Duration = Duration::from_secs(120);
/// JetStream reserves these, so they are what a small machine can promise.
const MIB: i64 = 1 << 20;

fn commands() -> Config {
    Config {
        name: COMMANDS_STREAM.to_owned(),
        description: Some("environment commands, each carried out at least once".to_owned()),
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
        description: Some("environment events, the feed for other services".to_owned()),
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
        description: Some("commands that could not be carried out".to_owned()),
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
        description: Some("rate-limit sums, one subject a window".to_owned()),
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

impl Bus {
    /// Makes, or brings up to date, what `service` owns. Any replica, any number of times.
    ///
    /// # Errors
    /// When JetStream refuses or does not answer.
    pub async fn ensure_streams(&self, service: &str) -> Result<(), BusError> {
        match service {
            "scheduler" => {
                for config in [commands(), events(), dead_letters()] {
                    self.ensure_stream(config).await?;
                }
                self.ensure_routes().await
            }
            "exec-proxy" => self.ensure_output().await,
            "api-gateway" => self.ensure_stream(limits()).await,
            _ => Ok(()),
        }
    }

    async fn ensure_stream(&self, config: Config) -> Result<(), BusError> {
        self.jetstream()
            .create_or_update_stream(config)
            .await
            .map(|_| ())
            .map_err(BusError::nats("creating a stream"))
    }

    async fn ensure_routes(&self) -> Result<(), BusError> {
        self.jetstream()
            .create_or_update_key_value(kv::Config {
                bucket: ROUTES_BUCKET.to_owned(),
                description: "environment id to where it runs".to_owned(),
                history: 1,
                // Lets a deleted route's marker go after a time.
                limit_markers: Some(MARKER_TTL),
                storage: StorageType::File,
                ..kv::Config::default()
            })
            .await
            .map(|_| ())
            .map_err(BusError::nats("creating the route bucket"))
    }

    async fn ensure_output(&self) -> Result<(), BusError> {
        if self
            .jetstream()
            .get_object_store(OUTPUT_BUCKET)
            .await
            .is_ok()
        {
            return Ok(());
        }
        let created = self
            .jetstream()
            .create_object_store(object_store::Config {
                bucket: OUTPUT_BUCKET.to_owned(),
                description: Some("the last output of ended environments".to_owned()),
                max_age: RETENTION,
                max_bytes: 1024 * MIB,
                storage: StorageType::File,
                ..object_store::Config::default()
            })
            .await;
        match created {
            Ok(_) => Ok(()),
            // Another replica was faster.
            Err(_)
                if self
                    .jetstream()
                    .get_object_store(OUTPUT_BUCKET)
                    .await
                    .is_ok() =>
            {
                Ok(())
            }
            Err(error) => Err(BusError::nats("creating the output store")(error)),
        }
    }
}

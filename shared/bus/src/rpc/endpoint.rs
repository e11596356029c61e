//! One served method: its handler and its statistics.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use agentbox_contracts::error::Error;
use bytes::Bytes;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use serde_json::{Value, json};

pub(super) type Handler =
    Arc<dyn Fn(Bytes) -> BoxFuture<'static, Result<Bytes, Error>> + Send + Sync>;

pub(super) struct Endpoint {
    pub(super) handler: Handler,
    requests: AtomicU64,
    errors: AtomicU64,
    busy_ns: AtomicU64,
    /// The code of the last error. Its message may contain data of the caller.
    last_error: Mutex<Option<&'static str>>,
}

impl Endpoint {
    pub(super) fn new(handler: Handler) -> Self {
        Self {
            handler,
            requests: AtomicU64::new(0),
            errors: AtomicU64::new(0),
            busy_ns: AtomicU64::new(0),
            last_error: Mutex::new(None),
        }
    }

    /// Records a request that took `took`, and `error` if it is the server's fault.
    pub(super) fn record(&self, took: Duration, error: Option<&Error>) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let took = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.busy_ns.fetch_add(took, Ordering::Relaxed);
        if let Some(error) = error {
            self.errors.fetch_add(1, Ordering::Relaxed);
            let mut last = self.last_error.lock();
            *last = Some(error.code.as_str());
        }
    }

    /// The statistics in the form of the NATS service API, with times in nanoseconds.
    pub(super) fn stats(&self) -> Value {
        let requests = self.requests.load(Ordering::Relaxed);
        let busy_ns = self.busy_ns.load(Ordering::Relaxed);
        let last = self.last_error.lock();
        json!({
            "num_requests": requests,
            "num_errors": self.errors.load(Ordering::Relaxed),
            "last_error": last.unwrap_or_default(),
            "processing_time": busy_ns,
            "average_processing_time": busy_ns / requests.max(1),
        })
    }
}

//! One method that is served: its handler, and how often and how well it was asked.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use agentbox_contracts::error::Error;
use bytes::Bytes;
use futures::future::BoxFuture;
use serde_json::{Value, json};

pub(super) type Handler =
    Arc<dyn Fn(Bytes) -> BoxFuture<'static, Result<Bytes, Error>> + Send + Sync>;

pub(super) struct Endpoint {
    pub(super) handler: Handler,
    requests: AtomicU64,
    errors: AtomicU64,
    busy_ns: AtomicU64,
    /// A code's word: a message may hold what is the caller's alone.
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

    /// A request took `took` and ended in `error`, if that is the server's fault.
    pub(super) fn note(&self, took: Duration, error: Option<&Error>) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let took = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.busy_ns.fetch_add(took, Ordering::Relaxed);
        if let Some(error) = error {
            self.errors.fetch_add(1, Ordering::Relaxed);
            let mut last = self
                .last_error
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            *last = Some(error.code.as_str());
        }
    }

    /// As the service API words it; times in nanoseconds.
    pub(super) fn stats(&self) -> Value {
        let requests = self.requests.load(Ordering::Relaxed);
        let busy_ns = self.busy_ns.load(Ordering::Relaxed);
        let last = self
            .last_error
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        json!({
            "num_requests": requests,
            "num_errors": self.errors.load(Ordering::Relaxed),
            "last_error": last.unwrap_or_default(),
            "processing_time": busy_ns,
            "average_processing_time": busy_ns / requests.max(1),
        })
    }
}

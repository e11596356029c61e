//! Spans that are exported on behalf of a program that cannot reach the collector itself.

use std::sync::Arc;

use opentelemetry_sdk::trace::{SpanData, SpanProcessor as _};

use super::export::Queue;

/// Exports finished spans under another program's name. The default exports nothing.
/// Clones share one queue.
#[derive(Clone, Debug, Default)]
pub struct RelayedSpans {
    pub(super) queue: Option<Arc<Queue>>,
}

impl RelayedSpans {
    /// Whether a collector is configured.
    #[must_use]
    pub fn is_enabled(&self) -> bool {
        self.queue.is_some()
    }

    /// Queues a span. Never waits: a span that finds the queue full is dropped and counted.
    pub fn export(&self, span: SpanData) {
        if let Some(queue) = &self.queue {
            queue.on_end(span);
        }
    }
}

//! Spans of a program that reaches no collector and left them with this one.

use std::sync::Arc;

use opentelemetry_sdk::trace::{SpanData, SpanProcessor as _};

use super::export::Queue;

/// Exports finished spans under another program's name; by default nowhere. Clones share
/// one queue.
#[derive(Clone, Debug, Default)]
pub struct ForeignSpans {
    pub(super) queue: Option<Arc<Queue>>,
}

impl ForeignSpans {
    /// Whether there is a collector at all.
    #[must_use]
    pub fn are_wanted(&self) -> bool {
        self.queue.is_some()
    }

    /// Queues a span. Never waits: one that has no room is dropped and counted.
    pub fn export(&self, span: SpanData) {
        if let Some(queue) = &self.queue {
            queue.on_end(span);
        }
    }
}

//! The queue of finished spans for the collector.
//!
//! * I1. No caller waits for the collector: a span is queued or dropped at once.
//! * I2. The queue is bounded (`OTEL_BSP_MAX_QUEUE_SIZE`). Spans that were dropped because it
//!   was full, or because the collector refused them, are counted.
//! * I3. A failing collector causes one log line, and another one when it works again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use agentbox_contracts::ErrorChain;
use opentelemetry::Context;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, Span, SpanData, SpanExporter, SpanProcessor,
};

use crate::metrics;

/// Batches spans for one exporter, in a thread of its own.
#[derive(Debug)]
pub(super) struct Queue {
    batches: BatchSpanProcessor,
    /// Spans that are queued or being exported.
    waiting: Arc<AtomicUsize>,
    limit: usize,
}

impl Queue {
    pub(super) fn new(exporter: impl SpanExporter + 'static, limit: usize) -> Self {
        let waiting = Arc::new(AtomicUsize::new(0));
        let exporter = ReportingExporter {
            exporter,
            waiting: Arc::clone(&waiting),
            failing: AtomicBool::new(false),
        };
        // The environment sets the rest. The size is set here, because every span that `on_end`
        // counts must fit.
        let config = BatchConfigBuilder::default()
            .with_max_queue_size(limit)
            .build();
        Self {
            batches: BatchSpanProcessor::builder(exporter)
                .with_batch_config(config)
                .build(),
            waiting,
            limit,
        }
    }
}

impl SpanProcessor for Queue {
    fn on_start(&self, span: &mut Span, context: &Context) {
        self.batches.on_start(span, context);
    }

    fn on_end(&self, span: SpanData) {
        if !span.span_context.is_sampled() {
            return;
        }
        let has_room = |waiting: usize| (waiting < self.limit).then_some(waiting + 1);
        if self
            .waiting
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, has_room)
            .is_err()
        {
            metrics::spans_dropped("queue", 1);
            return;
        }
        self.batches.on_end(span);
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.batches.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.batches.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.batches.set_resource(resource);
    }
}

/// An exporter that logs the first failure alone. The SDK would log an error for each batch.
#[derive(Debug)]
struct ReportingExporter<E> {
    exporter: E,
    waiting: Arc<AtomicUsize>,
    failing: AtomicBool,
}

impl<E: SpanExporter> SpanExporter for ReportingExporter<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let count = batch.len();
        let outcome = self.exporter.export(batch).await;
        self.waiting.fetch_sub(count, Ordering::Relaxed);
        let was_failing = self.failing.swap(outcome.is_err(), Ordering::Relaxed);
        match outcome {
            Ok(()) => {
                metrics::spans_exported(count);
                if was_failing {
                    tracing::info!("trace collector accepted spans again");
                }
            }
            Err(error) => {
                metrics::spans_dropped("collector", count);
                if !was_failing {
                    tracing::warn!(error = %ErrorChain(&error), "trace collector failed; spans are dropped until it works again");
                }
            }
        }
        Ok(())
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::time::Instant;

    use opentelemetry::trace::{Tracer as _, TracerProvider as _};
    use opentelemetry_sdk::error::OTelSdkError;
    use opentelemetry_sdk::trace::SdkTracerProvider;

    use super::*;

    /// Hangs until `gate` is dropped, then fails.
    #[derive(Debug)]
    struct HangingExporter {
        gate: Mutex<std::sync::mpsc::Receiver<()>>,
        batches: Arc<AtomicUsize>,
    }

    impl SpanExporter for HangingExporter {
        async fn export(&self, _batch: Vec<SpanData>) -> OTelSdkResult {
            let _ = self.gate.lock().map(|gate| gate.recv());
            self.batches.fetch_add(1, Ordering::Relaxed);
            Err(OTelSdkError::InternalFailure("no".into()))
        }
    }

    #[test]
    fn hanging_collector_blocks_no_span_and_queue_stays_bounded() {
        let (gate, opened) = std::sync::mpsc::channel();
        let batches = Arc::new(AtomicUsize::new(0));
        let exporter = HangingExporter {
            gate: Mutex::new(opened),
            batches: Arc::clone(&batches),
        };
        let queue = Queue::new(exporter, 8);
        let waiting = Arc::clone(&queue.waiting);
        let provider = SdkTracerProvider::builder()
            .with_span_processor(queue)
            .build();
        let tracer = provider.tracer("test");
        // A stall of the machine delays one of them at most.
        let mut fastest = Duration::MAX;
        for _ in 0..10 {
            let started_at = Instant::now();
            for _ in 0..1_000 {
                tracer.start("span");
            }
            fastest = fastest.min(started_at.elapsed());
        }
        assert!(fastest < Duration::from_millis(200), "{fastest:?}");
        assert_eq!(waiting.load(Ordering::Relaxed), 8);
        drop(gate);
        // The failure of the collector is not reported to the SDK: its shutdown succeeds.
        provider.shutdown().unwrap();
        assert_eq!(waiting.load(Ordering::Relaxed), 0);
        assert!(batches.load(Ordering::Relaxed) >= 1);
    }
}

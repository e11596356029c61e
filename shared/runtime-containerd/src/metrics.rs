//! The driver's metrics, of images alone: the scheduler measures the calls of a driver, and
//! `agentbox_runtime` defines the stages of a create.

use agentbox_metrics::{Counter, Gauge, Label, NO_LABELS, Unit};

agentbox_metrics::metrics! {
    static FILE_SYSTEM: Gauge<1> = Gauge::new(
        "agentbox_image_filesystem_bytes",
        Unit::Bytes,
        [Label::one_of("state", &["used", "available"])],
        "The file system with the images of containerd",
    );
    static REMOVED: Counter = Counter::new(
        "agentbox_images_removed_total",
        Unit::Count,
        [],
        "Images that were removed above the watermark",
    );
    static REMOVED_BYTES: Counter = Counter::new(
        "agentbox_image_removed_bytes_total",
        Unit::Bytes,
        [],
        "Compressed bytes of the images that were removed",
    );
    static REFUSED: Counter<1> = Counter::new(
        "agentbox_image_pulls_refused_total",
        Unit::Count,
        [Label::bounded("cause", "one of the fixed texts that users read")],
        "Pulls that failed for good",
    );
}

/// Describes the metrics to the recorder.
pub fn describe() {
    agentbox_metrics::describe(METRICS);
    agentbox_runtime::metrics::describe();
}

#[allow(clippy::cast_precision_loss, reason = "a gauge is a float")]
pub fn image_file_system(used: u64, available: u64) {
    for (state, bytes) in [("used", used), ("available", available)] {
        FILE_SYSTEM.set(bytes as f64, [state]);
    }
}

pub fn image_removed(bytes: u64) {
    REMOVED.add(1, NO_LABELS);
    REMOVED_BYTES.add(bytes, NO_LABELS);
}

/// `cause` is the fixed text that users read.
pub fn pull_refused(cause: &'static str) {
    REFUSED.add(1, [cause]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_reference_matches_code() {
        agentbox_metrics::reference::check("containerd", METRICS).unwrap();
    }
}

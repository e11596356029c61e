//! The driver's metrics, of images alone: the scheduler measures the calls of a driver.

const FILE_SYSTEM_BYTES: &str = "agentbox_image_filesystem_bytes";
const REMOVED: &str = "agentbox_images_removed_total";
const REMOVED_BYTES: &str = "agentbox_image_bytes_removed_total";
const REFUSED: &str = "agentbox_image_pulls_refused_total";

/// Describes the metrics to the recorder.
pub fn describe() {
    use metrics::{Unit, describe_counter as counter, describe_gauge as gauge};
    gauge!(
        FILE_SYSTEM_BYTES,
        Unit::Bytes,
        "The file system with the images of containerd, by state: used, available"
    );
    counter!(REMOVED, "Images that were removed above the watermark");
    counter!(
        REMOVED_BYTES,
        Unit::Bytes,
        "Compressed bytes of the images that were removed"
    );
    counter!(REFUSED, "Pulls that failed for good, by cause");
}

#[allow(clippy::cast_precision_loss, reason = "a gauge is a float")]
pub fn image_file_system(used: u64, available: u64) {
    for (state, bytes) in [("used", used), ("available", available)] {
        metrics::gauge!(FILE_SYSTEM_BYTES, "state" => state).set(bytes as f64);
    }
}

pub fn image_removed(bytes: u64) {
    metrics::counter!(REMOVED).increment(1);
    metrics::counter!(REMOVED_BYTES).increment(bytes);
}

/// `cause` is the fixed text that users read.
pub fn pull_refused(cause: &'static str) {
    metrics::counter!(REFUSED, "cause" => cause).increment(1);
}

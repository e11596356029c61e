//! The metrics that every service has: its build, the export of its spans, its process, and the
//! statements that it sends to Postgres.

use std::time::Duration;

use agentbox_metrics::{Counter, Gauge, GaugeSet, Histogram, Label, NO_LABELS, Unit};

agentbox_metrics::metrics! {
    static BUILD_INFO: Gauge<2> = Gauge::new(
        "agentbox_build_info",
        Unit::Count,
        [
            Label::bounded("service", "the name of the service"),
            Label::bounded("version", "the version of the build"),
        ],
        "1, with the service and its version as labels",
    );
    static SPANS_EXPORTED: Counter = Counter::new(
        "agentbox_spans_exported_total",
        Unit::Count,
        [],
        "Spans that the collector accepted",
    );
    static SPANS_DROPPED: Counter<1> = Counter::new(
        "agentbox_spans_dropped_total",
        Unit::Count,
        [Label::one_of("reason", &["queue", "collector"])],
        "Spans that were lost, because the queue was full or the collector failed",
    );
    static STATEMENT_DURATION: Histogram<2> = Histogram::new(
        "agentbox_db_client_operation_duration_seconds",
        Unit::Seconds,
        [
            Label::bounded("db_operation_name", "the most important statement, such as SELECT"),
            Label::bounded("db_collection_name", "the table"),
        ],
        "Duration of a function that sends statements to Postgres, with the wait for a connection",
    );
    static MEMORY: Gauge = Gauge::new(
        "agentbox_process_memory_usage_bytes",
        Unit::Bytes,
        [],
        "Resident memory of the process",
    );
    static CPU: Gauge = Gauge::new(
        "agentbox_process_cpu_time_seconds",
        Unit::Seconds,
        [],
        "Processor time of the process since its start",
    );
    static DESCRIPTORS: Gauge = Gauge::new(
        "agentbox_process_open_file_descriptor_count",
        Unit::Count,
        [],
        "Open file descriptors of the process",
    );
    static UNREADY: GaugeSet<1> = GaugeSet::new(
        "agentbox_unready",
        Unit::Count,
        [Label::bounded("component", "a component of `/health/ready`")],
        "1 for each component that is not ready; no series while all are",
    );
}

pub(crate) fn describe(service: &'static str) {
    agentbox_metrics::describe(METRICS);
    BUILD_INFO.set(1.0, [service, env!("CARGO_PKG_VERSION")]);
}

pub(crate) fn spans_exported(count: usize) {
    SPANS_EXPORTED.add(count as u64, NO_LABELS);
}

/// `reason`: `queue` or `collector`.
pub(crate) fn spans_dropped(reason: &'static str, count: usize) {
    SPANS_DROPPED.add(count as u64, [reason]);
}

pub(crate) fn statement_ended(operation: String, table: String, took: Duration) {
    STATEMENT_DURATION.record(took.as_secs_f64(), [operation, table]);
}

/// Reports which components are not ready.
pub(crate) fn unready(components: impl Iterator<Item = &'static str>) {
    UNREADY.replace(components.map(|name| ([name.to_owned()], 1.0)).collect());
}

/// Measures this process. What cannot be read keeps its last value.
pub(crate) fn measure_process() {
    let read = |file: &str| std::fs::read_to_string(format!("/proc/self/{file}"));
    if let Some(bytes) = read("status").ok().as_deref().and_then(resident_bytes) {
        MEMORY.set(bytes, NO_LABELS);
    }
    if let Some(seconds) = read("stat").ok().as_deref().and_then(cpu_seconds) {
        CPU.set(seconds, NO_LABELS);
    }
    if let Ok(descriptors) = std::fs::read_dir("/proc/self/fd") {
        // The directory itself is one of them.
        let open = u32::try_from(descriptors.count().saturating_sub(1)).unwrap_or(u32::MAX);
        DESCRIPTORS.set(f64::from(open), NO_LABELS);
    }
}

/// The resident memory in a `/proc/<pid>/status`.
fn resident_bytes(status: &str) -> Option<f64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: f64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kibibytes * 1024.0)
}

/// The processor time in a `/proc/<pid>/stat`.
fn cpu_seconds(stat: &str) -> Option<f64> {
    /// The unit of time of these files, on every architecture.
    const TICKS_PER_SECOND: f64 = 100.0;
    // The name may contain spaces and brackets.
    let (_, rest) = stat.rsplit_once(')')?;
    // Fields 14 and 15; `rest` begins at field 3.
    let mut fields = rest.split_whitespace().skip(11);
    let user: f64 = fields.next()?.parse().ok()?;
    let system: f64 = fields.next()?.parse().ok()?;
    Some((user + system) / TICKS_PER_SECOND)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_reference_matches_code() {
        agentbox_metrics::reference::check("services", METRICS).unwrap();
    }

    #[test]
    fn usage_of_a_process_with_brackets_in_its_name_is_read() {
        let stat = "7 (a b) c) S 1 7 7 0 -1 4194560 100 0 0 0 150 50 0 0 20 0 5 0 100 1000000 256";
        assert_eq!(cpu_seconds(stat), Some(2.0));
        assert_eq!(cpu_seconds("7 (a)"), None);
        let status = "Name:\ta\nVmRSS:\t    2048 kB\nThreads:\t5\n";
        assert_eq!(resident_bytes(status), Some(2_097_152.0));
        assert_eq!(resident_bytes("Name:\ta\n"), None);
    }
}

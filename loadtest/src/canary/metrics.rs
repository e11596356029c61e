//! The canary's metrics.

use std::time::Duration;

use agentbox_metrics::{Counter, Gauge, Histogram, Label, NO_LABELS, Unit};

use super::steps::STEPS;

agentbox_metrics::metrics! {
    static STEPS_ENDED: Counter<2> = Counter::new(
        "agentbox_canary_steps_total",
        Unit::Count,
        [
            Label::one_of("step", &STEPS),
            Label::one_of("outcome", &["ok", "failed"]),
        ],
        "Steps of the canary that ended, by step and outcome",
    );
    static STEP_DURATION: Histogram<1> = Histogram::new(
        "agentbox_canary_step_duration_seconds",
        Unit::Seconds,
        [Label::one_of("step", &STEPS)],
        "Duration of the canary's successful steps; create lasts until the environment runs, delete until \
         it has ended",
    );
    static CLOCK_OFFSET: Gauge = Gauge::new(
        "agentbox_canary_clock_offset_seconds",
        Unit::Seconds,
        [],
        "The clock of the API minus the canary's, exact to a second",
    );
}

pub(super) fn describe() {
    agentbox_metrics::describe(METRICS);
}

/// Counts a step, and records its duration if it succeeded.
pub(super) fn step_ended(step: &'static str, took: Option<Duration>) {
    let outcome = if took.is_some() { "ok" } else { "failed" };
    STEPS_ENDED.add(1, [step, outcome]);
    if let Some(took) = took {
        STEP_DURATION.record(took.as_secs_f64(), [step]);
    }
}

pub(super) fn clock_offset(seconds: f64) {
    CLOCK_OFFSET.set(seconds, NO_LABELS);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_reference_matches_code() {
        agentbox_metrics::reference::check("canary", METRICS).unwrap();
    }
}

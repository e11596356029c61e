//! The stages of a create, which the scheduler and the drivers measure where they happen.

use std::time::Duration;

use agentbox_metrics::{Histogram, Label, Unit};

/// A stage of the creation of an environment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// From the request until the creation of the box began.
    Queued,
    /// From the request until capacity was reserved.
    Admitted,
    /// The pull of the image, if there was one.
    Pulled,
    /// The sandbox of the box, with its network.
    Sandbox,
    /// From the sandbox until boxd answered. On Kubernetes with the pull of the image.
    Started,
    /// From the request until the environment was running.
    Running,
}

impl Stage {
    const ALL: &'static [&'static str] = &[
        "queued", "admitted", "pulled", "sandbox", "started", "running",
    ];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Admitted => "admitted",
            Self::Pulled => "pulled",
            Self::Sandbox => "sandbox",
            Self::Started => "started",
            Self::Running => "running",
        }
    }
}

agentbox_metrics::metrics! {
    static STAGE_DURATION: Histogram<1> = Histogram::new(
        "agentbox_environment_stage_duration_seconds",
        Unit::Seconds,
        [Label::one_of("stage", Stage::ALL)],
        "Duration of a stage of a create: queued (from the request until the creation of the box began), \
         admitted (from the request until capacity was reserved), pulled (the pull of the image, if there \
         was one; not measured on Kubernetes), sandbox, started (from the sandbox until boxd answered; on \
         Kubernetes with the pull), running (from the request until the environment ran)",
    );
}

/// Describes the metrics to the recorder. May be called repeatedly.
pub fn describe() {
    agentbox_metrics::describe(METRICS);
}

/// Records that a stage was completed.
pub fn stage_completed(stage: Stage, took: Duration) {
    STAGE_DURATION.record(took.as_secs_f64(), [stage.as_str()]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_reference_matches_code() {
        agentbox_metrics::reference::check("runtime", METRICS).unwrap();
    }

    #[test]
    fn every_stage_is_a_value_of_the_label() {
        use Stage::{Admitted, Pulled, Queued, Running, Sandbox, Started};
        let stages = [Queued, Admitted, Pulled, Sandbox, Started, Running];
        assert_eq!(stages.map(Stage::as_str), Stage::ALL);
    }
}

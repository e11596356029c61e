//! What a metric is.

use ::metrics::{SharedString, Unit};

/// The values that a label may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Values {
    OneOf(&'static [&'static str]),
    /// Bounded, but not by this list, such as the names of the clusters. The text completes "the
    /// value is …".
    Bounded(&'static str),
}

/// A label of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Label {
    pub name: &'static str,
    pub values: Values,
}

impl Label {
    /// A label with a closed list of values.
    #[must_use]
    pub const fn one_of(name: &'static str, values: &'static [&'static str]) -> Self {
        Self {
            name,
            values: Values::OneOf(values),
        }
    }

    /// A label whose values are bounded as `description` states.
    #[must_use]
    pub const fn bounded(name: &'static str, description: &'static str) -> Self {
        Self {
            name,
            values: Values::Bounded(description),
        }
    }
}

/// The type of a metric, as Prometheus knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Counter,
    Gauge,
    Histogram,
}

impl Kind {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// The definition of a metric, without its number of labels.
#[derive(Clone, Copy, Debug)]
pub struct Definition<'a> {
    pub name: &'static str,
    pub kind: Kind,
    pub unit: Unit,
    pub labels: &'a [Label],
    pub description: &'static str,
}

impl Definition<'_> {
    /// All combinations of the values of the labels. `None`: a label has no closed list.
    #[must_use]
    pub fn combinations(&self) -> Option<Vec<Vec<&'static str>>> {
        let mut combinations: Vec<Vec<&'static str>> = vec![Vec::new()];
        for label in self.labels {
            let Values::OneOf(values) = label.values else {
                return None;
            };
            combinations = combinations
                .iter()
                .flat_map(|combination| {
                    values.iter().map(move |value| {
                        let mut longer = combination.clone();
                        longer.push(*value);
                        longer
                    })
                })
                .collect();
        }
        Some(combinations)
    }

    /// How the name breaks the rules; `None` if it keeps them.
    #[must_use]
    pub fn name_problem(&self) -> Option<String> {
        let name = self.name;
        let is_word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        if !name.starts_with("agentbox_") || !name.chars().all(is_word) {
            return Some(format!(
                "{name}: must begin with agentbox_ and consist of a-z, 0-9 and _"
            ));
        }
        let stem = match (self.kind, name.strip_suffix("_total")) {
            (Kind::Counter, Some(stem)) => stem,
            (Kind::Counter, None) => {
                return Some(format!("{name}: a counter must end with _total"));
            }
            (Kind::Gauge | Kind::Histogram, None) => name,
            (Kind::Gauge | Kind::Histogram, Some(_)) => {
                return Some(format!("{name}: only a counter may end with _total"));
            }
        };
        let suffix = match self.unit {
            Unit::Seconds => "_seconds",
            Unit::Bytes => "_bytes",
            _ => return None,
        };
        (!stem.ends_with(suffix)).then(|| format!("{name}: must end with its unit, {suffix}"))
    }
}

/// A metric of any kind.
pub trait Metric: Sync {
    fn definition(&self) -> Definition<'_>;

    /// Registers the description, and the series that exist from the start.
    fn describe(&self);

    /// The lines of a set of gauges in the text format of Prometheus; `None` for what the recorder
    /// renders.
    fn render(&self) -> Option<String> {
        None
    }
}

/// Defines the metrics of a crate: each as a static, and `METRICS`, the list of all of them.
///
/// ```
/// use agentbox_metrics::{Counter, Label, NO_LABELS, Unit};
///
/// agentbox_metrics::metrics! {
///     static JOBS: Counter<1> = Counter::new(
///         "agentbox_jobs_total",
///         Unit::Count,
///         [Label::one_of("outcome", &["ok", "failed"])],
///         "Jobs that ended, by outcome",
///     );
///     static RETRIES: Counter = Counter::new(
///         "agentbox_job_retries_total",
///         Unit::Count,
///         [],
///         "Jobs that were tried again",
///     );
/// }
///
/// agentbox_metrics::describe(METRICS);
/// JOBS.add(1, ["ok"]);
/// RETRIES.add(1, NO_LABELS);
/// ```
#[macro_export]
macro_rules! metrics {
    ($(static $name:ident: $type:ty = $value:expr;)+) => {
        $(static $name: $type = $value;)+
        /// Every metric of this crate.
        pub(crate) static METRICS: &[&dyn $crate::Metric] = &[$(&$name),+];
    };
}

/// The labels of a series, for the recorder.
pub(crate) fn labelled<V: Into<SharedString>, const N: usize>(
    labels: &[Label; N],
    values: [V; N],
) -> Vec<::metrics::Label> {
    labels
        .iter()
        .zip(values)
        .map(|(label, value)| ::metrics::Label::new(label.name, value))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn definition(name: &'static str, kind: Kind, unit: Unit) -> Definition<'static> {
        Definition {
            name,
            kind,
            unit,
            labels: &[],
            description: "",
        }
    }

    #[test]
    fn name_without_prefix_or_unit_or_total_is_refused() {
        use Kind::{Counter, Gauge, Histogram};
        for (name, kind, unit, expected) in [
            ("agentbox_jobs_total", Counter, Unit::Count, true),
            ("agentbox_job_bytes_total", Counter, Unit::Bytes, true),
            ("agentbox_job_seconds", Histogram, Unit::Seconds, true),
            ("agentbox_jobs", Gauge, Unit::Count, true),
            ("jobs_total", Counter, Unit::Count, false),
            ("agentbox_Jobs_total", Counter, Unit::Count, false),
            ("agentbox_jobs", Counter, Unit::Count, false),
            ("agentbox_jobs_total", Gauge, Unit::Count, false),
            ("agentbox_job_size", Histogram, Unit::Bytes, false),
            ("agentbox_job_duration", Histogram, Unit::Seconds, false),
        ] {
            let problem = definition(name, kind, unit).name_problem();
            assert_eq!(problem.is_none(), expected, "{name}: {problem:?}");
        }
    }

    #[test]
    fn combinations_of_closed_labels_are_complete_and_of_others_unknown() {
        let labels = [
            Label::one_of("a", &["1", "2"]),
            Label::one_of("b", &["x", "y"]),
        ];
        let closed = Definition {
            labels: &labels,
            ..definition("agentbox_a_total", Kind::Counter, Unit::Count)
        };
        assert_eq!(
            closed.combinations().unwrap(),
            [["1", "x"], ["1", "y"], ["2", "x"], ["2", "y"]]
        );
        let labels = [labels[0], Label::bounded("cluster", "a cluster")];
        let open = Definition {
            labels: &labels,
            ..closed
        };
        assert_eq!(open.combinations(), None);
        let none = definition("agentbox_a_total", Kind::Counter, Unit::Count);
        assert_eq!(none.combinations().unwrap(), [Vec::<&str>::new()]);
    }
}

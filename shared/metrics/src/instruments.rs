//! How metrics are recorded: counters, gauges, histograms and sets of gauges.
//!
//! `N` is the number of labels. A caller passes their values in the order of the definition.

use std::fmt::Write as _;

use ::metrics::{Key, KeyName, Level, Metadata, SharedString, Unit, with_recorder};
use parking_lot::Mutex;

use crate::definition::{Definition, Kind, Label, Metric, labelled};

/// The values of a metric without labels.
pub const NO_LABELS: [&str; 0] = [];

static METADATA: Metadata<'static> = Metadata::new("agentbox", Level::INFO, None);

macro_rules! instrument {
    ($(#[$doc:meta])* $instrument:ident) => {
        $(#[$doc])*
        #[derive(Debug)]
        pub struct $instrument<const N: usize = 0> {
            name: &'static str,
            unit: Unit,
            labels: [Label; N],
            description: &'static str,
        }

        impl<const N: usize> $instrument<N> {
            #[must_use]
            pub const fn new(
                name: &'static str,
                unit: Unit,
                labels: [Label; N],
                description: &'static str,
            ) -> Self {
                Self {
                    name,
                    unit,
                    labels,
                    description,
                }
            }

            fn key<V: Into<SharedString>>(&self, values: [V; N]) -> Key {
                Key::from_parts(self.name, labelled(&self.labels, values))
            }

            fn of_kind(&self, kind: Kind) -> Definition<'_> {
                Definition {
                    name: self.name,
                    kind,
                    unit: self.unit,
                    labels: &self.labels,
                    description: self.description,
                }
            }
        }
    };
}

instrument!(
    /// A number that only grows.
    Counter
);
instrument!(
    /// A number that grows and shrinks.
    Gauge
);
instrument!(
    /// The distribution of a number, usually of durations.
    Histogram
);

/// The keys of the series of `definition` that exist from the start.
fn initial_keys(definition: &Definition<'_>) -> Vec<Key> {
    let combinations = definition.combinations().unwrap_or_default();
    let key = |values: Vec<&'static str>| {
        let labels: Vec<_> = definition
            .labels
            .iter()
            .zip(values)
            .map(|(label, value)| ::metrics::Label::new(label.name, value))
            .collect();
        Key::from_parts(definition.name, labels)
    };
    combinations.into_iter().map(key).collect()
}

impl<const N: usize> Counter<N> {
    pub fn add<V: Into<SharedString>>(&self, by: u64, values: [V; N]) {
        let key = self.key(values);
        with_recorder(|recorder| recorder.register_counter(&key, &METADATA)).increment(by);
    }
}

impl<const N: usize> Metric for Counter<N> {
    fn definition(&self) -> Definition<'_> {
        self.of_kind(Kind::Counter)
    }

    fn describe(&self) {
        with_recorder(|recorder| {
            let name = KeyName::from(self.name);
            recorder.describe_counter(name, Some(self.unit), self.description.into());
            for key in initial_keys(&self.definition()) {
                recorder.register_counter(&key, &METADATA).increment(0);
            }
        });
    }
}

impl<const N: usize> Gauge<N> {
    pub fn set<V: Into<SharedString>>(&self, value: f64, values: [V; N]) {
        let key = self.key(values);
        with_recorder(|recorder| recorder.register_gauge(&key, &METADATA)).set(value);
    }

    /// Adds `by`, which may be negative.
    pub fn shift<V: Into<SharedString>>(&self, by: f64, values: [V; N]) {
        let key = self.key(values);
        with_recorder(|recorder| recorder.register_gauge(&key, &METADATA)).increment(by);
    }
}

impl<const N: usize> Metric for Gauge<N> {
    fn definition(&self) -> Definition<'_> {
        self.of_kind(Kind::Gauge)
    }

    fn describe(&self) {
        with_recorder(|recorder| {
            let name = KeyName::from(self.name);
            recorder.describe_gauge(name, Some(self.unit), self.description.into());
        });
    }
}

impl<const N: usize> Histogram<N> {
    pub fn record<V: Into<SharedString>>(&self, value: f64, values: [V; N]) {
        let key = self.key(values);
        with_recorder(|recorder| recorder.register_histogram(&key, &METADATA)).record(value);
    }
}

impl<const N: usize> Metric for Histogram<N> {
    fn definition(&self) -> Definition<'_> {
        self.of_kind(Kind::Histogram)
    }

    fn describe(&self) {
        with_recorder(|recorder| {
            let name = KeyName::from(self.name);
            recorder.describe_histogram(name, Some(self.unit), self.description.into());
            for key in initial_keys(&self.definition()) {
                // Registered, and no value recorded.
                let _ = recorder.register_histogram(&key, &METADATA);
            }
        });
    }
}

/// Gauges whose series come and go: all are replaced at once. A series that is not in the newest
/// set is no longer reported.
#[derive(Debug)]
pub struct GaugeSet<const N: usize> {
    gauge: Gauge<N>,
    series: Mutex<Vec<([String; N], f64)>>,
}

impl<const N: usize> GaugeSet<N> {
    #[must_use]
    pub const fn new(
        name: &'static str,
        unit: Unit,
        labels: [Label; N],
        description: &'static str,
    ) -> Self {
        Self {
            gauge: Gauge::new(name, unit, labels, description),
            series: Mutex::new(Vec::new()),
        }
    }

    /// Replaces all series.
    pub fn replace(&self, series: Vec<([String; N], f64)>) {
        *self.series.lock() = series;
    }

    /// Replaces the series whose first label is `first`.
    pub fn replace_of(&self, first: &str, series: Vec<([String; N], f64)>) {
        let is_other = |values: &[String; N]| values.first().is_none_or(|value| value != first);
        let mut kept = self.series.lock();
        kept.retain(|(values, _)| is_other(values));
        kept.extend(series);
    }
}

impl<const N: usize> Metric for GaugeSet<N> {
    fn definition(&self) -> Definition<'_> {
        self.gauge.definition()
    }

    /// The recorder does not know it.
    fn describe(&self) {}

    fn render(&self) -> Option<String> {
        let series = self.series.lock();
        if series.is_empty() {
            return Some(String::new());
        }
        let Definition {
            name,
            labels,
            description,
            ..
        } = self.definition();
        let mut text = format!("# HELP {name} {description}\n# TYPE {name} gauge\n");
        for (values, value) in series.iter() {
            let labels: Vec<String> = labels
                .iter()
                .zip(values)
                .map(|(label, value)| format!("{}=\"{}\"", label.name, escaped(value)))
                .collect();
            // Writing to a string cannot fail.
            let _ = match labels.is_empty() {
                true => writeln!(text, "{name} {value}"),
                false => writeln!(text, "{name}{{{}}} {value}", labels.join(",")),
            };
        }
        text.push('\n');
        Some(text)
    }
}

/// A label's value in the text format.
fn escaped(value: &str) -> String {
    value
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    static BOXES: GaugeSet<2> = GaugeSet::new(
        "agentbox_boxes",
        Unit::Count,
        [
            Label::bounded("cluster", "a cluster"),
            Label::bounded("owner", "an owner"),
        ],
        "Boxes, by cluster and owner",
    );

    #[test]
    fn replaced_set_reports_only_its_newest_series_with_escaped_values() {
        let of = |cluster: &str, owner: &str| [cluster.to_owned(), owner.to_owned()];
        assert_eq!(BOXES.render().as_deref(), Some(""));
        BOXES.replace(vec![(of("a", "u1"), 1.0), (of("b", "u2"), 2.0)]);
        BOXES.replace_of("a", vec![(of("a", "x\"y"), 3.5)]);
        assert_eq!(
            BOXES.render().unwrap().lines().collect::<Vec<_>>(),
            [
                "# HELP agentbox_boxes Boxes, by cluster and owner",
                "# TYPE agentbox_boxes gauge",
                "agentbox_boxes{cluster=\"b\",owner=\"u2\"} 2",
                "agentbox_boxes{cluster=\"a\",owner=\"x\\\"y\"} 3.5",
                "",
            ]
        );
        BOXES.replace(Vec::new());
        assert_eq!(BOXES.render().as_deref(), Some(""));
    }
}

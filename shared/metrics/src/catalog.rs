//! The metrics of this process.

use parking_lot::Mutex;

use crate::definition::Metric;

static DESCRIBED: Mutex<Vec<&'static dyn Metric>> = Mutex::new(Vec::new());

/// Registers the descriptions of `metrics`, and the series that exist from the start. May be called
/// repeatedly.
pub fn describe(metrics: &'static [&'static dyn Metric]) {
    let mut described = DESCRIBED.lock();
    for metric in metrics {
        metric.describe();
        let name = metric.definition().name;
        if described
            .iter()
            .all(|known| known.definition().name != name)
        {
            described.push(*metric);
        }
    }
}

/// The sets of gauges of this process in the text format of Prometheus, which the recorder does not
/// know.
#[must_use]
pub fn render_gauge_sets() -> String {
    let described = DESCRIBED.lock();
    described
        .iter()
        .filter_map(|metric| metric.render())
        .collect()
}

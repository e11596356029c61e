//! Metrics: each is defined once, as a static with its name, unit, labels and description, in the
//! `metrics.rs` of its crate.
//!
//! * [`definition`]: what a metric is, and the macro [`metrics!`] that defines those of a crate.
//! * [`instruments`]: how it is recorded.
//! * [`catalog`]: the metrics of this process.
//! * [`mod@reference`]: `docs/metrics.md`, which is generated from the definitions.
//!
//! * I1. Every name begins with `agentbox_` and ends with its unit; a counter ends with `_total`.
//! * I2. The values of a label are a closed list, or bounded by something that its definition names.
//!   No value is an id of an environment, an address or another text of a user.
//! * I3. Counters and histograms whose labels are closed lists exist from the start, at zero, so that
//!   the first event of a process is an increase.

pub mod catalog;
pub mod definition;
pub mod instruments;
pub mod reference;

pub use ::metrics::Unit;
pub use catalog::{describe, render_gauge_sets};
pub use definition::{Label, Metric};
pub use instruments::{Counter, Gauge, GaugeSet, Histogram, NO_LABELS};

//! The bounds of what users and client networks hold, and the error of a request that exceeds one.

use agentbox_contracts::error::{Error, ErrorCode};
pub(crate) use agentbox_service::shares::{Exceeded, Share, Shares};

use crate::metrics;

/// A resource in the error of a request that exceeds one of its bounds.
pub(crate) struct Resource {
    /// The labels of [`metrics::limit_reached`]: of the bound of one user, and of that of all.
    pub labels: [&'static str; 2],
    /// The message is `before`, one of `holders` in the order of `labels`, and `after`.
    pub before: &'static str,
    pub holders: [&'static str; 2],
    pub after: &'static str,
}

impl Resource {
    /// Counts that a bound was reached, and returns the error 503 that names it.
    pub(crate) fn unavailable(&self, exceeded: Exceeded) -> Error {
        let index = match exceeded {
            Exceeded::PerHolder => 0,
            Exceeded::Total => 1,
        };
        metrics::limit_reached(self.labels[index]);
        let message = format!("{} {} {}", self.before, self.holders[index], self.after);
        Error::new(ErrorCode::Unavailable, message)
    }
}

//! Rows that a periodic task cannot read, such as those of a newer version.

use agentbox_contracts::ErrorChain;
use agentbox_contracts::ids::EnvironmentId;

use crate::environment::record::CorruptRow;
use crate::metrics;

/// The rows that one query could not read. They are skipped, so that they delay no others, and
/// reported together.
#[derive(Default)]
pub(super) struct UnreadableRows(Vec<CorruptRow>);

impl UnreadableRows {
    /// The value of a row; `None` when it cannot be read.
    pub(super) fn skip<T>(&mut self, row: Result<T, CorruptRow>) -> Option<T> {
        row.map_err(|error| self.0.push(error)).ok()
    }

    /// Counts the rows, and logs their number and the first of them.
    pub(super) fn report(self) {
        let Some(first) = self.0.first() else {
            return;
        };
        metrics::rows_unreadable(self.0.len() as u64);
        tracing::warn!(
            error = %ErrorChain(first),
            environment.id = %first.id,
            rows = self.0.len(),
            "rows not read and skipped"
        );
    }
}

/// Parses the id of a row.
pub(super) fn environment_id(id: &str) -> Result<EnvironmentId, CorruptRow> {
    id.parse().map_err(|_| CorruptRow {
        id: id.to_owned(),
        column: "id",
        problem: format!("`{id}` is not an id"),
    })
}

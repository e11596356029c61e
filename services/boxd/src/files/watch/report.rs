//! The changes that are to be sent.

use agentbox_contracts::files::file_output::Output;
use agentbox_contracts::files::{ChangeKind, Changes, FileChange};
use bytes::Bytes;

use super::super::caller::Caller;
use super::super::failure::Result;

/// The size of a message, in bytes. Together with one more change it fits into a frame.
const MESSAGE_BYTES: usize = 24 * 1024;
/// A bound for what a change has besides its paths.
const CHANGE_BYTES: usize = 32;

/// Numbers changes and keeps them until they are sent.
#[derive(Default)]
pub struct Report {
    changes: Vec<FileChange>,
    bytes: usize,
    number: u64,
}

impl Report {
    /// Adds a change. The same change of the same path again is reported once.
    pub fn add(&mut self, kind: ChangeKind, path: Vec<u8>, from: Option<Vec<u8>>) {
        let is_repeated = self.changes.last().is_some_and(|last| {
            last.kind == i32::from(kind) && last.path == path && kind != ChangeKind::Moved
        });
        if is_repeated {
            return;
        }
        self.number += 1;
        let change = FileChange {
            number: self.number,
            kind: kind.into(),
            path: path.into(),
            from: from.map(Bytes::from),
        };
        self.bytes += bytes(&change);
        self.changes.push(change);
    }

    /// Whether the changes should be sent before more are added.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.bytes >= MESSAGE_BYTES
    }

    /// Sends the changes in messages of a bounded size.
    ///
    /// # Errors
    /// When the caller is gone.
    pub fn send(&mut self, caller: &mut Caller) -> Result<()> {
        self.bytes = 0;
        let (mut changes, mut size) = (Vec::new(), 0);
        for change in std::mem::take(&mut self.changes) {
            size += bytes(&change);
            changes.push(change);
            if size >= MESSAGE_BYTES {
                size = 0;
                let changes = std::mem::take(&mut changes);
                caller.send(Output::Changes(Changes { changes }))?;
            }
        }
        if changes.is_empty() {
            return Ok(());
        }
        caller.send(Output::Changes(Changes { changes }))
    }
}

fn bytes(change: &FileChange) -> usize {
    change.path.len() + change.from.as_ref().map_or(0, Bytes::len) + CHANGE_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_numbered_and_repeated_ones_are_merged() {
        let mut report = Report::default();
        let modified = ChangeKind::Modified;
        report.add(modified, b"/a".to_vec(), None);
        report.add(modified, b"/a".to_vec(), None);
        report.add(modified, b"/b".to_vec(), None);
        report.add(modified, b"/a".to_vec(), None);
        report.add(ChangeKind::Moved, b"/a".to_vec(), Some(b"/b".to_vec()));
        report.add(ChangeKind::Moved, b"/a".to_vec(), Some(b"/b".to_vec()));
        let numbers: Vec<u64> = report.changes.iter().map(|change| change.number).collect();
        assert_eq!(numbers, [1, 2, 3, 4, 5]);
        assert!(!report.is_full());
        report.add(ChangeKind::Created, vec![b'a'; MESSAGE_BYTES], None);
        assert!(report.is_full());
    }
}

//! A reader's position in the archived output of one execution. Pure.

use agentbox_contracts::executions::{Execution, OutputGap, OutputPiece, ReadOutput};
use bytes::Buf as _;

/// The positions in both streams.
pub struct OutputCursor {
    streams: [StreamCursor; 2],
}

struct StreamCursor {
    is_wanted: bool,
    /// The offset of the next byte to send. `None`: the oldest kept byte.
    next: Option<u64>,
    /// The number of bytes that the command has written.
    total: u64,
}

impl OutputCursor {
    #[must_use]
    pub fn new(request: &ReadOutput, execution: &Execution) -> Self {
        let from = request.from.as_ref();
        let stdout = StreamCursor {
            is_wanted: request.stdout,
            next: from.map(|from| from.stdout),
            total: execution.stdout_bytes,
        };
        let stderr = StreamCursor {
            is_wanted: request.stderr,
            next: from.map(|from| from.stderr),
            total: execution.stderr_bytes,
        };
        let streams = [stdout, stderr];
        Self { streams }
    }

    /// The gap before a piece, and the part of the piece that the reader does not have.
    pub fn select(&mut self, mut piece: OutputPiece) -> (Option<OutputGap>, Option<OutputPiece>) {
        let stream = &mut self.streams[usize::from(piece.stderr)];
        let end = piece.offset.saturating_add(piece.data.len() as u64);
        let next = stream.next.unwrap_or(piece.offset);
        if !stream.is_wanted || end <= next {
            return (None, None);
        }
        stream.next = Some(end);
        let gap = gap(piece.stderr, next, piece.offset);
        if let Ok(known) = usize::try_from(next.saturating_sub(piece.offset)) {
            piece.data.advance(known);
            piece.offset = piece.offset.max(next);
        }
        (gap, Some(piece))
    }

    /// The output after the last piece, which is not kept.
    #[must_use]
    pub fn rest(&self) -> [Option<OutputGap>; 2] {
        let [stdout, stderr] = &self.streams;
        let rest = |stderr, stream: &StreamCursor| {
            gap(stderr, stream.next.unwrap_or(0), stream.total).filter(|_| stream.is_wanted)
        };
        [rest(false, stdout), rest(true, stderr)]
    }
}

fn gap(stderr: bool, offset: u64, until: u64) -> Option<OutputGap> {
    let bytes = until.saturating_sub(offset);
    (bytes > 0).then_some(OutputGap {
        stderr,
        offset,
        bytes,
    })
}

#[cfg(test)]
mod tests {
    use agentbox_contracts::executions::Offsets;

    use super::*;

    fn piece(stderr: bool, offset: u64, data: &'static str) -> OutputPiece {
        OutputPiece {
            stderr,
            offset,
            data: data.into(),
        }
    }

    fn cursor(from: Option<(u64, u64)>, totals: (u64, u64)) -> OutputCursor {
        let request = ReadOutput {
            id: String::new(),
            stdout: true,
            stderr: true,
            from: from.map(|(stdout, stderr)| Offsets { stdout, stderr }),
            follow: false,
        };
        let execution = Execution {
            stdout_bytes: totals.0,
            stderr_bytes: totals.1,
            ..Execution::default()
        };
        OutputCursor::new(&request, &execution)
    }

    fn stdout_gap(offset: u64, bytes: u64) -> Option<OutputGap> {
        let stderr = false;
        Some(OutputGap {
            stderr,
            offset,
            bytes,
        })
    }

    #[test]
    fn reader_without_offsets_begins_at_oldest_kept_byte() {
        let mut cursor = cursor(None, (9, 2));
        let first = piece(false, 4, "abc");
        assert_eq!(cursor.select(first.clone()), (None, Some(first)));
        let other = piece(true, 0, "xy");
        assert_eq!(cursor.select(other.clone()), (None, Some(other)));
        assert_eq!(cursor.rest(), [stdout_gap(7, 2), None]);
    }

    #[test]
    fn reader_with_offsets_gets_each_byte_or_its_gap_once() {
        let mut cursor = cursor(Some((2, 9)), (12, 9));
        assert_eq!(
            cursor.select(piece(false, 4, "abc")),
            (stdout_gap(2, 2), Some(piece(false, 4, "abc")))
        );
        assert_eq!(cursor.select(piece(false, 4, "abc")), (None, None));
        assert_eq!(
            cursor.select(piece(false, 5, "bcde")),
            (None, Some(piece(false, 7, "de")))
        );
        assert_eq!(cursor.select(piece(true, 0, "seen")), (None, None));
        assert_eq!(cursor.rest(), [stdout_gap(9, 3), None]);
    }

    #[test]
    fn output_of_which_nothing_is_kept_is_one_gap() {
        assert_eq!(cursor(None, (5, 0)).rest(), [stdout_gap(0, 5), None]);
        assert_eq!(
            cursor(Some((3, 0)), (5, 0)).rest(),
            [stdout_gap(3, 2), None]
        );
        assert_eq!(cursor(Some((8, 0)), (5, 0)).rest(), [None, None]);
    }
}

//! Output that waits for its reader: the newest bytes of two streams in one order.
//!
//! Pure. Memory is bounded by the capacity and by [`SEGMENTS`], and grows as needed.

use std::collections::VecDeque;

use agentbox_contracts::logs::OutputStream;
use bytes::Bytes;

/// Changes between the streams that are kept. A command that alternates byte by byte
/// fills this before the capacity, and blocks as well.
const SEGMENTS: usize = 4096;

/// Bytes of one stream up to `end`.
struct Segment {
    stream: OutputStream,
    end: u64,
}

pub struct Ring {
    bytes: VecDeque<u8>,
    segments: VecDeque<Segment>,
    start: u64,
    capacity: usize,
}

impl Ring {
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self {
            bytes: VecDeque::new(),
            segments: VecDeque::new(),
            start: 0,
            capacity: capacity.max(1),
        }
    }

    /// The sequence of the oldest byte kept.
    #[must_use]
    pub fn start(&self) -> u64 {
        self.start
    }

    /// The sequence of the next byte.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.start + self.bytes.len() as u64
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Bytes that can be pushed when all before `floor` may be forgotten.
    #[must_use]
    pub fn room(&self, floor: u64) -> usize {
        let segments_full = self.segments.len() >= SEGMENTS;
        if segments_full && self.segments.front().is_some_and(|first| first.end > floor) {
            return 0;
        }
        let wanted = self.end().saturating_sub(floor.max(self.start));
        self.capacity
            .saturating_sub(usize::try_from(wanted).unwrap_or(usize::MAX))
    }

    /// Appends `data`, at most [`Self::room`] of them, and forgets the oldest as needed.
    pub fn push(&mut self, stream: OutputStream, data: &[u8]) {
        if data.is_empty() {
            return;
        }
        let total = self.bytes.len() + data.len();
        self.forget(total.saturating_sub(self.capacity));
        self.reserve(data.len());
        self.bytes.extend(data);
        let end = self.end();
        match self.segments.back_mut() {
            Some(last) if last.stream == stream => last.end = end,
            _ => self.segments.push_back(Segment { stream, end }),
        }
        while self.segments.len() > SEGMENTS {
            let first_end = self.segments.front().map_or(self.start, |first| first.end);
            self.forget(usize::try_from(first_end - self.start).unwrap_or(0));
        }
    }

    /// `VecDeque` would double beyond the capacity.
    fn reserve(&mut self, more: usize) {
        let needed = self.bytes.len() + more;
        if needed > self.bytes.capacity() {
            let doubled = (self.bytes.capacity() * 2).min(self.capacity);
            self.bytes
                .reserve_exact(needed.max(doubled) - self.bytes.len());
        }
    }

    fn forget(&mut self, count: usize) {
        let count = count.min(self.bytes.len());
        self.bytes.drain(..count);
        self.start += count as u64;
        while self
            .segments
            .front()
            .is_some_and(|first| first.end <= self.start)
        {
            self.segments.pop_front();
        }
    }

    /// Bytes of one stream from `from` on, at most `max`; `None` at the end, and before
    /// what is kept.
    #[must_use]
    pub fn read(&self, from: u64, max: usize) -> Option<(OutputStream, Bytes)> {
        let first = usize::try_from(from.checked_sub(self.start)?).ok()?;
        let segment = self
            .segments
            .get(self.segments.partition_point(|s| s.end <= from))?;
        let length = usize::try_from(segment.end - from).ok()?.min(max);
        let mut bytes = Vec::with_capacity(length);
        let (front, back) = self.bytes.as_slices();
        let from_front = front.get(first..).unwrap_or_default();
        bytes.extend_from_slice(&from_front[..from_front.len().min(length)]);
        let rest = length - bytes.len();
        if rest > 0 {
            let offset = first.saturating_sub(front.len());
            bytes.extend_from_slice(back.get(offset..offset + rest)?);
        }
        Some((segment.stream, bytes.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use OutputStream::{Stderr, Stdout};

    #[test]
    fn bytes_come_back_in_order_with_their_stream() {
        let mut ring = Ring::new(100);
        for (stream, data) in [(Stdout, "ab"), (Stdout, "c"), (Stderr, "DE"), (Stdout, "f")] {
            ring.push(stream, data.as_bytes());
        }
        let mut at = 0;
        let mut seen = Vec::new();
        while let Some((stream, bytes)) = ring.read(at, 2) {
            at += bytes.len() as u64;
            seen.push((stream, String::from_utf8(bytes.to_vec()).unwrap()));
        }
        let expected = [(Stdout, "ab"), (Stdout, "c"), (Stderr, "DE"), (Stdout, "f")];
        assert_eq!(
            seen,
            expected.map(|(stream, text)| (stream, text.to_owned()))
        );
    }

    #[test]
    fn only_what_is_before_the_floor_makes_room() {
        let mut ring = Ring::new(10);
        ring.push(Stdout, b"0123456789");
        for (floor, room) in [(0, 0), (4, 4), (10, 10), (99, 10)] {
            assert_eq!(ring.room(floor), room, "{floor}");
        }
        ring.push(Stderr, b"abcd");
        assert_eq!((ring.start(), ring.end(), ring.len()), (4, 14, 10));
        assert_eq!(ring.read(3, 9), None);
        assert_eq!(
            ring.read(4, 9).unwrap(),
            (Stdout, Bytes::from_static(b"456789"))
        );
        assert_eq!(
            ring.read(10, 9).unwrap(),
            (Stderr, Bytes::from_static(b"abcd"))
        );
        assert_eq!(ring.read(14, 9), None);
    }

    #[test]
    fn streams_that_alternate_byte_by_byte_stay_bounded() {
        let mut ring = Ring::new(1 << 20);
        for _ in 0..SEGMENTS / 2 {
            ring.push(Stdout, b"o");
            ring.push(Stderr, b"e");
        }
        assert_eq!(ring.room(0), 0);
        assert!(ring.room(1) > 0);
        ring.push(Stdout, b"o");
        assert_eq!(ring.segments.len(), SEGMENTS);
        assert_eq!(ring.start(), 1);
    }

    #[test]
    fn a_long_stream_through_a_small_ring_is_exact_and_never_grows_beyond_it() {
        let mut ring = Ring::new(1000);
        let data: Vec<u8> = (0..=255).cycle().take(50_000).collect();
        let (mut written, mut seen) = (0, Vec::new());
        while seen.len() < data.len() {
            let room = ring
                .room(seen.len() as u64)
                .min(data.len() - written)
                .min(333);
            ring.push(Stdout, &data[written..written + room]);
            written += room;
            let (_, bytes) = ring.read(seen.len() as u64, 171).unwrap();
            seen.extend_from_slice(&bytes);
        }
        assert_eq!(seen, data);
        assert!(ring.bytes.capacity() <= 1000, "{}", ring.bytes.capacity());
    }
}

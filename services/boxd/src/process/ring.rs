//! A ring buffer of output: the newest bytes of two streams in their order.
//!
//! Pure. Memory is bounded by the capacity and by [`MAX_SEGMENTS`], and grows as needed.

use std::collections::VecDeque;

use agentbox_contracts::logs::OutputStream;
use bytes::Bytes;

/// The limit for kept changes between the streams. A command that alternates byte by byte
/// reaches this limit before the capacity, and blocks too.
const MAX_SEGMENTS: usize = 4096;

/// Consecutive bytes of one stream, up to sequence `end`.
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

    /// The sequence of the oldest kept byte.
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

    /// Keeps at most so many bytes from now on, the newest.
    pub fn set_capacity(&mut self, capacity: usize) {
        self.capacity = capacity.max(1);
        self.discard(self.bytes.len().saturating_sub(self.capacity));
        self.bytes.shrink_to(self.capacity);
    }

    /// The number of bytes that can be pushed when bytes before `floor` may be dropped.
    #[must_use]
    pub fn free_space(&self, floor: u64) -> usize {
        let segments_full = self.segments.len() >= MAX_SEGMENTS;
        if segments_full && self.segments.front().is_some_and(|first| first.end > floor) {
            return 0;
        }
        let needed = self.end().saturating_sub(floor.max(self.start));
        self.capacity
            .saturating_sub(usize::try_from(needed).unwrap_or(usize::MAX))
    }

    /// Appends `data` and drops the oldest bytes as needed, also of `data` itself. Nothing after the
    /// floor of [`Self::free_space`] is dropped when `data` has at most so many bytes.
    pub fn push(&mut self, stream: OutputStream, data: &[u8]) {
        if data.is_empty() {
            return;
        }
        let skipped = data.len().saturating_sub(self.capacity);
        if skipped > 0 {
            self.discard(self.bytes.len());
            self.start += skipped as u64;
        }
        let data = &data[skipped..];
        let total = self.bytes.len() + data.len();
        self.discard(total.saturating_sub(self.capacity));
        self.reserve(data.len());
        self.bytes.extend(data);
        let end = self.end();
        match self.segments.back_mut() {
            Some(last) if last.stream == stream => last.end = end,
            _ => self.segments.push_back(Segment { stream, end }),
        }
        while self.segments.len() > MAX_SEGMENTS {
            let first_end = self.segments.front().map_or(self.start, |first| first.end);
            self.discard(usize::try_from(first_end - self.start).unwrap_or(0));
        }
    }

    /// Reserves memory; `VecDeque` itself would double beyond the capacity.
    fn reserve(&mut self, more: usize) {
        let needed = self.bytes.len() + more;
        if needed > self.bytes.capacity() {
            let doubled = (self.bytes.capacity() * 2).min(self.capacity);
            self.bytes
                .reserve_exact(needed.max(doubled) - self.bytes.len());
        }
    }

    /// Drops the oldest bytes.
    pub fn discard(&mut self, count: usize) {
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

    /// Returns the memory that the kept bytes do not need.
    pub fn shrink(&mut self) {
        self.bytes.shrink_to_fit();
        self.segments.shrink_to_fit();
    }

    /// The offset after the first `byte` at or after `from`; `None` when there is none.
    #[must_use]
    pub fn find_after(&self, from: u64, byte: u8) -> Option<u64> {
        let skipped = usize::try_from(from.saturating_sub(self.start)).ok()?;
        let found = self.bytes.iter().skip(skipped).position(|b| *b == byte)?;
        Some(self.start + (skipped + found + 1) as u64)
    }

    /// At most `max` bytes of one stream, starting at `from`; `None` at the end, and before
    /// the oldest kept byte.
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
    fn ring_returns_bytes_in_order_with_stream() {
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
    fn ring_frees_only_bytes_before_floor() {
        let mut ring = Ring::new(10);
        ring.push(Stdout, b"0123456789");
        for (floor, space) in [(0, 0), (4, 4), (10, 10), (99, 10)] {
            assert_eq!(ring.free_space(floor), space, "{floor}");
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
    fn newest_bytes_of_data_beyond_the_capacity_are_kept() {
        let mut ring = Ring::new(4);
        ring.push(Stdout, b"ab");
        ring.push(Stdout, b"0123456789");
        assert_eq!((ring.start(), ring.end(), ring.len()), (8, 12, 4));
        let (_, kept) = ring.read(8, 9).unwrap();
        assert_eq!(kept, Bytes::from_static(b"6789"));
        assert_eq!(ring.read(7, 9), None);
    }

    #[test]
    fn discarded_bytes_are_the_oldest_and_lines_are_found_after_them() {
        let mut ring = Ring::new(100);
        ring.push(Stdout, b"one\ntwo\nthree");
        assert_eq!(ring.find_after(0, b'\n'), Some(4));
        assert_eq!(ring.find_after(4, b'\n'), Some(8));
        assert_eq!(ring.find_after(8, b'\n'), None);
        ring.discard(5);
        ring.shrink();
        assert_eq!((ring.start(), ring.end()), (5, 13));
        assert_eq!(ring.find_after(0, b'\n'), Some(8));
        ring.discard(usize::MAX);
        assert_eq!((ring.start(), ring.end(), ring.len()), (13, 13, 0));
    }

    #[test]
    fn ring_with_alternating_streams_stays_bounded() {
        let mut ring = Ring::new(1 << 20);
        for _ in 0..MAX_SEGMENTS / 2 {
            ring.push(Stdout, b"o");
            ring.push(Stderr, b"e");
        }
        assert_eq!(ring.free_space(0), 0);
        assert!(ring.free_space(1) > 0);
        ring.push(Stdout, b"o");
        assert_eq!(ring.segments.len(), MAX_SEGMENTS);
        assert_eq!(ring.start(), 1);
    }

    #[test]
    fn small_ring_passes_long_stream_exactly_within_capacity() {
        let mut ring = Ring::new(1000);
        let data: Vec<u8> = (0..=255).cycle().take(50_000).collect();
        let (mut written, mut seen) = (0, Vec::new());
        while seen.len() < data.len() {
            let space = ring
                .free_space(seen.len() as u64)
                .min(data.len() - written)
                .min(333);
            ring.push(Stdout, &data[written..written + space]);
            written += space;
            let (_, bytes) = ring.read(seen.len() as u64, 171).unwrap();
            seen.extend_from_slice(&bytes);
        }
        assert_eq!(seen, data);
        assert!(ring.bytes.capacity() <= 1000, "{}", ring.bytes.capacity());
    }
}

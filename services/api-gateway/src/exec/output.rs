//! The output of one stream of a command, in blocks that are freed one by one.

use std::collections::VecDeque;

use agentbox_contracts::error::Error;

/// The length of every block but the last. A multiple of three, so that blocks in base64 can be
/// joined.
pub(super) const BLOCK: usize = 48 * 1024;

/// The exec-proxy truncates output at the cap. More output is a fault of the exec-proxy and fails
/// the request, so that memory stays bounded.
pub(super) struct Output {
    blocks: VecDeque<Vec<u8>>,
    length: usize,
    cap: usize,
}

impl Output {
    pub(super) const fn new(cap: usize) -> Self {
        Self {
            blocks: VecDeque::new(),
            length: 0,
            cap,
        }
    }

    pub(super) const fn length(&self) -> usize {
        self.length
    }

    /// # Errors
    /// [`agentbox_contracts::error::ErrorCode::Internal`] above the cap.
    pub(super) fn push(&mut self, mut bytes: &[u8]) -> Result<(), Error> {
        if bytes.len() > self.cap - self.length {
            tracing::error!(
                cap = self.cap,
                "the exec-proxy sent more output than the cap"
            );
            return Err(Error::internal());
        }
        self.length += bytes.len();
        while !bytes.is_empty() {
            let block = match self.blocks.pop_back() {
                Some(block) if block.len() < BLOCK => block,
                Some(full) => {
                    self.blocks.push_back(full);
                    Vec::new()
                }
                None => Vec::new(),
            };
            bytes = self.append(block, bytes);
        }
        Ok(())
    }

    /// Fills the last block, and returns the bytes that are left.
    fn append<'a>(&mut self, mut block: Vec<u8>, bytes: &'a [u8]) -> &'a [u8] {
        let (now, later) = bytes.split_at(bytes.len().min(BLOCK - block.len()));
        block.extend_from_slice(now);
        self.blocks.push_back(block);
        later
    }

    /// Takes the first block.
    pub(super) fn pop(&mut self) -> Option<Vec<u8>> {
        let block = self.blocks.pop_front()?;
        self.length -= block.len();
        Some(block)
    }
}

#[cfg(test)]
mod tests {
    use agentbox_contracts::error::ErrorCode;

    use super::*;

    #[test]
    fn output_above_the_cap_is_an_internal_error() {
        let mut output = Output::new(4);
        output.push(b"abc").unwrap();
        output.push(b"").unwrap();
        output.push(b"d").unwrap();
        assert_eq!(output.push(b"e").unwrap_err().code, ErrorCode::Internal);
        assert_eq!(output.pop().unwrap(), b"abcd");
    }

    #[test]
    fn pieces_of_any_size_fill_whole_blocks() {
        for size in [1000, BLOCK, BLOCK * 2 + 1] {
            let piece: Vec<u8> = (0..size).map(|n| (n % 251) as u8).collect();
            let mut output = Output::new(BLOCK * 10);
            let mut expected = Vec::new();
            while expected.len() < BLOCK * 3 {
                output.push(&piece).unwrap();
                expected.extend_from_slice(&piece);
            }
            assert_eq!(output.length(), expected.len());
            let mut popped = Vec::new();
            while let Some(block) = output.pop() {
                assert!(block.len() == BLOCK || output.length() == 0);
                popped.extend(block);
            }
            assert!(popped == expected, "{size}");
        }
    }
}

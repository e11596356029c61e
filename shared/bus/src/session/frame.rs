//! One frame on the wire: kind, sequence and two cumulative acknowledgements, then the body.
//!
//! ```text
//! 0     1          9          17         25
//! ┌─────┬──────────┬──────────┬──────────┬──────────┐
//! │kind │ sequence │ ack      │ received │ body …   │   big endian
//! └─────┴──────────┴──────────┴──────────┴──────────┘
//! ```
//!
//! What was consumed opens the window; what was received need not be sent again. Without
//! the second, a consumer that is merely slow would look like a network that loses.

use agentbox_contracts::error::Error;
use bytes::{Buf, BufMut, Bytes, BytesMut};

const HEADER: usize = 25;

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Kind {
    /// The server has the session.
    Accept,
    /// `body` is an encoded message, never empty.
    Data {
        body: Bytes,
        fin: bool,
    },
    Ack,
    Ping,
    /// The session ends here; why.
    Reset(Error),
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Frame {
    /// Of a data frame, from 1; else 0.
    pub sequence: u64,
    /// Every data frame up to this one has been consumed by the sender of this frame.
    pub ack: u64,
    /// Every data frame up to this one has arrived there.
    pub received: u64,
    pub kind: Kind,
}

impl Frame {
    pub(crate) fn encode(&self) -> Bytes {
        let (code, body) = match &self.kind {
            Kind::Accept => (1u8, Bytes::new()),
            Kind::Data { body, fin: false } => (2, body.clone()),
            Kind::Data { body, fin: true } => (3, body.clone()),
            Kind::Ack => (4, Bytes::new()),
            Kind::Ping => (5, Bytes::new()),
            Kind::Reset(error) => (
                6,
                serde_json::to_vec(error)
                    .map(Bytes::from)
                    .unwrap_or_default(),
            ),
        };
        let mut out = BytesMut::with_capacity(HEADER + body.len());
        out.put_u8(code);
        out.put_u64(self.sequence);
        out.put_u64(self.ack);
        out.put_u64(self.received);
        out.put(body);
        out.freeze()
    }

    /// `None` for what is not a frame.
    pub(crate) fn decode(mut bytes: Bytes) -> Option<Self> {
        if bytes.len() < HEADER {
            return None;
        }
        let code = bytes.get_u8();
        let sequence = bytes.get_u64();
        let ack = bytes.get_u64();
        let received = bytes.get_u64();
        let kind = match code {
            1 => Kind::Accept,
            2 | 3 if !bytes.is_empty() => Kind::Data {
                body: bytes,
                fin: code == 3,
            },
            4 => Kind::Ack,
            5 => Kind::Ping,
            6 => Kind::Reset(serde_json::from_slice(&bytes).unwrap_or_else(|_| Error::internal())),
            _ => return None,
        };
        Some(Self {
            sequence,
            ack,
            received,
            kind,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_frame_survives_the_wire() {
        for kind in [
            Kind::Accept,
            Kind::Data {
                body: Bytes::from_static(b"\x00\xff"),
                fin: false,
            },
            Kind::Data {
                body: Bytes::from_static(b"\x00"),
                fin: true,
            },
            Kind::Ack,
            Kind::Ping,
            Kind::Reset(Error::not_found("environment")),
        ] {
            let frame = Frame {
                sequence: 3,
                ack: u64::MAX,
                received: 1 << 40,
                kind,
            };
            assert_eq!(Frame::decode(frame.encode()), Some(frame));
        }
    }

    #[test]
    fn what_is_not_a_frame_is_refused() {
        for bytes in [&b""[..], &[2; 24], &[2; 25], &[9; 40]] {
            assert_eq!(Frame::decode(Bytes::copy_from_slice(bytes)), None);
        }
    }
}

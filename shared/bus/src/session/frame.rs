//! One frame on the wire: kind, sequence and two cumulative acknowledgements, then the body.
//!
//! ```text
//! 0     1          9          17         25
//! ┌─────┬──────────┬──────────┬──────────┬──────────┐
//! │kind │ sequence │ ack      │ received │ body …   │   big endian
//! └─────┴──────────┴──────────┴──────────┴──────────┘
//! ```
//!
//! `ack` opens the window; a message up to `received` is not sent again. Without `received`, a
//! slow consumer would look like a network that loses messages.

use agentbox_contracts::error::Error;
use bytes::{Buf, BufMut, Bytes, BytesMut};

const HEADER: usize = 25;

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Kind {
    /// The server has accepted the session.
    Accept,
    /// `body` is an encoded message, never empty.
    Data {
        body: Bytes,
        fin: bool,
    },
    Ack,
    Ping,
    /// The session has failed.
    Reset(Error),
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Frame {
    /// The number of a data frame, from 1. Other frames have 0.
    pub sequence: u64,
    /// The sender of this frame has consumed every data frame up to this number.
    pub ack: u64,
    /// The sender of this frame has received every data frame up to this number.
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

    /// `None` when the bytes are not a frame.
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
    fn frames_of_every_kind_round_trip() {
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
    fn invalid_frames_are_rejected() {
        for bytes in [&b""[..], &[2; 24], &[2; 25], &[9; 40]] {
            assert_eq!(Frame::decode(Bytes::copy_from_slice(bytes)), None);
        }
    }
}

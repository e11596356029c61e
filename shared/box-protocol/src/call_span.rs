//! The span of a call that boxd has accepted, in the header of its response.
//!
//! Only ids and times: the trace, the parent and the name are known to the caller.

use std::fmt;
use std::str::FromStr;

/// The metadata of a response that contains the span of boxd, if the call is recorded.
pub const SPAN_METADATA: &str = "agentbox-span";

/// boxd's span of a call, from its arrival until boxd has accepted it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CallSpan {
    pub id: [u8; 8],
    /// By the box's clock, like the end.
    pub start_unix_nanos: u64,
    pub end_unix_nanos: u64,
}

impl fmt::Display for CallSpan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            id,
            start_unix_nanos,
            end_unix_nanos,
        } = self;
        write!(f, "{}-{start_unix_nanos}-{end_unix_nanos}", hex::encode(id))
    }
}

/// The text is not a span.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be an id of 16 hexadecimal digits and two times in nanoseconds, separated by `-`")]
pub struct InvalidCallSpan;

impl FromStr for CallSpan {
    type Err = InvalidCallSpan;

    fn from_str(text: &str) -> Result<Self, InvalidCallSpan> {
        let mut parts = text.split('-');
        let mut next = || parts.next().ok_or(InvalidCallSpan);
        let mut id = [0_u8; 8];
        hex::decode_to_slice(next()?, &mut id).map_err(|_| InvalidCallSpan)?;
        let start_unix_nanos = next()?.parse::<u64>().map_err(|_| InvalidCallSpan)?;
        let end_unix_nanos = next()?.parse::<u64>().map_err(|_| InvalidCallSpan)?;
        match parts.next() {
            None => Ok(Self {
                id,
                start_unix_nanos,
                end_unix_nanos,
            }),
            Some(_) => Err(InvalidCallSpan),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn span_is_read_as_it_was_written_and_another_text_refused() {
        let span = CallSpan {
            id: [0, 1, 2, 3, 4, 5, 6, 255],
            start_unix_nanos: 1,
            end_unix_nanos: u64::MAX,
        };
        let text = span.to_string();
        assert_eq!(text, "00010203040506ff-1-18446744073709551615");
        assert_eq!(text.parse::<CallSpan>(), Ok(span));
        for refused in [
            "",
            "00010203040506ff",
            "00010203040506ff-1",
            "00010203040506ff-1-2-3",
            "00010203040506-1-2",
            "00010203040506fg-1-2",
            "00010203040506ff-1-18446744073709551616",
            "00010203040506ff--1-2",
        ] {
            assert_eq!(
                refused.parse::<CallSpan>(),
                Err(InvalidCallSpan),
                "{refused}"
            );
        }
    }
}

//! The name of a run, given by who starts it.

use std::fmt;

const MAX_LEN: usize = 128;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RunId(String);

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("run_id is 1 to {MAX_LEN} of A-Z a-z 0-9 _ -")]
pub struct InvalidRunId;

impl TryFrom<String> for RunId {
    type Error = InvalidRunId;
    fn try_from(text: String) -> Result<Self, InvalidRunId> {
        let valid = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
        if (1..=MAX_LEN).contains(&text.len()) && text.bytes().all(valid) {
            Ok(Self(text))
        } else {
            Err(InvalidRunId)
        }
    }
}

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

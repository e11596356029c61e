//! Errors for operators: an error with all its causes, in one line.
//!
//! The `Display` of an error has what failed, and its `source` has the cause. A log line, a panic
//! message and the final message of a program need both, so each of them writes an [`ErrorChain`]:
//!
//! ```
//! # use agentbox_contracts::ErrorChain;
//! # let error = std::io::Error::other("connection refused");
//! let line = format!("the cache is not available: {}", ErrorChain(&error));
//! # assert_eq!(line, "the cache is not available: connection refused");
//! ```
//!
//! In a `tracing` macro it is the field `error`: `error = %ErrorChain(&error)`. For an
//! `anyhow::Error` write `ErrorChain(&*error)`. `.ci/lint.sh` refuses the field in any
//! other form.

use std::error::Error;
use std::fmt;

/// Displays an error and its causes as `error: cause: cause`.
///
/// A cause is left out when the text before already ends with it: many errors of other
/// crates write their source into their own message.
#[derive(Clone, Copy)]
pub struct ErrorChain<'a>(pub &'a (dyn Error + 'a));

impl fmt::Display for ErrorChain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = self.0.to_string();
        let mut source = self.0.source();
        while let Some(cause) = source {
            let message = cause.to_string();
            if !text.ends_with(&message) {
                text = format!("{text}: {message}");
            }
            source = cause.source();
        }
        f.write_str(&text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("the store failed")]
    struct Outer(#[source] Inner);

    #[derive(Debug, thiserror::Error)]
    #[error("no connection: {0}")]
    struct Inner(#[source] std::io::Error);

    #[test]
    fn error_chain_writes_each_cause_once() {
        let error = Outer(Inner(std::io::Error::other("refused")));
        assert_eq!(
            ErrorChain(&error).to_string(),
            "the store failed: no connection: refused"
        );
    }

    #[test]
    fn error_chain_without_causes_is_the_error_itself() {
        let error = std::io::Error::other("refused");
        assert_eq!(ErrorChain(&error).to_string(), "refused");
    }
}

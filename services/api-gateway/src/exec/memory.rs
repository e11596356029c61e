//! The memory that stdin takes until its command has read it, and that results take from their first
//! byte until their clients have read them.

use agentbox_contracts::error::Error;
use agentbox_contracts::ids::UserId;

use crate::config::Config;
use crate::shares::{Exceeded, Resource, Share, Shares};

/// Bytes of a result without its output.
const HEAD: u64 = 1024;

/// The bytes of a complete result.
fn complete(config: &Config) -> u64 {
    let output = config.max_exec_output_bytes.saturating_mul(2);
    output.saturating_add(HEAD)
}

/// The bound of all results in flight.
pub(crate) fn max_results(config: &Config) -> u64 {
    let two = complete(config).saturating_mul(2);
    config.max_result_bytes.max(two)
}

/// The bounds of results in flight, for each user and in total. A complete result fits in each, and
/// some of the memory is left for users without results.
pub(crate) fn results(config: &Config) -> Shares<UserId> {
    let per_user = config.max_result_bytes_per_user.max(complete(config));
    Shares::fair(per_user, max_results(config))
}

/// The memory of one result.
pub(super) struct ResultMemory(Share<UserId>);

/// The memory of one command, its variables and its stdin.
pub(crate) struct InputMemory {
    _share: Share<UserId>,
}

impl InputMemory {
    /// # Errors
    /// [`agentbox_contracts::error::ErrorCode::Unavailable`] when a bound is reached.
    pub(crate) fn reserve(
        results: &Shares<UserId>,
        user: &UserId,
        bytes: usize,
    ) -> Result<Self, Error> {
        // Twice: the messages that wait for the box are copies.
        let share = results.take(user, 2 * bytes as u64).map_err(refusal)?;
        Ok(Self { _share: share })
    }
}

impl ResultMemory {
    /// Reserves the memory of a result without output, before its command is started.
    ///
    /// # Errors
    /// [`agentbox_contracts::error::ErrorCode::Unavailable`] when a bound is reached.
    pub(super) fn reserve(results: &Shares<UserId>, user: &UserId) -> Result<Self, Error> {
        results.take(user, HEAD).map(Self).map_err(refusal)
    }

    /// # Errors
    /// [`agentbox_contracts::error::ErrorCode::Unavailable`] when a bound is reached. The caller ends the command.
    pub(super) fn grow(&mut self, bytes: usize) -> Result<(), Error> {
        self.0.grow(bytes as u64).map_err(|exceeded| {
            let mut error = refusal(exceeded);
            error.message.insert_str(0, "the command was killed: ");
            error
        })
    }

    pub(super) fn shrink(&mut self, bytes: usize) {
        self.0.shrink(bytes as u64);
    }
}

const RESULTS: Resource = Resource {
    labels: ["result_bytes_per_user", "result_bytes"],
    before: "the stdin and the results of",
    holders: ["your commands", "all commands"],
    after: "that are not read yet take all memory that they may have; read the results, then try again",
};

fn refusal(exceeded: Exceeded) -> Error {
    RESULTS.unavailable(exceeded)
}

#[cfg(test)]
mod tests {
    use agentbox_contracts::error::ErrorCode;

    use super::*;

    #[test]
    fn result_beyond_a_bound_is_refused_with_503() {
        let results = Shares::new(2 * HEAD, 3 * HEAD);
        let (one, other) = (UserId::random(), UserId::random());
        let mut first = ResultMemory::reserve(&results, &one).unwrap();
        let error = first.grow(2048).unwrap_err();
        assert_eq!(
            (error.code, error.retry_after_s),
            (ErrorCode::Unavailable, Some(1))
        );
        assert!(error.message.contains("was killed"), "{error}");
        first.grow(1024).unwrap();
        assert!(ResultMemory::reserve(&results, &one).is_err());
        let _second = ResultMemory::reserve(&results, &other).unwrap();
        assert!(ResultMemory::reserve(&results, &other).is_err());
        first.shrink(1024);
        assert!(ResultMemory::reserve(&results, &other).is_ok());
        assert!(InputMemory::reserve(&results, &other, 1024).is_err());
        assert!(InputMemory::reserve(&results, &other, 512).is_ok());
    }
}

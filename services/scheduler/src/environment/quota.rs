//! How much one user may have at a time. Pure; the store asks it within the transaction
//! that creates, under that owner's lock.

use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::units::{Bytes, MilliCpu};

/// The most that one user's environments may have together; what has ended does not
/// count. `None`: no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quota {
    pub environments: Option<u64>,
    pub cpu: Option<MilliCpu>,
    pub memory: Option<Bytes>,
}

/// What one user's environments have together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub environments: u64,
    pub cpu: MilliCpu,
    pub memory: Bytes,
}

impl Quota {
    /// Whether one more environment of `cpu` and `memory` fits.
    ///
    /// # Errors
    /// `QuotaExceeded`; the message has the numbers.
    pub fn admit(&self, used: Usage, cpu: MilliCpu, memory: Bytes) -> Result<(), Error> {
        let exceeded = |what: &str, limit: String, used: String, asked: String| {
            Err(Error::new(
                ErrorCode::QuotaExceeded,
                format!("your quota of {what} is {limit}: {used} in use, {asked} asked for"),
            ))
        };
        if let Some(limit) = self.environments
            && used.environments >= limit
        {
            return exceeded(
                "environments",
                limit.to_string(),
                used.environments.to_string(),
                "1 more".into(),
            );
        }
        if let Some(limit) = self.cpu
            && used.cpu.0.saturating_add(cpu.0) > limit.0
        {
            return exceeded(
                "CPU",
                limit.to_string(),
                used.cpu.to_string(),
                cpu.to_string(),
            );
        }
        if let Some(limit) = self.memory
            && used.memory.0.saturating_add(memory.0) > limit.0
        {
            return exceeded(
                "memory",
                limit.to_string(),
                used.memory.to_string(),
                memory.to_string(),
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUOTA: Quota = Quota {
        environments: Some(2),
        cpu: Some(MilliCpu(1_000)),
        memory: Some(Bytes(1 << 30)),
    };

    fn used(environments: u64, cpu: u64, memory: u64) -> Usage {
        Usage {
            environments,
            cpu: MilliCpu(cpu),
            memory: Bytes(memory),
        }
    }

    #[test]
    fn what_fits_exactly_is_admitted_and_one_more_is_not() {
        let half = (MilliCpu(500), Bytes(1 << 29));
        for (usage, fits) in [
            (used(0, 0, 0), true),
            (used(1, 500, 1 << 29), true),
            (used(2, 0, 0), false),
            (used(1, 501, 0), false),
            (used(1, 0, (1 << 29) + 1), false),
            (used(1, u64::MAX, 0), false),
        ] {
            assert_eq!(
                QUOTA.admit(usage, half.0, half.1).is_ok(),
                fits,
                "{usage:?}"
            );
        }
    }

    #[test]
    fn no_limit_admits_anything() {
        let usage = used(u64::MAX, u64::MAX, u64::MAX);
        assert!(Quota::default().admit(usage, MilliCpu(1), Bytes(1)).is_ok());
    }

    #[test]
    fn the_message_has_the_numbers() {
        let error = QUOTA
            .admit(used(1, 800, 0), MilliCpu(500), Bytes(1))
            .unwrap_err();
        assert_eq!(error.code, ErrorCode::QuotaExceeded);
        assert_eq!(
            error.message,
            "your quota of CPU is 1: 800m in use, 500m asked for"
        );
    }
}

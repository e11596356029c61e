//! The quota of one user. Pure; the store checks it in the transaction that creates an
//! environment, under that owner's lock.

use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::limits::UserLimits;
use agentbox_contracts::units::{Bytes, MilliCpu};

use crate::environment::request::Quantities;

/// The most that one user's environments may use together; ended ones do not count.
/// `None`: no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quota {
    pub environments: Option<u64>,
    pub cpu: Option<MilliCpu>,
    pub memory: Option<Bytes>,
    pub storage: Option<Bytes>,
}

/// The resources that one user's environments use together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub environments: u64,
    pub cpu: MilliCpu,
    pub memory: Bytes,
    pub storage: Bytes,
}

impl Quota {
    /// This quota of the deployment with the limits of one user, where it has some. 0: no limit.
    #[must_use]
    pub fn with(self, limits: &UserLimits) -> Self {
        Self {
            environments: match limits.environments {
                None => self.environments,
                Some(limit) => (limit > 0).then_some(limit),
            },
            cpu: match limits.cpu {
                None => self.cpu,
                Some(limit) => (limit.0 > 0).then_some(limit),
            },
            memory: match limits.memory {
                None => self.memory,
                Some(limit) => (limit.0 > 0).then_some(limit),
            },
            storage: match limits.storage {
                None => self.storage,
                Some(limit) => (limit.0 > 0).then_some(limit),
            },
        }
    }

    /// Whether one more environment of `wanted` fits.
    ///
    /// # Errors
    /// `QuotaExceeded`, with the resource, the limit, the usage and the request.
    pub fn check(&self, used: Usage, wanted: Quantities) -> Result<(), Error> {
        let exceeded = |resource: &str, limit: String, used: String, requested: String| {
            Err(Error::new(
                ErrorCode::QuotaExceeded,
                format!(
                    "your quota of {resource} is {limit}: {used} in use, {requested} requested; \
                     delete an environment or ask an administrator for a larger quota"
                ),
            ))
        };
        if let Some(limit) = self.environments
            && used.environments >= limit
        {
            return exceeded(
                "environments",
                limit.to_string(),
                used.environments.to_string(),
                "1".into(),
            );
        }
        if let Some(limit) = self.cpu
            && used.cpu.0.saturating_add(wanted.cpu.0) > limit.0
        {
            return exceeded(
                "CPU",
                limit.to_string(),
                used.cpu.to_string(),
                wanted.cpu.to_string(),
            );
        }
        if let Some(limit) = self.memory
            && used.memory.0.saturating_add(wanted.memory.0) > limit.0
        {
            return exceeded(
                "memory",
                limit.to_string(),
                used.memory.to_string(),
                wanted.memory.to_string(),
            );
        }
        if let Some(limit) = self.storage
            && used.storage.0.saturating_add(wanted.storage.0) > limit.0
        {
            return exceeded(
                "storage",
                limit.to_string(),
                used.storage.to_string(),
                wanted.storage.to_string(),
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
        storage: Some(Bytes(1 << 30)),
    };

    fn used(environments: u64, cpu: u64, memory: u64, storage: u64) -> Usage {
        Usage {
            environments,
            cpu: MilliCpu(cpu),
            memory: Bytes(memory),
            storage: Bytes(storage),
        }
    }

    fn wanted(cpu: u64, memory: u64, storage: u64) -> Quantities {
        Quantities {
            cpu: MilliCpu(cpu),
            memory: Bytes(memory),
            storage: Bytes(storage),
        }
    }

    #[test]
    fn usage_at_the_limit_is_accepted_and_above_it_refused() {
        let half = wanted(500, 1 << 29, 1 << 29);
        for (usage, fits) in [
            (used(0, 0, 0, 0), true),
            (used(1, 500, 1 << 29, 1 << 29), true),
            (used(2, 0, 0, 0), false),
            (used(1, 501, 0, 0), false),
            (used(1, 0, (1 << 29) + 1, 0), false),
            (used(1, 0, 0, (1 << 29) + 1), false),
            (used(1, u64::MAX, 0, 0), false),
        ] {
            assert_eq!(QUOTA.check(usage, half).is_ok(), fits, "{usage:?}");
        }
    }

    #[test]
    fn missing_limit_accepts_any_usage() {
        let usage = used(u64::MAX, u64::MAX, u64::MAX, u64::MAX);
        assert!(Quota::default().check(usage, wanted(1, 1, 1)).is_ok());
    }

    #[test]
    fn limit_of_the_user_replaces_that_of_the_deployment_and_zero_removes_it() {
        let limits = UserLimits {
            environments: Some(0),
            cpu: Some(MilliCpu(5_000)),
            ..UserLimits::default()
        };
        let expected = Quota {
            environments: None,
            cpu: Some(MilliCpu(5_000)),
            ..QUOTA
        };
        assert_eq!(QUOTA.with(&limits), expected);
        assert_eq!(QUOTA.with(&UserLimits::default()), QUOTA);
    }

    #[test]
    fn refusal_names_resource_limit_and_usage() {
        let error = QUOTA
            .check(used(1, 800, 0, 0), wanted(500, 1, 1))
            .unwrap_err();
        assert_eq!(error.code, ErrorCode::QuotaExceeded);
        assert_eq!(
            error.message,
            "your quota of CPU is 1: 800m in use, 500m requested; \
             delete an environment or ask an administrator for a larger quota"
        );
        let error = QUOTA
            .check(Usage::default(), wanted(1, 1, 1 << 60))
            .unwrap_err();
        let begin = "your quota of storage is 1Gi: 0 in use, 1048576Ti requested";
        assert!(error.message.starts_with(begin), "{error}");
    }
}

//! Defaults and checks that the configuration of every driver shares.

/// The longest name of a deployment: it becomes part of labels, control groups and tables.
pub const MAX_DEPLOYMENT_NAME: usize = 40;

/// Whether `name` may name a deployment: `[a-z0-9-]`, no `-` at its start.
#[must_use]
pub fn is_deployment_name(name: &str) -> bool {
    (1..=MAX_DEPLOYMENT_NAME).contains(&name.len())
        && name
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !name.starts_with('-')
}

/// Whether a box without a network policy may reach the public internet.
#[must_use]
pub const fn default_allow_internet() -> bool {
    true
}

/// Seconds that an image pull may fail for a transient reason.
#[must_use]
pub const fn image_pull_deadline_s() -> u64 {
    120
}

/// Seconds that `ensure` waits for a box to run.
#[must_use]
pub const fn start_deadline_s() -> u64 {
    20
}

/// Seconds for a call to the cluster without a deadline of its own.
#[must_use]
pub const fn call_deadline_s() -> u64 {
    10
}

/// Milliseconds for a connection to a boxd.
#[must_use]
pub const fn connect_deadline_ms() -> u64 {
    2_000
}

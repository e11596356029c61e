//! The environment variables with which a driver configures boxd. Commands in the box do
//! not inherit them. A driver passes all of them, because an image may set variables of the same
//! names. An empty value counts as absent.

/// The prefix of boxd's variables.
pub const PREFIX: &str = "AGENTBOX_BOXD_";

/// The bearer token that boxd accepts. Required.
pub const TOKEN: &str = "AGENTBOX_BOXD_TOKEN";

/// The socket address to listen on. Default [`DEFAULT_LISTEN`].
pub const LISTEN: &str = "AGENTBOX_BOXD_LISTEN";

/// The directory of [`crate::output`] and [`crate::executions`]: a tmpfs of [`crate::output::DIRECTORY_BYTES`].
/// Absent: output is kept in boxd's memory, in smaller segments, until boxd ends.
pub const OUTPUT_DIR: &str = "AGENTBOX_BOXD_OUTPUT_DIR";

/// The file of [`crate::termination`]. Absent: none is written.
pub const TERMINATION_FILE: &str = "AGENTBOX_BOXD_TERMINATION_FILE";

/// `true`: the box is warm and gets its main command with `Configure`. Others: it is not.
pub const WARM: &str = "AGENTBOX_BOXD_WARM";

/// `true`: boxd gives its root file system a machine id of its own and removes its random seeds, if the
/// image has them. Others: boxd leaves them, as outside a box.
pub const RENEW_IDENTITY: &str = "AGENTBOX_BOXD_RENEW_IDENTITY";

/// The limit for a run's output that waits for a reader, in bytes. Default 1 MiB.
pub const RING_BYTES: &str = "AGENTBOX_BOXD_RING_BYTES";

/// The size of each of the two output segments, in bytes. Default [`crate::output::SEGMENT_BYTES`].
pub const SEGMENT_BYTES: &str = "AGENTBOX_BOXD_SEGMENT_BYTES";

/// The most commands of callers that run at once. Default 256.
pub const MAX_RUNNING: &str = "AGENTBOX_BOXD_MAX_RUNNING";

/// The most executions whose records are kept. Default 1,000.
pub const MAX_EXECUTIONS: &str = "AGENTBOX_BOXD_MAX_EXECUTIONS";

/// The limit for the kept output of all executions together, in bytes. Default 64 MiB.
pub const EXECUTIONS_OUTPUT_BYTES: &str = "AGENTBOX_BOXD_EXECUTIONS_OUTPUT_BYTES";

/// The variables that no driver sets. A driver passes each of them with an empty value, which
/// boxd takes as absent: otherwise an image's `ENV` could set it.
pub const UNSET: [&str; 5] = [
    RING_BYTES,
    SEGMENT_BYTES,
    MAX_RUNNING,
    MAX_EXECUTIONS,
    EXECUTIONS_OUTPUT_BYTES,
];

/// The default port of boxd.
pub const DEFAULT_PORT: u16 = 10_777;
pub const DEFAULT_LISTEN: &str = "0.0.0.0:10777";

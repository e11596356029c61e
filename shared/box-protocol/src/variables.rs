//! The environment variables with which a driver configures boxd. None of them
//! reaches a command in the box.

/// Every variable of boxd begins so; commands never see one that does.
pub const PREFIX: &str = "AGENTBOX_BOXD_";

/// The bearer token that boxd accepts. Required.
pub const TOKEN: &str = "AGENTBOX_BOXD_TOKEN";

/// The socket address to listen on. Default [`DEFAULT_LISTEN`].
pub const LISTEN: &str = "AGENTBOX_BOXD_LISTEN";

/// The directory of [`crate::output`]: a tmpfs of [`crate::output::DIRECTORY_BYTES`].
/// Absent: output is kept in boxd's memory, smaller, and ends with it.
pub const OUTPUT_DIR: &str = "AGENTBOX_BOXD_OUTPUT_DIR";

/// The file of [`crate::termination`]. Absent: none is written.
pub const TERMINATION_FILE: &str = "AGENTBOX_BOXD_TERMINATION_FILE";

/// `true`: the box is warm; its command comes with `Configure`.
pub const WARM: &str = "AGENTBOX_BOXD_WARM";

/// Most bytes of a run's output that wait for a reader. Default 1 MiB.
pub const RING_BYTES: &str = "AGENTBOX_BOXD_RING_BYTES";

/// Bytes of one of the two output segments. Default [`crate::output::SEGMENT_BYTES`].
pub const SEGMENT_BYTES: &str = "AGENTBOX_BOXD_SEGMENT_BYTES";

/// Where boxd listens unless told otherwise.
pub const DEFAULT_PORT: u16 = 10_777;
pub const DEFAULT_LISTEN: &str = "0.0.0.0:10777";

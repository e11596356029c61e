//! The rights of root in a box, the same on every cluster.

/// The capabilities of a box's processes, effective only for root. Root needs them to install
/// packages and to change to another user (`apt`, `pip`, `su`, servers on low ports). Raw
/// sockets, devices and chroot are excluded.
pub const CAPABILITIES: [&str; 10] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "NET_BIND_SERVICE",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
];

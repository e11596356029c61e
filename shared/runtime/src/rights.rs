//! What root in a box may do: the same on every driver.

/// The capabilities of a box's processes, effective only for root. What root in a
/// container needs to install packages and drop to another user; no raw sockets, no
/// devices, no chroot. (`apt`, `pip`, `su` and servers that bind low ports.)
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

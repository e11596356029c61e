//! The names of the signals that a client may send to its command: POSIX' and Linux' own.

/// The names, without `SIG`.
pub const NAMES: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2",
    "PIPE", "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG",
    "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
];

/// Whether `name` is a signal: `SIGINT` or `INT`, in any case.
#[must_use]
pub fn is_signal_name(name: &str) -> bool {
    let name = name.to_ascii_uppercase();
    let short = name.strip_prefix("SIG").unwrap_or(&name);
    NAMES.contains(&short)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signal_name_is_accepted_with_and_without_prefix_in_any_case() {
        for name in ["SIGINT", "INT", "int", "SigTerm", "WINCH"] {
            assert!(is_signal_name(name), "{name}");
        }
        for name in ["", "SIG", "SIGFOO", "9", "SIGSIGINT", "INT "] {
            assert!(!is_signal_name(name), "{name}");
        }
    }
}

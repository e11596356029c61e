//! The rules for commands and environment variables, of a box's main command and of exec.
//!
//! The limits differ: a main command is stored and passed to the box in its runtime's
//! configuration, an exec is sent in one message.

/// The limit for one argument, or one variable `NAME=value`, with its NUL, in bytes: the kernel's
/// `MAX_ARG_STRLEN`.
pub const MAX_ARGUMENT_BYTES: usize = 128 * 1024;
/// The number of arguments of an exec or attach command, the program included.
pub const MAX_ARGUMENTS: usize = 4096;
/// The limit for an exec's command and environment variables together, in bytes.
pub const MAX_EXEC_BYTES: usize = 384 * 1024;
/// The limit for a main command with its arguments, in bytes.
pub const MAX_MAIN_COMMAND_BYTES: usize = 128 * 1024;
/// The limit for the names and values of a box's environment variables, in bytes.
pub const MAX_MAIN_ENV_BYTES: usize = 128 * 1024;

/// The bytes of a variable `NAME=value` with its NUL, as the kernel counts them.
#[must_use]
pub const fn variable_bytes(name: &str, value: &str) -> usize {
    name.len() + value.len() + 2
}

/// Whether `execve(2)` can pass a variable of this name.
#[must_use]
pub fn is_variable_name(name: &str) -> bool {
    !name.is_empty() && !name.contains(['=', '\0'])
}

/// Whether a container runtime accepts a variable of this name in a box's configuration:
/// printable ASCII without `=`, the rule of Kubernetes.
#[must_use]
pub fn is_box_variable_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| b.is_ascii_graphic() && b != b'=')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_box_variable_name_is_a_variable_name() {
        for (name, in_exec, in_box) in [
            ("PATH", true, true),
            ("a.b-c", true, true),
            ("1", true, true),
            ("", false, false),
            ("A=B", false, false),
            ("A\0", false, false),
            ("A B", true, false),
            ("é", true, false),
        ] {
            assert_eq!(is_variable_name(name), in_exec, "{name:?}");
            assert_eq!(is_box_variable_name(name), in_box, "{name:?}");
        }
    }
}

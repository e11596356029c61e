//! The rules for commands and environment variables, of a box's main command and of exec.
//!
//! The limits differ: a main command is stored and passed to the box in its runtime's
//! configuration, an exec is sent in one message.

/// The limit for one argument, or one variable `NAME=value`, with its NUL, in bytes: the kernel's
/// `MAX_ARG_STRLEN`.
pub const MAX_ARGUMENT_BYTES: usize = 128 * 1024;
/// The number of arguments of an exec, attach or execution command, the program included.
pub const MAX_ARGUMENTS: usize = 131_072;
/// The limit for a command of exec, attach or an execution and its environment variables together, in
/// bytes, as [`size_on_stack`] counts them: a quarter of the default stack, as Linux permits. The
/// variables of the box count too when the kernel starts the command.
pub const MAX_EXEC_BYTES: usize = 2 * 1024 * 1024;
/// The limit for a main command with its arguments, in bytes.
pub const MAX_MAIN_COMMAND_BYTES: usize = 128 * 1024;
/// The limit for the names and values of a box's environment variables, in bytes.
pub const MAX_MAIN_ENV_BYTES: usize = 128 * 1024;

/// The limit for the name and the value of one environment variable together, in bytes:
/// `execve(2)` passes it as `name=value` with a NUL.
pub const MAX_VARIABLE_BYTES: usize = MAX_ARGUMENT_BYTES - 2;

/// `execve(2)` cannot pass a variable of this size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must have at most {max} bytes, name and value together, has {0}", max = MAX_VARIABLE_BYTES)]
pub struct VariableTooLong(usize);

/// Checks the size of an environment variable.
///
/// # Errors
/// [`VariableTooLong`] above [`MAX_VARIABLE_BYTES`].
pub fn check_variable_size(name: &str, value: &str) -> Result<(), VariableTooLong> {
    let bytes = name.len() + value.len();
    if bytes <= MAX_VARIABLE_BYTES {
        Ok(())
    } else {
        Err(VariableTooLong(bytes))
    }
}

/// The bytes that `execve(2)` needs for one argument, or one variable `NAME=value`, of this length: the
/// text, its NUL and a pointer.
#[must_use]
pub const fn size_on_stack(length: usize) -> usize {
    length + 1 + size_of::<u64>()
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
    fn variable_fits_one_argument_of_execve() {
        let longest = "x".repeat(MAX_ARGUMENT_BYTES - "A=\0".len());
        assert_eq!(check_variable_size("A", &longest), Ok(()));
        let error = check_variable_size("AB", &longest).unwrap_err();
        assert_eq!(
            error.to_string(),
            "must have at most 131070 bytes, name and value together, has 131071"
        );
    }

    #[test]
    fn documented_limits_of_commands_are_those_of_the_code() {
        let documentation = include_str!("../../../docs/limits.md");
        fn grouped(number: usize) -> String {
            match number {
                1_000.. => format!("{},{:03}", grouped(number / 1_000), number % 1_000),
                _ => number.to_string(),
            }
        }
        let arguments = grouped(MAX_ARGUMENTS);
        let argument = grouped(MAX_ARGUMENT_BYTES - 1);
        let variable = grouped(MAX_VARIABLE_BYTES);
        for row in [
            format!(
                "| `command` of exec, attach and executions | {arguments} arguments of at most {argument} bytes |"
            ),
            format!(
                "| `env` of exec, attach and executions | one name and its value {variable} bytes |"
            ),
            format!(
                "| `command` and `env` of exec, attach and executions together | {} bytes, each argument \
                 and variable counted with its NUL and a pointer of 8 bytes |",
                grouped(MAX_EXEC_BYTES)
            ),
            format!(
                "| `env` and `secret_env` of an environment together | {} bytes of names and values; one \
                 name and its value {variable} |",
                grouped(MAX_MAIN_ENV_BYTES)
            ),
            format!(
                "| `command` of an environment, and the image's with `use_entrypoint` | {} bytes, each \
                 argument counted with its NUL |",
                grouped(MAX_MAIN_COMMAND_BYTES)
            ),
        ] {
            assert!(
                documentation.contains(&row),
                "docs/limits.md has no row {row}"
            );
        }
    }

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

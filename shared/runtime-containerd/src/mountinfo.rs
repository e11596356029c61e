//! The fields of `/proc/self/mountinfo`.

use std::collections::HashSet;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;

/// The directories where a file system is mounted.
pub fn points(table: &str) -> HashSet<PathBuf> {
    let fields = table.lines().filter_map(|line| line.split(' ').nth(4));
    fields.map(path).collect()
}

/// The path in a field. The kernel writes white space, `\` and in options also `,` and `=` as `\` with
/// three octal digits.
pub fn path(field: &str) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field.as_bytes();
    while let [first, after @ ..] = rest {
        rest = after;
        match after {
            [
                a @ b'0'..=b'3',
                b @ b'0'..=b'7',
                c @ b'0'..=b'7',
                others @ ..,
            ] if *first == b'\\' => {
                bytes.push(((a - b'0') << 6) | ((b - b'0') << 3) | (c - b'0'));
                rest = others;
            }
            _ => bytes.push(*first),
        }
    }
    OsString::from_vec(bytes).into()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn path_has_the_characters_that_the_kernel_escapes() {
        for (field, expected) in [
            ("/boxes/a", "/boxes/a"),
            (r"/my\040boxes/a\134b", r"/my boxes/a\b"),
            (r"/a\054b\303\274", "/a,b\u{fc}"),
            (r"/end\04", r"/end\04"),
            (r"/end\", r"/end\"),
        ] {
            assert_eq!(path(field), Path::new(expected), "{field}");
        }
    }
}

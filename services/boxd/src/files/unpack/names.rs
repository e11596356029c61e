//! The names in an archive, which must stay inside the directory that it is unpacked into.

use super::super::location::MAX_PATH_BYTES;

/// The names of an entry's path, without `.` and empty ones.
///
/// # Errors
/// The rule that the path breaks.
pub fn names(path: &[u8]) -> Result<Vec<Vec<u8>>, &'static str> {
    if path.first() == Some(&b'/') {
        return Err("has an absolute name");
    }
    if path.len() > MAX_PATH_BYTES || path.contains(&0) {
        return Err("has a name that is too long or contains a NUL");
    }
    let mut names = Vec::new();
    for name in path.split(|byte| *byte == b'/') {
        match name {
            b"" | b"." => {}
            b".." => return Err("has a name with `..`"),
            name => names.push(name.to_vec()),
        }
    }
    Ok(names)
}

/// Checks the target of a symbolic link that is `depth` directories below the root.
///
/// # Errors
/// The rule that the target breaks.
pub fn check_target(target: &[u8], depth: usize) -> Result<(), &'static str> {
    if target.is_empty() || target.contains(&0) || target.len() > MAX_PATH_BYTES {
        return Err("is a link with an empty or malformed target");
    }
    if target.first() == Some(&b'/') {
        return Err("is a link with an absolute target");
    }
    let (mut up, mut is_down) = (0, false);
    for name in target.split(|byte| *byte == b'/') {
        match name {
            b"" | b"." => {}
            b".." if is_down => return Err("is a link whose target has `..` after a name"),
            b".." => up += 1,
            _ => is_down = true,
        }
    }
    if up > depth {
        return Err("is a link that leaves the directory");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entry_name_that_leaves_the_directory_is_refused() {
        let owned = |names: &[&str]| {
            let bytes = names.iter().map(|name| name.as_bytes().to_vec());
            Ok(bytes.collect::<Vec<_>>())
        };
        assert_eq!(names(b"a/b"), owned(&["a", "b"]));
        assert_eq!(names(b"./a//b/./"), owned(&["a", "b"]));
        assert_eq!(names(b"./"), owned(&[]));
        assert_eq!(names(b"..a/b.."), owned(&["..a", "b.."]));
        let long = vec![b'a'; MAX_PATH_BYTES + 1];
        for path in [
            &b"/a"[..],
            b"..",
            b"../a",
            b"a/../b",
            b"a/..",
            b"a\0b",
            &long,
        ] {
            assert!(names(path).is_err(), "{}", path.escape_ascii());
        }
    }

    #[test]
    fn link_target_that_leaves_the_directory_is_refused() {
        for (target, depth, allowed) in [
            ("a", 0, true),
            ("./a/b", 0, true),
            ("../a", 1, true),
            ("../../a", 2, true),
            (".", 0, true),
            ("..", 1, true),
            ("..", 0, false),
            ("../../a", 1, false),
            ("./../a", 0, false),
            ("a/..", 3, false),
            ("a/../../..", 3, false),
            ("/a", 3, false),
            ("", 3, false),
            ("a\0", 3, false),
        ] {
            let result = check_target(target.as_bytes(), depth);
            assert_eq!(result.is_ok(), allowed, "{target} at {depth}");
        }
    }
}

//! The metadata of files, as the API writes and reads it.

use agentbox_api::file::{FileInfo, FileType};
use agentbox_contracts::error::Error;
use agentbox_contracts::files::{FileMetadata, FileType as BoxFileType};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use chrono::{DateTime, Utc};

use super::path;

/// The most that permission bits may be.
const MAX_MODE: u32 = 0o7777;
/// The longest name of a user or a group, in bytes.
const MAX_USER: usize = 256;

/// Bytes as text, and in base64 if the text is not exact.
pub(super) fn text(bytes: &[u8]) -> (String, Option<String>) {
    match std::str::from_utf8(bytes) {
        Ok(text) => (text.to_owned(), None),
        Err(_) => {
            let text = String::from_utf8_lossy(bytes).into_owned();
            (text, Some(STANDARD.encode(bytes)))
        }
    }
}

pub(super) fn info(metadata: &FileMetadata) -> FileInfo {
    let (path, path_base64) = text(&metadata.path);
    let (name, name_base64) = text(path::name(&metadata.path));
    let (target, target_base64) = match metadata.target.as_deref().map(text) {
        Some((target, base64)) => (Some(target), base64),
        None => (None, None),
    };
    let known = |name: &str| (!name.is_empty()).then(|| name.to_owned());
    FileInfo {
        path,
        path_base64,
        name,
        name_base64,
        file_type: match metadata.file_type() {
            BoxFileType::File => FileType::File,
            BoxFileType::Directory => FileType::Directory,
            BoxFileType::Symlink => FileType::Symlink,
            BoxFileType::Other => FileType::Other,
        },
        size: metadata.size,
        mode: format!("{:04o}", metadata.mode & MAX_MODE),
        uid: metadata.uid,
        gid: metadata.gid,
        owner: known(&metadata.owner),
        group: known(&metadata.group),
        modified_at: DateTime::<Utc>::from_timestamp_nanos(metadata.modified_unix_nanos),
        target,
        target_base64,
    }
}

/// Reads permission bits.
///
/// # Errors
/// [`agentbox_contracts::error::ErrorCode::Validation`], naming the field.
pub(super) fn mode(text: Option<&str>) -> Result<Option<u32>, Error> {
    let Some(text) = text else {
        return Ok(None);
    };
    let is_octal = (1..=5).contains(&text.len()) && text.bytes().all(|b| matches!(b, b'0'..=b'7'));
    match u32::from_str_radix(text, 8) {
        Ok(mode) if is_octal && mode <= MAX_MODE => Ok(Some(mode)),
        _ => Err(Error::value(
            "mode",
            "must be octal digits, at most `7777`",
            text,
        )),
    }
}

/// Checks the name of a user or a group, which the box looks up. Absent: an empty one.
///
/// # Errors
/// [`agentbox_contracts::error::ErrorCode::Validation`], naming the field.
pub(super) fn user(field: &str, text: Option<String>) -> Result<String, Error> {
    let Some(text) = text else {
        return Ok(String::new());
    };
    let has_length = (1..=MAX_USER).contains(&text.len());
    if !has_length || text.chars().any(char::is_control) {
        return Err(Error::value(
            field,
            format_args!("must be a name or a number of 1 to {MAX_USER} bytes"),
            text,
        ));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn link(path: &'static [u8], target: Option<&'static [u8]>) -> FileMetadata {
        FileMetadata {
            path: Bytes::from_static(path),
            file_type: BoxFileType::Symlink as i32,
            size: 3,
            mode: 0o777,
            uid: 1000,
            gid: 0,
            owner: String::new(),
            group: "root".to_owned(),
            modified_unix_nanos: 1_769_076_002_125_000_000,
            target: target.map(Bytes::from_static),
        }
    }

    #[test]
    fn metadata_has_the_documented_json() {
        let json = serde_json::to_value(info(&link(b"/a/b", Some(b"/c")))).unwrap();
        let expected = serde_json::json!({
            "path": "/a/b", "name": "b", "type": "symlink", "size": 3, "mode": "0777",
            "uid": 1000, "gid": 0, "group": "root", "modified_at": "2026-01-22T10:00:02.125Z",
            "target": "/c"
        });
        assert_eq!(json, expected);
    }

    #[test]
    fn name_that_is_not_utf8_is_in_base64_too() {
        let file = info(&link(b"/a/b\xff", None));
        assert_eq!(file.name, "b\u{fffd}");
        assert_eq!(file.name_base64.as_deref(), Some("Yv8="));
        assert_eq!(file.path_base64.as_deref(), Some("L2EvYv8="));
        assert_eq!((file.target, file.target_base64), (None, None));
        // Only the directory has such a name.
        let file = info(&link(b"/a\xff/b", Some(b"\xff")));
        assert_eq!(file.name_base64, None);
        assert!(file.path_base64.is_some() && file.target_base64.is_some());
    }

    #[test]
    fn mode_is_octal_digits() {
        assert_eq!(mode(None), Ok(None));
        for (text, expected) in [("644", 0o644), ("0644", 0o644), ("07777", 0o7777), ("0", 0)] {
            assert_eq!(mode(Some(text)), Ok(Some(expected)), "{text}");
        }
        for bad in [
            "",
            "8",
            "0o644",
            "+644",
            "10000",
            "-1",
            "rw-r--r--",
            "000644",
        ] {
            let error = mode(Some(bad)).unwrap_err();
            assert!(error.message.starts_with("mode: "), "{error}");
        }
    }

    #[test]
    fn user_is_bounded_text() {
        assert_eq!(user("user", None), Ok(String::new()));
        let given = "1000:1000".to_owned();
        assert_eq!(user("user", Some(given.clone())), Ok(given));
        for bad in [String::new(), "a\0".to_owned(), "x".repeat(257)] {
            let error = user("owner", Some(bad)).unwrap_err();
            assert!(error.message.starts_with("owner: "), "{error}");
        }
    }
}

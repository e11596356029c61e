//! The path and the headers of an operation on files. The first line of the input is a query, the rest
//! the value of a header.
//!
//! * An accepted path is absolute, short enough and without NUL. Percent-encoded, it is the same path.
//! * The name of a download is written as printable ASCII, which no header is split by.
//! * An error says that the input is wrong, and is short.

#![no_main]

use agentbox_api_gateway::fuzzing::{disposition_of_file, parse_file_headers, parse_file_path};
use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_fuzz::assert_input_error;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut lines = bytes.splitn(2, |byte| *byte == b'\n');
    let query = String::from_utf8_lossy(lines.next().unwrap_or_default());
    check_path(&query);
    let value = lines.next().unwrap_or_default();
    if let Ok(value) = value.try_into()
        && let Err(error) = parse_file_headers(&value)
    {
        assert_input_error(&error);
    }
});

fn check_path(query: &str) {
    let path = match parse_file_path(query) {
        Ok(path) => path,
        // A path has an error code of its own.
        Err(error) if error.code == ErrorCode::InvalidPath => {
            return assert_input_error(&Error {
                code: ErrorCode::Validation,
                ..error
            });
        }
        Err(error) => return assert_input_error(&error),
    };
    assert!(path.starts_with(b"/") && !path.contains(&0));
    assert!(path.len() <= 4095, "{}", path.len());
    let encoded: String = path.iter().map(|byte| format!("%{byte:02x}")).collect();
    assert_eq!(
        parse_file_path(&format!("path={encoded}")),
        Ok(path.clone())
    );
    let disposition = disposition_of_file(&path);
    let text = disposition.to_str().expect("printable ASCII");
    assert!(text.starts_with("attachment; filename=\""), "{text}");
}

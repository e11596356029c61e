//! Names from callers that boxd uses in a box: those of an archive and of a listing's cursor.
//!
//! * The name of an entry that boxd accepts leads to a place inside the directory.
//! * A cursor that boxd accepts is a relative path, and is the same text again.

#![no_main]

use agentbox_contracts::files::Archive;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Some((form, content)) = bytes.split_first() else {
        return;
    };
    let archive = match form % 3 {
        0 => Archive::Tar,
        1 => Archive::TarGzip,
        _ => Archive::TarZstd,
    };
    for name in agentbox_boxd::unpacked_names(archive, content) {
        // The directory itself has the empty name.
        if !name.is_empty() {
            name.split(|byte| *byte == b'/').for_each(assert_plain);
        }
    }
    if let Some(names) = agentbox_boxd::cursor_names(content) {
        assert_eq!(names.join(&b'/'), content);
        names.iter().for_each(|name| assert_plain(name));
    }
});

fn assert_plain(name: &[u8]) {
    assert!(!name.is_empty() && name != b"." && name != b"..");
    assert!(!name.contains(&0) && !name.contains(&b'/'));
}

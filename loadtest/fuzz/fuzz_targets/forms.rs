//! Forms: a user sends them with exec. The first byte is the length of the frames.
//!
//! * The frames in which a form arrives do not change its parts.
//! * An error says that the input is wrong, and is short.

#![no_main]

use agentbox_api_gateway::fuzzing::parse_form;
use agentbox_fuzz::assert_input_error;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Some((&length, body)) = bytes.split_first() else {
        return;
    };
    let whole = parse_form(body, body.len().max(1));
    let in_frames = parse_form(body, usize::from(length).max(1));
    match (whole, in_frames) {
        (Ok(whole), Ok(in_frames)) => assert_eq!(whole, in_frames),
        (Err(whole), Err(in_frames)) => {
            assert_input_error(&whole);
            assert_eq!(whole, in_frames);
        }
        other => panic!("{other:?}"),
    }
});

//! Image references: a user sends one with a new environment.
//!
//! * Exactly the texts that the OpenAPI document describes are image references, except those whose
//!   name is too long, which a pattern cannot say.
//! * An error is short.

#![no_main]

use std::sync::LazyLock;

use agentbox_api::environment::CreateEnvironment;
use agentbox_fuzz::{Described, assert_input_error};
use agentbox_scheduler::environment::request::image;
use libfuzzer_sys::fuzz_target;
use utoipa::PartialSchema as _;

/// The longest host and path together, in bytes.
const MAX_NAME_LENGTH: usize = 255;

static DESCRIBED: LazyLock<Described> =
    LazyLock::new(|| Described::new(&CreateEnvironment::schema(), Some("image")));

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    let is_valid = DESCRIBED.describes(text) && name_length(text) <= MAX_NAME_LENGTH;
    let result = image(text);
    assert_eq!(result.is_ok(), is_valid, "{text}");
    if let Err(error) = result {
        assert_input_error(&error);
    }
});

/// The length of the host and the path of a reference, without its tag and its digest.
fn name_length(reference: &str) -> usize {
    let tagged = reference.split('@').next().unwrap_or_default();
    let path = tagged.rfind('/').map_or(0, |slash| slash + 1);
    tagged[path..]
        .find(':')
        .map_or(tagged.len(), |colon| path + colon)
}

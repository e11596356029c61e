//! What the fuzz targets share.

use agentbox_contracts::error::{Error, ErrorCode};
use regex::Regex;
use serde_json::Value;
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::Schema;

/// The longest error that a caller may receive, in characters, whatever was sent.
const MAX_ERROR_CHARACTERS: usize = 600;

/// A string as the OpenAPI document describes it.
pub struct Described {
    pattern: Regex,
    max_length: usize,
}

impl Described {
    /// From the schema, or from the schema of one of its properties.
    pub fn new(schema: &RefOr<Schema>, property: Option<&str>) -> Self {
        let schema = serde_json::to_value(schema).expect("a schema is JSON");
        let schema = property.map_or(&schema, |name| &schema["properties"][name]);
        let pattern = schema["pattern"].as_str().expect("a pattern");
        let max_length = schema["maxLength"].as_u64().expect("a maximal length");
        Self {
            pattern: Regex::new(pattern).expect("a regular expression"),
            max_length: usize::try_from(max_length).expect("a length"),
        }
    }

    pub fn describes(&self, text: &str) -> bool {
        text.chars().count() <= self.max_length && self.pattern.is_match(text)
    }
}

/// Checks that an error for a caller says that the input is wrong, and shows little of it.
pub fn assert_input_error(error: &Error) {
    let expected = [ErrorCode::BadRequest, ErrorCode::Validation];
    assert!(expected.contains(&error.code), "{error}");
    assert_short(&error.message);
}

/// Checks that a message for a caller is short, and has no control character.
pub fn assert_short(message: &str) {
    assert!(!message.is_empty());
    assert!(message.chars().count() <= MAX_ERROR_CHARACTERS, "{message}");
    assert!(!message.contains(char::is_control), "{message:?}");
}

/// The JSON of a value that was read from JSON.
pub fn to_json(value: &impl serde::Serialize) -> Value {
    serde_json::to_value(value).expect("what was read from JSON is JSON")
}

//! A field that may be absent, null or a value: `Option<Option<T>>` with `#[serde(default)]`.

use serde::{Deserialize, Deserializer};

/// Reads a field that is present: null is `Some(None)`. `#[serde(default)]` makes an absent field
/// `None`.
///
/// # Errors
/// When it is neither null nor a `T`.
pub fn deserialize<'de, T, D>(deserializer: D) -> Result<Option<Option<T>>, D::Error>
where
    T: Deserialize<'de>,
    D: Deserializer<'de>,
{
    Option::deserialize(deserializer).map(Some)
}

#[cfg(test)]
mod tests {
    use crate::environment::rpc::PatchRequest;

    #[test]
    fn absent_null_and_value_are_told_apart() {
        for (field, value) in [
            ("", None),
            (r#","idle_timeout_s":null"#, Some(None)),
            (r#","idle_timeout_s":60"#, Some(Some(60))),
        ] {
            let text = format!(r#"{{"id":"env-0123456789abcdef"{field}}}"#);
            let request: PatchRequest = serde_json::from_str(&text).unwrap();
            assert_eq!(request.idle_timeout_s, value, "{text}");
            let written = serde_json::to_string(&request).unwrap();
            assert!(written.contains(field), "{written}");
            let again: PatchRequest = serde_json::from_str(&written).unwrap();
            assert_eq!(again.idle_timeout_s, value, "{written}");
        }
    }
}

//! Checks the manifest of an image before containerd reads it. Pure.
//!
//! containerd's JSON parser ignores the case of keys, and lets a later key replace an equal one. So
//! this looks at every key of the text, also repeated ones.
//!
//! * I1. An accepted manifest has no `urls`: from there containerd would fetch layers directly.
//! * I2. The sizes in it add up to at most the largest image.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};

/// A manifest is not accepted.
#[derive(Debug, thiserror::Error)]
pub(super) enum ManifestError {
    #[error("it is not JSON")]
    Malformed(#[from] serde_json::Error),
    #[error("it refers to layers at other places (`urls`)")]
    ForeignLayers,
    #[error("the image has {bytes} bytes, more than {max}")]
    TooLarge { bytes: u64, max: u64 },
}

/// Checks the text of a manifest or an index.
///
/// # Errors
/// The first rule that it breaks.
pub(super) fn check(text: &[u8], max: u64) -> Result<(), ManifestError> {
    let mut found = Found::default();
    let mut parser = serde_json::Deserializer::from_slice(text);
    Node {
        found: &mut found,
        key: Key::Other,
    }
    .deserialize(&mut parser)?;
    parser.end()?;
    if found.has_urls {
        return Err(ManifestError::ForeignLayers);
    }
    if found.bytes > max {
        return Err(ManifestError::TooLarge {
            bytes: found.bytes,
            max,
        });
    }
    Ok(())
}

#[derive(Default)]
struct Found {
    has_urls: bool,
    bytes: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Key {
    Urls,
    Size,
    Other,
}

impl Key {
    /// Upper case, because a few characters beyond ASCII have an ASCII one, as in containerd's parser.
    fn of(text: &str) -> Self {
        match text.to_uppercase().as_str() {
            "URLS" => Self::Urls,
            "SIZE" => Self::Size,
            _ => Self::Other,
        }
    }
}

/// A value of the text, with its key.
struct Node<'a> {
    found: &'a mut Found,
    key: Key,
}

impl<'de> DeserializeSeed<'de> for Node<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Node<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a manifest")
    }

    fn visit_u64<E>(self, number: u64) -> Result<(), E> {
        if self.key == Key::Size {
            self.found.bytes = self.found.bytes.saturating_add(number);
        }
        Ok(())
    }

    fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<(), E> {
        match self.key {
            Key::Size => Err(E::custom(format_args!("a size is {number}"))),
            Key::Urls | Key::Other => Ok(()),
        }
    }

    fn visit_f64<E: serde::de::Error>(self, number: f64) -> Result<(), E> {
        match self.key {
            Key::Size => Err(E::custom(format_args!("a size is {number}"))),
            Key::Urls | Key::Other => Ok(()),
        }
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut values: A) -> Result<(), A::Error> {
        let Self { found, key } = self;
        loop {
            let node = Node {
                found: &mut *found,
                key: Key::Other,
            };
            if values.next_element_seed(node)?.is_none() {
                return Ok(());
            }
            found.has_urls |= key == Key::Urls;
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<(), A::Error> {
        let Self { found, key } = self;
        if key == Key::Urls {
            return Err(A::Error::custom("`urls` is an object"));
        }
        while let Some(name) = entries.next_key::<String>()? {
            let node = Node {
                found: &mut *found,
                key: Key::of(&name),
            };
            entries.next_value_seed(node)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: u64 = 1_000;

    #[test]
    fn manifest_and_index_within_the_limit_are_accepted() {
        for text in [
            r#"{"schemaVersion":2,"config":{"size":100},"layers":[{"size":400},{"size":500}]}"#,
            r#"{"manifests":[{"digest":"sha256:00","size":500,"platform":{"os":"linux"}}]}"#,
            r#"{"layers":[{"size":1,"urls":[]}],"annotations":{"a":"b","c":null,"d":true,"e":-1.5}}"#,
        ] {
            check(text.as_bytes(), MAX).unwrap();
        }
    }

    #[test]
    fn manifest_with_foreign_layers_is_refused_however_it_is_written() {
        for text in [
            r#"{"layers":[{"size":1,"urls":["http://127.0.0.1/"]}]}"#,
            r#"{"layers":[{"URLs":["x"]}]}"#,
            r#"{"layers":[{"url\u017f":["x"]}]}"#,
            r#"{"layers":[{"urls":["x"],"urls":[]}]}"#,
            r#"{"layers":[{"urls":["x"]}],"layers":[]}"#,
            r#"{"config":{"urls":[{"a":1}]}}"#,
        ] {
            let refused = check(text.as_bytes(), MAX);
            assert!(
                matches!(refused, Err(ManifestError::ForeignLayers)),
                "{text}"
            );
        }
    }

    #[test]
    fn image_larger_than_the_limit_is_refused_with_both_numbers() {
        let text = r#"{"config":{"size":1},"Layers":[{"size":500},{"Size":500}]}"#;
        let error = check(text.as_bytes(), MAX).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the image has 1001 bytes, more than 1000"
        );
        let text = format!(r#"{{"layers":[{{"size":{0}}},{{"size":{0}}}]}}"#, u64::MAX);
        assert!(matches!(
            check(text.as_bytes(), MAX),
            Err(ManifestError::TooLarge { .. })
        ));
    }

    #[test]
    fn text_that_is_no_manifest_is_refused() {
        for text in [
            "",
            "<html>",
            r#"{"layers":[{"size":-1}]}"#,
            r#"{"layers":[{"size":1e3}]}"#,
            r#"{"layers":[{"urls":{"a":"b"}}]}"#,
            "{} {}",
        ] {
            let refused = check(text.as_bytes(), MAX);
            assert!(
                matches!(refused, Err(ManifestError::Malformed(_))),
                "{text}"
            );
        }
    }
}

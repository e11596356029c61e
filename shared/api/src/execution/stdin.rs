//! The stdin of an execution.

use std::fmt;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserializer, Error, MapAccess, Visitor};
use serde::{Deserialize, Serialize};
use utoipa::openapi::schema::{ObjectBuilder, OneOfBuilder, Schema, Type};
use utoipa::openapi::{Object, RefOr};
use utoipa::{PartialSchema, ToSchema};

/// The stdin of an execution.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Stdin {
    /// It is empty.
    #[default]
    None,
    /// Clients write to it.
    Open,
    /// This text, then the end of file.
    Text(String),
    /// These bytes in base64, then the end of file.
    Base64(String),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Content {
    #[serde(default)]
    text: Option<String>,
    #[serde(default)]
    base64: Option<String>,
}

struct StdinVisitor;

impl<'de> Visitor<'de> for StdinVisitor {
    type Value = Stdin;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("`none`, `open`, an object with `text`, or one with `base64`")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Stdin, E> {
        match text {
            "none" => Ok(Stdin::None),
            "open" => Ok(Stdin::Open),
            other => Err(E::invalid_value(serde::de::Unexpected::Str(other), &self)),
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Stdin, A::Error> {
        match Content::deserialize(MapAccessDeserializer::new(map))? {
            Content {
                text: Some(text),
                base64: None,
            } => Ok(Stdin::Text(text)),
            Content {
                text: None,
                base64: Some(base64),
            } => Ok(Stdin::Base64(base64)),
            _ => Err(A::Error::custom("must have one of `text` and `base64`")),
        }
    }
}

impl<'de> Deserialize<'de> for Stdin {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(StdinVisitor)
    }
}

fn content(field: &str, description: &str, example: &str) -> Object {
    let text = ObjectBuilder::new()
        .schema_type(Type::String)
        .description(Some(description))
        .examples([example])
        .build();
    ObjectBuilder::new()
        .property(field, Schema::from(text))
        .required(field)
        .build()
}

impl PartialSchema for Stdin {
    fn schema() -> RefOr<Schema> {
        let word = ObjectBuilder::new()
            .schema_type(Type::String)
            .enum_values(Some(["none", "open"]))
            .build();
        let text = content("text", "Text, then the end of file.", "some input\n");
        let base64 = content(
            "base64",
            "Bytes in base64 (RFC 4648), then the end of file.",
            "AAEC",
        );
        let stdin = OneOfBuilder::new()
            .item(Schema::from(word))
            .item(Schema::from(text))
            .item(Schema::from(base64))
            .description(Some(
                "The stdin of a command: `none` is empty, clients write to `open`, and `text` or \
                 `base64` is all of it.",
            ))
            .examples([serde_json::json!("open")])
            .build();
        Schema::from(stdin).into()
    }
}

impl ToSchema for Stdin {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_form_is_read_as_it_is_written() {
        for (stdin, json) in [
            (Stdin::None, r#""none""#),
            (Stdin::Open, r#""open""#),
            (Stdin::Text("a".into()), r#"{"text":"a"}"#),
            (Stdin::Base64("AA==".into()), r#"{"base64":"AA=="}"#),
        ] {
            assert_eq!(serde_json::to_string(&stdin).unwrap(), json);
            assert_eq!(serde_json::from_str::<Stdin>(json).unwrap(), stdin);
        }
        for bad in [
            r#""closed""#,
            "{}",
            "7",
            "null",
            r#"{"text":"a","base64":""}"#,
            r#"{"x":"a"}"#,
        ] {
            assert!(serde_json::from_str::<Stdin>(bad).is_err(), "{bad}");
        }
    }
}

//! The reference as one HTML page: rendered here, so that it needs no script and nothing
//! from elsewhere.

use std::fmt::Write as _;

use serde_json::{Map, Value};
use utoipa::openapi::OpenApi as Document;

const HEAD: &str = include_str!("head.html");
/// Schemas refer to each other; none of ours is deeper.
const DEEPEST: usize = 8;

pub(super) fn render(document: &Document) -> String {
    // A document of plain data always serializes.
    let document = serde_json::to_value(document).unwrap_or_default();
    let mut page = String::from(HEAD);
    introduction(&mut page, &document);
    for tag in entries(&document["tags"]) {
        let name = text(&tag["name"]);
        let _ = write!(
            page,
            "<h2 id=\"{name}\">{name}</h2><p>{}</p>",
            escaped(&text(&tag["description"]))
        );
        for (path, methods) in fields(&document["paths"]) {
            for (method, operation) in fields(methods) {
                if entries(&operation["tags"]).any(|tag| tag.as_str() == Some(name.as_str())) {
                    describe(&mut page, &document, path, method, operation);
                }
            }
        }
    }
    for (name, title) in [
        ("ClientMessage", "Attach: what a client sends"),
        ("ServerMessage", "Attach: what the server sends"),
    ] {
        let schema = &document["components"]["schemas"][name];
        let _ = write!(page, "<h2>{title}</h2>");
        for variant in entries(&schema["oneOf"]) {
            let note = escaped(&text(&variant["description"]));
            let _ = write!(page, "<p>{note}</p>");
            example(&mut page, &document, variant);
        }
    }
    page.push_str("</main>\n</html>\n");
    page
}

fn introduction(page: &mut String, document: &Value) {
    let description = text(&document["info"]["description"]);
    let (prose, list) = description.split_once("\n\n").unwrap_or((&description, ""));
    let _ = write!(
        page,
        "<main><h1>AgentBox API</h1><p>{}</p><ul class=\"words\">",
        inline(prose)
    );
    for line in list.lines() {
        let _ = write!(page, "<li>{}</li>", inline(line.trim_start_matches("* ")));
    }
    page.push_str("</ul><nav>");
    for tag in entries(&document["tags"]) {
        let name = text(&tag["name"]);
        let _ = write!(page, "<a href=\"#{name}\">{name}</a> ");
    }
    page.push_str("<a href=\"/openapi.json\">openapi.json</a></nav>");
}

fn describe(page: &mut String, document: &Value, path: &str, method: &str, operation: &Value) {
    let open = if operation["security"] == serde_json::json!([{}]) {
        " <small>no credential</small>"
    } else {
        ""
    };
    let _ = write!(
        page,
        "<details><summary><b>{}</b> <code>{path}</code>{open}</summary><p>{}</p>",
        method.to_uppercase(),
        inline(&format!(
            "{} {}",
            text(&operation["summary"]),
            text(&operation["description"])
        ))
    );
    let mut parameters = entries(&operation["parameters"]).peekable();
    if parameters.peek().is_some() {
        page.push_str("<table><tr><th>Parameter</th><th>In</th><th>Type</th><th></th></tr>");
        for parameter in parameters {
            let _ = write!(
                page,
                "<tr><td><code>{}</code></td><td>{}</td><td>{}</td><td>{}</td></tr>",
                escaped(&text(&parameter["name"])),
                escaped(&text(&parameter["in"])),
                escaped(&kind(document, &parameter["schema"])),
                inline(&text(&parameter["description"]))
            );
        }
        page.push_str("</table>");
    }
    let body = &operation["requestBody"]["content"]["application/json"]["schema"];
    if !body.is_null() {
        page.push_str("<h3>Request</h3>");
        table(page, document, body);
        example(page, document, body);
    }
    let mut errors = Vec::new();
    for (status, response) in fields(&operation["responses"]) {
        if !response["$ref"].is_null() {
            errors.push(status);
            continue;
        }
        let _ = write!(
            page,
            "<h3>{status}</h3><p>{}</p>",
            inline(&text(&response["description"]))
        );
        let schema = &response["content"]["application/json"]["schema"];
        if !schema.is_null() {
            example(page, document, schema);
        }
    }
    let _ = writeln!(page, "<p>Errors: {}</p></details>", errors.join(", "));
}

/// The fields of a request.
fn table(page: &mut String, document: &Value, schema: &Value) {
    let schema = resolved(document, schema);
    let required: Vec<&Value> = entries(&schema["required"]).collect();
    page.push_str("<table><tr><th>Field</th><th>Type</th><th>Required</th><th></th></tr>");
    for (name, field) in fields(&schema["properties"]) {
        let is_required = required.contains(&&Value::from(name));
        let _ = write!(
            page,
            "<tr><td><code>{}</code></td><td>{}</td><td>{}</td><td>{}</td></tr>",
            escaped(name),
            escaped(&kind(document, field)),
            if is_required { "yes" } else { "" },
            inline(&text(&field["description"]))
        );
    }
    page.push_str("</table>");
}

fn example(page: &mut String, document: &Value, schema: &Value) {
    let example = sample(document, schema, 0);
    let shown = serde_json::to_string_pretty(&example).unwrap_or_default();
    let _ = write!(page, "<pre>{}</pre>", escaped(&shown));
}

/// A value as the schema describes it, with words for types where there is no example.
fn sample(document: &Value, schema: &Value, depth: usize) -> Value {
    if depth > DEEPEST {
        return Value::from("…");
    }
    let schema = resolved(document, schema);
    if !schema["example"].is_null() {
        return schema["example"].clone();
    }
    let mut parts = entries(&schema["allOf"]).peekable();
    if parts.peek().is_some() {
        let mut whole = Map::new();
        for part in parts {
            if let Value::Object(part) = sample(document, part, depth + 1) {
                whole.extend(part);
            }
        }
        return Value::Object(whole);
    }
    if let Some(variant) = entries(&schema["oneOf"]).find(|variant| variant["type"] != "null") {
        return sample(document, variant, depth + 1);
    }
    match type_of(schema).as_str() {
        "array" => Value::from(vec![sample(document, &schema["items"], depth + 1)]),
        "object" if schema["properties"].is_object() => Value::Object(
            fields(&schema["properties"])
                .map(|(name, field)| (name.to_owned(), sample(document, field, depth + 1)))
                .collect(),
        ),
        "object" => serde_json::json!({"name": "value"}),
        _ => Value::from(kind(document, schema)),
    }
}

fn type_of(schema: &Value) -> String {
    match &schema["type"] {
        Value::Array(types) => types
            .iter()
            .find(|of_type| *of_type != "null")
            .map(text)
            .unwrap_or_default(),
        of_type => text(of_type),
    }
}

/// A type in words: `integer, 1 to 1000, default 100`.
fn kind(document: &Value, schema: &Value) -> String {
    let schema = resolved(document, schema);
    let words: Vec<String> = entries(&schema["enum"]).map(text).collect();
    let mut kind = if words.is_empty() {
        match entries(&schema["oneOf"]).find(|variant| variant["type"] != "null") {
            Some(variant) => return self::kind(document, variant),
            None if schema["format"] == "date-time" => "RFC 3339 time".to_owned(),
            None => type_of(schema),
        }
    } else {
        words.join(" | ")
    };
    let bounds = ["minimum", "maximum"].map(|bound| &schema[bound]);
    match bounds {
        [least, most] if least.is_number() && most.is_number() => {
            let _ = write!(kind, ", {least} to {most}");
        }
        [least, _] if least.is_number() => {
            let _ = write!(kind, ", at least {least}");
        }
        _ => {}
    }
    if !schema["default"].is_null() {
        let _ = write!(kind, ", default {}", schema["default"]);
    }
    kind
}

fn resolved<'a>(document: &'a Value, schema: &'a Value) -> &'a Value {
    match schema["$ref"]
        .as_str()
        .and_then(|path| path.rsplit('/').next())
    {
        Some(name) => &document["components"]["schemas"][name],
        None => schema,
    }
}

fn entries(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn fields(value: &Value) -> impl Iterator<Item = (&str, &Value)> {
    let fields = value.as_object().into_iter().flatten();
    fields.map(|(name, value)| (name.as_str(), value))
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

/// Escaped, with `code` marked as such.
fn inline(text: &str) -> String {
    escaped(text)
        .split('`')
        .enumerate()
        .map(|(index, part)| match index % 2 {
            1 => format!("<code>{part}</code>"),
            _ => part.to_owned(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_of_the_document_cannot_become_markup() {
        assert_eq!(inline("a < `b & c`"), "a &lt; <code>b &amp; c</code>");
    }

    #[test]
    fn a_sample_follows_references_and_ends_in_circles() {
        let document = serde_json::json!({"components": {"schemas": {
            "A": {"type": "object", "properties": {"b": {"$ref": "#/components/schemas/A"}, "n": {"type": ["integer", "null"], "minimum": 1}}}
        }}});
        let sample = sample(
            &document,
            &serde_json::json!({"$ref": "#/components/schemas/A"}),
            0,
        );
        assert_eq!(sample["n"], "integer, at least 1");
        assert!(sample["b"]["b"].is_object());
    }
}

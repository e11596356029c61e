//! The document's texts: every operation, parameter, field and body has a description, and an
//! example that its schema accepts.

use std::cell::RefCell;

use boon::{Compiler, Draft, Schemas};
use serde_json::Value;

use crate::router;

const URL: &str = "http://localhost/openapi.json";

struct Document {
    value: Value,
    validation: RefCell<Validation>,
}

/// The compiled schemas. Each of the document is compiled once.
struct Validation {
    compiler: Compiler,
    schemas: Schemas,
    validated: usize,
}

impl Document {
    fn new() -> Self {
        let value = serde_json::to_value(router::document()).unwrap();
        // A look-ahead is valid in a JSON schema, but not in this validator.
        let text = value.to_string().replace("(?!AGENTBOX_BOXD_)", "");
        let mut compiler = Compiler::new();
        compiler.set_default_draft(Draft::V2020_12);
        compiler.enable_format_assertions();
        compiler
            .add_resource(URL, serde_json::from_str(&text).unwrap())
            .unwrap();
        Self {
            value,
            validation: RefCell::new(Validation {
                compiler,
                schemas: Schemas::new(),
                validated: 0,
            }),
        }
    }

    /// Every operation, with its method and path.
    fn operations(&self) -> Vec<(String, &Value)> {
        let paths = self.value["paths"].as_object().unwrap().iter();
        paths
            .flat_map(|(path, methods)| {
                let methods = methods.as_object().unwrap().iter();
                methods.map(move |(method, operation)| (format!("{method} {path}"), operation))
            })
            .collect()
    }

    fn resolve<'a>(&'a self, value: &'a Value) -> &'a Value {
        match value["$ref"].as_str() {
            Some(reference) => self.value.pointer(&reference[1..]).expect(reference),
            None => value,
        }
    }

    /// Validates a value against a schema of this document.
    fn validate(&self, schema: &Value, value: &Value) -> Result<(), String> {
        let validation = &mut *self.validation.borrow_mut();
        let schema = schema
            .to_string()
            .replace("(?!AGENTBOX_BOXD_)", "")
            .replace("\"#/", &format!("\"{URL}#/"));
        let url = format!("http://localhost/{}.json", validation.validated);
        validation.validated += 1;
        let Validation {
            compiler, schemas, ..
        } = validation;
        compiler
            .add_resource(&url, serde_json::from_str(&schema).unwrap())
            .unwrap();
        let index = compiler.compile(&url, schemas).unwrap();
        schemas
            .validate(value, index)
            .map_err(|error| error.to_string())
    }

    /// The examples of a schema: its own, or those of the schema that it refers to.
    fn examples<'a>(&'a self, schema: &'a Value) -> Vec<&'a Value> {
        let own = own_examples(schema);
        if !own.is_empty() {
            return own;
        }
        if schema["$ref"].is_string() {
            return self.examples(self.resolve(schema));
        }
        // A field that may be null, or a list.
        let variants = schema["oneOf"].as_array().into_iter().flatten();
        let mut variants = variants.filter(|variant| variant["type"] != "null");
        match variants.next() {
            Some(variant) => self.examples(variant),
            None if schema["items"].is_object() => self.examples(&schema["items"]),
            None => Vec::new(),
        }
    }

    /// Checks that a schema has an example, its own or by reference, and that each is valid.
    fn check_examples(&self, schema: &Value, place: &str) {
        let examples = self.examples(schema);
        assert!(!examples.is_empty(), "{place}: no example");
        self.check_values(schema, &own_examples(schema), place);
    }

    fn check_values(&self, schema: &Value, values: &[&Value], place: &str) {
        for value in values {
            if let Err(error) = self.validate(schema, value) {
                panic!("{place}: the example {value} breaks its schema: {error}");
            }
        }
    }

    /// Checks the properties of a schema and of all schemas in it; returns their number.
    fn check_properties(&self, schema: &Value, place: &str) -> usize {
        let mut checked = 0;
        for (name, property) in schema["properties"].as_object().into_iter().flatten() {
            let place = format!("{place}.{name}");
            // The tag of a message is its own description.
            if name == "type" && property["enum"].is_array() {
                continue;
            }
            check_description(property, &place);
            self.check_examples(property, &place);
            checked += 1 + self.check_properties(property, &place);
        }
        for key in ["allOf", "oneOf"] {
            for (index, part) in schema[key].as_array().into_iter().flatten().enumerate() {
                checked += self.check_properties(part, &format!("{place}.{key}[{index}]"));
            }
        }
        checked
            + schema
                .get("items")
                .map_or(0, |items| self.check_properties(items, place))
    }

    /// Checks that each body of JSON or text has an example, and that each is valid.
    fn check_content(&self, content: &Value, place: &str) -> usize {
        let content = content.as_object();
        for (media_type, body) in content.into_iter().flatten() {
            let place = format!("{place}, {media_type}");
            let mut examples: Vec<&Value> = body.get("example").into_iter().collect();
            for example in body["examples"].as_object().into_iter().flatten() {
                examples.push(&example.1["value"]);
            }
            self.check_values(&body["schema"], &examples, &place);
            if examples.is_empty() {
                self.check_examples(&body["schema"], &place);
            }
        }
        content.map_or(0, serde_json::Map::len)
    }
}

fn own_examples(schema: &Value) -> Vec<&Value> {
    let many = schema["examples"].as_array().into_iter().flatten();
    schema.get("example").into_iter().chain(many).collect()
}

#[track_caller]
fn check_description(value: &Value, place: &str) {
    let text = value["description"].as_str().unwrap_or("");
    assert!(text.len() >= 10, "{place}: no description: {text:?}");
    assert!(
        text.ends_with('.') || text.contains("\n* "),
        "{place}: not a sentence: {text:?}"
    );
}

#[test]
fn every_operation_has_a_summary_and_a_description() {
    let document = Document::new();
    for (place, operation) in document.operations() {
        let summary = operation["summary"].as_str().expect(&place);
        assert!((3..=60).contains(&summary.len()), "{place}: {summary}");
        assert!(!summary.ends_with('.'), "{place}: {summary}");
        check_description(operation, &place);
        for (status, response) in operation["responses"].as_object().unwrap() {
            check_description(document.resolve(response), &format!("{place} {status}"));
        }
    }
    for tag in document.value["tags"].as_array().unwrap() {
        check_description(tag, &tag.to_string());
    }
}

#[test]
fn every_parameter_has_a_description_and_a_valid_example() {
    let document = Document::new();
    let mut checked = 0;
    for (place, operation) in document.operations() {
        for parameter in operation["parameters"].as_array().into_iter().flatten() {
            let place = format!("{place}?{}", parameter["name"]);
            check_description(parameter, &place);
            let schema = &parameter["schema"];
            match parameter.get("example") {
                Some(example) => document.check_values(schema, &[example], &place),
                None => document.check_examples(schema, &place),
            }
            checked += 1;
        }
    }
    assert!(checked > 40, "{checked}");
}

#[test]
fn every_schema_and_field_has_a_description_and_a_valid_example() {
    let document = Document::new();
    let mut checked = 0;
    for (name, schema) in document.value["components"]["schemas"].as_object().unwrap() {
        check_description(schema, name);
        document.check_examples(schema, name);
        checked += document.check_properties(schema, name);
    }
    assert!(checked > 130, "{checked}");
}

#[test]
fn every_body_has_a_valid_example() {
    let document = Document::new();
    let mut checked = 0;
    for (place, operation) in document.operations() {
        checked += document.check_content(&operation["requestBody"]["content"], &place);
        for (status, response) in operation["responses"].as_object().unwrap() {
            let content = &document.resolve(response)["content"];
            checked += document.check_content(content, &format!("{place} {status}"));
        }
    }
    assert!(checked > 100, "{checked}");
}

#[test]
fn every_response_header_has_a_description_and_a_valid_example() {
    let document = Document::new();
    for (place, operation) in document.operations() {
        for response in operation["responses"].as_object().unwrap().values() {
            let headers = document.resolve(response)["headers"].as_object();
            for (name, header) in headers.into_iter().flatten() {
                let place = format!("{place}: {name}");
                check_description(header, &place);
                document.check_examples(&header["schema"], &place);
            }
        }
    }
}

#[test]
fn invalid_example_is_detected() {
    let document = Document::new();
    let schema = serde_json::json!({"$ref": "#/components/schemas/CreateEnvironment"});
    let good = document.examples(&schema)[0];
    assert_eq!(document.validate(&schema, good), Ok(()));
    for (field, value) in [
        ("name", serde_json::json!("Upper")),
        ("timeout", serde_json::json!(0)),
        ("colour", serde_json::json!("red")),
        ("resources", serde_json::json!({"cpu": "1"})),
    ] {
        let mut bad = good.clone();
        bad[field] = value;
        assert!(document.validate(&schema, &bad).is_err(), "{bad}");
    }
}

#[test]
fn documented_limits_are_those_of_the_code() {
    use agentbox_contracts::command::MAX_ARGUMENTS;
    use agentbox_contracts::environment::{
        MAX_IMAGE_LENGTH, MAX_LABELS, MAX_TIMEOUT_S, MIN_IDLE_TIMEOUT_S,
    };
    use agentbox_contracts::identity::{
        MAX_EMAIL, MAX_KEY_DAYS, MAX_KEY_DESCRIPTION, MAX_KEY_PERMISSIONS, MAX_PASSWORD,
        MAX_USERNAME, MIN_PASSWORD,
    };
    use agentbox_contracts::pool::MAX_READY;
    use agentbox_contracts::preview::MAX_PREVIEW_S;
    use agentbox_contracts::registry::{MAX_REGISTRY_PASSWORD, MAX_REGISTRY_USERNAME};
    let document = Document::new();
    for (schema, field, keyword, limit) in [
        (
            "CreateEnvironment",
            "image",
            "maxLength",
            MAX_IMAGE_LENGTH as u64,
        ),
        ("CreateEnvironment", "timeout", "maximum", MAX_TIMEOUT_S),
        ("PatchEnvironment", "timeout", "maximum", MAX_TIMEOUT_S),
        (
            "CreateEnvironment",
            "idle_timeout",
            "minimum",
            MIN_IDLE_TIMEOUT_S,
        ),
        (
            "CreateEnvironment",
            "idle_timeout",
            "maximum",
            MAX_TIMEOUT_S,
        ),
        (
            "PatchEnvironment",
            "idle_timeout",
            "minimum",
            MIN_IDLE_TIMEOUT_S,
        ),
        ("PatchEnvironment", "idle_timeout", "maximum", MAX_TIMEOUT_S),
        ("CreateUser", "username", "maxLength", MAX_USERNAME as u64),
        ("CreateUser", "email", "maxLength", MAX_EMAIL as u64),
        ("PatchUser", "email", "maxLength", MAX_EMAIL as u64),
        ("CreateUser", "password", "minLength", MIN_PASSWORD as u64),
        ("CreateUser", "password", "maxLength", MAX_PASSWORD as u64),
        ("PatchUser", "password", "minLength", MIN_PASSWORD as u64),
        ("PatchUser", "password", "maxLength", MAX_PASSWORD as u64),
        (
            "ChangePassword",
            "new_password",
            "minLength",
            MIN_PASSWORD as u64,
        ),
        (
            "ChangePassword",
            "new_password",
            "maxLength",
            MAX_PASSWORD as u64,
        ),
        (
            "CreateApiKey",
            "description",
            "maxLength",
            MAX_KEY_DESCRIPTION as u64,
        ),
        (
            "CreateApiKey",
            "expires_in",
            "maximum",
            u64::from(MAX_KEY_DAYS),
        ),
        (
            "CreateApiKey",
            "permissions",
            "maxItems",
            MAX_KEY_PERMISSIONS as u64,
        ),
        (
            "SetRegistryCredential",
            "username",
            "maxLength",
            MAX_REGISTRY_USERNAME as u64,
        ),
        (
            "SetRegistryCredential",
            "password",
            "maxLength",
            MAX_REGISTRY_PASSWORD as u64,
        ),
        ("SetPool", "image", "maxLength", MAX_IMAGE_LENGTH as u64),
        ("SetPool", "min_ready", "maximum", MAX_READY.into()),
        ("SetPool", "max_ready", "maximum", MAX_READY.into()),
        ("CreatePreview", "expires_in", "maximum", MAX_PREVIEW_S),
        ("ExecBody", "command", "maxItems", MAX_ARGUMENTS as u64),
    ] {
        let field = &document.value["components"]["schemas"][schema]["properties"][field];
        assert_eq!(field[keyword], limit, "{schema} {keyword}: {field}");
    }
    let labels = &document.value["components"]["schemas"]["Labels"];
    assert_eq!(labels["maxProperties"], MAX_LABELS);
}

#[test]
fn limit_that_an_operator_may_change_names_its_setting() {
    let document = Document::new();
    let schemas = &document.value["components"]["schemas"];
    let ticket = "/api/v1/auth/tickets";
    for (place, setting) in [
        (
            &schemas["ExecBody"]["properties"]["timeout"],
            "AGENTBOX_MAX_EXEC_TIMEOUT",
        ),
        (
            &schemas["ExecReply"]["properties"]["stdout"],
            "AGENTBOX_MAX_EXEC_OUTPUT",
        ),
        (
            &schemas["ExecReply"]["properties"]["stderr"],
            "AGENTBOX_MAX_EXEC_OUTPUT",
        ),
        (
            &schemas["TicketReply"]["properties"]["expires_at"],
            "AGENTBOX_TICKET_TTL",
        ),
        (
            &document.value["paths"][ticket]["post"],
            "AGENTBOX_TICKET_TTL",
        ),
    ] {
        let description = place["description"].as_str().unwrap();
        assert!(description.contains(setting), "{description}");
        assert!(place.get("maximum").is_none(), "{place}");
    }
}

//! The schemas of text that follows Kubernetes' conventions. They describe fields whose
//! Rust type is a plain string or map: the scheduler checks their values.

use std::borrow::Cow;

use agentbox_contracts::environment::MAX_LABELS;
use utoipa::openapi::schema::{ObjectBuilder, Schema, Type};
use utoipa::openapi::{Object, RefOr};
use utoipa::{PartialSchema, ToSchema};

/// A Kubernetes quantity above zero: a decimal number and an optional suffix, such as `500m`
/// (thousandths), `1.5`, `512Mi` (2^20) or `10G` (10^9).
#[derive(ToSchema)]
#[schema(
    example = "512Mi",
    max_length = 32,
    pattern = r"^\+?([0-9]+(\.[0-9]*)?|\.[0-9]+)([numkMGTPE]|[KMGTPE]i|[eE][+-]?[0-9]{1,2})?$"
)]
pub struct Quantity(pub String);

/// A name: 1 to 63 lower-case letters, digits and hyphens, with a letter or digit at each end
/// (an RFC 1123 label).
#[derive(ToSchema)]
#[schema(
    example = "my-python-env",
    min_length = 1,
    max_length = 63,
    pattern = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
)]
pub struct Name(pub String);

/// A string without the NUL character.
#[derive(ToSchema)]
#[schema(example = "print(40 + 2)", pattern = r"^[^\x00]*$")]
pub struct Argument(pub String);

fn text() -> ObjectBuilder {
    ObjectBuilder::new().schema_type(Type::String)
}

/// A map whose keys and values follow these patterns.
fn map(key: &str, value: ObjectBuilder) -> ObjectBuilder {
    ObjectBuilder::new()
        .property_names(Some(Schema::from(text().pattern(Some(key)).build())))
        .additional_properties(Some(RefOr::from(Schema::from(value.build()))))
}

/// Kubernetes labels.
pub struct Labels;

impl PartialSchema for Labels {
    fn schema() -> RefOr<Schema> {
        const NAME: &str = "[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?";
        const DOMAIN: &str = "[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?";
        let key = format!(r"^({DOMAIN}(\.{DOMAIN})*/)?{NAME}$");
        let value = text()
            .max_length(Some(63))
            .pattern(Some(format!("^({NAME})?$")));
        map(&key, value)
            .max_properties(Some(MAX_LABELS))
            .description(Some(
                "Kubernetes labels, at most 64. A key is `[prefix/]name`, a name or value has \
                 at most 63 characters.",
            ))
            .examples([serde_json::json!({"project": "my-project"})])
            .into()
    }
}

impl ToSchema for Labels {}

/// The variables of a new environment.
pub struct Variables;

impl PartialSchema for Variables {
    fn schema() -> RefOr<Schema> {
        let value = text().pattern(Some(r"^[^\x00]*$"));
        let map: Object = map("^(?!AGENTBOX_BOXD_)[!-<>-~]+$", value)
            .description(Some(
                "Environment variables. A name is printable ASCII without `=` or space and does \
                 not begin with `AGENTBOX_BOXD_`. Names and values together have at most \
                 131072 bytes, a name and its value at most 131070.",
            ))
            .examples([serde_json::json!({"MY_VAR": "my-value"})])
            .build();
        map.into()
    }
}

impl ToSchema for Variables {
    fn name() -> Cow<'static, str> {
        Cow::Borrowed("Variables")
    }
}

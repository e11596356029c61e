//! The OpenAPI form of what is defined in `agentbox-contracts`: the same words, taken from
//! the same constants, so that the document cannot list what the code does not know.

use agentbox_contracts::environment::{
    MAX_IMAGE_LENGTH, MAX_LABELS, MAX_TIMEOUT_S, Status, StatusReason,
};
use agentbox_contracts::error::ErrorCode;
use agentbox_contracts::identity::{
    MAX_EMAIL, MAX_KEY_DAYS, MAX_KEY_DESCRIPTION, MAX_PASSWORD, MAX_USERNAME, MIN_PASSWORD,
};
use utoipa::openapi::schema::{
    AdditionalProperties, Array, ArrayBuilder, Object, ObjectBuilder, SchemaType, Type,
};
use utoipa::openapi::{KnownFormat, Ref, RefOr, Schema, SchemaFormat};

/// What may also be null, which is as if it were absent.
fn or_null(schema: impl Into<Object>) -> Object {
    let mut object: Object = schema.into();
    if let SchemaType::Type(kind) = &object.schema_type {
        object.schema_type = SchemaType::from_iter([kind.clone(), Type::Null]);
    }
    if let Some(values) = &mut object.enum_values {
        values.push(serde_json::Value::Null);
    }
    object
}

fn words(values: impl IntoIterator<Item = &'static str>) -> Object {
    ObjectBuilder::new()
        .schema_type(Type::String)
        .enum_values(Some(values))
        .build()
}

pub fn status() -> Object {
    words(Status::ALL.iter().map(|status| status.as_str()))
}

pub fn status_reason() -> Object {
    words(StatusReason::ALL.iter().map(|reason| reason.as_str()))
}

pub fn error_word() -> Object {
    words(ErrorCode::ALL.iter().map(|code| code.as_str()))
}

pub fn role() -> Object {
    words(["user", "admin"])
}

pub fn permission() -> Object {
    words(["read", "write", "admin"])
}

pub fn ticket_action() -> Object {
    words(["logs", "attach"])
}

pub fn output_stream() -> Object {
    words(["stdout", "stderr"])
}

pub fn event_kind() -> Object {
    words([
        "created",
        "updated",
        "running",
        "terminating",
        "terminated",
        "failed",
    ])
}

/// A map of strings, such as labels.
pub fn strings() -> Object {
    ObjectBuilder::new()
        .additional_properties(Some(RefOr::from(Schema::from(Object::with_type(
            Type::String,
        )))))
        .build()
}

/// An RFC 1123 label.
pub fn name() -> Object {
    text()
        .min_length(Some(1))
        .max_length(Some(63))
        .pattern(Some("^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))
        .examples(["my-python-env"])
        .description(Some("An RFC 1123 label."))
        .build()
}

/// A container image reference.
pub fn image() -> Object {
    text()
        .min_length(Some(1))
        .max_length(Some(MAX_IMAGE_LENGTH))
        .pattern(Some("^[A-Za-z0-9]([-A-Za-z0-9._/:@+]*[A-Za-z0-9])?$"))
        .examples(["python:3.11-slim"])
        .description(Some("A container image reference."))
        .build()
}

/// A Kubernetes quantity above zero.
fn quantity(example: &str) -> Object {
    text()
        .max_length(Some(32))
        .pattern(Some(
            r"^\+?([0-9]+(\.[0-9]*)?|\.[0-9]+)([numkMGTPE]|[KMGTPE]i|[eE][+-]?[0-9]{1,2})?$",
        ))
        .examples([example])
        .description(Some("A Kubernetes quantity above zero."))
        .build()
}

pub fn cpu() -> Object {
    quantity("500m")
}

pub fn memory() -> Object {
    quantity("512Mi")
}

pub fn storage() -> Object {
    quantity("1Gi")
}

/// Seconds from `created_at`.
pub fn lifetime() -> ObjectBuilder {
    number(1, i64::try_from(MAX_TIMEOUT_S).unwrap_or(i64::MAX))
        .description(Some("Seconds from `created_at` to its end."))
}

/// A lifetime that has a default.
pub fn default_lifetime() -> ObjectBuilder {
    let default = crate::environment::DEFAULT_TIMEOUT_S;
    lifetime().default(Some(default.into()))
}

/// Kubernetes labels.
pub fn labels() -> Object {
    const NAME: &str = "[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?";
    const DOMAIN: &str = "[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?";
    let key = format!(r"^({DOMAIN}(\.{DOMAIN})*/)?{NAME}$");
    let value = text()
        .max_length(Some(63))
        .pattern(Some(format!("^({NAME})?$")));
    ObjectBuilder::new()
        .property_names(Some(Schema::from(text().pattern(Some(key)).build())))
        .additional_properties(Some(RefOr::from(Schema::from(value.build()))))
        .max_properties(Some(MAX_LABELS))
        .description(Some("Kubernetes labels."))
        .build()
}

/// Environment variables.
pub fn variables() -> Object {
    let name = text()
        .pattern(Some("^(?!AGENTBOX_BOXD_)[!-<>-~]+$"))
        .description(Some("Environment variables."))
        .build();
    ObjectBuilder::new()
        .property_names(Some(Schema::from(name)))
        .additional_properties(Some(RefOr::from(Schema::from(without_nul().build()))))
        .build()
}

/// A main command need not be given.
pub fn optional_command() -> Array {
    let mut command = command();
    command.schema_type = SchemaType::from_iter([Type::Array, Type::Null]);
    command
}

/// A program and its arguments.
pub fn command() -> Array {
    ArrayBuilder::new()
        .items(without_nul())
        .min_items(Some(1))
        .examples([serde_json::json!(["python", "-c", "print(40 + 2)"])])
        .description(Some("A program and its arguments."))
        .build()
}

fn without_nul() -> ObjectBuilder {
    text().pattern(Some(r"^[^\x00]*$"))
}

pub fn username() -> Object {
    text()
        .min_length(Some(1))
        .max_length(Some(MAX_USERNAME))
        .pattern(Some("^[A-Za-z0-9._-]+$"))
        .build()
}

pub fn email() -> Object {
    text()
        .max_length(Some(MAX_EMAIL))
        .pattern(Some(
            r"^[^@\s\x00-\x1f\x7f-\x9f]+@[^@\s\x00-\x1f\x7f-\x9f]+$",
        ))
        .examples(["user@example.com"])
        .build()
}

pub fn new_password() -> Object {
    text()
        .min_length(Some(MIN_PASSWORD))
        .max_length(Some(MAX_PASSWORD))
        .build()
}

pub fn key_description() -> Object {
    or_null(without_nul().max_length(Some(MAX_KEY_DESCRIPTION)))
}

/// Days.
pub fn key_days() -> Object {
    or_null(number(1, MAX_KEY_DAYS.into()).description(Some("Days; absent or null: never.")))
}

pub fn patched_name() -> Object {
    or_null(name())
}

pub fn patched_labels() -> Object {
    or_null(labels())
}

pub fn patched_lifetime() -> Object {
    or_null(lifetime())
}

pub fn patched_email() -> Object {
    or_null(email())
}

pub fn patched_role() -> Object {
    or_null(role())
}

pub fn patched_password() -> Object {
    or_null(new_password())
}

fn closed() -> ObjectBuilder {
    ObjectBuilder::new()
        .additional_properties(Some(AdditionalProperties::<Schema>::FreeForm(false)))
}

fn boolean(default: bool) -> ObjectBuilder {
    ObjectBuilder::new()
        .schema_type(Type::Boolean)
        .default(Some(default.into()))
}

fn number(least: i64, most: i64) -> ObjectBuilder {
    ObjectBuilder::new()
        .schema_type(Type::Integer)
        .format(Some(SchemaFormat::KnownFormat(KnownFormat::Int64)))
        .minimum(Some(least))
        .maximum(Some(most))
}

fn text() -> ObjectBuilder {
    ObjectBuilder::new().schema_type(Type::String)
}

pub fn network_policy() -> Object {
    closed()
        .description(Some(
            "Exactly what it says: an absent field is false or empty.",
        ))
        .property(
            "allow_internet",
            boolean(false).description(Some(
                "The public internet and DNS; never private ranges or the metadata address.",
            )),
        )
        .property(
            "allowed_egress_cidrs",
            ArrayBuilder::new()
                .items(
                    text()
                        .pattern(Some(r"^[0-9a-fA-F.:]+/[0-9]{1,3}$"))
                        .examples(["10.0.0.0/8"]),
                )
                .max_items(Some(64)),
        )
        .property(
            "allowed_ingress_ports",
            ArrayBuilder::new()
                .items(number(1, 65_535))
                .max_items(Some(64)),
        )
        .property(
            "allow_cluster_internal",
            boolean(false).description(Some("Other boxes of the same cluster.")),
        )
        .build()
}

pub fn security_context() -> Object {
    let id = || or_null(number(0, i64::from(i32::MAX)));
    closed()
        .property("run_as_user", id())
        .property("run_as_group", id())
        .property("run_as_non_root", or_null(boolean(false)))
        .property("read_only_root_filesystem", or_null(boolean(false)))
        .property("allow_privilege_escalation", or_null(boolean(false)))
        .build()
}

pub fn isolation() -> Object {
    let isolation = closed()
        .property(
            "runtime_class",
            or_null(
                text()
                    .max_length(Some(63))
                    .pattern(Some("^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))
                    .description(Some(
                        "A RuntimeClass or CRI runtime handler, such as gvisor.",
                    )),
            ),
        )
        .property("network_policy", or_null(network_policy()))
        .property("security_context", or_null(security_context()))
        .build();
    or_null(isolation)
}

pub fn tolerations() -> Array {
    ArrayBuilder::new()
        .items(
            closed()
                .property("key", or_null(text()))
                .property("operator", or_null(words(["Equal", "Exists"])))
                .property("value", or_null(text()))
                .property(
                    "effect",
                    or_null(words(["NoSchedule", "PreferNoSchedule", "NoExecute"])),
                )
                .property("tolerationSeconds", or_null(number(i64::MIN, i64::MAX))),
        )
        .max_items(Some(64))
        .build()
}

/// A reference to a schema of the document.
#[must_use]
pub fn reference(name: &str) -> RefOr<Schema> {
    RefOr::Ref(Ref::from_schema_name(name))
}

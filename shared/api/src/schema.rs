//! The OpenAPI form of what is defined in `agentbox-contracts`: the same words, taken from
//! the same constants, so that the document cannot list what the code does not know.

use agentbox_contracts::environment::{Status, StatusReason};
use agentbox_contracts::error::ErrorCode;
use utoipa::openapi::schema::{AdditionalProperties, ArrayBuilder, Object, ObjectBuilder, Type};
use utoipa::openapi::{KnownFormat, Ref, RefOr, Schema, SchemaFormat};

fn words(values: impl IntoIterator<Item = &'static str>) -> Object {
    ObjectBuilder::new()
        .schema_type(Type::String)
        .enum_values(Some(values))
        .build()
}

pub fn status() -> Object {
    words(Status::ALL.map(Status::as_str))
}

pub fn status_reason() -> Object {
    words(StatusReason::ALL.map(StatusReason::as_str))
}

pub fn error_word() -> Object {
    words(ErrorCode::ALL.iter().map(|code| code.word()))
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
                .items(text().examples(["10.0.0.0/8"]))
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
    let id = || number(0, i64::from(i32::MAX));
    closed()
        .property("run_as_user", id())
        .property("run_as_group", id())
        .property("run_as_non_root", boolean(false))
        .property("read_only_root_filesystem", boolean(false))
        .property("allow_privilege_escalation", boolean(false))
        .build()
}

pub fn isolation() -> Object {
    closed()
        .property(
            "runtime_class",
            text().description(Some(
                "A RuntimeClass or CRI runtime handler, such as gvisor.",
            )),
        )
        .property("network_policy", network_policy())
        .property("security_context", security_context())
        .build()
}

pub fn tolerations() -> utoipa::openapi::schema::Array {
    ArrayBuilder::new()
        .items(
            closed()
                .property("key", text())
                .property("operator", words(["Equal", "Exists"]))
                .property("value", text())
                .property(
                    "effect",
                    words(["NoSchedule", "PreferNoSchedule", "NoExecute"]),
                )
                .property("tolerationSeconds", number(i64::MIN, i64::MAX)),
        )
        .max_items(Some(64))
        .build()
}

/// A reference to a schema of the document.
#[must_use]
pub fn reference(name: &str) -> RefOr<Schema> {
    RefOr::Ref(Ref::from_schema_name(name))
}

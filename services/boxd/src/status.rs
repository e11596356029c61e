//! gRPC statuses that name an error code for callers.

use agentbox_box_protocol::ERROR_CODE_METADATA;
use agentbox_contracts::error::ErrorCode;
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::{Code, Status};

/// A status whose metadata names `error`.
#[must_use]
pub fn with_code(code: Code, error: ErrorCode, message: &str) -> Status {
    let mut metadata = MetadataMap::new();
    metadata.insert(
        ERROR_CODE_METADATA,
        MetadataValue::from_static(error.as_str()),
    );
    Status::with_metadata(code, message, metadata)
}

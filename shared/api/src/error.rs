//! The one shape of every error.

use agentbox_contracts::error::{Error, ErrorCode};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The body of every error.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({
    "error": "validation_failed",
    "message": "timeout: must be 1 to 316224000 seconds, is `0`",
    "code": 400
}))]
pub struct ErrorBody {
    /// The kind of the error, for programs.
    #[schema(value_type = ErrorCode)]
    pub error: String,
    /// The cause, for people. If a field broke a rule, it names the field, the rule and the value.
    #[schema(example = "timeout: must be 1 to 316224000 seconds, is `0`")]
    pub message: String,
    /// The HTTP status of the answer.
    #[schema(example = 400, minimum = 400, maximum = 599)]
    pub code: u16,
}

impl From<&Error> for ErrorBody {
    fn from(error: &Error) -> Self {
        Self {
            error: error.code.as_str().to_owned(),
            message: error.message.clone(),
            code: error.code.status(),
        }
    }
}

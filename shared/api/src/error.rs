//! The one shape of every error.

use agentbox_contracts::error::Error;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// `{"error": "not_found", "message": "environment not found", "code": 404}`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ErrorBody {
    /// A stable word from a closed list, for programs.
    #[schema(schema_with = crate::schema::error_word)]
    pub error: String,
    /// For people: names the field, the rule and the value where there is one.
    pub message: String,
    /// The HTTP status.
    #[schema(example = 404)]
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

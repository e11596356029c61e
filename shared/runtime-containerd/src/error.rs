//! Conversion of this machine's I/O errors.

use agentbox_runtime::RuntimeError;

pub fn io_failure(operation: &'static str, error: &std::io::Error) -> RuntimeError {
    RuntimeError::Cluster {
        operation,
        message: error.to_string(),
    }
}

//! Configures a warm box.

use tonic::Code;

use super::BoxClient;
use crate::proto::ConfigureRequest;

/// A warm box was not configured.
#[derive(Debug, thiserror::Error)]
pub enum ConfigureError {
    /// The box was configured with another request, is not warm, or boxd refuses the request.
    #[error("boxd refused the configuration: {0}")]
    Refused(String),
    /// boxd may have configured the box: the same request can be repeated.
    #[error("boxd did not answer: {0}")]
    Unanswered(String),
}

/// Configures the warm box of this client. Waits for boxd's answer without a deadline of its own.
///
/// # Errors
/// [`ConfigureError`].
pub async fn configure(
    mut client: BoxClient,
    request: ConfigureRequest,
) -> Result<(), ConfigureError> {
    let Err(status) = client.configure(request).await else {
        return Ok(());
    };
    let message = status.message().to_owned();
    Err(match status.code() {
        Code::FailedPrecondition | Code::InvalidArgument => ConfigureError::Refused(message),
        _ => ConfigureError::Unanswered(message),
    })
}

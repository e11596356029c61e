//! Configures a warm box.

use tokio::io::{AsyncRead, AsyncWrite};
use tonic::Code;

use super::{ConnectError, connect};
use crate::proto::ConfigureRequest;
use crate::token::BoxToken;

/// A warm box was not configured.
#[derive(Debug, thiserror::Error)]
pub enum ConfigureError {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The box was configured with another request, is not warm, or boxd refuses the request.
    #[error("boxd refused the configuration: {0}")]
    Refused(String),
    /// boxd may have configured the box: the same request can be repeated.
    #[error("boxd did not answer: {0}")]
    Unanswered(String),
}

/// Configures the warm box whose boxd is the other end of `stream` and has `token`. Waits for boxd's
/// answer without a deadline of its own.
///
/// # Errors
/// [`ConfigureError`].
pub async fn configure<S>(
    stream: S,
    token: &BoxToken,
    request: ConfigureRequest,
) -> Result<(), ConfigureError>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let mut client = connect(stream, token).await?;
    match client.configure(request).await {
        Ok(_) => Ok(()),
        Err(status) => {
            let message = status.message().to_owned();
            Err(match status.code() {
                Code::FailedPrecondition | Code::InvalidArgument => {
                    ConfigureError::Refused(message)
                }
                _ => ConfigureError::Unanswered(message),
            })
        }
    }
}

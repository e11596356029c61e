//! The content of files, as streams.

use std::io;
use std::time::Duration;

use agentbox_contracts::ids::EnvironmentId;
use bytes::Bytes;
use futures::TryStream;
use reqwest::{Body, Method, Response, header};
use tokio::time::timeout;

use crate::client::{environment_path, send, with_timeout};
use crate::{Client, Error};

/// The deadline of a whole upload.
const UPLOAD_TIMEOUT: Duration = Duration::from_secs(3600);
/// How long the server may send no content.
const STALL_TIMEOUT: Duration = Duration::from_secs(45);

impl Client {
    /// Stores `content`, which has `length` bytes, as the file `path`.
    ///
    /// # Errors
    /// As [`Client::login`].
    pub async fn upload<S>(
        &self,
        id: &EnvironmentId,
        path: &str,
        length: u64,
        content: S,
    ) -> Result<(), Error>
    where
        S: TryStream<Ok = Bytes, Error = io::Error> + Send + 'static,
    {
        let request = self
            .request_without_timeout(Method::PUT, &content_path(id))
            .timeout(UPLOAD_TIMEOUT)
            .query(&[("path", path)])
            .header(header::CONTENT_LENGTH, length)
            .body(Body::wrap_stream(content));
        send(request).await?;
        Ok(())
    }

    /// Opens a file, or with the media type of an archive in `accept` a directory.
    ///
    /// # Errors
    /// As [`Client::login`], before the content begins.
    pub async fn download(
        &self,
        id: &EnvironmentId,
        path: &str,
        accept: &str,
    ) -> Result<Download, Error> {
        let request = self
            .request_without_timeout(Method::GET, &content_path(id))
            .query(&[("path", path)])
            .header(header::ACCEPT, accept);
        let response = with_timeout("a download", send(request)).await??;
        Ok(Download(response))
    }
}

fn content_path(id: &EnvironmentId) -> String {
    format!("{}/files/content", environment_path(id))
}

/// The content of a file or an archive. Dropping it ends the transfer.
pub struct Download(Response);

impl Download {
    /// The next part; `None` at the end.
    ///
    /// # Errors
    /// [`Error::Transport`] when the content is not complete, [`Error::KeepaliveTimeout`].
    pub async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        let part = timeout(STALL_TIMEOUT, self.0.chunk()).await;
        Ok(part.map_err(|_| Error::KeepaliveTimeout(STALL_TIMEOUT))??)
    }
}

//! One stream, from its first byte to its last.

use std::io;

use agentbox_api::execution::{OnFull, StartExecution};
use agentbox_client::{Client, OutputItem};
use agentbox_contracts::ids::EnvironmentId;
use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use futures::stream;

/// The bytes of one stream.
pub const BYTES: u64 = 1 << 30;
/// The directory of the files, which are named by numbers.
pub const DIRECTORY: &str = "/bench";
/// The part of an upload that is sent at once.
const PART: usize = 64 * 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Upload,
    Download,
    /// The directory, which has one file.
    Archive,
    /// An execution that prints the file.
    Output,
}

impl Kind {
    pub const ALL: [Self; 4] = [Self::Upload, Self::Download, Self::Archive, Self::Output];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Upload => "upload of a file",
            Self::Download => "download of a file",
            Self::Archive => "download of a directory as tar",
            Self::Output => "output of an execution, `block`",
        }
    }
}

pub struct Transfer {
    client: Client,
    id: EnvironmentId,
    number: usize,
}

impl Transfer {
    pub const fn new(client: Client, id: EnvironmentId, number: usize) -> Self {
        Self { client, id, number }
    }

    /// # Errors
    /// When the stream fails, or does not have all of its bytes.
    pub async fn run(&self, kind: Kind) -> anyhow::Result<()> {
        match kind {
            Kind::Upload => self.upload().await,
            Kind::Download => {
                let bytes = self.download(&first_file(), "*/*").await?;
                ensure!(bytes == BYTES, "{bytes} of {BYTES} bytes");
                Ok(())
            }
            Kind::Archive => {
                let bytes = self.download(DIRECTORY, "application/x-tar").await?;
                ensure!(bytes > BYTES, "{bytes} bytes");
                Ok(())
            }
            Kind::Output => self.output().await,
        }
    }

    async fn upload(&self) -> anyhow::Result<()> {
        let part = text();
        let parts = (0..BYTES / PART as u64).map(move |_| Ok::<_, io::Error>(part.clone()));
        let path = format!("{DIRECTORY}/{}", self.number);
        self.client
            .upload(&self.id, &path, BYTES, stream::iter(parts))
            .await
            .with_context(|| format!("uploading {path}"))
    }

    async fn download(&self, path: &str, accept: &str) -> anyhow::Result<u64> {
        let mut content = self.client.download(&self.id, path, accept).await?;
        let mut bytes = 0;
        while let Some(part) = content.next().await? {
            bytes += part.len() as u64;
        }
        Ok(bytes)
    }

    async fn output(&self) -> anyhow::Result<()> {
        let body = StartExecution {
            command: vec!["cat".to_owned(), first_file()],
            on_full: OnFull::Block,
            ..StartExecution::default()
        };
        let execution = self.client.start_execution(&self.id, &body).await?;
        let mut output = self.client.follow_output(&self.id, &execution.id).await?;
        let mut bytes = 0;
        loop {
            match output.next().await? {
                Some(OutputItem::Output(piece)) => {
                    ensure!(piece.offset == bytes, "{} after {bytes}", piece.offset);
                    let text = piece.data.context("output that is not text")?;
                    bytes += text.len() as u64;
                }
                Some(OutputItem::Gap(gap)) => bail!("{} bytes are missing", gap.bytes),
                Some(OutputItem::End(ended)) => {
                    ensure!(ended.exit_code == Some(0), "{ended:?}");
                    ensure!(bytes == BYTES, "{bytes} of {BYTES} bytes");
                    return Ok(());
                }
                None => bail!("the output has no end after {bytes} bytes"),
            }
        }
    }
}

fn first_file() -> String {
    format!("{DIRECTORY}/0")
}

/// A part of the content: lines of letters, so that output is text as logs are.
fn text() -> Bytes {
    let mut state = 1u32;
    let mut letter = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        b'a' + (state >> 24) as u8 % 26
    };
    (1..=PART)
        .map(|at| if at % 64 == 0 { b'\n' } else { letter() })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_is_lines_of_letters_that_fill_a_part() {
        let part = text();
        assert_eq!(part.len(), PART);
        assert_eq!(BYTES % PART as u64, 0);
        assert!(part.ends_with(b"\n"));
        let is_line = |line: &[u8]| line.iter().all(u8::is_ascii_lowercase);
        let lines: Vec<_> = part.split(|byte| *byte == b'\n').collect();
        assert!(lines.iter().all(|line| is_line(line)));
        assert_eq!(lines.len(), PART / 64 + 1);
        assert_ne!(lines[0], lines[1]);
    }
}

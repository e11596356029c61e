//! File sessions: one operation on the files of a box.
//!
//! The gateway sends content as data and its end; the box answers as the request documents. Content
//! that ends without its end is aborted: the file is unchanged.

use agentbox_bus::Session;
use agentbox_contracts::error::Error;
use agentbox_contracts::exec::{FromBox, ToBox};
use agentbox_contracts::files::{
    FileFailure, FileInput, FileOutput, FileRequest, file_input, file_output, file_request,
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::boxes::error::{box_code, shorten_text};
use crate::boxes::{BoxError, Lease, call};
use crate::metrics;
use crate::outcome::Outcome;
use crate::relay::{self, Message, Relayed, check_chunk};

/// The limit for the entries, or the changes, of one message.
const MAX_ENTRIES: usize = 4096;

/// Serves `request` in the leased box on `session`.
pub async fn serve(
    session: Session<FromBox, ToBox>,
    lease: Lease,
    request: FileRequest,
    stopping: CancellationToken,
) -> Outcome {
    let repeatable = is_repeatable(&request);
    let files = Files::new(&request);
    let first = FileInput {
        input: Some(file_input::Input::Request(request)),
    };
    relay::serve(files, session, lease, first, repeatable, stopping).await
}

/// Whether the operation may be begun twice, before its first output. Content is sent after an
/// output, so a write that is begun twice has stored nothing.
fn is_repeatable(request: &FileRequest) -> bool {
    use file_request::Operation;
    match &request.operation {
        Some(
            Operation::Stat(_)
            | Operation::List(_)
            | Operation::Read(_)
            | Operation::Change(_)
            | Operation::Watch(_),
        ) => true,
        // One that must not replace a file may meet its own.
        Some(Operation::Write(write)) => !write.if_absent,
        Some(
            Operation::MakeDirectory(_)
            | Operation::Move(_)
            | Operation::Copy(_)
            | Operation::Delete(_),
        )
        | None => false,
    }
}

struct Files {
    /// The name of the operation, a label of the metrics.
    operation: &'static str,
    began: Instant,
}

impl Files {
    fn new(request: &FileRequest) -> Self {
        use file_request::Operation;
        let operation = match &request.operation {
            Some(Operation::Stat(_)) => "stat",
            Some(Operation::List(_)) => "list",
            Some(Operation::Read(_)) => "read",
            Some(Operation::Write(_)) => "write",
            Some(Operation::MakeDirectory(_)) => "make_directory",
            Some(Operation::Move(_)) => "move",
            Some(Operation::Copy(_)) => "copy",
            Some(Operation::Delete(_)) => "delete",
            Some(Operation::Change(_)) => "change",
            Some(Operation::Watch(_)) => "watch",
            None => "unknown",
        };
        Self {
            operation,
            began: Instant::now(),
        }
    }
}

impl Relayed for Files {
    type Method = call::Files;

    const KIND: &'static str = "files";

    fn input(message: ToBox) -> Option<FileInput> {
        let input = match message {
            ToBox::Data(bytes) => file_input::Input::Data(bytes),
            ToBox::End => file_input::Input::End(()),
            ToBox::Resize(_) | ToBox::Signal(_) | ToBox::TakeInput => return None,
        };
        Some(FileInput { input: Some(input) })
    }

    fn output(&mut self, output: FileOutput) -> Result<Message, BoxError> {
        use file_output::Output;
        let output = output
            .output
            .ok_or(BoxError::Invalid("a file output without content"))?;
        let is_last = matches!(output, Output::Done(()) | Output::Failed(_));
        let output = match output {
            Output::Data(bytes) => {
                check_chunk(Self::KIND, &bytes)?;
                Output::Data(bytes)
            }
            Output::Entries(entries) if entries.entries.len() > MAX_ENTRIES => {
                return Err(BoxError::Invalid("too many entries"));
            }
            Output::Changes(changes) if changes.changes.len() > MAX_ENTRIES => {
                return Err(BoxError::Invalid("too many changes"));
            }
            Output::Failed(failure) => Output::Failed(checked(failure)),
            other => other,
        };
        if is_last {
            let error = match &output {
                Output::Failed(failure) => box_code(&failure.code),
                _ => None,
            };
            metrics::file_operation(self.operation, error, self.began.elapsed());
        }
        let message = FromBox::File(FileOutput {
            output: Some(output),
        });
        Ok(match is_last {
            true => Message::Last(message),
            false => Message::Send(message),
        })
    }
}

/// The failure with a known code and a bounded message.
fn checked(failure: FileFailure) -> FileFailure {
    if box_code(&failure.code).is_some() {
        return FileFailure {
            code: failure.code,
            message: shorten_text(failure.message),
        };
    }
    tracing::warn!(
        code = agentbox_contracts::error::shortened(&failure.code),
        "a file operation failed with an unknown code"
    );
    let Error { code, message, .. } = Error::internal();
    FileFailure {
        code: code.as_str().to_owned(),
        message,
    }
}

#[cfg(test)]
mod tests {
    use agentbox_contracts::exec::MAX_CHUNK;
    use agentbox_contracts::files::{Delete, Entries, FileMetadata, Stat, Write};
    use bytes::Bytes;

    use super::*;

    fn output(output: file_output::Output) -> Result<Message, BoxError> {
        Files::new(&FileRequest::default()).output(FileOutput {
            output: Some(output),
        })
    }

    #[test]
    fn only_done_and_failed_end_the_session() {
        use file_output::Output;
        for (given, is_last) in [
            (Output::Data(Bytes::from_static(b"x")), false),
            (Output::Ready(()), false),
            (Output::Done(()), true),
            (
                Output::Failed(FileFailure {
                    code: "file_not_found".into(),
                    message: "/a does not exist".into(),
                }),
                true,
            ),
        ] {
            let message = FromBox::File(FileOutput {
                output: Some(given.clone()),
            });
            let expected = match is_last {
                true => Message::Last(message),
                false => Message::Send(message),
            };
            assert_eq!(output(given).unwrap(), expected);
        }
    }

    #[test]
    fn oversized_and_empty_outputs_of_a_hostile_box_are_refused() {
        use file_output::Output;
        let chunk = |length| Output::Data(Bytes::from(vec![0; length]));
        output(chunk(MAX_CHUNK)).unwrap();
        let entries = |count| {
            Output::Entries(Entries {
                entries: vec![FileMetadata::default(); count],
                ..Entries::default()
            })
        };
        output(entries(MAX_ENTRIES)).unwrap();
        for hostile in [chunk(MAX_CHUNK + 1), entries(MAX_ENTRIES + 1)] {
            let error = output(hostile).unwrap_err();
            assert!(matches!(error, BoxError::Invalid(_)), "{error}");
        }
        Files::new(&FileRequest::default())
            .output(FileOutput { output: None })
            .unwrap_err();
    }

    #[test]
    fn failure_with_an_unknown_code_is_internal_and_reveals_nothing() {
        for code in ["no_such_code", "", "unauthorized"] {
            let failure = checked(FileFailure {
                code: code.into(),
                message: "detail".into(),
            });
            assert_eq!(failure.code, "internal");
            assert!(!failure.message.contains("detail"));
        }
        let failure = checked(FileFailure {
            code: "no_space".into(),
            message: "x".repeat(1024 * 1024),
        });
        assert_eq!(
            (failure.code.as_str(), failure.message.len()),
            ("no_space", 8192)
        );
    }

    #[test]
    fn operation_that_changes_names_is_not_begun_twice() {
        use file_request::Operation;
        let write = |if_absent| {
            Operation::Write(Write {
                if_absent,
                ..Write::default()
            })
        };
        for (operation, expected) in [
            (Operation::Stat(Stat::default()), true),
            (write(false), true),
            (write(true), false),
            (Operation::Delete(Delete::default()), false),
        ] {
            let request = FileRequest {
                operation: Some(operation),
                ..FileRequest::default()
            };
            assert_eq!(is_repeatable(&request), expected, "{request:?}");
        }
    }
}

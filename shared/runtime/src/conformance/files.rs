//! The files of a box, through its boxd: the kernel decides what a user may do, and the mounts of the
//! driver are not replaced.

use std::fmt::Debug;

use agentbox_box_protocol::client::BoxClient;
use agentbox_contracts::error::ErrorCode;
use agentbox_contracts::files::file_input::Input;
use agentbox_contracts::files::file_output::Output;
use agentbox_contracts::files::file_request::Operation;
use agentbox_contracts::files::{
    Copy, Delete, FileInput, FileMetadata, FileRequest, MakeDirectory, Move, Read, Stat, Write,
};
use futures::stream;

use super::boxd::{boxd_of, failed, in_time};
use super::executions::run_as;
use super::{Subject, Violation, check};
use crate::{BoxConnector, Runtime, SecurityContext};

type Outcome = Result<(), Violation>;
/// The result of an operation, or the error code of its failure.
type Answer<T> = Result<Result<T, String>, Violation>;

/// # Errors
/// When the driver does not meet the requirement.
pub async fn files_have_the_user_of_their_operation_and_replace_no_mount<
    D: Runtime + BoxConnector,
>(
    s: &Subject<D>,
) -> Outcome {
    let spec = s.spec();
    s.run(&spec).await?;
    let boxd = boxd_of(s, &spec).await?;
    check_users(&boxd).await?;
    check_mounts(&boxd).await
}

/// Checks that root acts as itself, and as the users whom a request names.
pub(super) async fn check_users(boxd: &BoxClient) -> Outcome {
    for (user, path, ids) in [
        ("", "/tmp/own", (0, 0)),
        ("1234:5678", "/tmp/other", (1234, 5678)),
    ] {
        succeeds(path, write(boxd, user, path, atomic(), "content").await?)?;
        has_content(boxd, user, path, "content").await?;
        let found = stat(boxd, path).await?;
        check((found.uid, found.gid) == ids && found.mode == 0o644, || {
            format!("{path}: {found:?}")
        })?;
    }
    // Root replaces the content, not the owner.
    let replaced = write(boxd, "", "/tmp/other", atomic(), "replaced").await?;
    succeeds("a replacement", replaced)?;
    let found = stat(boxd, "/tmp/other").await?;
    check((found.uid, found.gid) == (1234, 5678), || {
        format!("{found:?}")
    })?;
    let secret = Write {
        mode: Some(0o600),
        ..atomic()
    };
    succeeds(
        "a secret",
        write(boxd, "", "/tmp/secret", secret, "").await?,
    )?;
    let read = read(boxd, "1234", "/tmp/secret").await?;
    fails("read", read, ErrorCode::PermissionDenied)?;
    let written = write(boxd, "1234", "/etc/new", atomic(), "").await?;
    fails("write", written, ErrorCode::PermissionDenied)?;
    let unknown = write(boxd, "no-such-user", "/tmp/own", atomic(), "").await?;
    fails("unknown user", unknown, ErrorCode::UserNotFound)?;
    let run = run_as(boxd, "1234:5678", &["sh", "-c", "id -u; id -g"]).await?;
    let output = run.as_ref().map(|(_, output)| output.as_str());
    check(output == Ok("1234\n5678\n"), || format!("{run:?}"))
}

/// Checks that the files and directories that the driver mounts into each box are written in place only.
pub(super) async fn check_mounts(boxd: &BoxClient) -> Outcome {
    for path in ["/etc/hosts", "/etc/resolv.conf", "/dev/null"] {
        let replaced = write(boxd, "", path, atomic(), "x").await?;
        fails(path, replaced, ErrorCode::NotReplaceable)?;
    }
    let in_place = Write {
        atomic: false,
        ..atomic()
    };
    let hosts = "127.0.0.1 localhost written\n";
    let written = write(boxd, "", "/etc/hosts", in_place, hosts).await?;
    succeeds("/etc/hosts in place", written)?;
    has_content(boxd, "", "/etc/hosts", hosts).await?;
    let shared = write(boxd, "", "/dev/shm/file", atomic(), "shared").await?;
    succeeds("/dev/shm", shared)?;
    for path in ["/etc/hosts", "/dev/shm"] {
        fails(path, delete(boxd, path).await?, ErrorCode::Busy)?;
    }
    has_content(boxd, "", "/dev/shm/file", "shared").await
}

/// # Errors
/// When the driver does not meet the requirement.
pub async fn box_without_root_acts_as_no_other_user_and_writes_to_volumes_only<
    D: Runtime + BoxConnector,
>(
    s: &Subject<D>,
) -> Outcome {
    let mut spec = s.spec();
    spec.isolation.security_context = Some(SecurityContext {
        run_as_user: Some(1234),
        run_as_group: Some(4321),
        run_as_non_root: Some(true),
        read_only_root_filesystem: Some(true),
        ..Default::default()
    });
    s.run(&spec).await?;
    let boxd = boxd_of(s, &spec).await?;
    for user in ["", "1234", "1234:4321"] {
        let written = write(&boxd, user, "/tmp/file", atomic(), "content").await?;
        succeeds(user, written)?;
        has_content(&boxd, user, "/tmp/file", "content").await?;
    }
    let found = stat(&boxd, "/tmp/file").await?;
    check((found.uid, found.gid) == (1234, 4321), || {
        format!("{found:?}")
    })?;
    for user in ["0", "root", "1000", "1234:0"] {
        let written = write(&boxd, user, "/tmp/file", atomic(), "").await?;
        fails(user, written, ErrorCode::UserNotAllowed)?;
        let run = run_as(&boxd, user, &["true"]).await?;
        fails(user, run, ErrorCode::UserNotAllowed)?;
    }
    let written = write(&boxd, "", "/file", atomic(), "").await?;
    fails("write to /", written, ErrorCode::ReadOnlyFilesystem)?;
    let make = Operation::MakeDirectory(MakeDirectory::default());
    let made = perform(&boxd, "", "/directory", make, None).await?;
    fails("a new directory", made, ErrorCode::ReadOnlyFilesystem)?;
    fails("/tmp", delete(&boxd, "/tmp").await?, ErrorCode::Busy)?;
    // The two volumes are file systems of their own.
    let to = "/dev/shm/file";
    let relocate = Operation::Move(Move {
        to: to.into(),
        overwrite: false,
    });
    let moved = perform(&boxd, "", "/tmp/file", relocate, None).await?;
    fails("move", moved, ErrorCode::CrossDevice)?;
    let copy = Operation::Copy(Copy {
        to: to.into(),
        ..Default::default()
    });
    succeeds("copy", perform(&boxd, "", "/tmp/file", copy, None).await?)?;
    has_content(&boxd, "", to, "content").await
}

/// An atomic write that creates missing directories.
pub(super) fn atomic() -> Write {
    Write {
        parents: true,
        atomic: true,
        ..Default::default()
    }
}

/// Performs an operation; returns its outputs before the last one.
pub(super) async fn perform(
    boxd: &BoxClient,
    user: &str,
    path: &str,
    operation: Operation,
    content: Option<&str>,
) -> Answer<Vec<Output>> {
    let mut inputs = vec![Input::Request(FileRequest {
        path: path.to_owned().into(),
        user: user.to_owned(),
        operation: Some(operation),
    })];
    if let Some(content) = content {
        inputs.push(Input::Data(content.to_owned().into()));
        inputs.push(Input::End(()));
    }
    let inputs: Vec<FileInput> = inputs
        .into_iter()
        .map(|input| FileInput { input: Some(input) })
        .collect();
    in_time(async {
        let opened = boxd.clone().files(stream::iter(inputs)).await;
        let mut outputs = opened.map_err(failed)?.into_inner();
        let mut answers = Vec::new();
        while let Some(message) = outputs.message().await.map_err(failed)? {
            match message.output {
                Some(Output::Done(())) => return Ok(Ok(answers)),
                Some(Output::Failed(failure)) => return Ok(Err(failure.code)),
                Some(output) => answers.push(output),
                None => return Err(failed("an output message is empty")),
            }
        }
        Err(failed(format!("{path}: the operation has no end")))
    })
    .await
}

/// Writes a file of at most one chunk.
pub(super) async fn write(
    boxd: &BoxClient,
    user: &str,
    path: &str,
    request: Write,
    content: &str,
) -> Answer<Vec<Output>> {
    perform(boxd, user, path, Operation::Write(request), Some(content)).await
}

async fn read(boxd: &BoxClient, user: &str, path: &str) -> Answer<Vec<u8>> {
    read_as(boxd, user, path, Read::default()).await
}

/// Deletes a file, or a directory with its content.
async fn delete(boxd: &BoxClient, path: &str) -> Answer<Vec<Output>> {
    let operation = Operation::Delete(Delete { recursive: true });
    perform(boxd, "", path, operation, None).await
}

/// Reads a file, or a directory as a tar stream.
pub(super) async fn read_as(
    boxd: &BoxClient,
    user: &str,
    path: &str,
    request: Read,
) -> Answer<Vec<u8>> {
    let outputs = perform(boxd, user, path, Operation::Read(request), None).await?;
    Ok(outputs.map(|outputs| {
        let mut content = Vec::new();
        for output in outputs {
            if let Output::Data(data) = output {
                content.extend_from_slice(&data);
            }
        }
        content
    }))
}

pub(super) async fn stat(boxd: &BoxClient, path: &str) -> Result<FileMetadata, Violation> {
    let operation = Operation::Stat(Stat { follow: false });
    let outputs = perform(boxd, "", path, operation, None).await?;
    match outputs.as_deref() {
        Ok([Output::Metadata(metadata)]) => Ok(metadata.clone()),
        other => Err(failed(format!("{path}: {other:?}"))),
    }
}

/// # Errors
/// When the file has other content, or cannot be read by the user.
async fn has_content(boxd: &BoxClient, user: &str, path: &str, expected: &str) -> Outcome {
    let content = read(boxd, user, path).await?;
    let is_expected = content.as_deref() == Ok(expected.as_bytes());
    check(is_expected, || {
        format!("{path}, expected {expected:?}: {content:?}")
    })
}

pub(super) fn succeeds<T: Debug>(what: &str, answer: Result<T, String>) -> Outcome {
    check(answer.is_ok(), || format!("{what}: {answer:?}"))
}

fn fails<T: Debug>(what: &str, answer: Result<T, String>, code: ErrorCode) -> Outcome {
    let expected = code.as_str();
    let is_expected = matches!(&answer, Err(found) if found == expected);
    check(is_expected, || {
        format!("{what}, expected {expected}: {answer:?}")
    })
}

//! Changes of files without content: create a directory, move, copy, change, delete.

use agentbox_api::file::{
    CopyFile, CreateDirectory, DeleteFileQuery, FileInfo, FileQuery, MoveFile, PatchFile,
};
use agentbox_contracts::audit::AuditAction;
use agentbox_contracts::error::Error;
use agentbox_contracts::files::file_output::Output;
use agentbox_contracts::files::file_request::Operation;
use agentbox_contracts::files::{self, Change, Delete, MakeDirectory, Move};
use agentbox_contracts::identity::Principal;
use axum::extract::State;
use axum::http::StatusCode;
use bytes::Bytes;

use super::metadata;
use super::operation::{perform, unexpected};
use super::path::{self, FilePath};
use crate::audit;
use crate::edge::admit::{Admitted, Caller};
use crate::edge::path::EnvironmentParameter;
use crate::edge::{Answer, Json, Query};
use crate::lookup::EnvironmentLocation;
use crate::memory::SessionKind;
use crate::state::Gateway;

/// Records a change, and makes it.
async fn change(
    gateway: &Gateway,
    principal: &Principal,
    location: EnvironmentLocation,
    path: Bytes,
    user: String,
    operation: Operation,
) -> Result<Option<Output>, Error> {
    let location = location.require_running()?;
    // A request beyond a limit has no entry in the audit trail.
    let _share = gateway.begin_session(principal, SessionKind::Files)?;
    audit::accept(gateway, AuditAction::ChangeFiles, &location.id, &[]).await?;
    perform(gateway, &location, path, user, operation).await
}

/// Create a directory
///
/// Creates a directory, and its missing parents unless `parents` is false. A directory that exists
/// stays as it is.
#[utoipa::path(post, operation_id = "createDirectory", path = "/environments/{id}/files/directories", tag = "files",
    params(EnvironmentParameter), request_body = CreateDirectory,
    responses((status = 201, description = "The directory is created."),
        (status = 200, description = "The directory exists.")))]
pub(crate) async fn create_directory(
    State(gateway): State<Gateway>,
    Caller(principal): Caller,
    Admitted(location): Admitted,
    Json(body): Json<CreateDirectory>,
) -> Answer<StatusCode> {
    let path = path::of_body("path", body.path.as_deref(), body.path_base64.as_deref())?;
    let operation = Operation::MakeDirectory(MakeDirectory {
        mode: metadata::mode(body.mode.as_deref())?,
        parents: body.parents,
    });
    let user = metadata::user("user", body.user)?;
    match change(&gateway, &principal, location, path, user, operation).await? {
        Some(Output::Stored(stored)) if stored.created => Ok(StatusCode::CREATED),
        Some(Output::Stored(_)) => Ok(StatusCode::OK),
        _ => Err(unexpected().into()),
    }
}

/// Move a file or a directory
///
/// Renames a file, a directory or a symbolic link (not its target). Both paths must be on one file
/// system.
#[utoipa::path(post, operation_id = "moveFile", path = "/environments/{id}/files/move", tag = "files",
    params(EnvironmentParameter), request_body = MoveFile,
    responses((status = 204, description = "The file is moved.")))]
pub(crate) async fn move_file(
    State(gateway): State<Gateway>,
    Caller(principal): Caller,
    Admitted(location): Admitted,
    Json(body): Json<MoveFile>,
) -> Answer<StatusCode> {
    let from = path::of_body("from", body.from.as_deref(), body.from_base64.as_deref())?;
    let to = path::of_body("to", body.to.as_deref(), body.to_base64.as_deref())?;
    let operation = Operation::Move(Move {
        to,
        overwrite: body.overwrite,
    });
    let user = String::new();
    change(&gateway, &principal, location, from, user, operation).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Copy a file or a directory
///
/// Copies a file, a symbolic link (not its target), or with `recursive` a directory. The mode is kept.
/// An operation that takes longer than 60 seconds is refused with 504.
#[utoipa::path(post, operation_id = "copyFile", path = "/environments/{id}/files/copy", tag = "files",
    params(EnvironmentParameter), request_body = CopyFile,
    responses((status = 204, description = "The file is copied.")))]
pub(crate) async fn copy_file(
    State(gateway): State<Gateway>,
    Caller(principal): Caller,
    Admitted(location): Admitted,
    Json(body): Json<CopyFile>,
) -> Answer<StatusCode> {
    let from = path::of_body("from", body.from.as_deref(), body.from_base64.as_deref())?;
    let to = path::of_body("to", body.to.as_deref(), body.to_base64.as_deref())?;
    let operation = Operation::Copy(files::Copy {
        to,
        overwrite: body.overwrite,
        recursive: body.recursive,
    });
    let user = String::new();
    change(&gateway, &principal, location, from, user, operation).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// The change in the box.
fn patched(body: PatchFile) -> Result<Change, Error> {
    if body.mode.is_none() && body.owner.is_none() && body.group.is_none() {
        return Err(Error::field(
            "body",
            "must have at least one of mode, owner and group, has none",
        ));
    }
    Ok(Change {
        mode: metadata::mode(body.mode.as_deref())?,
        owner: metadata::user("owner", body.owner)?,
        group: metadata::user("group", body.group)?,
    })
}

/// Change the mode or the owner of a file
///
/// Changes the permission bits, the owner or the group of a file or a directory. Symbolic links are
/// followed.
#[utoipa::path(patch, operation_id = "patchFile", path = "/environments/{id}/files", tag = "files",
    params(EnvironmentParameter, FileQuery), request_body = PatchFile,
    responses((status = 200, description = "The metadata after the change.", body = FileInfo)))]
pub(crate) async fn patch(
    State(gateway): State<Gateway>,
    Caller(principal): Caller,
    Admitted(location): Admitted,
    Query(_query): Query<FileQuery>,
    FilePath(path): FilePath,
    Json(body): Json<PatchFile>,
) -> Answer<axum::Json<FileInfo>> {
    let operation = Operation::Change(patched(body)?);
    let user = String::new();
    match change(&gateway, &principal, location, path, user, operation).await? {
        Some(Output::Metadata(metadata)) => Ok(axum::Json(metadata::info(&metadata))),
        _ => Err(unexpected().into()),
    }
}

/// Delete a file or a directory
///
/// Deletes a file, a symbolic link (not its target), an empty directory, or with `recursive=true` a
/// directory with all that it has.
#[utoipa::path(delete, operation_id = "deleteFile", path = "/environments/{id}/files", tag = "files",
    params(EnvironmentParameter, DeleteFileQuery),
    responses((status = 204, description = "The file is deleted.")))]
pub(crate) async fn delete(
    State(gateway): State<Gateway>,
    Caller(principal): Caller,
    Admitted(location): Admitted,
    Query(query): Query<DeleteFileQuery>,
    FilePath(path): FilePath,
) -> Answer<StatusCode> {
    let operation = Operation::Delete(Delete {
        recursive: query.recursive,
    });
    let user = String::new();
    change(&gateway, &principal, location, path, user, operation).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patch_without_a_field_is_refused() {
        let error = patched(PatchFile::default()).unwrap_err();
        assert!(error.message.starts_with("body: "), "{error}");
        let body = PatchFile {
            mode: Some("4755".to_owned()),
            ..PatchFile::default()
        };
        let expected = Change {
            mode: Some(0o4755),
            ..Change::default()
        };
        assert_eq!(patched(body), Ok(expected));
        let body = PatchFile {
            group: Some(String::new()),
            ..PatchFile::default()
        };
        let error = patched(body).unwrap_err();
        assert!(error.message.starts_with("group: "), "{error}");
    }
}

//! The files of an environment.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

/// The type of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = "file")]
#[serde(rename_all = "lowercase")]
pub enum FileType {
    File,
    Directory,
    Symlink,
    /// A device, a FIFO or a socket.
    Other,
}

/// A file or a directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({
    "path": "/work/result.csv",
    "name": "result.csv",
    "type": "file",
    "size": 4096,
    "mode": "0644",
    "uid": 0,
    "gid": 0,
    "owner": "root",
    "group": "root",
    "modified_at": "2026-01-22T10:00:02.125Z"
}))]
pub struct FileInfo {
    /// The absolute path. Bytes that are not UTF-8 become U+FFFD.
    #[schema(example = "/work/result.csv")]
    pub path: String,
    /// The path in base64 (RFC 4648). Absent if `path` is exact.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "L3dvcmsvcmVzdWx0/w==")]
    pub path_base64: Option<String>,
    /// The last part of the path. Bytes that are not UTF-8 become U+FFFD.
    #[schema(example = "result.csv")]
    pub name: String,
    /// The name in base64 (RFC 4648). Absent if `name` is exact.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "cmVzdWx0/w==")]
    pub name_base64: Option<String>,
    /// The type of the file. `symlink` is a link that was not followed.
    #[serde(rename = "type")]
    pub file_type: FileType,
    /// The size in bytes. Some files that have content, as those in `/proc`, have the size 0.
    #[schema(example = 4096)]
    pub size: u64,
    /// The permission bits, as four octal digits.
    #[schema(example = "0644", pattern = "^[0-7]{4}$")]
    pub mode: String,
    /// The number of the owner.
    #[schema(example = 0)]
    pub uid: u32,
    /// The number of the group.
    #[schema(example = 0)]
    pub gid: u32,
    /// The name of the owner. Absent if the environment's `/etc/passwd` does not have it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "root")]
    pub owner: Option<String>,
    /// The name of the group. Absent if the environment's `/etc/group` does not have it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "root")]
    pub group: Option<String>,
    /// When the content was changed last (RFC 3339, UTC).
    #[schema(example = "2026-01-22T10:00:02.125Z")]
    pub modified_at: DateTime<Utc>,
    /// The target of a symbolic link that was not followed. Bytes that are not UTF-8 become U+FFFD.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "/work/result.csv")]
    pub target: Option<String>,
    /// The target in base64 (RFC 4648). Absent if `target` is exact.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "L3dvcmsvcmVzdWx0/w==")]
    pub target_base64: Option<String>,
}

/// A file, or one page of a directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({
    "path": "/work",
    "name": "work",
    "type": "directory",
    "size": 4096,
    "mode": "0755",
    "uid": 0,
    "gid": 0,
    "owner": "root",
    "group": "root",
    "modified_at": "2026-01-22T10:00:02.125Z",
    "entries": [{
        "path": "/work/result.csv",
        "name": "result.csv",
        "type": "file",
        "size": 4096,
        "mode": "0644",
        "uid": 0,
        "gid": 0,
        "owner": "root",
        "group": "root",
        "modified_at": "2026-01-22T10:00:02.125Z"
    }],
    "next_cursor": "cmVzdWx0LmNzdg"
}))]
pub struct FileReply {
    #[serde(flatten)]
    pub file: FileInfo,
    /// The entries of a directory on this page, each with its path. Absent for anything else, and with
    /// `depth=0`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = json!([{
        "path": "/work/result.csv",
        "name": "result.csv",
        "type": "file",
        "size": 4096,
        "mode": "0644",
        "uid": 0,
        "gid": 0,
        "modified_at": "2026-01-22T10:00:02.125Z"
    }]))]
    pub entries: Option<Vec<FileInfo>>,
    /// The `cursor` of the next page. Absent on the last page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "cmVzdWx0LmNzdg")]
    pub next_cursor: Option<String>,
}

const fn one() -> u32 {
    1
}

const fn yes() -> bool {
    true
}

/// Which file, and how much of a directory.
#[derive(Clone, Debug, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct FilesQuery {
    /// The absolute path, at most 4095 bytes, percent-encoded. It need not be UTF-8.
    #[param(example = "/work")]
    pub path: String,
    /// How many levels of a directory to list, 0 to 64. Default: 1.
    #[serde(default = "one")]
    #[param(minimum = 0, maximum = 64, default = 1, example = 1)]
    pub depth: u32,
    /// Describe the target of a symbolic link instead of the link. Default: false.
    #[serde(default)]
    #[param(default = false, example = false)]
    pub follow: bool,
    /// The largest number of entries to return, 1 to 1000. Default: 100.
    #[serde(default)]
    #[param(minimum = 1, maximum = 1000, default = 100, example = 50)]
    pub limit: Option<u32>,
    /// The `next_cursor` of the page before. Default: the first page. An entry that is created or
    /// deleted meanwhile may be listed or not; no other entry is listed twice or left out.
    #[serde(default)]
    #[param(example = "cmVzdWx0LmNzdg")]
    pub cursor: Option<String>,
}

/// Which file.
#[derive(Clone, Debug, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct FileQuery {
    /// The absolute path, at most 4095 bytes, percent-encoded. It need not be UTF-8.
    #[param(example = "/work/result.csv")]
    pub path: String,
}

/// Which file to delete.
#[derive(Clone, Debug, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct DeleteFileQuery {
    /// The absolute path, at most 4095 bytes, percent-encoded. It need not be UTF-8.
    #[param(example = "/work/result.csv")]
    pub path: String,
    /// Delete a directory with all that it has. Default: false, only an empty one.
    #[serde(default)]
    #[param(default = false, example = false)]
    pub recursive: bool,
}

/// Which file to download.
#[derive(Clone, Debug, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct DownloadQuery {
    /// The absolute path, at most 4095 bytes, percent-encoded. It need not be UTF-8.
    #[param(example = "/work/result.csv")]
    pub path: String,
    /// A single-use ticket for `file_download` of this path, instead of an Authorization header.
    #[serde(default)]
    #[param(example = "ticket_0123456789abcdef0123456789abcdef")]
    pub ticket: Option<String>,
}

/// Where and how to store an upload.
#[derive(Clone, Debug, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct UploadQuery {
    /// The absolute path, at most 4095 bytes, percent-encoded. It need not be UTF-8. For an archive:
    /// the directory to unpack it into.
    #[param(example = "/work/result.csv")]
    pub path: String,
    /// The permission bits, as octal digits. Default: those of the replaced file, else `0644`.
    #[serde(default)]
    #[param(example = "0644", pattern = "^0?[0-7]{1,4}$")]
    pub mode: Option<String>,
    /// The user in the environment who writes the file: `name`, `uid`, `name:group` or `uid:gid`.
    /// Default: the environment's user.
    #[serde(default)]
    #[param(example = "1000:1000")]
    pub user: Option<String>,
    /// Create missing parent directories. Default: true.
    #[serde(default = "yes")]
    #[param(default = true, example = true)]
    pub parents: bool,
    /// Write a temporary file beside the target, then rename it. With false the target is truncated and
    /// written in place. Default: true.
    #[serde(default = "yes")]
    #[param(default = true, example = true)]
    pub atomic: bool,
    /// A single-use ticket for `file_upload` of this path, instead of an Authorization header.
    #[serde(default)]
    #[param(example = "ticket_0123456789abcdef0123456789abcdef")]
    pub ticket: Option<String>,
}

/// Which changes to follow.
#[derive(Clone, Debug, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct WatchQuery {
    /// The absolute path of a file or a directory, at most 4095 bytes, percent-encoded. It need not be
    /// UTF-8.
    #[param(example = "/work")]
    pub path: String,
    /// Follow the changes in all directories below, too. Default: false.
    #[serde(default)]
    #[param(default = false, example = false)]
    pub recursive: bool,
}

/// A directory to create.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"path": "/work/results/today", "mode": "0755", "parents": true}))]
#[serde(deny_unknown_fields)]
pub struct CreateDirectory {
    /// The absolute path, at most 4095 bytes. Required, or `path_base64`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "/work/results/today")]
    pub path: Option<String>,
    /// Instead of `path`, in base64 (RFC 4648): a path that is not UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "L3dvcmsvcmVzdWx0/w==")]
    pub path_base64: Option<String>,
    /// The permission bits, as octal digits. Default: `0755`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "0755", pattern = "^0?[0-7]{1,4}$")]
    pub mode: Option<String>,
    /// Create missing parent directories. Default: true.
    #[serde(default = "yes")]
    #[schema(default = true, example = true)]
    pub parents: bool,
    /// The user in the environment who creates the directory: `name`, `uid`, `name:group` or
    /// `uid:gid`. Default: the environment's user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "1000:1000")]
    pub user: Option<String>,
}

/// A file, a directory or a symbolic link to move.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"from": "/work/draft.txt", "to": "/work/final.txt", "overwrite": true}))]
#[serde(deny_unknown_fields)]
pub struct MoveFile {
    /// The absolute path until now, at most 4095 bytes. Required, or `from_base64`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "/work/draft.txt")]
    pub from: Option<String>,
    /// Instead of `from`, in base64 (RFC 4648): a path that is not UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "L3dvcmsvcmVzdWx0/w==")]
    pub from_base64: Option<String>,
    /// The absolute path from now on, at most 4095 bytes. Required, or `to_base64`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "/work/final.txt")]
    pub to: Option<String>,
    /// Instead of `to`, in base64 (RFC 4648): a path that is not UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "L3dvcmsvcmVzdWx0/w==")]
    pub to_base64: Option<String>,
    /// Replace what is at `to`. Default: false, an existing file is refused with 409.
    #[serde(default)]
    #[schema(default = false, example = true)]
    pub overwrite: bool,
}

/// A file, a directory or a symbolic link to copy.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"from": "/work/results", "to": "/work/backup", "recursive": true}))]
#[serde(deny_unknown_fields)]
pub struct CopyFile {
    /// The absolute path of the original, at most 4095 bytes. Required, or `from_base64`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "/work/results")]
    pub from: Option<String>,
    /// Instead of `from`, in base64 (RFC 4648): a path that is not UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "L3dvcmsvcmVzdWx0/w==")]
    pub from_base64: Option<String>,
    /// The absolute path of the copy, at most 4095 bytes. Required, or `to_base64`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "/work/backup")]
    pub to: Option<String>,
    /// Instead of `to`, in base64 (RFC 4648): a path that is not UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "L3dvcmsvcmVzdWx0/w==")]
    pub to_base64: Option<String>,
    /// Replace what is at `to`. Default: false, an existing file is refused with 409.
    #[serde(default)]
    #[schema(default = false, example = false)]
    pub overwrite: bool,
    /// Copy a directory with all that it has. Default: false, a directory is refused with 409.
    #[serde(default)]
    #[schema(default = false, example = true)]
    pub recursive: bool,
}

/// The fields of a file to change. An absent or null field stays as it is. At least one is required.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"mode": "0755"}))]
#[serde(deny_unknown_fields)]
pub struct PatchFile {
    /// The new permission bits, as octal digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "0755", pattern = "^0?[0-7]{1,4}$")]
    pub mode: Option<String>,
    /// The new owner: a name or a uid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "nobody", min_length = 1, max_length = 256)]
    pub owner: Option<String>,
    /// The new group: a name or a gid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "nogroup", min_length = 1, max_length = 256)]
    pub group: Option<String>,
}

/// The data of an event of a followed file or directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"path": "/work/final.txt", "from": "/work/draft.txt"}))]
pub struct FileChange {
    /// The absolute path. Bytes that are not UTF-8 become U+FFFD.
    #[schema(example = "/work/final.txt")]
    pub path: String,
    /// The path in base64 (RFC 4648). Absent if `path` is exact.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "L3dvcmsvcmVzdWx0/w==")]
    pub path_base64: Option<String>,
    /// With `moved`: the path before. Absent if it was outside of what is followed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "/work/draft.txt")]
    pub from: Option<String>,
    /// The path before, in base64 (RFC 4648). Absent if `from` is exact.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "L3dvcmsvcmVzdWx0/w==")]
    pub from_base64: Option<String>,
}

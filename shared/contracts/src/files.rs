//! File operations in a box: the messages between api-gateway, exec-proxy, boxd and boxd's file
//! process. The same protobuf messages travel the whole way.
//!
//! One [`FileRequest`] opens an operation. An operation that takes content (a write, an unpacking) is
//! then sent [`FileInput`] data and their end. The answers are [`FileOutput`] messages, in the order
//! that the request documents; the last one is `done` or `failed`.
//!
//! * I1. Paths and content are bytes: a name need not be UTF-8.
//! * I2. A field number keeps its meaning: both ends may be of different versions.
//! * I3. The box evaluates conditions and ranges on the file that it has opened, so no change of the
//!   file can come between the check and the transfer.

use bytes::Bytes;

/// What the caller sends for one operation.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct FileInput {
    #[prost(oneof = "file_input::Input", tags = "1, 2, 3")]
    pub input: Option<file_input::Input>,
}

pub mod file_input {
    #[derive(Clone, PartialEq, Eq, prost::Oneof)]
    pub enum Input {
        /// The first input, once.
        #[prost(message, tag = "1")]
        Request(super::FileRequest),
        /// Content, at most [`crate::exec::MAX_CHUNK`] bytes.
        #[prost(bytes = "bytes", tag = "2")]
        Data(bytes::Bytes),
        /// The content is complete. Input that ends without it was aborted.
        #[prost(message, tag = "3")]
        End(()),
    }
}

/// One operation on one path.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct FileRequest {
    /// Absolute, without NUL, at most 4095 bytes.
    #[prost(bytes = "bytes", tag = "1")]
    pub path: Bytes,
    /// The user who performs the operation, as `name`, `uid`, `name:group`, `uid:gid`. Empty: the
    /// box's user.
    #[prost(string, tag = "2")]
    pub user: String,
    #[prost(
        oneof = "file_request::Operation",
        tags = "10, 11, 12, 13, 14, 15, 16, 17, 18, 19"
    )]
    pub operation: Option<file_request::Operation>,
}

pub mod file_request {
    #[derive(Clone, PartialEq, Eq, prost::Oneof)]
    pub enum Operation {
        /// Answers `metadata`.
        #[prost(message, tag = "10")]
        Stat(super::Stat),
        /// Answers `metadata` of the directory, then `entries`, as many as are needed.
        #[prost(message, tag = "11")]
        List(super::List),
        /// Answers `opened`, then `data`.
        #[prost(message, tag = "12")]
        Read(super::Read),
        /// Takes content. Answers `ready` when the conditions hold and content may be sent, then
        /// `stored`.
        #[prost(message, tag = "13")]
        Write(super::Write),
        /// Answers `stored`.
        #[prost(message, tag = "14")]
        MakeDirectory(super::MakeDirectory),
        /// Answers nothing before `done`.
        #[prost(message, tag = "15")]
        Move(super::Move),
        /// Answers nothing before `done`.
        #[prost(message, tag = "16")]
        Copy(super::Copy),
        /// Answers `metadata`.
        #[prost(message, tag = "17")]
        Change(super::Change),
        /// Answers nothing before `done`.
        #[prost(message, tag = "18")]
        Delete(super::Delete),
        /// Answers `ready` once changes are noticed, then `changes`, until the caller ends the
        /// operation.
        #[prost(message, tag = "19")]
        Watch(super::Watch),
    }
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Stat {
    /// Describe the target of a symbolic link instead of the link.
    #[prost(bool, tag = "1")]
    pub follow: bool,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct List {
    #[prost(bool, tag = "1")]
    pub follow: bool,
    /// Levels below the directory, at least 1.
    #[prost(uint32, tag = "2")]
    pub depth: u32,
    /// The most entries to answer.
    #[prost(uint32, tag = "3")]
    pub limit: u32,
    /// The `next_cursor` of the page before. Empty: the first page.
    #[prost(bytes = "bytes", tag = "4")]
    pub cursor: Bytes,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Read {
    /// Only the metadata and the conditions, no content.
    #[prost(bool, tag = "1")]
    pub head: bool,
    #[prost(message, optional, tag = "2")]
    pub range: Option<ByteRange>,
    /// Ignore the range unless the file has this ETag, or (`If-Range` with a date) this time of its
    /// last change as an HTTP date. Empty: no condition.
    #[prost(string, tag = "3")]
    pub if_range: String,
    /// ETags, with quotes; `*` matches each file. A match answers `opened` with `not_modified`.
    #[prost(string, repeated, tag = "4")]
    pub if_none_match: Vec<String>,
    /// For a directory: the form of the tar stream. `None`: a directory is an error.
    #[prost(enumeration = "Archive", tag = "5")]
    pub archive: i32,
}

/// A part of a file. Without `first`: the last `last` bytes.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct ByteRange {
    #[prost(uint64, optional, tag = "1")]
    pub first: Option<u64>,
    /// The offset of the last byte, inclusive. Absent: to the end.
    #[prost(uint64, optional, tag = "2")]
    pub last: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum Archive {
    /// The content is the file's bytes.
    None = 0,
    Tar = 1,
    TarGzip = 2,
    TarZstd = 3,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Write {
    /// Permission bits, at most 0o7777. Absent: those of the replaced file, else 0o644.
    #[prost(uint32, optional, tag = "1")]
    pub mode: Option<u32>,
    /// Create missing parent directories.
    #[prost(bool, tag = "2")]
    pub parents: bool,
    /// Write a temporary file, then rename it.
    #[prost(bool, tag = "3")]
    pub atomic: bool,
    /// ETags, with quotes; `*` matches each existing file. Empty: no condition.
    #[prost(string, repeated, tag = "4")]
    pub if_match: Vec<String>,
    /// Fail if the file exists (`If-None-Match: *`).
    #[prost(bool, tag = "5")]
    pub if_absent: bool,
    /// RFC 9530; every one is verified.
    #[prost(message, repeated, tag = "6")]
    pub digests: Vec<ContentDigest>,
    /// The length of the content, if it is known: room for it is checked first.
    #[prost(uint64, optional, tag = "7")]
    pub length: Option<u64>,
    /// Not `None`: the content is unpacked into the directory `path`.
    #[prost(enumeration = "Archive", tag = "8")]
    pub archive: i32,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct ContentDigest {
    #[prost(enumeration = "DigestAlgorithm", tag = "1")]
    pub algorithm: i32,
    #[prost(bytes = "bytes", tag = "2")]
    pub value: Bytes,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum DigestAlgorithm {
    Sha256 = 0,
    Sha512 = 1,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct MakeDirectory {
    #[prost(uint32, optional, tag = "1")]
    pub mode: Option<u32>,
    #[prost(bool, tag = "2")]
    pub parents: bool,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Move {
    #[prost(bytes = "bytes", tag = "1")]
    pub to: Bytes,
    #[prost(bool, tag = "2")]
    pub overwrite: bool,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Copy {
    #[prost(bytes = "bytes", tag = "1")]
    pub to: Bytes,
    #[prost(bool, tag = "2")]
    pub overwrite: bool,
    #[prost(bool, tag = "3")]
    pub recursive: bool,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Change {
    #[prost(uint32, optional, tag = "1")]
    pub mode: Option<u32>,
    /// A name or a uid. Empty: unchanged.
    #[prost(string, tag = "2")]
    pub owner: String,
    /// A name or a gid. Empty: unchanged.
    #[prost(string, tag = "3")]
    pub group: String,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Delete {
    #[prost(bool, tag = "1")]
    pub recursive: bool,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Watch {
    #[prost(bool, tag = "1")]
    pub recursive: bool,
    /// A client that reconnects: the id of the last change that it has. boxd keeps none, so the first
    /// change is an overflow.
    #[prost(string, tag = "2")]
    pub after: String,
}

/// What the box answers.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct FileOutput {
    #[prost(oneof = "file_output::Output", tags = "1, 2, 3, 4, 5, 6, 7, 8, 9")]
    pub output: Option<file_output::Output>,
}

pub mod file_output {
    #[derive(Clone, PartialEq, Eq, prost::Oneof)]
    pub enum Output {
        #[prost(message, tag = "1")]
        Metadata(super::FileMetadata),
        #[prost(message, tag = "2")]
        Entries(super::Entries),
        #[prost(message, tag = "3")]
        Opened(super::Opened),
        /// Content, at most [`crate::exec::MAX_CHUNK`] bytes.
        #[prost(bytes = "bytes", tag = "4")]
        Data(bytes::Bytes),
        #[prost(message, tag = "5")]
        Ready(()),
        #[prost(message, tag = "6")]
        Stored(super::Stored),
        #[prost(message, tag = "7")]
        Changes(super::Changes),
        /// The operation has succeeded; the last output.
        #[prost(message, tag = "8")]
        Done(()),
        /// The operation has failed; the last output.
        #[prost(message, tag = "9")]
        Failed(super::FileFailure),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum FileType {
    Other = 0,
    File = 1,
    Directory = 2,
    Symlink = 3,
}

/// A file as `lstat(2)` or `stat(2)` describes it.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct FileMetadata {
    /// Absolute.
    #[prost(bytes = "bytes", tag = "1")]
    pub path: Bytes,
    #[prost(enumeration = "FileType", tag = "2")]
    pub file_type: i32,
    /// Bytes.
    #[prost(uint64, tag = "3")]
    pub size: u64,
    /// Permission bits, at most 0o7777.
    #[prost(uint32, tag = "4")]
    pub mode: u32,
    #[prost(uint32, tag = "5")]
    pub uid: u32,
    #[prost(uint32, tag = "6")]
    pub gid: u32,
    /// From the box's `/etc/passwd`; empty when it does not name the uid.
    #[prost(string, tag = "7")]
    pub owner: String,
    #[prost(string, tag = "8")]
    pub group: String,
    /// Nanoseconds since the Unix epoch.
    #[prost(int64, tag = "9")]
    pub modified_unix_nanos: i64,
    /// The target of a symbolic link that was not followed.
    #[prost(bytes = "bytes", optional, tag = "10")]
    pub target: Option<Bytes>,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Entries {
    #[prost(message, repeated, tag = "1")]
    pub entries: Vec<FileMetadata>,
    /// In the last message of a page that is not the last. Empty: no further page.
    #[prost(bytes = "bytes", tag = "2")]
    pub next_cursor: Bytes,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Opened {
    #[prost(message, required, tag = "1")]
    pub metadata: FileMetadata,
    /// With quotes. Empty for an archive.
    #[prost(string, tag = "2")]
    pub etag: String,
    /// The condition of `if_none_match` holds: no content follows.
    #[prost(bool, tag = "3")]
    pub not_modified: bool,
    /// The part that follows. Absent: all of the content.
    #[prost(message, optional, tag = "4")]
    pub part: Option<Part>,
    /// The range begins after the end of the file: no content follows.
    #[prost(bool, tag = "5")]
    pub unsatisfiable: bool,
    /// The number of bytes that follow. Absent: unknown, as of an archive, or of a file in `/proc`.
    #[prost(uint64, optional, tag = "6")]
    pub length: Option<u64>,
}

#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Part {
    #[prost(uint64, tag = "1")]
    pub first: u64,
    /// Inclusive.
    #[prost(uint64, tag = "2")]
    pub last: u64,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Stored {
    /// It did not exist before.
    #[prost(bool, tag = "1")]
    pub created: bool,
    /// With quotes. Empty for a directory or an archive.
    #[prost(string, tag = "2")]
    pub etag: String,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Changes {
    #[prost(message, repeated, tag = "1")]
    pub changes: Vec<FileChange>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum ChangeKind {
    /// Changes were missed: the caller lists the directory again.
    Overflow = 0,
    Created = 1,
    Modified = 2,
    Moved = 3,
    Deleted = 4,
    Attributes = 5,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct FileChange {
    /// Rises by one with each change of one operation, from 1.
    #[prost(uint64, tag = "1")]
    pub number: u64,
    #[prost(enumeration = "ChangeKind", tag = "2")]
    pub kind: i32,
    /// Absolute; empty with `Overflow`.
    #[prost(bytes = "bytes", tag = "3")]
    pub path: Bytes,
    /// With `Moved`: the path before. Absent when it was outside the watched directory.
    #[prost(bytes = "bytes", optional, tag = "4")]
    pub from: Option<Bytes>,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct FileFailure {
    /// A word of [`crate::error::ErrorCode`]. The caller treats an unknown one as a fault.
    #[prost(string, tag = "1")]
    pub code: String,
    /// For users. It names the path, and for an archive the entry.
    #[prost(string, tag = "2")]
    pub message: String,
}

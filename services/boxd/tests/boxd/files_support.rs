//! File operations of a test, and tar archives that no careful writer makes.

use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use agentbox_box_protocol::client::BoxClient;
use agentbox_contracts::exec::MAX_CHUNK;
use agentbox_contracts::files::file_input::Input;
use agentbox_contracts::files::file_output::Output;
use agentbox_contracts::files::file_request::Operation;
use agentbox_contracts::files::{
    Archive, FileFailure, FileInput, FileMetadata, FileOutput, FileRequest, List, Opened, Read,
    Stat, Stored, Write,
};
use bytes::Bytes;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use crate::support::{DEADLINE, TestBox};

/// How an operation fails.
pub type Failed = FileFailure;

pub struct Call {
    pub inputs: mpsc::Sender<FileInput>,
    pub outputs: Streaming<FileOutput>,
}

pub fn path_bytes(path: &Path) -> Bytes {
    Bytes::copy_from_slice(path.as_os_str().as_bytes())
}

pub fn request(path: &Path, operation: Operation) -> FileRequest {
    FileRequest {
        path: path_bytes(path),
        user: String::new(),
        operation: Some(operation),
    }
}

/// An atomic write that creates its parents.
pub fn atomic() -> Write {
    Write {
        parents: true,
        atomic: true,
        ..Write::default()
    }
}

/// An unpacking.
pub fn unpacking(archive: Archive) -> Write {
    Write {
        archive: archive.into(),
        ..atomic()
    }
}

impl Call {
    pub async fn open(client: &BoxClient, request: FileRequest) -> Result<Self, Status> {
        let (inputs, receiver) = mpsc::channel(1);
        let first = FileInput {
            input: Some(Input::Request(request)),
        };
        inputs.send(first).await.unwrap();
        let mut client = client.clone();
        let call = client.files(ReceiverStream::new(receiver));
        let outputs = call.await?.into_inner();
        Ok(Self { inputs, outputs })
    }

    pub async fn send(&self, input: Input) {
        // Fails once the operation is over, which the outputs show.
        let _ = self.inputs.send(FileInput { input: Some(input) }).await;
    }

    /// The next output; panics after the deadline, and at the end of the outputs.
    pub async fn next(&mut self) -> Output {
        let message = tokio::time::timeout(DEADLINE, self.outputs.message());
        let message = message.await.expect("an output in time").unwrap();
        message.expect("an output before the end").output.unwrap()
    }

    /// The outputs before `done`, or the failure.
    pub async fn finish(&mut self) -> Result<Vec<Output>, Failed> {
        let mut outputs = Vec::new();
        loop {
            match self.next().await {
                Output::Done(()) => return Ok(outputs),
                Output::Failed(failure) => return Err(failure),
                output => outputs.push(output),
            }
        }
    }
}

pub async fn perform(client: &BoxClient, request: FileRequest) -> Result<Vec<Output>, Failed> {
    Call::open(client, request).await.unwrap().finish().await
}

/// Performs an operation that must fail; returns its error word.
pub async fn failure(client: &BoxClient, request: FileRequest) -> String {
    match perform(client, request).await {
        Err(failed) => failed.code,
        Ok(outputs) => panic!("it succeeded: {outputs:?}"),
    }
}

/// Performs a write with this content.
pub async fn upload(
    client: &BoxClient,
    request: FileRequest,
    content: &[u8],
) -> Result<Stored, Failed> {
    let mut call = Call::open(client, request).await.unwrap();
    let (inputs, content) = (call.inputs.clone(), Bytes::copy_from_slice(content));
    let sending = tokio::spawn(async move {
        for start in (0..content.len()).step_by(MAX_CHUNK) {
            let end = content.len().min(start + MAX_CHUNK);
            let input = Some(Input::Data(content.slice(start..end)));
            if inputs.send(FileInput { input }).await.is_err() {
                return;
            }
        }
        let input = Some(Input::End(()));
        let _ = inputs.send(FileInput { input }).await;
    });
    let finished = call.finish().await;
    drop(call);
    sending.await.unwrap();
    let outputs = finished?;
    match outputs.as_slice() {
        [Output::Ready(()), Output::Stored(stored)] => Ok(stored.clone()),
        other => panic!("{other:?}"),
    }
}

pub async fn put(
    client: &BoxClient,
    path: &Path,
    write: Write,
    content: &[u8],
) -> Result<Stored, Failed> {
    upload(client, request(path, Operation::Write(write)), content).await
}

/// What a read answers, and its content.
pub async fn get(client: &BoxClient, path: &Path, read: Read) -> Result<(Opened, Vec<u8>), Failed> {
    let mut outputs = perform(client, request(path, Operation::Read(read)))
        .await?
        .into_iter();
    let Some(Output::Opened(opened)) = outputs.next() else {
        panic!("no opened");
    };
    let mut content = Vec::new();
    for output in outputs {
        match output {
            Output::Data(data) => content.extend_from_slice(&data),
            other => panic!("{other:?}"),
        }
    }
    Ok((opened, content))
}

pub async fn stat(client: &BoxClient, path: &Path, follow: bool) -> Result<FileMetadata, Failed> {
    let outputs = perform(client, request(path, Operation::Stat(Stat { follow }))).await?;
    match outputs.as_slice() {
        [Output::Metadata(metadata)] => Ok(metadata.clone()),
        other => panic!("{other:?}"),
    }
}

/// One page: the paths relative to the directory, and the next cursor.
pub async fn page(client: &BoxClient, path: &Path, list: List) -> (Vec<Vec<u8>>, Bytes) {
    let outputs = perform(client, request(path, Operation::List(list)))
        .await
        .unwrap();
    let prefix = [path.as_os_str().as_bytes(), b"/"].concat();
    let (mut paths, mut cursor) = (Vec::new(), Bytes::new());
    for output in outputs {
        if let Output::Entries(entries) = output {
            for entry in entries.entries {
                paths.push(entry.path.strip_prefix(prefix.as_slice()).unwrap().to_vec());
            }
            cursor = entries.next_cursor;
        }
    }
    (paths, cursor)
}

/// A directory of the box that every user may enter.
pub fn open_directory(boxd: &TestBox, name: &str) -> PathBuf {
    let path = boxd.path(name);
    fs::create_dir(&path).unwrap();
    for directory in [boxd.dir.path(), &path] {
        let mode = fs::Permissions::from_mode(0o777);
        fs::set_permissions(directory, mode).unwrap();
    }
    path
}

/// No temporary file is left.
pub fn assert_no_hidden_files(directory: &Path) {
    for entry in fs::read_dir(directory).unwrap() {
        let name = entry.unwrap().file_name();
        assert!(!name.as_bytes().starts_with(b".agentbox-"), "{name:?}");
    }
}

/// The processes that boxd has started and not reaped.
pub fn children(parent: i32) -> Vec<i32> {
    let tasks = fs::read_dir(format!("/proc/{parent}/task")).unwrap();
    tasks
        .flat_map(|task| {
            // A thread that has ended meanwhile has no children.
            let children = task.unwrap().path().join("children");
            let children = fs::read_to_string(children).unwrap_or_default();
            let pids = children.split_whitespace().map(|pid| pid.parse().unwrap());
            pids.collect::<Vec<i32>>()
        })
        .collect()
}

/// One entry of an archive: its type, name, link target, mode and content.
pub struct TarEntry<'a> {
    pub kind: u8,
    pub name: &'a str,
    pub link: &'a str,
    pub mode: u32,
    pub content: &'a [u8],
}

pub fn tar_file<'a>(name: &'a str, content: &'a [u8]) -> TarEntry<'a> {
    TarEntry {
        kind: b'0',
        name,
        link: "",
        mode: 0o644,
        content,
    }
}

pub fn tar_link<'a>(kind: u8, name: &'a str, link: &'a str) -> TarEntry<'a> {
    TarEntry {
        kind,
        link,
        ..tar_file(name, b"")
    }
}

pub fn tar(entries: &[TarEntry<'_>]) -> Vec<u8> {
    let mut archive = Vec::new();
    for entry in entries {
        let mut header = [0; 512];
        header[..entry.name.len()].copy_from_slice(entry.name.as_bytes());
        header[157..157 + entry.link.len()].copy_from_slice(entry.link.as_bytes());
        header[100..107].copy_from_slice(format!("{:07o}", entry.mode).as_bytes());
        header[108..115].copy_from_slice(format!("{:07o}", 1234).as_bytes());
        header[116..123].copy_from_slice(format!("{:07o}", 1235).as_bytes());
        header[124..135].copy_from_slice(format!("{:011o}", entry.content.len()).as_bytes());
        header[136..147].copy_from_slice(format!("{:011o}", 1_700_000_000).as_bytes());
        header[156] = entry.kind;
        header[257..263].copy_from_slice(b"ustar\0");
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        archive.extend_from_slice(&header);
        archive.extend_from_slice(entry.content);
        archive.resize(archive.len().next_multiple_of(512), 0);
    }
    archive.resize(archive.len() + 1024, 0);
    archive
}

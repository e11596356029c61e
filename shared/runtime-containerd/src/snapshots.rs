//! containerd's own services of snapshots and containers (`containerd.services.snapshots.v1` and
//! `containers.v1`): views of the layers of an image, and the directories that a container writes to.
//! CRI has neither. The messages have only the fields that are used here.

use std::path::PathBuf;
use std::time::Duration;

use agentbox_runtime::RuntimeError;
use http::uri::PathAndQuery;
use tonic::metadata::MetadataValue;
use tonic::{Code, Request, Status};

use crate::cri::Cri;

/// CRI's namespace in containerd.
const NAMESPACE: &str = "k8s.io";
const VIEW: &str = "/containerd.services.snapshots.v1.Snapshots/View";
const REMOVE: &str = "/containerd.services.snapshots.v1.Snapshots/Remove";
const MOUNTS: &str = "/containerd.services.snapshots.v1.Snapshots/Mounts";
const GET_CONTAINER: &str = "/containerd.services.containers.v1.Containers/Get";

#[derive(Clone, PartialEq, prost::Message)]
struct ViewRequest {
    #[prost(string, tag = "1")]
    snapshotter: String,
    #[prost(string, tag = "2")]
    key: String,
    #[prost(string, tag = "3")]
    parent: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ViewResponse {
    #[prost(message, repeated, tag = "1")]
    mounts: Vec<Mount>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct RemoveRequest {
    #[prost(string, tag = "1")]
    snapshotter: String,
    #[prost(string, tag = "2")]
    key: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Empty {}

#[derive(Clone, PartialEq, prost::Message)]
struct GetContainerRequest {
    #[prost(string, tag = "1")]
    id: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct GetContainerResponse {
    #[prost(message, optional, tag = "1")]
    container: Option<ContainerRecord>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ContainerRecord {
    #[prost(string, tag = "6")]
    snapshotter: String,
    #[prost(string, tag = "7")]
    snapshot_key: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct MountsRequest {
    #[prost(string, tag = "1")]
    snapshotter: String,
    #[prost(string, tag = "2")]
    key: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct MountsResponse {
    #[prost(message, repeated, tag = "1")]
    mounts: Vec<Mount>,
}

/// How a snapshot is mounted.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Mount {
    /// The type of the file system, or `bind`.
    #[prost(string, tag = "1")]
    pub kind: String,
    #[prost(string, tag = "2")]
    pub source: String,
    #[prost(string, repeated, tag = "4")]
    pub options: Vec<String>,
}

/// Creates a read-only view of the layers with this chain id. Nothing refers to it, so containerd's
/// garbage collection removes it if [`remove`] does not.
///
/// # Errors
/// When containerd refuses it, for example because the layers are not unpacked.
pub async fn view(
    cri: &Cri,
    snapshotter: &str,
    key: &str,
    chain_id: &str,
) -> Result<Vec<Mount>, Status> {
    let request = ViewRequest {
        snapshotter: snapshotter.to_owned(),
        key: key.to_owned(),
        parent: chain_id.to_owned(),
    };
    let response: ViewResponse = call(cri, VIEW, request).await?;
    Ok(response.mounts)
}

/// # Errors
/// When containerd refuses it.
pub async fn remove(cri: &Cri, snapshotter: &str, key: &str) -> Result<(), Status> {
    let request = RemoveRequest {
        snapshotter: snapshotter.to_owned(),
        key: key.to_owned(),
    };
    let Empty {} = call(cri, REMOVE, request).await?;
    Ok(())
}

/// The upper directory and the work directory of a container's overlay: two names in one directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WritableDirectories {
    pub parent: PathBuf,
    pub upper: String,
    pub work: String,
}

#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    #[error("containerd's snapshots: {}", .0.message())]
    Service(#[from] Status),
    #[error("containerd did not describe a snapshot within {0:?}")]
    Deadline(Duration),
    #[error(
        "the snapshotter `{0}` has no overlay with its upper and work directory in one directory of \
         their own; use the snapshotter overlayfs"
    )]
    Unsupported(String),
}

impl From<SnapshotError> for RuntimeError {
    fn from(error: SnapshotError) -> Self {
        match error {
            SnapshotError::Deadline(after) => Self::Deadline(after),
            SnapshotError::Service(status) if status.code() == Code::Unavailable => {
                Self::Unavailable(status.message().to_owned())
            }
            other => Self::Cluster {
                operation: "snapshot of a box",
                message: other.to_string(),
            },
        }
    }
}

/// The directories of a container that was created and not started.
///
/// # Errors
/// When containerd does not answer, or its snapshotter is not like overlayfs.
pub async fn writable_directories(
    cri: &Cri,
    container: &str,
    within: Duration,
) -> Result<WritableDirectories, SnapshotError> {
    let find = find(cri, container);
    tokio::time::timeout(within, find)
        .await
        .map_err(|_| SnapshotError::Deadline(within))?
}

async fn find(cri: &Cri, container: &str) -> Result<WritableDirectories, SnapshotError> {
    let request = GetContainerRequest {
        id: container.to_owned(),
    };
    let answer: GetContainerResponse = call(cri, GET_CONTAINER, request).await?;
    let record = answer.container.unwrap_or_default();
    let request = MountsRequest {
        snapshotter: record.snapshotter.clone(),
        key: record.snapshot_key,
    };
    let answer: MountsResponse = call(cri, MOUNTS, request).await?;
    let overlay = answer.mounts.iter().find(|mount| mount.kind == "overlay");
    overlay
        .and_then(|overlay| directories_in(&overlay.options))
        .ok_or(SnapshotError::Unsupported(record.snapshotter))
}

async fn call<Q, A>(cri: &Cri, path: &'static str, request: Q) -> Result<A, Status>
where
    Q: prost::Message + 'static,
    A: prost::Message + Default + 'static,
{
    let mut client = tonic::client::Grpc::new(cri.channel());
    client
        .ready()
        .await
        .map_err(|error| Status::unavailable(error.to_string()))?;
    let mut request = Request::new(request);
    let namespace = MetadataValue::from_static(NAMESPACE);
    request
        .metadata_mut()
        .insert("containerd-namespace", namespace);
    let codec = tonic_prost::ProstCodec::<Q, A>::default();
    let path = PathAndQuery::from_static(path);
    Ok(client.unary(request, path, codec).await?.into_inner())
}

fn directories_in(options: &[String]) -> Option<WritableDirectories> {
    let path = |name: &str| {
        let value = options
            .iter()
            .find_map(|option| option.strip_prefix(name))?;
        Some(PathBuf::from(value))
    };
    let (upper, work) = (path("upperdir=")?, path("workdir=")?);
    let parent = upper.parent()?;
    if work.parent()? != parent || upper == work || !parent.is_absolute() {
        return None;
    }
    let name = |path: &PathBuf| Some(path.file_name()?.to_str()?.to_owned());
    Some(WritableDirectories {
        upper: name(&upper)?,
        work: name(&work)?,
        parent: parent.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_of_an_overlay_are_two_names_in_one_directory() {
        let find = |options: &[&str]| {
            let options: Vec<String> = options.iter().map(|&option| option.to_owned()).collect();
            directories_in(&options)
        };
        let expected = WritableDirectories {
            parent: "/c/snapshots/7".into(),
            upper: "fs".to_owned(),
            work: "work".to_owned(),
        };
        let overlay = [
            "uidmap=0:65536:65536",
            "workdir=/c/snapshots/7/work",
            "upperdir=/c/snapshots/7/fs",
            "lowerdir=/c/snapshots/1/fs",
        ];
        assert_eq!(find(&overlay), Some(expected));
        for other in [
            &["lowerdir=/c/1:/c/2"][..],
            &["workdir=/c/7/work", "upperdir=/d/7/fs"],
            &["workdir=/c/7/fs", "upperdir=/c/7/fs"],
            &["workdir=work", "upperdir=fs"],
        ] {
            assert_eq!(find(other), None, "{other:?}");
        }
    }
}

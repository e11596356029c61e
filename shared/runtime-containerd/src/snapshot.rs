//! The directories that a container writes to, from containerd's own services. CRI does not have them.
//!
//! The messages have only the fields that are used here.

use std::future::Future;
use std::path::PathBuf;
use std::time::Duration;

use agentbox_runtime::RuntimeError;
use http::uri::PathAndQuery;
use tonic::metadata::MetadataValue;
use tonic::{Code, Request, Status};

use crate::cri::Cri;

/// The containerd namespace of CRI.
const NAMESPACE: &str = "k8s.io";

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
    mounts: Vec<SnapshotMount>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct SnapshotMount {
    #[prost(string, tag = "1")]
    kind: String,
    #[prost(string, repeated, tag = "4")]
    options: Vec<String>,
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
    let path = "/containerd.services.containers.v1.Containers/Get";
    let answer: GetContainerResponse = call(cri, path, request).await?;
    let record = answer.container.unwrap_or_default();
    let request = MountsRequest {
        snapshotter: record.snapshotter.clone(),
        key: record.snapshot_key,
    };
    let path = "/containerd.services.snapshots.v1.Snapshots/Mounts";
    let answer: MountsResponse = call(cri, path, request).await?;
    let overlay = answer.mounts.iter().find(|mount| mount.kind == "overlay");
    overlay
        .and_then(|overlay| directories_in(&overlay.options))
        .ok_or(SnapshotError::Unsupported(record.snapshotter))
}

fn call<Q, A>(
    cri: &Cri,
    path: &'static str,
    message: Q,
) -> impl Future<Output = Result<A, Status>> + Send
where
    Q: prost::Message + 'static,
    A: prost::Message + Default + 'static,
{
    let mut client = tonic::client::Grpc::new(cri.channel());
    async move {
        client
            .ready()
            .await
            .map_err(|error| Status::unavailable(error.to_string()))?;
        let mut request = Request::new(message);
        request.metadata_mut().insert(
            "containerd-namespace",
            MetadataValue::from_static(NAMESPACE),
        );
        let codec = tonic_prost::ProstCodec::<Q, A>::default();
        let answer = client.unary(request, PathAndQuery::from_static(path), codec);
        Ok(answer.await?.into_inner())
    }
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

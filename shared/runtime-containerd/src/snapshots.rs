//! containerd's own service of snapshots (`containerd.services.snapshots.v1`), which CRI does not
//! have: views of the layers of an image.

use http::uri::PathAndQuery;
use tonic::metadata::MetadataValue;
use tonic::{Request, Status};

use crate::cri::Cri;

/// CRI's namespace in containerd.
const NAMESPACE: &str = "k8s.io";
const VIEW: &str = "/containerd.services.snapshots.v1.Snapshots/View";
const REMOVE: &str = "/containerd.services.snapshots.v1.Snapshots/Remove";

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

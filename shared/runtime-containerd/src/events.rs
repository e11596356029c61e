//! containerd's own events: something happened to a task or container, look again.
//!
//! Only a hint, and only for speed: the watch polls too. The service is containerd's
//! (`containerd.services.events.v1`), not CRI's, and its messages are not even decoded.

use http::uri::PathAndQuery;
use tonic::codec::Streaming;
use tonic::{Request, Status};

use crate::cri::Cri;

#[derive(Clone, PartialEq, prost::Message)]
pub struct SubscribeRequest {
    #[prost(string, repeated, tag = "1")]
    pub filters: Vec<String>,
}

/// `Envelope`, of which nothing is needed.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Event {}

const SUBSCRIBE: &str = "/containerd.services.events.v1.Events/Subscribe";

/// Every start and end of a process of CRI's containers, from now on.
///
/// # Errors
/// When containerd does not have the service or does not answer.
pub async fn subscribe(cri: &Cri) -> Result<Streaming<Event>, Status> {
    let mut client = tonic::client::Grpc::new(cri.channel());
    client
        .ready()
        .await
        .map_err(|error| Status::unavailable(error.to_string()))?;
    let filters = ["/tasks/start", "/tasks/exit", "/tasks/oom"]
        .map(|topic| format!("namespace==k8s.io,topic==\"{topic}\""))
        .to_vec();
    let codec = tonic_prost::ProstCodec::<SubscribeRequest, Event>::default();
    let path = PathAndQuery::from_static(SUBSCRIBE);
    let request = Request::new(SubscribeRequest { filters });
    Ok(client
        .server_streaming(request, path, codec)
        .await?
        .into_inner())
}

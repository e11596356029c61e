//! containerd's events about tasks: hints that boxes have changed.
//!
//! They only make the watch faster, which polls too. The service is containerd's
//! (`containerd.services.events.v1`), not CRI's. The messages are not decoded.

use std::pin::Pin;

use futures::future::ready;
use futures::stream::{self, Stream, StreamExt as _, TryStreamExt as _};
use http::uri::PathAndQuery;
use tonic::codec::Streaming;
use tonic::{Request, Status};

use crate::cri::Cri;

#[derive(Clone, PartialEq, prost::Message)]
pub struct SubscribeRequest {
    #[prost(string, repeated, tag = "1")]
    pub filters: Vec<String>,
}

/// containerd's `Envelope`. The watch needs none of its fields.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Event {}

/// One item for each event.
pub type TaskEvents = Pin<Box<dyn Stream<Item = ()> + Send>>;

const SUBSCRIBE: &str = "/containerd.services.events.v1.Events/Subscribe";

/// Subscribes to the starts and ends of the tasks of CRI's containers. The stream ends when
/// containerd lacks the service or is gone.
pub fn subscribe(cri: &Cri) -> TaskEvents {
    let cri = cri.clone();
    // containerd answers the call together with the first event, so the call is part of the stream.
    let events = stream::once(async move { open_stream(&cri).await }).try_flatten();
    Box::pin(events.take_while(|event| ready(event.is_ok())).map(drop))
}

async fn open_stream(cri: &Cri) -> Result<Streaming<Event>, Status> {
    let mut client = tonic::client::Grpc::new(cri.channel());
    client
        .ready()
        .await
        .map_err(|error| Status::unavailable(error.to_string()))?;
    // CRI deletes an ended task before it lists the container as exited.
    let filters = ["/tasks/start", "/tasks/exit", "/tasks/delete", "/tasks/oom"]
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

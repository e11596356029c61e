//! containerd's own events: something happened to a task or container, look again.
//!
//! Only a hint, and only for speed: the watch polls too. The service is containerd's
//! (`containerd.services.events.v1`), not CRI's, and its messages are not even decoded.

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

/// `Envelope`, of which nothing is needed.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Event {}

/// One item an event.
pub type Wakes = Pin<Box<dyn Stream<Item = ()> + Send>>;

const SUBSCRIBE: &str = "/containerd.services.events.v1.Events/Subscribe";

/// Every start and end of a process of CRI's containers, from now on. Ends when
/// containerd does not have the service or is gone.
pub fn wakes(cri: &Cri) -> Wakes {
    let cri = cri.clone();
    // containerd answers the call itself with the first event only: whoever waited for
    // the answer would wait for the first event.
    let subscribed = stream::once(async move { subscribe(&cri).await }).try_flatten();
    Box::pin(
        subscribed
            .take_while(|event| ready(event.is_ok()))
            .map(drop),
    )
}

async fn subscribe(cri: &Cri) -> Result<Streaming<Event>, Status> {
    let mut client = tonic::client::Grpc::new(cri.channel());
    client
        .ready()
        .await
        .map_err(|error| Status::unavailable(error.to_string()))?;
    // CRI deletes an ended task and only then says that its container has exited.
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

//! A trace collector: it receives OTLP over gRPC and over HTTP, and keeps the spans.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::body::Bytes;
use axum::extract::State;
use axum::http::HeaderMap;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value};
pub use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use prost::Message as _;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

/// A received span, with its ids in hexadecimal.
#[derive(Clone, Debug)]
pub struct Span {
    pub service: String,
    pub resource: Vec<(String, String)>,
    pub name: String,
    pub kind: SpanKind,
    pub trace: String,
    pub id: String,
    pub parent: String,
    /// The linked spans: trace id and span id.
    pub links: Vec<(String, String)>,
    pub attributes: Vec<(String, String)>,
    pub start_nanos: u64,
    pub end_nanos: u64,
    /// The whole span with its events as text, for the search for secrets.
    pub text: String,
}

impl Span {
    pub fn attribute(&self, key: &str) -> &str {
        let found = self.attributes.iter().find(|(name, _)| name == key);
        found.map_or("", |(_, value)| value.as_str())
    }
}

#[derive(Clone, Default)]
struct Received {
    spans: Arc<Mutex<Vec<Span>>>,
    /// The value of `x-collector-key` in the last request.
    key: Arc<Mutex<String>>,
}

pub struct Collector {
    /// Of gRPC, and of HTTP.
    pub address: SocketAddr,
    pub http_address: SocketAddr,
    received: Received,
    servers: [JoinHandle<()>; 2],
}

impl Collector {
    pub async fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let http = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let http_address = http.local_addr().unwrap();
        let received = Received::default();
        let router = axum::Router::new()
            .route("/v1/traces", axum::routing::post(over_http))
            .with_state(received.clone());
        let http = tokio::spawn(async move { axum::serve(http, router).await.unwrap() });
        let service = TraceServiceServer::new(received.clone());
        let grpc = tokio::spawn(async move {
            let incoming = TcpIncoming::from(listener);
            let serving = Server::builder().add_service(service);
            serving.serve_with_incoming(incoming).await.unwrap();
        });
        Self {
            address,
            http_address,
            received,
            servers: [grpc, http],
        }
    }

    pub fn spans(&self) -> Vec<Span> {
        self.received.spans.lock().unwrap().clone()
    }

    pub fn key(&self) -> String {
        self.received.key.lock().unwrap().clone()
    }

    /// Waits until `find` finds something in the received spans.
    pub async fn find<T>(&self, what: &str, find: impl Fn(&[Span]) -> Option<T>) -> T {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let spans = self.spans();
            if let Some(found) = find(&spans) {
                return found;
            }
            assert!(
                Instant::now() < deadline,
                "no {what} among:\n{}",
                spans.iter().map(line).collect::<String>()
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        for server in &self.servers {
            server.abort();
        }
    }
}

fn line(span: &Span) -> String {
    format!(
        "{} {:?} {} [{} {} < {}] {:?} {:?}\n",
        span.service,
        span.kind,
        span.name,
        span.trace,
        span.id,
        span.parent,
        span.links,
        span.attributes
    )
}

#[tonic::async_trait]
impl TraceService for Received {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        if let Some(key) = request.metadata().get("x-collector-key") {
            *self.key.lock().unwrap() = key.to_str().unwrap().to_owned();
        }
        self.keep(request.into_inner());
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

async fn over_http(
    State(received): State<Received>,
    headers: HeaderMap,
    body: Bytes,
) -> ([(&'static str, &'static str); 1], Vec<u8>) {
    assert_eq!(headers["content-type"], "application/x-protobuf");
    received.keep(ExportTraceServiceRequest::decode(body).unwrap());
    let answer = ExportTraceServiceResponse::default().encode_to_vec();
    ([("content-type", "application/x-protobuf")], answer)
}

impl Received {
    fn keep(&self, request: ExportTraceServiceRequest) {
        let mut received = self.spans.lock().unwrap();
        for of_resource in request.resource_spans {
            let resource = pairs(&of_resource.resource.unwrap_or_default().attributes);
            let name = resource.iter().find(|(key, _)| key == "service.name");
            let service = name.map_or(String::new(), |(_, name)| name.clone());
            for span in of_resource
                .scope_spans
                .into_iter()
                .flat_map(|scope| scope.spans)
            {
                received.push(Span {
                    service: service.clone(),
                    resource: resource.clone(),
                    text: format!("{resource:?} {span:?} {:?}", pairs(&span.attributes)),
                    kind: span.kind(),
                    trace: hex::encode(&span.trace_id),
                    id: hex::encode(&span.span_id),
                    parent: hex::encode(&span.parent_span_id),
                    links: span
                        .links
                        .iter()
                        .map(|link| (hex::encode(&link.trace_id), hex::encode(&link.span_id)))
                        .collect(),
                    attributes: pairs(&span.attributes),
                    start_nanos: span.start_time_unix_nano,
                    end_nanos: span.end_time_unix_nano,
                    name: span.name,
                });
            }
        }
    }
}

fn pairs(attributes: &[KeyValue]) -> Vec<(String, String)> {
    let text = |pair: &KeyValue| match pair.value.clone().and_then(|value| value.value) {
        Some(any_value::Value::StringValue(text)) => text,
        Some(any_value::Value::IntValue(number)) => number.to_string(),
        Some(any_value::Value::BoolValue(truth)) => truth.to_string(),
        other => format!("{other:?}"),
    };
    attributes
        .iter()
        .map(|pair| (pair.key.clone(), text(pair)))
        .collect()
}

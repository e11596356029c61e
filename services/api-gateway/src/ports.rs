//! `/environments/{id}/ports`: servers in a box, for programs.
//!
//! * I1. Answers come from the API's origin, where a browser may hold the token of a user. So their
//!   headers have no effect beyond the answer, and browsers run them in a sandbox ([`headers`]).
//! * I2. Bytes are bounded, not requests: each user's connections together by a rate ([`rate`]), their
//!   number by the bounds of sessions.

pub(crate) mod connection;
pub(crate) mod cookies;
pub(crate) mod forward;
pub(crate) mod headers;
mod port_stream;
pub(crate) mod rate;
pub(crate) mod target;

use agentbox_api::port::{PortBody, PortList};
use agentbox_contracts::audit::AuditAction;
use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::exec::{FromBox, OpenKind};
use axum::Extension;
use axum::extract::{Request, State};
use axum::http::header::{HOST, SEC_WEBSOCKET_PROTOCOL};
use axum::http::{HeaderValue, StatusCode};
use axum::response::Response;
use utoipa::IntoParams;

use crate::audit;
use crate::authorize::Action;
use crate::box_loss;
use crate::box_session;
use crate::edge::admit::{Admitted, Caller, Proxied};
use crate::edge::client_address::{ClientAddress, OverTls};
use crate::edge::path::EnvironmentParameter;
use crate::edge::slots::Slot;
use crate::edge::{Answer, cors};
use crate::lookup::EnvironmentLocation;
use crate::memory::SessionKind;
use crate::principal::credential::subprotocols;
use crate::state::Gateway;
use crate::stream::{AccessWatch, StreamGrant};
use connection::Usage;
use headers::Original;
use target::Target;

/// How long a box may take to list its ports.
const LIST_DEADLINE: std::time::Duration = std::time::Duration::from_secs(10);

/// The parameters of a request to a port.
#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
#[allow(dead_code, reason = "describes parameters")]
pub(crate) struct PortParameters {
    /// The TCP port, 1 to 65535.
    #[param(example = 8080, minimum = 1, maximum = 65535)]
    port: u16,
    /// The rest of the path, any number of segments, sent to the server byte for byte.
    #[param(example = "index.html")]
    path: String,
}

/// The query of a request to a port.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[allow(dead_code, reason = "describes a parameter")]
pub(crate) struct PortQuery {
    /// `h2c`: the server speaks HTTP/2 without TLS. Every other parameter is sent to the server.
    #[param(example = "h2c")]
    protocol: Option<String>,
}

async fn ask_box(gateway: &Gateway, location: &EnvironmentLocation) -> Result<PortList, Error> {
    let mut session = box_session::open(gateway, location, OpenKind::Ports).await?;
    match session.recv().await? {
        Some(FromBox::Ports(list)) => Ok(PortList {
            ports: list.ports.into_iter().map(PortBody::from).collect(),
        }),
        Some(_) => Err(Error::internal()),
        None => Err(Error::new(
            ErrorCode::BoxLost,
            "the environment did not list its ports",
        )),
    }
}

/// List listening ports
///
/// Returns the TCP sockets that listen in a running environment, at most 1024, by port. The process is
/// left out where its user hides it.
#[utoipa::path(get, operation_id = "listPorts", path = "/environments/{id}/ports", tag = "ports",
    params(EnvironmentParameter),
    responses((status = 200, description = "The listening ports.", body = PortList)))]
pub(crate) async fn list(
    State(gateway): State<Gateway>,
    Caller(principal): Caller,
    Admitted(location): Admitted,
) -> Answer<axum::Json<PortList>> {
    let location = location.require_running()?;
    let _session = gateway.begin_session(&principal, SessionKind::Execution)?;
    let asked = tokio::time::timeout(LIST_DEADLINE, ask_box(&gateway, &location)).await;
    let asked = asked.unwrap_or_else(|_| {
        Err(Error::new(
            ErrorCode::Timeout,
            "the environment did not list its ports in time",
        ))
    });
    match asked {
        Ok(list) => Ok(axum::Json(list)),
        Err(error) => Err(box_loss::with_reason(&gateway, &location.id, error)
            .await
            .into()),
    }
}

/// Send a request to a port
///
/// Forwards a request of any method to a server in the environment, at 127.0.0.1, `::1` or the
/// environment's address, and answers with its answer. Bodies are streamed, WebSockets and other
/// upgrades are passed on, and each request has a connection of its own. With `X-Agentbox-Token` as the
/// credential, `Authorization` is sent to the server. Cookies and headers that would affect the API's
/// origin are removed from the answer, and browsers run it in a sandbox: for browsers create a preview.
/// The answers have no `X-RateLimit-*` headers: bytes per second are bounded
/// (`AGENTBOX_PORT_BYTES_PER_SECOND`).
#[utoipa::path(get, operation_id = "requestPort", path = "/environments/{id}/ports/{port}/{path}", tag = "ports",
    params(EnvironmentParameter, PortParameters, PortQuery),
    responses((status = 200, description = "The answer of the server, whatever its status is.", body = String,
        content_type = "application/octet-stream", example = "hello")))]
pub(crate) async fn request(
    State(gateway): State<Gateway>,
    Caller(principal): Caller,
    Admitted(location): Admitted,
    slot: Option<Extension<Slot>>,
    mut request: Request,
) -> Answer<Response> {
    let target = Target::read(request.uri())?;
    let upgrade = headers::upgrade(request.headers(), request.version());
    let mut subprotocol = None;
    if upgrade.is_some() {
        cors::check_origin(request.headers(), &gateway.config.cors_origins)?;
        let offered = subprotocols(request.headers())?;
        subprotocol = offered.answer.filter(|_| offered.token.is_some());
    }
    let location = location.require_running()?;
    let share = gateway.begin_session(&principal, SessionKind::Port)?;
    audit::accept(&gateway, AuditAction::UsePort, &location.id, &[]).await?;
    let original = original(&request);
    let keeps_authorization = headers::has_own_header(request.headers());
    headers::to_box(
        request.headers_mut(),
        &original,
        target.port,
        keeps_authorization,
        upgrade.as_ref(),
    );
    let grant = StreamGrant::environment(Action::UsePort, &location);
    let usage = Usage {
        user: principal.user.clone(),
        access: AccessWatch::new(gateway.clone(), principal, grant, gateway.shutdown.clone()),
        share,
    };
    let slot = slot.map(|Extension(slot)| slot);
    let mut response =
        forward::forward(&gateway, &location, target, usage, slot, upgrade, request).await?;
    headers::from_box(response.headers_mut());
    if response.status() == StatusCode::SWITCHING_PROTOCOLS
        && let Some(answer) = subprotocol
        && let Ok(answer) = HeaderValue::from_str(&answer)
    {
        // The client offered its token as a subprotocol, and expects that one is selected.
        let headers = response.headers_mut();
        headers.entry(SEC_WEBSOCKET_PROTOCOL).or_insert(answer);
    }
    response.extensions_mut().insert(Proxied);
    Ok(response)
}

/// What the server in the box is told about a request.
pub(crate) fn original(request: &Request) -> Original {
    let ClientAddress(client) = ClientAddress::from_extensions(request.extensions());
    let authority = request.uri().authority();
    let of_uri = authority.and_then(|host| HeaderValue::from_str(host.as_str()).ok());
    Original {
        host: of_uri.or_else(|| request.headers().get(HOST).cloned()),
        client,
        is_over_tls: request.extensions().get::<OverTls>().is_some(),
    }
}

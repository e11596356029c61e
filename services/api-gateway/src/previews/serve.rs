//! Requests to the hosts of previews.
//!
//! * I1. Auth decides on every request whether it may use the preview, and whether its creator may.
//!   An open connection asks again every second.
//! * I2. No secret of a preview reaches the box, and no credential of the API opens a preview.

use std::time::Duration;

use agentbox_contracts::audit::Origin;
use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::identity::rpc::Secret;
use agentbox_contracts::ids::PreviewId;
use agentbox_contracts::preview::rpc::{
    OpenPreview, OpenPreviewReply, OpenPreviewRequest, PreviewAccess,
};
use axum::Extension;
use axum::extract::{Request, State};
use axum::http::uri::PathAndQuery;
use axum::http::{HeaderMap, HeaderName, Method, Uri};
use axum::response::Response;

use super::host::PreviewHost;
use super::{LINK_PARAMETER, LINK_PATH, OWN_PATHS, answer, source, visits};
use crate::authorize::{Action, authorize};
use crate::edge::admit::Proxied;
use crate::edge::client_address::ClientAddress;
use crate::edge::slots::Slot;
use crate::edge::{query, trace};
use crate::lookup::{self, EnvironmentLocation};
use crate::memory::SessionKind;
use crate::ports::connection::Usage;
use crate::ports::target::{Protocol, Target};
use crate::ports::{cookies, forward, headers, original};
use crate::rate_limit::{CallerKey, Category};
use crate::state::{AUTH_DEADLINE, Gateway};
use crate::stream::{AccessWatch, StreamGrant};

const TOKEN: HeaderName = HeaderName::from_static("x-agentbox-preview-token");
/// How often the access of an open connection is checked.
const RECHECK_INTERVAL: Duration = Duration::from_secs(1);

/// Answers a request to the host of a preview.
pub(crate) async fn serve(
    State(gateway): State<Gateway>,
    Extension(host): Extension<PreviewHost>,
    slot: Option<Extension<Slot>>,
    request: Request,
) -> Response {
    let slot = slot.map(|Extension(slot)| slot);
    let accept = accept_of(request.headers());
    match open(&gateway, &host, slot, request).await {
        Ok(response) => response,
        Err(error) => answer::error(error, &accept),
    }
}

/// The headers that decide the shape of an error.
fn accept_of(headers: &HeaderMap) -> HeaderMap {
    let mut accept = HeaderMap::new();
    for value in headers.get_all(axum::http::header::ACCEPT) {
        accept.append(axum::http::header::ACCEPT, value.clone());
    }
    accept
}

fn not_found() -> Error {
    Error::new(
        ErrorCode::NotFound,
        "the preview does not exist, or has ended",
    )
}

/// What a request presents.
fn access(headers: &HeaderMap, uri: &Uri) -> PreviewAccess {
    let link = || query::value(uri.query()?, LINK_PARAMETER);
    if uri.path() == LINK_PATH {
        return link().map_or(PreviewAccess::None, |link| {
            PreviewAccess::Link(Secret(link))
        });
    }
    let token = headers.get(TOKEN).and_then(|value| value.to_str().ok());
    match (token, cookies::preview_cookie(headers)) {
        (Some(token), _) => PreviewAccess::Token(Secret(token.to_owned())),
        (None, Some(secret)) => PreviewAccess::Cookie(Secret(secret)),
        (None, None) => PreviewAccess::None,
    }
}

/// Asks auth whether a request may use a preview. A refused one is counted under its client's address.
async fn ask_auth(
    gateway: &Gateway,
    id: PreviewId,
    access: PreviewAccess,
    client: ClientAddress,
) -> Result<OpenPreviewReply, Error> {
    let request = OpenPreviewRequest { id, access };
    let asked = gateway
        .bus
        .call::<OpenPreview>(&request, AUTH_DEADLINE)
        .await;
    let error = match asked {
        Ok(reply) => return Ok(reply),
        Err(error) => error,
    };
    if matches!(error.code, ErrorCode::Unauthorized | ErrorCode::NotFound) {
        let key = CallerKey::address(client);
        gateway.limiter.count(&key, Category::Other).await.check()?;
    }
    Err(match error.code {
        ErrorCode::NotFound => not_found(),
        _ => error,
    })
}

/// Finds the running environment of a preview, on which its creator may still use ports.
async fn locate(
    gateway: &Gateway,
    opened: &OpenPreviewReply,
) -> Result<EnvironmentLocation, Error> {
    let id = opened.preview.environment.clone();
    let location = async {
        let location = lookup::locate(gateway, Action::UsePort, id).await?;
        let target = Some(location.target());
        authorize(Some(&opened.principal), Action::UsePort, target)?;
        location.require_running()
    }
    .await;
    location.map_err(|error| match error.code {
        ErrorCode::NotFound | ErrorCode::Forbidden | ErrorCode::NotRunning => not_found(),
        _ => error,
    })
}

/// Checks that a browser gets a host of its own machine, or of a domain. Programs may send any host.
fn check_domain(
    host: &PreviewHost,
    access: &PreviewAccess,
    client: ClientAddress,
) -> Result<(), Error> {
    let is_program = matches!(access, PreviewAccess::Token(_));
    if !host.is_local || is_program || client.0.is_loopback() {
        return Ok(());
    }
    Err(Error::new(
        ErrorCode::PreviewDomainMissing,
        "previews for browsers need a domain, which the operator has not configured \
         (AGENTBOX_PREVIEW_DOMAIN); programs send X-Agentbox-Preview-Token",
    ))
}

async fn open(
    gateway: &Gateway,
    host: &PreviewHost,
    slot: Option<Slot>,
    request: Request,
) -> Result<Response, Error> {
    let (port, id) = host.named.clone().ok_or_else(not_found)?;
    let client = ClientAddress::from_extensions(request.extensions());
    let access = access(request.headers(), request.uri());
    check_domain(host, &access, client)?;
    let is_link = matches!(access, PreviewAccess::Link(_));
    if request.uri().path().starts_with(OWN_PATHS) && (!is_link || request.method() != Method::GET)
    {
        return Err(not_found());
    }
    if matches!(access, PreviewAccess::Cookie(_)) {
        source::check(request.headers(), request.method(), &host.host)?;
    }
    let mut opened = ask_auth(gateway, id, access, client).await?;
    if opened.preview.port != port {
        return Err(not_found());
    }
    if !opened.preview.public
        && let Some(slot) = &slot
    {
        slot.set_authenticated();
    }
    let location = locate(gateway, &opened).await?;
    if let Some(Secret(cookie)) = opened.cookie.take() {
        return Ok(answer::opened(&cookie, opened.preview.expires_at));
    }
    let origin = Origin::new(Some(&opened.principal), client.0, trace::current_id());
    agentbox_bus::with_origin(origin, forward(gateway, &location, opened, slot, request)).await
}

/// Sends a request that may use the preview to the box.
async fn forward(
    gateway: &Gateway,
    location: &EnvironmentLocation,
    opened: OpenPreviewReply,
    slot: Option<Slot>,
    mut request: Request,
) -> Result<Response, Error> {
    let OpenPreviewReply {
        preview, principal, ..
    } = opened;
    let share = gateway.begin_session(&principal, SessionKind::Port)?;
    let client = ClientAddress::from_extensions(request.extensions());
    visits::record(gateway, &preview, &principal.user, client).await?;
    let path = request.uri().path_and_query().cloned();
    let target = Target {
        port: preview.port,
        path: path.unwrap_or_else(|| PathAndQuery::from_static("/")),
        protocol: Protocol::Http1,
    };
    let upgrade = headers::upgrade(request.headers(), request.version());
    let original = original(&request);
    let port = preview.port;
    headers::to_box(
        request.headers_mut(),
        &original,
        port,
        true,
        upgrade.as_ref(),
    );
    let grant = StreamGrant::Preview {
        preview: preview.id,
        id: location.id.clone(),
        owner: location.owner.clone(),
    };
    let stop = gateway.shutdown.clone();
    let user = principal.user.clone();
    let access = AccessWatch::new(gateway.clone(), principal, grant, stop);
    let usage = Usage {
        user,
        access: access.checked_every(RECHECK_INTERVAL),
        share,
    };
    let mut response =
        forward::forward(gateway, location, target, usage, slot, upgrade, request).await?;
    answer::from_box(response.headers_mut(), port, preview.public);
    response.extensions_mut().insert(Proxied);
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_presents_its_link_its_token_or_its_cookie() {
        let read = |path: &str, pairs: &[(&'static str, &str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in pairs {
                headers.insert(*name, value.parse().unwrap());
            }
            access(&headers, &path.parse().unwrap())
        };
        let secret = || Secret("s".to_owned());
        let cookie = ("cookie", "__Host-agentbox-preview=s");
        let token = ("x-agentbox-preview-token", "s");
        for (path, pairs, expected) in [
            ("/", &[][..], PreviewAccess::None),
            ("/", &[cookie], PreviewAccess::Cookie(secret())),
            ("/", &[token, cookie], PreviewAccess::Token(secret())),
            (
                "/.agentbox/open?link=s",
                &[cookie],
                PreviewAccess::Link(secret()),
            ),
            ("/.agentbox/open", &[cookie], PreviewAccess::None),
            ("/?link=s", &[], PreviewAccess::None),
            ("/", &[("authorization", "Bearer s")], PreviewAccess::None),
        ] {
            assert_eq!(read(path, pairs), expected, "{path}");
        }
    }

    #[test]
    fn browser_of_another_machine_needs_a_domain() {
        let host = |is_local| PreviewHost {
            host: String::new(),
            named: None,
            is_local,
        };
        let client = |text: &str| ClientAddress(text.parse().unwrap());
        let token = PreviewAccess::Token(Secret(String::new()));
        for (is_local, access, address, expected) in [
            (true, PreviewAccess::None, "127.0.0.1", true),
            (true, PreviewAccess::None, "192.0.2.1", false),
            (true, token, "192.0.2.1", true),
            (false, PreviewAccess::None, "192.0.2.1", true),
        ] {
            let outcome = check_domain(&host(is_local), &access, client(address));
            assert_eq!(outcome.is_ok(), expected, "{is_local} {address}");
        }
    }
}

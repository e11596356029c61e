//! `/environments`: create, list, get, patch, delete.
//!
//! The scheduler validates the fields of a request, before it stores anything.

mod start;
pub(crate) mod usage;

use std::sync::Arc;

use agentbox_api::environment::{
    CreateEnvironment, CreateQuery, DeleteQuery, EnvironmentBody, EnvironmentList, ListQuery,
    PatchEnvironment,
};
use agentbox_contracts::environment::Environment;
use agentbox_contracts::environment::rpc::{
    Create, CreateRequest, Delete, DeleteRequest, List, ListReply, ListRequest, Patch, PatchRequest,
};
use agentbox_contracts::error::Error;
use agentbox_contracts::identity::Principal;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

use crate::authorize::visibility;
use crate::edge::admit::{Admitted, Caller};
use crate::edge::path::{BASE, EnvironmentParameter};
use crate::edge::query::page;
use crate::edge::{Answer, Json, Query};
use crate::lookup;
use crate::memory::SessionKind;
use crate::state::{Gateway, NETWORK_POLICY_DEADLINE, SCHEDULER_DEADLINE};

const MAX_IDEMPOTENCY_KEY: usize = 255;

fn is_idempotency_key(text: &str) -> bool {
    (1..=MAX_IDEMPOTENCY_KEY).contains(&text.len())
        && text.bytes().all(|byte| (b' '..=b'~').contains(&byte))
}

/// Reads the header `Idempotency-Key`.
///
/// # Errors
/// [`agentbox_contracts::error::ErrorCode::Validation`]
pub(crate) fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, Error> {
    let Some(value) = headers.get("idempotency-key") else {
        return Ok(None);
    };
    match value.to_str() {
        Ok(key) if is_idempotency_key(key) => Ok(Some(key.to_owned())),
        _ => Err(Error::field(
            "Idempotency-Key",
            format_args!("must be 1 to {MAX_IDEMPOTENCY_KEY} printable ASCII characters"),
        )),
    }
}

/// Create an environment
///
/// The answer comes before the environment runs: its `status` is `pending`, then `running`, or
/// `failed` with a `status_reason`. If a warm pool has a box for the request, the environment gets it:
/// its `status` is `running` in the answer, and `pool.hit` is true. Follow its events, or get it, to learn when. With `wait=running`
/// the answer comes once it runs or has ended, with its state then; after 60 seconds it comes with
/// the present state.
#[utoipa::path(post, operation_id = "createEnvironment", path = "/environments", tag = "environments",
    request_body = CreateEnvironment,
    params(CreateQuery, ("Idempotency-Key" = Option<String>, Header, min_length = 1, max_length = 255,
        example = "build-4711",
        description = "Makes a repeated request safe: 1 to 255 printable ASCII characters, remembered for 24 hours. \
            The same key and body return the environment that was created first; the same key with another body \
            is refused with 409. Default: every request creates an environment.")),
    responses((status = 201, body = EnvironmentBody,
        description = "The new environment, or the one that the idempotency key created before. The `Location` header has its path.")))]
pub(crate) async fn create(
    State(gateway): State<Gateway>,
    Caller(principal): Caller,
    Query(query): Query<CreateQuery>,
    headers: HeaderMap,
    Json(body): Json<CreateEnvironment>,
) -> Answer<Response> {
    // Before the create: a request beyond the limit creates nothing.
    let waiting = query
        .wait
        .map(|_| gateway.begin_session(&principal, SessionKind::Start))
        .transpose()?;
    let request = CreateRequest {
        owner: principal.user.clone(),
        owner_username: principal.username.clone(),
        request: body.into(),
        idempotency_key: idempotency_key(&headers)?,
        limits: principal.limits,
    };
    let created = gateway
        .bus
        .call::<Create>(&request, SCHEDULER_DEADLINE)
        .await?;
    let created = match waiting {
        Some(_session) => start::wait(&gateway, created).await,
        None => created,
    };
    let location = format!("{BASE}/environments/{}", created.id);
    let body = axum::Json(shown(created, &principal));
    let mut response = (StatusCode::CREATED, body).into_response();
    if let Ok(location) = HeaderValue::from_str(&location) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    Ok(response)
}

/// An environment as `principal` may see it: only its owner sees the values of variables.
fn shown(environment: Environment, principal: &Principal) -> EnvironmentBody {
    let is_owner = environment.owner == principal.user;
    let mut body = EnvironmentBody::from(environment);
    if !is_owner {
        body.env_names = body.env.take().map(|env| env.into_keys().collect());
    }
    body
}

/// An environment in a list: without its variables, which are long and often secret.
fn list_entry(environment: Environment) -> EnvironmentBody {
    EnvironmentBody {
        env: None,
        ..environment.into()
    }
}

/// Reads one page. The scheduler answers with as much as fits in a message of the bus, so a page
/// of long environments takes several requests.
async fn read_page(gateway: &Gateway, mut request: ListRequest) -> Result<ListReply, Error> {
    let mut environments = Vec::new();
    loop {
        let reply = gateway
            .bus
            .call::<List>(&request, SCHEDULER_DEADLINE)
            .await?;
        let received = u32::try_from(reply.environments.len()).unwrap_or(u32::MAX);
        environments.extend(reply.environments);
        request.limit = request.limit.saturating_sub(received);
        if !reply.has_more || received == 0 || request.limit == 0 {
            return Ok(ListReply {
                environments,
                ..reply
            });
        }
        request.offset = request.offset.saturating_add(u64::from(received));
        request.known_total = Some(reply.total);
    }
}

/// List environments
///
/// Returns one page of the environments that the caller may see, newest first. Ended
/// environments stay listed until they are purged.
#[utoipa::path(get, operation_id = "listEnvironments", path = "/environments", tag = "environments", params(ListQuery),
    responses((status = 200, description = "One page of environments.", body = EnvironmentList)))]
pub(crate) async fn list(
    State(gateway): State<Gateway>,
    Caller(principal): Caller,
    Query(query): Query<ListQuery>,
) -> Answer<axum::Json<EnvironmentList>> {
    let (limit, offset) = page(query.limit, query.offset)?;
    let request = ListRequest {
        visibility: visibility(&principal),
        status: query.status,
        label_selector: query.label.filter(|label| !label.trim().is_empty()),
        limit,
        offset,
        known_total: None,
    };
    let reply = read_page(&gateway, request).await?;
    Ok(axum::Json(EnvironmentList {
        environments: reply.environments.into_iter().map(list_entry).collect(),
        total: reply.total,
        limit,
        offset,
    }))
}

/// Get an environment
///
/// Returns one environment, with its present usage while it runs. Its owner sees the values of
/// `env`, an administrator sees their names. No response contains `secret_env`.
#[utoipa::path(get, operation_id = "getEnvironment", path = "/environments/{id}", tag = "environments",
    params(EnvironmentParameter),
    responses((status = 200, description = "The environment.", body = EnvironmentBody)))]
pub(crate) async fn get(
    State(gateway): State<Gateway>,
    Caller(principal): Caller,
    Admitted(location): Admitted,
) -> Answer<axum::Json<EnvironmentBody>> {
    let environment = match location.record {
        Some(environment) => Arc::unwrap_or_clone(environment),
        None => lookup::read_record(&gateway, location.id).await?,
    };
    let metrics = usage::read(&gateway, &environment).await.map(Into::into);
    Ok(axum::Json(EnvironmentBody {
        metrics,
        ..shown(environment, &principal)
    }))
}

/// Change an environment
///
/// Changes the name, the labels, the lifetime, the idle timeout or the network policy. An environment
/// that is terminating or has ended cannot be changed. A new network policy of a running environment
/// is applied before the answer. If its cluster does not answer, the answer is 503: the policy is
/// stored, will be applied, and the same request waits for it again.
#[utoipa::path(patch, operation_id = "patchEnvironment", path = "/environments/{id}", tag = "environments",
    params(EnvironmentParameter), request_body = PatchEnvironment,
    responses((status = 200, description = "The changed environment.", body = EnvironmentBody)))]
pub(crate) async fn patch(
    State(gateway): State<Gateway>,
    Caller(principal): Caller,
    Admitted(location): Admitted,
    Json(body): Json<PatchEnvironment>,
) -> Answer<axum::Json<EnvironmentBody>> {
    if body.is_empty() {
        return Err(Error::field(
            "body",
            "must have at least one of name, labels, timeout, idle_timeout and network_policy, \
             has none",
        )
        .into());
    }
    let deadline = match body.network_policy {
        Some(_) => NETWORK_POLICY_DEADLINE,
        None => SCHEDULER_DEADLINE,
    };
    let request = PatchRequest {
        id: location.id,
        name: body.name,
        labels: body.labels,
        timeout_s: body.timeout,
        idle_timeout_s: body.idle_timeout,
        network_policy: body.network_policy,
    };
    let patched = gateway.bus.call::<Patch>(&request, deadline).await?;
    Ok(axum::Json(EnvironmentBody {
        network_policy_applied: patched.network_policy_applied,
        ..shown(patched.environment, &principal)
    }))
}

/// Delete an environment
///
/// Ends the environment: its `status` is `terminating`, then `terminated`. Its processes get a
/// moment to stop unless `force` is true. Deleting it again has no further effect.
#[utoipa::path(delete, operation_id = "deleteEnvironment", path = "/environments/{id}", tag = "environments",
    params(EnvironmentParameter, DeleteQuery),
    responses((status = 204, description = "The deletion is stored and will be carried out.")))]
pub(crate) async fn delete(
    State(gateway): State<Gateway>,
    Admitted(location): Admitted,
    Query(query): Query<DeleteQuery>,
) -> Answer<StatusCode> {
    let request = DeleteRequest {
        id: location.id,
        force: query.force,
    };
    gateway
        .bus
        .call::<Delete>(&request, SCHEDULER_DEADLINE)
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

#[cfg(test)]
mod tests {
    use agentbox_contracts::error::ErrorCode;

    use super::*;

    #[test]
    fn idempotency_key_is_bounded_printable_text() {
        let read = |value: &[u8]| {
            let mut headers = HeaderMap::new();
            headers.insert("idempotency-key", HeaderValue::from_bytes(value).unwrap());
            idempotency_key(&headers)
        };
        assert_eq!(idempotency_key(&HeaderMap::new()), Ok(None));
        assert_eq!(read(b"k-1"), Ok(Some("k-1".into())));
        assert!(read(&[b'x'; 255]).is_ok());
        for bad in [&b""[..], &[b'x'; 256], b"\xc3\xa9", b"a\tb"] {
            assert_eq!(
                read(bad).unwrap_err().code,
                ErrorCode::Validation,
                "{bad:?}"
            );
        }
    }
}

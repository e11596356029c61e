//! The prefix and the parameters of paths.

use std::str::FromStr;

use agentbox_contracts::error::Error;
use agentbox_contracts::ids::{ApiKeyId, EnvironmentId, ExecId, UserId};
use axum::extract::{FromRequestParts, MatchedPath, RawPathParams};
use axum::http::request::Parts;
use utoipa::IntoParams;

use super::error::ApiError;
use crate::state::Gateway;

/// The beginning of every path of the API.
pub(crate) const BASE: &str = "/api/v1";

/// The parameter of a path that names an environment.
#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
#[allow(dead_code, reason = "describes a parameter")]
pub(crate) struct EnvironmentParameter {
    /// The environment's id.
    #[param(inline, example = "env-0123456789abcdef")]
    id: EnvironmentId,
}

/// The second parameter of a path that names an execution.
#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
#[allow(dead_code, reason = "describes a parameter")]
pub(crate) struct ExecutionParameter {
    /// The execution's id.
    #[param(inline, example = "exec-0123456789abcdef")]
    execution: ExecId,
}

/// The parameter of a path that names a user.
#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
#[allow(dead_code, reason = "describes a parameter")]
pub(crate) struct UserParameter {
    /// The user's id.
    #[param(inline, example = "user-0123456789abcdef")]
    user: UserId,
}

/// The parameter of a path that names an API key.
#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
#[allow(dead_code, reason = "describes a parameter")]
pub(crate) struct KeyParameter {
    /// The API key's id.
    #[param(inline, example = "key-0123456789abcdef")]
    key: ApiKeyId,
}

/// The parameter of a path that names a registry.
#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
#[allow(dead_code, reason = "describes a parameter")]
pub(crate) struct RegistryParameter {
    /// The registry's `host` or `host:port`, as in the name of an image; `docker.io` for Docker Hub.
    #[param(example = "registry.example:5000", max_length = 64)]
    registry: String,
}

/// The parameter of a path that names a pool.
#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
#[allow(dead_code, reason = "describes a parameter")]
pub(crate) struct PoolParameter {
    /// The name of the pool: an RFC 1123 label.
    #[param(
        example = "python",
        min_length = 1,
        max_length = 63,
        pattern = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
    )]
    pool: String,
}

/// The registry in a path. With the name `String`, utoipa would describe the parameter a second time.
pub(crate) type Registry = String;
/// The name of the pool in a path.
pub(crate) type PoolName = String;

/// The parameter of a path that names a cluster.
#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
#[allow(dead_code, reason = "describes a parameter")]
pub(crate) struct ClusterParameter {
    /// The cluster's name in the configuration.
    #[param(example = "eu-1", max_length = 63)]
    cluster: String,
}

/// The cluster in a path. See [`Registry`].
pub(crate) type ClusterName = String;

/// The parameter of a path that names a dead letter.
#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
#[allow(dead_code, reason = "describes a parameter")]
pub(crate) struct DeadLetterParameter {
    /// The number of the dead letter.
    #[param(example = 17)]
    letter: u64,
}

/// The number of a dead letter in a path. See [`Registry`].
pub(crate) type DeadLetterNumber = u64;

/// The id in the path. Text that is not an id names no resource: the answer is 404.
pub(crate) struct Path<T>(pub T);

/// Reads the first parameter of a path.
///
/// # Errors
/// [`agentbox_contracts::error::ErrorCode::NotFound`] when it is not an id.
pub(crate) async fn id<T: FromStr>(parts: &mut Parts) -> Result<T, Error> {
    let Ok(parameters) = RawPathParams::from_request_parts(parts, &()).await else {
        return first_as_sent(parts).ok_or_else(|| Error::not_found("resource"));
    };
    let (name, value) = parameters
        .iter()
        .next()
        .ok_or_else(|| Error::not_found("resource"))?;
    let resource = match name {
        "user" => "user",
        "key" => "API key",
        "registry" => "registry credential",
        "pool" => "pool",
        "webhook" => "webhook",
        "cluster" => "cluster",
        "letter" => "dead letter",
        _ => "environment",
    };
    value.parse().map_err(|_| Error::not_found(resource))
}

/// The first parameter of a path that has another one which is not UTF-8: the rest of the path to a
/// port may have any bytes.
fn first_as_sent<T: FromStr>(parts: &Parts) -> Option<T> {
    let pattern = parts.extensions.get::<MatchedPath>()?.as_str();
    let at = pattern.split('/').position(|part| part.starts_with('{'))?;
    parts.uri.path().split('/').nth(at)?.parse().ok()
}

/// Reads the parameter `execution` of a path. `None` when it is absent, or not an id.
pub(super) async fn execution(parts: &mut Parts) -> Option<ExecId> {
    let parameters = RawPathParams::from_request_parts(parts, &()).await.ok()?;
    let mut parameters = parameters.iter();
    let (_, value) = parameters.find(|(name, _)| *name == "execution")?;
    value.parse().ok()
}

impl<T: FromStr + Send> FromRequestParts<Gateway> for Path<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &Gateway) -> Result<Self, ApiError> {
        Ok(Self(id(parts).await?))
    }
}

/// The execution in the path, after its environment. Text that is not an id names none: the answer is
/// 404.
pub(crate) struct ExecutionId(pub ExecId);

impl FromRequestParts<Gateway> for ExecutionId {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &Gateway) -> Result<Self, ApiError> {
        match execution(parts).await {
            Some(id) => Ok(Self(id)),
            None => Err(Error::not_found("execution").into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::body::{Body, to_bytes};
    use axum::extract::Request;
    use axum::routing::any;
    use tower::ServiceExt as _;

    use super::*;

    /// The environment in a path to a port, or the error.
    async fn environment(path: &str) -> String {
        let handler = |request: Request| async move {
            let (mut parts, _) = request.into_parts();
            match id::<EnvironmentId>(&mut parts).await {
                Ok(id) => id.to_string(),
                Err(error) => error.message,
            }
        };
        let pattern = "/environments/{id}/ports/{port}/{*path}";
        let router: Router = Router::new().route(pattern, any(handler));
        let request = axum::http::Request::get(path);
        let request = request.body(Body::empty()).unwrap();
        let answer = router.oneshot(request).await.unwrap();
        let body = to_bytes(answer.into_body(), 4096).await.unwrap();
        String::from_utf8(body.to_vec()).unwrap()
    }

    #[tokio::test]
    async fn id_is_read_whatever_bytes_follow_it() {
        let id = "env-0123456789abcdef";
        for rest in ["80/a", "80/%20", "80/a%ff/b", "%ff/a"] {
            let path = format!("/environments/{id}/ports/{rest}");
            assert_eq!(environment(&path).await, id, "{path}");
        }
        for path in ["/environments/x/ports/80/a", "/environments/%ff/ports/80/a"] {
            assert!(environment(path).await.ends_with(" not found"), "{path}");
        }
    }
}

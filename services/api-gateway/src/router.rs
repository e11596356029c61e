//! Every route, in one table: its action, its rate-limit category and its handler.
//! The handler's `#[utoipa::path]` has the method, the path and the documentation.
//!
//! A request to the host of a preview reaches no route.
//!
//! * I1. A route is served only through [`admit`], which authorizes its action: no handler
//!   runs for a caller who may not do it.

use axum::extract::Request;
use axum::http::header::HOST;
use axum::http::uri::Authority;
use axum::middleware::from_fn_with_state;
use axum::routing::{MethodRouter, any};
use axum::{Extension, Router, middleware};
use tower::ServiceExt;
use utoipa::openapi::OpenApi;
use utoipa_axum::router::UtoipaMethodRouter;
use utoipa_axum::routes;

use crate::authorize::Action;
use crate::edge::admit::{Admission, admit};
use crate::edge::path::BASE;
use crate::edge::trace::SampledTraces;
use crate::edge::unmatched::{no_method, no_route};
use crate::edge::{cors, headers, slots, trace};
use crate::openapi::{Operations, Reference};
use crate::previews::host;
use crate::previews::serve::serve;
use crate::rate_limit::Category;
use crate::rate_limit::flood::FloodLimiter;
use crate::state::Gateway;
use crate::{
    api_keys, attach, audit, auth, clusters, dead_letters, environments, events, exec, executions,
    files, health, logs, openapi, pools, ports, previews, registries, tickets, user_usage, users,
    webhooks,
};

/// One row of the table.
pub(crate) struct Route {
    pub action: Action,
    pub category: Category,
    pub operations: Operations,
    handler: MethodRouter<Gateway>,
}

impl Route {
    /// Serves another handler than the documented one.
    fn with(self, handler: MethodRouter<Gateway>) -> Self {
        Self { handler, ..self }
    }
}

fn route(
    action: Action,
    category: Category,
    (schemas, paths, handler): UtoipaMethodRouter<Gateway>,
) -> Route {
    Route {
        action,
        category,
        operations: Operations {
            schemas,
            paths: paths.paths,
            is_open: action.is_open(),
        },
        handler,
    }
}

#[rustfmt::skip]
pub(crate) fn table() -> Vec<Route> {
    use Action as A;
    use Category as C;
    vec![
        route(A::LogIn,             C::Auth,      routes!(auth::login)),
        route(A::Myself,            C::Other,     routes!(auth::me)),
        route(A::LogOut,            C::Other,     routes!(auth::logout)),
        route(A::ChangePassword,    C::Auth,      routes!(auth::change_password)),
        route(A::IssueTicket,       C::Other,     routes!(tickets::create)),
        route(A::ManageUsers,       C::Other,     routes!(users::create)),
        route(A::ManageUsers,       C::Other,     routes!(users::list)),
        route(A::ManageUsers,       C::Other,     routes!(users::get)),
        route(A::ManageUsers,       C::Other,     routes!(users::patch)),
        route(A::ManageUsers,       C::Other,     routes!(users::delete)),
        route(A::OperateSystem,     C::Other,     routes!(user_usage::get)),
        route(A::ManageOwnKeys,     C::Other,     routes!(api_keys::create)),
        route(A::ManageOwnKeys,     C::Other,     routes!(api_keys::list)),
        route(A::ManageOwnKeys,     C::Other,     routes!(api_keys::get)),
        route(A::ManageOwnKeys,     C::Other,     routes!(api_keys::revoke)),
        route(A::ManageRegistries,  C::Other,     routes!(registries::list)),
        route(A::ManageRegistries,  C::Other,     routes!(registries::set)),
        route(A::ManageRegistries,  C::Other,     routes!(registries::delete)),
        route(A::ManagePools,       C::Other,     routes!(pools::list)),
        route(A::ManagePools,       C::Other,     routes!(pools::get)),
        route(A::ManagePools,       C::Other,     routes!(pools::set)),
        route(A::ManagePools,       C::Other,     routes!(pools::delete)),
        route(A::CreateEnvironment, C::Create,    routes!(environments::create)),
        route(A::ListEnvironments,  C::Other,     routes!(environments::list)),
        route(A::ViewEnvironment,   C::Other,     routes!(environments::get)),
        route(A::PatchEnvironment,  C::Other,     routes!(environments::patch)),
        route(A::DeleteEnvironment, C::Other,     routes!(environments::delete)),
        route(A::Exec,              C::Exec,      routes!(exec::exec)),
        route(A::ReadLogs,          C::Other,     routes!(logs::logs)),
        route(A::Attach,            C::Exec,      routes!(attach::attach)),
        route(A::StartExecution,    C::Exec,      routes!(executions::start::create)),
        route(A::ViewExecutions,    C::Other,     routes!(executions::list::list)),
        route(A::ViewExecutions,    C::Other,     routes!(executions::status::get)),
        route(A::ControlExecution,  C::Other,     routes!(executions::control::delete)),
        route(A::ReadOutput,        C::Other,     routes!(executions::output::output)),
        route(A::ControlExecution,  C::Other,     routes!(executions::stdin::write)),
        route(A::ControlExecution,  C::Other,     routes!(executions::control::signal)),
        route(A::ControlExecution,  C::Other,     routes!(executions::control::resize)),
        route(A::AttachExecution,   C::Exec,      routes!(attach::attach_execution)),
        route(A::ViewFiles,         C::Files,     routes!(files::view::view)),
        route(A::ChangeFiles,       C::Files,     routes!(files::change::patch)),
        route(A::ChangeFiles,       C::Files,     routes!(files::change::delete)),
        route(A::DownloadFile,      C::Files,     routes!(files::download::download)),
        route(A::UploadFile,        C::Files,     routes!(files::upload::upload)),
        route(A::ChangeFiles,       C::Files,     routes!(files::change::create_directory)),
        route(A::ChangeFiles,       C::Files,     routes!(files::change::move_file)),
        route(A::ChangeFiles,       C::Files,     routes!(files::change::copy_file)),
        route(A::WatchFiles,        C::Files,     routes!(files::watch::watch)),
        route(A::ViewEnvironment,   C::Other,     routes!(events::list_for_environment)),
        route(A::ListEnvironments,  C::Other,     routes!(events::list_all)),
        route(A::ViewPorts,         C::Other,     routes!(ports::list)),
        route(A::UsePort,           C::Uncounted, routes!(ports::request)).with(any(ports::request)),
        route(A::ManagePreviews,    C::Other,     routes!(previews::create)),
        route(A::ViewPorts,         C::Other,     routes!(previews::list)),
        route(A::ManagePreviews,    C::Other,     routes!(previews::delete)),
        route(A::ManageWebhooks,    C::Other,     routes!(webhooks::create)),
        route(A::ManageWebhooks,    C::Other,     routes!(webhooks::list)),
        route(A::ManageWebhooks,    C::Other,     routes!(webhooks::get)),
        route(A::ManageWebhooks,    C::Other,     routes!(webhooks::delete)),
        route(A::ManageWebhooks,    C::Other,     routes!(webhooks::deliveries)),
        route(A::ManageWebhooks,    C::Other,     routes!(webhooks::redeliver)),
        route(A::ReadAudit,         C::Other,     routes!(audit::list)),
        route(A::OperateSystem,     C::Other,     routes!(clusters::list)),
        route(A::OperateSystem,     C::Other,     routes!(clusters::cordon)),
        route(A::OperateSystem,     C::Other,     routes!(clusters::uncordon)),
        route(A::OperateSystem,     C::Other,     routes!(clusters::drain)),
        route(A::OperateSystem,     C::Other,     routes!(dead_letters::list)),
        route(A::OperateSystem,     C::Other,     routes!(dead_letters::get)),
        route(A::OperateSystem,     C::Other,     routes!(dead_letters::discard)),
        route(A::OperateSystem,     C::Other,     routes!(dead_letters::replay)),
        route(A::Public,            C::Other,     routes!(health::health)),
        route(A::Public,            C::Uncounted, routes!(health::live)),
        route(A::Public,            C::Uncounted, routes!(health::ready)),
        route(A::Public,            C::Other,     routes!(openapi::json)),
        route(A::Public,            C::Other,     routes!(openapi::page)),
        route(A::Public,            C::Other,     routes!(openapi::script)),
    ]
}

/// The OpenAPI 3.1 document of the table.
#[must_use]
pub fn document() -> OpenApi {
    openapi::document(table().into_iter().map(|route| route.operations))
}

/// The patterns of a documented path. A last `{path}` is the rest of the path, which may be empty.
fn patterns(path: &str) -> Vec<String> {
    match path.strip_suffix("/{path}") {
        Some(begin) => vec![
            begin.to_owned(),
            format!("{begin}/"),
            format!("{begin}/{{*path}}"),
        ],
        None => vec![path.to_owned()],
    }
}

/// Whether `path` is also served without [`BASE`], because tools and people look there first.
fn is_at_root_too(path: &str) -> bool {
    path == "/openapi.json" || path.starts_with("/docs")
}

/// Serves the API and the previews.
pub(crate) fn router(gateway: Gateway, flood_limiter: &FloodLimiter) -> Router {
    let sampled = SampledTraces::new(gateway.config.max_sampled_traces_per_second);
    let api = api(&gateway, flood_limiter, &sampled);
    let previews = previews(&gateway, flood_limiter, &sampled);
    let by_host = move |mut request: Request| {
        let (gateway, api, previews) = (gateway.clone(), api.clone(), previews.clone());
        async move {
            let of_uri = request.uri().authority().map(Authority::as_str);
            let of_header = request.headers().get(HOST);
            let host = of_uri.or_else(|| of_header.and_then(|host| host.to_str().ok()));
            let domain = gateway.config.preview_domain.as_deref();
            let answer = match host.and_then(|host| host::read(host, domain)) {
                Some(preview) => {
                    request.extensions_mut().insert(preview);
                    previews.oneshot(request).await
                }
                None => api.oneshot(request).await,
            };
            answer.unwrap_or_else(|never| match never {})
        }
    };
    Router::new().fallback(by_host)
}

/// The hosts of previews.
fn previews(gateway: &Gateway, flood_limiter: &FloodLimiter, sampled: &SampledTraces) -> Router {
    flood_limiter
        .wrap(Router::new().fallback(serve))
        .layer(middleware::from_fn(headers::check))
        .layer(middleware::from_fn(slots::require_slot))
        .layer(from_fn_with_state(sampled.clone(), trace::trace))
        .with_state(gateway.clone())
}

fn api(gateway: &Gateway, flood_limiter: &FloodLimiter, sampled: &SampledTraces) -> Router {
    let reference = Reference::new(&document());
    let mut router = Router::new();
    for Route {
        action,
        category,
        operations,
        handler,
    } in table()
    {
        let admission = Admission {
            gateway: gateway.clone(),
            action,
            category,
        };
        let handler = match action {
            Action::Public => handler.layer(Extension(reference.clone())),
            _ => handler,
        };
        let admitted = from_fn_with_state(admission, admit);
        let handler = match action {
            // It accepts every method: its handler is the fallback.
            Action::UsePort => handler.layer(admitted),
            // The layer is not around the fallback: a method that the path does not accept is
            // refused before authentication.
            _ => handler.route_layer(admitted),
        };
        for path in operations.paths.keys() {
            if is_at_root_too(path) {
                router = router.route(path, handler.clone());
            }
            for pattern in patterns(path) {
                router = router.route(&format!("{BASE}{pattern}"), handler.clone());
            }
        }
    }
    let mut router = flood_limiter.wrap(
        router
            .fallback(no_route)
            .method_not_allowed_fallback(no_method),
    );
    router = router
        .layer(middleware::from_fn(headers::check))
        .layer(middleware::from_fn(slots::require_slot));
    let origins = &gateway.config.cors_origins;
    if !origins.is_empty() {
        // Around these limits, so that pages can read their refusals.
        router = router.layer(from_fn_with_state(cors::rules(origins), cors::apply));
    }
    router
        .layer(middleware::from_fn(headers::add_common))
        .layer(from_fn_with_state(sampled.clone(), trace::trace))
        .with_state(gateway.clone())
}

//! Every route, in one table: method, path, what it lets a caller do, how it is counted,
//! who answers.
//!
//! * I1. A route is served only through [`admit`], which authorizes its action: a handler
//!   is never reached by who may not do it.

use axum::handler::Handler;
use axum::http::Method;
use axum::middleware::{from_fn_with_state, map_response};
use axum::routing::{MethodFilter, MethodRouter, on};
use axum::{Router, middleware};

use crate::authorize::Action;
use crate::edge::admit::{Admission, admit};
use crate::edge::unmatched::{no_method, no_route};
use crate::edge::{headers, trace};
use crate::rate_limit::Category;
use crate::rate_limit::shield::Shield;
use crate::state::Gateway;
use crate::{
    api_keys, attach, auth, environments, events, exec, health, logs, openapi, tickets, users,
};

/// What every path of the API begins with.
pub(crate) const BASE: &str = "/api/v1";

/// One row of the table.
pub(crate) struct Route {
    #[cfg_attr(
        not(test),
        expect(
            dead_code,
            reason = "the table is compared by it with the document and the rights"
        )
    )]
    pub method: Method,
    /// Without [`BASE`].
    pub path: &'static str,
    pub action: Action,
    pub category: Category,
    handler: MethodRouter<Gateway>,
}

fn route<H, T>(
    method: Method,
    path: &'static str,
    action: Action,
    category: Category,
    handler: H,
) -> Route
where
    H: Handler<T, Gateway>,
    T: 'static,
{
    let filter = match method {
        Method::POST => MethodFilter::POST,
        Method::PATCH => MethodFilter::PATCH,
        Method::DELETE => MethodFilter::DELETE,
        // With HEAD, as axum has it.
        _ => MethodFilter::GET,
    };
    Route {
        method,
        path,
        action,
        category,
        handler: on(filter, handler),
    }
}

#[rustfmt::skip]
pub(crate) fn table() -> Vec<Route> {
    use Action as A;
    use Category as C;
    const GET: Method = Method::GET;
    const POST: Method = Method::POST;
    const PATCH: Method = Method::PATCH;
    const DELETE: Method = Method::DELETE;
    vec![
        route(POST,   "/auth/login",              A::LogIn,             C::Auth,      auth::login),
        route(GET,    "/auth/me",                 A::Myself,            C::Other,     auth::me),
        route(POST,   "/auth/logout",             A::LogOut,            C::Other,     auth::logout),
        route(POST,   "/auth/change-password",    A::ChangePassword,    C::Auth,      auth::change_password),
        route(POST,   "/auth/tickets",            A::IssueTicket,       C::Other,     tickets::create),
        route(POST,   "/users",                   A::ManageUsers,       C::Other,     users::create),
        route(GET,    "/users",                   A::ManageUsers,       C::Other,     users::list),
        route(GET,    "/users/{user}",            A::ManageUsers,       C::Other,     users::get),
        route(PATCH,  "/users/{user}",            A::ManageUsers,       C::Other,     users::patch),
        route(DELETE, "/users/{user}",            A::ManageUsers,       C::Other,     users::delete),
        route(POST,   "/api-keys",                A::ManageOwnKeys,     C::Other,     api_keys::create),
        route(GET,    "/api-keys",                A::ManageOwnKeys,     C::Other,     api_keys::list),
        route(GET,    "/api-keys/{key}",          A::ManageOwnKeys,     C::Other,     api_keys::get),
        route(DELETE, "/api-keys/{key}",          A::ManageOwnKeys,     C::Other,     api_keys::revoke),
        route(POST,   "/environments",            A::CreateEnvironment, C::Create,    environments::create),
        route(GET,    "/environments",            A::ListEnvironments,  C::Other,     environments::list),
        route(GET,    "/environments/{id}",       A::ViewEnvironment,   C::Other,     environments::get),
        route(PATCH,  "/environments/{id}",       A::PatchEnvironment,  C::Other,     environments::patch),
        route(DELETE, "/environments/{id}",       A::DeleteEnvironment, C::Other,     environments::delete),
        route(POST,   "/environments/{id}/exec",  A::Exec,              C::Exec,      exec::exec),
        route(GET,    "/environments/{id}/logs",  A::ReadLogs,          C::Other,     logs::logs),
        route(GET,    "/environments/{id}/attach",A::Attach,            C::Exec,      attach::attach),
        route(GET,    "/environments/{id}/events",A::ViewEnvironment,   C::Other,     events::of_one),
        route(GET,    "/events",                  A::ListEnvironments,  C::Other,     events::of_all),
        route(GET,    "/health",                  A::Public,            C::Other,     health::health),
        route(GET,    "/health/live",             A::Public,            C::Uncounted, health::live),
        route(GET,    "/health/ready",            A::Public,            C::Uncounted, health::ready),
        route(GET,    "/openapi.json",            A::Public,            C::Other,     openapi::json),
        route(GET,    "/docs",                    A::Public,            C::Other,     openapi::page),
    ]
}

/// Also at the root, where tools and people look first.
fn is_at_root_too(path: &str) -> bool {
    matches!(path, "/openapi.json" | "/docs")
}

pub(crate) fn router(gateway: Gateway, shield: &Shield) -> Router {
    let mut router = Router::new();
    for Route {
        path,
        action,
        category,
        handler,
        ..
    } in table()
    {
        let admission = Admission {
            gateway: gateway.clone(),
            action,
            category,
        };
        // Not around the fallback: what a path does not take is answered before it is
        // asked who calls.
        let handler = handler.route_layer(from_fn_with_state(admission, admit));
        if is_at_root_too(path) {
            router = router.route(path, handler.clone());
        }
        router = router.route(&format!("{BASE}{path}"), handler);
    }
    shield
        .around(
            router
                .fallback(no_route)
                .method_not_allowed_fallback(no_method),
        )
        .layer(map_response(headers::finish))
        .layer(middleware::from_fn(trace::trace))
        .with_state(gateway)
}

//! Every route: path, method, rate category, handler.

use axum::Router;
use axum::middleware::{from_fn, from_fn_with_state};
use axum::routing::{MethodRouter, get, post};

use crate::edge::admit::{Admission, admit};
use crate::edge::error::{no_method, no_route};
use crate::edge::trace::trace;
use crate::rate_limit::Category;
use crate::state::Gateway;
use crate::{api_keys, attach, environments, events, exec, health, identity, logs, openapi};

pub(crate) fn router(gateway: Gateway) -> Router {
    let limited = |category: Category, route: MethodRouter<Gateway>| {
        let admission = Admission {
            gateway: gateway.clone(),
            category,
        };
        route.route_layer(from_fn_with_state(admission, admit))
    };
    let auth = |route| limited(Category::Auth, route);
    let create = |route| limited(Category::Create, route);
    let run = |route| limited(Category::Exec, route);
    let other = |route| limited(Category::Other, route);

    let api = Router::new()
        .route("/auth/login", auth(post(identity::login)))
        .route("/auth/me", other(get(identity::me)))
        .route("/auth/logout", other(post(identity::logout)))
        .route(
            "/auth/change-password",
            auth(post(identity::change_password)),
        )
        .route("/auth/tickets", other(post(identity::create_ticket)))
        .route(
            "/users",
            other(post(identity::create_user).get(identity::list_users)),
        )
        .route(
            "/users/{user}",
            other(
                get(identity::get_user)
                    .patch(identity::patch_user)
                    .delete(identity::delete_user),
            ),
        )
        .route(
            "/api-keys",
            other(post(api_keys::create).get(api_keys::list)),
        )
        .route(
            "/api-keys/{key}",
            other(get(api_keys::get).delete(api_keys::revoke)),
        )
        .route(
            "/environments",
            create(post(environments::create)).merge(other(get(environments::list))),
        )
        .route(
            "/environments/{id}",
            other(
                get(environments::get)
                    .patch(environments::patch)
                    .delete(environments::delete),
            ),
        )
        .route("/environments/{id}/exec", run(post(exec::exec)))
        .route("/environments/{id}/logs", other(get(logs::logs)))
        .route("/environments/{id}/attach", run(get(attach::attach)))
        .route("/environments/{id}/events", other(get(events::of_one)))
        .route("/events", other(get(events::of_all)))
        .route("/health", get(health::health))
        .route("/health/live", get(health::live))
        .route("/health/ready", get(health::ready))
        .route("/openapi.json", get(openapi::json));

    Router::new()
        .nest("/api/v1", api)
        .route("/openapi.json", get(openapi::json))
        .route("/docs", get(openapi::docs))
        .fallback(no_route)
        .method_not_allowed_fallback(no_method)
        .layer(from_fn(trace))
        .with_state(gateway)
}

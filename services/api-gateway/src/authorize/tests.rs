//! Every route × every principal. A route without a row here fails the first test.

mod tickets;

use std::collections::{BTreeMap, BTreeSet};

use agentbox_contracts::ids::{ApiKeyId, LoginId};

use super::*;
use crate::router;

/// The principals, in the order of the letters of each row below.
const PRINCIPALS: [&str; 11] = [
    // Expired, revoked and unknown credentials are refused earlier, as if there were none.
    "anonymous",
    "owner",
    "owner's key without permissions",
    "stranger",
    "admin",
    "read key",
    "write key",
    "admin key",
    "key for another environment",
    "stranger's key naming it",
    "ticket for its logs",
];

/// A: allowed, U: 401, F: 403, N: 404.
const TABLE: &[(&str, &str, &str)] = &[
    ("POST", "/auth/login", "AAAAAAAAAAA"),
    ("GET", "/auth/me", "UAAAAAAAAAF"),
    ("POST", "/auth/logout", "UAFAAFFFFFF"),
    ("POST", "/auth/change-password", "UAAAAFFFFFF"),
    ("POST", "/auth/tickets", "UAAAAAAAAAF"),
    ("POST", "/users", "UFFFAFFFFFF"),
    ("GET", "/users", "UFFFAFFFFFF"),
    ("GET", "/users/{user}", "UFFFAFFFFFF"),
    ("PATCH", "/users/{user}", "UFFFAFFFFFF"),
    ("DELETE", "/users/{user}", "UFFFAFFFFFF"),
    ("GET", "/users/{user}/usage", "UFFFAFFFFFF"),
    ("POST", "/api-keys", "UAAAAFFFFFF"),
    ("GET", "/api-keys", "UAAAAFFFFFF"),
    ("GET", "/api-keys/{key}", "UAAAAFFFFFF"),
    ("DELETE", "/api-keys/{key}", "UAAAAFFFFFF"),
    ("GET", "/registries", "UAFAAFFFFFF"),
    ("PUT", "/registries/{registry}", "UAFAAFFFFFF"),
    ("DELETE", "/registries/{registry}", "UAFAAFFFFFF"),
    ("GET", "/pools", "UFFFAFFFFFF"),
    ("GET", "/pools/{pool}", "UFFFAFFFFFF"),
    ("PUT", "/pools/{pool}", "UFFFAFFFFFF"),
    ("DELETE", "/pools/{pool}", "UFFFAFFFFFF"),
    ("POST", "/environments", "UAAAAFFFFFF"),
    ("GET", "/environments", "UAAAAAAAAAF"),
    ("GET", "/environments/{id}", "UAANAAAANNF"),
    ("PATCH", "/environments/{id}", "UAANAFFANNF"),
    ("DELETE", "/environments/{id}", "UAANAFFANNF"),
    ("POST", "/environments/{id}/exec", "UAANAFAANNF"),
    ("GET", "/environments/{id}/logs", "UAANAAAANNA"),
    ("GET", "/environments/{id}/attach", "UAANAFAANNF"),
    ("POST", "/environments/{id}/executions", "UAANAFAANNF"),
    ("GET", "/environments/{id}/executions", "UAANAAAANNF"),
    (
        "GET",
        "/environments/{id}/executions/{execution}",
        "UAANAAAANNF",
    ),
    (
        "DELETE",
        "/environments/{id}/executions/{execution}",
        "UAANAFAANNF",
    ),
    (
        "GET",
        "/environments/{id}/executions/{execution}/output",
        "UAANAAAANNF",
    ),
    (
        "POST",
        "/environments/{id}/executions/{execution}/stdin",
        "UAANAFAANNF",
    ),
    (
        "POST",
        "/environments/{id}/executions/{execution}/signal",
        "UAANAFAANNF",
    ),
    (
        "POST",
        "/environments/{id}/executions/{execution}/resize",
        "UAANAFAANNF",
    ),
    (
        "GET",
        "/environments/{id}/executions/{execution}/attach",
        "UAANAFAANNF",
    ),
    ("GET", "/environments/{id}/events", "UAANAAAANNF"),
    ("GET", "/environments/{id}/files", "UAANAAAANNF"),
    ("PATCH", "/environments/{id}/files", "UAANAFAANNF"),
    ("DELETE", "/environments/{id}/files", "UAANAFAANNF"),
    ("GET", "/environments/{id}/files/content", "UAANAFAANNF"),
    ("PUT", "/environments/{id}/files/content", "UAANAFAANNF"),
    (
        "POST",
        "/environments/{id}/files/directories",
        "UAANAFAANNF",
    ),
    ("POST", "/environments/{id}/files/move", "UAANAFAANNF"),
    ("POST", "/environments/{id}/files/copy", "UAANAFAANNF"),
    ("GET", "/environments/{id}/files/events", "UAANAFAANNF"),
    ("GET", "/environments/{id}/ports", "UAANAAAANNF"),
    (
        "GET",
        "/environments/{id}/ports/{port}/{path}",
        "UAANAFAANNF",
    ),
    ("POST", "/environments/{id}/previews", "UAANAFAANNF"),
    ("GET", "/environments/{id}/previews", "UAANAAAANNF"),
    (
        "DELETE",
        "/environments/{id}/previews/{preview}",
        "UAANAFAANNF",
    ),
    ("GET", "/events", "UAAAAAAAAAF"),
    ("POST", "/webhooks", "UAFAAFFFFFF"),
    ("GET", "/webhooks", "UAFAAFFFFFF"),
    ("GET", "/webhooks/{webhook}", "UAFAAFFFFFF"),
    ("DELETE", "/webhooks/{webhook}", "UAFAAFFFFFF"),
    ("GET", "/webhooks/{webhook}/deliveries", "UAFAAFFFFFF"),
    (
        "POST",
        "/webhooks/{webhook}/deliveries/{delivery}/redeliver",
        "UAFAAFFFFFF",
    ),
    ("GET", "/audit", "UAAAAFFFFFF"),
    ("GET", "/clusters", "UFFFAFFFFFF"),
    ("POST", "/clusters/{cluster}/cordon", "UFFFAFFFFFF"),
    ("POST", "/clusters/{cluster}/uncordon", "UFFFAFFFFFF"),
    ("POST", "/clusters/{cluster}/drain", "UFFFAFFFFFF"),
    ("GET", "/dead-letters", "UFFFAFFFFFF"),
    ("GET", "/dead-letters/{letter}", "UFFFAFFFFFF"),
    ("DELETE", "/dead-letters/{letter}", "UFFFAFFFFFF"),
    ("POST", "/dead-letters/{letter}/replay", "UFFFAFFFFFF"),
    ("GET", "/health", "AAAAAAAAAAA"),
    ("GET", "/health/live", "AAAAAAAAAAA"),
    ("GET", "/health/ready", "AAAAAAAAAAA"),
    ("GET", "/openapi.json", "AAAAAAAAAAA"),
    ("GET", "/docs", "AAAAAAAAAAA"),
    ("GET", "/docs/redoc.js", "AAAAAAAAAAA"),
];

/// The method and path of each route of the router, with its action.
fn routes() -> Vec<(String, String, Action)> {
    let mut routes = Vec::new();
    for route in router::table() {
        let paths = serde_json::to_value(&route.operations.paths).unwrap();
        for (path, methods) in paths.as_object().unwrap() {
            for method in methods.as_object().unwrap().keys() {
                routes.push((method.to_uppercase(), path.clone(), route.action));
            }
        }
    }
    routes
}

fn principal(user: &UserId, role: Role, credential: Credential, scope: Scope) -> Principal {
    Principal {
        user: user.clone(),
        username: "someone".into(),
        role,
        credential,
        scope,
        expires_at: None,
        management: false,
        limits: Default::default(),
        profile: None,
    }
}

fn principals(owner: &UserId, id: &EnvironmentId) -> Vec<Option<Principal>> {
    let stranger = UserId::random();
    let login = || Credential::Login {
        id: LoginId::random(),
    };
    let key = || Credential::ApiKey {
        id: ApiKeyId::random(),
    };
    let only =
        |id: &EnvironmentId, level| Scope::Environments(BTreeMap::from([(id.clone(), level)]));
    let ticket = Credential::Ticket {
        environment: id.clone(),
        action: TicketAction::Logs,
        resource: None,
        issued_by: Box::new(login()),
    };
    let user = Role::User;
    vec![
        None,
        Some(principal(owner, user, login(), Scope::Full)),
        Some(principal(owner, user, key(), Scope::Full)),
        Some(principal(&stranger, user, login(), Scope::Full)),
        Some(principal(&stranger, Role::Admin, login(), Scope::Full)),
        Some(principal(owner, user, key(), only(id, Permission::Read))),
        Some(principal(owner, user, key(), only(id, Permission::Write))),
        Some(principal(owner, user, key(), only(id, Permission::Admin))),
        Some(principal(
            owner,
            user,
            key(),
            only(&EnvironmentId::random(), Permission::Admin),
        )),
        Some(principal(
            &stranger,
            user,
            key(),
            only(id, Permission::Admin),
        )),
        Some(principal(owner, user, ticket, only(id, Permission::Read))),
    ]
}

fn letter(outcome: Result<(), Error>) -> char {
    match outcome.map_err(|error| error.code) {
        Ok(()) => 'A',
        Err(ErrorCode::Unauthorized) => 'U',
        Err(ErrorCode::Forbidden) => 'F',
        Err(ErrorCode::NotFound) => 'N',
        Err(other) => panic!("{other:?}"),
    }
}

#[test]
fn every_route_has_exactly_one_row() {
    let routes: Vec<(String, String)> = routes()
        .into_iter()
        .map(|(method, path, _)| (method, path))
        .collect();
    let rows: BTreeSet<(String, String)> = TABLE
        .iter()
        .map(|(method, path, _)| ((*method).to_owned(), (*path).to_owned()))
        .collect();
    assert_eq!(rows.len(), TABLE.len(), "a row is given twice");
    assert_eq!(
        routes.iter().cloned().collect::<BTreeSet<_>>(),
        rows,
        "routes on the left, rows on the right"
    );
    assert_eq!(routes.len(), rows.len(), "a route is given twice");
}

#[test]
fn every_route_allows_each_principal_as_in_the_table() {
    let (owner, id) = (UserId::random(), EnvironmentId::random());
    let target = Target {
        id: &id,
        owner: &owner,
        resource: None,
    };
    let principals = principals(&owner, &id);
    assert_eq!(principals.len(), PRINCIPALS.len());
    for (method, path, action) in routes() {
        let (_, _, expected) = TABLE
            .iter()
            .find(|row| row.0 == method && row.1 == path)
            .unwrap();
        for ((name, principal), expected) in
            PRINCIPALS.iter().zip(&principals).zip(expected.chars())
        {
            let on = action.required_permission().map(|_| target);
            let outcome = letter(authorize(principal.as_ref(), action, on));
            assert_eq!(outcome, expected, "{method} {path} as {name}");
        }
    }
}

#[test]
fn key_needs_management_to_manage_users_and_registries_and_to_operate() {
    let admin = UserId::random();
    let key = Credential::ApiKey {
        id: ApiKeyId::random(),
    };
    let key = principal(&admin, Role::Admin, key, Scope::Full);
    let managing = |role| Principal {
        role,
        management: true,
        ..key.clone()
    };
    for (principal, expected) in [
        (key.clone(), 'F'),
        (managing(Role::Admin), 'A'),
        (managing(Role::User), 'F'),
    ] {
        for action in [Action::ManageUsers, Action::OperateSystem] {
            let outcome = authorize(Some(&principal), action, None);
            assert_eq!(letter(outcome), expected, "{action:?} {principal:?}");
        }
    }
    for (principal, expected) in [(key.clone(), 'F'), (managing(Role::User), 'A')] {
        let outcome = authorize(Some(&principal), Action::ManageRegistries, None);
        assert_eq!(letter(outcome), expected, "{principal:?}");
    }
}

#[test]
fn environment_action_without_environment_is_internal_error() {
    let owner = UserId::random();
    let admin = principal(
        &owner,
        Role::Admin,
        Credential::Login {
            id: LoginId::random(),
        },
        Scope::Full,
    );
    for route in router::table() {
        if route.action.required_permission().is_some() {
            assert_eq!(
                authorize(Some(&admin), route.action, None).map_err(|error| error.code),
                Err(ErrorCode::Internal)
            );
        }
    }
}

#[test]
fn visibility_follows_the_scope() {
    let (owner, id) = (UserId::random(), EnvironmentId::random());
    let mut all = principals(&owner, &id).into_iter().flatten();
    assert_eq!(
        visibility(&all.next().unwrap()),
        Visibility::Owner(owner.clone())
    );
    let admin = all.nth(2).unwrap();
    assert_eq!(visibility(&admin), Visibility::All);
    let read_key = all.next().unwrap();
    assert_eq!(
        visibility(&read_key),
        Visibility::Listed {
            owner,
            only: vec![id]
        }
    );
}

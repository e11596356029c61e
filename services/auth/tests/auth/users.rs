//! Users, and the last administrator.

use agentbox_contracts::error::ErrorCode;
use agentbox_contracts::identity::rpc::{
    CreateUser, CreateUserRequest, DeleteUser, DeleteUserRequest, GetUser, ListUsers, PageRequest,
    PatchUser, PatchUserRequest, Secret, UserRequest,
};
use agentbox_contracts::identity::{Role, TicketAction, User};
use agentbox_contracts::ids::{EnvironmentId, UserId};
use agentbox_contracts::limits::UserLimits;
use agentbox_contracts::units::MilliCpu;

use crate::support::{ADMIN, ADMIN_PASSWORD, PASSWORD, World, refused};

fn new_user(username: &str, email: &str, password: &str) -> CreateUserRequest {
    CreateUserRequest {
        actor: None,
        username: username.to_owned(),
        email: email.to_owned(),
        password: Secret(password.to_owned()),
        role: Role::User,
    }
}

fn patch(id: &UserId) -> PatchUserRequest {
    PatchUserRequest {
        actor: None,
        id: id.clone(),
        email: None,
        role: None,
        password: None,
        revoke_keys: false,
        limits: None,
    }
}

fn by_id(user: &User) -> UserRequest {
    UserRequest {
        id: user.id.clone(),
    }
}

fn deletion(user: &User) -> DeleteUserRequest {
    DeleteUserRequest {
        actor: None,
        id: user.id.clone(),
    }
}

#[tokio::test]
async fn user_is_created_read_patched_and_deleted() {
    let world = World::start().await;
    let auth = world.auth();
    let user = auth
        .call::<CreateUser>(new_user("Alice", "a@example.com", PASSWORD))
        .await
        .unwrap();
    assert_eq!((user.username.as_str(), user.role), ("Alice", Role::User));
    assert_eq!(auth.call::<GetUser>(by_id(&user)).await.unwrap(), user);

    let request = PatchUserRequest {
        email: Some("b@example.com".to_owned()),
        role: Some(Role::Admin),
        ..patch(&user.id)
    };
    let changed = auth.call::<PatchUser>(request).await.unwrap();
    assert_eq!(
        (changed.email.as_str(), changed.role),
        ("b@example.com", Role::Admin)
    );
    assert_eq!(auth.call::<GetUser>(by_id(&user)).await.unwrap(), changed);

    auth.call::<DeleteUser>(deletion(&user)).await.unwrap();
    for code in [
        auth.call::<GetUser>(by_id(&user)).await.unwrap_err().code,
        auth.call::<PatchUser>(patch(&user.id))
            .await
            .unwrap_err()
            .code,
        auth.call::<DeleteUser>(deletion(&user))
            .await
            .unwrap_err()
            .code,
    ] {
        assert_eq!(code, ErrorCode::NotFound);
    }
    // The name is free again.
    auth.call::<CreateUser>(new_user("alice", "b@example.com", PASSWORD))
        .await
        .unwrap();
}

#[tokio::test]
async fn username_and_email_conflict_in_any_case() {
    let world = World::start().await;
    let auth = world.auth();
    auth.call::<CreateUser>(new_user("bob", "bob@example.com", PASSWORD))
        .await
        .unwrap();
    for (username, email, field) in [
        ("BOB", "x@example.com", "username"),
        ("bob2", "Bob@Example.com", "email"),
    ] {
        let error = auth
            .call::<CreateUser>(new_user(username, email, PASSWORD))
            .await
            .unwrap_err();
        assert_eq!(error.code, ErrorCode::Conflict);
        assert!(error.message.starts_with(field), "{error}");
    }
    let other = auth.create_user(Role::User).await;
    let request = PatchUserRequest {
        email: Some("BOB@example.com".to_owned()),
        ..patch(&other.id)
    };
    assert_eq!(
        auth.call::<PatchUser>(request).await.unwrap_err().code,
        ErrorCode::Conflict
    );
}

#[tokio::test]
async fn invalid_field_is_named() {
    let world = World::start().await;
    let auth = world.auth();
    for (request, field) in [
        (new_user("a b", "a@example.com", PASSWORD), "username"),
        (new_user("carol", "no address", PASSWORD), "email"),
        (new_user("carol", "a@example.com", "1234567"), "password"),
        (new_user("carol", "a@example.com", "password"), "password"),
        (new_user("carol", "a@example.com", "        "), "password"),
        (new_user("carol", "a@example.com", "Carol-2026"), "password"),
    ] {
        let error = auth.call::<CreateUser>(request).await.unwrap_err();
        assert_eq!(error.code, ErrorCode::Validation);
        assert!(error.message.starts_with(&format!("{field}:")), "{error}");
    }
}

#[tokio::test]
async fn list_pages_newest_first_and_counts_all() {
    let world = World::start().await;
    let auth = world.auth();
    let mut newest_first = Vec::new();
    for _ in 0..4 {
        newest_first.insert(0, auth.create_user(Role::User).await);
    }
    let page = async |limit, offset| {
        auth.call::<ListUsers>(PageRequest { limit, offset })
            .await
            .unwrap()
    };
    let first = page(3, 0).await;
    assert_eq!(
        (first.users.as_slice(), first.total),
        (&newest_first[..3], 5)
    );
    let second = page(3, 3).await;
    assert_eq!(
        (&second.users[0], second.users[1].username.as_str()),
        (&newest_first[3], ADMIN)
    );
    let beyond = page(3, 100).await;
    assert_eq!((beyond.users.len(), beyond.total), (0, 5));
    let absurd = page(0, u64::MAX).await;
    assert_eq!((absurd.users.len(), absurd.total), (0, 5));
}

#[tokio::test]
async fn new_role_applies_to_issued_tokens() {
    let world = World::start().await;
    let auth = world.auth();
    let caller = auth.caller(Role::Admin).await;
    let request = PatchUserRequest {
        role: Some(Role::User),
        ..patch(&caller.user.id)
    };
    auth.call::<PatchUser>(request).await.unwrap();
    assert_eq!(auth.bearer(&caller.token).await.unwrap().role, Role::User);
    assert_eq!(
        auth.revalidate(&caller.principal).await.unwrap().role,
        Role::User
    );
}

#[tokio::test]
async fn password_set_by_an_administrator_revokes_tokens() {
    let world = World::start().await;
    let auth = world.auth();
    let caller = auth.caller(Role::User).await;
    let request = PatchUserRequest {
        password: Some(Secret("set by the admin".to_owned())),
        ..patch(&caller.user.id)
    };
    let key = auth.key(&caller.user.id, Vec::new()).await.key;
    auth.call::<PatchUser>(request).await.unwrap();
    refused(auth.bearer(&caller.token).await);
    auth.bearer(&key).await.unwrap();
    let revoke = PatchUserRequest {
        revoke_keys: true,
        ..patch(&caller.user.id)
    };
    auth.call::<PatchUser>(revoke).await.unwrap();
    refused(auth.bearer(&key).await);
    auth.login(&caller.user.username, "set by the admin")
        .await
        .unwrap();
}

#[tokio::test]
async fn last_administrator_can_be_neither_demoted_nor_deleted() {
    let world = World::start().await;
    let auth = world.auth();
    let admin = auth.login(ADMIN, ADMIN_PASSWORD).await.unwrap().user;
    let demote = |id: &UserId| PatchUserRequest {
        role: Some(Role::User),
        ..patch(id)
    };
    let errors = [
        auth.call::<DeleteUser>(deletion(&admin)).await.unwrap_err(),
        auth.call::<PatchUser>(demote(&admin.id)).await.unwrap_err(),
    ];
    assert!(
        errors.iter().all(|error| error.code == ErrorCode::Conflict),
        "{errors:?}"
    );

    // Two concurrent removals of the last two administrators: one of them fails.
    for round in 0..8 {
        let second = auth.create_user(Role::Admin).await;
        let (first, other) = tokio::join!(
            auth.call::<PatchUser>(demote(&admin.id)),
            auth.call::<DeleteUser>(deletion(&second))
        );
        assert_eq!(
            u8::from(first.is_ok()) + u8::from(other.is_ok()),
            1,
            "round {round}"
        );
        let left = world
            .count("SELECT count(*) FROM users WHERE role = 'admin'")
            .await;
        assert_eq!(left, 1, "round {round}");
        if first.is_ok() {
            let promote = PatchUserRequest {
                role: Some(Role::Admin),
                ..patch(&admin.id)
            };
            auth.call::<PatchUser>(promote).await.unwrap();
            auth.call::<DeleteUser>(deletion(&second)).await.unwrap();
        }
    }
}

#[tokio::test]
async fn deleted_user_has_no_valid_credential() {
    let world = World::start().await;
    let auth = world.auth();
    let caller = auth.caller(Role::User).await;
    let key = auth.key(&caller.user.id, Vec::new()).await.key;
    let environment = EnvironmentId::random();
    let ticket = auth
        .ticket(&caller.principal, &environment, TicketAction::Logs)
        .await
        .unwrap()
        .ticket;
    auth.call::<DeleteUser>(deletion(&caller.user))
        .await
        .unwrap();

    refused(auth.bearer(&caller.token).await);
    refused(auth.revalidate(&caller.principal).await);
    refused(auth.bearer(&key).await);
    refused(auth.redeem(&ticket, &environment, TicketAction::Logs).await);
    let login = auth
        .login(&caller.user.username, PASSWORD)
        .await
        .unwrap_err();
    assert_eq!(login.code, ErrorCode::InvalidCredentials);
    let late = auth
        .ticket(&caller.principal, &environment, TicketAction::Logs)
        .await
        .unwrap_err();
    assert_eq!(late.code, ErrorCode::Unauthorized);
    for table in ["logins", "api_keys", "tickets", "previews"] {
        assert_eq!(
            world.count(&format!("SELECT count(*) FROM {table}")).await,
            0,
            "{table}"
        );
    }
}

#[tokio::test]
async fn limits_of_a_user_are_in_every_principal_and_are_replaced_as_a_whole() {
    let world = World::start().await;
    let auth = world.auth();
    let caller = auth.caller(Role::User).await;
    let key = auth.key(&caller.user.id, Vec::new()).await.key;
    assert!(caller.principal.limits.is_default());
    let limits = UserLimits {
        environments: Some(2),
        cpu: Some(MilliCpu(1_500)),
        ..UserLimits::default()
    };
    for limits in [limits, UserLimits::default()] {
        let request = PatchUserRequest {
            limits: Some(limits),
            ..patch(&caller.user.id)
        };
        let changed = auth.call::<PatchUser>(request).await.unwrap();
        assert_eq!(changed.limits, limits);
        let request = PatchUserRequest {
            email: Some(caller.user.email.clone()),
            ..patch(&caller.user.id)
        };
        let unchanged = auth.call::<PatchUser>(request).await.unwrap();
        assert_eq!(unchanged.limits, limits, "an absent field changes nothing");
        let environment = EnvironmentId::random();
        let ticket = auth.ticket(&caller.principal, &environment, TicketAction::Logs);
        let ticket = ticket.await.unwrap().ticket;
        for principal in [
            auth.bearer(&caller.token).await,
            auth.bearer(&key).await,
            auth.revalidate(&caller.principal).await,
            auth.redeem(&ticket, &environment, TicketAction::Logs).await,
        ] {
            assert_eq!(principal.unwrap().limits, limits);
        }
    }
}

#[tokio::test]
async fn every_principal_has_the_present_record_of_its_user() {
    let world = World::start().await;
    let auth = world.auth();
    let caller = auth.caller(Role::User).await;
    let key = auth.key(&caller.user.id, Vec::new()).await.key;
    for email in ["one@example.com", "two@example.com"] {
        let request = PatchUserRequest {
            email: Some(email.to_owned()),
            ..patch(&caller.user.id)
        };
        let changed = auth.call::<PatchUser>(request).await.unwrap();
        assert_eq!(changed.email, email);
        let environment = EnvironmentId::random();
        let ticket = auth.ticket(&caller.principal, &environment, TicketAction::Logs);
        let ticket = ticket.await.unwrap().ticket;
        for principal in [
            auth.bearer(&caller.token).await,
            auth.bearer(&key).await,
            auth.revalidate(&caller.principal).await,
            auth.redeem(&ticket, &environment, TicketAction::Logs).await,
        ] {
            assert_eq!(principal.unwrap().to_user().as_ref(), Some(&changed));
        }
    }
}

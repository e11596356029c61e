//! Access of every kind that can be revoked.

use reqwest::Method;
use serde_json::{Value, json};

use super::boxes::small;
use super::caller::{Caller, new_user_with_role};

/// A request that is answered until the access is revoked.
pub struct Access {
    /// What is revoked.
    pub kind: &'static str,
    pub caller: Caller,
    path: String,
    revocation: Revocation,
    /// The status and the error of the answer after the revocation.
    refused: (u16, &'static str),
}

/// The request that revokes.
struct Revocation {
    caller: Caller,
    method: Method,
    path: String,
    body: Option<Value>,
}

/// The error for a credential that is no longer valid.
const UNAUTHORIZED: (u16, &str) = (401, "unauthorized");

impl Access {
    /// Access to its own user, which ends with 401.
    fn of(kind: &'static str, caller: &Caller, revocation: Revocation) -> Self {
        Self {
            kind,
            caller: caller.clone(),
            path: "/auth/me".to_owned(),
            revocation,
            refused: UNAUTHORIZED,
        }
    }

    /// One for each kind, each of a user of its own.
    pub async fn of_every_kind(admin: &Caller) -> Vec<Self> {
        vec![
            Self::by_login(admin).await,
            Self::by_password(admin).await,
            Self::by_key(admin).await,
            Self::by_permission(admin).await,
            Self::by_role(admin).await,
            Self::by_user(admin).await,
        ]
    }

    async fn by_login(admin: &Caller) -> Self {
        let user = new_user_with_role(admin, "user").await;
        let login = user.log_in_again().await;
        let logout = Revocation {
            caller: login.clone(),
            method: Method::POST,
            path: "/auth/logout".to_owned(),
            body: Some(Value::Null),
        };
        Self::of("login", &login, logout)
    }

    async fn by_password(admin: &Caller) -> Self {
        let user = new_user_with_role(admin, "user").await;
        let body = json!({"password": "another passphrase"});
        let change = change_of_user(admin, &user.id, body);
        Self::of("password", &user.caller, change)
    }

    async fn by_key(admin: &Caller) -> Self {
        let user = new_user_with_role(admin, "user").await;
        let (id, key) = user.key(json!({})).await;
        Self::of(
            "key",
            &key,
            deletion(&user.caller, format!("/api-keys/{id}")),
        )
    }

    /// A key with a permission on one environment.
    async fn by_permission(admin: &Caller) -> Self {
        let user = new_user_with_role(admin, "user").await;
        let environment = user.caller.create(&small()).await;
        let granted = json!([{"environment_id": environment, "permission": "read"}]);
        let (id, key) = user.key(json!({"permissions": granted})).await;
        let path = format!("/environments/{environment}");
        let revocation = deletion(&user.caller, format!("/api-keys/{id}"));
        Self {
            path,
            ..Self::of("permission", &key, revocation)
        }
    }

    /// An administrator who becomes a user.
    async fn by_role(admin: &Caller) -> Self {
        let user = new_user_with_role(admin, "admin").await;
        let change = change_of_user(admin, &user.id, json!({"role": "user"}));
        Self {
            path: "/users?limit=1".to_owned(),
            refused: (403, "forbidden"),
            ..Self::of("role", &user.caller, change)
        }
    }

    async fn by_user(admin: &Caller) -> Self {
        let user = new_user_with_role(admin, "user").await;
        let path = format!("/users/{}", user.id);
        Self::of("user", &user.caller, deletion(admin, path))
    }

    /// Asserts that a gateway answers the request.
    pub async fn expect_granted(&self, gateway: usize) {
        let answer = self.caller.get_on(gateway, &self.path).await;
        assert_eq!(answer.status, 200, "{}: {answer:?}", self.kind);
    }

    /// Revokes the access through a gateway.
    pub async fn revoke_on(&self, gateway: usize) {
        let Revocation {
            caller,
            method,
            path,
            body,
        } = &self.revocation;
        let mut request = caller.request_on(gateway, method.clone(), path);
        if let Some(body) = body {
            request = request.json(body);
        }
        let answer = caller.send(request).await;
        let is_done = matches!(answer.status, 200 | 204);
        assert!(is_done, "{}: {answer:?}", self.kind);
    }

    /// Asserts that a gateway refuses the request.
    pub async fn expect_revoked(&self, gateway: usize) {
        let answer = self.caller.get_on(gateway, &self.path).await;
        let (status, code) = self.refused;
        assert_eq!(answer.status, status, "{}: {answer:?}", self.kind);
        answer.expect_error(status, code);
    }
}

fn change_of_user(admin: &Caller, id: &str, body: Value) -> Revocation {
    Revocation {
        caller: admin.clone(),
        method: Method::PATCH,
        path: format!("/users/{id}"),
        body: Some(body),
    }
}

fn deletion(caller: &Caller, path: String) -> Revocation {
    Revocation {
        caller: caller.clone(),
        method: Method::DELETE,
        path,
        body: None,
    }
}

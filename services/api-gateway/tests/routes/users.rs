//! `/users`, for administrators only.

use serde_json::{Value, json};

use crate::support::boxes::small;
use crate::support::caller::{PASSWORD, admin, new_user, new_user_with_role};

fn fields(value: &Value) -> Vec<&str> {
    value
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect()
}

#[tokio::test]
async fn user_is_created_and_changed_without_showing_a_secret() {
    let admin = admin().await;
    let name = format!("new-{:016x}", rand::random::<u64>());
    let email = format!("{name}@example.com");
    let body = json!({"username": name, "email": email, "password": PASSWORD});
    let created = admin.post("/users", &body).await.expect_status(201);
    assert_eq!(
        fields(&created),
        ["created_at", "email", "id", "role", "username"]
    );
    assert_eq!(created["role"], "user", "the default");
    assert!(created["id"].as_str().unwrap().starts_with("user-"));
    let path = format!("/users/{}", created["id"].as_str().unwrap());
    assert_eq!(admin.get(&path).await.expect_status(200), created);

    let changed = admin
        .patch(
            &path,
            &json!({"email": format!("x{email}"), "role": "admin"}),
        )
        .await
        .expect_status(200);
    assert_eq!(changed["email"], format!("x{email}"));
    assert_eq!(changed["role"], "admin");
    let login = admin
        .at_new_address()
        .login(&name, PASSWORD)
        .await
        .expect_status(200);
    let token = login["token"].as_str().unwrap();
    assert_eq!(login["user"], changed);
    admin
        .with_token(token)
        .get("/users")
        .await
        .expect_status(200);

    // The keys of a user are revoked without a new password too.
    let key = admin
        .with_token(token)
        .post("/api-keys", &json!({}))
        .await
        .expect_status(201);
    let key = admin.with_token(key["key"].as_str().unwrap());
    key.get("/auth/me").await.expect_status(200);
    admin
        .patch(&path, &json!({"revoke_keys": true}))
        .await
        .expect_status(200);
    key.get("/auth/me").await.expect_error(401, "unauthorized");

    // A password that an administrator sets ends the logins made with the old one.
    admin
        .patch(&path, &json!({"password": "set by the admin"}))
        .await
        .expect_status(200);
    admin
        .with_token(token)
        .get("/auth/me")
        .await
        .expect_error(401, "unauthorized");
    admin
        .at_new_address()
        .login(&name, "set by the admin")
        .await
        .expect_status(200);
}

#[tokio::test]
async fn invalid_user_field_returns_400_naming_it() {
    let admin = admin().await;
    let taken = new_user().await;
    let good = |name: &str| json!({"username": name, "email": format!("{name}@example.com"), "password": PASSWORD});
    for (field, value) in [
        ("username", json!("a b")),
        ("username", json!("")),
        ("email", json!("nobody")),
        ("password", json!("short")),
        ("password", json!("password")),
        ("password", json!(" ".repeat(8))),
        ("password", json!("fine-2026")),
        ("role", json!("root")),
        ("shoe_size", json!(43)),
    ] {
        let mut body = good("fine");
        body[field] = value;
        let message = admin
            .post("/users", &body)
            .await
            .expect_error(400, "validation_failed");
        assert!(message.starts_with(field), "{field}: {message}");
        assert!(!message.contains("short"), "a password is not repeated");
    }
    for field in ["username", "email", "password"] {
        let mut body = good("fine");
        body.as_object_mut().unwrap().remove(field);
        let message = admin
            .post("/users", &body)
            .await
            .expect_error(400, "validation_failed");
        assert_eq!(message, format!("{field}: is required"));
    }
    // Usernames are compared without case.
    let again = good(&taken.username.to_uppercase());
    let message = admin
        .post("/users", &again)
        .await
        .expect_error(409, "conflict");
    assert_eq!(message, "username: is taken by another user");
    let path = format!("/users/{}", taken.id);
    let message = admin
        .patch(&path, &json!({}))
        .await
        .expect_error(400, "validation_failed");
    assert!(message.starts_with("body: "), "{message}");
}

#[tokio::test]
async fn user_list_pages_newest_first_and_counts_all() {
    let admin = admin().await;
    let mut made = Vec::new();
    for _ in 0..3 {
        made.push(new_user().await.id);
    }
    let list = admin.get("/users").await.expect_status(200);
    assert_eq!((&list["limit"], &list["offset"]), (&json!(100), &json!(0)));
    assert!(list["total"].as_u64().unwrap() >= 4);
    // Other tests create users at the same time, so only the order of these three is compared.
    let ids: Vec<&str> = list["users"]
        .as_array()
        .unwrap()
        .iter()
        .map(|user| user["id"].as_str().unwrap())
        .collect();
    let places: Vec<usize> = made
        .iter()
        .map(|id| ids.iter().position(|seen| seen == id).unwrap())
        .collect();
    assert!(places[0] > places[1] && places[1] > places[2], "{places:?}");
    let page = admin
        .get("/users?limit=2&offset=1")
        .await
        .expect_status(200);
    assert_eq!(page["users"].as_array().unwrap().len(), 2);
    assert_eq!((&page["limit"], &page["offset"]), (&json!(2), &json!(1)));
    for query in ["limit=0", "limit=1001", "offset=-1", "limit=x", "page=2"] {
        admin
            .get(&format!("/users?{query}"))
            .await
            .expect_error(400, "validation_failed");
    }
}

#[tokio::test]
async fn caller_without_admin_role_is_refused_on_every_route() {
    let user = new_user().await;
    let own = format!("/users/{}", user.id);
    let (_, key) = user.key(json!({})).await;
    for caller in [&user.caller, &key] {
        caller.get("/users").await.expect_error(403, "forbidden");
        caller.get(&own).await.expect_error(403, "forbidden");
        caller
            .post("/users", &json!({}))
            .await
            .expect_error(403, "forbidden");
        caller
            .patch(&own, &json!({"role": "admin"}))
            .await
            .expect_error(403, "forbidden");
        caller.delete(&own).await.expect_error(403, "forbidden");
    }
    assert_eq!(
        user.caller.get("/auth/me").await.expect_status(200)["role"],
        "user"
    );
}

#[tokio::test]
async fn limited_key_of_an_administrator_cannot_manage_users() {
    let second_admin = new_user_with_role(admin().await, "admin").await;
    let id = second_admin.caller.create(&small()).await;
    let key = second_admin.key_for(&id, "admin").await;
    key.get("/users").await.expect_error(403, "forbidden");
    let (_, full) = second_admin.key(json!({})).await;
    full.get("/users").await.expect_error(403, "forbidden");
    let (_, managing) = second_admin.key(json!({"management": true})).await;
    managing.get("/users").await.expect_status(200);
}

#[tokio::test]
async fn key_of_an_administrator_makes_no_administrator() {
    let second_admin = new_user_with_role(admin().await, "admin").await;
    let (_, key) = second_admin.key(json!({})).await;
    let name = format!("new-{:016x}", rand::random::<u64>());
    let body = json!({"username": name, "email": format!("{name}@example.com"),
        "password": PASSWORD, "role": "admin"});
    let refusal = key.post("/users", &body).await;
    let message = refusal.expect_error(403, "forbidden");
    assert!(message.contains("`management`"), "{message}");
    key.post("/api-keys", &json!({"management": true}))
        .await
        .expect_error(403, "forbidden");
}

#[tokio::test]
async fn missing_user_returns_404() {
    let admin = admin().await;
    for id in ["user-0000000000000000", "nonsense", "env-0000000000000000"] {
        let path = format!("/users/{id}");
        admin.get(&path).await.expect_error(404, "not_found");
        admin
            .patch(&path, &json!({"role": "user"}))
            .await
            .expect_error(404, "not_found");
        admin.delete(&path).await.expect_error(404, "not_found");
    }
}

#[tokio::test]
async fn deleted_user_loses_tokens_keys_and_environments() {
    let admin = admin().await;
    let user = new_user().await;
    let (_, key) = user.key(json!({})).await;
    let id = user.caller.create_running(&small()).await;
    admin
        .delete(&format!("/users/{}", user.id))
        .await
        .expect_status(204);
    for caller in [&user.caller, &key] {
        for gateway in 0..caller.gateways() {
            caller
                .get_on(gateway, "/auth/me")
                .await
                .expect_error(401, "unauthorized");
        }
    }
    let ended = admin.wait_until_ended(&id).await;
    assert_eq!(ended["status_reason"], "DELETED");
    admin
        .delete(&format!("/users/{}", user.id))
        .await
        .expect_error(404, "not_found");
}

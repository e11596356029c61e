//! `/users`: for administrators alone.

use serde_json::{Value, json};

use crate::support::boxes::small;
use crate::support::caller::{PASSWORD, admin, new_user, someone};

fn fields(value: &Value) -> Vec<&str> {
    value
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect()
}

#[tokio::test]
async fn a_user_is_created_shown_changed_and_never_with_a_secret() {
    let admin = admin().await;
    let name = format!("new-{:016x}", rand::random::<u64>());
    let email = format!("{name}@example.com");
    let body = json!({"username": name, "email": email, "password": PASSWORD});
    let created = admin.post("/users", &body).await.is(201);
    assert_eq!(
        fields(&created),
        ["created_at", "email", "id", "role", "username"]
    );
    assert_eq!(created["role"], "user", "the default");
    assert!(created["id"].as_str().unwrap().starts_with("user-"));
    let path = format!("/users/{}", created["id"].as_str().unwrap());
    assert_eq!(admin.get(&path).await.is(200), created);

    let changed = admin
        .patch(
            &path,
            &json!({"email": format!("x{email}"), "role": "admin"}),
        )
        .await
        .is(200);
    assert_eq!(changed["email"], format!("x{email}"));
    assert_eq!(changed["role"], "admin");
    let login = admin.elsewhere().login(&name, PASSWORD).await.is(200);
    let token = login["token"].as_str().unwrap();
    assert_eq!(login["user"], changed);
    admin.with(token).get("/users").await.is(200);

    // A password that an administrator sets ends the logins made with the old one.
    admin
        .patch(&path, &json!({"password": "set by the admin"}))
        .await
        .is(200);
    admin
        .with(token)
        .get("/auth/me")
        .await
        .is_error(401, "unauthorized");
    admin
        .elsewhere()
        .login(&name, "set by the admin")
        .await
        .is(200);
}

#[tokio::test]
async fn what_a_user_must_be_is_said_by_field() {
    let admin = admin().await;
    let taken = someone().await;
    let good = |name: &str| json!({"username": name, "email": format!("{name}@example.com"), "password": PASSWORD});
    for (field, value) in [
        ("username", json!("a b")),
        ("username", json!("")),
        ("email", json!("nobody")),
        ("password", json!("short")),
        ("role", json!("root")),
        ("shoe_size", json!(43)),
    ] {
        let mut body = good("fine");
        body[field] = value;
        let message = admin
            .post("/users", &body)
            .await
            .is_error(400, "validation_failed");
        assert!(message.starts_with(field), "{field}: {message}");
        assert!(!message.contains("short"), "a password is not repeated");
    }
    for field in ["username", "email", "password"] {
        let mut body = good("fine");
        body.as_object_mut().unwrap().remove(field);
        let message = admin
            .post("/users", &body)
            .await
            .is_error(400, "validation_failed");
        assert_eq!(message, format!("{field}: is required"));
    }
    // However it is written.
    let again = good(&taken.username.to_uppercase());
    let message = admin.post("/users", &again).await.is_error(409, "conflict");
    assert_eq!(message, "username: is taken by another user");
    let path = format!("/users/{}", taken.id);
    let message = admin
        .patch(&path, &json!({}))
        .await
        .is_error(400, "validation_failed");
    assert!(message.starts_with("body: "), "{message}");
}

#[tokio::test]
async fn the_list_pages_newest_first_and_counts_all() {
    let admin = admin().await;
    let mut made = Vec::new();
    for _ in 0..3 {
        made.push(someone().await.id);
    }
    let list = admin.get("/users").await.is(200);
    assert_eq!((&list["limit"], &list["offset"]), (&json!(100), &json!(0)));
    assert!(list["total"].as_u64().unwrap() >= 4);
    // Other tests create users too: ours are there, in the order of their making.
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
    let page = admin.get("/users?limit=2&offset=1").await.is(200);
    assert_eq!(page["users"].as_array().unwrap().len(), 2);
    assert_eq!((&page["limit"], &page["offset"]), (&json!(2), &json!(1)));
    for query in ["limit=0", "limit=1001", "offset=-1", "limit=x", "page=2"] {
        admin
            .get(&format!("/users?{query}"))
            .await
            .is_error(400, "validation_failed");
    }
}

#[tokio::test]
async fn everybody_else_is_refused_by_every_route() {
    let user = someone().await;
    let own = format!("/users/{}", user.id);
    let (_, key) = user.key(json!({})).await;
    for caller in [&user.caller, &key] {
        caller.get("/users").await.is_error(403, "forbidden");
        caller.get(&own).await.is_error(403, "forbidden");
        caller
            .post("/users", &json!({}))
            .await
            .is_error(403, "forbidden");
        caller
            .patch(&own, &json!({"role": "admin"}))
            .await
            .is_error(403, "forbidden");
        caller.delete(&own).await.is_error(403, "forbidden");
    }
    assert_eq!(user.caller.get("/auth/me").await.is(200)["role"], "user");
}

#[tokio::test]
async fn a_key_with_permissions_is_no_administrator_whoever_owns_it() {
    let chief = new_user(admin().await, "admin").await;
    let id = chief.caller.create(&small()).await;
    let key = chief.key_for(&id, "admin").await;
    key.get("/users").await.is_error(403, "forbidden");
    let (_, full) = chief.key(json!({})).await;
    full.get("/users").await.is(200);
}

#[tokio::test]
async fn a_user_that_is_not_there_is_404() {
    let admin = admin().await;
    for id in ["user-0000000000000000", "nonsense", "env-0000000000000000"] {
        let path = format!("/users/{id}");
        admin.get(&path).await.is_error(404, "not_found");
        admin
            .patch(&path, &json!({"role": "user"}))
            .await
            .is_error(404, "not_found");
        admin.delete(&path).await.is_error(404, "not_found");
    }
}

#[tokio::test]
async fn deleting_a_user_kills_its_tokens_and_keys_at_once_and_ends_its_environments() {
    let admin = admin().await;
    let user = someone().await;
    let (_, key) = user.key(json!({})).await;
    let id = user.caller.running(&small()).await;
    admin.delete(&format!("/users/{}", user.id)).await.is(204);
    for caller in [&user.caller, &key] {
        for gateway in 0..caller.gateways() {
            caller
                .get_on(gateway, "/auth/me")
                .await
                .is_error(401, "unauthorized");
        }
    }
    let ended = admin.until_ended(&id).await;
    assert_eq!(ended["status_reason"], "DELETED");
    admin
        .delete(&format!("/users/{}", user.id))
        .await
        .is_error(404, "not_found");
}

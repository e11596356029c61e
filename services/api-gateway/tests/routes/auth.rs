//! `/auth/login`, `/auth/me`, `/auth/logout`, `/auth/change-password`.

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{Value, json};

use crate::support::caller::{PASSWORD, admin, someone};

fn instant(value: &Value) -> DateTime<Utc> {
    value.as_str().unwrap().parse().unwrap()
}

#[tokio::test]
async fn a_login_answers_with_a_token_its_expiry_and_the_user() {
    let user = someone().await;
    let nobody = user.caller.elsewhere();
    let reply = nobody.login(&user.username, PASSWORD).await.is(200);
    assert_eq!(reply["user"]["id"], user.id);
    assert_eq!(reply["user"]["username"], user.username);
    assert_eq!(
        reply["user"]["email"],
        format!("{}@example.com", user.username)
    );
    assert_eq!(reply["user"]["role"], "user");
    let left = instant(&reply["expires_at"]) - Utc::now();
    assert!(
        left > TimeDelta::minutes(59) && left <= TimeDelta::hours(1),
        "{left}"
    );
    let token = reply["token"].as_str().unwrap();
    assert!(
        token.starts_with("eyJ") && token.split('.').count() == 3,
        "a JWT"
    );
    for gateway in 0..nobody.gateways() {
        let me = nobody.with(token).get_on(gateway, "/auth/me").await.is(200);
        assert_eq!(me, reply["user"]);
    }
}

#[tokio::test]
async fn a_wrong_password_and_an_unknown_user_are_refused_alike() {
    let user = someone().await;
    let nobody = user.caller.elsewhere();
    let wrong = nobody.login(&user.username, "not the password").await;
    let unknown = nobody.login("nobody-of-this-name", PASSWORD).await;
    let messages = [&wrong, &unknown].map(|answer| answer.is_error(401, "invalid_credentials"));
    assert_eq!(messages[0], messages[1]);
    assert!(wrong.header("www-authenticate").starts_with("Bearer"));
}

#[tokio::test]
async fn what_is_no_credential_is_401_everywhere() {
    let user = someone().await;
    let jwt = user.caller.token.clone().unwrap();
    let (head, signature) = jwt.rsplit_once('.').unwrap();
    let forged = format!("{head}.{}", signature.chars().rev().collect::<String>());
    let nobody = user.caller.elsewhere();
    for token in [
        "x",
        "eyJhbGciOiJub25lIn0.eyJzdWIiOiJhZG1pbiJ9.",
        &forged,
        "agentbox_0123456789abcdef_secret_00000000",
    ] {
        let answer = nobody.with(token).get("/auth/me").await;
        answer.is_error(401, "unauthorized");
        assert!(answer.header("www-authenticate").starts_with("Bearer"));
    }
    for path in [
        "/auth/me",
        "/environments",
        "/api-keys",
        "/users",
        "/events",
    ] {
        nobody.get(path).await.is_error(401, "unauthorized");
    }
    let basic = nobody
        .request(reqwest::Method::GET, "/auth/me")
        .basic_auth(&user.username, Some(PASSWORD));
    crate::support::caller::send(basic)
        .await
        .is_error(401, "unauthorized");
}

#[tokio::test]
async fn a_logout_kills_that_token_at_once_on_every_replica_and_no_other() {
    let user = someone().await;
    let other = user.log_in_again().await;
    let gone = user.log_in_again().await;
    for gateway in 0..gone.gateways() {
        gone.get_on(gateway, "/auth/me").await.is(200);
    }
    let answer = gone.post("/auth/logout", &json!(null)).await;
    assert_eq!(answer.text, "");
    answer.is(204);
    for gateway in 0..gone.gateways() {
        gone.get_on(gateway, "/auth/me")
            .await
            .is_error(401, "unauthorized");
        other.get_on(gateway, "/auth/me").await.is(200);
    }
}

#[tokio::test]
async fn a_key_cannot_be_logged_out() {
    let user = someone().await;
    let (_, key) = user.key(json!({})).await;
    key.post("/auth/logout", &json!(null))
        .await
        .is_error(403, "forbidden");
    key.get("/auth/me").await.is(200);
}

#[tokio::test]
async fn a_new_password_replaces_the_old_one_and_kills_older_tokens() {
    let user = someone().await;
    let other = user.log_in_again().await;
    let (_, key) = user.key(json!({})).await;
    let change =
        |current: &str| json!({"current_password": current, "new_password": "another passphrase"});
    let wrong = user
        .caller
        .post("/auth/change-password", &change("nonsense!"))
        .await;
    wrong.is_error(401, "invalid_credentials");
    let short = json!({"current_password": PASSWORD, "new_password": "short"});
    let message = user.caller.post("/auth/change-password", &short).await;
    assert!(
        message
            .is_error(400, "validation_failed")
            .starts_with("new_password: ")
    );
    other.get("/auth/me").await.is(200);

    user.caller
        .post("/auth/change-password", &change(PASSWORD))
        .await
        .is(204);
    for caller in [&user.caller, &other] {
        for gateway in 0..caller.gateways() {
            caller
                .get_on(gateway, "/auth/me")
                .await
                .is_error(401, "unauthorized");
        }
    }
    // Keys are no logins: they are revoked one by one.
    key.get("/auth/me").await.is(200);
    let nobody = user.caller.elsewhere();
    nobody
        .login(&user.username, PASSWORD)
        .await
        .is_error(401, "invalid_credentials");
    nobody
        .login(&user.username, "another passphrase")
        .await
        .is(200);
}

#[tokio::test]
async fn the_first_administrator_is_one() {
    let me = admin().await.get("/auth/me").await.is(200);
    assert_eq!(me["role"], "admin");
}

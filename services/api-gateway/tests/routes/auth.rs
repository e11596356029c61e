//! `/auth/login`, `/auth/me`, `/auth/logout`, `/auth/change-password`.

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{Value, json};

use crate::support::caller::{PASSWORD, admin, new_user};
use crate::support::eventually;
use crate::support::system::shared;

fn instant(value: &Value) -> DateTime<Utc> {
    value.as_str().unwrap().parse().unwrap()
}

#[tokio::test]
async fn login_returns_a_token_its_expiry_and_the_user() {
    let user = new_user().await;
    let anonymous = user.caller.at_new_address();
    let reply = anonymous
        .login(&user.username, PASSWORD)
        .await
        .expect_status(200);
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
    for gateway in 0..anonymous.gateways() {
        let me = anonymous
            .with_token(token)
            .get_on(gateway, "/auth/me")
            .await
            .expect_status(200);
        assert_eq!(me, reply["user"]);
    }
}

#[tokio::test]
async fn wrong_password_and_unknown_user_return_the_same_error() {
    let user = new_user().await;
    let anonymous = user.caller.at_new_address();
    let wrong = anonymous.login(&user.username, "not the password").await;
    let unknown = anonymous.login("nobody-of-this-name", PASSWORD).await;
    let messages = [&wrong, &unknown].map(|answer| answer.expect_error(401, "invalid_credentials"));
    assert_eq!(messages[0], messages[1]);
    assert!(wrong.header("www-authenticate").starts_with("Bearer"));
}

#[tokio::test]
async fn missing_or_invalid_credential_returns_401() {
    let user = new_user().await;
    let jwt = user.caller.token.clone().unwrap();
    let (head, signature) = jwt.rsplit_once('.').unwrap();
    let forged = format!("{head}.{}", signature.chars().rev().collect::<String>());
    let anonymous = user.caller.at_new_address();
    for token in [
        "x",
        "eyJhbGciOiJub25lIn0.eyJzdWIiOiJhZG1pbiJ9.",
        &forged,
        "agentbox_0123456789abcdef_secret_00000000",
    ] {
        let answer = anonymous.with_token(token).get("/auth/me").await;
        answer.expect_error(401, "unauthorized");
        assert!(answer.header("www-authenticate").starts_with("Bearer"));
    }
    for path in [
        "/auth/me",
        "/environments",
        "/api-keys",
        "/users",
        "/events",
    ] {
        anonymous.get(path).await.expect_error(401, "unauthorized");
    }
    let basic = anonymous
        .request(reqwest::Method::GET, "/auth/me")
        .basic_auth(&user.username, Some(PASSWORD));
    crate::support::caller::send(basic)
        .await
        .expect_error(401, "unauthorized");
}

#[tokio::test]
async fn logout_revokes_its_token_only_and_on_every_replica() {
    let user = new_user().await;
    let other = user.log_in_again().await;
    let gone = user.log_in_again().await;
    for gateway in 0..gone.gateways() {
        gone.get_on(gateway, "/auth/me").await.expect_status(200);
    }
    let answer = gone.post("/auth/logout", &json!(null)).await;
    assert_eq!(answer.text, "");
    answer.expect_status(204);
    for gateway in 0..gone.gateways() {
        gone.get_on(gateway, "/auth/me")
            .await
            .expect_error(401, "unauthorized");
        other.get_on(gateway, "/auth/me").await.expect_status(200);
    }
}

/// How often the gateways have asked auth for a user's record.
async fn records_asked_for() -> u64 {
    let system = shared().await;
    let mut asked = 0;
    for gateway in 0..system.gateway.as_ref().unwrap().replica_urls.len() {
        let url = system.admin_url("api-gateway", gateway).unwrap();
        let answer = reqwest::get(format!("{url}/metrics")).await.unwrap();
        let text = answer.text().await.unwrap();
        let counts = text.lines().filter(|line| {
            line.starts_with("agentbox_rpc_client_call_duration_seconds_count")
                && line.contains("rpc_method=\"auth.get-user\"")
        });
        asked += counts
            .map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap())
            .sum::<u64>();
    }
    asked
}

#[tokio::test]
async fn caller_is_known_from_its_authentication_alone() {
    let user = new_user().await;
    // Other tests read users too, but not all the time.
    eventually("no record is asked for", async || {
        let before = records_asked_for().await;
        let me = user.caller.get("/auth/me").await.expect_status(200);
        assert_eq!(me["id"], user.id.as_str());
        (records_asked_for().await == before).then_some(())
    })
    .await;
}

#[tokio::test]
async fn logout_with_a_key_returns_403() {
    let user = new_user().await;
    let (_, key) = user.key(json!({})).await;
    key.post("/auth/logout", &json!(null))
        .await
        .expect_error(403, "forbidden");
    key.get("/auth/me").await.expect_status(200);
}

#[tokio::test]
async fn password_change_revokes_earlier_tokens_and_keeps_keys() {
    let user = new_user().await;
    let other = user.log_in_again().await;
    let (_, key) = user.key(json!({})).await;
    let change =
        |current: &str| json!({"current_password": current, "new_password": "another passphrase"});
    let wrong = user
        .caller
        .post("/auth/change-password", &change("nonsense!"))
        .await;
    wrong.expect_error(401, "invalid_credentials");
    let short = json!({"current_password": PASSWORD, "new_password": "short"});
    let message = user.caller.post("/auth/change-password", &short).await;
    assert!(
        message
            .expect_error(400, "validation_failed")
            .starts_with("new_password: ")
    );
    other.get("/auth/me").await.expect_status(200);

    user.caller
        .post("/auth/change-password", &change(PASSWORD))
        .await
        .expect_status(204);
    for caller in [&user.caller, &other] {
        for gateway in 0..caller.gateways() {
            caller
                .get_on(gateway, "/auth/me")
                .await
                .expect_error(401, "unauthorized");
        }
    }
    // API keys stay valid.
    key.get("/auth/me").await.expect_status(200);
    let anonymous = user.caller.at_new_address();
    anonymous
        .login(&user.username, PASSWORD)
        .await
        .expect_error(401, "invalid_credentials");
    anonymous
        .login(&user.username, "another passphrase")
        .await
        .expect_status(200);
}

#[tokio::test]
async fn password_change_revokes_keys_if_asked_to() {
    let user = new_user().await;
    let (_, key) = user.key(json!({})).await;
    let change = json!({"current_password": PASSWORD, "new_password": "another passphrase",
        "revoke_keys": true});
    user.caller
        .post("/auth/change-password", &change)
        .await
        .expect_status(204);
    for gateway in 0..key.gateways() {
        key.get_on(gateway, "/auth/me")
            .await
            .expect_error(401, "unauthorized");
    }
}

#[tokio::test]
async fn first_administrator_has_the_admin_role() {
    let me = admin().await.get("/auth/me").await.expect_status(200);
    assert_eq!(me["role"], "admin");
}

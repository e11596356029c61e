//! Logins: passwords, tokens, and their revocation.

use std::collections::BTreeSet;
use std::time::Duration;

use agentbox_contracts::error::ErrorCode;
use agentbox_contracts::identity::rpc::{
    ChangePassword, ChangePasswordRequest, CreateKey, CreateKeyRequest, PublicKeys, Ready, Secret,
};
use agentbox_contracts::identity::{Credential, Role, Scope};
use agentbox_contracts::rpc::Empty;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde_json::{Value, json};

use crate::support::{ADMIN, ADMIN_PASSWORD, PASSWORD, World, eventually, refused};

/// The number of entries of the audit trail, chained or not.
const AUDITED: &str =
    "SELECT (SELECT count(*) FROM audit_outbox) + (SELECT count(*) FROM audit_log)";

fn change(caller: &crate::support::Caller, current: &str, new: &str) -> ChangePasswordRequest {
    ChangePasswordRequest {
        user: caller.user.id.clone(),
        current_password: Secret(current.to_owned()),
        new_password: Secret(new.to_owned()),
        revoke_keys: false,
    }
}

#[tokio::test]
async fn login_token_verifies_by_the_public_keys() {
    let world = World::start().await;
    let auth = world.auth();
    auth.call::<Ready>(Empty {}).await.unwrap();
    let login = auth.login(ADMIN, ADMIN_PASSWORD).await.unwrap();
    assert_eq!(
        (login.user.username.as_str(), login.user.role),
        (ADMIN, Role::Admin)
    );

    let keys = auth.call::<PublicKeys>(Empty {}).await.unwrap().keys;
    let header = jsonwebtoken::decode_header(&login.token.0).unwrap();
    assert_eq!(header.alg, Algorithm::EdDSA);
    let jwk = keys
        .iter()
        .find(|key| key["kid"] == json!(header.kid))
        .unwrap();
    assert_eq!(
        (&jwk["kty"], &jwk["crv"], &jwk["alg"]),
        (&json!("OKP"), &json!("Ed25519"), &json!("EdDSA"))
    );
    assert!(jwk.get("d").is_none(), "a private key");
    let key = DecodingKey::from_jwk(&serde_json::from_value(jwk.clone()).unwrap()).unwrap();
    let mut validation = Validation::new(Algorithm::EdDSA);
    validation.set_issuer(&["agentbox"]);
    validation.set_audience(&["agentbox-api"]);
    let claims = jsonwebtoken::decode::<Value>(&login.token.0, &key, &validation)
        .unwrap()
        .claims;
    assert_eq!(claims["sub"], json!(login.user.id));
    assert_eq!(claims["exp"], json!(login.expires_at.timestamp()));
    let lifetime = claims["exp"].as_i64().unwrap() - claims["iat"].as_i64().unwrap();
    assert_eq!(lifetime, 3_600);

    let principal = auth.bearer(&login.token).await.unwrap();
    assert_eq!(principal.user, login.user.id);
    assert_eq!(
        (principal.role, principal.scope),
        (Role::Admin, Scope::Full)
    );
    assert_eq!(principal.expires_at, Some(login.expires_at));
    let Credential::Login { id } = principal.credential else {
        panic!("not a login")
    };
    assert_eq!(claims["jti"], json!(id));
}

#[tokio::test]
async fn unknown_user_and_wrong_password_get_the_same_error_and_work() {
    let world = World::start().await;
    let auth = world.auth();
    let hashes = || auth.metric("agentbox_auth_password_hashes_total", "verify");
    let mut answers = BTreeSet::new();
    let names = [
        ADMIN.to_owned(),
        "nobody".to_owned(),
        String::new(),
        "a\0b".to_owned(),
        "x".repeat(10_000),
    ];
    for name in &names {
        let (hashed, audited) = (hashes().await, world.count(AUDITED).await);
        let error = auth.login(name, "not the password").await.unwrap_err();
        assert_eq!(error.code, ErrorCode::InvalidCredentials);
        answers.insert(error.message);
        assert_eq!(hashes().await, hashed + 1, "{name:?}");
        assert_eq!(world.count(AUDITED).await, audited + 1, "{name:?}");
    }
    assert_eq!(answers.len(), 1, "{answers:?}");
}

#[tokio::test]
async fn username_in_another_case_logs_in() {
    let world = World::start().await;
    let login = world
        .auth()
        .login(&ADMIN.to_uppercase(), ADMIN_PASSWORD)
        .await
        .unwrap();
    assert_eq!(login.user.username, ADMIN);
}

#[tokio::test]
async fn logout_revokes_only_that_login() {
    let world = World::start().await;
    let auth = world.auth();
    let first = auth.caller(Role::User).await;
    let second = auth.caller_as(first.user.clone()).await;
    auth.logout(&first.principal).await;
    refused(auth.bearer(&first.token).await);
    refused(auth.revalidate(&first.principal).await);
    assert_eq!(auth.bearer(&second.token).await.unwrap(), second.principal);
    assert_eq!(
        auth.revalidate(&second.principal).await.unwrap(),
        second.principal
    );
    auth.logout(&first.principal).await;
}

#[tokio::test]
async fn login_of_another_user_is_refused() {
    let world = World::start().await;
    let auth = world.auth();
    let (mine, other) = (auth.caller(Role::User).await, auth.caller(Role::User).await);
    let mut mixed = mine.principal.clone();
    mixed.user = other.user.id;
    refused(auth.revalidate(&mixed).await);
    auth.logout(&mixed).await;
    auth.bearer(&mine.token).await.unwrap();
}

#[tokio::test]
async fn new_password_revokes_tokens_and_keeps_api_keys() {
    let world = World::start().await;
    let auth = world.auth();
    let first = auth.caller(Role::User).await;
    let second = auth.caller_as(first.user.clone()).await;
    let key = auth.key(&first.user.id, Vec::new()).await.key;

    let wrong = auth
        .call::<ChangePassword>(change(&first, "not it at all", "another one"))
        .await;
    assert_eq!(wrong.unwrap_err().code, ErrorCode::InvalidCredentials);
    let short = auth
        .call::<ChangePassword>(change(&first, PASSWORD, "short"))
        .await
        .unwrap_err();
    assert_eq!(short.code, ErrorCode::Validation);
    assert!(short.message.starts_with("new_password:"), "{short}");
    auth.bearer(&first.token).await.unwrap();

    auth.call::<ChangePassword>(change(&first, PASSWORD, "another password"))
        .await
        .unwrap();
    refused(auth.bearer(&first.token).await);
    refused(auth.bearer(&second.token).await);
    auth.bearer(&key).await.unwrap();
    let old = auth
        .login(&first.user.username, PASSWORD)
        .await
        .unwrap_err();
    assert_eq!(old.code, ErrorCode::InvalidCredentials);
    auth.login(&first.user.username, "another password")
        .await
        .unwrap();
}

#[tokio::test]
async fn new_password_revokes_api_keys_if_asked_to() {
    let world = World::start().await;
    let auth = world.auth();
    let caller = auth.caller(Role::User).await;
    let keys = [
        auth.key(&caller.user.id, Vec::new()).await.key,
        auth.key(&caller.user.id, Vec::new()).await.key,
    ];
    let bystander = auth.caller(Role::User).await;
    let other = auth.key(&bystander.user.id, Vec::new()).await.key;
    let revoking = |current: &str| ChangePasswordRequest {
        revoke_keys: true,
        ..change(&caller, current, "another password")
    };
    auth.call::<ChangePassword>(revoking("not it at all"))
        .await
        .unwrap_err();
    for key in &keys {
        auth.bearer(key).await.unwrap();
    }
    auth.call::<ChangePassword>(revoking(PASSWORD))
        .await
        .unwrap();
    for key in &keys {
        refused(auth.bearer(key).await);
    }
    auth.bearer(&other).await.unwrap();
    // A request that the revoked login was authenticated for before makes no key.
    let late = CreateKeyRequest {
        owner: caller.user.id.clone(),
        description: None,
        expires_in_days: None,
        permissions: Vec::new(),
        management: false,
        creator: Some(caller.principal.credential.clone()),
    };
    let error = auth.call::<CreateKey>(late).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::Unauthorized);
    let audited = "SELECT count(*) FROM audit_log WHERE action = 'revoke-keys'";
    eventually(
        "the entry is chained",
        Duration::from_secs(15),
        async || world.count(audited).await == 1,
    )
    .await;
}

/// A token from the old password is invalid once the change is answered, in either order.
#[tokio::test]
async fn login_concurrent_with_a_password_change_is_revoked() {
    let world = World::with(1, &[("AGENTBOX_HASH_CONCURRENCY", "8")]).await;
    let auth = world.auth();
    for round in 0..5 {
        let caller = auth.caller(Role::User).await;
        let logins = (0..4).map(|_| auth.login(&caller.user.username, PASSWORD));
        let (changed, logins) = tokio::join!(
            auth.call::<ChangePassword>(change(&caller, PASSWORD, "another password")),
            futures::future::join_all(logins)
        );
        changed.unwrap();
        for login in logins.into_iter().flatten() {
            assert!(auth.bearer(&login.token).await.is_err(), "round {round}");
        }
    }
}

#[tokio::test]
async fn expired_token_is_refused() {
    let world = World::with(1, &[("AGENTBOX_TOKEN_TTL", "1")]).await;
    let auth = world.auth();
    let login = auth.login(ADMIN, ADMIN_PASSWORD).await.unwrap();
    eventually("the token expires", Duration::from_secs(15), async || {
        auth.bearer(&login.token).await.is_err()
    })
    .await;
    refused(auth.bearer(&login.token).await);
}

#[tokio::test]
async fn forged_tokens_get_the_same_error() {
    let world = World::start().await;
    let auth = world.auth();
    let good = auth.login(ADMIN, ADMIN_PASSWORD).await.unwrap().token.0;
    let other = auth.login(ADMIN, ADMIN_PASSWORD).await.unwrap().token.0;
    let parts: Vec<&str> = good.split('.').collect();
    let claims: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(parts[1]).unwrap()).unwrap();
    let header = |json: Value| URL_SAFE_NO_PAD.encode(json.to_string());
    let kid = jsonwebtoken::decode_header(&good).unwrap().kid.unwrap();
    let key = auth.call::<PublicKeys>(Empty {}).await.unwrap().keys[0]["x"].clone();

    let none = format!(
        "{}.{}.",
        header(json!({ "alg": "none", "kid": kid })),
        parts[1]
    );
    // An HMAC with the public key as the shared secret.
    let mut hmac = Header::new(Algorithm::HS256);
    hmac.kid = Some(kid.clone());
    let secret = URL_SAFE_NO_PAD.decode(key.as_str().unwrap()).unwrap();
    let confused =
        jsonwebtoken::encode(&hmac, &claims, &EncodingKey::from_secret(&secret)).unwrap();
    // The attacker's own key, under the id of auth's key and under another id.
    let seed = [
        [
            0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20,
        ]
        .as_slice(),
        &[7; 32],
    ]
    .concat();
    let forged = |kid: &str| {
        let mut header = Header::new(Algorithm::EdDSA);
        header.kid = Some(kid.to_owned());
        jsonwebtoken::encode(&header, &claims, &EncodingKey::from_ed_der(&seed)).unwrap()
    };
    let swapped = format!(
        "{}.{}.{}",
        parts[0],
        parts[1],
        other.rsplit('.').next().unwrap()
    );

    let mut messages = BTreeSet::new();
    for token in [
        String::new(),
        "x".to_owned(),
        "a.b.c".to_owned(),
        "é".repeat(5_000),
        good[..good.len() - 4].to_owned(),
        none,
        confused,
        forged(&kid),
        forged("0123456789abcdef0123456789abcdef"),
        swapped,
    ] {
        messages.insert(refused(auth.bearer(&Secret(token)).await));
    }
    assert_eq!(messages.len(), 1, "{messages:?}");
    auth.bearer(&Secret(good)).await.unwrap();
}

//! The forms in which a handshake may carry its credential.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::json;

use crate::support::boxes::{idle, script};
use crate::support::caller::new_user;
use crate::support::socket::{Socket, handshake};

const ECHO: &str = "tty=false&command=echo&command=hi";

/// Opens a socket with these subprotocols and no header. Returns the selected one, or the status.
async fn offer(protocols: &str) -> Result<Option<String>, u16> {
    let idle = idle().await;
    let caller = &idle.user.caller;
    let mut request = handshake(caller, caller.next_gateway(), &idle.id, ECHO);
    let value = protocols.parse().unwrap();
    request
        .headers_mut()
        .insert("sec-websocket-protocol", value);
    let mut socket = Socket::connect(request)
        .await
        .map_err(|(status, _)| status)?;
    assert_eq!(socket.read_to_end().await.stdout, "hi\n");
    Ok(socket.protocol)
}

#[tokio::test]
async fn token_is_accepted_from_header_subprotocol_or_ticket() {
    let idle = idle().await;
    let caller = &idle.user.caller;
    let token = caller.token.clone().unwrap();
    let (_, key) = idle.user.key(json!({})).await;
    for caller in [caller, &key] {
        let mut socket = Socket::open(caller, &idle.id, ECHO).await;
        assert_eq!(socket.read_to_end().await.stdout, "hi\n");
        assert_eq!(socket.protocol, None);
    }
    // With `Bearer `, which browsers cannot send, and without.
    let agreed = Ok(Some("Authorization".to_owned()));
    assert_eq!(
        offer(&format!("Authorization, Bearer {token}")).await,
        agreed
    );
    assert_eq!(offer(&format!("Authorization, {token}")).await, agreed);
    assert_eq!(
        offer(&format!("Authorization,{}", key.token.unwrap())).await,
        agreed
    );
    let hidden = format!(
        "base64url.bearer.authorization.agentbox.{}",
        URL_SAFE_NO_PAD.encode(&token)
    );
    assert_eq!(
        offer(&format!("{hidden}, agentbox")).await,
        Ok(Some("agentbox".to_owned()))
    );
}

#[tokio::test]
async fn invalid_credential_refuses_the_handshake() {
    let idle = idle().await;
    let anonymous = idle.user.caller.without_token();
    let refused = Socket::open_on(&anonymous, 0, &idle.id, ECHO).await;
    assert_eq!(refused.err().unwrap().0, 401);
    let refused = Socket::open_on(&anonymous.with_token("x"), 1, &idle.id, ECHO).await;
    assert_eq!(refused.err().unwrap().0, 401);
    assert_eq!(offer("Authorization, nonsense").await, Err(401));
    assert_eq!(offer("Authorization").await, Err(401));
    assert_eq!(offer("agentbox").await, Err(401));
}

#[tokio::test]
async fn caller_without_write_permission_is_refused() {
    let idle = idle().await;
    let reader = idle.user.key_for(&idle.id, "read").await;
    let (status, body) = Socket::open_on(&reader, 0, &idle.id, ECHO)
        .await
        .err()
        .unwrap();
    assert_eq!((status, &body["error"]), (403, &json!("forbidden")));
    let stranger = new_user().await.caller;
    let (status, body) = Socket::open_on(&stranger, 1, &idle.id, ECHO)
        .await
        .err()
        .unwrap();
    assert_eq!((status, &body["error"]), (404, &json!("not_found")));
    let writer = idle.user.key_for(&idle.id, "write").await;
    let mut socket = Socket::open(&writer, &idle.id, ECHO).await;
    assert_eq!(socket.read_to_end().await.stdout, "hi\n");
}

#[tokio::test]
async fn page_of_another_origin_is_refused() {
    let idle = idle().await;
    let caller = &idle.user.caller;
    let own = format!("http://{}", caller.host(0));
    for (origin, is_accepted) in [
        (own.as_str(), true),
        ("https://other.example", false),
        ("null", false),
    ] {
        let mut request = handshake(caller, 0, &idle.id, ECHO);
        let token = caller.token.as_deref().unwrap();
        let headers = request.headers_mut();
        headers.insert("authorization", format!("Bearer {token}").parse().unwrap());
        headers.insert("origin", origin.parse().unwrap());
        match Socket::connect(request).await {
            Ok(mut socket) => {
                assert!(is_accepted, "{origin}");
                assert_eq!(socket.read_to_end().await.stdout, "hi\n");
            }
            Err((status, body)) => {
                assert!(!is_accepted, "{origin}: {status} {body}");
                assert_eq!((status, &body["error"]), (403, &json!("forbidden")));
                let message = body["message"].as_str().unwrap();
                assert!(message.starts_with("Origin: "), "{message}");
                assert!(message.ends_with(&format!("is `{origin}`")), "{message}");
            }
        }
    }
}

#[tokio::test]
async fn stopped_environment_returns_409_before_the_handshake() {
    let user = new_user().await;
    let id = user.caller.create(&script("true")).await;
    user.caller.wait_until_ended(&id).await;
    let (status, body) = Socket::open_on(&user.caller, 0, &id, ECHO)
        .await
        .err()
        .unwrap();
    assert_eq!(
        (status, &body["error"]),
        (409, &json!("environment_not_running"))
    );
}

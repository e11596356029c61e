//! The proxy between a pull and a hostile registry.

use std::net::SocketAddr;

use axum::Json;

use super::*;

/// `a:b`.
const LOGIN: &str = "Basic YTpi";
const MAX: u64 = 1_000;

/// Answers by the last part of the path. `trap` must not be reached.
async fn registry(
    State((own, trap)): State<(SocketAddr, SocketAddr)>,
    request: Request,
) -> Response {
    let path = request.uri().path();
    let sent = request.headers().get(AUTHORIZATION);
    let sent = sent.and_then(|value| value.to_str().ok());
    let to = |url: String| (StatusCode::TEMPORARY_REDIRECT, [("location", url)]).into_response();
    let demand = |challenge: String| {
        let header = [("www-authenticate", challenge)];
        (StatusCode::UNAUTHORIZED, header).into_response()
    };
    let layers = |layer: serde_json::Value| Json(json!({ "layers": [layer] })).into_response();
    match path.rsplit('/').next().unwrap_or_default() {
        "good" => layers(json!({ "size": MAX })),
        "large" => layers(json!({ "size": MAX + 1 })),
        "foreign" => layers(json!({ "size": 1, "urls": [format!("http://{trap}/layer")] })),
        "inside" => to(format!("http://{own}/v2/a/manifests/good")),
        "outside" => to(format!("http://{trap}/v2/a/manifests/good")),
        "metadata" => to("http://169.254.169.254/latest".to_owned()),
        "tls" => to(format!("https://{trap}/v2/a/manifests/good")),
        "loop" => to(format!("http://{own}/v2/a/manifests/loop")),
        "realm" => demand(format!("Bearer realm=\"http://{trap}/token\"")),
        "basic" if sent == Some(LOGIN) => layers(json!({ "size": 1 })),
        "basic" => demand("Basic realm=\"x\"".to_owned()),
        "token" if sent == Some(LOGIN) => Json(json!({ "token": "t" })).into_response(),
        "token" => StatusCode::UNAUTHORIZED.into_response(),
        "bearer" if sent == Some("Bearer t") => layers(json!({ "size": 1 })),
        "bearer" => demand(format!("Bearer realm=\"http://{own}/token\",service=\"s\"")),
        "long" => vec![0_u8; 1 + MAX as usize].into_response(),
        "busy" => StatusCode::TOO_MANY_REQUESTS.into_response(),
        _ => StatusCode::NOT_FOUND.into_response(),
    }
}

/// A registry that is an exception, its proxy, and a listener that is none.
async fn start() -> (SocketAddr, Proxy, std::net::TcpListener) {
    let trap = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    trap.set_nonblocking(true).unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let own = listener.local_addr().unwrap();
    let state = (own, trap.local_addr().unwrap());
    let router = Router::new().fallback(registry).with_state(state);
    tokio::spawn(async move { axum::serve(listener, router).await });
    let settings = Settings {
        listen: own,
        exceptions: vec![format!("http://{own}").parse().unwrap()],
        denied: Vec::new(),
        max_image_bytes: MAX,
    };
    (own, Proxy::new(settings).unwrap(), trap)
}

/// The status of an answer, and whether its body arrives.
async fn get(proxy: &Proxy, own: SocketAddr, path: &str, login: Option<&str>) -> (u16, bool) {
    let mut request = Request::builder().uri(format!("/v2/a/{path}?ns={own}"));
    if let Some(login) = login {
        request = request.header(AUTHORIZATION, login);
    }
    let request = request.body(Body::empty()).unwrap();
    let response = match proxy.answer(request).await {
        Ok(response) => response,
        Err(refusal) => refusal.into_response(),
    };
    let status = response.status().as_u16();
    let body = axum::body::to_bytes(response.into_body(), usize::MAX).await;
    (status, body.is_ok())
}

#[tokio::test]
async fn hostile_registry_refers_to_no_private_address() {
    let (own, proxy, trap) = start().await;
    for (path, status) in [
        ("manifests/good", 200),
        ("manifests/inside", 200),
        ("manifests/outside", 421),
        ("manifests/metadata", 421),
        ("manifests/tls", 421),
        ("manifests/loop", 421),
        ("manifests/realm", 421),
        ("manifests/foreign", 421),
        ("blobs/outside", 421),
        ("manifests/missing", 404),
        ("manifests/busy", 429),
    ] {
        assert_eq!(get(&proxy, own, path, None).await.0, status, "{path}");
        let with_login = get(&proxy, own, path, Some(LOGIN)).await.0;
        assert_eq!(with_login, status, "{path}");
    }
    // containerd asks for a manifest among the blobs too.
    let request = Request::builder()
        .uri(format!("/v2/a/blobs/foreign?ns={own}"))
        .header(ACCEPT, "application/vnd.oci.image.manifest.v1+json, *");
    let request = request.body(Body::empty()).unwrap();
    let refused = proxy.answer(request).await;
    assert!(matches!(refused, Err(Refusal::Manifest(_))));
    let trapped = trap.accept().unwrap_err();
    assert_eq!(trapped.kind(), std::io::ErrorKind::WouldBlock);
}

#[tokio::test]
async fn login_is_used_only_where_the_registry_demands_it() {
    let (own, proxy, _trap) = start().await;
    for path in ["manifests/basic", "manifests/bearer"] {
        assert_eq!(get(&proxy, own, path, None).await.0, 401, "{path}");
        assert_eq!(get(&proxy, own, path, Some(LOGIN)).await.0, 200, "{path}");
        let wrong = get(&proxy, own, path, Some("Basic eDp5")).await.0;
        assert_eq!(wrong, 403, "{path}");
    }
}

#[tokio::test]
async fn image_or_blob_beyond_the_limit_is_refused() {
    let (own, proxy, _trap) = start().await;
    let manifest = get(&proxy, own, "manifests/large", None).await.0;
    assert_eq!(manifest, 413);
    let (status, arrives) = get(&proxy, own, "blobs/long", None).await;
    assert!(status == 200 && !arrives, "{status} {arrives}");
    let (status, arrives) = get(&proxy, own, "blobs/good", None).await;
    assert!(status == 200 && arrives, "{status} {arrives}");
}

#[tokio::test]
async fn registry_that_is_no_exception_is_not_reached() {
    let (_, proxy, trap) = start().await;
    let other = trap.local_addr().unwrap();
    assert_eq!(get(&proxy, other, "manifests/good", None).await.0, 421);
    let trapped = trap.accept().unwrap_err();
    assert_eq!(trapped.kind(), std::io::ErrorKind::WouldBlock);
}

#[tokio::test]
async fn registry_that_breaks_connections_is_asked_again() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let own = listener.local_addr().unwrap();
    tokio::spawn(async move { while listener.accept().await.is_ok() {} });
    let settings = Settings {
        listen: own,
        exceptions: vec![format!("https://{own}").parse().unwrap()],
        denied: Vec::new(),
        max_image_bytes: MAX,
    };
    let proxy = Proxy::new(settings).unwrap();
    assert_eq!(get(&proxy, own, "manifests/good", None).await.0, 502);
}

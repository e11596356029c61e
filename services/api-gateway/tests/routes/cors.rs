//! Requests of browser pages of another origin.

use reqwest::Method;

use crate::support::answer::header;
use crate::support::caller::{Caller, send};
use crate::support::site::Site;
use crate::support::system::{ORIGIN, shared, short_lived, with_default_limits};

const ALLOWED: &str = "access-control-allow-origin";

fn preflight(caller: &Caller, origin: &str) -> reqwest::RequestBuilder {
    caller
        .request(Method::OPTIONS, "/environments")
        .header("origin", origin)
        .header("access-control-request-method", "POST")
        .header(
            "access-control-request-headers",
            "authorization,content-type",
        )
}

#[tokio::test]
async fn page_of_a_configured_origin_may_use_the_api() {
    let caller = Caller::without_token_on(short_lived().await);
    let answer = preflight(&caller, ORIGIN).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    assert_eq!(header(answer.headers(), ALLOWED), Some(ORIGIN));
    for (name, expected) in [
        ("access-control-allow-methods", "POST"),
        ("access-control-allow-headers", "authorization"),
    ] {
        let value = header(answer.headers(), name).unwrap();
        assert!(value.contains(expected), "{name}: {value}");
    }
    // An error can be read too.
    let request = caller.request(Method::GET, "/environments");
    let answer = send(request.header("origin", ORIGIN)).await;
    answer.expect_error(401, "unauthorized");
    assert_eq!(answer.header(ALLOWED), ORIGIN);
    let exposed = answer.header("access-control-expose-headers");
    assert!(exposed.contains("x-trace-id"), "{exposed}");
}

#[tokio::test]
async fn page_of_another_origin_is_not_allowed() {
    let caller = Caller::without_token_on(short_lived().await);
    let other = "https://other.example";
    let answer = preflight(&caller, other).send().await.unwrap();
    assert_eq!(header(answer.headers(), ALLOWED), None);
    let request = caller.request(Method::GET, "/health");
    let answer = send(request.header("origin", other)).await;
    assert!(!answer.has_header(ALLOWED), "{answer:?}");
}

#[tokio::test]
async fn without_configured_origins_no_page_is_allowed() {
    let caller = Caller::without_token_on(shared().await);
    let answer = preflight(&caller, ORIGIN).send().await.unwrap();
    assert_eq!(answer.status(), 204);
    assert_eq!(header(answer.headers(), ALLOWED), None);
    let request = caller.request(Method::GET, "/health");
    let answer = send(request.header("origin", ORIGIN)).await;
    assert!(!answer.has_header(ALLOWED), "{answer:?}");
}

#[tokio::test]
async fn options_that_is_no_preflight_is_answered_by_its_route() {
    let caller = Caller::without_token_on(short_lived().await);
    for (name, value) in [("origin", ORIGIN), ("access-control-request-method", "GET")] {
        let request = caller.request(Method::OPTIONS, "/environments");
        let answer = send(request.header(name, value)).await;
        assert_eq!(answer.status, 204, "{name}: {answer:?}");
        assert!(answer.header("allow").contains("POST"), "{answer:?}");
    }
}

/// Adds the headers of a preflight of a configured origin.
fn as_preflight(request: reqwest::RequestBuilder) -> reqwest::RequestBuilder {
    request
        .header("origin", ORIGIN)
        .header("access-control-request-method", "PUT")
}

#[tokio::test]
async fn options_for_a_server_in_a_box_reaches_it_unless_it_is_a_preflight_for_the_api() {
    let site = Site::start(with_default_limits().await).await;
    let options = |path: &str| site.request(Method::OPTIONS, path);
    for request in [
        options("plain"),
        options("origin").header("origin", ORIGIN),
        options("method").header("access-control-request-method", "PUT"),
    ] {
        let answer = request.send().await.unwrap();
        assert_eq!(answer.status(), 200);
        // It is an answer of the API's origin.
        assert_eq!(header(answer.headers(), ALLOWED), None);
        assert_eq!(answer.text().await.unwrap(), "options");
    }

    // Browsers send a preflight without a credential, and the API answers it.
    let path = format!("/environments/{}/ports/8000/preflight", site.id);
    let anybody = site.user.caller.without_token();
    let request = as_preflight(anybody.request(Method::OPTIONS, &path));
    let answer = request.send().await.unwrap();
    assert_eq!(answer.status(), 200);
    assert_eq!(header(answer.headers(), ALLOWED), Some(ORIGIN));
    let received = site.received().await;
    for path in ["/plain", "/origin", "/method"] {
        assert!(received.iter().any(|seen| seen == path), "{received:?}");
    }
    assert!(!received.iter().any(|seen| seen == "/preflight"));

    // The origin of a preview is the server's.
    let preview = site.preview(true).await;
    let url = format!("http://{}/preflight", anybody.host(0));
    let request = reqwest::Client::new().request(Method::OPTIONS, url);
    let request = as_preflight(request.header("host", preview.host()));
    let answer = request.send().await.unwrap();
    assert_eq!(answer.status(), 200);
    let of_the_box = Some("https://of-the-box.example");
    assert_eq!(header(answer.headers(), ALLOWED), of_the_box);
    assert_eq!(answer.text().await.unwrap(), "options");
}

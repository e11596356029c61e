//! Requests of browser pages of another origin.

use reqwest::Method;

use crate::support::answer::header;
use crate::support::caller::{Caller, send};
use crate::support::system::{ORIGIN, shared, short_lived};

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

//! Previews in a real browser. `make test-browser` installs Chromium and runs these tests.
//!
//! One visitor has opened the previews of two boxes. The page of one box tries to reach the other, and
//! the API.

mod devtools;

use std::time::Duration;

use agentbox_testing::System;
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::support::site::{Preview, Site};
use crate::support::system::{options, with_default_limits};
use devtools::{Browser, Page};

/// What a page tries on another origin.
const ATTACKS: &str = include_str!("browser/attacks.js");
/// The outcome of an attempt that achieved nothing.
const REFUSED: &str = "refused";
/// The cookie of a preview.
const COOKIE: &str = "__Host-agentbox-preview";
/// Browsers resolve the names below `localhost` themselves.
const ONE_MACHINE: &str = "MAP * ~NOTFOUND, EXCLUDE *.localhost, EXCLUDE 127.0.0.1";
/// A domain of previews, which therefore are of one site. Without TLS browsers accept their cookie
/// only below `localhost`.
const DOMAIN: &str = "box.localhost";

/// The names of hosts where the previews below [`DOMAIN`] are at this gateway.
fn one_site(gateway: &str) -> String {
    format!("MAP *.{DOMAIN} {gateway}, MAP * ~NOTFOUND, EXCLUDE 127.0.0.1")
}

/// Opens the link of a preview, and waits for its page.
async fn visit(browser: &Browser, preview: &Preview) -> Page {
    let mut page = browser.page().await;
    page.open(&preview.link).await;
    page.until("document.title", json!("first")).await;
    page.until("location.href", json!(format!("{}/", preview.origin)))
        .await;
    page
}

/// Asserts that no attempt achieved anything.
fn expect_refused(attempts: &Value) {
    for (attempt, outcome) in attempts.as_object().unwrap() {
        assert_eq!(outcome, REFUSED, "{attempt}");
    }
}

#[tokio::test]
#[ignore = "needs Chromium: make test-browser"]
async fn page_reloads_when_its_file_changes_until_its_preview_is_deleted() {
    let site = Site::start(with_default_limits().await).await;
    let preview = site.preview(false).await;
    let browser = Browser::start(ONE_MACHINE).await;
    let mut page = visit(&browser, &preview).await;
    page.until("live.readyState", json!(1)).await;
    site.write_page("second").await;
    page.until("document.title", json!("second")).await;
    page.until("live.readyState", json!(1)).await;
    site.delete_preview(&preview).await;
    let closed = timeout(Duration::from_secs(2), page.run("liveClosed")).await;
    assert!(closed.is_ok(), "the WebSocket is open");
    page.open(&preview.origin).await;
    let title = "This preview does not exist";
    page.until("document.title", json!(title)).await;
    browser.stop().await;
}

#[tokio::test]
#[ignore = "needs Chromium: make test-browser"]
async fn server_gets_the_request_of_a_browser_without_our_secrets() {
    let site = Site::start(with_default_limits().await).await;
    let preview = site.preview(false).await;
    let browser = Browser::start(ONE_MACHINE).await;
    let mut page = visit(&browser, &preview).await;
    page.run("fetch('/own-cookie').then(() => null)").await;
    assert_eq!(page.run("document.cookie").await, "own=1");
    let read = "fetch('/headers').then((answer) => answer.text())";
    let head = page.run(read).await;
    let head = head.as_str().unwrap().to_lowercase();
    for line in [
        "host: localhost:8000".to_owned(),
        "cookie: own=1".to_owned(),
        format!("x-forwarded-host: {}", preview.host()),
    ] {
        assert!(head.lines().any(|found| found == line), "{line} in {head}");
    }

    let held = page.call("Network.getCookies", json!({})).await;
    let mut held = held["cookies"].as_array().unwrap().iter();
    let cookie = held.find(|cookie| cookie["name"] == COOKIE).unwrap();
    assert_eq!(cookie["httpOnly"], true, "{cookie}");
    assert_eq!(cookie["secure"], true, "{cookie}");
    let (_, link) = preview.link.split_once("link=").unwrap();
    let token = preview.token.as_deref().unwrap();
    let secret = cookie["value"].as_str().unwrap();
    for absent in ["agentbox", "authorization", secret, token, link] {
        let absent = absent.to_lowercase();
        assert!(!head.contains(&absent), "{absent} in {head}");
    }
    browser.stop().await;
}

/// Lets the page of one box attack the preview of another, and the API.
async fn attack(system: &System, rules: &str, domain: &str) {
    let (attacker, target) = tokio::join!(Site::start(system), Site::start(system));
    let (own, other) = (attacker.preview(false).await, target.preview(false).await);
    let browser = Browser::start(rules).await;
    let mut opened = visit(&browser, &other).await;
    let mut page = visit(&browser, &own).await;

    // On the page's own origin every attempt succeeds, and leaves a service worker.
    let script = format!("{ATTACKS}\nonPreview(location.origin)");
    let achieved = page.run(&script).await;
    for (attempt, outcome) in achieved.as_object().unwrap() {
        assert_ne!(outcome, REFUSED, "{attempt}");
    }

    let mut page = browser.page().await;
    page.open(&own.origin).await;
    page.until("document.title", json!("first")).await;
    let script = format!("{ATTACKS}\nonPreview('{}')", other.origin);
    expect_refused(&page.run(&script).await);
    // The other server has received nothing but visits.
    let received = target.received().await;
    let visits = [
        "/",
        "/live",
        "/favicon.ico",
        "/headers?visited",
        "/received",
    ];
    for path in &received {
        assert!(visits.contains(&path.as_str()), "{path} in {received:?}");
    }
    let sockets = received.iter().filter(|path| *path == "/live").count();
    assert_eq!(sockets, 1, "{received:?}");

    attack_cookies(&mut page, domain).await;
    let read = "fetch('/headers').then((answer) => answer.text())";
    let head = opened.run(read).await;
    assert!(
        head.as_str().unwrap().starts_with("GET /headers "),
        "{head}"
    );
    assert!(!head.as_str().unwrap().contains("evil"), "{head}");
    let controller = "navigator.serviceWorker.controller === null";
    assert_eq!(opened.run(controller).await, true);
    assert_eq!(page.run("originAgentCluster").await, true);

    // A public preview can be visited, but neither read nor framed by a page of another origin.
    let public = target.preview(true).await;
    let script = format!("fetched('{}/headers')", public.origin);
    assert_eq!(page.run(&script).await, REFUSED);
    let script = format!("framed('{}/framed')", public.origin);
    assert_eq!(page.run(&script).await, REFUSED);

    attack_api(&mut page, &target).await;
    browser.stop().await;
}

/// Tries to replace the cookies of the visitor, on the page's own host and for all hosts of the domain.
async fn attack_cookies(page: &mut Page, domain: &str) {
    for attributes in [
        "Path=/; Secure".to_owned(),
        format!("Path=/; Secure; Domain={domain}"),
        format!("Path=/; Domain={domain}"),
    ] {
        let script = format!("document.cookie = '{COOKIE}=evil; {attributes}'");
        page.run(&script).await;
    }
    assert_eq!(page.run("document.cookie").await, "");
}

/// Lets a page use the token of a user on the API, and the API's paths on its own host.
async fn attack_api(page: &mut Page, target: &Site) {
    let caller = &target.user.caller;
    let script = format!(
        "onApi('{}', '{}', '{}')",
        caller.url(0, ""),
        target.id,
        caller.token.as_ref().unwrap()
    );
    expect_refused(&page.run(&script).await);
    let own = "fetch('/api/v1/health').then((answer) => answer.text())";
    assert_eq!(page.run(own).await, "not found");
    let link = "fetch('/.agentbox/open?link=guessed').then((answer) => answer.status)";
    assert_eq!(page.run(link).await, 401);
}

#[tokio::test]
#[ignore = "needs Chromium: make test-browser"]
async fn page_of_one_box_reaches_no_other_preview_and_not_the_api() {
    attack(with_default_limits().await, ONE_MACHINE, "localhost").await;
}

#[tokio::test]
#[ignore = "needs Chromium: make test-browser"]
async fn page_reaches_no_other_preview_of_its_own_site() {
    let options = options()
        .env("api-gateway", "AGENTBOX_PREVIEW_DOMAIN", DOMAIN)
        .env("api-gateway", "AGENTBOX_PREVIEW_SCHEME", "http");
    let system = System::start(options).await.unwrap();
    let gateway = system.url().trim_start_matches("http://");
    attack(&system, &one_site(gateway), DOMAIN).await;
    system.stop().await;
}

#[tokio::test]
#[ignore = "needs Chromium: make test-browser"]
async fn page_of_a_port_runs_no_script_on_the_apis_origin() {
    let site = Site::start(with_default_limits().await).await;
    let browser = Browser::start(ONE_MACHINE).await;
    let mut page = browser.page().await;
    let caller = &site.user.caller;
    let token = format!("Bearer {}", caller.token.as_ref().unwrap());
    let headers = json!({"headers": {"Authorization": token}});
    page.call("Network.enable", json!({})).await;
    page.call("Network.setExtraHTTPHeaders", headers).await;
    let path = format!("/environments/{}/ports/8000/", site.id);
    page.open(&caller.url(0, &path)).await;
    page.until("document.title", json!("first")).await;
    assert_eq!(page.run("self.origin").await, "null");
    assert_eq!(page.run("typeof live").await, "undefined");
    let received = site.received().await;
    assert!(!received.iter().any(|path| path == "/live"), "{received:?}");
    browser.stop().await;
}

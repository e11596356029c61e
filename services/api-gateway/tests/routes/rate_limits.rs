//! The default rate limits, except that of failed logins, on three gateways.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use agentbox_testing::System;
use futures::future::join_all;
use futures::stream::{self, StreamExt};
use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::{Mutex, OnceCell};

use crate::errors::{read_answer, refused_head};
use crate::support::TIMEOUT;
use crate::support::answer::Answer;
use crate::support::caller::{Caller, PASSWORD, User, admin_of, new_user_with_role};
use crate::support::system::options;

/// The burst of the flood limiter; far above the rate limits.
const BURST: usize = 600;
/// The limit of failed logins of one username; the default is too high for a test.
const FAILED_LOGINS: usize = 20;

static LIMITED: OnceCell<(System, Caller)> = OnceCell::const_new();
/// Held by a test that sends a burst: bursts must not overlap.
static ONE_BURST: Mutex<()> = Mutex::const_new(());

async fn limited() -> &'static (System, Caller) {
    LIMITED
        .get_or_init(async || {
            let options = options()
                .replicas(3)
                .env("api-gateway", "AGENTBOX_FLOOD_PER_SECOND", "5")
                .env("api-gateway", "AGENTBOX_FLOOD_BURST", BURST.to_string())
                .env(
                    "api-gateway",
                    "AGENTBOX_RATE_LIMIT_FAILED_LOGIN",
                    FAILED_LOGINS.to_string(),
                );
            let system = System::start(options).await.unwrap();
            let admin = admin_of(&system).await;
            (system, admin)
        })
        .await
}

async fn user() -> User {
    // Each test uses one request of the administrator's limit.
    new_user_with_role(&limited().await.1, "user").await
}

/// Makes the caller known to each gateway, so that it is counted under its user even if auth
/// fails in the burst that follows. `None`: auth fails already, so it may not be known.
async fn call_every_gateway(caller: &Caller) -> Option<Vec<Answer>> {
    let mut answers = Vec::new();
    for gateway in 0..caller.gateways() {
        let answer = caller.get_on(gateway, "/auth/me").await;
        if matches!(answer.status, 503 | 504) {
            return None;
        }
        assert_eq!(answer.status, 200, "{answer:?}");
        answers.push(answer);
    }
    Some(answers)
}

fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs()
}

fn number(answer: &Answer, name: &str) -> u64 {
    answer.header(name).parse().unwrap()
}

/// The number of requests and of those that passed the limit, for each window. A 503 of an
/// overloaded auth counts as passed.
fn windows(answers: &[Answer]) -> BTreeMap<u64, (usize, usize)> {
    let mut windows = BTreeMap::new();
    for answer in answers {
        let (all, passed) = windows
            .entry(number(answer, "x-ratelimit-reset"))
            .or_insert((0, 0));
        *all += 1;
        *passed += usize::from(answer.status != 429);
    }
    windows
}

/// Asserts that each window passed exactly its limit. Returns whether one of them was full.
fn expect_exact_limit(answers: &[Answer], limit: usize) -> bool {
    let windows = windows(answers);
    for (all, passed) in windows.values() {
        assert_eq!(*passed, limit.min(*all), "{windows:?}");
    }
    for answer in answers.iter().filter(|answer| answer.status == 429) {
        answer.expect_error(429, "rate_limited");
        assert_eq!(number(answer, "x-ratelimit-remaining"), 0);
        let wait = number(answer, "retry-after");
        assert!((1..=60).contains(&wait), "{wait}");
    }
    windows.values().any(|(all, _)| *all > limit)
}

/// Repeats `attempt` until it returns true. An attempt is inconclusive when a window ended during
/// it, when the bus did not count a request, or when auth did not know a caller in time.
async fn repeat_until_conclusive(attempt: impl AsyncFn() -> bool) {
    let _one_burst = ONE_BURST.lock().await;
    for _ in 0..3 {
        if attempt().await {
            return;
        }
    }
    panic!("every attempt was inconclusive");
}

/// The number that passed, if all were counted in one window.
fn passed_in_one_window(answers: &[Answer]) -> Option<usize> {
    match windows(answers).into_values().collect::<Vec<_>>()[..] {
        [(_, passed)] => Some(passed),
        _ => None,
    }
}

#[tokio::test]
async fn each_category_has_its_documented_limit_and_headers() {
    let user = user().await;
    let anonymous = user.caller.at_new_address();
    let exec = json!({"command": ["true"]});
    let at = "/environments/env-0000000000000000";
    // A minute may end between the first answer and its check.
    let started = now();
    let answers = [
        (anonymous.login("nobody", "nonsense").await, 10),
        (user.caller.post("/environments", &json!({})).await, 20),
        (user.caller.post(&format!("{at}/exec"), &exec).await, 100),
        (user.caller.get(&format!("{at}/attach")).await, 100),
        (
            user.caller.post(&format!("{at}/executions"), &exec).await,
            100,
        ),
        (user.caller.get(&format!("{at}/executions")).await, 200),
        (user.caller.get(&format!("{at}/files?path=/")).await, 1000),
        (
            user.caller.delete(&format!("{at}/files?path=/a")).await,
            1000,
        ),
        (user.caller.get("/auth/me").await, 200),
        (user.caller.get("/environments").await, 200),
        (user.caller.get("/health").await, 200),
        (user.caller.get("/nope").await, 200),
        (anonymous.get("/environments").await, 200),
    ];
    for (answer, limit) in answers {
        assert_eq!(number(&answer, "x-ratelimit-limit"), limit, "{answer:?}");
        let remaining = number(&answer, "x-ratelimit-remaining");
        assert!(remaining < limit, "this request counts: {answer:?}");
        let reset = number(&answer, "x-ratelimit-reset");
        assert!(
            reset.is_multiple_of(60) && reset >= started && reset <= now() + 60,
            "{reset}"
        );
    }
}

#[tokio::test]
async fn concurrent_requests_on_three_gateways_pass_exactly_to_the_limit() {
    repeat_until_conclusive(async || {
        let user = user().await;
        let Some(mut answers) = call_every_gateway(&user.caller).await else {
            return false;
        };
        let tries = (0..300).map(|n| user.caller.get_on(n % 3, "/api-keys"));
        answers.extend(join_all(tries).await);
        expect_exact_limit(&answers, 200)
    })
    .await;
}

/// The requests that the gateways counted alone, because the bus did not count them in time.
async fn counted_locally() -> u64 {
    let (system, admin) = limited().await;
    let mut counted = 0;
    for gateway in 0..admin.gateways() {
        let url = system.admin_url("api-gateway", gateway).unwrap();
        let answer = reqwest::get(format!("{url}/metrics")).await.unwrap();
        let text = answer.text().await.unwrap();
        let lines = text
            .lines()
            .filter(|line| line.starts_with("agentbox_rate_limit_counted_locally_total"));
        counted += lines
            .map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap())
            .sum::<u64>();
    }
    counted
}

#[tokio::test]
async fn remaining_requests_fall_by_exactly_the_requests_on_all_gateways() {
    repeat_until_conclusive(async || {
        let user = user().await;
        let counted_before = counted_locally().await;
        let Some(mut answers) = call_every_gateway(&user.caller).await else {
            return false;
        };
        let tries = (0..90).map(|n| user.caller.get_on(n % 3, "/auth/me"));
        answers.extend(join_all(tries).await);
        if counted_locally().await != counted_before {
            return false;
        }
        let mut windows: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
        for answer in &answers {
            let window = windows.entry(number(answer, "x-ratelimit-reset"));
            let remaining = number(answer, "x-ratelimit-remaining");
            window.or_default().push(200 - remaining);
        }
        for used in windows.values_mut() {
            used.sort_unstable();
            let expected: Vec<u64> = (1..).take(used.len()).collect();
            assert_eq!(*used, expected);
        }
        true
    })
    .await;
}

#[tokio::test]
async fn failed_creations_and_commands_are_counted() {
    for (path, limit) in [
        ("/environments", 20),
        ("/environments/env-0000000000000000/exec", 100),
    ] {
        repeat_until_conclusive(async || {
            let user = user().await;
            if call_every_gateway(&user.caller).await.is_none() {
                return false;
            }
            let body = json!({});
            let tries = (0..limit + 10).map(|_| user.caller.post(path, &body));
            expect_exact_limit(&join_all(tries).await, limit)
        })
        .await;
    }
}

#[tokio::test]
async fn failed_logins_exhaust_the_limit_of_their_address() {
    repeat_until_conclusive(async || {
        let user = user().await;
        let anonymous = user.caller.at_new_address();
        let mut answers = Vec::new();
        for n in 0..12 {
            // A different name each time, so that only the address is counted.
            answers.push(anonymous.login(&format!("nobody-{n}"), "nonsense").await);
        }
        answers.push(anonymous.login(&user.username, PASSWORD).await);
        anonymous
            .at_new_address()
            .login(&user.username, PASSWORD)
            .await
            .expect_status(200);
        expect_exact_limit(&answers, 10)
    })
    .await;
}

/// Logs in with a wrong password from `count` new addresses at the same time.
async fn guess_from_many_addresses(user: &User, count: usize) -> Vec<Answer> {
    let guesses = (0..count).map(|_| async {
        let stranger = user.caller.at_new_address();
        stranger.login(&user.username, "nonsense").await
    });
    join_all(guesses).await
}

#[tokio::test]
async fn wrong_passwords_from_elsewhere_do_not_lock_out_the_right_one() {
    let _one_burst = ONE_BURST.lock().await;
    let user = user().await;
    for answer in guess_from_many_addresses(&user, 12).await {
        answer.expect_error(401, "invalid_credentials");
    }
    user.caller
        .at_new_address()
        .login(&user.username, PASSWORD)
        .await
        .expect_status(200);
}

#[tokio::test]
async fn failed_logins_from_many_addresses_exhaust_the_limit_of_the_username() {
    repeat_until_conclusive(async || {
        let user = user().await;
        let answers = guess_from_many_addresses(&user, FAILED_LOGINS + 5).await;
        user.caller.get("/auth/me").await.expect_status(200);
        let Some(passed) = passed_in_one_window(&answers) else {
            return false;
        };
        assert_eq!(passed, FAILED_LOGINS);
        true
    })
    .await;
}

#[tokio::test]
async fn successful_logins_do_not_exhaust_the_limit_of_the_username() {
    let user = user().await;
    for _ in 0..FAILED_LOGINS + 5 {
        user.caller
            .at_new_address()
            .login(&user.username, PASSWORD)
            .await
            .expect_status(200);
    }
}

#[tokio::test]
async fn keys_of_one_user_share_a_limit() {
    let bystander = user().await;
    repeat_until_conclusive(async || {
        let user = user().await;
        let made = user.caller.post("/api-keys", &json!({})).await;
        let key = user.caller.with_token(made.json()["key"].as_str().unwrap());
        let mut answers = vec![made];
        for caller in [&user.caller, &key] {
            let Some(known) = call_every_gateway(caller).await else {
                return false;
            };
            answers.extend(known);
        }
        let tries = (0..230).map(|n| [&user.caller, &key][n % 2].get("/auth/me"));
        answers.extend(join_all(tries).await);
        bystander.caller.get("/auth/me").await.expect_status(200);
        expect_exact_limit(&answers, 200)
    })
    .await;
}

#[tokio::test]
async fn forwarded_address_from_the_client_is_ignored() {
    repeat_until_conclusive(async || {
        let anonymous = user().await.caller.at_new_address();
        let tries = (0..220).map(|n| {
            // The proxy appends its entry to the entry that the client sent.
            let mut caller = anonymous.clone();
            caller.address = format!("192.0.2.{n}, {}", anonymous.address);
            async move { caller.get("/auth/me").await }
        });
        expect_exact_limit(&join_all(tries).await, 200)
    })
    .await;
}

#[tokio::test]
async fn probes_are_not_limited() {
    let anonymous = user().await.caller.at_new_address();
    let answers = join_all((0..300).map(|_| anonymous.get("/health/live"))).await;
    assert!(answers.iter().all(|answer| answer.status == 200));
}

#[tokio::test]
async fn flood_from_one_address_is_refused() {
    let _one_burst = ONE_BURST.lock().await;
    let anonymous = user().await.caller.at_new_address();
    let tries = (0..BURST + 400).map(|_| anonymous.get_on(0, "/health/live"));
    let answers: Vec<Answer> = stream::iter(tries).buffer_unordered(64).collect().await;
    let refused: Vec<&Answer> = answers
        .iter()
        .filter(|answer| answer.status == 429)
        .collect();
    assert!((1..=400).contains(&refused.len()), "{}", refused.len());
    refused[0].expect_error(429, "rate_limited");
    // Other clients are served, and another replica serves the same client.
    anonymous
        .at_new_address()
        .get_on(0, "/health/live")
        .await
        .expect_status(200);
    anonymous.get_on(1, "/health/live").await.expect_status(200);
}

/// A POST to the first gateway that is refused before its body is read. Returns its status.
async fn refused_post(http: &reqwest::Client, from: &Caller) -> Result<u16, reqwest::Error> {
    let answer = http
        .post(from.url(0, "/environments"))
        .header("x-forwarded-for", &from.address)
        .bearer_auth("wrong")
        .header("content-type", "application/json")
        // More than the gateway reads with the head.
        .body(vec![b' '; 20_000])
        .timeout(TIMEOUT)
        .send()
        .await?;
    let status = answer.status().as_u16();
    // The connection is used again after the whole answer.
    answer.bytes().await?;
    Ok(status)
}

#[tokio::test]
async fn flood_of_a_client_with_kept_connections_is_answered_request_by_request() {
    let _one_burst = ONE_BURST.lock().await;
    let anonymous = user().await.caller.at_new_address();
    let http = reqwest::Client::new();
    let tries = (0..3_000).map(|_| refused_post(&http, &anonymous));
    let statuses: Vec<_> = stream::iter(tries).buffer_unordered(16).collect().await;
    let mut refused = 0;
    for status in statuses {
        let status = status.unwrap();
        // 503: auth is overloaded.
        assert!(matches!(status, 401 | 429 | 503), "{status}");
        refused += usize::from(status == 429);
    }
    assert!(refused > 0);

    // The same refusal on a connection that sends head and body one after the other.
    let head = |length: usize| {
        let forwarded = format!("host: x\r\nx-forwarded-for: {}\r\n", anonymous.address);
        refused_head(length).replacen("host: x\r\n", &forwarded, 1)
    };
    let mut stream = TcpStream::connect(anonymous.host(0)).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let mut refused = 0;
    // Some may pass when a window has ended.
    for _ in 0..100 {
        stream.write_all(head(2).as_bytes()).await.unwrap();
        stream.write_all(b"{}").await.unwrap();
        let (answer, _) = read_answer(&mut stream).await;
        assert!(!answer.contains("connection: close"), "{answer}");
        refused += usize::from(answer.starts_with("HTTP/1.1 429 "));
        if refused == 3 {
            break;
        }
    }
    assert_eq!(refused, 3);
    let mut large = head(100_000).into_bytes();
    large.resize(large.len() + 100_000, b' ');
    stream.write_all(&large).await.unwrap();
    let (answer, _) = read_answer(&mut stream).await;
    assert!(answer.contains("\r\nconnection: close"), "{answer}");
}

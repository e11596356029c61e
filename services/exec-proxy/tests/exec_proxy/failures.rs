//! Failures of a part while a command runs: no invented exit, and no command left behind.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use agentbox_box_protocol::tls;
use agentbox_box_protocol::token::BoxToken;
use agentbox_contracts::environment::Status;
use agentbox_contracts::error::ErrorCode;
use agentbox_contracts::exec::{Open, OpenKind};
use agentbox_testing::repeat_until_below;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use crate::support::gateway::{command, result, shell};
use crate::support::relay::Relay;
use crate::support::{System, TestBox, eventually, is_alive, pattern, proxy};

const LONG: &str = "echo $$ > pid; echo begun; exec sleep 600";

#[tokio::test(flavor = "multi_thread")]
async fn box_killed_during_command_is_lost_without_exit_code() {
    let system = System::start().await;
    repeat_until_below(Duration::from_secs(5), async || {
        let mut inside = TestBox::idle().await;
        let session = system
            .gateway
            .open(&inside, OpenKind::Exec(shell(LONG)))
            .await
            .unwrap();
        let orphan = inside.number("pid").await;
        let began = Instant::now();
        inside.kill();
        let error = result(session).await.unwrap_err();
        let took = began.elapsed();
        assert_eq!(error.code, ErrorCode::BoxLost, "{error}");
        // In a box the command ends with PID 1. Here it is a plain process.
        let orphan = nix::unistd::Pid::from_raw(orphan.try_into().unwrap());
        let _ = nix::sys::signal::kill(orphan, nix::sys::signal::Signal::SIGKILL);
        took
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_exec_proxy_leaves_error_at_gateway_and_no_command_in_box() {
    repeat_until_below(Duration::from_secs(8), async || {
        let mut system = System::start().await;
        let inside = TestBox::idle().await;
        let session = system
            .gateway
            .open(&inside, OpenKind::Exec(shell(LONG)))
            .await
            .unwrap();
        let pid = inside.number("pid").await;
        let began = Instant::now();
        system.proxy.kill();
        let error = result(session).await.unwrap_err();
        let took = began.elapsed();
        // It may have been killed before its first output.
        let codes = [ErrorCode::BoxLost, ErrorCode::Timeout];
        assert!(codes.contains(&error.code), "{error}");
        println!("error received {took:?} after the kill");
        eventually("the command is dead", Duration::from_secs(5), async || {
            !is_alive(pid)
        })
        .await;
        took
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn shutdown_finishes_short_sessions_and_fails_long_ones() {
    let mut system = System::start().await;
    let inside = TestBox::idle().await;
    let long = system
        .gateway
        .open(&inside, OpenKind::Exec(shell(LONG)))
        .await
        .unwrap();
    let short = shell("echo $$ > short; sleep 0.7; echo finished");
    let short = system
        .gateway
        .open(&inside, OpenKind::Exec(short))
        .await
        .unwrap();
    let pid = inside.number("pid").await;
    inside.number("short").await;
    system.proxy.terminate();
    let short = result(short).await.unwrap();
    assert_eq!(short.stdout, b"finished\n");
    let error = result(long).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::BoxLost);
    assert!(error.message.contains("shutting down"), "{error}");
    eventually("the command is dead", Duration::from_secs(5), async || {
        !is_alive(pid)
    })
    .await;
    let proxy = &mut system.proxy;
    eventually("the process ends", Duration::from_secs(10), async || {
        proxy.has_ended()
    })
    .await;
    let refused = system
        .gateway
        .exec(&inside, command(&["true"]))
        .await
        .unwrap_err();
    assert_eq!(
        refused.code,
        ErrorCode::Unavailable,
        "no exec-proxy serves the cluster: {refused}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn connection_lost_mid_output_is_resumed_exactly() {
    let system = System::start().await;
    let inside = TestBox::idle().await;
    let relay = Relay::to(inside.address).await;
    let bytes = pattern(8 * 1024 * 1024);
    std::fs::write(inside.path("bytes"), &bytes).unwrap();
    let open = Open {
        environment: inside.id.clone(),
        owner: None,
        address: Some(relay.address),
        status: Status::Running,
        kind: OpenKind::Exec(shell("cat bytes; echo end >&2; exit 5")),
    };
    let session = system.gateway.open_as(&open).await.unwrap();
    let cutting = async {
        for mebibytes in [1, 3, 6] {
            eventually("output flows", Duration::from_secs(20), async || {
                relay.bytes_from_box() > mebibytes * 1024 * 1024
            })
            .await;
            relay.disconnect();
        }
    };
    let (answer, ()) = tokio::join!(result(session), cutting);
    let answer = answer.unwrap();
    assert!(
        answer.stdout == bytes,
        "{} of {} bytes",
        answer.stdout.len(),
        bytes.len()
    );
    assert_eq!(
        (answer.exit.exit_code, answer.stderr.as_slice()),
        (5, &b"end\n"[..])
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_kept_connection_does_not_fail_next_command() {
    let system = System::start().await;
    let inside = TestBox::idle().await;
    let relay = Relay::to(inside.address).await;
    for _ in 0..3 {
        let open = Open {
            environment: inside.id.clone(),
            owner: None,
            address: Some(relay.address),
            status: Status::Running,
            kind: OpenKind::Exec(shell("echo here")),
        };
        let answer = result(system.gateway.open_as(&open).await.unwrap())
            .await
            .unwrap();
        assert_eq!(answer.stdout, b"here\n");
        relay.disconnect();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn box_lost_before_its_answer_to_start_is_box_lost() {
    let system = System::start().await;
    let inside = TestBox::idle().await;
    let relay = Relay::to(inside.address).await;
    let open = |script: &str| Open {
        environment: inside.id.clone(),
        owner: None,
        address: Some(relay.address),
        status: Status::Running,
        kind: OpenKind::Exec(shell(script)),
    };
    // The handshake of the connection needs answers.
    let first = system.gateway.open_as(&open("true")).await.unwrap();
    result(first).await.unwrap();
    let open = open(LONG);
    relay.hold_answers();
    let losing = async {
        let orphan = inside.number("pid").await;
        drop(relay);
        orphan
    };
    let answer = async { result(system.gateway.open_as(&open).await?).await };
    let (answer, orphan) = tokio::join!(answer, losing);
    // The command was started, so the error must not claim that it was not.
    let error = answer.unwrap_err();
    assert_eq!(error.code, ErrorCode::BoxLost, "{error}");
    eventually("boxd kills it", Duration::from_secs(10), async || {
        !is_alive(orphan)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn impostor_at_the_address_of_a_box_gets_no_token_and_no_command() {
    let system = System::start().await;
    let inside = TestBox::idle().await;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let impostor = tokio::spawn(async move {
        // First with a key of its own, to read what is sent to it.
        let token = BoxToken::parse("token-of-the-impostor").unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        let accepted = tls::acceptor(&token).unwrap().accept(stream).await;
        assert!(accepted.is_err(), "the exec-proxy accepted another key");
        // Then without TLS.
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut received = vec![0; 16 * 1024];
        let length = stream.read(&mut received).await.unwrap();
        received.truncate(length);
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
        let _ = stream.read_to_end(&mut received).await;
        received
    });
    for _ in 0..2 {
        let open = Open {
            environment: inside.id.clone(),
            owner: None,
            address: Some(address),
            status: Status::Running,
            kind: OpenKind::Exec(shell("echo the-command")),
        };
        let answer = async { result(system.gateway.open_as(&open).await?).await };
        let error = answer.await.unwrap_err();
        assert_eq!(error.code, ErrorCode::NotRunning, "{error}");
    }
    let received = tokio::time::timeout(Duration::from_secs(20), impostor);
    let received = received.await.unwrap().unwrap();
    let received = String::from_utf8_lossy(&received);
    let token = BoxToken::derive(&proxy::secret_bytes(), &inside.id).unwrap();
    for text in ["authorization", token.expose(), "the-command"] {
        assert!(!received.contains(text), "{text} was sent to the impostor");
    }
    // The box itself is served as before.
    let answer = system.gateway.exec(&inside, command(&["true"])).await;
    assert_eq!(answer.unwrap().exit.exit_code, 0);
}

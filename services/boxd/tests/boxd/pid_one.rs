//! boxd as PID 1 of its own namespace.

use std::time::{Duration, Instant};

use agentbox_box_protocol::termination::Termination;
use agentbox_testing::repeat_until_below;
use nix::sys::signal::Signal;
use tonic::Code;

use crate::support::{Session, Setup, TestBox, eventually, run, sh, shell, start};

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

fn namespaced(main: Vec<String>) -> Setup {
    let wrapper = words("unshare --pid --fork --mount-proc --kill-child");
    Setup {
        main,
        wrapper,
        ..Setup::default()
    }
}

#[tokio::test]
async fn orphans_are_adopted_and_reaped_without_losing_exit_codes() {
    let (_boxd, client) = TestBox::start(namespaced(vec![])).await;
    for code in 0..30 {
        // Each command leaves orphans that end before, with and after it.
        let script = format!("(true & sleep 0.01 &) ; (sleep 0.05 &) ; exit {code}");
        assert_eq!(run(&client, sh(&script)).await.code(), code);
    }
    eventually("no zombie is left", async || {
        let states = run(
            &client,
            sh("cat /proc/[0-9]*/stat | grep -c ') Z ' || true"),
        )
        .await;
        states.text().trim() == "0"
    })
    .await;
    let orphan = run(&client, sh("setsid sleep 30 >/dev/null 2>&1 & echo $!")).await;
    let parent = format!("grep PPid /proc/{}/status", orphan.text().trim());
    assert_eq!(run(&client, sh(&parent)).await.text(), "PPid:\t1\n");
}

#[tokio::test]
async fn root_in_box_cannot_read_token() {
    // Root with the default capabilities of container runtimes.
    let kept = "+chown,+dac_override,+fowner,+fsetid,+kill,+setgid,+setuid,+setpcap,\
                +net_bind_service,+net_raw,+sys_chroot,+mknod,+audit_write,+setfcap";
    let mut setup = namespaced(vec![]);
    setup.wrapper.push("setpriv".to_owned());
    setup.wrapper.push(format!("--bounding-set=-all,{kept}"));
    setup.wrapper.push("--inh-caps=-all".to_owned());
    let (_boxd, client) = TestBox::start(setup).await;
    for script in [
        "cat /proc/1/environ",
        "head -c 1 /proc/1/mem",
        "readlink /proc/1/fd/0",
        "cat /proc/1/maps",
    ] {
        let outcome = run(&client, sh(script)).await;
        assert_ne!(outcome.code(), 0, "{script}: {:?}", outcome.text());
    }
    let line = run(&client, start(&["cat", "/proc/1/cmdline"])).await;
    assert!(
        !line.text().contains(crate::support::TOKEN),
        "{}",
        line.text()
    );
}

#[tokio::test]
async fn boxd_environment_holds_no_token() {
    let (_boxd, client) = TestBox::start(namespaced(vec![])).await;
    let outcome = run(&client, start(&["cat", "/proc/1/environ"])).await;
    assert_eq!(outcome.code(), 0);
    assert!(outcome.text().contains("PATH="));
    assert!(
        !outcome.text().contains("AGENTBOX_BOXD"),
        "{}",
        outcome.text()
    );
}

#[tokio::test]
async fn sigterm_reaches_main_command_and_its_code_is_the_box_code() {
    let script = "trap 'echo bye; exit 42' TERM; echo up; while :; do sleep 0.05; done";
    let (mut boxd, client) = TestBox::start(namespaced(shell(script))).await;
    wait_for_line(&client, b"up").await;
    boxd.signal(Signal::SIGTERM);
    assert_eq!(boxd.exit_code().await, Some(42));
}

#[tokio::test]
async fn end_call_stops_box_like_sigterm() {
    let script = "trap 'echo stopping; exit 7' TERM; echo up; while :; do sleep 0.05; done";
    let (mut boxd, mut client) = TestBox::start(namespaced(shell(script))).await;
    wait_for_line(&client, b"up").await;
    client
        .end(agentbox_box_protocol::proto::EndRequest {})
        .await
        .unwrap();
    assert_eq!(boxd.exit_code().await, Some(7));
    let (mut boxd, mut client) = TestBox::start(namespaced(vec![])).await;
    client
        .end(agentbox_box_protocol::proto::EndRequest {})
        .await
        .unwrap();
    assert_eq!(boxd.exit_code().await, Some(0));
}

#[tokio::test]
async fn idle_box_stops_at_once_and_reports_no_exit_for_its_runs() {
    repeat_until_below(Duration::from_secs(3), async || {
        let (mut boxd, client) = TestBox::start(namespaced(vec![])).await;
        let mut session = Session::start(&client, sh("trap '' TERM; echo up; sleep 1000")).await;
        session.until("up").await;
        let began = Instant::now();
        boxd.signal(Signal::SIGTERM);
        assert_eq!(session.shutdown_code().await, Code::Unavailable);
        assert_eq!(boxd.exit_code().await, Some(0));
        let took = began.elapsed();
        let termination = Termination::read(&boxd.path("termination")).unwrap();
        assert_eq!(termination.map(|ended| ended.exit_code), Some(0));
        took
    })
    .await;
}

#[tokio::test]
async fn main_command_exit_ends_box_and_runs() {
    let (mut boxd, client) = TestBox::start(namespaced(shell(
        "while [ ! -e go ]; do sleep 0.02; done; exit 6",
    )))
    .await;
    let mut session = Session::start(&client, sh("echo up; sleep 1000")).await;
    session.until("up").await;
    std::fs::write(boxd.path("go"), "").unwrap();
    assert_eq!(session.shutdown_code().await, Code::Unavailable);
    assert_eq!(boxd.exit_code().await, Some(6));
}

#[tokio::test]
async fn box_of_other_user_runs_commands_as_that_user() {
    let mut setup = namespaced(vec![]);
    setup
        .wrapper
        .extend(words("setpriv --reuid=65534 --regid=65534 --clear-groups"));
    setup.no_output_dir = true;
    let (_boxd, client) = TestBox::start(setup).await;
    let outcome = run(
        &client,
        sh("id -u; cat /proc/1/environ 2>/dev/null || echo hidden"),
    )
    .await;
    assert_eq!(outcome.text(), "65534\nhidden\n");
}

async fn wait_for_line(client: &agentbox_box_protocol::client::BoxClient, line: &[u8]) {
    let request = agentbox_box_protocol::proto::LogsRequest {
        follow: true,
        ..Default::default()
    };
    let mut logs = client.clone().logs(request).await.unwrap().into_inner();
    loop {
        let reply = logs.message().await.unwrap().unwrap();
        if let Some(agentbox_box_protocol::proto::logs_reply::Reply::Batch(batch)) = reply.reply
            && batch.entries.iter().any(|entry| entry.line == line)
        {
            return;
        }
    }
}

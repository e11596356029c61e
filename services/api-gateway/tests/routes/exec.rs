//! `POST /environments/{id}/exec`.

mod streamed;

use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};

use crate::support::boxes::{OwnedEnvironment, idle, script, small};
use crate::support::caller::{new_user, send};
use crate::support::system::{resident_bytes, shared};
use crate::support::{eventually, eventually_some, repeat_until_below};

impl OwnedEnvironment {
    async fn run(&self, body: Value) -> Value {
        self.user.caller.exec(&self.id, &body).await
    }

    async fn sh(&self, text: &str) -> Value {
        self.user.caller.sh(&self.id, text).await
    }
}

#[tokio::test]
async fn reply_has_the_documented_fields() {
    let idle = idle().await;
    let reply = idle
        .run(json!({"command": ["echo", "Hello, World!"], "timeout": 30}))
        .await;
    assert_eq!(reply["stdout"], "Hello, World!\n");
    assert_eq!(reply["stderr"], "");
    assert_eq!(reply["exit_code"], 0);
    assert!(reply["duration_ms"].is_u64());
    for flag in ["timed_out", "stdout_truncated", "stderr_truncated"] {
        assert_eq!(reply[flag], false, "{flag}");
    }
}

#[tokio::test]
async fn each_kind_of_exit_has_its_code() {
    let idle = idle().await;
    let reply = idle.sh("echo out; echo err >&2; exit 3").await;
    assert_eq!(
        (&reply["stdout"], &reply["stderr"]),
        (&json!("out\n"), &json!("err\n"))
    );
    assert_eq!(reply["exit_code"], 3);
    for (command, code) in [
        (json!(["no-such-program"]), 127),
        (json!(["/no/such/program"]), 127),
        (json!(["/etc"]), 126),
        (json!(["sh", "-c", "kill -9 $$"]), 137),
        (json!(["sh", "-c", "kill -TERM $$"]), 143),
        (json!(["false"]), 1),
    ] {
        let reply = idle.run(json!({"command": command})).await;
        assert_eq!(reply["exit_code"], code, "{command}: {reply}");
        assert_eq!(reply["timed_out"], false);
    }
}

#[tokio::test]
async fn timeout_kills_the_process_group_and_returns_partial_output() {
    let idle = idle().await;
    let mark = format!("7{:05}", rand::random::<u16>());
    let text = format!("echo begun; sleep {mark} & sleep {mark}");
    repeat_until_below(Duration::from_secs(2), async || {
        let begun = Instant::now();
        let reply = idle
            .run(json!({"command": ["sh", "-c", text], "timeout": 1}))
            .await;
        let took = begun.elapsed();
        assert_eq!(reply["exit_code"], 124);
        assert_eq!(reply["timed_out"], true);
        assert!(took >= Duration::from_secs(1), "{took:?}");
        assert!(
            !idle
                .user
                .caller
                .has_process(&idle.id, &format!("sleep {mark}"))
                .await
        );
        // On a machine that stalls the command may be killed before it writes.
        if reply["stdout"] == "" {
            return Duration::MAX;
        }
        assert_eq!(reply["stdout"], "begun\n");
        took
    })
    .await;
}

#[tokio::test]
async fn child_with_open_pipe_does_not_delay_the_reply() {
    let idle = idle().await;
    let begun = Instant::now();
    let reply = idle.sh("sleep 300 & echo done").await;
    assert_eq!(reply["stdout"], "done\n");
    assert!(
        begun.elapsed() < Duration::from_secs(5),
        "{:?}",
        begun.elapsed()
    );
}

#[tokio::test]
async fn command_receives_directory_variables_and_stdin() {
    let idle = idle().await;
    let reply = idle
        .run(json!({
            "command": ["sh", "-c", "pwd; echo $GREETING; cat"],
            "working_dir": "/tmp",
            "env": {"GREETING": "good day"},
            "stdin": "from outside",
        }))
        .await;
    assert_eq!(reply["stdout"], "/tmp\ngood day\nfrom outside");
    // Without stdin the command reads the end at once.
    let reply = idle.run(json!({"command": ["cat"], "timeout": 5})).await;
    assert_eq!(
        (&reply["exit_code"], &reply["stdout"]),
        (&json!(0), &json!(""))
    );
}

#[tokio::test]
async fn longest_stdin_arrives_complete() {
    let idle = idle().await;
    let stdin = "0123456789abcde\n".repeat(60_000);
    let reply = idle
        .run(json!({"command": ["wc", "-c"], "stdin": stdin}))
        .await;
    assert_eq!(
        reply["stdout"].as_str().unwrap().trim(),
        stdin.len().to_string()
    );
    // A command may end without reading its stdin.
    let reply = idle.run(json!({"command": ["true"], "stdin": stdin})).await;
    assert_eq!(reply["exit_code"], 0);
    // A command that writes while it reads does not deadlock.
    let reply = idle.run(json!({"command": ["cat"], "stdin": stdin})).await;
    assert_eq!(reply["stdout"], stdin.as_str());
}

#[tokio::test]
async fn invalid_utf8_is_replaced_in_text_and_kept_in_base64() {
    let idle = idle().await;
    let command = json!(["printf", "a\\377\\000b"]);
    let reply = idle.run(json!({"command": command})).await;
    assert_eq!(reply["stdout"], "a\u{fffd}\u{0}b");
    let reply = idle
        .run(json!({"command": command, "output_encoding": "utf8"}))
        .await;
    assert_eq!(reply["stdout"], "a\u{fffd}\u{0}b");
    let reply = idle
        .run(json!({"command": command, "output_encoding": "base64"}))
        .await;
    assert_eq!(
        STANDARD.decode(reply["stdout"].as_str().unwrap()).unwrap(),
        b"a\xff\0b"
    );
    assert_eq!(reply["stderr"], "");
}

#[tokio::test]
async fn each_stream_is_truncated_at_ten_mebibytes() {
    let idle = idle().await;
    const CAP: usize = 10 * 1024 * 1024;
    let text = format!("yes | head -c {}; echo short >&2", CAP + 1);
    let reply = idle.sh(&text).await;
    assert_eq!(reply["stdout"].as_str().unwrap().len(), CAP);
    assert_eq!(reply["stdout_truncated"], true);
    assert_eq!(
        (&reply["stderr"], &reply["stderr_truncated"]),
        (&json!("short\n"), &json!(false))
    );
    let text = format!("yes | head -c {CAP} >&2");
    let reply = idle.sh(&text).await;
    assert_eq!(reply["stderr"].as_str().unwrap().len(), CAP);
    assert_eq!(reply["stderr_truncated"], false, "the cap itself fits");
}

#[tokio::test]
async fn unread_results_of_a_user_are_bounded() {
    let user = new_user().await;
    let caller = &user.caller;
    let id = caller.create_running(&small()).await;
    let path = format!("/environments/{id}/exec");
    let run = |text: &str| {
        let body = json!({"command": ["sh", "-c", text], "timeout": 60});
        caller.request_on(0, Method::POST, &path).json(&body)
    };
    // Each byte becomes six bytes of JSON.
    let much = "head -c 10485760 /dev/zero; head -c 10485760 /dev/zero >&2";
    let before = resident_bytes(shared().await, "api-gateway", 0);
    let mut unread = Vec::new();
    for _ in 0..3 {
        let answer = run(much).send().await.unwrap();
        assert_eq!(answer.status(), 200);
        unread.push(answer);
    }
    let refused = send(run(much)).await;
    refused.expect_error(503, "unavailable");
    let after = resident_bytes(shared().await, "api-gateway", 0);
    let more = after.saturating_sub(before) / 1024 / 1024;
    assert!(more < 200, "{more} MiB");
    drop(unread);
    let text = "head -c 10485760 /dev/zero | tr '\\0' a";
    eventually("the memory is free", async || {
        let answer = send(run(text)).await;
        (answer.status == 200).then_some(())
    })
    .await;
}

#[tokio::test]
async fn invalid_command_returns_400_naming_the_field() {
    let idle = idle().await;
    let path = format!("/environments/{}/exec", idle.id);
    for (body, field) in [
        (json!({}), "command"),
        (json!({"command": []}), "command"),
        (json!({"command": [""]}), "command[0]"),
        (json!({"command": "ls"}), "command"),
        (json!({"command": ["a", 1]}), "command[1]"),
        (json!({"command": ["a\u{0}"]}), "command[0]"),
        (json!({"command": ["a"], "timeout": 0}), "timeout"),
        (json!({"command": ["a"], "timeout": 3601}), "timeout"),
        (json!({"command": ["a"], "timeout": 0.05}), "timeout"),
        (json!({"command": ["a"], "timeout": true}), "timeout"),
        (json!({"command": ["a"], "user": ""}), "user"),
        (
            json!({"command": ["a"], "stdin_base64": "?"}),
            "stdin_base64",
        ),
        (
            json!({"command": ["a"], "stdin": "", "stdin_base64": ""}),
            "stdin_base64",
        ),
        (
            json!({"command": ["a"], "working_dir": "tmp"}),
            "working_dir",
        ),
        (json!({"command": ["a"], "env": {"A=B": ""}}), "env.A=B"),
        (json!({"command": ["a"], "env": {"A": 1}}), "env.A"),
        (
            json!({"command": ["a"], "env": {"A": "x".repeat(131_070)}}),
            "env.A",
        ),
        (
            json!({"command": ["a"], "output_encoding": "hex"}),
            "output_encoding",
        ),
        (json!({"command": ["a"], "tty": true}), "tty"),
    ] {
        let answer = idle.user.caller.post(&path, &body).await;
        let message = answer.expect_error(400, "validation_failed");
        assert!(message.starts_with(field), "{body}: {message}");
    }
}

#[tokio::test]
async fn longest_variable_reaches_the_command() {
    let idle = idle().await;
    let variable = "x".repeat(131_069);
    let body = json!({"command": ["sh", "-c", "echo ${#A}"], "env": {"A": variable}});
    assert_eq!(idle.run(body).await["stdout"], "131069\n");
}

#[tokio::test]
async fn background_process_lives_when_it_writes_after_its_command() {
    let idle = idle().await;
    let script = "(sleep 1; echo one; echo two >&2; touch /tmp/has-written) & exit 3";
    assert_eq!(idle.sh(script).await["exit_code"], 3);
    eventually_some("it has written", Duration::from_secs(20), async || {
        let reply = idle.sh("test -e /tmp/has-written").await;
        (reply["exit_code"] == 0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn concurrent_commands_do_not_mix_their_output() {
    let idle = idle().await;
    let runs = (0..30).map(|n| async move {
        let reply = idle
            .sh(&format!("echo {n}; echo {n} >&2; cat /dev/null"))
            .await;
        let line = format!("{n}\n");
        assert_eq!(
            (&reply["stdout"], &reply["stderr"]),
            (&json!(line), &json!(line))
        );
    });
    futures::future::join_all(runs).await;
}

#[tokio::test]
async fn stopped_environment_returns_409() {
    let user = new_user().await;
    let body = json!({"command": ["true"]});
    let ended = user.caller.create(&script("true")).await;
    user.caller.wait_until_ended(&ended).await;
    // It stays pending while its missing image is pulled.
    let mut pending = small();
    pending["image"] = json!("no-such-image-of-ours:1");
    let pending = user.caller.create(&pending).await;
    for id in [ended, pending] {
        let path = format!("/environments/{id}/exec");
        let answer = user.caller.post(&path, &body).await;
        answer.expect_error(409, "environment_not_running");
    }
}

#[tokio::test]
async fn intended_end_during_a_command_returns_502_with_the_reason() {
    let user = new_user().await;
    let caller = &user.caller;
    let lost = async |reason: &str, end: &(dyn Fn(String) -> RequestBuilder + Sync)| {
        let id = caller.create_running(&small()).await;
        let path = format!("/environments/{id}/exec");
        let body = json!({"command": ["sleep", "60"], "timeout": 60});
        let running = caller.post(&path, &body);
        let ending = async {
            eventually("it runs", async || {
                caller.has_process(&id, "sleep 60").await.then_some(())
            })
            .await;
            let answer = send(end(format!("/environments/{id}"))).await;
            assert!(answer.status < 300, "{answer:?}");
        };
        let (answer, ()) = tokio::join!(running, ending);
        let message = answer.expect_error(502, "environment_ended");
        assert!(message.contains(reason), "{message}");
    };
    let forced = |path: String| caller.request(Method::DELETE, &format!("{path}?force=true"));
    // The deletion kills the command, so its exit is not reported.
    let gently = |path: String| caller.request(Method::DELETE, &path);
    let expired = |path: String| {
        let request = caller.request(Method::PATCH, &path);
        request.json(&json!({"timeout": 1}))
    };
    tokio::join!(
        lost("DELETED", &forced),
        lost("DELETED", &gently),
        lost("EXPIRED", &expired),
    );
}

#[tokio::test]
async fn disconnected_client_kills_its_command_within_five_seconds() {
    let idle = idle().await;
    let mark = format!("8{:05}", rand::random::<u16>());
    let body = json!({"command": ["sh", "-c", format!("sleep {mark}; true")], "timeout": 600});
    let path = format!("/environments/{}/exec", idle.id);
    for gateway in 0..idle.user.caller.gateways() {
        let request = idle
            .user
            .caller
            .request_on(gateway, Method::POST, &path)
            .json(&body);
        let running = tokio::spawn(request.send());
        let text = format!("sleep {mark}");
        eventually("it runs", async || {
            idle.user
                .caller
                .has_process(&idle.id, &text)
                .await
                .then_some(())
        })
        .await;
        running.abort();
        eventually_some("it is killed", Duration::from_secs(5), async || {
            (!idle.user.caller.has_process(&idle.id, &text).await).then_some(())
        })
        .await;
    }
}

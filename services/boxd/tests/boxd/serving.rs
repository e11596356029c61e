//! Authentication, warm boxes, status, usage, and the program's command line.

use std::process::Command;

use agentbox_box_protocol::claim;
use agentbox_box_protocol::client::BoxClient;
use agentbox_box_protocol::proto::{self, run_input};
use agentbox_box_protocol::termination::Termination;
use tonic::Code;

use crate::support::{Session, Setup, TestBox, eventually, run, sh, start, token};

async fn usage(client: &BoxClient) -> proto::UsageReply {
    client
        .clone()
        .usage(proto::UsageRequest {})
        .await
        .unwrap()
        .into_inner()
}

async fn status(client: &BoxClient) -> proto::StatusReply {
    client
        .clone()
        .status(proto::StatusRequest {})
        .await
        .unwrap()
        .into_inner()
}

#[tokio::test]
async fn call_with_wrong_token_is_unauthenticated() {
    let (boxd, client) = TestBox::idle().await;
    for token in ["wrong", "token-of-the-test-boy", "token-of-the-test-box2"] {
        let mut client = boxd.client_with_token(token).await;
        let codes = [
            client.status(proto::StatusRequest {}).await.map(drop),
            client.usage(proto::UsageRequest {}).await.map(drop),
            client.end(proto::EndRequest {}).await.map(drop),
            client.logs(proto::LogsRequest::default()).await.map(drop),
            client
                .configure(proto::ConfigureRequest::default())
                .await
                .map(drop),
            client
                .control(proto::ControlRequest::default())
                .await
                .map(drop),
            Session::open(&client, run_input::Input::Start(start(&["true"])))
                .await
                .map(drop),
        ];
        for code in codes {
            assert_eq!(code.unwrap_err().code(), Code::Unauthenticated);
        }
    }
    // The refused `end` did not end the box.
    assert_eq!(run(&client, sh("echo here")).await.text(), "here\n");
}

#[tokio::test]
async fn warm_box_accepts_one_configuration_repeatedly() {
    let (mut boxd, client) = TestBox::start(Setup {
        variables: vec![("AGENTBOX_BOXD_WARM".into(), "true".into())],
        ..Setup::default()
    })
    .await;
    assert_eq!(status(&client).await.main, "unconfigured");
    let early = Session::open(&client, run_input::Input::Start(start(&["true"]))).await;
    assert_eq!(early.err().unwrap().code(), Code::FailedPrecondition);
    let request = proto::ConfigureRequest {
        command: crate::support::shell("while [ ! -e go ]; do sleep 0.02; done; exit $CODE"),
        env: [("CODE".into(), "8".into())].into(),
        owner: "user-1".into(),
        run_as_user: None,
    };
    let file = boxd.path("termination");
    assert_eq!(Termination::read_claim(&file).unwrap(), None);
    for _ in 0..2 {
        client.clone().configure(request.clone()).await.unwrap();
    }
    // A boxd that is killed from now on leaves it.
    let claim = claim::identify(&token(), &request);
    let recorded = Termination::read_claim(&file).unwrap();
    assert_eq!(recorded.as_ref(), Some(&claim));
    let others = [
        proto::ConfigureRequest {
            command: vec![],
            ..request.clone()
        },
        proto::ConfigureRequest {
            run_as_user: Some(1000),
            ..request.clone()
        },
        proto::ConfigureRequest {
            owner: "user-2".into(),
            ..request
        },
    ];
    for other in others {
        let refused = client.clone().configure(other).await.unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition);
    }
    assert_eq!(status(&client).await.main, "running");
    assert_eq!(run(&client, sh("echo $CODE")).await.text(), "8\n");
    assert_eq!(Termination::read(&file).unwrap(), None);
    std::fs::write(boxd.path("go"), "").unwrap();
    assert_eq!(boxd.exit_code().await, Some(8));
    let ended = Termination::read(&file).unwrap().unwrap();
    assert_eq!((ended.exit_code, ended.claim), (8, Some(claim)));
}

#[tokio::test]
async fn configured_user_is_that_of_the_box() {
    let (_boxd, client) = TestBox::start(Setup {
        variables: vec![
            ("AGENTBOX_BOXD_WARM".into(), "true".into()),
            ("HOME".into(), "/of-the-image".into()),
        ],
        ..Setup::default()
    })
    .await;
    let request = proto::ConfigureRequest {
        run_as_user: Some(4242),
        ..Default::default()
    };
    client.clone().configure(request).await.unwrap();
    let ids = "echo $(id -u):$(id -g) $HOME";
    let seen = run(&client, sh(ids)).await;
    assert_eq!(seen.text(), "4242:0 /of-the-image\n");
    let as_user = |user: &str| proto::StartCommand {
        user: user.to_owned(),
        ..sh(ids)
    };
    let same = run(&client, as_user("4242")).await;
    assert_eq!(same.text(), "4242:0 /of-the-image\n");
    for other in ["0", "1000"] {
        let refused = Session::open(&client, run_input::Input::Start(as_user(other))).await;
        assert_eq!(refused.err().unwrap().code(), Code::InvalidArgument);
    }
}

#[tokio::test]
async fn warm_box_without_command_idles_and_cold_box_rejects_configure() {
    let variables = vec![("AGENTBOX_BOXD_WARM".into(), "true".into())];
    let (_boxd, client) = TestBox::start(Setup {
        variables,
        ..Setup::default()
    })
    .await;
    client
        .clone()
        .configure(proto::ConfigureRequest::default())
        .await
        .unwrap();
    assert_eq!(status(&client).await.main, "idle");
    let (_cold, cold) = TestBox::idle().await;
    let refused = cold
        .clone()
        .configure(proto::ConfigureRequest::default())
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
}

#[tokio::test]
async fn usage_of_a_warm_box_is_counted_since_its_configuration() {
    let (_boxd, client) = TestBox::start(Setup {
        variables: vec![("AGENTBOX_BOXD_WARM".into(), "true".into())],
        ..Setup::default()
    })
    .await;
    let warm = usage(&client).await;
    client
        .clone()
        .configure(proto::ConfigureRequest::default())
        .await
        .unwrap();
    // The group of this box is also that of the other tests, which have used it for longer.
    let configured = usage(&client).await;
    assert!(
        configured.cpu_usage_nanos < warm.cpu_usage_nanos,
        "{warm:?} {configured:?}"
    );
    assert!(configured.memory_bytes > 0, "{configured:?}");
}

#[tokio::test]
async fn status_counts_running_commands() {
    let (_boxd, client) = TestBox::idle().await;
    let before = status(&client).await;
    assert_eq!((before.main.as_str(), before.runs), ("idle", 0));
    assert!(before.idle_ms > 0, "{before:?}");
    let session = Session::start(&client, start(&["sleep", "1000"])).await;
    let during = status(&client).await;
    assert_eq!((during.runs, during.idle_ms), (1, 0));
    session.send(run_input::Input::Kill(proto::Empty {})).await;
    eventually("none runs", async || status(&client).await.runs == 0).await;
    let after = status(&client).await;
    assert!(after.idle_ms > 0, "{after:?}");
}

#[tokio::test]
async fn usage_rises_under_load() {
    let (_boxd, client) = TestBox::idle().await;
    let before = usage(&client).await;
    assert!(before.memory_bytes > 0, "{before:?}");
    let _busy = Session::start(&client, sh("while :; do :; done")).await;
    eventually("usage has risen", async || {
        let now = usage(&client).await;
        now.cpu_usage_nanos > before.cpu_usage_nanos && now.cpu_milli > 100
    })
    .await;
}

#[test]
fn install_copies_program_and_version_is_printed() {
    let dir = tempfile::tempdir().unwrap();
    let copy = dir.path().join("boxd");
    let boxd = env!("CARGO_BIN_EXE_boxd");
    for _ in 0..2 {
        assert!(
            Command::new(boxd)
                .arg("install")
                .arg(&copy)
                .status()
                .unwrap()
                .success()
        );
    }
    let version = Command::new(&copy).arg("--version").output().unwrap();
    assert_eq!(
        version.stdout,
        format!("boxd {}\n", env!("CARGO_PKG_VERSION")).as_bytes()
    );
    assert_eq!(
        Command::new(boxd).arg("nonsense").status().unwrap().code(),
        Some(2)
    );
    let unset = Command::new(boxd).arg("run").env_clear().output().unwrap();
    assert_eq!(unset.status.code(), Some(125));
    assert!(String::from_utf8_lossy(&unset.stderr).contains("AGENTBOX_BOXD_TOKEN"));
}

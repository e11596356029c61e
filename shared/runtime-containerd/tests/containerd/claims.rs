//! Claims on a machine: without containerd, of a killed boxd, and with rules that were lost.

use std::path::PathBuf;

use agentbox_contracts::ids::EnvironmentId;
use agentbox_runtime::conformance::{Violation, accounts, check, eventually};
use agentbox_runtime::{BoxPhase, NetworkPolicy, Runtime as _, RuntimeError};
use agentbox_runtime_containerd::{Config, Driver};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::machine::{boxd_pid, config, host, subject, subject_with_accounts};

/// A driver that shares all but containerd with the others.
async fn without_containerd() -> Driver {
    Driver::connect(Config {
        socket: PathBuf::from("/nonexistent/containerd.sock"),
        ..config().await
    })
    .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn claim_needs_no_containerd() {
    let s = subject().await;
    let claims = async {
        let mut spec = s.script("echo \"for $WHO\"; exit 3");
        spec.env.insert("WHO".to_owned(), "me".to_owned());
        let address = s.run_warm(&spec).await?;
        let driver = without_containerd().await;
        driver.claim(&spec, 1, address).await?;
        let end = s.end_of(&spec.id).await?;
        check(end.exit_code == 3 && end.output == "for me", || {
            format!("{end:?}")
        })
    };
    let outcome: Result<(), Violation> = claims.await;
    s.clean().await.unwrap();
    outcome.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn claim_of_a_box_whose_boxd_was_killed_is_an_error() {
    let s = subject().await;
    let claims = async {
        let spec = s.spec();
        let address = s.run_warm(&spec).await?;
        let pid = boxd_pid(&config().await.deployment, spec.id.as_str());
        kill(Pid::from_raw(pid.try_into().unwrap()), Signal::SIGKILL).unwrap();
        let refused = s.first.claim(&spec, 1, address).await;
        check(matches!(refused, Err(RuntimeError::Unreachable(_))), || {
            format!("{refused:?}")
        })
    };
    let outcome: Result<(), Violation> = claims.await;
    s.clean().await.unwrap();
    outcome.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn same_claim_of_a_box_that_has_ended_since_succeeds_and_starts_nothing() {
    let s = subject().await;
    let claims = async {
        let spec = s.script("echo once; exit 3");
        let address = s.run_warm(&spec).await?;
        s.first.claim(&spec, 1, address).await?;
        s.end_of(&spec.id).await?;
        s.second.claim(&spec, 1, address).await?;
        let end = s.end_of(&spec.id).await?;
        check(end.exit_code == 3 && end.output == "once", || {
            format!("{end:?}")
        })
    };
    let outcome: Result<(), Violation> = claims.await;
    s.clean().await.unwrap();
    outcome.unwrap();
}

/// The parent of a process.
fn parent(pid: u32) -> Pid {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"));
    Pid::from_raw(parent.unwrap().trim().parse().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn warm_box_whose_shim_was_killed_no_longer_runs_and_is_not_claimed() {
    let s = subject().await;
    let claims = async {
        let spec = s.spec();
        let address = s.run_warm(&spec).await?;
        let boxd = boxd_pid(&config().await.deployment, spec.id.as_str());
        kill(parent(boxd), Signal::SIGKILL).unwrap();
        eventually("the box does not run", || async {
            // An error may be that of the shim, which containerd does not know to be dead.
            let Ok(observed) = s.second.get(&spec.id).await else {
                return Ok(None);
            };
            let runs = observed.is_some_and(|it| matches!(it.phase, BoxPhase::Running { .. }));
            Ok((!runs).then_some(()))
        })
        .await?;
        let refused = s.first.claim(&spec, 1, address).await;
        check(
            matches!(
                refused,
                Err(RuntimeError::Unreachable(_) | RuntimeError::NotClaimable(_))
            ),
            || format!("{refused:?}"),
        )
    };
    let outcome: Result<(), Violation> = claims.await;
    s.clean().await.unwrap();
    outcome.unwrap();
}

/// The rules of a box's own chains, as nft lists them.
async fn has_rules(id: &EnvironmentId) -> bool {
    let rules = host("nft", &["list", "ruleset"]).await.unwrap();
    rules.contains(&format!("out-{id}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn claimed_box_keeps_its_policy_when_it_changes_and_leaves_no_rule() {
    let s = subject().await;
    let claims = async {
        let spec = s.spec();
        let address = s.run_warm(&spec).await?;
        s.first.claim(&spec, 1, address).await?;
        check(has_rules(&spec.id).await, || "no rules".to_owned())?;
        let mut closed = spec.clone();
        closed.isolation.network_policy = Some(NetworkPolicy::default());
        s.second.apply_network_policy(&closed, 2).await?;
        // A late repetition of the claim does not restore its policy.
        let late = s.first.claim(&spec, 1, address).await;
        check(
            matches!(late, Err(RuntimeError::Fenced { given: 1, held: 2 })),
            || format!("{late:?}"),
        )?;
        s.first.remove(&spec.id).await?;
        eventually("the rules are gone", || async {
            Ok((!has_rules(&spec.id).await).then_some(()))
        })
        .await
    };
    let outcome: Result<(), Violation> = claims.await;
    s.clean().await.unwrap();
    outcome.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn claimed_box_runs_the_command_and_the_user_of_its_image() {
    let s = subject_with_accounts().await.claiming();
    let claims = async {
        accounts::entrypoint_of_the_image_runs_with_its_cmd_if_it_is_requested(&s).await?;
        accounts::image_user_has_its_own_groups_and_not_those_of_root(&s).await?;
        accounts::variables_of_the_image_do_not_configure_boxd(&s).await
    };
    let outcome: Result<(), Violation> = claims.await;
    s.clean().await.unwrap();
    outcome.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn image_without_a_command_is_not_claimable_for_its_entrypoint() {
    let s = subject_with_accounts().await;
    let claims = async {
        let mut spec = s.spec();
        spec.image = format!("{}:root", accounts::IMAGE);
        spec.use_entrypoint = true;
        let address = s.run_warm(&spec).await?;
        let refused = s.first.claim(&spec, 1, address).await;
        check(
            matches!(refused, Err(RuntimeError::NotClaimable(_))),
            || format!("{refused:?}"),
        )
    };
    let outcome: Result<(), Violation> = claims.await;
    s.clean().await.unwrap();
    outcome.unwrap();
}

//! Warm boxes and their claims.

use std::time::Duration;

use agentbox_box_protocol::client::{configure, connect};
use agentbox_box_protocol::token::BoxToken;
use agentbox_contracts::ids::UserId;

use super::boxd::{boxd_of, exec, failed};
use super::{Subject, Violation, check, eventually};
use crate::claim::request;
use crate::{BoxConnector, BoxPhase, BoxSpec, Runtime, RuntimeError};

type Outcome = Result<(), Violation>;

/// Prints one line for each start, so that two starts are seen.
const ONCE: &str = "echo \"started $WHO\"; exec sleep 600";

fn claimable<D: Runtime + BoxConnector>(s: &Subject<D>, who: &str) -> BoxSpec {
    let mut spec = s.script(ONCE);
    spec.env.insert("WHO".to_owned(), who.to_owned());
    spec.labels.insert("who".to_owned(), who.to_owned());
    // An address of a removed box may be another test's by now.
    spec.boxd_token = format!("token-of-{}", spec.id);
    spec
}

async fn expect_one_start<D: Runtime + BoxConnector>(
    s: &Subject<D>,
    spec: &BoxSpec,
    who: &str,
) -> Outcome {
    let output = eventually("the main command prints", || async {
        let output = s.output_of(&spec.id).await?;
        Ok((!output.is_empty()).then_some(output))
    })
    .await?;
    check(output == format!("started {who}"), || output.clone())
}

fn is_not_claimable<T>(outcome: &Result<T, RuntimeError>) -> bool {
    matches!(outcome, Err(RuntimeError::NotClaimable(_)))
}

/// # Errors
/// When the driver does not meet the requirement.
pub async fn claimed_box_is_observed_as_a_cold_one<D: Runtime + BoxConnector>(
    s: &Subject<D>,
) -> Outcome {
    let spec = claimable(s, "a");
    let address = s.run_warm(&spec).await?;
    let claimed = s.first.claim(&spec, 1, address).await?;
    let is_running =
        |phase: &BoxPhase| matches!(phase, BoxPhase::Running { address: at, .. } if *at == address);
    check(
        claimed.id == spec.id && claimed.generation == 1 && is_running(&claimed.phase),
        || format!("{claimed:?}"),
    )?;
    let ensured = s.second.ensure(&spec, 1).await?;
    let got = s.first.get(&spec.id).await?;
    check(got.as_ref() == Some(&ensured), || {
        format!("{ensured:?} and {got:?}")
    })?;
    check(
        ensured.generation == 1 && is_running(&ensured.phase),
        || format!("{ensured:?}"),
    )?;
    let listed = s.second.list().await?;
    let count = listed.iter().filter(|seen| seen.id == spec.id).count();
    check(count == 1, || format!("{count} boxes"))?;
    expect_one_start(s, &spec, "a").await?;
    let newer = s.first.ensure(&spec, 2).await?;
    check(newer.generation == 2 && is_running(&newer.phase), || {
        format!("{newer:?}")
    })?;
    s.second.stop(&spec.id, Duration::ZERO).await?;
    s.end_of(&spec.id).await?;
    s.first.remove(&spec.id).await?;
    let left = s.second.get(&spec.id).await?;
    check(left.is_none(), || format!("{left:?}"))
}

/// # Errors
/// When the driver does not meet the requirement.
pub async fn same_claim_succeeds_again_and_another_is_refused<D: Runtime + BoxConnector>(
    s: &Subject<D>,
) -> Outcome {
    let spec = claimable(s, "a");
    let address = s.run_warm(&spec).await?;
    s.first.claim(&spec, 1, address).await?;
    s.second.claim(&spec, 1, address).await?;
    let (mut other_owner, mut other_command, mut other_variables) =
        (spec.clone(), spec.clone(), spec.clone());
    other_owner.owner = UserId::random();
    other_command.command = None;
    other_variables.env.insert("WHO".to_owned(), "b".to_owned());
    for other in [other_owner, other_command, other_variables] {
        let refused = s.second.claim(&other, 1, address).await;
        check(is_not_claimable(&refused), || format!("{refused:?}"))?;
        let ensured = s.first.ensure(&spec, 1).await?;
        check(matches!(ensured.phase, BoxPhase::Running { .. }), || {
            format!("{ensured:?}")
        })?;
    }
    expect_one_start(s, &spec, "a").await
}

/// # Errors
/// When the driver does not meet the requirement.
pub async fn one_of_two_concurrent_claims_succeeds<D: Runtime + BoxConnector>(
    s: &Subject<D>,
) -> Outcome {
    let one = claimable(s, "one");
    let address = s.run_warm(&one).await?;
    let mut other = one.clone();
    other.owner = UserId::random();
    other.env.insert("WHO".to_owned(), "other".to_owned());
    let (first, second) = tokio::join!(
        s.first.claim(&one, 1, address),
        s.second.claim(&other, 1, address)
    );
    let (won, who, lost) = match &first {
        Ok(_) => (&first, "one", &second),
        Err(_) => (&second, "other", &first),
    };
    check(won.is_ok() && is_not_claimable(lost), || {
        format!("{first:?} and {second:?}")
    })?;
    expect_one_start(s, &one, who).await
}

/// # Errors
/// When the driver does not meet the requirement.
pub async fn interrupted_claim_is_completed_by_ensure<D: Runtime + BoxConnector>(
    s: &Subject<D>,
) -> Outcome {
    for cut in [0, 1, 2, 4, 8, 16].map(Duration::from_millis) {
        let spec = claimable(s, "a");
        let address = s.run_warm(&spec).await?;
        // Whether this call completed does not matter: the next one continues.
        let _ = tokio::time::timeout(cut, s.first.claim(&spec, 1, address)).await;
        let observed = s.second.ensure(&spec, 1).await?;
        check(matches!(observed.phase, BoxPhase::Running { .. }), || {
            format!("cut after {cut:?}: {observed:?}")
        })?;
        expect_one_start(s, &spec, "a").await?;
        s.first.claim(&spec, 1, address).await?;
        s.second.remove(&spec.id).await?;
    }
    Ok(())
}

/// The caller is killed after boxd has the claim, and before the driver has recorded anything.
///
/// # Errors
/// When the driver does not meet the requirement.
pub async fn claim_repeated_after_the_end_of_the_command_succeeds_and_starts_nothing<
    D: Runtime + BoxConnector,
>(
    s: &Subject<D>,
) -> Outcome {
    let mut spec = claimable(s, "a");
    let script = ["sh", "-c", "echo \"started $WHO\"; exit 3"];
    spec.command = Some(script.map(str::to_owned).to_vec());
    let address = s.run_warm(&spec).await?;
    let boxd = boxd_of(s, &spec).await?;
    configure(boxd, request(&spec, None))
        .await
        .map_err(failed)?;
    s.end_of(&spec.id).await?;
    s.second.claim(&spec, 1, address).await?;
    let mut other = spec.clone();
    other.env.insert("WHO".to_owned(), "b".to_owned());
    let refused = s.first.claim(&other, 1, address).await;
    check(refused.is_err(), || format!("{refused:?}"))?;
    let ensured = s.first.ensure(&spec, 1).await?;
    check(matches!(ensured.phase, BoxPhase::Exited { .. }), || {
        format!("{ensured:?}")
    })?;
    let end = s.end_of(&spec.id).await?;
    check(end.exit_code == 3 && end.output == "started a", || {
        format!("{end:?}")
    })
}

/// # Errors
/// When the driver does not meet the requirement.
pub async fn cold_box_is_not_claimable<D: Runtime + BoxConnector>(s: &Subject<D>) -> Outcome {
    let spec = claimable(s, "a");
    let address = s.run(&spec).await?;
    let refused = s.second.claim(&spec, 1, address).await;
    check(is_not_claimable(&refused), || format!("{refused:?}"))?;
    expect_one_start(s, &spec, "a").await
}

/// # Errors
/// When the driver does not meet the requirement.
pub async fn ended_or_removed_warm_box_is_not_claimed<D: Runtime + BoxConnector>(
    s: &Subject<D>,
) -> Outcome {
    let spec = claimable(s, "a");
    let address = s.run_warm(&spec).await?;
    s.first.stop(&spec.id, Duration::ZERO).await?;
    s.end_of(&spec.id).await?;
    for state in ["ended", "removed"] {
        let refused = s.second.claim(&spec, 1, address).await;
        let is_refused =
            is_not_claimable(&refused) || matches!(refused, Err(RuntimeError::Unreachable(_)));
        check(is_refused, || format!("{state}: {refused:?}"))?;
        s.first.remove(&spec.id).await?;
    }
    Ok(())
}

/// # Errors
/// When the driver does not meet the requirement.
pub async fn warm_box_starts_no_command_before_its_claim<D: Runtime + BoxConnector>(
    s: &Subject<D>,
) -> Outcome {
    let spec = claimable(s, "a");
    let address = s.run_warm(&spec).await?;
    let refused = exec(s, &spec, &["true"]).await;
    check(refused.is_err(), || format!("{refused:?}"))?;
    s.first.claim(&spec, 1, address).await?;
    let (who, code) = exec(s, &spec, &["sh", "-c", "echo $WHO"]).await?;
    check(code == 0 && who == "a\n", || format!("{code}: {who}"))
}

/// The identity of a box as its commands see it.
const IDENTITY: &str = "uname -n; cat /etc/hostname; cat /etc/machine-id 2>/dev/null || echo none; \
                        ls /var/lib/systemd/random-seed /var/lib/urandom/random-seed 2>/dev/null; env";

/// # Errors
/// When the driver does not meet the requirement.
pub async fn two_claims_share_no_identity<D: Runtime + BoxConnector>(s: &Subject<D>) -> Outcome {
    let (mut one, mut other) = (claimable(s, "one"), claimable(s, "other"));
    one.env
        .insert("SECRET".to_owned(), "secret-of-one".to_owned());
    other.owner = UserId::random();
    let addresses = (s.run_warm(&one).await?, s.run_warm(&other).await?);
    check(addresses.0 != addresses.1, || format!("{addresses:?}"))?;
    s.first.claim(&one, 1, addresses.0).await?;
    s.first.claim(&other, 1, addresses.1).await?;
    for (mine, foreign) in [(&one, &other), (&other, &one)] {
        let (seen, code) = exec(s, mine, &["sh", "-c", IDENTITY]).await?;
        let lines: Vec<&str> = seen.lines().collect();
        let own = mine.id.as_str();
        // The image has no machine id, or an empty file of it; then the third line is a variable.
        check(
            code == 0 && lines.starts_with(&[own, own]) && !seen.contains("random-seed"),
            || seen.clone(),
        )?;
        let machine_id = lines.get(2).copied().unwrap_or_default();
        check(
            matches!(machine_id, "" | "none") || machine_id.contains('='),
            || format!("the image has a machine id: {seen}"),
        )?;
        for foreign in [
            foreign.id.as_str(),
            foreign.boxd_token.as_str(),
            mine.boxd_token.as_str(),
        ] {
            check(!seen.contains(foreign), || format!("{foreign} in {seen}"))?;
        }
    }
    let (seen, _) = exec(s, &other, &["env"]).await?;
    check(!seen.contains("secret-of-one"), || seen.clone())?;
    let stream = s.first.connect(&other.id, addresses.1).await?;
    let token = BoxToken::parse(&one.boxd_token).map_err(failed)?;
    check(connect(stream, &token).await.is_err(), || {
        "the token of one box opens the other".to_owned()
    })
}

//! The user and the groups of a box whose image names a user, the command of an image, and images
//! that can never start.
//!
//! The images contain the program `/ids`, which prints the ids of its process and its arguments, and
//! two accounts: root with the group 6, and alice (1000) with the groups 1000 and `staff` (50). They bring a
//! machine id and a random seed. `agentbox-local import-accounts` builds them.

use std::time::{Duration, Instant};

use agentbox_contracts::files::file_request::Operation;
use agentbox_contracts::files::{Archive, MakeDirectory, Read};

use super::boxd::{boxd_of, exec};
use super::{Subject, Violation, check, executions, files};
use crate::{
    BoxConnector, BoxPhase, BoxSpec, ExitReason, FailureReason, Runtime, RuntimeError,
    SecurityContext,
};

type Outcome = Result<(), Violation>;

/// The repository of the images.
pub const IMAGE: &str = "agentbox.local/accounts";

/// The content of the images' `/etc/machine-id`.
const MACHINE_ID: &str = "0123456789abcdef0123456789abcdef\n";

/// The images that the tests need in the cluster: each name, and its `config` object as JSON.
#[must_use]
pub fn images() -> Vec<(String, String)> {
    let image = |tag: &str, config: &str| (format!("{IMAGE}:{tag}"), format!("{{{config}}}"));
    vec![
        image("root", ""),
        image("alice", "\"User\":\"alice\""),
        image("alice-number", "\"User\":\"1000\""),
        image("alice-staff", "\"User\":\"alice:staff\""),
        image("nobody", "\"User\":\"nobody\""),
        image("alice-nobody", "\"User\":\"alice:nobody\""),
        image("warm", "\"Env\":[\"AGENTBOX_BOXD_WARM=true\"]"),
        image("relative", "\"WorkingDir\":\"work\""),
        image("volume", "\"Volumes\":{\"/data\":{}}"),
        image(
            "entrypoint",
            "\"User\":\"alice\",\"WorkingDir\":\"/etc\",\
             \"Entrypoint\":[\"../ids\",\"one\"],\"Cmd\":[\"two words\",\"$HOME\"]",
        ),
        image("cmd", "\"Entrypoint\":null,\"Cmd\":[\"/ids\",\"two\"]"),
        image("unnamed", "\"Entrypoint\":[\"\"],\"Cmd\":[\"/ids\"]"),
    ]
}

/// The spec of a box of one of the images.
fn spec<D: Runtime + BoxConnector>(s: &Subject<D>, tag: &str) -> BoxSpec {
    let mut spec = s.spec();
    spec.image = format!("{IMAGE}:{tag}");
    spec.command = Some(vec!["/ids".to_owned()]);
    spec
}

/// # Errors
/// When the driver does not meet the requirement.
pub async fn image_user_has_its_own_groups_and_not_those_of_root<D: Runtime + BoxConnector>(
    s: &Subject<D>,
) -> Outcome {
    let with_group = match s.differences.ignores_image_group {
        true => "1000:1000 50 1000",
        false => "1000:50 50",
    };
    for (tag, run_as_user, expected) in [
        // The control: root has a group that no other user has.
        ("root", None, "0:0 0 6"),
        ("root", Some(1000), "1000:1000 50 1000"),
        ("root", Some(2000), "2000:0 0"),
        ("alice", None, "1000:1000 50 1000"),
        ("alice-number", None, "1000:1000 50 1000"),
        ("alice-staff", None, with_group),
    ] {
        let mut spec = spec(s, tag);
        spec.isolation.security_context = Some(SecurityContext {
            run_as_user,
            ..Default::default()
        });
        let end = s.run_to_end(&spec).await?;
        check(end.exit_code == 0 && end.output == expected, || {
            format!("{tag} as {run_as_user:?}: expected {expected}: {end:?}")
        })?;
    }
    Ok(())
}

/// # Errors
/// When the driver does not meet the requirement.
pub async fn image_that_can_never_start_fails_soon_without_a_path_of_the_server<
    D: Runtime + BoxConnector,
>(
    s: &Subject<D>,
) -> Outcome {
    for (tag, cause) in [
        ("nobody", "its user is not in its passwd file"),
        ("alice-nobody", "its group is not in its group file"),
        ("relative", "is not an absolute path"),
    ] {
        if tag == "alice-nobody" && s.differences.ignores_image_group {
            continue;
        }
        let spec = spec(s, tag);
        let start = Instant::now();
        let phase = s.start(&spec).await?.phase;
        check(start.elapsed() < Duration::from_secs(40), || {
            format!("{tag}: took {:?}", start.elapsed())
        })?;
        let BoxPhase::Failed {
            reason: FailureReason::ImageInvalid,
            message,
        } = phase
        else {
            return Err(Violation(format!("{tag}: {phase:?}")));
        };
        let has_path = message.split([' ', '"']).any(|word| word.starts_with('/'));
        check(message.contains(cause) && !has_path, || {
            format!("{tag}: {message}")
        })?;
        check(message.contains(&spec.image), || {
            format!("{tag}: {message}")
        })?;
    }
    Ok(())
}

/// # Errors
/// When the driver does not meet the requirement.
pub async fn variables_of_the_image_do_not_configure_boxd<D: Runtime + BoxConnector>(
    s: &Subject<D>,
) -> Outcome {
    // A warm boxd refuses commands.
    let mut idle = spec(s, "warm");
    idle.command = None;
    s.run(&idle).await?;
    let (output, code) = exec(s, &idle, &["/ids"]).await?;
    check(code == 0 && output.trim() == "0:0 0 6", || {
        format!("{code}: {output}")
    })
}

/// The images have no shell, and no program that handles files.
///
/// # Errors
/// When the driver does not meet the requirement.
pub async fn files_and_executions_of_a_user_need_no_program_of_the_image<
    D: Runtime + BoxConnector,
>(
    s: &Subject<D>,
) -> Outcome {
    let mut idle = spec(s, "root");
    idle.command = None;
    s.run(&idle).await?;
    let boxd = boxd_of(s, &idle).await?;
    let make = Operation::MakeDirectory(MakeDirectory {
        mode: Some(0o777),
        parents: true,
    });
    let made = files::perform(&boxd, "", "/home/all", make, None).await?;
    files::succeeds("a directory", made)?;
    let path = "/home/all/file";
    let written = files::write(&boxd, "alice", path, files::atomic(), "content").await?;
    files::succeeds(path, written)?;
    let found = files::stat(&boxd, path).await?;
    check(
        (found.uid, found.owner.as_str(), found.group.as_str()) == (1000, "alice", "alice"),
        || format!("{found:?}"),
    )?;
    let as_tar = Read {
        archive: Archive::Tar.into(),
        ..Default::default()
    };
    let archive = files::read_as(&boxd, "alice", "/home/all", as_tar).await?;
    let holds = |text: &[u8]| {
        let archive = archive.as_deref().unwrap_or_default();
        archive.windows(text.len()).any(|part| part == text)
    };
    check(
        holds(b"ustar") && holds(b"file") && holds(b"content"),
        || format!("{archive:?}"),
    )?;
    let run = executions::run_as(&boxd, "alice", &["/ids"]).await?;
    let output = run.as_ref().map(|(_, output)| output.as_str());
    check(output == Ok("1000:1000 50 1000\n"), || format!("{run:?}"))
}

/// # Errors
/// When the driver does not meet the requirement.
pub async fn boxes_share_no_machine_id_and_seed_of_their_image<D: Runtime + BoxConnector>(
    s: &Subject<D>,
) -> Outcome {
    let mut ids = vec![MACHINE_ID.as_bytes().to_vec()];
    for is_claimed in [true, true, false] {
        let mut idle = spec(s, "root");
        idle.command = None;
        if is_claimed {
            let address = s.run_warm(&idle).await?;
            s.first.claim(&idle, 1, address).await?;
        } else {
            s.run(&idle).await?;
        }
        let boxd = boxd_of(s, &idle).await?;
        let read = async |path: &str| files::read_as(&boxd, "", path, Read::default()).await;
        let id = read("/etc/machine-id").await?;
        let id = id.map_err(|code| Violation(format!("the machine id: {code}")))?;
        check(id.len() == MACHINE_ID.len() && !ids.contains(&id), || {
            format!("{id:?} after {ids:?}")
        })?;
        ids.push(id);
        let seed = read("/var/lib/systemd/random-seed").await?;
        check(seed.is_err(), || format!("the seed: {seed:?}"))?;
    }
    Ok(())
}

/// # Errors
/// When the driver does not meet the requirement.
pub async fn claimed_box_has_the_user_of_its_claim<D: Runtime + BoxConnector>(
    s: &Subject<D>,
) -> Outcome {
    const ALICE: &str = "1000:1000 50 1000";
    let of_alice = SecurityContext {
        run_as_user: Some(1000),
        ..Default::default()
    };
    let mut main = spec(s, "root");
    let mut idle = spec(s, "root");
    idle.command = None;
    for asked in [&mut main, &mut idle] {
        let address = s.run_warm(asked).await?;
        asked.isolation.security_context = Some(of_alice.clone());
        s.first.claim(asked, 1, address).await?;
    }
    let end = s.end_of(&main.id).await?;
    check(end.exit_code == 0 && end.output == ALICE, || {
        format!("the main command: {end:?}")
    })?;
    let boxd = boxd_of(s, &idle).await?;
    for user in ["", "1000", "alice"] {
        let run = executions::run_as(&boxd, user, &["/ids"]).await?;
        let is_alice = matches!(&run, Ok((execution, output))
            if execution.user == "alice" && output.trim_end() == ALICE);
        check(is_alice, || format!("{user}: {run:?}"))?;
    }
    let refused = executions::run_as(&boxd, "root", &["/ids"]).await?;
    check(refused.is_err(), || format!("as root: {refused:?}"))?;
    let path = "/dev/shm/file";
    let written = files::write(&boxd, "", path, files::atomic(), "content").await?;
    files::succeeds(path, written)?;
    let found = files::stat(&boxd, path).await?;
    check((found.uid, found.gid) == (1000, 1000), || {
        format!("{found:?}")
    })?;
    // A boxd that is not root can become no other user.
    let other = spec(s, "alice");
    let address = s.run_warm(&other).await?;
    let mut asked = other;
    asked.isolation.security_context = Some(SecurityContext {
        run_as_user: Some(2000),
        ..Default::default()
    });
    let refused = s.first.claim(&asked, 1, address).await;
    check(
        matches!(refused, Err(RuntimeError::NotClaimable(_))),
        || format!("{refused:?}"),
    )
}

/// The spec of a box of one of the images, with the image's command.
fn entrypoint_spec<D: Runtime + BoxConnector>(s: &Subject<D>, tag: &str) -> BoxSpec {
    let mut spec = spec(s, tag);
    spec.command = None;
    spec.use_entrypoint = true;
    spec
}

/// Whether the cluster refuses `use_entrypoint`, as its differences say.
async fn is_refused<D: Runtime + BoxConnector>(s: &Subject<D>) -> Result<bool, Violation> {
    let preflight = s.first.preflight(&entrypoint_spec(s, "entrypoint")).await;
    let field = preflight.err().map(|error| error.field);
    let expected = s.differences.refuses_entrypoint.then_some("use_entrypoint");
    check(field == expected, || format!("{field:?}"))?;
    Ok(field.is_some())
}

/// # Errors
/// When the driver does not meet the requirement.
pub async fn entrypoint_of_the_image_runs_with_its_cmd_if_it_is_requested<
    D: Runtime + BoxConnector,
>(
    s: &Subject<D>,
) -> Outcome {
    // The control: the box idles.
    let mut idle = spec(s, "entrypoint");
    idle.command = None;
    s.run(&idle).await?;
    if is_refused(s).await? {
        return Ok(());
    }
    for (tag, expected) in [
        ("entrypoint", "1000:1000 50 1000 one two words $HOME"),
        ("cmd", "0:0 0 6 two"),
    ] {
        let end = s.run_to_end(&entrypoint_spec(s, tag)).await?;
        check(
            end.exit_code == 0 && end.reason == ExitReason::Exited && end.output == expected,
            || format!("{tag}: expected {expected}: {end:?}"),
        )?;
    }
    Ok(())
}

/// # Errors
/// When the driver does not meet the requirement.
pub async fn image_without_a_command_fails_if_its_entrypoint_is_requested<
    D: Runtime + BoxConnector,
>(
    s: &Subject<D>,
) -> Outcome {
    if is_refused(s).await? {
        return Ok(());
    }
    for tag in ["root", "unnamed"] {
        let spec = entrypoint_spec(s, tag);
        let phase = s.start(&spec).await?.phase;
        let is_expected = matches!(
            &phase,
            BoxPhase::Failed { reason: FailureReason::ImageInvalid, message }
                if message.contains("name no program") && message.contains(&spec.image)
        );
        check(is_expected, || format!("{tag}: {phase:?}"))?;
    }
    Ok(())
}

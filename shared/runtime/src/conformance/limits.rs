//! Limits hold, and what happens at each is told.

use agentbox_contracts::units::Bytes;
use futures::StreamExt as _;

use super::{Subject, Violation, claim};
use crate::{BoxConnector, ExitReason, Runtime};

type Outcome = Result<(), Violation>;

/// # Errors
/// When it does not hold.
pub async fn more_memory_than_the_limit_is_an_oom_kill<D: Runtime + BoxConnector>(
    s: &Subject<D>,
) -> Outcome {
    let mut spec = s.script("exec tail /dev/zero");
    spec.resources.memory = Bytes(32 << 20);
    let end = s.run_to_end(&spec).await?;
    claim(
        end.reason == ExitReason::OomKilled && end.exit_code == 137,
        || format!("{end:?}"),
    )
}

/// # Errors
/// When it does not hold.
pub async fn more_storage_than_the_limit_is_an_eviction_for_every_replica<
    D: Runtime + BoxConnector,
>(
    s: &Subject<D>,
) -> Outcome {
    let mut spec = s.script("echo begun; dd if=/dev/zero of=/big bs=1M count=48; sleep 600");
    spec.resources.storage = Bytes(16 << 20);
    let mut changes = s.first.watch().await?;
    s.start(&spec).await?;
    // Whoever watches enforces.
    let watching = async { while changes.next().await.is_some() {} };
    let end = tokio::select! {
        end = s.end_of(&spec.id) => end?,
        () = watching => return Err(Violation("the watch ended".to_owned())),
    };
    claim(end.reason == ExitReason::Evicted, || format!("{end:?}"))?;
    claim(end.message.contains("16Mi"), || format!("{end:?}"))?;
    claim(end.output.contains("begun"), || {
        format!("its output is gone: {end:?}")
    })?;
    let again = s.second.ensure(&spec, 1).await?;
    let kept = matches!(
        again.phase,
        crate::BoxPhase::Exited {
            reason: ExitReason::Evicted,
            ..
        }
    );
    claim(kept, || format!("{again:?}"))
}

/// # Errors
/// When it does not hold.
pub async fn no_more_processes_than_the_limit_exist<D: Runtime + BoxConnector>(
    s: &Subject<D>,
) -> Outcome {
    // ash gives up at the first fork that fails; the rest would be a hundred.
    let mut spec = s.script(
        "i=0; while [ $i -lt 100 ]; do sleep 600 & i=$((i+1)); echo started $i; done; exit 0",
    );
    spec.resources.pids = 32;
    let end = s.run_to_end(&spec).await?;
    let started = end.output.matches("started").count();
    claim(end.exit_code != 0, || format!("all were started: {end:?}"))?;
    // boxd's own threads count too.
    claim((8..32).contains(&started), || {
        format!("{started} were started: {end:?}")
    })
}

/// # Errors
/// When it does not hold.
pub async fn no_dangerous_right_is_held<D: Runtime + BoxConnector>(s: &Subject<D>) -> Outcome {
    let end = s
        .run_to_end(&s.script("grep -E '^(CapBnd|NoNewPrivs|Seccomp):' /proc/self/status"))
        .await?;
    let value = |name: &str| {
        let line = end
            .output
            .lines()
            .find_map(|line| line.strip_prefix(name))?;
        u64::from_str_radix(line.trim_start_matches(':').trim(), 16).ok()
    };
    // NET_ADMIN 12, NET_RAW 13, SYS_MODULE 16, SYS_CHROOT 18, SYS_PTRACE 19, SYS_ADMIN 21,
    // MKNOD 27: <linux/capability.h>.
    let forbidden = [12, 13, 16, 18, 19, 21, 27]
        .map(|bit| 1u64 << bit)
        .iter()
        .sum::<u64>();
    let held = value("CapBnd").ok_or_else(|| Violation(format!("{end:?}")))?;
    claim(held & forbidden == 0, || format!("capabilities {held:x}"))?;
    claim(value("NoNewPrivs") == Some(1), || format!("{end:?}"))?;
    claim(value("Seccomp") == Some(2), || format!("{end:?}"))
}

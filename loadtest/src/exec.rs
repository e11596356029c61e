//! Measures commands from 1, 32 and 256 clients, and compares them with the runtime alone.
//!
//! * I1. The environments are deleted at the end, also after a failure.

use agentbox_contracts::ids::EnvironmentId;

use crate::environment::{Size, concurrently, create_all, delete_all, exec};
use crate::figures::Figure;
use crate::raw::{Raw, RawBox};
use crate::report::Measured;
use crate::target::Api;

/// The environments that 256 clients share.
const BOXES: usize = 8;
const CPUS: u32 = 2;
const SIZE: Size = Size {
    cpu: "2",
    memory: "256Mi",
    storage: "64Mi",
};
const LIFETIME_S: u64 = 900;

/// The clients at the same time, their environments and their commands.
struct Case {
    clients: usize,
    boxes: usize,
    count: usize,
}

const CASES: [Case; 3] = [
    Case {
        clients: 1,
        boxes: 1,
        count: 300,
    },
    Case {
        clients: 32,
        boxes: 1,
        count: 1_600,
    },
    Case {
        clients: 256,
        boxes: BOXES,
        count: 5_120,
    },
];
/// The runtime alone gets an eighth of the commands, because each takes much longer.
const RAW_PART: usize = 8;

/// # Errors
/// When an environment does not run, or the runtime alone creates no box.
pub async fn measure(api: &Api, raw: Option<&dyn Raw>) -> anyhow::Result<Measured> {
    let ids = create_all(api, "bench-exec", SIZE, LIFETIME_S, BOXES).await?;
    let raw_box = match raw {
        Some(raw) => raw
            .create("bench-exec", CPUS)
            .await
            .map(|(raw_box, _)| Some((raw, raw_box))),
        None => Ok(None),
    };
    let raw_box = match raw_box {
        Ok(raw_box) => raw_box,
        Err(error) => {
            delete_all(api, ids).await;
            return Err(error);
        }
    };
    let mut figures = Vec::new();
    for case in &CASES {
        figures.push(measure_case(api, &ids, case, raw_box.as_ref()).await);
    }
    if let Some((raw, raw_box)) = raw_box {
        raw.remove(raw_box).await;
    }
    delete_all(api, ids).await;
    Ok(Measured {
        figures,
        ..Measured::default()
    })
}

async fn measure_case(
    api: &Api,
    ids: &[EnvironmentId],
    case: &Case,
    raw_box: Option<&(&dyn Raw, RawBox)>,
) -> Figure {
    let used: Vec<&EnvironmentId> = ids.iter().take(case.boxes).collect();
    let ours = concurrently(case.clients, case.count, |number| {
        let id = used.get(number % used.len().max(1)).copied();
        async move {
            match id {
                Some(id) => exec(api, id).await,
                None => anyhow::bail!("no environment"),
            }
        }
    })
    .await;
    // One raw box has a limit of processes that 256 commands reach.
    let baseline = match raw_box.filter(|_| case.boxes == 1) {
        Some((raw, raw_box)) => {
            let count = case.count / RAW_PART;
            let samples = concurrently(case.clients, count, |_| raw.exec(raw_box)).await;
            Some(samples.figure(raw.names().exec))
        }
        None => None,
    };
    let boxes = match case.boxes {
        1 => "one box".to_owned(),
        boxes => format!("{boxes} boxes"),
    };
    let name = format!("exec `true`, {boxes}, {} at a time", case.clients);
    ours.figure(&name).compared_with(baseline)
}

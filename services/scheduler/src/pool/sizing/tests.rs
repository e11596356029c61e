use agentbox_contracts::environment::ResourceRequest;
use agentbox_contracts::pool::PoolSource;

use super::*;

const MAX_AGE: Duration = Duration::from_secs(3600);

fn t(seconds: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_700_000_000 + seconds, 0).unwrap()
}

fn pool(min_ready: u32, max_ready: u32) -> PoolRow {
    PoolRow {
        name: "python".into(),
        spec: PoolSpec {
            image: "python:3.11-slim".into(),
            resources: ResourceRequest {
                cpu: "500m".into(),
                memory: "512Mi".into(),
                storage: "1Gi".into(),
            },
            isolation: None,
            node_selector: BTreeMap::new(),
            cluster: None,
            min_ready,
            max_ready,
        },
        source: PoolSource::Api,
        revision: 7,
        target: min_ready,
        failures: 0,
        retry_at: None,
        last_error: None,
        created_at: t(0),
        updated_at: t(0),
    }
}

fn warm(status: WarmStatus) -> WarmBox {
    WarmBox {
        id: EnvironmentId::random(),
        pool: "python".into(),
        revision: 7,
        cluster: "local".into(),
        spec: pool(0, 0).spec,
        status,
        image_digest: Some("sha256:1".into()),
        created_at: t(0),
    }
}

fn boxes(statuses: &[WarmStatus]) -> Vec<WarmBox> {
    statuses.iter().copied().map(warm).collect()
}

fn digests(digest: &str) -> Digests {
    Digests::from([("local".to_owned(), digest.to_owned())])
}

/// The number of boxes that are started and removed.
fn sizes(pool: &PoolRow, boxes: &[WarmBox], demand: &[u64]) -> (u32, usize) {
    let size = resize(pool, boxes, demand, &digests("sha256:1"), MAX_AGE, t(10));
    (size.start, size.drain.len())
}

#[test]
fn target_follows_the_busiest_minute_between_floor_and_ceiling() {
    for (demand, expected) in [
        (&[][..], 2),
        (&[1], 2),
        (&[3, 5, 1], 5),
        (&[100], 8),
        (&[u64::MAX], 8),
    ] {
        assert_eq!(target(&pool(2, 8).spec, demand), expected, "{demand:?}");
    }
    assert_eq!(target(&pool(0, 0).spec, &[9]), 0);
}

#[test]
fn missing_boxes_are_started_a_few_at_a_time() {
    use WarmStatus::{Draining, Ready, Starting};
    for (statuses, demand, expected) in [
        (&[][..], &[][..], (2, 0)),
        (&[Draining], &[], (2, 0)),
        (&[Ready], &[], (1, 0)),
        (&[Ready, Starting], &[], (0, 0)),
        (&[Ready, Ready], &[], (0, 0)),
        (&[Ready, Ready], &[8], (4, 0)),
        (&[Ready, Starting, Starting, Starting], &[8], (1, 0)),
        (&[Ready, Ready, Ready, Ready], &[8], (1, 0)),
        (&[Ready, Ready, Ready, Ready, Starting], &[8], (0, 0)),
    ] {
        let found = sizes(&pool(2, 8), &boxes(statuses), demand);
        assert_eq!(found, expected, "{statuses:?} {demand:?}");
    }
}

#[test]
fn pool_is_complete_when_as_many_boxes_are_ready() {
    use WarmStatus::{Draining, Ready, Starting};
    for (statuses, expected) in [
        (&[Ready, Ready][..], true),
        (&[Ready, Ready, Ready], true),
        (&[Ready, Starting], false),
        (&[Ready, Draining], false),
        (&[], false),
    ] {
        let boxes = boxes(statuses);
        let size = resize(&pool(2, 8), &boxes, &[], &Digests::new(), MAX_AGE, t(10));
        assert_eq!(size.is_complete, expected, "{statuses:?}");
    }
}

#[test]
fn surplus_boxes_are_removed_those_that_start_first() {
    use WarmStatus::{Ready, Starting};
    let boxes = boxes(&[Ready, Ready, Ready, Starting]);
    let size = resize(&pool(2, 8), &boxes, &[], &Digests::new(), MAX_AGE, t(10));
    let expected = vec![boxes[3].id.clone(), boxes[0].id.clone()];
    assert_eq!((size.start, size.drain), (0, expected));
}

#[test]
fn failed_start_postpones_the_next_one() {
    let postponed = |at| PoolRow {
        retry_at: Some(t(at)),
        ..pool(2, 8)
    };
    assert_eq!(sizes(&postponed(11), &[], &[]), (0, 0));
    assert_eq!(sizes(&postponed(10), &[], &[]), (2, 0));
}

#[test]
fn box_of_another_revision_or_image_is_replaced() {
    let mut boxes = boxes(&[WarmStatus::Ready, WarmStatus::Ready, WarmStatus::Ready]);
    boxes[0].revision = 6;
    boxes[1].image_digest = None;
    assert_eq!(sizes(&pool(2, 8), &boxes, &[]), (0, 1));
    let changed = resize(
        &pool(2, 8),
        &boxes,
        &[],
        &digests("sha256:2"),
        MAX_AGE,
        t(10),
    );
    let expected = vec![boxes[0].id.clone(), boxes[2].id.clone()];
    assert_eq!((changed.start, changed.drain), (1, expected));
}

#[test]
fn old_boxes_are_replaced_one_at_a_time() {
    use WarmStatus::{Ready, Starting};
    let drained = |statuses: &[WarmStatus], at| {
        let boxes = boxes(statuses);
        let size = resize(&pool(2, 8), &boxes, &[], &Digests::new(), MAX_AGE, t(at));
        size.drain.len()
    };
    assert_eq!(drained(&[Ready, Ready], 3_600), 0);
    assert_eq!(drained(&[Ready, Ready], 3_601), 1);
    assert_eq!(drained(&[Ready, Starting], 3_601), 0);
}

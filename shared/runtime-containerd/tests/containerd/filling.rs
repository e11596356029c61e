//! Ways to fill the disk that file sizes do not show, on a machine where storage is measured. Each evicts
//! the box.

use agentbox_contracts::units::Bytes;
use agentbox_runtime::conformance::hostile::python;
use agentbox_runtime::conformance::{Differences, End, Subject, Violation, check, limits};
use agentbox_runtime::{BoxSpec, ExitReason, Runtime as _};
use agentbox_runtime_containerd::{Config, Driver};
use futures::StreamExt as _;

use crate::machine::{config, subject, subject_of};

/// Runs a box to its end while a driver watches: a watching driver measures storage.
async fn run_while_watching(s: &Subject<Driver>, spec: &BoxSpec) -> Result<End, Violation> {
    let mut changes = s.first.watch().await?;
    s.start(spec).await?;
    let watching = async { while changes.next().await.is_some() {} };
    tokio::select! {
        end = s.end_of(&spec.id) => end,
        () = watching => Err(Violation("the watch ended".to_owned())),
    }
}

async fn measuring() -> Subject<Driver> {
    let config = Config {
        enforce_storage: Some(false),
        ..config().await
    };
    subject_of(&config).with_differences(Differences {
        measures_storage: true,
        ..Default::default()
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn box_over_a_measured_limit_is_evicted_and_keeps_its_output() {
    let s = measuring().await;
    let outcome = limits::storage_over_limit_is_refused_or_evicted_for_every_replica(&s).await;
    s.clean().await.unwrap();
    outcome.unwrap();
}

/// Runs a Python script, and expects that its box is evicted.
async fn expect_eviction(script: &str) {
    let s = measuring().await;
    let mut spec = python(&s, &format!("{script}\nimport time\ntime.sleep(600)"));
    spec.resources.storage = Bytes(16 << 20);
    let outcome = run_while_watching(&s, &spec).await;
    s.clean().await.unwrap();
    let end = outcome.unwrap();
    assert_eq!(end.reason, ExitReason::Evicted, "{end:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn empty_files_count_toward_the_storage_limit() {
    expect_eviction(
        "os.mkdir('/tmp/many')\n\
         for n in range(20000): os.close(os.open(f'/tmp/many/{n}', os.O_CREAT))",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn deleted_file_counts_while_open_or_mapped() {
    let write = "file = os.open('/gone', os.O_RDWR | os.O_CREAT)\n\
                 os.unlink('/gone')\n\
                 for n in range(48): os.write(file, b'x' * (1 << 20))\n";
    let map = "import mmap\nkept = mmap.mmap(file, 48 << 20)\nos.close(file)\n";
    expect_eviction(write).await;
    expect_eviction(&format!("{write}{map}")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn too_deep_tree_is_evicted() {
    expect_eviction(
        "for n in range(30):\n\
         \x20   os.mkdir('d' * 200)\n\
         \x20   os.chdir('d' * 200)\n\
         with open('big', 'wb') as file: file.write(b'x' * (48 << 20))",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn full_output_directory_keeps_the_exit_status() {
    let s = subject().await;
    let spec = s.script(
        "i=0; while touch /.agentbox/output/f$i; do i=$((i+1)); [ $i -lt 1000 ] || exit 1; done; \
         dd if=/dev/zero of=/.agentbox/output/f0 bs=1M count=100 && exit 2; exit 7",
    );
    let outcome = s.run_to_end(&spec).await;
    s.clean().await.unwrap();
    let end = outcome.unwrap();
    check(
        end.exit_code == 7 && end.reason == ExitReason::Exited,
        || format!("{end:?}"),
    )
    .unwrap();
}

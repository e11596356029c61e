//! Ways to use up the disk without seeming to: each ends the box that tries.

use agentbox_contracts::units::Bytes;
use agentbox_runtime::conformance::hostile::python;
use agentbox_runtime::conformance::{End, Subject, Violation, claim};
use agentbox_runtime::{BoxSpec, ExitReason, Runtime as _};
use agentbox_runtime_containerd::Driver;
use futures::StreamExt as _;

use crate::machine::subject;

/// Runs it while a driver watches, which is who measures.
async fn watched(s: &Subject<Driver>, spec: &BoxSpec) -> Result<End, Violation> {
    let mut changes = s.first.watch().await?;
    s.start(spec).await?;
    let watching = async { while changes.next().await.is_some() {} };
    tokio::select! {
        end = s.end_of(&spec.id) => end,
        () = watching => Err(Violation("the watch ended".to_owned())),
    }
}

async fn is_evicted(script: &str) {
    let s = subject().await;
    let mut spec = python(&s, &format!("{script}\nimport time\ntime.sleep(600)"));
    spec.resources.storage = Bytes(16 << 20);
    let outcome = watched(&s, &spec).await;
    s.clean().await.unwrap();
    let end = outcome.unwrap();
    assert_eq!(end.reason, ExitReason::Evicted, "{end:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn files_without_content_are_not_free() {
    is_evicted(
        "os.mkdir('/tmp/many')\n\
         for n in range(20000): os.close(os.open(f'/tmp/many/{n}', os.O_CREAT))",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_file_that_is_open_or_mapped_counts() {
    let write = "file = os.open('/gone', os.O_RDWR | os.O_CREAT)\n\
                 os.unlink('/gone')\n\
                 for n in range(48): os.write(file, b'x' * (1 << 20))\n";
    let map = "import mmap\nkept = mmap.mmap(file, 48 << 20)\nos.close(file)\n";
    is_evicted(write).await;
    is_evicted(&format!("{write}{map}")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tree_too_deep_to_be_measured_hides_nothing() {
    is_evicted(
        "for n in range(30):\n\
         \x20   os.mkdir('d' * 200)\n\
         \x20   os.chdir('d' * 200)\n\
         with open('big', 'wb') as file: file.write(b'x' * (48 << 20))",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_output_directory_hides_no_end() {
    let s = subject().await;
    let spec = s.script(
        "i=0; while touch /.agentbox/output/f$i; do i=$((i+1)); [ $i -lt 1000 ] || exit 1; done; \
         dd if=/dev/zero of=/.agentbox/output/f0 bs=1M count=100 && exit 2; exit 7",
    );
    let outcome = s.run_to_end(&spec).await;
    s.clean().await.unwrap();
    let end = outcome.unwrap();
    let told = claim(
        end.exit_code == 7 && end.reason == ExitReason::Exited,
        || format!("{end:?}"),
    );
    told.unwrap();
}

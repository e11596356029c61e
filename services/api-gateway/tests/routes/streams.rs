//! Large transfers of files: unchanged, fair, and with little memory. The test measures memory and
//! time, so it has a system of its own, and `.ci/suites` runs it as a suite of its own.

use std::io;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use agentbox_testing::System;
use bytes::Bytes;
use futures::future::join_all;
use futures::stream;
use reqwest::{Body, Method};
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::support::boxes::small;
use crate::support::caller::{Caller, admin_of, new_user_with_role, send};
use crate::support::system::{options, resident_bytes, unlimited};

/// The size of one transfer, in bytes. Each of [`TOGETHER`] has a quarter.
const SIZE: usize = 64 << 20;
const TOGETHER: usize = 8;
/// How much memory each service and the box may take for all transfers together, in bytes.
const MAX_GROWTH: u64 = 32 << 20;
/// How much longer than the fastest the slowest of equal transfers may take.
const MAX_RATIO: u32 = 2;
/// How often the times are measured: a machine that stalls delays those that have not ended.
const ATTEMPTS: usize = 3;
const SERVICES: [&str; 4] = ["api-gateway", "auth", "exec-proxy", "scheduler"];
const PIECE: usize = 64 << 10;

type Sum = [u8; 32];

/// The piece of the content with this number. All are different.
fn piece(number: usize) -> Bytes {
    static NOISE: LazyLock<Vec<u8>> =
        LazyLock::new(|| (0..PIECE).map(|_| rand::random()).collect());
    let mut piece = NOISE.clone();
    piece[..8].copy_from_slice(&(number as u64).to_le_bytes());
    piece.into()
}

fn sum_of_content(size: usize) -> Sum {
    let mut sum = Sha256::new();
    for number in 0..size / PIECE {
        sum.update(piece(number));
    }
    sum.finalize().into()
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Upload,
    Download,
    /// The file's directory as an archive.
    Archive,
}

/// The box of the transfers.
struct Target {
    system: System,
    caller: Caller,
    id: String,
    /// The directory of the box's control group.
    group: PathBuf,
}

impl Target {
    async fn start() -> Self {
        let system = System::start(unlimited(options())).await.unwrap();
        let user = new_user_with_role(&admin_of(&system).await, "user").await;
        let mut body = small();
        body["resources"] = json!({"cpu": "2", "memory": "256Mi", "storage": "1Gi"});
        let id = user.caller.create_running(&body).await;
        Self {
            group: group_of(&id),
            caller: user.caller,
            system,
            id,
        }
    }

    fn content(&self, path: &str) -> String {
        format!("/environments/{}/files/content?path={path}", self.id)
    }

    async fn upload(&self, path: &str, size: usize) {
        let pieces = (0..size / PIECE).map(|number| Ok::<_, io::Error>(piece(number)));
        let request = self.caller.request(Method::PUT, &self.content(path));
        let answer = send(request.body(Body::wrap_stream(stream::iter(pieces)))).await;
        assert!(matches!(answer.status, 201 | 204), "{}", answer.text);
    }

    /// Downloads and returns the sum of `size` bytes after the first `skip`.
    async fn download(&self, path: &str, accept: &str, mut skip: usize, size: usize) -> Sum {
        let request = self.caller.request(Method::GET, &self.content(path));
        let mut response = request.header("accept", accept).send().await.unwrap();
        assert_eq!(response.status(), 200);
        let mut sum = Sha256::new();
        let mut left = size;
        while let Some(chunk) = response.chunk().await.unwrap() {
            let skipped = skip.min(chunk.len());
            skip -= skipped;
            let rest = &chunk[skipped..];
            let content = &rest[..left.min(rest.len())];
            left -= content.len();
            sum.update(content);
        }
        assert_eq!(left, 0, "bytes are missing");
        sum.finalize().into()
    }

    /// Transfers the file with this number, and returns how long it took.
    async fn transfer(&self, kind: Kind, number: usize, size: usize, expected: Sum) -> Duration {
        let directory = format!("/tmp/{size}/{number}");
        let file = format!("{directory}/file");
        let begun = Instant::now();
        match kind {
            Kind::Upload => self.upload(&file, size).await,
            Kind::Download => {
                let sum = self.download(&file, "*/*", 0, size).await;
                assert_eq!(sum, expected, "{file}");
            }
            Kind::Archive => {
                // The content follows the header of the only entry.
                let tar = "application/x-tar";
                let sum = self.download(&directory, tar, 512, size).await;
                assert_eq!(sum, expected, "{directory}");
            }
        }
        begun.elapsed()
    }

    /// Transfers `count` files at once, in each way.
    async fn round(&self, count: usize, size: usize) {
        let expected = sum_of_content(size);
        for kind in [Kind::Upload, Kind::Download, Kind::Archive] {
            let what = format!("{kind:?} of {count} times {size} bytes");
            for attempt in 1..=ATTEMPTS {
                let all = (0..count).map(|number| self.transfer(kind, number, size, expected));
                let times = self.with_little_memory(&what, join_all(all)).await;
                let (fastest, slowest) = (times.iter().min().unwrap(), times.iter().max().unwrap());
                println!("{what}: {fastest:?} to {slowest:?}");
                if *slowest <= *fastest * MAX_RATIO {
                    break;
                }
                assert!(attempt < ATTEMPTS, "{what}: {times:?}");
            }
        }
    }

    /// One small transfer in each way.
    async fn warm_up(&self) {
        let expected = sum_of_content(PIECE);
        for kind in [Kind::Upload, Kind::Download, Kind::Archive] {
            self.transfer(kind, 0, PIECE, expected).await;
        }
    }

    /// The memory in use, in bytes.
    fn in_use(&self) -> Vec<(&'static str, u64)> {
        let of_service = |service| (service, resident_bytes(&self.system, service, 0));
        let mut used: Vec<_> = SERVICES.into_iter().map(of_service).collect();
        used.push(("box", box_bytes(&self.group)));
        used
    }

    /// Awaits transfers, and asserts that nothing takes more than [`MAX_GROWTH`] for them.
    async fn with_little_memory<T>(&self, what: &str, transfers: impl Future<Output = T>) -> T {
        let before = self.in_use();
        let mut peaks = before.clone();
        let mut sample = tokio::time::interval(Duration::from_millis(50));
        let mut transfers = pin!(transfers);
        let result = loop {
            tokio::select! {
                biased;
                result = transfers.as_mut() => break result,
                _ = sample.tick() => {
                    for (peak, now) in peaks.iter_mut().zip(self.in_use()) {
                        peak.1 = peak.1.max(now.1);
                    }
                }
            }
        };
        for ((part, peak), (_, before)) in peaks.into_iter().zip(before) {
            let grown = peak.saturating_sub(before);
            println!("{what}: {part} grew by {} KiB", grown / 1024);
            assert!(grown <= MAX_GROWTH, "{what}: {part} grew by {grown} bytes");
        }
        result
    }
}

/// The control group of a box.
fn group_of(id: &str) -> PathBuf {
    // The second one is cgroup v1.
    ["/sys/fs/cgroup", "/sys/fs/cgroup/memory"]
        .into_iter()
        .filter_map(|root| std::fs::read_dir(root).ok())
        .flatten()
        .map(|group| group.unwrap().path().join(id))
        .find(|group| group.join("memory.stat").exists())
        .expect("the control group of the box")
}

/// The memory of a control group without its page cache, in bytes.
fn box_bytes(group: &Path) -> u64 {
    let stat = std::fs::read_to_string(group.join("memory.stat")).unwrap();
    let field = |name: &str| {
        let mut fields = stat.lines().filter_map(|line| line.split_once(' '));
        let found = fields.find(|field| field.0 == name);
        found.map(|field| field.1.parse::<u64>().unwrap())
    };
    match field("total_rss") {
        Some(anonymous) => anonymous + field("total_shmem").unwrap_or(0),
        None => field("anon").unwrap() + field("shmem").unwrap(),
    }
}

#[tokio::test]
async fn large_transfers_are_unchanged_and_fair_with_little_memory() {
    let target = Target::start().await;
    // The first one loads code and opens connections.
    target.warm_up().await;
    target.round(1, SIZE).await;
    target.round(TOGETHER, SIZE / 4).await;
    target.system.stop().await;
}

//! The duration of a short command. The bound is loose, for a debug build on a busy
//! machine; the figures are printed.

use std::time::{Duration, Instant};

use crate::support::gateway::command;
use crate::support::{System, TestBox, pattern};

#[tokio::test(flavor = "multi_thread")]
async fn short_command_takes_few_milliseconds_end_to_end() {
    let system = System::start().await;
    let inside = TestBox::idle().await;
    let mut times = Vec::new();
    let first = Instant::now();
    system
        .gateway
        .exec(&inside, command(&["true"]))
        .await
        .unwrap();
    let first = first.elapsed();
    for _ in 0..200 {
        let began = Instant::now();
        let answer = system
            .gateway
            .exec(&inside, command(&["true"]))
            .await
            .unwrap();
        times.push(began.elapsed());
        assert_eq!(answer.exit.exit_code, 0);
    }
    times.sort();
    let (p50, p99) = (times[100], times[198]);
    println!("exec true: first {first:?}, then p50 {p50:?}, p99 {p99:?}");
    assert!(p50 < Duration::from_millis(50), "{p50:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn streamed_stdin_does_not_wait_for_output() {
    let system = System::start().await;
    let inside = TestBox::idle().await;
    let bytes = pattern(64 * 1024 + 1);
    let mut times = Vec::new();
    for _ in 0..41 {
        let began = Instant::now();
        let answer = system
            .gateway
            .exec_with(&inside, command(&["cat"]), &bytes)
            .await
            .unwrap();
        times.push(began.elapsed());
        assert!(answer.stdout == bytes);
    }
    times.sort();
    println!("exec cat with streamed stdin: p50 {:?}", times[20]);
    // A server that speaks first would add 50 ms to each.
    assert!(times[20] < Duration::from_millis(50), "{:?}", times[20]);
}

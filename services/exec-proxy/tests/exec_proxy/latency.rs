//! The duration of a short command.

use std::time::{Duration, Instant};

use agentbox_testing::assert_fastest_below;

use crate::support::gateway::command;
use crate::support::{System, TestBox, pattern};

#[tokio::test(flavor = "multi_thread")]
async fn short_command_waits_for_no_timer_end_to_end() {
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
    println!("first {first:?}");
    assert_fastest_below(times, Duration::from_millis(50));
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
    // A server that speaks first would add 50 ms to each.
    assert_fastest_below(times, Duration::from_millis(50));
}

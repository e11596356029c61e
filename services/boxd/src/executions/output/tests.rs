use super::*;
use crate::executions::kept::{MAX_IN_FLIGHT, MIN_IN_FLIGHT};

const KEEP: usize = MIN_KEPT;
const STDOUT: usize = OutputStream::Stdout as usize;

fn output(on_full: OnFull) -> Output {
    Output::new(on_full, KEEP, Arc::new(KeptOutput::new(usize::MAX)))
}

/// Writes as much of `data` as there is space for; returns how much.
fn write(output: &Output, data: &[u8]) -> usize {
    let mut written = 0;
    while written < data.len() {
        let rest = &data[written..];
        let mut buffer = vec![0; rest.len().min(32 * 1024)];
        let read = output.read_into(OutputStream::Stdout, &mut buffer, |space| {
            space.copy_from_slice(&rest[..space.len()]);
            Ok(space.len())
        });
        match read {
            Some(Ok(count)) => written += count,
            Some(Err(_)) | None => break,
        }
    }
    written
}

struct Reading {
    positions: Positions,
    follower: Option<u64>,
    data: Vec<u8>,
    gaps: u64,
}

impl Reading {
    fn follow(output: &Output, begin: Begin) -> Self {
        let added = output.follow([true; 2], begin).unwrap();
        Self {
            positions: added.positions,
            follower: Some(added.number),
            data: Vec::new(),
            gaps: 0,
        }
    }

    /// Reads one message; `false` when there is none.
    fn step(&mut self, output: &Output) -> bool {
        let until = [u64::MAX; 2];
        match output.next(STDOUT, &mut self.positions, until, self.follower) {
            Some(execution_output::Output::Output(piece)) => {
                self.data.extend_from_slice(&piece.data);
                true
            }
            Some(execution_output::Output::Gap(gap)) => {
                self.gaps += gap.bytes;
                true
            }
            _ => false,
        }
    }

    fn leave(self, output: &Output) -> u64 {
        output.unfollow(self.follower.unwrap());
        self.positions[STDOUT].unwrap()
    }
}

fn at(stdout: u64) -> Begin {
    Begin::At(Offsets { stdout, stderr: 0 })
}

fn pattern(from: usize, count: usize) -> Vec<u8> {
    (from..from + count).map(|n| (n % 251) as u8).collect()
}

#[test]
fn drop_counts_what_slow_readers_miss() {
    let output = output(OnFull::Drop);
    let mut reading = Reading::follow(&output, Begin::Oldest);
    let total = 10 * KEEP;
    assert_eq!(write(&output, &pattern(0, total)), total);
    while reading.step(&output) {}
    assert_eq!(reading.data, pattern(total - KEEP, KEEP));
    assert_eq!(reading.gaps + reading.data.len() as u64, total as u64);
    assert_eq!(output.ends(), [total as u64, 0]);
    let oldest = output.positions([true, false], Begin::Oldest).unwrap();
    assert_eq!(oldest, [Some((total - KEEP) as u64), None]);
    let error = output.positions([true; 2], at(total as u64 + 1));
    assert!(error.unwrap_err().to_string().contains("stdout"));
}

#[test]
fn block_waits_without_a_follower_and_for_the_slowest_one() {
    let output = output(OnFull::Block);
    let endless = pattern(0, 20 * KEEP);
    assert_eq!(write(&output, &endless), KEEP);
    let mut fast = Reading::follow(&output, Begin::Oldest);
    let mut slow = Reading::follow(&output, Begin::Oldest);
    while fast.step(&output) {}
    assert_eq!(fast.data.len(), KEEP);
    assert_eq!(write(&output, &endless), 0, "the slow one has read nothing");
    assert!(slow.step(&output));
    assert_eq!(write(&output, &endless), slow.data.len());
    slow.leave(&output);
    assert_eq!(write(&output, &endless), KEEP - MAX_CHUNK);
    while fast.step(&output) {}
    assert_eq!(write(&output, &endless), KEEP);
    fast.leave(&output);
    assert_eq!(write(&output, &endless), 0, "nobody reads");
}

#[test]
fn block_passes_every_byte_once_to_a_follower_that_is_often_lost() {
    let output = output(OnFull::Block);
    let total = 3 * (MAX_IN_FLIGHT + KEEP);
    let data = pattern(0, total);
    let (mut written, mut received) = (0, Vec::new());
    let mut round: usize = 0;
    while received.len() < total {
        let mut reading = Reading::follow(&output, at(received.len() as u64));
        for _ in 0..40 {
            written += write(&output, &data[written..]);
            reading.step(&output);
        }
        assert_eq!(reading.gaps, 0);
        // Some of what the follower was given is lost on its way.
        let lost = (round * 97_003)
            .min(reading.data.len() / 2)
            .min(MAX_IN_FLIGHT);
        round += 1;
        reading.data.truncate(reading.data.len() - lost);
        received.append(&mut reading.data);
        reading.leave(&output);
    }
    assert!(received == data, "{} bytes", received.len());
    assert!(round > 10, "{round}");
}

#[test]
fn block_keeps_what_may_be_in_flight() {
    let output = output(OnFull::Block);
    let mut reading = Reading::follow(&output, Begin::Oldest);
    let total = 2 * MAX_IN_FLIGHT;
    let data = pattern(0, total);
    let mut written = 0;
    while written < total {
        written += write(&output, &data[written..]);
        while reading.step(&output) {}
    }
    reading.leave(&output);
    write(&output, &data);
    let mut resumed = Reading::follow(&output, at((total - MAX_IN_FLIGHT) as u64));
    assert!(resumed.step(&output));
    assert_eq!(resumed.gaps, 0);
}

#[test]
fn outputs_that_block_at_the_same_time_share_what_may_be_in_flight() {
    let kept = Arc::new(KeptOutput::new(usize::MAX));
    let new = || Output::new(OnFull::Block, KEEP, Arc::clone(&kept));
    let outputs: Vec<Output> = (0..8).map(|_| new()).collect();
    let pass = |output: &Output| {
        let mut reading = Reading::follow(output, Begin::Oldest);
        let data = pattern(0, 2 * MAX_IN_FLIGHT);
        let mut written = 0;
        while written < data.len() {
            written += write(output, &data[written..]);
            while reading.step(output) {}
        }
        reading.leave(output);
        let oldest = output.positions([true, false], Begin::Oldest).unwrap()[0];
        output.ends()[0] - oldest.unwrap()
    };
    for output in &outputs {
        let left = usize::try_from(pass(output)).unwrap();
        assert!(
            (MIN_IN_FLIGHT..=MIN_IN_FLIGHT + KEEP).contains(&left),
            "{left}"
        );
    }
    let [first, rest @ ..] = &outputs[..] else {
        unreachable!()
    };
    rest.iter().for_each(Output::command_ended);
    let left = || usize::try_from(pass(first)).unwrap();
    let all = MAX_IN_FLIGHT..=MAX_IN_FLIGHT + KEEP;
    assert!(all.contains(&left()));
    // What they keep for followers that may come back counts too, until it is dropped.
    rest.iter().for_each(Output::complete);
    assert!((MIN_IN_FLIGHT..=MIN_IN_FLIGHT + KEEP).contains(&left()));
    rest.iter().for_each(Output::drop_kept);
    assert!(all.contains(&left()));
}

#[test]
fn rest_of_an_ended_command_has_space_without_a_reader() {
    let output = output(OnFull::Block);
    let endless = pattern(0, 100 * KEEP);
    assert_eq!(write(&output, &endless), KEEP);
    output.command_ended();
    assert_eq!(write(&output, &endless), LAST_BYTES);
    let mut buffer = [0; 1];
    let more = output.read_into(OutputStream::Stdout, &mut buffer, |_| Ok(1));
    assert!(more.unwrap().is_err());
    let mut reading = Reading::follow(&output, Begin::Oldest);
    while reading.step(&output) {}
    assert_eq!((reading.data.len(), reading.gaps), (KEEP + LAST_BYTES, 0));
}

#[test]
fn reader_that_does_not_follow_frees_nothing() {
    let output = output(OnFull::Block);
    let endless = pattern(0, 4 * KEEP);
    assert_eq!(write(&output, &endless), KEEP);
    let mut reading = Reading {
        positions: output.positions([true; 2], Begin::Oldest).unwrap(),
        follower: None,
        data: Vec::new(),
        gaps: 0,
    };
    while reading.step(&output) {}
    assert_eq!(reading.data.len(), KEEP);
    assert_eq!(write(&output, &endless), 0);
}

#[test]
fn total_bound_drops_output_of_the_execution_that_ended_first() {
    let kept = Arc::new(KeptOutput::new(4 * KEEP));
    let new = || Arc::new(Output::new(OnFull::Drop, 3 * KEEP, Arc::clone(&kept)));
    let (first, second, running) = (new(), new(), new());
    for output in [&first, &second] {
        write(output, &pattern(0, KEEP));
        kept.add_ended(output);
    }
    let oldest = |output: &Output| output.positions([true, false], Begin::Oldest).unwrap()[STDOUT];
    write(&running, &pattern(0, 3 * KEEP));
    assert_eq!(oldest(&first), Some(KEEP as u64));
    assert_eq!(oldest(&second), Some(0));
    assert_eq!(oldest(&running), Some(0));
    // Only running executions are left: each keeps the least.
    let others = [new(), new()];
    for output in &others {
        write(output, &pattern(0, 3 * KEEP));
    }
    assert_eq!(oldest(&second), Some(KEEP as u64));
    assert_eq!(oldest(&others[1]), Some(2 * KEEP as u64));
    // The output of an execution that is forgotten no longer counts.
    drop((running, others));
    let last = new();
    write(&last, &pattern(0, 3 * KEEP));
    assert_eq!(oldest(&last), Some(0));
}

#[test]
fn next_client_of_a_terminal_begins_at_a_line() {
    let output = Output::new(
        OnFull::Drop,
        1024 * 1024,
        Arc::new(KeptOutput::new(usize::MAX)),
    );
    let line = format!("{}\n", "x".repeat(999));
    write(&output, line.repeat(200).as_bytes());
    let first = output.follow([true; 2], Begin::LastScreen).unwrap();
    assert_eq!((first.positions[STDOUT], first.is_screen), (Some(0), false));
    let next = output.follow([true; 2], Begin::LastScreen).unwrap();
    assert!(next.is_screen);
    let position = next.positions[STDOUT].unwrap();
    assert!((200_000 - SCREEN_BYTES..200_000).contains(&position));
    assert_eq!(position % 1000, 0);
}

//! The counters of the box's network interfaces, `/proc/net/dev`.

use std::fs;

/// The table of the interfaces of this process's network namespace.
const TABLE: &str = "/proc/self/net/dev";
const LOOPBACK: &str = "lo";
/// The number of a line's counter of sent bytes, after those of received packets.
const SENT_BYTES: usize = 8;

/// The bytes that left the box since it started; 0 when they cannot be read.
pub fn egress_bytes() -> u64 {
    fs::read_to_string(TABLE).map_or(0, |table| sent_bytes(&table))
}

/// The sum of the sent bytes of all interfaces but the loopback. Its first two lines are a header.
fn sent_bytes(table: &str) -> u64 {
    table
        .lines()
        .filter_map(|line| line.split_once(':'))
        .filter(|(interface, _)| interface.trim() != LOOPBACK)
        .filter_map(|(_, counters)| {
            counters
                .split_whitespace()
                .nth(SENT_BYTES)?
                .parse::<u64>()
                .ok()
        })
        .fold(0, u64::saturating_add)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sent_bytes_of_all_interfaces_but_the_loopback_are_added() {
        let table = "\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:     100       1    0    0    0     0          0         0      100       1    0    0    0     0       0          0
  eth0: 5000 50 0 0 0 0 0 0 1234 10 0 0 0 0 0 0
  eth1:7 1 0 0 0 0 0 0 1000 1 0 0 0 0 0 0
";
        assert_eq!(sent_bytes(table), 2_234);
        assert_eq!(sent_bytes(""), 0);
        assert_eq!(sent_bytes("eth0: 1 2"), 0);
    }
}

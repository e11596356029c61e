//! The C library's allocator: kept output that is dropped is returned to the kernel.

#![allow(unsafe_code, reason = "mallopt(3) has no safe wrapper")]

use nix::libc::{M_MMAP_THRESHOLD, mallopt};

/// Allocations from this size on have pages of their own. Larger than every buffer of a connection.
const OWN_PAGES_FROM_BYTES: i32 = 256 * 1024;

/// Gives each large allocation pages of its own. By default the C library raises this bound to the largest
/// size that was freed, and then keeps what the buffers of ended and shrunk outputs leave behind.
///
/// Called before threads start. An error leaves the default.
pub fn return_large_allocations() {
    // SAFETY: no other thread runs, and the call changes only parameters.
    unsafe { mallopt(M_MMAP_THRESHOLD, OWN_PAGES_FROM_BYTES) };
}

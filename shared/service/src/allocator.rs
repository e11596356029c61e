//! The allocator of every service: jemalloc.
//!
//! The C library's allocator keeps an arena for almost every thread that ever allocated, and returns little
//! of it: a service grew with each burst. jemalloc returns what was freed within seconds; it has a thread of
//! its own for that, because an idle service frees nothing itself.
//!
//! The fuzz targets keep the allocator that their sanitizer checks.

#[cfg(not(fuzzing))]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

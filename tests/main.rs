//! The one integration binary: a module a subject.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::let_underscore_must_use,
    clippy::too_many_lines,
    unsafe_code,
    unreachable_pub
)]

mod doctor;
mod layer_changes;

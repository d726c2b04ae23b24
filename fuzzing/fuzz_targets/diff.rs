#![no_main]
//! See `plyfs_fuzzing::diff`.

mod guard;

libfuzzer_sys::fuzz_target!(|data: &[u8]| guard::run(plyfs_fuzzing::diff::run, data));

#![no_main]
//! See `plyfs_fuzzing::differential`.

mod guard;

libfuzzer_sys::fuzz_target!(|data: &[u8]| guard::run(plyfs_fuzzing::differential::run, data));

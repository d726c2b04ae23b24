#![no_main]
//! See `plyfs_fuzzing::apply`.

mod guard;

libfuzzer_sys::fuzz_target!(|data: &[u8]| guard::run(plyfs_fuzzing::apply::run, data));

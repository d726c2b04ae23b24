#![no_main]
//! See `plyfs_fuzzing::records`.

mod guard;

libfuzzer_sys::fuzz_target!(|data: &[u8]| guard::run(plyfs_fuzzing::records::run, data));

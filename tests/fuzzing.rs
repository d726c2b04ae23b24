//! The corpora of the fuzz targets, replayed: see `fuzzing/`.

#[path = "../fuzzing/src/lib.rs"]
mod targets;

use std::path::Path;

use crate::as_both;
use crate::common::sandbox::Sandbox;

/// Runs a target on every file of its corpus.
fn replay(name: &str, target: fn(&Path, &[u8])) {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzzing/corpus").join(name);
    let mut files: Vec<_> =
        std::fs::read_dir(&corpus).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(files.len() > 3, "{} holds next to nothing", corpus.display());
    let sandbox = Sandbox::in_memory();
    let scratch = sandbox.dir("scratch");
    for file in files {
        let data = std::fs::read(&file).unwrap();
        println!("{}", file.display());
        target(&scratch, &data);
    }
}

as_both! { archives_of_the_corpus_stay_inside_and_come_back, || replay("apply", targets::apply::run) }

as_both! { records_of_the_corpus_are_an_error_or_make_sense, || replay("records", targets::records::run) }

as_both! { trees_of_the_corpus_are_applied_as_they_are, || replay("diff", targets::diff::run) }

#[test]
fn other_readers_agree_on_the_archives_of_the_corpus() {
    crate::needs!(Root);
    match targets::differential::readers() {
        true => replay("differential", targets::differential::run),
        false => eprintln!(
            "skipped: other_readers_agree_on_the_archives_of_the_corpus: needs GNU tar and python3"
        ),
    }
}

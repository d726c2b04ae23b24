//! What a long verb has done so far, on standard error while that is a terminal, else nothing.

use std::fs::File;
use std::io::{Read, Write};

use indicatif::{ProgressBar, ProgressBarIter, ProgressStyle};

const WITH_END: &str =
    "{msg} [{bar:30}] {binary_bytes} of {binary_total_bytes}, {binary_bytes_per_sec}, {eta} left";
const STEP: &str = "{msg} {spinner}";
const WITHOUT_END: &str = "{msg} {spinner} {binary_bytes}, {binary_bytes_per_sec}";

/// Tells how much of an archive was read; to the end when it is a file.
pub(super) fn reading<R: Read>(what: String, size: Option<u64>, from: R) -> ProgressBarIter<R> {
    bar(what, size).wrap_read(from)
}

/// Tells how much of an archive was written.
pub(super) fn writing<W: Write>(what: String, to: W) -> ProgressBarIter<W> {
    bar(what, None).wrap_write(to)
}

/// Tells what is done, by steps of which one or another is counted.
pub(super) struct Steps(ProgressBar);

impl Steps {
    pub(super) fn new() -> Steps {
        Steps(bar(String::new(), None))
    }

    /// A step that nobody knows the end of.
    pub(super) fn step(&self, what: String) {
        self.style(STEP);
        self.0.set_message(what);
        self.0.tick();
    }

    /// Bytes that are done of a step.
    pub(super) fn count(&self, what: &'static str, done: u64, all: u64) {
        if self.0.length() != Some(all) || self.0.message() != what {
            self.style(WITH_END);
            self.0.set_message(what);
            self.0.set_length(all);
        }
        self.0.set_position(done);
    }

    /// Says something on a line of its own.
    pub(super) fn aside(&self, say: impl FnOnce()) {
        self.0.suspend(say);
    }

    fn style(&self, template: &str) {
        if let Ok(style) = ProgressStyle::with_template(template) {
            self.0.set_style(style);
        }
    }
}

/// The bytes of a regular file; `None` for pipes and devices.
pub(super) fn size(file: &File) -> Option<u64> {
    let found = file.metadata().ok().filter(|found| found.is_file());
    found.map(|found| found.len())
}

/// It is hidden where standard error is no terminal, and goes away when it is dropped. It moves with the bytes, without a thread
/// of its own: who has threads may not enter a user namespace.
fn bar(what: String, size: Option<u64>) -> ProgressBar {
    let (bar, template) = match size {
        Some(size) => (ProgressBar::new(size), WITH_END),
        None => (ProgressBar::new_spinner(), WITHOUT_END),
    };
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar.set_message(what);
    bar.with_finish(indicatif::ProgressFinish::AndClear)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_templates_are_read() {
        for template in [WITH_END, WITHOUT_END, STEP] {
            ProgressStyle::with_template(template).unwrap();
        }
    }

    #[test]
    fn every_byte_passes() {
        let (mut read, mut written) = (Vec::new(), Vec::new());
        reading("apply a".to_owned(), Some(3), &b"abc"[..]).read_to_end(&mut read).unwrap();
        writing("diff a".to_owned(), &mut written).write_all(&read).unwrap();
        assert_eq!(written, b"abc");
    }
}

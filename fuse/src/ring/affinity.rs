//! Where the thread of a queue runs.
//!
//! A caller that waits for its answer is answered soonest from the processor that it sleeps on: nobody has to be woken
//! elsewhere. One that reads a large file in sequence does not wait, as the kernel reads ahead of it: its data is better
//! copied on another processor meanwhile, as long as there is one that does not do the same.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::sys;

/// Bytes of a read from which it counts as large: half of what the kernel reads ahead.
const LARGE: usize = 64 * 1024;
/// Large reads in a row that make a sequence.
const SEQUENCE: u32 = 8;
/// A sequence that rests for so long has come to its end.
const REST: Duration = Duration::from_millis(2);

/// When each thread saw the last request of a sequence.
#[derive(Clone, Debug)]
pub(super) struct Sequences {
    since: Instant,
    last: Arc<[AtomicU64]>,
}

impl Sequences {
    pub(super) fn new(threads: usize) -> Sequences {
        let never = |_| AtomicU64::new(0);
        Sequences { since: Instant::now(), last: (0..threads).map(never).collect() }
    }

    /// Notes that this thread's sequence goes on at a time after the start, and tells whether half of the threads have none.
    fn go_on(&self, thread: usize, now: Duration) -> bool {
        let now = u64::try_from(now.as_micros()).unwrap_or(u64::MAX);
        if let Some(last) = self.last.get(thread) {
            last.store(now, Ordering::Relaxed);
        }
        let rests = |last: &AtomicU64| {
            Duration::from_micros(now.saturating_sub(last.load(Ordering::Relaxed))) > REST
        };
        let resting = self.last.iter().filter(|last| rests(last)).count();
        2 * resting >= self.last.len()
    }
}

/// The place of one thread.
#[derive(Debug)]
pub(super) struct Affinity {
    cpu: Option<usize>,
    thread: usize,
    sequences: Sequences,
    in_a_row: u32,
    is_away: bool,
}

impl Affinity {
    /// Takes this thread to its processor; without one it stays where it is.
    pub(super) fn new(cpu: Option<usize>, thread: usize, sequences: Sequences) -> Affinity {
        let affinity = Affinity { cpu, thread, sequences, in_a_row: 0, is_away: false };
        affinity.go(sys::pin);
        affinity
    }

    /// To be told of each request: how many bytes it reads, 0 for all others.
    pub(super) fn note(&mut self, read: usize) {
        self.note_at(read, self.sequences.since.elapsed());
    }

    fn note_at(&mut self, read: usize, now: Duration) {
        self.in_a_row = if read < LARGE { 0 } else { self.in_a_row.saturating_add(1) };
        let leaves = self.in_a_row >= SEQUENCE && self.sequences.go_on(self.thread, now);
        if leaves != self.is_away {
            self.is_away = leaves;
            if leaves { self.go(sys::leave) } else { self.go(sys::pin) }
        }
    }

    fn go(&self, how: impl FnOnce(usize) -> io::Result<()>) {
        if let Some(Err(e)) = self.cpu.map(how) {
            log::debug!("stay on a processor or leave it: {e}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Duration = Duration::from_secs(1);

    fn affinity(threads: usize) -> Vec<Affinity> {
        let sequences = Sequences::new(threads);
        (0..threads).map(|n| Affinity::new(None, n, sequences.clone())).collect()
    }

    #[test]
    fn a_sequence_of_large_reads_takes_its_thread_away_and_anything_else_back() {
        let mut affinity = affinity(2);
        let first = &mut affinity[0];
        let mut note = |reads: &[usize]| {
            reads.iter().for_each(|size| first.note_at(*size, START));
            first.is_away
        };
        assert!(!note(&[LARGE; SEQUENCE as usize - 1]));
        assert!(note(&[LARGE]));
        assert!(!note(&[LARGE - 1]));
        assert!(!note(&[LARGE; SEQUENCE as usize - 1]));
        assert!(!note(&[0, LARGE]));
        assert!(note(&[LARGE; SEQUENCE as usize]));
    }

    #[test]
    fn where_all_processors_have_sequences_each_thread_stays() {
        let mut affinity = affinity(2);
        for _ in 0..2 * SEQUENCE {
            affinity.iter_mut().for_each(|each| each.note_at(LARGE, START));
        }
        assert!(affinity.iter().all(|each| !each.is_away));
        affinity[1].note_at(LARGE, START + 2 * REST);
        assert!(affinity[1].is_away);
        affinity[0].note_at(LARGE, START + 2 * REST);
        affinity[1].note_at(LARGE, START + 2 * REST);
        assert!(affinity.iter().all(|each| !each.is_away));
    }
}

//! Threads for what may take long. They start when needed and end when idle.
//!
//! Jobs that would wait for each other have a key, the object they all need: one job of a key is in the
//! queue or runs, the others are behind it and hold no thread. So any number of writers to one file that
//! is copied up take one thread of the bound. Their number is the kernel's to bound, as it is for all
//! requests that wait.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use crate::sys;

/// Threads at most: more than the disk can use at once only wait for each other.
const LIMIT: usize = 16;
/// An idle thread waits this long for another job.
const IDLE: Duration = Duration::from_secs(5);

type Job = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct Queue {
    jobs: VecDeque<(Option<u64>, Job)>,
    /// The keys of which a job is queued or runs, with the jobs behind it.
    behind: HashMap<u64, VecDeque<Job>>,
    threads: usize,
    idle: usize,
}

impl Queue {
    /// A job of a key has ended: the next one takes its turn behind all jobs that are queued, on the
    /// thread that is free now or another.
    fn follow(&mut self, key: u64) {
        match self.behind.get_mut(&key).and_then(VecDeque::pop_front) {
            Some(job) => self.jobs.push_back((Some(key), job)),
            None => drop(self.behind.remove(&key)),
        }
    }
}

/// A queue of jobs and the threads that run them.
#[derive(Clone)]
pub(super) struct Pool(Arc<(Mutex<Queue>, Condvar)>);

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Pool")
    }
}

impl Pool {
    /// A pool without threads.
    pub(super) fn new() -> Pool {
        Pool(Arc::default())
    }

    /// Runs a job on another thread, after those of the same key; here when no thread can be had.
    pub(super) fn run(&self, key: Option<u64>, job: Job) {
        let (queue, wake) = &*self.0;
        let mut queue = queue.lock();
        if let Some(key) = key {
            if let Some(behind) = queue.behind.get_mut(&key) {
                behind.push_back(job);
                return;
            }
            queue.behind.insert(key, VecDeque::new());
        }
        queue.jobs.push_back((key, job));
        // An idle thread counts as idle until it wakes: each takes one of the waiting jobs.
        if queue.idle >= queue.jobs.len() || queue.threads >= LIMIT {
            wake.notify_one();
            return;
        }
        queue.threads += 1;
        drop(queue);
        let pool = self.clone();
        if std::thread::Builder::new().name("plyfs-slow".into()).spawn(move || pool.work()).is_err()
        {
            self.0.0.lock().threads -= 1;
            self.drain();
        }
    }

    fn drain(&self) {
        while let Some((key, job)) = { self.0.0.lock().jobs.pop_front() } {
            job();
            if let Some(key) = key {
                self.0.0.lock().follow(key);
            }
        }
    }

    fn work(&self) {
        // The thread that starts this one may be kept on a processor.
        sys::roam();
        let (queue, wake) = &*self.0;
        loop {
            self.drain();
            let mut queue = queue.lock();
            if !queue.jobs.is_empty() {
                continue;
            }
            queue.idle += 1;
            let timed_out = wake.wait_for(&mut queue, IDLE).timed_out();
            queue.idle -= 1;
            if timed_out && queue.jobs.is_empty() {
                queue.threads -= 1;
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn every_job_runs() {
        let pool = Pool::new();
        let (send, receive) = mpsc::channel();
        for n in 0..100 {
            let send = send.clone();
            pool.run((n % 3 == 0).then_some(7), Box::new(move || send.send(n).unwrap()));
        }
        let mut got: Vec<i32> = receive.iter().take(100).collect();
        got.sort_unstable();
        assert_eq!(got, (0..100).collect::<Vec<_>>());
    }

    #[test]
    fn jobs_that_wait_for_one_object_take_one_thread() {
        let pool = Pool::new();
        let (go, wait) = mpsc::channel::<()>();
        let (send, receive) = mpsc::channel();
        let first = send.clone();
        pool.run(
            Some(1),
            Box::new(move || {
                wait.recv().unwrap();
                first.send(0).unwrap();
            }),
        );
        for n in 1..40 {
            let send = send.clone();
            pool.run(Some(1), Box::new(move || send.send(n).unwrap()));
        }
        pool.run(Some(2), Box::new(move || send.send(100).unwrap()));
        assert_eq!(receive.recv().unwrap(), 100, "the job of another key does not wait");
        go.send(()).unwrap();
        let got: Vec<i32> = receive.iter().take(40).collect();
        assert_eq!(got, (0..40).collect::<Vec<_>>(), "they run in the order they came in");
        while !pool.0.0.lock().behind.is_empty() {
            std::thread::yield_now();
        }
    }
}

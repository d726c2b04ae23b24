//! Threads for what may take long. They start when needed and end when idle.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

/// Threads at most: more than the disk can use at once only wait for each other.
const LIMIT: usize = 16;
/// An idle thread waits this long for another job.
const IDLE: Duration = Duration::from_secs(5);

type Job = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    threads: usize,
    idle: usize,
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

    /// Runs a job on another thread; here when none can be had.
    pub(super) fn run(&self, job: Job) {
        let (queue, wake) = &*self.0;
        let mut queue = queue.lock();
        queue.jobs.push_back(job);
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
        while let Some(job) = { self.0.0.lock().jobs.pop_front() } {
            job();
        }
    }

    fn work(&self) {
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
            pool.run(Box::new(move || send.send(n).unwrap()));
        }
        let mut got: Vec<i32> = receive.iter().take(100).collect();
        got.sort_unstable();
        assert_eq!(got, (0..100).collect::<Vec<_>>());
    }
}

//! The ring transport: FUSE over io_uring (Documentation/filesystems/fuse/fuse-io-uring.rst, linux/fuse.h).
//!
//! The kernel has one queue a processor, and a request goes to the queue of the processor its caller
//! runs on. A thread a queue, kept on that processor, serves it: nobody is woken across processors,
//! which is what a request costs most. Processors that run now but not for us, or not now, have queues too;
//! one thread serves all of those.
//!
//! An answer may come from any thread; the queue's own hands it over (`reply`, `queue`). What the
//! bytes mean is in `wire` and `encode`, what is done in the handlers that both transports share.
//!
//! The classic transport's session stays on the connection: the kernel sends it INIT, FORGET and
//! INTERRUPT. After INIT has agreed on rings every request waits until all queues are there or one was
//! refused. So what may fail is tried before ([`usable`]), and what fails nevertheless takes the agreement
//! back ([`give_up`]) or fails the mount.

mod affinity;
mod dispatch;
mod encode;
mod queue;
mod reply;
#[cfg(test)]
mod tests;
mod wire;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;

use crate::server::Server;
use crate::sys::{self, Area, Bell, Event, Slot, Uring};
use affinity::{Affinity, Sequences};
use queue::Worker;

/// Processors that there may ever be; the kernel has a queue for each.
const POSSIBLE: &str = "/sys/devices/system/cpu/possible";
/// What the fuse module allows.
const ENABLED: &str = "/sys/module/fuse/parameters/enable_uring";

/// Whether a connection that offers rings can be served by them here.
pub(crate) fn usable() -> io::Result<()> {
    let named = |what: &str, e: io::Error| io::Error::new(e.kind(), format!("{what}: {e}"));
    possible().map_err(|e| named(POSSIBLE, e))?;
    sys::try_ring().map_err(|e| named("io_uring", e))
}

/// Why a kernel does not offer rings.
pub(crate) fn why_not_offered() -> String {
    match std::fs::read_to_string(ENABLED).as_deref().map(str::trim) {
        Ok("N" | "0") => {
            format!("the fuse module's parameter enable_uring is N; as root: echo Y > {ENABLED}")
        }
        _ => "this kernel does not offer FUSE over io_uring (Linux 6.14 and later do)".to_owned(),
    }
}

/// How many processors a list of them counts, as `0-3,8`.
fn count(list: &str) -> Option<u16> {
    let mut all = 0_u16;
    for range in list.trim().split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (u16, u16) = (first.parse().ok()?, last.parse().ok()?);
        all = all.checked_add(last.checked_sub(first)?.checked_add(1)?)?;
    }
    Some(all)
}

fn possible() -> io::Result<u16> {
    let text = std::fs::read_to_string(POSSIBLE)?;
    count(&text).ok_or_else(|| io::Error::other(format!("not a list of processors: '{text}'")))
}

/// Has all requests come over the classic transport after [`Ring::start`] failed: the kernel takes a refused
/// entry as the end of the agreement (fs/fuse/dev_uring.c), and a queue that cannot be is refused.
pub(crate) fn give_up(device: &Arc<OwnedFd>) -> io::Result<()> {
    let mut ring = Uring::new(device, Arc::new(Bell::new()?))?;
    let slot = Slot { head: Area::new(reply::HEAD)?, body: Area::new(reply::HEAD)? };
    ring.register(u16::MAX, slot)?;
    match ring.next_event()? {
        Some(Event::Refused(..)) => Ok(()),
        _ => Err(io::Error::other("the kernel takes an impossible queue")),
    }
}

/// Which queues a thread serves, and where.
#[derive(Debug, PartialEq, Eq)]
struct Post {
    queues: Vec<u16>,
    cpu: Option<usize>,
}

/// A thread for each processor we may run on, and one for the queues of all others.
fn posts(possible: u16, allowed: &[usize]) -> Vec<Post> {
    let is_ours = |queue: &u16| allowed.contains(&usize::from(*queue));
    let (ours, others): (Vec<u16>, Vec<u16>) = (0..possible).partition(is_ours);
    let mut posts: Vec<Post> = ours
        .into_iter()
        .map(|queue| Post { queues: vec![queue], cpu: Some(usize::from(queue)) })
        .collect();
    if !others.is_empty() {
        posts.push(Post { queues: others, cpu: None });
    }
    posts
}

/// The threads that serve a connection.
#[derive(Debug)]
pub(crate) struct Ring {
    threads: Vec<(JoinHandle<()>, Arc<Bell>)>,
    stop: Arc<AtomicBool>,
}

impl Ring {
    /// Takes a connection over whose INIT has agreed on rings. When this returns, requests are served.
    pub(crate) fn start(server: &Arc<Server>, device: &Arc<OwnedFd>) -> io::Result<Ring> {
        let mut ring = Ring { threads: Vec::new(), stop: Arc::default() };
        let (tell, told) = mpsc::channel();
        let posts = posts(possible()?, &sys::allowed_cpus()?);
        let count = posts.len();
        let sequences = Sequences::new(count);
        let started = posts.into_iter().enumerate().try_for_each(|(number, post)| {
            let bell = Arc::new(Bell::new()?);
            let affinity = (post.cpu, number, sequences.clone());
            let thread = Thread {
                queues: post.queues,
                affinity,
                server: server.clone(),
                device: device.clone(),
                bell: bell.clone(),
                stop: ring.stop.clone(),
            };
            let tell = tell.clone();
            let name = std::thread::Builder::new().name("plyfs-ring".into());
            ring.threads.push((name.spawn(move || thread.run(&tell))?, bell));
            io::Result::Ok(())
        });
        drop(tell);
        let registered = started.and_then(|()| {
            let ended = || io::Error::other("a thread of the ring ended");
            (0..count).try_for_each(|_| told.recv().unwrap_or_else(|_| Err(ended())))
        });
        if let Err(e) = registered {
            ring.end();
            return Err(e);
        }
        Ok(ring)
    }

    /// Ends the threads, at once if the connection has not ended.
    pub(crate) fn end(self) {
        self.stop.store(true, Ordering::Release);
        for (thread, bell) in self.threads {
            bell.ring();
            if thread.join().is_err() {
                log::error!("a thread of the ring panicked");
            }
        }
    }
}

/// What a thread starts with.
struct Thread {
    queues: Vec<u16>,
    affinity: (Option<usize>, usize, Sequences),
    server: Arc<Server>,
    device: Arc<OwnedFd>,
    bell: Arc<Bell>,
    stop: Arc<AtomicBool>,
}

impl Thread {
    fn run(self, tell: &mpsc::Sender<io::Result<()>>) {
        let stop = self.stop.clone();
        let asked = (self.bell, self.stop);
        let (cpu, number, sequences) = self.affinity;
        let place = (&*self.queues, Affinity::new(cpu, number, sequences));
        let worker = Worker::new(self.server, &self.device, asked, place);
        let (said, worker) = match worker {
            Ok(worker) => (Ok(()), Some(worker)),
            Err(e) => (Err(e), None),
        };
        if tell.send(said).is_err() {
            return;
        }
        match worker.map(Worker::run) {
            Some(Err(e)) if !stop.load(Ordering::Acquire) => {
                // A queue that nobody serves hangs its callers; an ended connection tells them.
                log::error!("io_uring: {e}; the mount ends");
                sys::end_process();
            }
            _ => {}
        }
    }
}

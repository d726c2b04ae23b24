//! The thread that serves the queues of some processors.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::affinity::Affinity;
use super::dispatch;
use super::encode::Form;
use super::reply::{Answered, HEAD, How, Mailbox, Pending};
use super::wire::{self, Long};
use crate::server::Server;
use crate::sys::{self, Area, Bell, Event, Slot, Uring};

/// Bytes of a body: the kernel wants room for the largest request that was agreed on.
const BODY: usize = crate::server::MAX_WRITE as usize;
/// Entries that a queue starts with. The kernel takes the one that came back last, so those that are
/// never needed cost no memory.
const ENTRIES: usize = 4;
/// Entries of a queue at most: when all are with us, at slow work, one more is offered, so that what is quick
/// does not wait behind it.
const MOST_ENTRIES: usize = 256;
/// What a body keeps of its memory when nothing comes for a while.
const KEPT: usize = 64 * 1024;
const A_WHILE: Duration = Duration::from_secs(1);

/// A ring and the requests in it.
pub(super) struct Worker {
    ring: Uring,
    server: Arc<Server>,
    mailbox: Arc<Mailbox>,
    stop: Arc<AtomicBool>,
    queues: Vec<Queue>,
    entries: Vec<Entry>,
    /// Emptied after each use.
    answered: Vec<Answered>,
    /// Something waits to be submitted.
    committed: bool,
    /// Bodies hold more than they keep.
    large: bool,
    /// The connection has ended.
    gone: bool,
    affinity: Affinity,
}

struct Queue {
    id: u16,
    entries: usize,
    most: usize,
    with_kernel: usize,
}

/// What is remembered of an entry while its request is served.
struct Entry {
    queue: usize,
    unique: u64,
    commit: u64,
    /// The body, where the answer is written elsewhere meanwhile.
    body: Option<Area>,
}

fn slot() -> io::Result<Slot> {
    Ok(Slot { head: Area::new(HEAD)?, body: Area::new(BODY)? })
}

impl Worker {
    /// A ring for these queues, every one offered to the kernel.
    pub(super) fn new(
        server: Arc<Server>,
        device: &std::os::fd::OwnedFd,
        (bell, stop): (Arc<Bell>, Arc<AtomicBool>),
        (queues, affinity): (&[u16], Affinity),
    ) -> io::Result<Worker> {
        let queue = |id: &u16| Queue { id: *id, entries: 0, most: MOST_ENTRIES, with_kernel: 0 };
        let mut worker = Worker {
            ring: Uring::new(device, bell.clone())?,
            server,
            mailbox: Mailbox::new(bell),
            stop,
            queues: queues.iter().map(queue).collect(),
            entries: Vec::new(),
            answered: Vec::new(),
            committed: false,
            large: false,
            gone: false,
            affinity,
        };
        for queue in 0..worker.queues.len() {
            for _ in 0..ENTRIES {
                worker.register(queue)?;
                if let Some(Event::Refused(_, _, code)) = worker.ring.next_event()? {
                    return Err(io::Error::from_raw_os_error(code));
                }
            }
        }
        Ok(worker)
    }

    fn register(&mut self, queue: usize) -> io::Result<()> {
        let Some(of) = self.queues.get_mut(queue) else { return Ok(()) };
        let slot = slot()?;
        of.entries += 1;
        of.with_kernel += 1;
        self.entries.push(Entry { queue, unique: 0, commit: 0, body: None });
        self.ring.register(of.id, slot)?;
        Ok(())
    }

    /// Serves until the connection ends or a stop is asked for.
    pub(super) fn run(mut self) -> io::Result<()> {
        self.mailbox.own();
        loop {
            while let Some(event) = self.ring.next_event()? {
                match event {
                    Event::Request(entry, slot) => self.serve(entry, slot),
                    Event::Refused(entry, _, code) => self.refused(entry, code),
                    Event::Rung => {}
                }
                self.commit()?;
                if self.committed && self.ring.has_event() {
                    // Nobody waits for the answers to others.
                    self.ring.submit()?;
                    self.committed = false;
                }
            }
            if self.stop.load(Ordering::Acquire) || (self.gone && self.ring.outstanding() == 0) {
                return Ok(());
            }
            self.grow();
            self.wait()?;
        }
    }

    fn wait(&mut self) -> io::Result<()> {
        self.committed = false;
        if !self.large {
            return self.ring.wait();
        }
        if !self.ring.wait_for(A_WHILE)? {
            self.ring.shrink(KEPT);
            self.large = false;
        }
        Ok(())
    }

    /// Offers an entry to a queue that has none.
    fn grow(&mut self) {
        for queue in 0..self.queues.len() {
            let wanting = self
                .queues
                .get(queue)
                .is_some_and(|queue| queue.with_kernel == 0 && queue.entries < queue.most);
            if wanting && !self.gone {
                if let Err(e) = self.register(queue) {
                    log::warn!("one more request at a time: {e}");
                }
            }
        }
    }

    fn refused(&mut self, entry: usize, code: i32) {
        let queue = self.entries.get(entry).map_or(usize::MAX, |entry| entry.queue);
        if let Some(queue) = self.queues.get_mut(queue) {
            queue.with_kernel = queue.with_kernel.saturating_sub(1);
            queue.most = queue.most.min(queue.entries);
        }
        match code {
            sys::ENOTCONN | sys::ECONNABORTED | sys::ECANCELED | sys::ENODEV => self.gone = true,
            code => log::warn!("an answer was refused: {}", io::Error::from_raw_os_error(code)),
        }
    }

    fn serve(&mut self, index: usize, slot: Slot) {
        let Slot { head, body } = slot;
        let (Some(entry), Ok(header)) = (self.entries.get_mut(index), wire::header(&head)) else {
            return;
        };
        if let Some(queue) = self.queues.get_mut(entry.queue) {
            queue.with_kernel = queue.with_kernel.saturating_sub(1);
        }
        (entry.unique, entry.commit) = (header.unique, header.commit);
        self.large |= header.payload > KEPT;
        let ttl = self.server.ttl();
        let mut how = How { ttl, form: Form::Usual, limit: body.len(), plus: false };
        let payload = body.get(..header.payload).unwrap_or_default();
        let server = &*self.server;
        if let Some(request) = wire::long(&header, &head, payload) {
            if let Ok(Long::Readdir { size, .. } | Long::Readdirplus { size, .. }) = request {
                how.limit = size;
                how.plus = header.opcode == wire::op::READDIRPLUS;
            }
            let reply = Pending::new(&self.mailbox, index, (head, Some(body)), how);
            self.affinity.note(match request {
                Ok(Long::Read { size, .. }) => size,
                _ => 0,
            });
            guard(|| dispatch::long(server, &header, request, reply));
        } else {
            self.affinity.note(0);
            let request = wire::request(&header, &head, payload);
            let reply = Pending::new(&self.mailbox, index, (head, None), how);
            guard(|| dispatch::short(server, &header, request, reply));
            entry.body = Some(body);
        }
    }

    /// Hands over what was answered.
    fn commit(&mut self) -> io::Result<()> {
        self.mailbox.take(&mut self.answered);
        for answered in self.answered.drain(..) {
            let Answered { entry: index, mut head, body, result } = answered;
            let Some(entry) = self.entries.get_mut(index) else { continue };
            let length = result.unwrap_or(0);
            let body = match (body, entry.body.take()) {
                (Some(body), _) => body,
                (None, Some(mut body)) => {
                    let from = head.get(wire::HEADER..wire::HEADER + length).unwrap_or_default();
                    if let Some(to) = body.get_mut(..from.len()) {
                        to.copy_from_slice(from);
                    }
                    body
                }
                (None, None) => continue,
            };
            self.large |= length > KEPT;
            let result = result.and_then(|length| u32::try_from(length).map_err(|_| sys::EIO));
            wire::answer(&mut head, entry.unique, result);
            let Some(queue) = self.queues.get_mut(entry.queue) else { continue };
            queue.with_kernel += 1;
            self.ring.commit(index, queue.id, entry.commit, Slot { head, body })?;
            self.committed = true;
        }
        Ok(())
    }
}

/// Runs a handler. One that panics answers EIO, as its reply is dropped, and the thread goes on.
fn guard(handler: impl FnOnce()) {
    if catch_unwind(AssertUnwindSafe(handler)).is_err() {
        log::error!("a request was not served to its end");
    }
}

//! Answers on their way from whoever has them to the thread of the ring they belong to.

use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::encode::{self, Form};
use super::wire;
use crate::attr::Attr;
use crate::readdir::DirEntry;
use crate::server::answer::{Answer, Code, Fill, List, Reply};
use crate::sys::{self, Area, Bell};

/// Bytes of a slot's head: the kernel's part, and room for an answer behind it.
pub(super) const HEAD: usize = 4096;

thread_local! {
    /// The mailbox that this thread empties itself.
    static OWN: Cell<*const Mailbox> = const { Cell::new(std::ptr::null()) };
}

/// Where answers wait for the thread of a ring.
#[derive(Debug)]
pub(super) struct Mailbox {
    answered: Mutex<Vec<Answered>>,
    pub(super) bell: Arc<Bell>,
}

/// An answer to the request of one entry.
#[derive(Debug)]
pub(super) struct Answered {
    /// Which entry of the ring.
    pub(super) entry: usize,
    pub(super) head: Area,
    /// The body, where the answer has it; the answer is behind the header otherwise.
    pub(super) body: Option<Area>,
    /// Bytes of the answer.
    pub(super) result: Result<usize, Code>,
}

impl Mailbox {
    pub(super) fn new(bell: Arc<Bell>) -> Arc<Mailbox> {
        Arc::new(Mailbox { answered: Mutex::default(), bell })
    }

    /// Says that this thread looks into the mailbox after each request.
    pub(super) fn own(self: &Arc<Self>) {
        OWN.set(Arc::as_ptr(self));
    }

    fn put(&self, answered: Answered) {
        let first = {
            let mut all = self.answered.lock();
            all.push(answered);
            all.len() == 1
        };
        // Who comes second finds the bell rung, or the owner at work.
        if first && !std::ptr::eq(OWN.get(), self) {
            self.bell.ring();
        }
    }

    /// Moves what came into `into`.
    pub(super) fn take(&self, into: &mut Vec<Answered>) {
        into.append(&mut self.answered.lock());
    }
}

/// A request that waits for its answer; EIO when it is dropped.
#[derive(Debug)]
pub(super) struct Pending(Option<Held>);

#[derive(Debug)]
struct Held {
    mailbox: Arc<Mailbox>,
    entry: usize,
    head: Area,
    body: Option<Area>,
    how: How,
    /// Bytes of a listing so far.
    used: usize,
}

/// How a request is answered.
#[derive(Clone, Copy, Debug)]
pub(super) struct How {
    /// How long the kernel may keep what is said.
    pub(super) ttl: Duration,
    pub(super) form: Form,
    /// Bytes that are asked for at most.
    pub(super) limit: usize,
    /// Names are listed with their attributes.
    pub(super) plus: bool,
}

impl Held {
    fn room(&mut self) -> &mut [u8] {
        match &mut self.body {
            Some(body) => {
                let limit = self.how.limit.min(body.len());
                &mut body[..limit]
            }
            None => self.head.get_mut(wire::HEADER..).unwrap_or_default(),
        }
    }

    fn send(self, result: Result<usize, Code>) {
        let Held { mailbox, entry, head, body, .. } = self;
        mailbox.put(Answered { entry, head, body, result });
    }
}

impl Pending {
    pub(super) fn new(
        mailbox: &Arc<Mailbox>,
        entry: usize,
        (head, body): (Area, Option<Area>),
        how: How,
    ) -> Pending {
        Pending(Some(Held { mailbox: mailbox.clone(), entry, head, body, how, used: 0 }))
    }

    /// The same, answered in another form.
    pub(super) fn formed(mut self, form: Form) -> Pending {
        if let Some(held) = &mut self.0 {
            held.how.form = form;
        }
        self
    }

    fn send(mut self, result: Result<usize, Code>) {
        if let Some(held) = self.0.take() {
            held.send(result);
        }
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if let Some(held) = self.0.take() {
            log::error!("a request was left without an answer");
            held.send(Err(sys::EIO));
        }
    }
}

impl Reply for Pending {
    fn answer(mut self, answer: Answer<'_>) {
        let Some(held) = &mut self.0 else { return };
        let how = held.how;
        let written = encode::answer(held.room(), &answer, how.form, how.ttl);
        self.send(written.ok_or(sys::EIO));
    }

    fn error(self, code: Code) {
        self.send(Err(code));
    }
}

impl Fill for Pending {
    fn fill(mut self, size: usize, read: impl FnOnce(&mut [u8]) -> Result<usize, Code>) {
        let Some(held) = &mut self.0 else { return };
        let result = match held.room().get_mut(..size) {
            Some(room) => read(room),
            None => Err(sys::EIO),
        };
        self.send(result);
    }

    fn try_fill(
        mut self,
        size: usize,
        read: impl FnOnce(&mut [u8]) -> Option<usize>,
    ) -> Option<Self> {
        let held = self.0.as_mut()?;
        let Some(count) = held.room().get_mut(..size).and_then(read) else { return Some(self) };
        self.send(Ok(count));
        None
    }
}

impl List for Pending {
    fn add(&mut self, next: u64, entry: &DirEntry, attr: &Attr) -> bool {
        let Some(held) = &mut self.0 else { return true };
        let (used, how) = (held.used, held.how);
        let plus = how.plus.then_some((attr, how.ttl));
        let room = held.room().get_mut(used..).unwrap_or_default();
        match encode::dirent(room, next, entry, plus) {
            Some(length) => {
                held.used += length;
                false
            }
            None => true,
        }
    }

    fn done(self) {
        let used = self.0.as_ref().map_or(0, |held| held.used);
        self.send(Ok(used));
    }
}

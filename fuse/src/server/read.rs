//! Reads: from the page cache at once, from the disk on another thread.
//!
//! The classic transport hands pages of the page cache to the kernel as they are (splice(2)), where there are enough of
//! them to make up for its calls. A ring has no such way: its answers lie in memory that the kernel was told of.

use std::cell::RefCell;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use fuser::ReplyData;

use super::Server;
use super::answer::{Answer, Code, Fill, Reply};
use super::handlers::checked;
use super::reply::Sent;
use crate::inode::Ino;
use crate::stats::Op;
use crate::sys::{self, Pipe};

/// Bytes from which an answer goes through a pipe: for less a copy is cheaper than the calls.
const LEAST_PASSED: usize = 32 * 1024;

thread_local! {
    /// The pipe of this thread, made when it is first needed.
    static PIPE: RefCell<Option<Pipe>> = const { RefCell::new(None) };
}

impl Server {
    pub(crate) fn read(&self, node: Ino, (offset, size): (u64, usize), reply: impl Fill) {
        let timed = self.timed(Op::Read);
        let whole = reply.passes(size).then(|| timed.cached(node, offset, size)).flatten();
        let reply = match whole {
            Some((data, count)) => reply.pass(data.fd.as_fd(), offset, count),
            None => Some(reply),
        };
        let Some(reply) = reply else { return };
        let reply = reply.try_fill(size, |buffer| timed.read_cached(node, offset, buffer));
        let Some(reply) = reply else { return };
        timed.leave();
        self.dispatch(Op::Read, true, move |core| {
            reply.fill(size, |buffer| checked(core.read(node, offset, buffer)));
        });
    }
}

/// The answer to a read of the classic transport, which may go past fuser.
pub(super) struct Read {
    pub(super) sent: Sent<ReplyData>,
    pub(super) unique: u64,
    pub(super) device: Arc<OwnedFd>,
}

impl Read {
    /// Sends an answer of `count` bytes of `file` (`struct fuse_out_header` of linux/fuse.h, then the data).
    fn splice(&self, file: BorrowedFd<'_>, offset: u64, count: usize) -> io::Result<()> {
        let mut head = [0; 16];
        let length = u32::try_from(head.len() + count).map_err(io::Error::other)?;
        head[..4].copy_from_slice(&length.to_ne_bytes());
        head[8..].copy_from_slice(&self.unique.to_ne_bytes());
        PIPE.with_borrow_mut(|held| {
            let pipe = match held.take() {
                Some(pipe) => pipe,
                None => Pipe::new()?,
            };
            pipe.carry(&head, (file, offset, count), &*self.device)?;
            *held = Some(pipe);
            Ok(())
        })
    }
}

impl Reply for Read {
    fn answer(self, answer: Answer<'_>) {
        self.sent.answer(answer);
    }

    fn error(self, code: Code) {
        self.sent.error(code);
    }
}

impl Fill for Read {
    fn fill(self, size: usize, read: impl FnOnce(&mut [u8]) -> Result<usize, Code>) {
        self.sent.fill(size, read);
    }

    fn try_fill(self, size: usize, read: impl FnOnce(&mut [u8]) -> Option<usize>) -> Option<Self> {
        let Read { sent, unique, device } = self;
        sent.try_fill(size, read).map(|sent| Read { sent, unique, device })
    }

    fn passes(&self, size: usize) -> bool {
        (LEAST_PASSED..=Pipe::MOST).contains(&size)
    }

    fn pass(self, file: BorrowedFd<'_>, offset: u64, count: usize) -> Option<Self> {
        match self.splice(file, offset, count) {
            Err(e) if !matches!(sys::errno(&e), sys::ENOENT | sys::ENODEV) => {
                log::debug!("a read is copied: {e}");
                return Some(self);
            }
            // Sent, or nobody waits for it any more.
            _ => {}
        }
        // Dropped, it would answer once more. What it holds is a count of the device's users: the device stays open until
        // the process ends, as it does for the other descriptors of it.
        std::mem::forget(self.sent.reply);
        None
    }
}

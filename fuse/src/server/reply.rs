//! How the core's answers are put into fuser's replies.

use std::cell::RefCell;
use std::time::Duration;

use fuser::{
    Errno, FopenFlags, Generation, INodeNo, ReplyData, ReplyDirectory, ReplyDirectoryPlus,
    ReplyEmpty, ReplyEntry, ReplyWrite, ReplyXattr, Request,
};

use super::{INLINE_COPY, Server, checked, convert, fail};
use crate::attr::Attr;
use crate::inode::Ino;
use crate::namei::Entry;
use crate::owner::Caller;
use crate::stats::Op;
use crate::{Overlay, Result, sys};

pub(super) fn generation(attr: &Attr) -> Generation {
    Generation(u64::from(attr.generation))
}

thread_local! {
    /// The buffer of the reads of this thread.
    pub(super) static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

pub(super) fn caller(request: &Request, umask: u32) -> Caller {
    Caller { uid: request.uid(), gid: request.gid(), umask }
}

/// The user who asks. On a mount that takes other owners the kernel names nobody but the maker of a
/// new object (FUSE_ALLOW_IDMAP); the process tells then, or else it is somebody without privilege.
pub(super) fn asker(request: &Request) -> Caller {
    let told = caller(request, 0);
    if told.uid != u32::MAX {
        return told;
    }
    let (uid, gid) = sys::ids_of(request.pid()).unwrap_or((u32::MAX, u32::MAX));
    Caller { uid, gid, ..told }
}

pub(super) fn ino(ino: INodeNo) -> Ino {
    Ino(ino.0)
}

pub(super) fn reply_empty(reply: ReplyEmpty, result: Result<()>) {
    match checked(result) {
        Ok(()) => reply.ok(),
        Err(code) => reply.error(code),
    }
}

pub(super) fn reply_write(reply: ReplyWrite, result: Result<u64>) {
    match checked(result) {
        Ok(count) => reply.written(u32::try_from(count).unwrap_or(u32::MAX)),
        Err(code) => reply.error(code),
    }
}

/// xattr values and lists: the size alone when none was given, ERANGE when it does not fit.
pub(super) fn reply_xattr(reply: ReplyXattr, size: u32, result: Result<Vec<u8>>) {
    match checked(result) {
        Ok(value) if size == 0 => reply.size(u32::try_from(value.len()).unwrap_or(u32::MAX)),
        Ok(value) if value.len() > size as usize => reply.error(Errno::from_i32(sys::ERANGE)),
        Ok(value) => reply.data(&value),
        Err(code) => reply.error(code),
    }
}

pub(super) fn reply_read(core: &Overlay, reply: ReplyData, ino: Ino, offset: u64, size: u32) {
    BUFFER.with_borrow_mut(|buffer| {
        buffer.resize(size as usize, 0);
        match checked(core.read(ino, offset, buffer)) {
            Ok(count) => reply.data(&buffer[..count]),
            Err(code) => reply.error(code),
        }
    });
}

impl Server {
    pub(super) fn reply_entry(&self, reply: ReplyEntry, result: Result<Entry>) {
        match checked(result) {
            Ok(Entry { attr }) => {
                reply.entry(&self.ttl, &convert::attr(&attr), generation(&attr));
            }
            Err(code) => reply.error(code),
        }
    }

    /// Reads what the page cache has here, and the rest on another thread.
    pub(super) fn serve_read(&self, ino: Ino, (offset, size): (u64, u32), reply: ReplyData) {
        let timed = self.timed(Op::Read);
        let reply = BUFFER.with_borrow_mut(|buffer| {
            buffer.resize(size as usize, 0);
            match timed.read_cached(ino, offset, buffer) {
                Some(count) => {
                    reply.data(&buffer[..count]);
                    None
                }
                None => Some(reply),
            }
        });
        if let Some(reply) = reply {
            timed.leave();
            self.dispatch(Op::Read, true, move |core| reply_read(core, reply, ino, offset, size));
        }
    }

    /// Copies between two files, at most what the reply's 32 bits can count.
    pub(super) fn serve_copy(&self, from: (Ino, u64), to: (Ino, u64), len: u64, reply: ReplyWrite) {
        let len = len.min(1 << 30);
        let job = move |core: &Overlay| {
            reply_write(reply, core.copy_file_range(from.0, from.1, to.0, to.1, len));
        };
        if self.copies(INodeNo(to.0.0)) {
            self.defer(Op::CopyFileRange, to.0, job);
        } else {
            self.dispatch(Op::CopyFileRange, len > INLINE_COPY, job);
        }
    }

    pub(super) fn file_flags(&self) -> FopenFlags {
        if self.is_live() { FopenFlags::empty() } else { FopenFlags::FOPEN_KEEP_CACHE }
    }
}

/// The names of a listing from a position on, as many as fit.
pub(super) fn reply_listing(core: &Overlay, mut reply: ReplyDirectory, handle: u64, offset: u64) {
    let listing = match checked(core.read_dir_at(handle, offset)) {
        Ok(listing) => listing,
        Err(code) => return reply.error(code),
    };
    let start = usize::try_from(offset).unwrap_or(usize::MAX);
    for (at, entry) in listing.iter().enumerate().skip(start) {
        let next = at as u64 + 1;
        if reply.add(INodeNo(entry.ino.0), next, convert::kind(entry.kind), &entry.name) {
            break;
        }
    }
    reply.ok();
}

/// The names of a listing with their attributes. A lookup stays counted for those that fit.
pub(super) fn reply_listing_plus(
    core: &Overlay,
    mut reply: ReplyDirectoryPlus,
    (dir, handle, offset): (Ino, u64, u64),
    ttl: Duration,
) {
    let listing = match checked(core.read_dir_at(handle, offset)) {
        Ok(listing) => listing,
        Err(code) => return reply.error(code),
    };
    let start = usize::try_from(offset).unwrap_or(usize::MAX);
    let mut added = false;
    for (at, entry) in listing.iter().enumerate().skip(start) {
        let is_dot = entry.name == "." || entry.name == "..";
        let attr = match core.entry_of(dir, entry) {
            Ok(Some(attr)) => attr,
            Ok(None) => continue,
            Err(e) => {
                // What was put in so far is valid; the error comes with the next request.
                if added {
                    break;
                }
                return reply.error(fail(&e));
            }
        };
        let (number, next) = (INodeNo(attr.ino.0), at as u64 + 1);
        if reply.add(number, next, &entry.name, &ttl, &convert::attr(&attr), generation(&attr)) {
            if !is_dot {
                core.forget(attr.ino, 1);
            }
            break;
        }
        added = true;
    }
    reply.ok();
}

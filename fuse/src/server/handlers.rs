//! One method a request: call the core, answer. Knows no transport.

use std::ffi::OsStr;

use super::answer::{Answer, Asker, Code, List, Opened, Reply};
use super::{INLINE_COPY, Server, fail};
use crate::attr::{Attr, SetAttr};
use crate::error::{Error, Result};
use crate::inode::Ino;
use crate::namei::Entry;
use crate::stats::Op;
use crate::{Overlay, sys};

/// Copies at most what the 32 bits of an answer can count.
const LONGEST_COPY: u64 = 1 << 30;

/// What is asked of a new object beside its name.
#[derive(Clone, Copy, Debug)]
pub(crate) struct New {
    /// Type and permissions.
    pub(crate) mode: u32,
    /// The caller's umask.
    pub(crate) umask: u32,
}

/// What is asked of an object's attributes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Change {
    /// What to set.
    pub(crate) set: SetAttr,
    /// Whether set-id bits fall, where the transport tells.
    pub(crate) kills: Option<bool>,
}

impl Server {
    pub(crate) fn lookup(&self, parent: Ino, name: &OsStr, reply: impl Reply) {
        if name == "." || name == ".." {
            // No name, but how the kernel asks for the object of a file handle.
            return entry(reply, self.timed(Op::Lookup).lookup_handle(parent, name == ".."));
        }
        match self.timed(Op::Lookup).lookup(parent, name) {
            Err(e) if e.errno() == sys::ENOENT && !self.is_live() => reply.answer(Answer::Absent),
            result => entry(reply, result),
        }
    }

    pub(crate) fn forget(&self, node: Ino, count: u64) {
        self.timed(Op::Forget).forget(node, count);
    }

    pub(crate) fn getattr(&self, node: Ino, reply: impl Reply) {
        attr(reply, self.timed(Op::Getattr).getattr(node));
    }

    pub(crate) fn setattr(&self, asker: Asker, node: Ino, change: Change, reply: impl Reply) {
        let set = change.set;
        let mut caller = asker.caller(0);
        if change.kills.is_none()
            && (set.size.is_some() || set.is_nothing())
            && self.core.may_have_set_id(node)
        {
            caller = asker.known();
        }
        self.change(Op::Setattr, node, move |core| attr(reply, core.setattr(caller, node, &set)));
    }

    pub(crate) fn readlink(&self, node: Ino, reply: impl Reply) {
        match checked(self.timed(Op::Readlink).readlink(node)) {
            Ok(target) => reply.answer(Answer::Data(target.as_encoded_bytes())),
            Err(code) => reply.error(code),
        }
    }

    pub(crate) fn mknod(
        &self,
        asker: Asker,
        (parent, name): (Ino, &OsStr),
        (new, rdev): (New, u32),
        reply: impl Reply,
    ) {
        let caller = asker.caller(new.umask);
        self.change_names(Op::Mknod, (Some(parent), name), move |core, name| {
            entry(reply, core.mknod(caller, parent, name, new.mode, rdev));
        });
    }

    pub(crate) fn mkdir(
        &self,
        asker: Asker,
        (parent, name): (Ino, &OsStr),
        new: New,
        reply: impl Reply,
    ) {
        let caller = asker.caller(new.umask);
        self.change_names(Op::Mkdir, (Some(parent), name), move |core, name| {
            entry(reply, core.mkdir(caller, parent, name, new.mode));
        });
    }

    pub(crate) fn unlink(&self, parent: Ino, name: &OsStr, reply: impl Reply) {
        let timed = self.timed(Op::Unlink);
        if self.is_tight() {
            timed.leave();
            return self.change_names(Op::Unlink, (None, name), move |core, name| {
                empty(reply, core.unlink(parent, name));
            });
        }
        match timed.unlink_within(parent, name, INLINE_COPY) {
            Ok(Some(copied)) => {
                timed.leave();
                let name = name.to_owned();
                self.defer(Op::Unlink, copied, move |core| {
                    empty(reply, core.unlink(parent, &name))
                });
            }
            result => empty(reply, result.map(drop)),
        }
    }

    pub(crate) fn rmdir(&self, parent: Ino, name: &OsStr, reply: impl Reply) {
        self.change_names(Op::Rmdir, (None, name), move |core, name| {
            empty(reply, core.rmdir(parent, name));
        });
    }

    pub(crate) fn symlink(
        &self,
        asker: Asker,
        (parent, name): (Ino, &OsStr),
        target: &OsStr,
        reply: impl Reply,
    ) {
        let (caller, target) = (asker.caller(0), target.to_owned());
        self.change_names(Op::Symlink, (Some(parent), name), move |core, name| {
            entry(reply, core.symlink(caller, parent, name, &target));
        });
    }

    pub(crate) fn rename(
        &self,
        from: (Ino, &OsStr),
        to: (Ino, &OsStr),
        flags: u32,
        reply: impl Reply,
    ) {
        let timed = self.timed(Op::Rename);
        let tried = match self.is_tight() {
            true => Ok(Some(from.0)),
            false => timed.rename_within(from, to, flags, INLINE_COPY),
        };
        match tried {
            Ok(Some(waited)) => {
                timed.leave();
                let (name, new_name) = (from.1.to_owned(), to.1.to_owned());
                let (dir, new_dir) = (from.0, to.0);
                self.defer(Op::Rename, waited, move |core| {
                    empty(reply, core.rename(dir, &name, new_dir, &new_name, flags));
                });
            }
            result => empty(reply, result.map(drop)),
        }
    }

    pub(crate) fn link(&self, node: Ino, (parent, name): (Ino, &OsStr), reply: impl Reply) {
        let name = name.to_owned();
        self.change(Op::Link, node, move |core| entry(reply, core.link(node, parent, &name)));
    }

    pub(crate) fn open(&self, asker: Asker, node: Ino, flags: i32, reply: impl Reply) {
        if self.is_handleless() {
            // The kernel asks once and never again.
            return reply.error(sys::ENOSYS);
        }
        let writes = flags & sys::O_ACCMODE != sys::O_RDONLY;
        match checked(self.timed(Op::Open).open_file(asker.caller(0), node, flags)) {
            Ok(()) => reply.answer(Answer::Opened(self.opened(node, writes))),
            Err(code) => reply.error(code),
        }
    }

    pub(crate) fn create(
        &self,
        asker: Asker,
        (parent, name): (Ino, &OsStr),
        new: New,
        reply: impl Reply,
    ) {
        if self.is_handleless() {
            // The kernel makes a node then, and opens it by itself.
            return reply.error(sys::ENOSYS);
        }
        let caller = asker.caller(new.umask);
        if self.is_tight() {
            let opened = self.opened_here();
            return self.change_names(Op::Create, (Some(parent), name), move |core, name| {
                created(reply, core.create(caller, parent, name, new.mode), |_| opened);
            });
        }
        let made = self.timed(Op::Create).create(caller, parent, name, new.mode);
        created(reply, made, |ino| self.opened(ino, true));
    }

    pub(crate) fn tmpfile(&self, asker: Asker, parent: Ino, new: New, reply: impl Reply) {
        let caller = asker.caller(new.umask);
        if self.is_tight() {
            let opened = self.opened_here();
            return self.dispatch(Op::Tmpfile, true, move |core| {
                created(reply, core.tmpfile(caller, parent, new.mode), |_| opened);
            });
        }
        let made = self.timed(Op::Tmpfile).tmpfile(caller, parent, new.mode);
        created(reply, made, |ino| self.opened(ino, true));
    }

    /// Reads what the page cache has here, and the rest on another thread.
    /// `kill`: the set-id bits fall; `cached`: these are pages that were written to in memory.
    pub(crate) fn write(
        &self,
        node: Ino,
        (offset, data): (u64, &[u8]),
        (kill, cached): (bool, bool),
        reply: impl Reply,
    ) {
        if !self.copies(node) {
            let result = write(&self.timed(Op::Write), node, (offset, data), (kill, cached));
            return written(reply, result);
        }
        let data = data.to_vec();
        self.defer(Op::Write, node, move |core| {
            written(reply, write(core, node, (offset, &data), (kill, cached)));
        });
    }

    pub(crate) fn release(&self, node: Ino, reply: impl Reply) {
        if let Some(backings) = self.backings.get() {
            backings.release(node);
        }
        self.timed(Op::Release).release(node);
        reply.answer(Answer::Done);
    }

    pub(crate) fn fsync(&self, node: Ino, data_only: bool, reply: impl Reply) {
        self.dispatch(Op::Fsync, true, move |core| empty(reply, core.fsync(node, data_only)));
    }

    pub(crate) fn opendir(&self, node: Ino, reply: impl Reply) {
        match checked(self.timed(Op::Opendir).open_dir(node)) {
            Ok(handle) => {
                let flags = self.dir_flags();
                reply.answer(Answer::Opened(Opened { handle, flags, backing: None }));
            }
            Err(code) => reply.error(code),
        }
    }

    /// The names of a listing from a position on, as many as fit.
    pub(crate) fn readdir(&self, handle: u64, offset: u64, mut reply: impl List) {
        self.dispatch(Op::Readdir, self.core.listing_is_long(handle), move |core| {
            let listing = match checked(core.read_dir_at(handle, offset)) {
                Ok(listing) => listing,
                Err(code) => return reply.error(code),
            };
            let start = usize::try_from(offset).unwrap_or(usize::MAX);
            for (at, entry) in listing.iter().enumerate().skip(start) {
                if reply.add(at as u64 + 1, entry, &Attr::absent()) {
                    break;
                }
            }
            reply.done();
        });
    }

    /// The names of a listing with their attributes. A lookup stays counted for those that fit.
    pub(crate) fn readdirplus(&self, dir: Ino, (handle, offset): (u64, u64), reply: impl List) {
        self.dispatch(Op::Readdirplus, self.core.listing_is_long(handle), move |core| {
            list_plus(core, (dir, handle, offset), reply);
        });
    }

    pub(crate) fn releasedir(&self, handle: u64, reply: impl Reply) {
        self.timed(Op::Releasedir).release_dir(handle);
        reply.answer(Answer::Done);
    }

    pub(crate) fn fsyncdir(&self, node: Ino, data_only: bool, reply: impl Reply) {
        self.dispatch(Op::Fsyncdir, true, move |core| empty(reply, core.fsyncdir(node, data_only)));
    }

    pub(crate) fn statfs(&self, reply: impl Reply) {
        match checked(self.timed(Op::Statfs).statfs()) {
            Ok(stat) => reply.answer(Answer::Statfs(&stat)),
            Err(code) => reply.error(code),
        }
    }

    pub(crate) fn syncfs(&self, reply: impl Reply) {
        self.dispatch(Op::Syncfs, true, move |core| empty(reply, core.syncfs()));
    }

    pub(crate) fn setxattr(
        &self,
        node: Ino,
        (name, value): (&OsStr, &[u8]),
        flags: i32,
        reply: impl Reply,
    ) {
        if self.has_no_xattrs() {
            return reply.error(sys::ENOSYS);
        }
        let (name, value) = (name.to_owned(), value.to_vec());
        self.change(Op::Setxattr, node, move |core| {
            empty(reply, core.setxattr(node, &name, &value, flags));
        });
    }

    pub(crate) fn getxattr(&self, node: Ino, name: &OsStr, size: u32, reply: impl Reply) {
        if self.has_no_xattrs() {
            return reply.error(sys::ENOSYS);
        }
        sized(reply, size, self.timed(Op::Getxattr).getxattr(node, name));
    }

    pub(crate) fn listxattr(&self, node: Ino, size: u32, reply: impl Reply) {
        if self.has_no_xattrs() {
            return reply.error(sys::ENOSYS);
        }
        sized(reply, size, self.timed(Op::Listxattr).listxattr(node));
    }

    pub(crate) fn removexattr(&self, node: Ino, name: &OsStr, reply: impl Reply) {
        if self.has_no_xattrs() {
            return reply.error(sys::ENOSYS);
        }
        let name = name.to_owned();
        self.change(Op::Removexattr, node, move |core| empty(reply, core.removexattr(node, &name)));
    }

    pub(crate) fn ioctl(
        &self,
        node: Ino,
        (command, input): (u32, &[u8]),
        out_size: usize,
        reply: impl Reply,
    ) {
        let input = input.to_vec();
        self.change(Op::Ioctl, node, move |core| {
            match checked(core.ioctl(node, command, &input, out_size)) {
                Ok(data) => reply.answer(Answer::Ioctl(&data)),
                Err(code) => reply.error(code),
            }
        });
    }

    pub(crate) fn fallocate(
        &self,
        node: Ino,
        mode: i32,
        (offset, length): (u64, u64),
        reply: impl Reply,
    ) {
        self.change(Op::Fallocate, node, move |core| {
            empty(reply, core.fallocate(node, mode, offset, length));
        });
    }

    pub(crate) fn lseek(&self, node: Ino, offset: i64, whence: i32, reply: impl Reply) {
        match checked(self.timed(Op::Lseek).lseek(node, offset, whence)) {
            Ok(at) => reply.answer(Answer::Offset(at)),
            Err(code) => reply.error(code),
        }
    }

    pub(crate) fn copy_file_range(
        &self,
        from: (Ino, u64),
        to: (Ino, u64),
        length: u64,
        reply: impl Reply,
    ) {
        let length = length.min(LONGEST_COPY);
        let job = move |core: &Overlay| {
            written(reply, core.copy_file_range(from.0, from.1, to.0, to.1, length));
        };
        if self.copies(to.0) {
            self.defer(Op::CopyFileRange, to.0, job);
        } else {
            self.dispatch(Op::CopyFileRange, length > INLINE_COPY, job);
        }
    }
}

/// Of pages the kernel takes for written what no error was told of, so they are written whole or with an error.
fn write(
    core: &Overlay,
    node: Ino,
    (offset, data): (u64, &[u8]),
    (kill, cached): (bool, bool),
) -> Result<u64> {
    let mut done = core.write(node, offset, data, kill)?;
    while cached && done < data.len() {
        match core.write(node, offset + done as u64, &data[done..], kill)? {
            0 => return Err(Error::code("write", "", sys::ENOSPC)),
            more => done += more,
        }
    }
    Ok(done as u64)
}

fn list_plus(core: &Overlay, (dir, handle, offset): (Ino, u64, u64), mut reply: impl List) {
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
            // What was put in so far is valid; the error comes with the next request.
            Err(_) if added => break,
            Err(e) => return reply.error(fail(&e)),
        };
        if reply.add(at as u64 + 1, entry, &attr) {
            if !is_dot {
                core.forget(attr.ino, 1);
            }
            break;
        }
        added = true;
    }
    reply.done();
}

/// Gives an error's number, or passes the value on.
pub(super) fn checked<T>(result: Result<T>) -> std::result::Result<T, Code> {
    result.map_err(|error| fail(&error))
}

fn entry(reply: impl Reply, result: Result<Entry>) {
    match checked(result) {
        Ok(Entry { attr }) => reply.answer(Answer::Entry(&attr)),
        Err(code) => reply.error(code),
    }
}

fn created(reply: impl Reply, result: Result<Entry>, opened: impl FnOnce(Ino) -> Opened) {
    match checked(result) {
        Ok(Entry { attr }) => reply.answer(Answer::Created(&attr, opened(attr.ino))),
        Err(code) => reply.error(code),
    }
}

fn attr(reply: impl Reply, result: Result<Attr>) {
    match checked(result) {
        Ok(attr) => reply.answer(Answer::Attr(&attr)),
        Err(code) => reply.error(code),
    }
}

fn empty(reply: impl Reply, result: Result<()>) {
    match checked(result) {
        Ok(()) => reply.answer(Answer::Done),
        Err(code) => reply.error(code),
    }
}

fn written(reply: impl Reply, result: Result<u64>) {
    match checked(result) {
        Ok(count) => reply.answer(Answer::Written(u32::try_from(count).unwrap_or(u32::MAX))),
        Err(code) => reply.error(code),
    }
}

/// xattr values and lists: the size alone when none was given, ERANGE when it does not fit.
fn sized(reply: impl Reply, size: u32, result: Result<Vec<u8>>) {
    match checked(result) {
        Ok(value) if size == 0 => {
            reply.answer(Answer::Size(u32::try_from(value.len()).unwrap_or(u32::MAX)));
        }
        Ok(value) if value.len() > size as usize => reply.error(sys::ERANGE),
        Ok(value) => reply.answer(Answer::Data(&value)),
        Err(code) => reply.error(code),
    }
}

//! One method a request: decode, call, reply.

use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::time::SystemTime;

use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, FopenFlags, Generation,
    INodeNo, IoctlFlags, KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate,
    ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek,
    ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};

use super::reply::{
    asker, caller, generation, ino, reply_empty, reply_listing, reply_listing_plus, reply_write,
    reply_xattr,
};
use super::{INLINE_COPY, Server, checked, convert};
use crate::attr::{Attr, SetAttr};
use crate::namei::Entry;
use crate::stats::Op;
use crate::sys;

impl fuser::Filesystem for Server {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        self.negotiate(config);
        Ok(())
    }

    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if name == "." || name == ".." {
            // No name, but how the kernel asks for the object of a file handle.
            let result = self.timed(Op::Lookup).lookup_handle(ino(parent), name == "..");
            return self.reply_entry(reply, result);
        }
        match self.timed(Op::Lookup).lookup(ino(parent), name) {
            Err(e) if e.errno() == sys::ENOENT && !self.is_live() => {
                reply.entry(&self.ttl, &convert::attr(&Attr::absent()), Generation(0))
            }
            result => self.reply_entry(reply, result),
        }
    }

    fn forget(&self, _request: &Request, node: INodeNo, count: u64) {
        self.timed(Op::Forget).forget(ino(node), count);
    }

    fn getattr(
        &self,
        _request: &Request,
        node: INodeNo,
        _fh: Option<FileHandle>,
        reply: ReplyAttr,
    ) {
        match checked(self.timed(Op::Getattr).getattr(ino(node))) {
            Ok(attr) => reply.attr(&self.ttl, &convert::attr(&attr)),
            Err(code) => reply.error(code),
        }
    }

    fn setattr(
        &self,
        request: &Request,
        node: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let times = (atime.map(convert::set_time), mtime.map(convert::set_time));
        let set = SetAttr { mode, uid, gid, size, atime: times.0, mtime: times.1 };
        let (mut caller, ttl) = (caller(request, 0), self.ttl);
        if (size.is_some() || set.is_nothing()) && self.core.may_have_set_id(ino(node)) {
            caller = asker(request);
        }
        self.change(Op::Setattr, node, move |core| {
            match checked(core.setattr(caller, ino(node), &set)) {
                Ok(attr) => reply.attr(&ttl, &convert::attr(&attr)),
                Err(code) => reply.error(code),
            }
        });
    }

    fn readlink(&self, _request: &Request, node: INodeNo, reply: ReplyData) {
        match checked(self.timed(Op::Readlink).readlink(ino(node))) {
            Ok(target) => reply.data(target.as_encoded_bytes()),
            Err(code) => reply.error(code),
        }
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        self.reply_entry(
            reply,
            self.timed(Op::Mknod).mknod(caller(request, umask), ino(parent), name, mode, rdev),
        );
    }

    fn mkdir(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        reply: ReplyEntry,
    ) {
        self.reply_entry(
            reply,
            self.timed(Op::Mkdir).mkdir(caller(request, umask), ino(parent), name, mode),
        );
    }

    fn unlink(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let timed = self.timed(Op::Unlink);
        match timed.unlink_within(ino(parent), name, INLINE_COPY) {
            Ok(Some(copied)) => {
                timed.leave();
                let name = name.to_owned();
                self.defer(Op::Unlink, copied, move |core| {
                    reply_empty(reply, core.unlink(ino(parent), &name));
                });
            }
            result => reply_empty(reply, result.map(drop)),
        }
    }

    fn rmdir(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        reply_empty(reply, self.timed(Op::Rmdir).rmdir(ino(parent), name));
    }

    fn symlink(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        let result = self.timed(Op::Symlink).symlink(
            caller(request, 0),
            ino(parent),
            name,
            target.as_os_str(),
        );
        self.reply_entry(reply, result);
    }

    fn rename(
        &self,
        _request: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let (from, to, flags) = (ino(parent), ino(newparent), flags.bits());
        let timed = self.timed(Op::Rename);
        match timed.rename_within((from, name), (to, newname), flags, INLINE_COPY) {
            Ok(Some(copied)) => {
                timed.leave();
                let (name, newname) = (name.to_owned(), newname.to_owned());
                self.defer(Op::Rename, copied, move |core| {
                    reply_empty(reply, core.rename(from, &name, to, &newname, flags));
                });
            }
            result => reply_empty(reply, result.map(drop)),
        }
    }

    fn link(
        &self,
        _request: &Request,
        node: INodeNo,
        newparent: INodeNo,
        newname: &OsStr,
        reply: ReplyEntry,
    ) {
        let (name, ttl) = (newname.to_owned(), self.ttl);
        self.change(Op::Link, node, move |core| {
            match checked(core.link(ino(node), ino(newparent), &name)) {
                Ok(Entry { attr }) => reply.entry(&ttl, &convert::attr(&attr), generation(&attr)),
                Err(code) => reply.error(code),
            }
        });
    }

    fn open(&self, request: &Request, node: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        match checked(self.timed(Op::Open).open_file(caller(request, 0), ino(node), flags.0)) {
            Ok(()) => reply.opened(FileHandle(0), self.file_flags()),
            Err(code) => reply.error(code),
        }
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        match checked(self.timed(Op::Create).create(
            caller(request, umask),
            ino(parent),
            name,
            mode,
        )) {
            Ok(entry) => {
                let (attr, generation) = (convert::attr(&entry.attr), generation(&entry.attr));
                reply.created(&self.ttl, &attr, generation, FileHandle(0), self.file_flags());
            }
            Err(code) => reply.error(code),
        }
    }

    fn read(
        &self,
        _request: &Request,
        node: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.serve_read(ino(node), (offset, size), reply);
    }

    fn write(
        &self,
        _request: &Request,
        node: INodeNo,
        _fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let kill = write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID);
        if !self.copies(node) {
            let result = self.timed(Op::Write).write(ino(node), offset, data, kill);
            return reply_write(reply, result.map(|n| n as u64));
        }
        let data = data.to_vec();
        self.defer(Op::Write, ino(node), move |core| {
            reply_write(reply, core.write(ino(node), offset, &data, kill).map(|n| n as u64));
        });
    }

    fn flush(
        &self,
        _request: &Request,
        _node: INodeNo,
        _fh: FileHandle,
        _owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        // The kernel asks once and never again: nothing is buffered here.
        reply.error(Errno::ENOSYS);
    }

    fn release(
        &self,
        _request: &Request,
        node: INodeNo,
        _fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.timed(Op::Release).release(ino(node));
        reply.ok();
    }

    fn fsync(
        &self,
        _request: &Request,
        node: INodeNo,
        _fh: FileHandle,
        datasync: bool,
        reply: ReplyEmpty,
    ) {
        self.dispatch(Op::Fsync, true, move |core| {
            reply_empty(reply, core.fsync(ino(node), datasync))
        });
    }

    fn opendir(&self, _request: &Request, node: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let flags = FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_CACHE_DIR;
        let flags = if self.is_live() { FopenFlags::empty() } else { flags };
        match checked(self.timed(Op::Opendir).open_dir(ino(node))) {
            Ok(handle) => reply.opened(FileHandle(handle), flags),
            Err(code) => reply.error(code),
        }
    }

    fn readdir(
        &self,
        _request: &Request,
        _node: INodeNo,
        fh: FileHandle,
        offset: u64,
        reply: ReplyDirectory,
    ) {
        self.dispatch(Op::Readdir, self.core.listing_is_long(fh.0), move |core| {
            reply_listing(core, reply, fh.0, offset);
        });
    }

    fn readdirplus(
        &self,
        _request: &Request,
        node: INodeNo,
        fh: FileHandle,
        offset: u64,
        reply: ReplyDirectoryPlus,
    ) {
        let (ttl, dir) = (self.ttl, ino(node));
        self.dispatch(Op::Readdirplus, self.core.listing_is_long(fh.0), move |core| {
            reply_listing_plus(core, reply, (dir, fh.0, offset), ttl);
        });
    }

    fn releasedir(
        &self,
        _request: &Request,
        _node: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.timed(Op::Releasedir).release_dir(fh.0);
        reply.ok();
    }

    fn fsyncdir(
        &self,
        _request: &Request,
        node: INodeNo,
        _fh: FileHandle,
        datasync: bool,
        reply: ReplyEmpty,
    ) {
        self.dispatch(Op::Fsyncdir, true, move |core| {
            reply_empty(reply, core.fsyncdir(ino(node), datasync))
        });
    }

    fn statfs(&self, _request: &Request, _node: INodeNo, reply: ReplyStatfs) {
        match checked(self.timed(Op::Statfs).statfs()) {
            Ok(s) => reply.statfs(
                s.blocks, s.bfree, s.bavail, s.files, s.ffree, s.bsize, s.namelen, s.frsize,
            ),
            Err(code) => reply.error(code),
        }
    }

    fn setxattr(
        &self,
        _request: &Request,
        node: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let (name, value) = (name.to_owned(), value.to_vec());
        self.change(Op::Setxattr, node, move |core| {
            reply_empty(reply, core.setxattr(ino(node), &name, &value, flags));
        });
    }

    fn getxattr(
        &self,
        _request: &Request,
        node: INodeNo,
        name: &OsStr,
        size: u32,
        reply: ReplyXattr,
    ) {
        reply_xattr(reply, size, self.timed(Op::Getxattr).getxattr(ino(node), name));
    }

    fn listxattr(&self, _request: &Request, node: INodeNo, size: u32, reply: ReplyXattr) {
        reply_xattr(reply, size, self.timed(Op::Listxattr).listxattr(ino(node)));
    }

    fn removexattr(&self, _request: &Request, node: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = name.to_owned();
        self.change(Op::Removexattr, node, move |core| {
            reply_empty(reply, core.removexattr(ino(node), &name))
        });
    }

    fn access(&self, _request: &Request, _node: INodeNo, _mask: AccessFlags, reply: ReplyEmpty) {
        // Permissions are the kernel's business; it asks once and never again.
        reply.error(Errno::ENOSYS);
    }

    fn ioctl(
        &self,
        _request: &Request,
        node: INodeNo,
        _fh: FileHandle,
        _flags: IoctlFlags,
        cmd: u32,
        in_data: &[u8],
        out_size: u32,
        reply: ReplyIoctl,
    ) {
        let input = in_data.to_vec();
        self.change(Op::Ioctl, node, move |core| {
            match checked(core.ioctl(ino(node), cmd, &input, out_size as usize)) {
                Ok(data) => reply.ioctl(0, &data),
                Err(code) => reply.error(code),
            }
        });
    }

    fn fallocate(
        &self,
        _request: &Request,
        node: INodeNo,
        _fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        self.change(Op::Fallocate, node, move |core| {
            reply_empty(reply, core.fallocate(ino(node), mode, offset, length));
        });
    }

    fn lseek(
        &self,
        _request: &Request,
        node: INodeNo,
        _fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        match checked(self.timed(Op::Lseek).lseek(ino(node), offset, whence)) {
            Ok(at) => reply.offset(at),
            Err(code) => reply.error(code),
        }
    }

    fn copy_file_range(
        &self,
        _request: &Request,
        ino_in: INodeNo,
        _fh_in: FileHandle,
        offset_in: u64,
        ino_out: INodeNo,
        _fh_out: FileHandle,
        offset_out: u64,
        len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        self.serve_copy((ino(ino_in), offset_in), (ino(ino_out), offset_out), len, reply);
    }
}

//! The classic transport: fuser's requests to the handlers. Its answers are in [`super::reply`].

use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, INodeNo, IoctlFlags,
    KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen,
    ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};

use super::answer::Asker;
use super::handlers::{Change, New};
use super::read::Read;
use super::reply::Sent;
use super::{Server, convert};
use crate::attr::SetAttr;
use crate::inode::Ino;

/// Fuser's side of a server.
#[derive(Debug)]
pub(super) struct Classic(pub(super) Arc<Server>, pub(super) Arc<OwnedFd>);

fn asker(request: &Request) -> Asker {
    Asker { uid: request.uid(), gid: request.gid(), pid: request.pid() }
}

fn ino(node: INodeNo) -> Ino {
    Ino(node.0)
}

impl Classic {
    fn sent<R>(&self, reply: R) -> Sent<R> {
        Sent { reply, ttl: self.0.ttl }
    }
}

impl fuser::Filesystem for Classic {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        self.0.negotiate(config);
        Ok(())
    }

    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.0.lookup(ino(parent), name, self.sent(reply));
    }

    fn forget(&self, _request: &Request, node: INodeNo, count: u64) {
        self.0.forget(ino(node), count);
    }

    fn getattr(&self, _request: &Request, node: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        self.0.getattr(ino(node), self.sent(reply));
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
        let change = Change { set, kills: None };
        self.0.setattr(asker(request), ino(node), change, self.sent(reply));
    }

    fn readlink(&self, _request: &Request, node: INodeNo, reply: ReplyData) {
        self.0.readlink(ino(node), self.sent(reply));
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
        let new = (New { mode, umask }, rdev);
        self.0.mknod(asker(request), (ino(parent), name), new, self.sent(reply));
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
        let new = New { mode, umask };
        self.0.mkdir(asker(request), (ino(parent), name), new, self.sent(reply));
    }

    fn unlink(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.0.unlink(ino(parent), name, self.sent(reply));
    }

    fn rmdir(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.0.rmdir(ino(parent), name, self.sent(reply));
    }

    fn symlink(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        let place = (ino(parent), name);
        self.0.symlink(asker(request), place, target.as_os_str(), self.sent(reply));
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
        let (from, to) = ((ino(parent), name), (ino(newparent), newname));
        self.0.rename(from, to, flags.bits(), self.sent(reply));
    }

    fn link(
        &self,
        _request: &Request,
        node: INodeNo,
        newparent: INodeNo,
        newname: &OsStr,
        reply: ReplyEntry,
    ) {
        self.0.link(ino(node), (ino(newparent), newname), self.sent(reply));
    }

    fn open(&self, request: &Request, node: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        self.0.open(asker(request), ino(node), flags.0, self.sent(reply));
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
        let new = New { mode, umask };
        self.0.create(asker(request), (ino(parent), name), new, self.sent(reply));
    }

    fn read(
        &self,
        request: &Request,
        node: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let (sent, device) = (self.sent(reply), self.1.clone());
        let reply = Read { sent, unique: request.unique().0, device };
        self.0.read(ino(node), (offset, size as usize), reply);
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
        let cached = write_flags.contains(WriteFlags::FUSE_WRITE_CACHE);
        self.0.write(ino(node), (offset, data), (kill, cached), self.sent(reply));
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
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
        self.0.release(ino(node), self.sent(reply));
    }

    fn fsync(&self, _: &Request, node: INodeNo, _: FileHandle, data: bool, reply: ReplyEmpty) {
        self.0.fsync(ino(node), data, self.sent(reply));
    }

    fn opendir(&self, _request: &Request, node: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        self.0.opendir(ino(node), self.sent(reply));
    }

    fn readdir(
        &self,
        _request: &Request,
        _node: INodeNo,
        fh: FileHandle,
        offset: u64,
        reply: ReplyDirectory,
    ) {
        self.0.readdir(fh.0, offset, self.sent(reply));
    }

    fn readdirplus(
        &self,
        _request: &Request,
        node: INodeNo,
        fh: FileHandle,
        offset: u64,
        reply: ReplyDirectoryPlus,
    ) {
        self.0.readdirplus(ino(node), (fh.0, offset), self.sent(reply));
    }

    fn releasedir(
        &self,
        _request: &Request,
        _node: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.0.releasedir(fh.0, self.sent(reply));
    }

    fn fsyncdir(&self, _: &Request, node: INodeNo, _: FileHandle, data: bool, reply: ReplyEmpty) {
        self.0.fsyncdir(ino(node), data, self.sent(reply));
    }

    fn statfs(&self, _request: &Request, _node: INodeNo, reply: ReplyStatfs) {
        self.0.statfs(self.sent(reply));
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
        self.0.setxattr(ino(node), (name, value), flags, self.sent(reply));
    }

    fn getxattr(
        &self,
        _request: &Request,
        node: INodeNo,
        name: &OsStr,
        size: u32,
        reply: ReplyXattr,
    ) {
        self.0.getxattr(ino(node), name, size, self.sent(reply));
    }

    fn listxattr(&self, _request: &Request, node: INodeNo, size: u32, reply: ReplyXattr) {
        self.0.listxattr(ino(node), size, self.sent(reply));
    }

    fn removexattr(&self, _request: &Request, node: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.0.removexattr(ino(node), name, self.sent(reply));
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
        self.0.ioctl(ino(node), (cmd, in_data), out_size as usize, self.sent(reply));
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
        self.0.fallocate(ino(node), mode, (offset, length), self.sent(reply));
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
        self.0.lseek(ino(node), offset, whence, self.sent(reply));
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
        let (from, to) = ((ino(ino_in), offset_in), (ino(ino_out), offset_out));
        self.0.copy_file_range(from, to, len, self.sent(reply));
    }
}

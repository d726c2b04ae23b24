//! File contents: open, read, write, fsync, fallocate, lseek, copy_file_range.
//!
//! Writes reach the upper layer only. The copy-up happens at the first write or change of length,
//! not at open: most files opened for writing are truncated first, and what is about to be thrown
//! away need not be copied. Opened data belongs to the inode, not to the handle, so a descriptor opened before a copy-up reads and maps the upper file
//! after it, and one that outlives the last name goes on working.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::Overlay;
use crate::attr::without_set_id;
use crate::error::{Context, Error, Result};
use crate::inode::{Data, Ino, Inode, UpperAt};
use crate::lend;
use crate::owner::Caller;
use crate::quota::Span;
use crate::sys::{self, Seek};

/// How many of the oldest are looked at when one more is opened: some may have to stay.
const EVICTIONS: usize = 8;

impl Overlay {
    /// Opens a file; pair with [`Overlay::release`].
    pub fn open_file(&self, caller: Caller, ino: Ino, flags: i32) -> Result<()> {
        let inode = self.inode(ino, "open")?;
        inode.opens.fetch_add(1, Ordering::AcqRel);
        let opened = self.open_checked(caller, &inode, flags);
        if opened.is_err() {
            self.release(ino);
        }
        opened
    }

    fn open_checked(&self, caller: Caller, inode: &Arc<Inode>, flags: i32) -> Result<()> {
        let writes = flags & sys::O_ACCMODE != sys::O_RDONLY;
        let truncates = flags & sys::O_TRUNC != 0;
        if writes || truncates {
            self.writable("open")?;
        }
        if inode.state.lock().data.is_none() {
            self.check_open_data("")?;
        }
        if truncates {
            self.copy_up_data(inode, Some(0))?;
        }
        // Opened at once: an object that cannot be opened fails the open and not the first read.
        let data = self.data(inode, truncates || (writes && !self.would_copy(inode)))?;
        if truncates {
            let cut = |_| sys::truncate(&data.fd, 0);
            self.resize(inode, &data.fd, Span::NOTHING, cut).on("truncate", inode.path())?;
            if caller.uid != 0 {
                self.drop_set_id(inode, data.fd.as_fd())?;
            }
        }
        Ok(())
    }

    /// The opened data of a file that the kernel may read and write itself: that of an upper file, and
    /// on a read-only mount, where nothing is copied up, of a lower one from `large` bytes on.
    pub(crate) fn backing(&self, ino: Ino, writes: bool, large: u64) -> Option<Arc<Data>> {
        let inode = self.table.get(ino)?;
        let data = self.data(&inode, writes).ok()?;
        let stays = data.writes && data.reads;
        let is_large = || sys::fstat(&data.fd).is_ok_and(|stat| stat.size >= large);
        (stays || (self.is_read_only() && is_large())).then_some(data)
    }

    /// Ends one open; the data is closed with the last one.
    pub fn release(&self, ino: Ino) {
        let Some(inode) = self.table.get(ino) else {
            return;
        };
        let before = inode
            .opens
            .fetch_update(Ordering::AcqRel, Ordering::Relaxed, |n| Some(n.saturating_sub(1)));
        if matches!(before, Ok(0 | 1)) {
            let mut state = inode.state.lock();
            if inode.opens.load(Ordering::Acquire) == 0 {
                let data = state.data.take();
                drop(state);
                drop(data);
            }
        }
    }

    /// The opened data of a file, of the upper one when it is to be written. The caller has copied
    /// it up then.
    pub(crate) fn data(&self, inode: &Arc<Inode>, write: bool) -> Result<Arc<Data>> {
        if inode.kind != sys::S_IFREG {
            let code = if inode.is_dir() { sys::EISDIR } else { sys::EINVAL };
            return Err(Error::code("open", inode.path(), code));
        }
        let fits = |data: &Arc<Data>| if write { data.writes } else { data.reads };
        if let Some(data) = inode.state.lock().data.as_ref().filter(|data| fits(data)) {
            return Ok(data.clone());
        }
        let open = || self.open_data(inode, write, false);
        let data = Arc::new(open().or_else(|e| match sys::errno(&e.source) {
            // The mode may be newer than the caller's descriptor.
            sys::EACCES => self.open_data(inode, write, true),
            _ => Err(e),
        })?);
        if !self.handleless && inode.opens.load(Ordering::Acquire) == 0 {
            return Ok(data);
        }
        let mut state = inode.state.lock();
        // A copy-up may have passed while the file was opened: what it left behind is not kept.
        if data.writes || state.upper.is_none() || state.lower_data.is_some() {
            state.data = Some(data.clone());
            drop(state);
            self.bound_open_data(inode);
        }
        Ok(data)
    }

    /// Puts an inode whose data is kept open into the queue, and closes what is too much. No
    /// directory's lock is held: others are opened by their names.
    pub(crate) fn bound_open_data(&self, inode: &Arc<Inode>) {
        let get = |ino| self.table.get(ino);
        self.open_data.push(inode, get);
        for _ in 0..EVICTIONS {
            let Some(old) = self.open_data.oldest(get) else { return };
            if Arc::ptr_eq(&old, inode) || !self.can_reopen(&old) {
                self.open_data.push(&old, get);
                continue;
            }
            let data = old.state.lock().data.take();
            drop(data);
        }
    }

    /// EMFILE when no more data can be opened without harm to what is open.
    pub(crate) fn check_open_data(&self, name: impl AsRef<OsStr>) -> Result<()> {
        if self.open_data.is_full() {
            return Err(Error::code("open", name, sys::EMFILE));
        }
        Ok(())
    }

    /// Whether the opened data of a file could be opened again as it is, found by doing. Without
    /// handles that is not asked, since nobody may have it open: [`lend`] lets the daemon in.
    fn can_reopen(&self, inode: &Arc<Inode>) -> bool {
        if self.handleless {
            return true;
        }
        let Some(data) = inode.state.lock().data.clone() else {
            return true;
        };
        self.open_data(inode, data.writes, false)
            .is_ok_and(|again| again.reads >= data.reads && again.writes >= data.writes)
    }

    /// Opens the data of a file that somebody has open before a change may make that impossible.
    pub(crate) fn open_before_change(&self, inode: &Arc<Inode>) {
        if inode.kind != sys::S_IFREG || inode.opens.load(Ordering::Acquire) == 0 {
            return;
        }
        if let Err(e) = self.data(inode, true) {
            log::debug!("open before a change of mode: {e}");
        }
    }

    /// Opens the data of a file; of an upper one with the rights of [`lend`] if `lent`.
    fn open_data(&self, inode: &Arc<Inode>, write: bool, lent: bool) -> Result<Data> {
        let (below, pin) = {
            let state = inode.state.lock();
            let pin = match &state.upper {
                Some(UpperAt::Pinned(fd)) => Some(fd.clone()),
                _ => None,
            };
            let lower = if state.upper.is_some() { None } else { state.lower.clone() };
            (state.lower_data.as_deref().cloned().or(lower), pin)
        };
        let open = |flags: i32| {
            let flags = flags | sys::O_NONBLOCK;
            match (&below, &pin) {
                (Some(file), _) => self.open_lower(file, flags),
                (None, Some(fd)) if lent => lend::open(&**fd, OsStr::new(""), flags),
                (None, Some(fd)) => sys::reopen(&**fd, flags),
                (None, None) if lent => self.at(inode, |dir, name| lend::open(dir, name, flags)),
                (None, None) => self.at(inode, |dir, name| sys::open(dir, name, flags)),
            }
        };
        let count = self.open_data.count();
        if below.is_some() {
            if write {
                return Err(Error::code("open", inode.path(), sys::ESTALE));
            }
            let fd = open(sys::O_RDONLY).on("open", inode.path())?;
            return Ok(Data { fd, reads: true, writes: false, appends: false, count });
        }
        let refused = match open(sys::O_RDWR) {
            Ok(fd) => return Ok(Data { fd, reads: true, writes: true, appends: false, count }),
            Err(e) => sys::errno(&e),
        };
        // What has the attribute of that name (chattr(1)) can be opened for nothing else.
        if write && refused == sys::EPERM {
            if let Ok(fd) = open(sys::O_WRONLY | sys::O_APPEND) {
                return Ok(Data { fd, reads: false, writes: true, appends: true, count });
            }
        }
        // The daemon may not be allowed both: an ordinary user's own file of mode 0400, say.
        let flags = if write { sys::O_WRONLY } else { sys::O_RDONLY };
        let fd = open(flags).on("open", inode.path())?;
        Ok(Data { fd, reads: !write, writes: write, appends: false, count })
    }

    /// Reads; a short count means the end of the file.
    pub fn read(&self, ino: Ino, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        let inode = self.inode(ino, "read")?;
        let data = self.data(&inode, false)?;
        sys::pread(&data.fd, buffer, offset).on("read", inode.path())
    }

    /// Reads what the page cache has; `None` when the disk would have to be asked.
    pub fn read_cached(&self, ino: Ino, offset: u64, buffer: &mut [u8]) -> Option<usize> {
        let inode = self.table.get(ino)?;
        let data = self.data(&inode, false).ok()?;
        let got = sys::pread_cached(&data.fd, buffer, offset).ok()?;
        let is_end = || {
            let size = sys::fstat(&data.fd).map_or(u64::MAX, |stat| stat.size);
            offset.saturating_add(got as u64) >= size
        };
        // The kernel asks for whole pages, so the end of a file is short.
        (got == buffer.len() || got == 0 || is_end()).then_some(got)
    }

    /// The data of a file and how many bytes of the `size` from `offset` it has, if the page cache has the first and the last of
    /// them: what lies between was read with them or after the first, unless memory ran short.
    pub(crate) fn cached(&self, ino: Ino, offset: u64, size: usize) -> Option<(Arc<Data>, usize)> {
        let inode = self.table.get(ino)?;
        let data = self.data(&inode, false).ok()?;
        let has = |at: u64| sys::pread_cached(&data.fd, &mut [0], at).ok().map(|got| got == 1);
        if !has(offset)? {
            return None;
        }
        if has(offset.checked_add(size.checked_sub(1)? as u64)?)? {
            return Some((data, size));
        }
        // The kernel asks for whole pages, so the end of a file is short.
        let left = sys::fstat(&data.fd).ok()?.size.checked_sub(offset)?;
        let count = usize::try_from(left).map_or(size, |left| left.min(size));
        has(offset.checked_add(count.checked_sub(1)? as u64)?)?.then_some((data, count))
    }

    /// Writes. With `kill_set_id` the set-id bits fall, as they do when somebody without the right
    /// to keep them writes to a local file.
    pub fn write(&self, ino: Ino, offset: u64, bytes: &[u8], kill_set_id: bool) -> Result<usize> {
        let inode = self.inode(ino, "write")?;
        self.copy_up_data(&inode, None)?;
        let data = self.data(&inode, true)?;
        if data.appends && sys::fstat(&data.fd).on("write", inode.path())?.size != offset {
            return Err(Error::code("write", inode.path(), sys::EPERM));
        }
        let span = Span { offset, length: bytes.len() as u64, divisible: true };
        let write = |length| {
            let bytes = usize::try_from(length).ok().and_then(|length| bytes.get(..length));
            sys::pwrite(&data.fd, bytes.unwrap_or_default(), offset)
        };
        let done = self.resize(&inode, &data.fd, span, write).on("write", inode.path())?;
        if kill_set_id {
            self.drop_set_id(&inode, data.fd.as_fd())?;
        }
        Ok(done)
    }

    /// Whether a set-id bit may be left on the upper file.
    pub(crate) fn may_have_set_id(&self, ino: Ino) -> bool {
        self.table.get(ino).is_some_and(|inode| !inode.plain_mode.load(Ordering::Relaxed))
    }

    /// Clears the set-user-id bit, and the set-group-id bit of a file its group may execute.
    pub(crate) fn drop_set_id(&self, inode: &Arc<Inode>, fd: BorrowedFd<'_>) -> Result<()> {
        if inode.plain_mode.load(Ordering::Relaxed) {
            return Ok(());
        }
        let before = self.attr(inode)?.mode & 0o7777;
        let mode = without_set_id(before);
        if mode != before {
            if self.identity.uses_override() {
                let set = crate::attr::SetAttr { mode: Some(mode), ..Default::default() };
                self.set_override(inode, &set)?;
            } else {
                sys::chmod(fd, OsStr::new(""), mode).on("chmod", inode.path())?;
            }
            if let Some(watch) = self.watcher.0.get() {
                watch(inode.ino);
            }
        }
        inode.plain_mode.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Target of a symlink.
    pub fn readlink(&self, ino: Ino) -> Result<OsString> {
        let inode = self.inode(ino, "readlink")?;
        if inode.kind != sys::S_IFLNK {
            return Err(Error::code("readlink", inode.path(), sys::EINVAL));
        }
        self.at(&inode, |dir, name| sys::readlink(dir, name)).on("readlink", inode.path())
    }

    fn syncs(&self) -> bool {
        self.options.fsync && !self.options.volatile
    }

    /// Flushes a file; a lower one has nothing to flush.
    pub fn fsync(&self, ino: Ino, datasync: bool) -> Result<()> {
        let inode = self.inode(ino, "fsync")?;
        if !self.syncs() || !inode.is_upper() || inode.kind != sys::S_IFREG {
            return Ok(());
        }
        let data = match self.data(&inode, true) {
            Ok(data) => data,
            Err(_) => self.data(&inode, false)?,
        };
        sys::fsync(&data.fd, datasync).on("fsync", inode.path())
    }

    /// Flushes a directory: the upper one, if there is one.
    pub fn fsyncdir(&self, ino: Ino, datasync: bool) -> Result<()> {
        let inode = self.dir_inode(ino, "fsync")?;
        let Some(dir) = self.upper_dir(&inode)?.filter(|_| self.syncs()) else {
            return Ok(());
        };
        let open = sys::open(&*dir, OsStr::new("."), sys::O_RDONLY | sys::O_DIRECTORY);
        open.and_then(|fd| sys::fsync(fd, datasync)).on("fsync", inode.path())
    }

    /// Flushes the filesystem of the upper layer.
    pub fn syncfs(&self) -> Result<()> {
        match self.stack.upper.as_ref().filter(|_| self.syncs()) {
            Some(upper) => {
                sys::open(&*upper.root, OsStr::new("."), sys::O_RDONLY | sys::O_DIRECTORY)
                    .and_then(sys::syncfs)
                    .on("sync", &upper.path)
            }
            None => Ok(()),
        }
    }

    /// Reserves, punches or moves ranges, as fallocate(2).
    pub fn fallocate(&self, ino: Ino, mode: i32, offset: u64, length: u64) -> Result<()> {
        let inode = self.inode(ino, "fallocate")?;
        self.copy_up_data(&inode, None)?;
        let data = self.data(&inode, true)?;
        let span = if sys::fallocate_grows(mode) {
            Span { offset, length, divisible: false }
        } else {
            Span::NOTHING
        };
        let change = |_| sys::fallocate(&data.fd, mode, offset, length);
        self.resize(&inode, &data.fd, span, change).on("fallocate", inode.path())
    }

    /// The next data or hole, as lseek(2) with `SEEK_DATA` or `SEEK_HOLE`.
    pub fn lseek(&self, ino: Ino, offset: i64, whence: i32) -> Result<i64> {
        let inode = self.inode(ino, "lseek")?;
        let what = match whence {
            sys::SEEK_DATA => Seek::Data,
            sys::SEEK_HOLE => Seek::Hole,
            _ => return Err(Error::code("lseek", inode.path(), sys::EINVAL)),
        };
        let offset =
            u64::try_from(offset).map_err(|_| Error::code("lseek", inode.path(), sys::ENXIO))?;
        let data = self.data(&inode, false)?;
        let at = sys::lseek(&data.fd, offset, what).on("lseek", inode.path())?;
        i64::try_from(at).map_err(|_| Error::code("lseek", inode.path(), sys::EOVERFLOW))
    }

    /// Copies a range between two files inside the kernel.
    #[allow(clippy::too_many_arguments, reason = "those of copy_file_range(2)")]
    pub fn copy_file_range(
        &self,
        src: Ino,
        src_offset: u64,
        dst: Ino,
        dst_offset: u64,
        length: u64,
    ) -> Result<u64> {
        let (from, to) = (self.inode(src, "copy_file_range")?, self.inode(dst, "copy_file_range")?);
        self.copy_up_data(&to, None)?;
        let (source, target) = (self.data(&from, false)?, self.data(&to, true)?);
        let span = Span { offset: dst_offset, length, divisible: true };
        let span = self.span_of_copy(span, &source.fd, src_offset);
        let copy = |length| sys::copy_range(&source.fd, src_offset, &target.fd, dst_offset, length);
        self.resize(&to, &target.fd, span, copy).on("copy_file_range", to.path())
    }

    /// A request on one inode that `lsattr`, `chattr` and `xfs_io` make; ENOTTY for all others.
    pub fn ioctl(&self, ino: Ino, request: u32, input: &[u8], out_size: usize) -> Result<Vec<u8>> {
        let inode = self.inode(ino, "ioctl")?;
        match sys::ioctl_changes(request) {
            None => return Err(Error::code("ioctl", inode.path(), sys::ENOTTY)),
            Some(true) if !sys::checks_who_sets_flags() => {
                return Err(Error::code("ioctl", inode.path(), sys::EOPNOTSUPP));
            }
            // What comes of a write could not be told before.
            Some(true) if self.meter.is_some() && sys::ioctl_takes_extents(request, input) => {
                return Err(Error::code("ioctl", inode.path(), sys::EOPNOTSUPP));
            }
            Some(true) => {
                self.copy_up_data(&inode, None)?;
                // How a directory finds names may change.
                inode.dir().into_iter().for_each(|dir| dir.ns.write().end());
            }
            Some(false) => {}
        }
        let flags = if inode.is_dir() {
            sys::O_RDONLY | sys::O_DIRECTORY
        } else {
            sys::O_RDONLY | sys::O_NONBLOCK
        };
        if !inode.is_dir() && inode.kind != sys::S_IFREG {
            return Err(Error::code("ioctl", inode.path(), sys::ENOTTY));
        }
        if !inode.is_dir() {
            let data = self.data(&inode, false)?;
            let done = sys::inode_ioctl(&data.fd, request, input, out_size);
            if sys::ioctl_changes(request) == Some(true) {
                // What was opened before could be written as if nothing had changed.
                inode.state.lock().data = None;
            }
            return done.on("ioctl", inode.path());
        }
        let fd =
            self.at(&inode, |dir, name| sys::open(dir, name, flags)).on("open", inode.path())?;
        sys::inode_ioctl(fd, request, input, out_size).on("ioctl", inode.path())
    }
}

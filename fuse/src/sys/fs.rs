//! Names, attributes and entries of directories.

use std::ffi::{OsStr, OsString};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, Gid, Mode, OFlags, RenameFlags, ResolveFlags, Timespec, Timestamps, Uid,
};

use super::fault;
use crate::attr::{SetTime, Time};

/// What statx says of an object.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stat {
    /// Device of the filesystem.
    pub dev: u64,
    /// Inode number there.
    pub ino: u64,
    /// Type and permissions.
    pub mode: u32,
    /// Hard links.
    pub nlink: u32,
    /// Owner on disk.
    pub uid: u32,
    /// Group on disk.
    pub gid: u32,
    /// Device number, in the encoding of `stat`.
    pub rdev: u64,
    /// Bytes.
    pub size: u64,
    /// 512-byte blocks.
    pub blocks: u64,
    /// Preferred I/O size in bytes.
    pub blksize: u32,
    /// Last access.
    pub atime: Time,
    /// Last change of the data.
    pub mtime: Time,
    /// Last change of the inode.
    pub ctime: Time,
    /// Birth, where the filesystem knows it.
    pub btime: Option<Time>,
}

impl Stat {
    /// The type bits.
    pub fn kind(&self) -> u32 {
        self.mode & libc::S_IFMT
    }

    /// Whether this is a directory.
    pub fn is_dir(&self) -> bool {
        self.kind() == libc::S_IFDIR
    }
}

/// One name of a directory as the filesystem lists it.
#[derive(Clone, Debug)]
pub struct Name {
    /// The name.
    pub name: OsString,
    /// Type bits, 0 where the filesystem does not tell.
    pub kind: u32,
    /// Inode number.
    pub ino: u64,
}

fn from_statx(stx: &rustix::fs::Statx) -> Stat {
    let time = |t: rustix::fs::StatxTimestamp| Time { sec: t.tv_sec, nsec: t.tv_nsec };
    let has_btime = stx.stx_mask & rustix::fs::StatxFlags::BTIME.bits() != 0;
    Stat {
        dev: libc::makedev(stx.stx_dev_major, stx.stx_dev_minor),
        ino: stx.stx_ino,
        mode: u32::from(stx.stx_mode),
        nlink: stx.stx_nlink,
        uid: stx.stx_uid,
        gid: stx.stx_gid,
        rdev: libc::makedev(stx.stx_rdev_major, stx.stx_rdev_minor),
        size: stx.stx_size,
        blocks: stx.stx_blocks,
        blksize: stx.stx_blksize,
        atime: time(stx.stx_atime),
        mtime: time(stx.stx_mtime),
        ctime: time(stx.stx_ctime),
        btime: has_btime.then(|| time(stx.stx_btime)),
    }
}

/// Attributes of `name` in `dir`, never following a symlink; of `dir` itself for the empty name.
pub fn stat(dir: impl AsFd, name: &OsStr) -> io::Result<Stat> {
    let mask = rustix::fs::StatxFlags::BASIC_STATS | rustix::fs::StatxFlags::BTIME;
    let mut flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    if name.is_empty() {
        flags |= AtFlags::EMPTY_PATH;
    }
    let stx = rustix::fs::statx(dir, name, flags, mask)?;
    Ok(from_statx(&stx))
}

/// Attributes of an open object.
pub fn fstat(fd: impl AsFd) -> io::Result<Stat> {
    stat(fd, OsStr::new(""))
}

/// Attributes of `name` in `dir`, `None` when there is no such name.
pub fn has(dir: impl AsFd, name: &OsStr) -> io::Result<Option<Stat>> {
    match stat(dir, name) {
        Ok(stat) => Ok(Some(stat)),
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT)) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Opens one name in `dir`, or `dir` itself for the empty name; symlinks are not followed.
pub fn open(dir: impl AsFd, name: &OsStr, flags: i32) -> io::Result<OwnedFd> {
    if name.is_empty() {
        return reopen(dir, flags);
    }
    let flags = OFlags::from_bits_retain((flags | libc::O_NOFOLLOW | libc::O_CLOEXEC) as u32);
    Ok(rustix::fs::openat(dir, name, flags, Mode::empty())?)
}

/// Creates and opens a regular file for reading and writing.
pub fn open_new(dir: impl AsFd, name: &OsStr, mode: u32) -> io::Result<OwnedFd> {
    fault::point()?;
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(dir, name, flags, Mode::from_raw_mode(mode & 0o7777))?)
}

/// Creates and opens a regular file that has no name yet; [`link_fd`] may give it one.
pub fn open_unnamed(dir: impl AsFd, mode: u32) -> io::Result<OwnedFd> {
    fault::point()?;
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(dir, ".", flags, Mode::from_raw_mode(mode & 0o7777))?)
}

/// Opens a path beneath `root` without following symlinks or leaving it.
pub fn open_beneath(root: impl AsFd, path: &Path, flags: i32) -> io::Result<OwnedFd> {
    match open_piece(root.as_fd(), path, flags) {
        Err(rustix::io::Errno::NOSYS | rustix::io::Errno::PERM) => {
            walk_beneath(root.as_fd(), path, flags)
        }
        Err(rustix::io::Errno::NAMETOOLONG) if path.as_os_str().len() > PIECE => {
            open_pieces(root.as_fd(), path, flags)
        }
        other => Ok(other?),
    }
}

fn open_piece(dir: BorrowedFd<'_>, path: &Path, flags: i32) -> rustix::io::Result<OwnedFd> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let flags = OFlags::from_bits_retain((flags | libc::O_CLOEXEC) as u32);
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    rustix::fs::openat2(dir, path, flags, Mode::empty(), resolve)
}

/// [`open_beneath`] for a path longer than one call may carry.
fn open_pieces(root: BorrowedFd<'_>, path: &Path, flags: i32) -> io::Result<OwnedFd> {
    let (first, mut rest) = split_path(path);
    let mut here = open_piece(root, &first, libc::O_PATH | libc::O_DIRECTORY)?;
    while rest.as_os_str().len() > PIECE {
        let (next, left) = split_path(rest);
        here = open_piece(here.as_fd(), &next, libc::O_PATH | libc::O_DIRECTORY)?;
        rest = left;
    }
    Ok(open_piece(here.as_fd(), rest, flags)?)
}

/// Bytes of a path that one call surely takes (`PATH_MAX` is 4096).
const PIECE: usize = 4000;

/// A path as its beginning, of [`PIECE`] bytes at most unless its first name is longer, and the rest.
fn split_path(path: &Path) -> (PathBuf, &Path) {
    let (mut parts, mut first) = (path.components(), PathBuf::new());
    loop {
        let rest = parts.as_path();
        let Some(part) = parts.next() else { return (first, rest) };
        let length = first.as_os_str().len() + 1 + part.as_os_str().len();
        if length > PIECE && !first.as_os_str().is_empty() {
            return (first, rest);
        }
        first.push(part);
    }
}

/// The walk of [`open_beneath`] by single names: for kernels and filters without openat2.
fn walk_beneath(root: BorrowedFd<'_>, path: &Path, flags: i32) -> io::Result<OwnedFd> {
    let mut here = open(root, OsStr::new("."), libc::O_PATH | libc::O_DIRECTORY)?;
    let mut parts = path.components().peekable();
    while let Some(part) = parts.next() {
        let name = match part {
            std::path::Component::Normal(name) => name,
            std::path::Component::CurDir => continue,
            _ => return Err(io::Error::from_raw_os_error(libc::EXDEV)),
        };
        if parts.peek().is_none() {
            return open(here, name, flags);
        }
        here = open(here, name, libc::O_PATH | libc::O_DIRECTORY)?;
    }
    open(here, OsStr::new("."), flags)
}

/// Opens the object behind a descriptor again, with other flags; works for unlinked objects.
pub fn reopen(fd: impl AsFd, flags: i32) -> io::Result<OwnedFd> {
    let path = format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd());
    let flags = OFlags::from_bits_retain((flags | libc::O_CLOEXEC) as u32);
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

/// Makes a directory.
pub fn mkdir(dir: impl AsFd, name: &OsStr, mode: u32) -> io::Result<()> {
    fault::point()?;
    Ok(rustix::fs::mkdirat(dir, name, Mode::from_raw_mode(mode & 0o7777))?)
}

/// Makes a node of any kind but directory and symlink; `mode` bears the type.
pub fn mknod(dir: impl AsFd, name: &OsStr, mode: u32, rdev: u64) -> io::Result<()> {
    fault::point()?;
    let kind = rustix::fs::FileType::from_raw_mode(mode);
    Ok(rustix::fs::mknodat(dir, name, kind, Mode::from_raw_mode(mode & 0o7777), rdev)?)
}

/// Makes a symlink.
pub fn symlink(dir: impl AsFd, name: &OsStr, target: &OsStr) -> io::Result<()> {
    fault::point()?;
    Ok(rustix::fs::symlinkat(target, dir, name)?)
}

/// Target of a symlink.
pub fn readlink(dir: impl AsFd, name: &OsStr) -> io::Result<OsString> {
    let target = rustix::fs::readlinkat(dir, name, Vec::with_capacity(256))?;
    Ok(OsString::from_vec(target.into_bytes()))
}

/// Gives an object a second name.
pub fn link(dir: impl AsFd, name: &OsStr, new_dir: impl AsFd, new_name: &OsStr) -> io::Result<()> {
    fault::point()?;
    Ok(rustix::fs::linkat(dir, name, new_dir, new_name, AtFlags::empty())?)
}

/// Gives the object behind a descriptor a name.
pub fn link_fd(fd: impl AsFd, new_dir: impl AsFd, new_name: &OsStr) -> io::Result<()> {
    fault::point()?;
    // Since Linux 6.10 for who opened it; before that it took CAP_DAC_READ_SEARCH.
    match rustix::fs::linkat(&fd, "", &new_dir, new_name, AtFlags::EMPTY_PATH) {
        Err(rustix::io::Errno::NOENT) => {}
        done => return Ok(done?),
    }
    let path = format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd());
    Ok(rustix::fs::linkat(rustix::fs::CWD, path, new_dir, new_name, AtFlags::SYMLINK_FOLLOW)?)
}

/// Removes a name that is not a directory.
pub fn unlink(dir: impl AsFd, name: &OsStr) -> io::Result<()> {
    fault::point()?;
    Ok(rustix::fs::unlinkat(dir, name, AtFlags::empty())?)
}

/// Removes an empty directory.
pub fn rmdir(dir: impl AsFd, name: &OsStr) -> io::Result<()> {
    fault::point()?;
    Ok(rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR)?)
}

/// Renames with the flags of renameat2.
pub fn rename(
    dir: impl AsFd,
    name: &OsStr,
    new_dir: impl AsFd,
    new_name: &OsStr,
    flags: u32,
) -> io::Result<()> {
    fault::point()?;
    let flags = RenameFlags::from_bits_retain(flags);
    if flags.is_empty() {
        return Ok(rustix::fs::renameat(dir, name, new_dir, new_name)?);
    }
    Ok(rustix::fs::renameat_with(dir, name, new_dir, new_name, flags)?)
}

/// Sets the permissions; the object must not be a symlink.
pub fn chmod(dir: impl AsFd, name: &OsStr, mode: u32) -> io::Result<()> {
    fault::point()?;
    let mode = Mode::from_raw_mode(mode & 0o7777);
    if name.is_empty() {
        match rustix::fs::fchmod(&dir, mode) {
            // A descriptor that only names the object (O_PATH).
            Err(rustix::io::Errno::BADF) => {}
            other => return Ok(other?),
        }
        let path = format!("/proc/self/fd/{}", dir.as_fd().as_raw_fd());
        return Ok(rustix::fs::chmod(path, mode)?);
    }
    Ok(rustix::fs::chmodat(dir, name, mode, AtFlags::empty())?)
}

/// Sets owner and group, of a symlink itself too; `None` leaves as is.
pub fn chown(dir: impl AsFd, name: &OsStr, uid: Option<u32>, gid: Option<u32>) -> io::Result<()> {
    fault::point()?;
    let mut flags = AtFlags::SYMLINK_NOFOLLOW;
    if name.is_empty() {
        flags |= AtFlags::EMPTY_PATH;
    }
    Ok(rustix::fs::chownat(dir, name, uid.map(Uid::from_raw), gid.map(Gid::from_raw), flags)?)
}

/// Access and modification times to set; `None` leaves as is.
#[derive(Clone, Copy, Debug, Default)]
pub struct NewTimes {
    /// Last access.
    pub atime: Option<SetTime>,
    /// Last modification.
    pub mtime: Option<SetTime>,
}

/// Sets times, of a symlink itself too.
pub fn set_times(dir: impl AsFd, name: &OsStr, times: NewTimes) -> io::Result<()> {
    fault::point()?;
    let spec = |t: Option<SetTime>| match t {
        None => Timespec { tv_sec: 0, tv_nsec: libc::UTIME_OMIT },
        Some(SetTime::Now) => Timespec { tv_sec: 0, tv_nsec: libc::UTIME_NOW },
        Some(SetTime::At(t)) => Timespec { tv_sec: t.sec, tv_nsec: i64::from(t.nsec) },
    };
    let stamps =
        Timestamps { last_access: spec(times.atime), last_modification: spec(times.mtime) };
    if name.is_empty() {
        // Linux 5.8 and later take the descriptor itself.
        match rustix::fs::utimensat(&dir, "", &stamps, AtFlags::EMPTY_PATH) {
            Err(rustix::io::Errno::INVAL) => {}
            other => return Ok(other?),
        }
        let path = format!("/proc/self/fd/{}", dir.as_fd().as_raw_fd());
        return Ok(rustix::fs::utimensat(rustix::fs::CWD, path, &stamps, AtFlags::empty())?);
    }
    Ok(rustix::fs::utimensat(dir, name, &stamps, AtFlags::SYMLINK_NOFOLLOW)?)
}

/// All names in a directory but `.` and `..`, in the filesystem's order.
pub fn list(dir: impl AsFd) -> io::Result<Vec<Name>> {
    let fd = open(dir, OsStr::new("."), libc::O_RDONLY | libc::O_DIRECTORY)?;
    let mut buffer: Vec<MaybeUninit<u8>> = vec![MaybeUninit::uninit(); 32 * 1024];
    let mut entries = rustix::fs::RawDir::new(fd, &mut buffer);
    let mut names = Vec::new();
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name == b"." || name == b".." {
            continue;
        }
        let kind = match entry.file_type() {
            rustix::fs::FileType::Unknown => 0,
            kind => kind.as_raw_mode(),
        };
        names.push(Name { name: OsStr::from_bytes(name).to_owned(), kind, ino: entry.ino() });
    }
    Ok(names)
}

/// Flushes one object; data only when `datasync`.
pub fn fsync(fd: impl AsFd, datasync: bool) -> io::Result<()> {
    if datasync {
        return Ok(rustix::fs::fdatasync(fd)?);
    }
    Ok(rustix::fs::fsync(fd)?)
}

/// Flushes the whole filesystem behind a descriptor.
pub fn syncfs(fd: impl AsFd) -> io::Result<()> {
    Ok(rustix::fs::syncfs(fd)?)
}

/// What statfs says of a filesystem.
#[derive(Clone, Copy, Debug, Default)]
pub struct FsStat {
    /// Blocks in all, of `frsize` bytes.
    pub blocks: u64,
    /// Free blocks.
    pub bfree: u64,
    /// Free blocks for ordinary users.
    pub bavail: u64,
    /// Inodes in all.
    pub files: u64,
    /// Free inodes.
    pub ffree: u64,
    /// Preferred I/O size in bytes.
    pub bsize: u32,
    /// Longest name in bytes.
    pub namelen: u32,
    /// Block size in bytes.
    pub frsize: u32,
    /// Magic number of the filesystem.
    pub magic: i64,
}

/// statfs of the filesystem behind a descriptor.
pub fn fstatfs(fd: impl AsFd) -> io::Result<FsStat> {
    let s = rustix::fs::fstatfs(fd)?;
    let narrow = |n: i64| u32::try_from(n).unwrap_or(4096);
    Ok(FsStat {
        blocks: s.f_blocks,
        bfree: s.f_bfree,
        bavail: s.f_bavail,
        files: s.f_files,
        ffree: s.f_ffree,
        bsize: narrow(s.f_bsize),
        namelen: narrow(s.f_namelen),
        frsize: if s.f_frsize > 0 { narrow(s.f_frsize) } else { narrow(s.f_bsize) },
        magic: s.f_type,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_longer_than_one_call_carries_are_split_between_names() {
        let path = PathBuf::from(["x"; 9000].join("/"));
        let (mut whole, mut rest) = (PathBuf::new(), path.as_path());
        while !rest.as_os_str().is_empty() {
            let (first, left) = split_path(rest);
            assert!(first.as_os_str().len() <= PIECE);
            whole.push(first);
            rest = left;
        }
        assert_eq!(whole, path);
    }
}

//! Reading a tree of files by descriptor: no call here follows a symlink or leaves the directory it
//! was given. Extended attributes are reached through `/proc/self/fd/N/name`, which needs neither
//! permission on the object nor a descriptor of it.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path};

use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// Longest xattr value and longest list of names (`XATTR_SIZE_MAX`, `XATTR_LIST_MAX`).
const XATTR_LIMIT: usize = 65536;

/// What sort of object it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Dir,
    /// A symbolic link.
    Symlink,
    /// A character device.
    Char,
    /// A block device.
    Block,
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
}

/// Attributes of an object.
#[derive(Clone, Copy, Debug)]
pub struct Stat {
    /// Its filesystem.
    pub dev: u64,
    /// Its number there.
    pub ino: u64,
    /// What it is.
    pub kind: Kind,
    /// Permission bits with set-id and sticky.
    pub mode: u32,
    /// Names it has.
    pub nlink: u64,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Major and minor number of a device.
    pub rdev: (u32, u32),
    /// Bytes.
    pub size: u64,
    /// Blocks of 512 bytes that it takes.
    pub blocks: u64,
    /// Last change of the content: seconds since 1970, may be negative.
    pub mtime: i64,
    /// Nanoseconds of `mtime`.
    pub mtime_nsec: u32,
    /// Last change of any attribute, in seconds.
    pub ctime: i64,
}

/// Opens a directory the user named; symlinks on the way are the user's and are followed.
pub fn open_root(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

/// Opens the directory at `path` beneath `root`; the root itself for an empty path.
pub fn open_dir(root: impl AsFd, path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY;
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    match open_beneath(root.as_fd(), path, flags) {
        Err(Errno::NOSYS | Errno::PERM | Errno::NAMETOOLONG) => walk(root.as_fd(), path),
        other => Ok(other?),
    }
}

/// Opens the regular file `name` for reading. Anything else found under that name is an error, and
/// opening it has no effect. Its attributes come with it.
pub fn open_file(dir: impl AsFd, name: &OsStr) -> io::Result<(File, Stat)> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = match open_beneath(dir.as_fd(), Path::new(name), flags) {
        Err(Errno::NOSYS | Errno::PERM) => open_name(dir.as_fd(), name, flags)?,
        other => other?,
    };
    let stat = stat(&file, OsStr::new(""))?;
    if stat.kind != Kind::File {
        return Err(io::Error::other("no longer a regular file"));
    }
    Ok((File::from(file), stat))
}

fn open_beneath(root: BorrowedFd<'_>, path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    rustix::fs::openat2(root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve)
}

fn open_name(dir: BorrowedFd<'_>, name: &OsStr, flags: OFlags) -> io::Result<OwnedFd> {
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(dir, name, flags, Mode::empty())?)
}

/// By single names: for filters that know no openat2 and paths longer than one call may carry.
fn walk(root: BorrowedFd<'_>, path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY;
    let mut here = open_name(root, OsStr::new("."), flags)?;
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::Normal(name) => here = open_name(here.as_fd(), name, flags)?,
            _ => return Err(Errno::XDEV.into()),
        }
    }
    Ok(here)
}

/// Attributes of `name` in `dir`, of `dir` itself for the empty name.
pub fn stat(dir: impl AsFd, name: &OsStr) -> io::Result<Stat> {
    let mut flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    if name.is_empty() {
        flags |= AtFlags::EMPTY_PATH;
    }
    let raw = rustix::fs::statat(dir, name, flags)?;
    let kind = match rustix::fs::FileType::from_raw_mode(raw.st_mode) {
        rustix::fs::FileType::RegularFile => Kind::File,
        rustix::fs::FileType::Directory => Kind::Dir,
        rustix::fs::FileType::Symlink => Kind::Symlink,
        rustix::fs::FileType::CharacterDevice => Kind::Char,
        rustix::fs::FileType::BlockDevice => Kind::Block,
        rustix::fs::FileType::Fifo => Kind::Fifo,
        rustix::fs::FileType::Socket => Kind::Socket,
        _ => return Err(io::Error::other("an object of unknown type")),
    };
    // 32 bits on some machines.
    #[allow(clippy::useless_conversion)]
    let nlink = u64::from(raw.st_nlink);
    Ok(Stat {
        dev: raw.st_dev,
        ino: raw.st_ino,
        kind,
        mode: raw.st_mode & 0o7777,
        nlink,
        uid: raw.st_uid,
        gid: raw.st_gid,
        rdev: (rustix::fs::major(raw.st_rdev), rustix::fs::minor(raw.st_rdev)),
        size: u64::try_from(raw.st_size).unwrap_or(0),
        blocks: u64::try_from(raw.st_blocks).unwrap_or(0),
        mtime: raw.st_mtime,
        mtime_nsec: u32::try_from(raw.st_mtime_nsec).unwrap_or(0),
        ctime: raw.st_ctime,
    })
}

/// Attributes of `name` in `dir`, `None` when there is no such name there.
pub fn find(dir: impl AsFd, name: &OsStr) -> io::Result<Option<Stat>> {
    match stat(dir, name) {
        Ok(stat) => Ok(Some(stat)),
        // A name of another layer can be too long for this one's filesystem.
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ENAMETOOLONG)) => Ok(None),
        Err(e) => Err(e),
    }
}

/// All names in a directory but `.` and `..`, in the filesystem's order.
pub fn list(dir: impl AsFd) -> io::Result<Vec<OsString>> {
    let mut names = Vec::new();
    each(dir, |name| names.push(name.to_owned()))?;
    Ok(names)
}

/// The same one by one: however many there are, they take no memory.
pub fn each(dir: impl AsFd, mut look: impl FnMut(&OsStr)) -> io::Result<()> {
    let fd = open_name(dir.as_fd(), OsStr::new("."), OFlags::RDONLY | OFlags::DIRECTORY)?;
    let mut buffer: Vec<MaybeUninit<u8>> = vec![MaybeUninit::uninit(); 32 * 1024];
    let mut entries = rustix::fs::RawDir::new(fd, &mut buffer);
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            look(OsStr::from_bytes(name));
        }
    }
    Ok(())
}

/// What a symlink says.
pub fn read_link(dir: impl AsFd, name: &OsStr) -> io::Result<OsString> {
    let target = rustix::fs::readlinkat(dir, name, Vec::new())?;
    Ok(OsString::from_vec(target.into_bytes()))
}

/// Names of the xattrs of an object; none where the filesystem has none.
pub fn xattr_names(dir: impl AsFd, name: &OsStr) -> io::Result<Vec<OsString>> {
    let at = proc_path(dir.as_fd(), name);
    match grow(|buffer| {
        if name.is_empty() {
            rustix::fs::listxattr(at.as_slice(), buffer)
        } else {
            rustix::fs::llistxattr(at.as_slice(), buffer)
        }
    }) {
        Ok(list) => {
            let names = list.split(|&b| b == 0).filter(|key| !key.is_empty());
            Ok(names.map(|key| OsString::from_vec(key.to_vec())).collect())
        }
        Err(Errno::OPNOTSUPP) => Ok(Vec::new()),
        Err(e) => Err(e.into()),
    }
}

/// Value of an xattr of an object, `None` when there is none of that name that means anything.
pub fn xattr(dir: impl AsFd, name: &OsStr, key: &OsStr) -> io::Result<Option<Vec<u8>>> {
    let at = proc_path(dir.as_fd(), name);
    match grow(|buffer| {
        if name.is_empty() {
            rustix::fs::getxattr(at.as_slice(), key, buffer)
        } else {
            rustix::fs::lgetxattr(at.as_slice(), key, buffer)
        }
    }) {
        Ok(value) => Ok(Some(value)),
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(None),
        // The kernel takes empty capabilities and gives them to nobody.
        Err(Errno::INVAL) if key == "security.capability" => Ok(None),
        Err(e) => Err(e.into()),
    }
}

fn proc_path(dir: BorrowedFd<'_>, name: &OsStr) -> Vec<u8> {
    let mut path = format!("/proc/self/fd/{}", dir.as_raw_fd()).into_bytes();
    if !name.is_empty() {
        path.push(b'/');
        path.extend_from_slice(name.as_bytes());
    }
    path
}

/// Reads with a small buffer first and the largest one second.
fn grow(read: impl Fn(&mut [u8]) -> rustix::io::Result<usize>) -> rustix::io::Result<Vec<u8>> {
    let mut buffer = vec![0_u8; 512];
    let length = match read(&mut buffer) {
        Err(Errno::RANGE) => {
            buffer.resize(XATTR_LIMIT, 0);
            read(&mut buffer)?
        }
        other => other?,
    };
    buffer.truncate(length);
    Ok(buffer)
}

/// Whether we act as the superuser of the initial user namespace, who may read `trusted.*` and for
/// whom `user.*` marks could have been planted by somebody else.
pub fn has_initial_privilege() -> bool {
    let whole = std::fs::read_to_string("/proc/self/uid_map")
        .is_ok_and(|map| map.split_whitespace().eq(["0", "0", "4294967295"]));
    whole && rustix::process::geteuid().is_root()
}

//! Copies of whole trees: data shared with the original where the filesystem can, holes, names of one file, owners, modes,
//! extended attributes and times kept. Or, for trees that are never changed in place, new names for the same files.
//! Everything is reached from the two roots by descriptor; no symlink is followed.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, SeekFrom, Timespec, Timestamps, Uid, XattrFlags,
};
use rustix::io::Errno;

use plyfs_fuse::owner::OVERRIDE_NAMES;

use super::Ids;
use super::change;
use super::tree::{self, Kind, Stat};

/// How a tree is copied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct How<'a> {
    /// What is no directory gets another name instead of a copy, as far as the filesystem gives it one.
    pub link: bool,
    /// Extended attributes that the target does not take are left out.
    pub lose_xattrs: bool,
    /// Extended attributes that are left out whatever they say.
    pub without: &'static [&'static str],
    /// The copy gets these ids in the place of its original's.
    pub ids: Option<&'a Ids>,
}

/// What went wrong, and at which path beneath the root.
#[derive(Debug)]
pub struct Failure {
    /// Beneath the root of the original.
    pub path: PathBuf,
    /// The system's word.
    pub error: io::Error,
}

/// Copies the content and attributes of the directory `from` to the new directory `to`.
pub fn tree(from: &Path, to: &Path, how: How<'_>) -> Result<(), Failure> {
    change::make_dir(to, 0o777).map_err(|error| Failure { path: PathBuf::new(), error })?;
    content(from, to, how)
}

/// The same where `to` is there already, and empty.
pub fn content(from: &Path, to: &Path, how: How<'_>) -> Result<(), Failure> {
    let at = |path: &Path| {
        let path = path.to_path_buf();
        move |error| Failure { path, error }
    };
    let root = Path::new("");
    let source = tree::open_root(from).map_err(at(root))?;
    let target = tree::open_root(to).map_err(at(root))?;
    let mut copy = Copy { how, names: HashMap::new(), target };
    let mut dirs = vec![PathBuf::new()];
    let mut next = 0;
    while let Some(path) = dirs.get(next).cloned() {
        next += 1;
        let reading = tree::open_dir(&source, &path).map_err(at(&path))?;
        let writing = tree::open_dir(&copy.target, &path).map_err(at(&path))?;
        for name in tree::list(&reading).map_err(at(&path))? {
            let inner = path.join(&name);
            let entry = copy.entry(reading.as_fd(), writing.as_fd(), &name, &inner);
            if entry.map_err(at(&inner))? {
                dirs.push(inner);
            }
        }
    }
    // The deepest first: what is in a directory may have to be reached before its mode forbids it.
    for path in dirs.iter().rev() {
        let reading = tree::open_dir(&source, path).map_err(at(path))?;
        let writing = tree::open_dir(&copy.target, path).map_err(at(path))?;
        let none = OsStr::new("");
        let stat = tree::stat(&reading, none).map_err(at(path))?;
        attributes((reading.as_fd(), writing.as_fd()), none, &stat, how).map_err(at(path))?;
    }
    Ok(())
}

/// Gives the directory `to` the owner, mode, extended attributes and times of `from`.
pub fn directory_attributes(from: &Path, to: &Path, how: How<'_>) -> io::Result<()> {
    let (from, to) = (tree::open_root(from)?, tree::open_root(to)?);
    let stat = tree::stat(&from, OsStr::new(""))?;
    attributes((from.as_fd(), to.as_fd()), OsStr::new(""), &stat, how)
}

struct Copy<'a> {
    how: How<'a>,
    /// Where the copy of each file with several names is.
    names: HashMap<(u64, u64), PathBuf>,
    target: OwnedFd,
}

impl Copy<'_> {
    /// Copies one name; whether it is a directory, whose content and attributes are still to come.
    fn entry(
        &mut self,
        from: BorrowedFd<'_>,
        to: BorrowedFd<'_>,
        name: &OsStr,
        path: &Path,
    ) -> io::Result<bool> {
        let stat = tree::stat(from, name)?;
        change::point()?;
        if stat.kind == Kind::Dir {
            rustix::fs::mkdirat(to, name, Mode::RWXU)?;
            return Ok(true);
        }
        if self.how.link {
            match rustix::fs::linkat(from, name, to, name, AtFlags::empty()) {
                // As many names as the filesystem gives a file, or one it gives no second name.
                Err(Errno::MLINK | Errno::PERM | Errno::XDEV) => {}
                other => return Ok(other.map(|()| false)?),
            }
        }
        if stat.nlink > 1 {
            if let Some(first) = self.names.get(&(stat.dev, stat.ino)) {
                let dir = tree::open_dir(&self.target, first.parent().unwrap_or(Path::new("")))?;
                let first = first.file_name().unwrap_or_default();
                rustix::fs::linkat(dir, first, to, name, AtFlags::empty())?;
                return Ok(false);
            }
            self.names.insert((stat.dev, stat.ino), path.to_path_buf());
        }
        match stat.kind {
            Kind::File => self.file(from, to, name, &stat)?,
            Kind::Symlink => {
                rustix::fs::symlinkat(tree::read_link(from, name)?, to, name)?;
                attributes((from, to), name, &stat, self.how)?;
            }
            _ => {
                let device = rustix::fs::makedev(stat.rdev.0, stat.rdev.1);
                rustix::fs::mknodat(to, name, file_type(stat.kind), Mode::RUSR, device)?;
                attributes((from, to), name, &stat, self.how)?;
            }
        }
        Ok(false)
    }

    fn file(
        &self,
        from: BorrowedFd<'_>,
        to: BorrowedFd<'_>,
        name: &OsStr,
        stat: &Stat,
    ) -> io::Result<()> {
        let (reading, _) = tree::open_file(from, name)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let writing = File::from(rustix::fs::openat(to, name, flags, Mode::RUSR | Mode::WUSR)?);
        change::point()?;
        if rustix::fs::ioctl_ficlone(&writing, &reading).is_err() {
            data(&reading, &writing, stat.size)?;
        }
        drop(writing);
        attributes((from, to), name, stat, self.how)
    }
}

fn file_type(kind: Kind) -> FileType {
    match kind {
        Kind::Char => FileType::CharacterDevice,
        Kind::Block => FileType::BlockDevice,
        Kind::Fifo => FileType::Fifo,
        _ => FileType::Socket,
    }
}

/// Copies the first `size` bytes but for holes, to a new file.
pub fn data(from: &File, to: &File, size: u64) -> io::Result<()> {
    let mut at = 0;
    while at < size {
        let (start, end) = match rustix::fs::seek(from, SeekFrom::Data(at)) {
            Ok(start) => {
                (start, rustix::fs::seek(from, SeekFrom::Hole(start)).unwrap_or(size).min(size))
            }
            Err(Errno::NXIO) => break,
            Err(_) => (at, size),
        };
        range(from, to, start, end)?;
        at = end.max(start);
    }
    to.set_len(size)
}

fn range(from: &File, to: &File, start: u64, end: u64) -> io::Result<()> {
    let (mut read, mut write) = (start, start);
    while read < end {
        let want = usize::try_from(end - read).unwrap_or(usize::MAX).min(1 << 30);
        match rustix::fs::copy_file_range(from, Some(&mut read), to, Some(&mut write), want) {
            // The file has become shorter.
            Ok(0) => return Ok(()),
            Ok(_) | Err(Errno::INTR) => {}
            Err(Errno::XDEV | Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL | Errno::PERM) => {
                return by_hand(from, to, read, end);
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn by_hand(from: &File, to: &File, start: u64, end: u64) -> io::Result<()> {
    use std::os::unix::fs::FileExt;
    let mut piece = vec![0; 128 * 1024];
    let mut at = start;
    while at < end {
        let want = usize::try_from(end - at).unwrap_or(usize::MAX).min(piece.len());
        let got = from.read_at(&mut piece[..want], at)?;
        if got == 0 {
            break;
        }
        to.write_all_at(&piece[..got], at)?;
        at += u64::try_from(got).unwrap_or(0);
    }
    Ok(())
}

/// Owner, then attributes and mode, which a change of owner clears, then times. `name` is empty for directories
/// themselves.
fn attributes(
    (from, to): (BorrowedFd<'_>, BorrowedFd<'_>),
    name: &OsStr,
    stat: &Stat,
    how: How<'_>,
) -> io::Result<()> {
    let now = tree::stat(to, name)?;
    let at = if name.is_empty() { AtFlags::EMPTY_PATH } else { AtFlags::SYMLINK_NOFOLLOW };
    let (uid, gid) = owner(from, name, stat, how)?;
    if (now.uid, now.gid) != (uid, gid) {
        let owner = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        change::point()?;
        rustix::fs::chownat(to, name, owner.0, owner.1, at).map_err(|error| {
            match (how.ids, error) {
                (Some(_), Errno::INVAL) => {
                    io::Error::other(format!("owner {uid}:{gid}: not in this user namespace"))
                }
                (Some(_), Errno::PERM) => {
                    io::Error::other(format!("owner {uid}:{gid}: needs CAP_CHOWN"))
                }
                _ => error.into(),
            }
        })?;
    }
    // Before the mode, with which its owner may not be allowed to; that keeps capabilities, and is what an access list has.
    xattrs((from, to), name, how)?;
    if stat.kind != Kind::Symlink {
        let mode = Mode::from_raw_mode(stat.mode);
        change::point()?;
        // The name is one that was just made; by its path, since chmod of a descriptor needs it open for more.
        rustix::fs::chmod(proc_path(to, name), mode)?;
    }
    let time = Timespec { tv_sec: stat.mtime, tv_nsec: i64::from(stat.mtime_nsec) };
    let times = Timestamps { last_access: time, last_modification: time };
    change::point()?;
    if name.is_empty() {
        return Ok(rustix::fs::utimensat(
            rustix::fs::CWD,
            proc_path(to, name),
            &times,
            AtFlags::empty(),
        )?);
    }
    Ok(rustix::fs::utimensat(to, name, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}

/// The owner of a copy. A whiteout belongs to nobody, and where a record says who the owner is, the inode's tells only who
/// wrote that.
fn owner(from: BorrowedFd<'_>, name: &OsStr, stat: &Stat, how: How<'_>) -> io::Result<(u32, u32)> {
    let own = (stat.uid, stat.gid);
    let Some(ids) = how.ids else { return Ok(own) };
    let is_record = |key: &OsString| OVERRIDE_NAMES.iter().any(|name| key == name);
    let is_whiteout = (stat.kind, stat.rdev) == (Kind::Char, (0, 0));
    match is_whiteout || tree::xattr_names(from, name)?.iter().any(is_record) {
        true => Ok(own),
        false => ids.owner(own.0, own.1),
    }
}

fn xattrs(
    (from, to): (BorrowedFd<'_>, BorrowedFd<'_>),
    name: &OsStr,
    how: How<'_>,
) -> io::Result<()> {
    let mut wanted = tree::xattr_names(from, name)?;
    access_last(&mut wanted);
    for key in wanted.iter().filter(|key| !how.without.iter().any(|left| key == left)) {
        let Some(value) = tree::xattr(from, name, key)? else { continue };
        let value = how.ids.map_or(Ok(value.clone()), |ids| ids.xattr(key, value))?;
        match set_xattr(to, name, key, &value) {
            // A security module gives every new file its own.
            Err(_) if key == "security.selinux" => {}
            Err(error) if how.lose_xattrs => log::debug!("{}: {error}", key.to_string_lossy()),
            other => other?,
        }
    }
    Ok(())
}

/// Puts access lists, which may close what they are set on, behind the other attributes.
pub fn access_last(keys: &mut [OsString]) {
    keys.sort_by_key(|key| key.as_bytes().starts_with(b"system.posix_acl_"));
}

/// Sets an xattr of a name in a directory, or (`name` empty) of the directory.
pub fn set_xattr(dir: BorrowedFd<'_>, name: &OsStr, key: &OsStr, value: &[u8]) -> io::Result<()> {
    change::point()?;
    let path = proc_path(dir, name);
    let flags = XattrFlags::empty();
    let result = match name.is_empty() {
        true => rustix::fs::setxattr(path, key, value, flags),
        false => rustix::fs::lsetxattr(path, key, value, flags),
    };
    Ok(result?)
}

fn proc_path(dir: BorrowedFd<'_>, name: &OsStr) -> PathBuf {
    let mut path = format!("/proc/self/fd/{}", dir.as_raw_fd()).into_bytes();
    if !name.is_empty() {
        path.push(b'/');
        path.extend_from_slice(name.as_bytes());
    }
    PathBuf::from(OsString::from_vec(path))
}

/// Adds up the blocks and inodes of a tree, its root included, a file with several names once.
pub fn usage(root: &Path) -> Result<(u64, u64), Failure> {
    let fail = |path: &Path| {
        let path = path.to_path_buf();
        move |error| Failure { path, error }
    };
    let top = tree::open_root(root).map_err(fail(Path::new("")))?;
    let stat = tree::stat(&top, OsStr::new("")).map_err(fail(Path::new("")))?;
    let (mut blocks, mut inodes) = (stat.blocks, 1_u64);
    let mut seen = std::collections::HashSet::new();
    let mut todo = vec![PathBuf::new()];
    while let Some(path) = todo.pop() {
        let dir = tree::open_dir(&top, &path).map_err(fail(&path))?;
        for name in tree::list(&dir).map_err(fail(&path))? {
            let inner = path.join(&name);
            let Some(stat) = tree::find(&dir, &name).map_err(fail(&inner))? else { continue };
            if stat.kind != Kind::Dir && stat.nlink > 1 && !seen.insert((stat.dev, stat.ino)) {
                continue;
            }
            blocks += stat.blocks;
            inodes += 1;
            if stat.kind == Kind::Dir {
                todo.push(inner);
            }
        }
    }
    Ok((blocks * 512, inodes))
}

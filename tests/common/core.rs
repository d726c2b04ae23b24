//! The overlay core as a target, without a mount: paths become walks of lookups, as the kernel makes
//! them, and every lookup is given back.
//!
//! What the kernel refuses before it asks a filesystem is refused here too, and nothing else: walking
//! through what is no directory, contents of what is no file, `chmod` of a symlink, writing through a
//! descriptor that only reads, copying a range of a file onto itself, a hard link to a directory,
//! `user.` attributes of what is neither file nor directory. Where a name would move below itself the
//! core has to refuse by itself, but the number is the kernel's.

mod read;

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::ffi::OsStr;
use std::path::PathBuf;
use std::sync::Arc;

use libc::{
    EBADF, EEXIST, EINVAL, EISDIR, ELOOP, ENOENT, ENOTDIR, ENOTEMPTY, ENXIO, EOPNOTSUPP, EPERM,
};
use plyfs_fuse::attr::{Attr, SetAttr, SetTime, Time};
use plyfs_fuse::inode::Ino;
use plyfs_fuse::namei::Entry;
use plyfs_fuse::options::Whiteouts;
use plyfs_fuse::owner::Caller;
use plyfs_fuse::{Options, Overlay};

use super::model::Who;
use super::ops::{EXCHANGE, Op, Outcome, Said, Target, split};
use super::tree::{Stamp, Tree, kind_letter};
use read::{encode_dev, meta};

type Res<T> = Result<T, i32>;

/// An overlay, and what one client holds open in it.
pub struct Core {
    fs: Arc<Overlay>,
    who: Who,
    held: BTreeMap<usize, Open>,
    /// Directories whose names stay looked up, as the kernel's cache keeps them; the last ones.
    lingering: RefCell<VecDeque<Counted>>,
    linger: usize,
}

/// An open file: counted as open, and its inode as looked up.
struct Open {
    node: Counted,
    write: bool,
}

/// An object with one lookup counted, given back on drop.
struct Counted {
    fs: Arc<Overlay>,
    attr: Attr,
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.fs.forget(self.attr.ino, 1);
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.node.fs.release(self.node.attr.ino);
    }
}

impl Counted {
    fn kind(&self) -> char {
        kind_letter(self.attr.mode)
    }
}

/// A walked path: every directory on it stays counted, as the kernel's cache of names keeps it.
struct Walk {
    nodes: Vec<Counted>,
}

impl Walk {
    fn ino(&self) -> Ino {
        self.nodes.last().map_or(Ino::ROOT, |node| node.attr.ino)
    }

    fn kind(&self) -> char {
        self.nodes.last().map_or('d', Counted::kind)
    }
}

impl Core {
    /// Opens an overlay of `lowers`, top first.
    pub fn open(lowers: &[PathBuf], upper: PathBuf, work: PathBuf) -> Result<Core, String> {
        Core::open_writing(Whiteouts::Auto, (lowers, upper, work))
    }

    /// [`Core::open`] with deletions written in a dialect.
    pub fn open_writing(
        whiteouts: Whiteouts,
        (lowers, upper, work): (&[PathBuf], PathBuf, PathBuf),
    ) -> Result<Core, String> {
        let options = Options {
            whiteouts,
            lowers: lowers.to_vec(),
            upper: Some(upper),
            work: Some(work),
            ..Options::default()
        };
        let fs = Overlay::open(&options).map_err(|e| format!("open the overlay: {e}"))?;
        Ok(Core::new(Arc::new(fs)))
    }

    /// A client of an overlay that has others.
    pub fn new(fs: Arc<Overlay>) -> Core {
        let lingering = RefCell::default();
        Core { fs, who: Who::me(), held: BTreeMap::new(), lingering, linger: 0 }
    }

    /// Has up to `count` directories stay known between operations.
    pub fn linger(mut self, count: usize) -> Core {
        self.linger = count;
        self
    }

    /// The overlay.
    pub fn overlay(&self) -> &Arc<Overlay> {
        &self.fs
    }

    fn caller(&self) -> Caller {
        Caller { uid: self.who.uid, gid: self.who.gid, umask: self.who.umask }
    }

    fn counted(&self, entry: Entry) -> Counted {
        Counted { fs: self.fs.clone(), attr: entry.attr }
    }

    fn lookup(&self, dir: Ino, name: &str) -> Res<Counted> {
        let found =
            self.fs.lookup(dir, OsStr::new(name)).map(|entry| self.counted(entry)).map_err(no)?;
        if found.kind() == 'd' && self.linger > 0 {
            let mut lingering = self.lingering.borrow_mut();
            lingering.extend(self.fs.lookup(dir, OsStr::new(name)).map(|e| self.counted(e)));
            let more = lingering.len().saturating_sub(self.linger);
            lingering.drain(..more);
        }
        Ok(found)
    }

    fn walk(&self, path: &str) -> Res<Walk> {
        let mut walk = Walk { nodes: Vec::new() };
        for part in path.split('/').filter(|part| !part.is_empty()) {
            passable(walk.kind())?;
            walk.nodes.push(self.lookup(walk.ino(), part)?);
        }
        Ok(walk)
    }

    /// The directory of a path, and the last name.
    fn parent<'a>(&self, path: &'a str) -> Res<(Walk, &'a OsStr)> {
        let (dir, name) = split(path);
        let walk = self.walk(dir)?;
        passable(walk.kind())?;
        Ok((walk, OsStr::new(name)))
    }

    /// A regular file, opened.
    fn data(&self, path: &str, flags: i32) -> Res<(Walk, Open)> {
        let mut walk = self.walk(path)?;
        match walk.kind() {
            '-' => {}
            'd' => return Err(EISDIR),
            'l' => return Err(ELOOP),
            _ => return Err(ENXIO),
        }
        self.fs.open_file(self.caller(), walk.ino(), flags).map_err(no)?;
        let node = walk.nodes.pop().ok_or(EISDIR)?;
        Ok((walk, Open { node, write: flags & libc::O_ACCMODE != libc::O_RDONLY }))
    }

    fn write(&self, ino: Ino, at: u64, data: &[u8]) -> Res<Outcome> {
        let mut done = 0;
        while done < data.len() {
            let n = self
                .fs
                .write(ino, at + done as u64, &data[done..], !self.who.privileged)
                .map_err(no)?;
            assert!(n > 0, "a write of nothing");
            done += n;
        }
        Ok(Outcome::Count(done as u64))
    }

    fn read(&self, ino: Ino, at: u64, len: usize) -> Res<Vec<u8>> {
        let mut bytes = vec![0; len];
        let mut done = 0;
        while done < len {
            match self.fs.read(ino, at + done as u64, &mut bytes[done..]).map_err(no)? {
                0 => break,
                n => done += n,
            }
        }
        bytes.truncate(done);
        Ok(bytes)
    }

    fn set(&self, ino: Ino, set: SetAttr) -> Res<Outcome> {
        self.fs.setattr(self.caller(), ino, &set).map(|_| Outcome::Done).map_err(no)
    }

    fn copy_range(
        &self,
        (from, from_at): (&str, u64),
        (to, to_at): (&str, u64),
        len: u64,
    ) -> Res<Outcome> {
        let (_from, source) = self.data(from, libc::O_RDONLY)?;
        let (_to, target) = self.data(to, libc::O_WRONLY)?;
        let count = len.min(source.node.attr.size.saturating_sub(from_at));
        let (a, b) = (source.node.attr.ino, target.node.attr.ino);
        if a == b && to_at + count > from_at && to_at < from_at + count {
            return Err(EINVAL);
        }
        if count == 0 {
            return Ok(Outcome::Count(0));
        }
        self.fs.copy_file_range(a, from_at, b, to_at, count).map(Outcome::Count).map_err(no)
    }

    fn answer(&mut self, op: &Op) -> Said {
        match op {
            Op::Create { path, mode, fill } => {
                let (dir, name) = self.parent(path)?;
                let entry = self.fs.create(self.caller(), dir.ino(), name, *mode).map_err(no)?;
                let open = Open { node: self.counted(entry), write: true };
                self.write(open.node.attr.ino, 0, &fill.bytes())?;
            }
            Op::Overwrite { path, fill } => {
                let (_walk, open) = self.data(path, libc::O_WRONLY | libc::O_TRUNC)?;
                self.set(open.node.attr.ino, SetAttr { size: Some(0), ..SetAttr::default() })?;
                self.write(open.node.attr.ino, 0, &fill.bytes())?;
            }
            Op::Write { path, at, fill } => {
                let (_walk, open) = self.data(path, libc::O_WRONLY)?;
                return self.write(open.node.attr.ino, *at, &fill.bytes());
            }
            Op::Truncate { path, size } => {
                let (_walk, open) = self.data(path, libc::O_WRONLY)?;
                return self
                    .set(open.node.attr.ino, SetAttr { size: Some(*size), ..SetAttr::default() });
            }
            Op::Fallocate { path, mode, at, len } => {
                let (_walk, open) = self.data(path, libc::O_WRONLY)?;
                self.fs.fallocate(open.node.attr.ino, *mode as i32, *at, *len).map_err(no)?;
            }
            Op::CopyRange { from, from_at, to, to_at, len } => {
                return self.copy_range((from, *from_at), (to, *to_at), *len);
            }
            Op::Read { path, at, len } => {
                let (_walk, open) = self.data(path, libc::O_RDONLY)?;
                return self.read(open.node.attr.ino, *at, *len).map(Outcome::Bytes);
            }
            _ => return self.answer_names(op),
        }
        Ok(Outcome::Done)
    }

    fn answer_names(&mut self, op: &Op) -> Said {
        match op {
            Op::Mkdir { path, mode } => {
                let (dir, name) = self.parent(path)?;
                self.counted(self.fs.mkdir(self.caller(), dir.ino(), name, *mode).map_err(no)?);
            }
            Op::Mknod { path, mode, rdev } => {
                let (dir, name) = self.parent(path)?;
                let rdev = encode_dev(*rdev);
                self.counted(
                    self.fs.mknod(self.caller(), dir.ino(), name, *mode, rdev).map_err(no)?,
                );
            }
            Op::Symlink { path, target } => {
                let (dir, name) = self.parent(path)?;
                let target = OsStr::new(target);
                self.counted(self.fs.symlink(self.caller(), dir.ino(), name, target).map_err(no)?);
            }
            Op::Link { from, to } => {
                let source = self.walk(from)?;
                let (dir, name) = self.parent(to)?;
                if source.kind() == 'd' {
                    let taken = self.lookup(dir.ino(), split(to).1).is_ok();
                    return Err(if taken { EEXIST } else { EPERM });
                }
                self.counted(self.fs.link(source.ino(), dir.ino(), name).map_err(no)?);
            }
            Op::Rename { from, to, flags } => {
                let ((dir, name), (new_dir, new_name)) = (self.parent(from)?, self.parent(to)?);
                let said =
                    self.fs.rename(dir.ino(), name, new_dir.ino(), new_name, *flags).map_err(no);
                return said.map(|()| Outcome::Done).map_err(|code| {
                    nested(from, to, *flags)
                        .filter(|_| !matches!(code, ENOENT | EEXIST))
                        .unwrap_or(code)
                });
            }
            Op::Unlink { path } => {
                let (dir, name) = self.parent(path)?;
                self.fs.unlink(dir.ino(), name).map_err(no)?;
            }
            Op::Rmdir { path } => {
                let (dir, name) = self.parent(path)?;
                self.fs.rmdir(dir.ino(), name).map_err(no)?;
            }
            Op::ReadLink { path } => {
                let walk = self.walk(path)?;
                if walk.kind() != 'l' {
                    return Err(EINVAL);
                }
                let target = self.fs.readlink(walk.ino()).map_err(no)?;
                return Ok(Outcome::Bytes(target.into_encoded_bytes()));
            }
            Op::ReadDir { path } => {
                let walk = self.walk(path)?;
                if walk.kind() != 'd' {
                    return Err(ENOTDIR);
                }
                let above = walk.nodes.iter().rev().nth(1).map_or(Ino::ROOT, |node| node.attr.ino);
                let names =
                    self.list(walk.ino(), above).unwrap_or_else(|text| vec![(text, 0, Ino::ROOT)]);
                return Ok(Outcome::Names(
                    names.into_iter().map(|(name, kind, _)| (name, kind_letter(kind))).collect(),
                ));
            }
            _ => return self.answer_attributes(op),
        }
        Ok(Outcome::Done)
    }

    fn answer_attributes(&mut self, op: &Op) -> Said {
        match op {
            Op::Stat { path } => {
                let walk = self.walk(path)?;
                // What the lookup said: asking again would be another moment.
                return match walk.nodes.last() {
                    Some(node) => Ok(Outcome::Stat(meta(&node.attr))),
                    None => self
                        .fs
                        .getattr(Ino::ROOT)
                        .map(|attr| Outcome::Stat(meta(&attr)))
                        .map_err(no),
                };
            }
            Op::Chmod { path, mode } => {
                let walk = self.walk(path)?;
                if walk.kind() == 'l' {
                    return Err(EOPNOTSUPP);
                }
                return self.set(walk.ino(), SetAttr { mode: Some(*mode), ..SetAttr::default() });
            }
            Op::Chown { path, uid, gid } => {
                let walk = self.walk(path)?;
                return self
                    .set(walk.ino(), SetAttr { uid: *uid, gid: *gid, ..SetAttr::default() });
            }
            Op::Utimes { path, mtime } => {
                let walk = self.walk(path)?;
                let time =
                    |stamp: &Stamp| Some(SetTime::At(Time { sec: stamp.sec, nsec: stamp.nsec }));
                return self.set(
                    walk.ino(),
                    SetAttr { atime: time(mtime), mtime: time(mtime), ..SetAttr::default() },
                );
            }
            Op::SetXattr { path, name, value, flags } => {
                let walk = self.walk(path)?;
                may_change_xattr(walk.kind(), name)?;
                self.fs
                    .setxattr(walk.ino(), OsStr::new(name), value.as_bytes(), *flags as i32)
                    .map_err(no)?;
            }
            Op::RemoveXattr { path, name } => {
                let walk = self.walk(path)?;
                may_change_xattr(walk.kind(), name)?;
                self.fs.removexattr(walk.ino(), OsStr::new(name)).map_err(no)?;
            }
            Op::GetXattr { path, name } => {
                let walk = self.walk(path)?;
                return self
                    .fs
                    .getxattr(walk.ino(), OsStr::new(name))
                    .map(Outcome::Bytes)
                    .map_err(no);
            }
            _ => return self.answer_held(op),
        }
        Ok(Outcome::Done)
    }

    fn slot(&self, slot: usize) -> Res<&Open> {
        self.held.get(&slot).ok_or(EBADF)
    }

    fn answer_held(&mut self, op: &Op) -> Said {
        match op {
            Op::Hold { slot, path, write } => {
                let (_walk, open) =
                    self.data(path, if *write { libc::O_RDWR } else { libc::O_RDONLY })?;
                self.held.insert(*slot, open);
            }
            Op::HoldTmp { slot, path, mode } => {
                let walk = self.walk(path)?;
                if walk.kind() != 'd' {
                    return Err(ENOTDIR);
                }
                let entry = self.fs.tmpfile(self.caller(), walk.ino(), *mode).map_err(no)?;
                let open = Open { node: self.counted(entry), write: true };
                self.held.insert(*slot, open);
            }
            Op::HeldWrite { slot, at, fill } => {
                let open = self.slot(*slot)?;
                if !open.write {
                    return Err(EBADF);
                }
                return self.write(open.node.attr.ino, *at, &fill.bytes());
            }
            Op::HeldRead { slot, at, len } => {
                return self.read(self.slot(*slot)?.node.attr.ino, *at, *len).map(Outcome::Bytes);
            }
            Op::HeldStat { slot } => {
                let attr = self.fs.getattr(self.slot(*slot)?.node.attr.ino).map_err(no)?;
                return Ok(Outcome::Stat(meta(&attr)));
            }
            Op::HeldTruncate { slot, size } => {
                let open = self.slot(*slot)?;
                if !open.write {
                    return Err(EINVAL);
                }
                return self
                    .set(open.node.attr.ino, SetAttr { size: Some(*size), ..SetAttr::default() });
            }
            Op::HeldChmod { slot, mode } => {
                let ino = self.slot(*slot)?.node.attr.ino;
                return self.set(ino, SetAttr { mode: Some(*mode), ..SetAttr::default() });
            }
            Op::HeldLink { slot, to } => {
                let ino = self.slot(*slot)?.node.attr.ino;
                let (dir, name) = self.parent(to)?;
                self.counted(self.fs.link(ino, dir.ino(), name).map_err(no)?);
            }
            Op::Close { slot } => drop(self.held.remove(slot).ok_or(EBADF)?),
            Op::Reopen => self.held.clear(),
            other => unreachable!("{other}"),
        }
        Ok(Outcome::Done)
    }
}

impl Target for Core {
    fn apply(&mut self, op: &Op) -> Said {
        self.answer(op)
    }

    fn tree(&self) -> Result<Tree, String> {
        Tree::of(self)
    }

    fn close_all(&mut self) {
        self.held.clear();
    }
}

fn no(error: plyfs_fuse::Error) -> i32 {
    error.errno()
}

fn passable(kind: char) -> Res<()> {
    match kind {
        'd' => Ok(()),
        'l' => Err(ELOOP),
        _ => Err(ENOTDIR),
    }
}

/// What the kernel says to moving one of two names below the other, once it knows that they exist.
fn nested(from: &str, to: &str, flags: u32) -> Option<i32> {
    let below = |inner: &str, outer: &str| {
        inner.strip_prefix(outer).is_some_and(|rest| rest.starts_with('/'))
    };
    match (below(to, from), below(from, to)) {
        (true, _) => Some(EINVAL),
        (_, true) => Some(if flags == EXCHANGE { EINVAL } else { ENOTEMPTY }),
        _ => None,
    }
}

fn may_change_xattr(kind: char, name: &str) -> Res<()> {
    if name.starts_with("user.") && !matches!(kind, '-' | 'd') { Err(EPERM) } else { Ok(()) }
}

//! What goes: whiteouts and opaque marks, and what is in the way of an entry.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use plyfs_fuse::sys;
use plyfs_fuse::whiteout::{self, Dialect, OPAQUE_FILE, PREFIX, Space, Style};

use super::Whiteouts;
use super::dirs::{At, DIR};
use super::paths::Paths;
use super::reader::{Entry, Kind};
use super::unpack::Unpack;
use super::way::Wanted;
use crate::error::{Error, Result};
use crate::sys::unpack;

/// AUFS's own names begin with this.
const AUFS: &[u8] = b".wh..wh.";
/// The directory of files that AUFS has several links to.
pub(super) const LINKED: &[u8] = b".wh..wh.plnk";

/// What tells a deletion what the archive brought from what was there.
#[derive(Default)]
pub(super) struct Brought {
    paths: Paths,
    /// Directories with nothing from below left in them: nothing comes there any more but what is brought.
    emptied: Paths,
}

/// Files kept for links to them, in a hidden directory of the root.
pub(super) struct Kept {
    name: String,
    fd: OwnedFd,
}

/// An error that names the entry where the system's words are about a missing right.
pub(super) fn name_entry(error: Error, entry: &Entry) -> Error {
    match error {
        Error::Io { op, path, source } if sys::errno(&source) == sys::EPERM => {
            let hint = format!("{op} {}: {source}: devices need privilege", path.display());
            entry.wrong(hint)
        }
        other => other,
    }
}

impl Unpack<'_> {
    /// Notes a path of the archive.
    pub(super) fn bring(&mut self, path: &[u8]) -> Result<()> {
        if let Some(brought) = &mut self.brought {
            return brought.paths.insert(path);
        }
        if self.lent.is_empty() {
            return Ok(());
        }
        self.lent.remove(path);
        let mut above = path;
        // What is above a directory that is the archive's is so too.
        while let Some(end) = above.iter().rposition(|&byte| byte == b'/') {
            above = &above[..end];
            if !self.lent.remove(above) {
                break;
            }
        }
        Ok(())
    }

    /// Notes a path that is there for what the lower layers have: a copy, a directory on the way to one or to a
    /// whiteout, a whiteout.
    pub(super) fn lend(&mut self, path: &[u8]) -> Result<()> {
        match self.brought {
            Some(_) => Ok(()),
            None => self.lent.insert(path),
        }
    }

    /// Whether the archive brought a path.
    pub(super) fn is_brought(&self, path: &[u8]) -> bool {
        match &self.brought {
            Some(brought) => brought.paths.contains(path),
            None => !self.lent.contains(path),
        }
    }

    /// Does what an entry says about lower layers; false when it is an object of the layer.
    pub(super) fn is_mark(&mut self, entry: &Entry, names: &[&[u8]]) -> Result<bool> {
        let Some((name, above)) = names.split_last() else { return Ok(false) };
        if above.iter().any(|name| name.starts_with(AUFS)) {
            return Ok(true);
        }
        let Some(deleted) = name.strip_prefix(PREFIX) else { return Ok(false) };
        if *name == OPAQUE_FILE.as_bytes() && entry.kind != Kind::Dir {
            if self.enter(above, Wanted::Deletion, entry)? {
                self.hide_all()?;
            }
            return Ok(true);
        }
        if name.starts_with(AUFS) {
            return Ok(true);
        }
        if entry.kind == Kind::Dir {
            return Ok(false);
        }
        match deleted {
            b"" | b"." | b".." => Err(entry.wrong("deletes no name")),
            deleted => {
                if self.enter(above, Wanted::Deletion, entry)? {
                    self.delete(OsStr::from_bytes(deleted))?;
                }
                Ok(true)
            }
        }
    }

    /// Hides what lower layers have under a name of the last directory.
    fn delete(&mut self, name: &OsStr) -> Result<()> {
        let bytes = name.as_bytes();
        let found = sys::has(self.dirs.fd(), name).at("stat", &self.dirs, bytes)?;
        self.dirs.top_mut().changed = true;
        match (self.dialect, found) {
            (None, None) => Ok(()),
            (None, Some(_)) => self.purge(bytes),
            (Some(dialect), None) => self.hide(dialect, name),
            (Some(dialect), Some(stat)) if self.lent.contains(&self.dirs.path_of(bytes)) => {
                if self.is_whiteout(name, &stat)? {
                    return Ok(());
                }
                self.take_back(self.dirs.fd(), name, stat.is_dir())?;
                self.lent.remove(&self.dirs.path_of(bytes));
                self.hide(dialect, name)
            }
            // It hides those that are no directories.
            (Some(dialect), Some(stat)) if stat.is_dir() => {
                self.take_back_below(&self.dirs.path_of(bytes))?;
                // The time is the entry's, whenever that came.
                let times = ((stat.atime.sec, stat.atime.nsec), (stat.mtime.sec, stat.mtime.nsec));
                let marked = set_opaque(dialect, self.dirs.fd(), name);
                marked.at("mark as opaque", &self.dirs, bytes)?;
                self.marked = true;
                unpack::set_times_at(self.dirs.fd(), name, times.0, times.1).at(
                    "set times of",
                    &self.dirs,
                    bytes,
                )
            }
            (Some(_), Some(_)) => Ok(()),
        }
    }

    /// Hides a name that is not in the last directory. A whiteout of nothing would be shown by the kernel; where no lower
    /// layer is known, any may be there.
    fn hide(&mut self, dialect: Dialect, name: &OsStr) -> Result<()> {
        if !self.below.is_empty() && self.below(name.as_bytes())?.is_none() {
            return Ok(());
        }
        self.write_whiteout(dialect, name)?;
        self.lend(&self.dirs.path_of(name.as_bytes()))
    }

    /// Where attributes were written that hide something.
    pub(super) fn marks(&self) -> Option<&'static str> {
        match self.target.whiteouts {
            Whiteouts::Overlay { user } if self.marked => {
                Some(if user { "user" } else { "trusted" })
            }
            _ => None,
        }
    }

    fn write_whiteout(&mut self, dialect: Dialect, name: &OsStr) -> Result<()> {
        self.marked |= dialect.style == Style::Xattr;
        let written = match dialect.style {
            Style::Xattr => dialect
                .allow_xattr_whiteouts(self.dirs.fd())
                .and_then(|()| dialect.make(self.dirs.fd(), name)),
            Style::Device | Style::Dot => dialect.write(self.dirs.fd(), name),
        };
        match written {
            Err(error) if dialect.style == Style::Device && sys::errno(&error) == sys::EPERM => {
                let dialect = Dialect { style: Style::Xattr, ..dialect };
                self.dialect = Some(dialect);
                self.write_whiteout(dialect, name)
            }
            other => other.at("write a whiteout of", &self.dirs, name.as_bytes()),
        }
    }

    /// Hides what lower layers have in the last directory.
    fn hide_all(&mut self) -> Result<()> {
        self.dirs.top_mut().changed = true;
        let Some(dialect) = self.dialect else {
            let path = self.dirs.path();
            return self.purge_below(&path);
        };
        // The kernel takes no opaque root.
        if self.dirs.depth() == 0 && !self.below.is_empty() && !self.dirs.top().opaque {
            for name in self.names_below()? {
                self.delete(&name)?;
            }
        } else if self.dirs.depth() > 0 {
            self.take_back_below(&self.dirs.path())?;
        }
        let marked = set_opaque(dialect, self.dirs.fd(), OsStr::new(""));
        marked.at("mark as opaque", &self.dirs, b"")?;
        self.marked = true;
        let top = self.dirs.top_mut();
        (top.opaque, top.below) = (true, Some(Vec::new()));
        Ok(())
    }

    /// Deletes a name of the last directory with what is below, but for what the archive brought.
    fn purge(&mut self, name: &[u8]) -> Result<()> {
        let path = self.dirs.path_of(name);
        let at = OsStr::from_bytes(name);
        let stat = sys::stat(self.dirs.fd(), at).at("stat", &self.dirs, name)?;
        if stat.is_dir() {
            self.purge_below(&path)?;
        }
        if !self.is_brought(&path) {
            remove_one(self.dirs.fd(), at, stat.is_dir()).at("remove", &self.dirs, name)?;
        }
        Ok(())
    }

    /// Deletes what is below a directory, but for what the archive brought.
    fn purge_below(&mut self, path: &[u8]) -> Result<()> {
        let (mut found, mut at) = (vec![path.to_vec()], 0);
        found.retain(|path| !self.is_emptied(path));
        while let Some(dir) = found.get(at).cloned() {
            at += 1;
            for (name, is_dir) in self.list_in(&dir)? {
                let path = join(&dir, &name);
                if is_dir && !self.is_emptied(&path) {
                    found.push(path);
                }
            }
        }
        for dir in found.into_iter().rev() {
            self.change_in(&dir, |unpack, fd, name, is_dir| {
                let path = join(&dir, name);
                match unpack.is_brought(&path) {
                    true => Ok(()),
                    false => remove_one(fd, OsStr::from_bytes(name), is_dir).at(
                        "remove",
                        &unpack.dirs,
                        name,
                    ),
                }
            })?;
            // A link may copy from lower layers at any time.
            let last = dir == path || self.is_brought(&dir);
            if let Some(brought) = self.brought.as_mut().filter(|_| last && self.below.is_empty()) {
                brought.emptied.insert(&dir)?;
            }
        }
        Ok(())
    }

    fn is_emptied(&self, path: &[u8]) -> bool {
        self.brought.as_ref().is_some_and(|brought| brought.emptied.contains(path))
    }

    /// Deletes what is below a directory of an overlay for the sake of lower layers only, which it hides now.
    fn take_back_below(&mut self, path: &[u8]) -> Result<()> {
        let mut found = vec![path.to_vec()];
        while let Some(dir) = found.pop().filter(|_| !self.lent.is_empty()) {
            // It was done when that was marked; what is opaque has nothing from below since.
            if self.is_opaque(&dir)? {
                continue;
            }
            self.change_in(&dir, |unpack, fd, name, is_dir| {
                let path = join(&dir, name);
                if unpack.lent.contains(&path) {
                    return unpack.take_back(fd, OsStr::from_bytes(name), is_dir);
                }
                found.extend(is_dir.then_some(path));
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Removes what is there for the sake of lower layers only; in a directory, all is.
    fn take_back(&self, dir: BorrowedFd<'_>, name: &OsStr, is_dir: bool) -> Result<()> {
        let removed = match is_dir {
            true => sys::remove_tree(dir, name),
            false => sys::unlink(dir, name),
        };
        removed.at("remove", &self.dirs, name.as_bytes())
    }

    fn is_opaque(&self, path: &[u8]) -> Result<bool> {
        let Some(dialect) = self.dialect else { return Ok(false) };
        let marks = whiteout::marks(self.open_in(path)?, OsStr::new(""), dialect.space);
        Ok(marks.at("read xattrs of", &self.dirs, b"")?.opaque)
    }

    /// Goes over the names in a directory below the root, of which some go. Its times stay.
    fn change_in(
        &self,
        path: &[u8],
        mut each: impl FnMut(&Self, BorrowedFd<'_>, &[u8], bool) -> Result<()>,
    ) -> Result<()> {
        let fd = self.open_in(path)?;
        let stat = sys::fstat(&fd).at("stat", &self.dirs, b"")?;
        for (name, is_dir) in self.list_in(path)? {
            each(self, fd.as_fd(), &name, is_dir)?;
        }
        let moment = |time: plyfs_fuse::attr::Time| (time.sec, time.nsec);
        let set = unpack::set_times(&fd, moment(stat.atime), moment(stat.mtime));
        set.at("set times of", &self.dirs, b"")
    }

    fn open_in(&self, path: &[u8]) -> Result<OwnedFd> {
        let path = Path::new(OsStr::from_bytes(path));
        sys::open_beneath(self.dirs.root(), path, DIR).at("open", &self.dirs, b"")
    }

    /// Names in a directory below the root, and whether they are directories.
    fn list_in(&self, path: &[u8]) -> Result<Vec<(Vec<u8>, bool)>> {
        let fd = self.open_in(path)?;
        let names = sys::list(&fd).at("list", &self.dirs, b"")?;
        let mut list = Vec::new();
        for entry in names {
            if path.is_empty() && self.kept.as_ref().is_some_and(|kept| *kept.name == *entry.name) {
                continue;
            }
            let is_dir = match entry.kind {
                0 => sys::stat(&fd, &entry.name).at("stat", &self.dirs, b"")?.is_dir(),
                kind => kind == sys::S_IFDIR,
            };
            list.push((entry.name.as_bytes().to_vec(), is_dir));
        }
        Ok(list)
    }

    /// Removes what is under a name of the last directory, so that an entry can take its place.
    pub(super) fn make_way(&mut self, name: &OsStr) -> Result<()> {
        let bytes = name.as_bytes();
        let stat = sys::stat(self.dirs.fd(), name).at("stat", &self.dirs, bytes)?;
        let path = self.dirs.path_of(bytes);
        self.dirs.top_mut().changed = true;
        if stat.is_dir() {
            self.save_all(&path)?;
            return sys::remove_tree(self.dirs.fd(), name).at("remove", &self.dirs, bytes);
        }
        if stat.kind() == sys::S_IFREG {
            self.save(
                self.dirs.fd().try_clone_to_owned().at("open", &self.dirs, b"")?,
                name,
                &path,
            )?;
        }
        sys::unlink(self.dirs.fd(), name).at("remove", &self.dirs, bytes)
    }

    /// Keeps the data of all files below a directory for the record.
    fn save_all(&mut self, path: &[u8]) -> Result<()> {
        if self.record.is_none() {
            return Ok(());
        }
        let mut found = vec![path.to_vec()];
        while let Some(dir) = found.pop() {
            let fd = self.open_in(&dir)?;
            for (name, is_dir) in self.list_in(&dir)? {
                let path = join(&dir, &name);
                let at = OsStr::from_bytes(&name);
                if is_dir {
                    found.push(path);
                } else if sys::stat(&fd, at).at("stat", &self.dirs, b"")?.kind() == sys::S_IFREG {
                    let fd = fd.try_clone().at("open", &self.dirs, b"")?;
                    self.save(fd, at, &path)?;
                }
            }
        }
        Ok(())
    }

    /// Keeps the data of a file for the record.
    fn save(&mut self, dir: OwnedFd, name: &OsStr, path: &[u8]) -> Result<()> {
        if self.record.is_none() || !self.is_brought(path) {
            return Ok(());
        }
        let file = match sys::open(&dir, name, sys::O_RDONLY) {
            Err(error) if sys::errno(&error) == sys::EACCES => unpack::chmod_at(&dir, name, 0o600)
                .and_then(|()| sys::open(&dir, name, sys::O_RDONLY)),
            other => other,
        };
        let file = File::from(file.at("open", &self.dirs, name.as_bytes())?);
        match &mut self.record {
            Some(record) => record.replaced(path, &file).at("copy", &self.dirs, name.as_bytes()),
            None => Ok(()),
        }
    }

    /// A device 0:0 that is the image's own whiteout, of an overlay inside: escaped, as the kernel has it.
    pub(super) fn nested_whiteout(&mut self, entry: &Entry, name: &OsStr) -> Result<()> {
        let Some(dialect) = self.dialect else { return Ok(()) };
        let file = self.create(name, 0o600)?;
        self.dress(&file, name, entry, 0o600)?;
        let (empty, top) = (OsStr::new(""), dialect.space.key("overlay.opaque"));
        let key = dialect.space.key("overlay.whiteout");
        let marked =
            sys::set_xattr(&file, empty, &key, b"y", 0).and_then(|()| {
                match sys::get_xattr(self.dirs.fd(), empty, &top)? {
                    Some(_) => Ok(()),
                    None => sys::set_xattr(self.dirs.fd(), empty, &top, b"x", 0),
                }
            });
        marked.at("mark as a whiteout", &self.dirs, name.as_bytes())
    }

    /// Makes a file that only links lead to.
    pub(super) fn keep_aside(&mut self, name: &[u8]) -> Result<File> {
        if self.kept.is_none() {
            let hidden = format!(".wh..wh.plyfs.{:016x}", sys::random_u64());
            let at = OsStr::new(&hidden);
            let fd = sys::mkdir(self.dirs.root(), at, 0o700)
                .and_then(|()| sys::open(self.dirs.root(), at, DIR))
                .at("make directory", &self.dirs, b"")?;
            self.dirs.all()[0].changed = true;
            self.kept = Some(Kept { name: hidden, fd });
        }
        let Some(kept) = &self.kept else { return Err(Error::invalid("the archive", "is lost")) };
        let at = OsStr::from_bytes(name);
        let made = match unpack::create(&kept.fd, at, 0o600) {
            Err(error) if sys::errno(&error) == sys::EEXIST => {
                sys::unlink(&kept.fd, at).and_then(|()| unpack::create(&kept.fd, at, 0o600))
            }
            other => other,
        };
        made.at("create", &self.dirs, name)
    }

    /// Gives such a file what its entry has.
    pub(super) fn dress_kept(&mut self, file: &File, entry: &Entry) -> Result<()> {
        let stat = sys::fstat(file).at("stat", &self.dirs, b"")?;
        let born = super::attributes::Born {
            owner: (stat.uid, stat.gid),
            mode: None,
            acl: false,
            old: false,
        };
        let set = self.setter.set(file, OsStr::new(""), entry, born).and_then(|()| {
            unpack::set_times(file, entry.atime.unwrap_or(entry.mtime), entry.mtime)
        });
        set.at("set attributes of", &self.dirs, b"")
    }

    /// The directory of such files.
    pub(super) fn kept_dir(&self) -> Option<OwnedFd> {
        self.kept.as_ref().and_then(|kept| kept.fd.as_fd().try_clone_to_owned().ok())
    }

    /// Removes it; the links stay.
    pub(super) fn drop_kept(&mut self) -> Result<()> {
        let Some(kept) = self.kept.take() else { return Ok(()) };
        sys::remove_tree(self.dirs.root(), OsStr::new(&kept.name)).at("remove", &self.dirs, b"")
    }
}

fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    if dir.is_empty() { name.to_vec() } else { [dir, b"/", name].concat() }
}

/// Removes a name; a directory stays if it is not empty.
fn remove_one(dir: impl AsFd, name: &OsStr, is_dir: bool) -> std::io::Result<()> {
    if !is_dir {
        return sys::unlink(dir, name);
    }
    match sys::rmdir(dir, name) {
        Err(error) if matches!(sys::errno(&error), sys::ENOTEMPTY | sys::EEXIST) => Ok(()),
        other => other,
    }
}

/// Marks a directory as one that hides what lies below it; by a file in it where there are no attributes.
pub(super) fn set_opaque(dialect: Dialect, dir: impl AsFd, name: &OsStr) -> io::Result<()> {
    match dialect.set_opaque(dir.as_fd(), name) {
        Err(error) if sys::errno(&error) == sys::EOPNOTSUPP => {
            Dialect { space: Space::None, ..dialect }.set_opaque(dir.as_fd(), name)
        }
        other => other,
    }
}

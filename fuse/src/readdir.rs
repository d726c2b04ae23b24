//! The merged listing of a directory.
//!
//! A listing is taken when it is first read after opening and stays as it is while the directory is
//! open; each name appears once, a whiteout never; offsets are positions in it. Names are put
//! together top layer first with a set of those already seen, so the cost is linear in what the
//! layers hold. No lock is held: names that change meanwhile may be seen or not, all others are.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::Overlay;
use crate::attr::Attr;
use crate::error::{Context, Error, Result};
use crate::inode::{Ino, Inode};
use crate::lend;
use crate::namei::View;
use crate::sys::{self, Name};
use crate::whiteout;

/// A directory file of this many bytes has thousands of names.
const LONG: u64 = 256 * 1024;

/// One name of a listing.
#[derive(Clone, Debug)]
pub struct DirEntry {
    /// Inode number, the one stat shows.
    pub ino: Ino,
    /// Type bits.
    pub kind: u32,
    /// The name.
    pub name: OsString,
}

/// An open directory.
#[derive(Debug)]
pub(crate) struct OpenDir {
    pub(crate) inode: Arc<Inode>,
    listing: parking_lot::Mutex<Option<Arc<Vec<DirEntry>>>>,
}

impl Overlay {
    /// Opens a directory for listing; pair with [`Overlay::release_dir`].
    pub fn open_dir(&self, ino: Ino) -> Result<u64> {
        let inode = self.dir_inode(ino, "opendir")?;
        let handle = self.next_handle.fetch_add(1, Ordering::Relaxed);
        self.open_dirs.insert(handle, Arc::new(OpenDir { inode, listing: Default::default() }));
        Ok(handle)
    }

    /// Ends an open directory.
    pub fn release_dir(&self, handle: u64) {
        let gone = self.open_dirs.remove(&handle);
        drop(gone);
    }

    /// Forgets what was listed, as rewinddir(3) wants.
    pub fn rewind_dir(&self, handle: u64) {
        if let Some(dir) = self.open_dir_of(handle) {
            dir.listing.lock().take();
        }
    }

    pub(crate) fn open_dir_of(&self, handle: u64) -> Option<Arc<OpenDir>> {
        self.open_dirs.get(&handle).map(|dir| dir.clone())
    }

    /// The whole listing of an open directory, `.` and `..` first.
    pub fn read_dir(&self, handle: u64) -> Result<Arc<Vec<DirEntry>>> {
        let dir = self.open_dir_of(handle).ok_or_else(|| Error::code("readdir", "", sys::EBADF))?;
        if let Some(listing) = &*dir.listing.lock() {
            return Ok(listing.clone());
        }
        let listing = Arc::new(self.list(&dir.inode)?);
        *dir.listing.lock() = Some(listing.clone());
        Ok(listing)
    }

    /// The listing for a read at `offset`; one from the start is taken anew, as rewinddir(3) wants.
    pub(crate) fn read_dir_at(&self, handle: u64, offset: u64) -> Result<Arc<Vec<DirEntry>>> {
        if offset == 0 {
            self.rewind_dir(handle);
        }
        self.read_dir(handle)
    }

    /// Whether the listing is still to be taken, of directories large enough to take a while.
    pub(crate) fn listing_is_long(&self, handle: u64) -> bool {
        let Some(dir) = self.open_dir_of(handle) else {
            return false;
        };
        if dir.listing.lock().is_some() {
            return false;
        }
        self.at(&dir.inode, |dir, name| sys::stat(dir, name)).is_ok_and(|stat| stat.size > LONG)
    }

    /// Attributes of a listed name, with a lookup counted on all but `.` and `..`; `None` when the
    /// name is gone.
    pub(crate) fn entry_of(&self, dir: Ino, entry: &DirEntry) -> Result<Option<Attr>> {
        if entry.name == "." || entry.name == ".." {
            return Ok(Some(Attr { ino: entry.ino, mode: entry.kind, ..Attr::absent() }));
        }
        match self.lookup(dir, &entry.name) {
            Ok(found) => Ok(Some(found.attr)),
            Err(e) if e.errno() == sys::ENOENT => Ok(None),
            Err(e) => Err(e),
        }
    }

    fn list(&self, dir: &Arc<Inode>) -> Result<Vec<DirEntry>> {
        let up = dir.link().map_or(dir.ino, |link| link.parent.ino);
        let dot =
            |name: &str, ino| DirEntry { ino, kind: sys::S_IFDIR, name: OsString::from(name) };
        let mut listing = vec![dot(".", dir.ino), dot("..", up)];
        if dir.ino != Ino::ROOT && dir.link().is_none() {
            return Ok(listing);
        }
        loop {
            let mut view = self.view(dir)?;
            let lists = self.list_lowers(&view).on("readdir", dir.path())?;
            if self.wants_below(dir, &view) {
                self.keep_below(dir, &view, &lists).on("readdir", dir.path())?;
                view = View::new(dir, view.upper.take());
            }
            let names = self.merge_lists(&view, lists).on("readdir", dir.path())?;
            if !view.is_stale(dir) {
                listing.extend(names);
                return Ok(listing);
            }
        }
    }

    /// Every visible name of a directory.
    pub(crate) fn merge(&self, view: &View) -> io::Result<Vec<DirEntry>> {
        self.merge_lists(view, self.list_lowers(view)?)
    }

    fn list_lowers(&self, view: &View) -> io::Result<Vec<Vec<Name>>> {
        view.lowers.iter().map(|lower| sys::list(&*self.lower_dir(lower)?)).collect()
    }

    /// Every visible name, by what the lower directories hold.
    fn merge_lists(&self, view: &View, lists: Vec<Vec<Name>>) -> io::Result<Vec<DirEntry>> {
        let mut listing = Vec::new();
        let mut seen = HashSet::new();
        let alone = view.upper.is_some() as usize + view.lowers.len() == 1;
        if let Some(dir) = &view.upper {
            let xattr_whiteouts = view.xattr_whiteouts();
            let layer = Layer { view, dir, xattr_whiteouts, upper: true, alone };
            self.merge_layer(&layer, lend::list(dir)?, &mut seen, &mut listing)?;
        }
        for (lower, names) in view.lowers.iter().zip(lists) {
            let dir = &self.lower_dir(lower)?;
            let xattr_whiteouts = lower.xattr_whiteouts;
            let layer = Layer { view, dir, xattr_whiteouts, upper: false, alone };
            self.merge_layer(&layer, names, &mut seen, &mut listing)?;
        }
        Ok(listing)
    }

    fn merge_layer(
        &self,
        layer: &Layer<'_>,
        names: Vec<Name>,
        seen: &mut HashSet<OsString>,
        out: &mut Vec<DirEntry>,
    ) -> io::Result<()> {
        let dev = sys::fstat(layer.dir)?.dev;
        let mut hidden = Vec::new();
        for entry in names {
            if whiteout::is_dot(&entry.name) {
                hidden.extend(whiteout::dot_target(&entry.name).map(OsStr::to_owned));
                continue;
            }
            if seen.contains(&entry.name) {
                continue;
            }
            if layer.is_whiteout(&entry)? {
                seen.insert(entry.name);
                continue;
            }
            match self.number_entry(layer, &entry, dev) {
                Ok(shown) => out.extend(shown),
                // It went while it was looked at.
                Err(e) if sys::errno(&e) == sys::ENOENT => {}
                Err(e) => return Err(e),
            }
            if !layer.alone {
                seen.insert(entry.name);
            }
        }
        // A `.wh.NAME` hides the layers below its own, not the name beside it.
        seen.extend(hidden);
        Ok(())
    }

    /// A name with the number stat will show; the walk is needed only where that may differ from
    /// the number on disk.
    fn number_entry(
        &self,
        layer: &Layer<'_>,
        entry: &Name,
        dev: u64,
    ) -> io::Result<Option<DirEntry>> {
        let merged_dir = !layer.alone && (entry.kind == sys::S_IFDIR || entry.kind == 0);
        if merged_dir || entry.kind == 0 || (layer.upper && layer.view.impure()) {
            let Some(found) = self.resolve(layer.view, &entry.name)? else {
                return Ok(None);
            };
            let ino = Ino(found.number);
            let kind = self.shown_kind((layer.dir.as_fd(), &entry.name), found.stat.kind())?;
            return Ok(Some(DirEntry { ino, kind, name: entry.name.clone() }));
        }
        let known = self.table.number_of_copy(dev, entry.ino).filter(|_| layer.upper);
        let ino = Ino(known.unwrap_or_else(|| self.numbers.of(dev, entry.ino)));
        let kind = self.shown_kind((layer.dir.as_fd(), &entry.name), entry.kind)?;
        Ok(Some(DirEntry { ino, kind, name: entry.name.clone() }))
    }

    /// Whether a directory shows no name at all.
    pub(crate) fn is_empty(&self, view: &View) -> io::Result<bool> {
        if view.lowers.is_empty() {
            let Some(upper) = &view.upper else {
                return Ok(true);
            };
            let names = lend::list(upper)?;
            if names.is_empty() {
                return Ok(true);
            }
        }
        Ok(self.merge(view)?.is_empty())
    }
}

/// One layer's part of a listing.
struct Layer<'a> {
    view: &'a View,
    dir: &'a Arc<std::os::fd::OwnedFd>,
    xattr_whiteouts: bool,
    upper: bool,
    /// No other layer has this directory.
    alone: bool,
}

impl Layer<'_> {
    fn is_whiteout(&self, entry: &Name) -> io::Result<bool> {
        let candidate = match entry.kind {
            sys::S_IFCHR => true,
            sys::S_IFREG => self.xattr_whiteouts,
            0 => true,
            _ => false,
        };
        if !candidate {
            return Ok(false);
        }
        let Some(stat) = sys::has(self.dir, &entry.name)? else {
            return Ok(true);
        };
        whiteout::is_whiteout(self.dir.as_fd(), &entry.name, &stat, self.xattr_whiteouts)
    }
}

//! Directories seen as an overlay merges them, the upper one first.
//!
//! The topmost object decides what a name is; a whiteout, an opaque directory or anything but a
//! directory ends the search, and only directories and the data of a metadata-only file come from
//! further down. Layers are only read. A directory is held as its path beneath a layer's root, and
//! only the few used last are open besides the roots, so 500 layers need little more than 500
//! descriptors, at any depth.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, VecDeque};
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use super::marks::{self, Belief, Marks, Target};
use crate::error::{Context, Error, Result};
use crate::sys::tree::{self, Kind, Stat};

/// Directories kept open: a walk goes on from one of them and need not start at the root.
const KEPT_OPEN: usize = 8;

/// The layers, opened; 0 is the upper directory.
#[derive(Debug)]
pub(super) struct Stack {
    layers: Vec<Layer>,
    belief: Belief,
    /// The directories used last, the newest first.
    open: RefCell<VecDeque<OpenDir>>,
}

#[derive(Debug)]
struct OpenDir {
    layer: usize,
    path: PathBuf,
    fd: Rc<OwnedFd>,
}

#[derive(Debug)]
struct Layer {
    path: PathBuf,
    fd: OwnedFd,
    opaque: bool,
    xattr_whiteouts: bool,
}

/// A directory of one layer.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) layer: usize,
    /// Beneath the layer's root; empty for the root itself.
    pub(super) path: PathBuf,
    xattr_whiteouts: bool,
    /// Whether names in it delete others (`.wh.NAME`), once it was listed.
    dotted: Cell<Option<bool>>,
}

/// An object of one layer.
#[derive(Clone, Debug)]
pub(super) struct Spot {
    pub(super) layer: usize,
    /// The directory it is in, beneath the layer's root.
    pub(super) dir: PathBuf,
    pub(super) name: OsString,
}

/// What a name is in the merged view.
#[derive(Clone, Debug)]
pub(super) struct Found {
    /// Where the topmost object is.
    pub(super) spot: Spot,
    pub(super) stat: Stat,
    pub(super) marks: Marks,
    /// The directories that make it up, top first; empty for anything else.
    pub(super) dirs: Vec<Place>,
    /// The topmost directory hides all others, by whatever mark.
    pub(super) opaque: bool,
    /// Where a metadata-only file has its data.
    pub(super) data: Option<Spot>,
}

/// A directory that is open.
struct Dir<'a> {
    layer: usize,
    path: &'a Path,
    xattr_whiteouts: bool,
    dotted: Option<bool>,
    fd: BorrowedFd<'a>,
}

/// What the layers seen so far say of a name.
struct Search {
    next: Target,
    found: Option<Found>,
    done: bool,
}

impl Stack {
    /// Opens the directories.
    pub(super) fn open(upper: &Path, lowers: &[PathBuf], belief: Belief) -> Result<Stack> {
        let paths = std::iter::once(upper).chain(lowers.iter().map(PathBuf::as_path));
        let layers = paths.map(|path| Layer::open(path, belief)).collect::<Result<_>>()?;
        Ok(Stack { layers, belief, open: RefCell::default() })
    }

    /// The root of the view of the layers from `top` on.
    pub(super) fn root(&self, top: usize) -> Vec<Place> {
        let mut places = Vec::new();
        for (number, layer) in self.layers.iter().enumerate().skip(top) {
            let xattr_whiteouts = layer.xattr_whiteouts;
            let (path, dotted) = (PathBuf::new(), Cell::new(None));
            places.push(Place { layer: number, path, xattr_whiteouts, dotted });
            if layer.opaque {
                break;
            }
        }
        places
    }

    /// Whether the upper directory hides all lower ones.
    pub(super) fn is_opaque(&self) -> bool {
        self.layers.first().is_some_and(|upper| upper.opaque)
    }

    /// How many lower directories there are.
    pub(super) fn lowers(&self) -> usize {
        self.layers.len().saturating_sub(1)
    }

    /// Whose word is taken on what is in them.
    pub(super) fn belief(&self) -> Belief {
        self.belief
    }

    /// Opens a directory of a layer.
    pub(super) fn open_dir(&self, layer: usize, path: &Path) -> Result<Rc<OwnedFd>> {
        let mut open = self.open.borrow_mut();
        let above = open
            .iter()
            .filter(|dir| dir.layer == layer && path.starts_with(&dir.path))
            .max_by_key(|dir| dir.path.as_os_str().len());
        let (start, rest) = match above {
            Some(dir) if dir.path == path => return Ok(Rc::clone(&dir.fd)),
            Some(dir) => (dir.fd.as_fd(), path.strip_prefix(&dir.path).unwrap_or(path)),
            None => (self.layers[layer].fd.as_fd(), path),
        };
        let shown = || self.layers[layer].path.join(path);
        let fd = Rc::new(tree::open_dir(start, rest).map_err(|e| Error::io("open", shown(), e))?);
        open.truncate(KEPT_OPEN - 1);
        open.push_front(OpenDir { layer, path: path.to_path_buf(), fd: Rc::clone(&fd) });
        Ok(fd)
    }

    /// The path of an object, for messages.
    pub(super) fn path_of(&self, spot: &Spot) -> PathBuf {
        self.layers[spot.layer].path.join(&spot.dir).join(&spot.name)
    }

    /// Names in one directory: those that exist or are deleted by a device or xattr, and those
    /// deleted by a file.
    pub(super) fn names(&self, place: &Place) -> Result<BTreeSet<OsString>> {
        let fd = self.open_dir(place.layer, &place.path)?;
        let list = tree::list(&fd).on("list", self.layers[place.layer].path.join(&place.path))?;
        let mut names = BTreeSet::new();
        let is_dotted = |entry: &OsString| marks::name(entry) != marks::Name::Plain;
        let dotted = self.belief.dots() && list.iter().any(is_dotted);
        place.dotted.set(Some(dotted));
        if !dotted {
            return Ok(list.into_iter().collect());
        }
        for entry in list {
            match marks::name(&entry) {
                marks::Name::Deletes(_) if is_second_opaque(&fd, &entry) => false,
                // No mark is a directory, and what is in this one is of the layer.
                marks::Name::Deletes(_) if is_dir(&fd, &entry) => names.insert(entry),
                marks::Name::Reserved if entry == marks::BARE && is_dir(&fd, &entry) => {
                    names.insert(entry)
                }
                marks::Name::Plain => names.insert(entry),
                marks::Name::Deletes(name) => names.insert(name.to_owned()),
                marks::Name::Reserved => false,
            };
        }
        Ok(names)
    }

    /// What each of `names` is in the directory made up of `parent`; `None` where it is nothing.
    pub(super) fn look_up(
        &self,
        parent: &[Place],
        names: Vec<OsString>,
    ) -> Result<Vec<Option<Found>>> {
        let start = |name| Search { next: Target::Sibling(name), found: None, done: false };
        let mut searches: Vec<Search> = names.into_iter().map(start).collect();
        let Some(top) = parent.first() else {
            return Ok(searches.into_iter().map(|_| None).collect());
        };
        for layer in top.layer..self.layers.len() {
            self.look_in(layer, parent, &mut searches)?;
            if searches.iter().all(|search| search.done) {
                break;
            }
        }
        Ok(searches.into_iter().map(|search| search.found).collect())
    }

    fn look_in(&self, layer: usize, parent: &[Place], searches: &mut [Search]) -> Result<()> {
        let place = parent.iter().find(|place| place.layer == layer);
        let open = |place: &Place| self.open_dir(layer, &place.path);
        let fd = place.map(open).transpose()?;
        for search in searches.iter_mut().filter(|search| !search.done) {
            match (&search.next, place.zip(fd.as_ref())) {
                (Target::Path(path), _) => self.step_by_path(layer, &path.clone(), search)?,
                (Target::Sibling(name), Some((place, fd))) => {
                    let dir = Dir {
                        layer,
                        path: &place.path,
                        xattr_whiteouts: place.xattr_whiteouts,
                        dotted: place.dotted.get(),
                        fd: fd.as_fd(),
                    };
                    self.step(&dir, &name.clone(), search)?;
                }
                (Target::Sibling(_), None) => {}
            }
        }
        Ok(())
    }

    /// Goes to a redirect's target in one layer. What hides the layers below on the way hides them for the target too, and a
    /// directory on the way that was moved in this layer has another path in those below.
    fn step_by_path(&self, layer: usize, path: &Path, search: &mut Search) -> Result<()> {
        let Some(name) = path.file_name() else { return Ok(()) };
        let mut here = self.open_dir(layer, Path::new(""))?;
        let (mut at, mut xattr_whiteouts, mut hidden) =
            (PathBuf::new(), self.layers[layer].xattr_whiteouts, false);
        let mut below = PathBuf::new();
        let mut parts = path.parent().unwrap_or(Path::new("")).iter();
        while let Some(part) = parts.next() {
            let dir = Dir { layer, path: &at, xattr_whiteouts, dotted: None, fd: here.as_fd() };
            let mut way = Search { next: Target::Sibling(part.into()), found: None, done: false };
            self.step(&dir, part, &mut way)?;
            hidden |= way.done;
            below.push(part);
            let Some(found) = way.found else {
                below.extend(parts);
                search.next = Target::Path(below.join(name));
                search.done |= hidden;
                return Ok(());
            };
            if found.dirs.is_empty() {
                search.done = true;
                return Ok(());
            }
            match way.next {
                // It leads out of what hid the layers below on the way here.
                Target::Path(path) => (below, hidden) = (path, false),
                Target::Sibling(name) => below.set_file_name(name),
            }
            at.push(part);
            xattr_whiteouts = found.marks.xattr_whiteouts;
            here = self.open_dir(layer, &at)?;
        }
        let dir = Dir { layer, path: &at, xattr_whiteouts, dotted: None, fd: here.as_fd() };
        let mut end =
            Search { next: Target::Sibling(name.into()), found: search.found.take(), done: false };
        self.step(&dir, name, &mut end)?;
        (search.found, search.done) = (end.found, end.done);
        match end.next {
            Target::Path(path) => search.next = Target::Path(path),
            Target::Sibling(name) => {
                search.done |= hidden;
                search.next = Target::Path(below.join(name));
            }
        }
        Ok(())
    }

    /// Takes in what one layer's directory says of a name.
    fn step(&self, dir: &Dir<'_>, name: &OsStr, search: &mut Search) -> Result<()> {
        let spot = Spot { layer: dir.layer, dir: dir.path.to_path_buf(), name: name.to_owned() };
        let on = |op: &'static str| {
            let spot = &spot;
            move |error| Error::io(op, self.path_of(spot), error)
        };
        let deleted_below = self.belief.dots()
            && dir.dotted != Some(false)
            && tree::find(dir.fd, &marks::dot_name(name))
                .map_err(on("stat"))?
                .is_some_and(|stat| stat.kind != Kind::Dir);
        let Some(stat) = tree::find(dir.fd, name).map_err(on("stat"))? else {
            search.done |= deleted_below;
            return Ok(());
        };
        let marks = marks::read(dir.fd, name, self.belief).map_err(on("read xattrs"))?;
        let empty = dir.xattr_whiteouts && stat.kind == Kind::File && stat.size == 0;
        if (self.belief.devices() && marks::is_device(&stat)) || (empty && marks.whiteout) {
            search.done = true;
            return Ok(());
        }
        let opaque = deleted_below
            || marks.opaque
            || (self.belief.dots() && stat.kind == Kind::Dir && self.has_opaque_file(&spot)?);
        search.done |= opaque;
        if !search.done {
            self.follow(&marks, &spot, search)?;
        }
        join(search, Found { spot, stat, marks, dirs: Vec::new(), opaque, data: None });
        Ok(())
    }

    fn has_opaque_file(&self, spot: &Spot) -> Result<bool> {
        let path = spot.dir.join(&spot.name);
        let fd = self.open_dir(spot.layer, &path)?;
        has_opaque_entry(&fd, self.belief).on("stat", self.path_of(spot))
    }

    /// Where the layers below have the object.
    fn follow(&self, marks: &Marks, spot: &Spot, search: &mut Search) -> Result<()> {
        let Some(redirect) = &marks.redirect else { return Ok(()) };
        let Some(target) = marks::target(redirect) else {
            let what = self.path_of(spot).display().to_string();
            let detail = format!(
                "redirect '{}' names no place in the layers",
                Path::new(redirect).display()
            );
            return Err(Error::Corrupt { what, detail });
        };
        search.next = target;
        Ok(())
    }
}

impl Layer {
    fn open(path: &Path, belief: Belief) -> Result<Layer> {
        let fd = tree::open_root(path).on("open", path)?;
        let marks = marks::read(&fd, OsStr::new(""), belief).on("read xattrs", path)?;
        let opaque = marks.opaque || has_opaque_entry(&fd, belief).on("stat", path)?;
        Ok(Layer { path: path.to_path_buf(), fd, opaque, xattr_whiteouts: marks.xattr_whiteouts })
    }
}

/// Whether an entry of the directory says that it is opaque.
fn has_opaque_entry(dir: &OwnedFd, belief: Belief) -> std::io::Result<bool> {
    if !belief.dots() {
        return Ok(false);
    }
    let file = tree::find(dir, OsStr::new(marks::OPAQUE_FILE))?;
    Ok(file.is_some_and(|stat| stat.kind != Kind::Dir)
        || is_second_opaque(dir, OsStr::new(marks::SECOND_OPAQUE)))
}

fn is_dir(dir: &OwnedFd, name: &OsStr) -> bool {
    tree::stat(dir, name).is_ok_and(|stat| stat.kind == Kind::Dir)
}

fn is_second_opaque(dir: &OwnedFd, name: &OsStr) -> bool {
    let device = || tree::stat(dir, name).is_ok_and(|stat| marks::is_device(&stat));
    name == marks::SECOND_OPAQUE && device()
}

/// Adds an object to what the layers above said.
fn join(search: &mut Search, below: Found) {
    let kind = below.stat.kind;
    let place = Place {
        layer: below.spot.layer,
        path: below.spot.dir.join(&below.spot.name),
        xattr_whiteouts: below.marks.xattr_whiteouts,
        dotted: Cell::new(None),
    };
    let goes_on = match &mut search.found {
        None => {
            let goes_on = kind == Kind::Dir || (kind == Kind::File && below.marks.metacopy);
            let found = search.found.insert(below);
            if kind == Kind::Dir {
                found.dirs.push(place);
            }
            goes_on
        }
        Some(found) if found.stat.kind == Kind::Dir => {
            if kind == Kind::Dir {
                found.dirs.push(place);
            }
            kind == Kind::Dir
        }
        Some(_) if kind == Kind::File && below.marks.metacopy => true,
        Some(found) => {
            found.data = (kind == Kind::File).then_some(below.spot);
            false
        }
    };
    search.done |= !goes_on;
}

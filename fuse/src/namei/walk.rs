//! The way of one name down the lower layers.
//!
//! Marks that matter only if a layer below has the name (a `.wh.NAME` file, the opaque file) are
//! looked for when it turns out that one has: a name the top layer settles costs no such look.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

use super::below::May;
use super::{Found, Step, View, is_foreign, looks_empty};
use crate::Overlay;
use crate::inode::{LowerDir, LowerFile, State, UpperAt};
use crate::lend;
use crate::redirect;
use crate::sys::{self, S_IFREG, Stat};
use crate::whiteout::{self, Marks};

/// A mark that matters only if a lower layer has the name, so it is looked for then.
pub(super) enum Pending {
    /// `.wh.NAME` in this directory.
    Dot(Place, OsString),
    /// The opaque file in this directory.
    OpaqueFile(Place),
}

/// A directory to come back to. A lower one is opened again then: a deep stack would hold too many
/// descriptors.
pub(super) enum Place {
    Upper(Arc<OwnedFd>),
    Lower(Arc<LowerDir>),
}

/// The walk of one name down the stack.
pub(super) struct Walk<'a> {
    overlay: &'a Overlay,
    pub(super) parent: &'a View,
    /// The name, or what a relative redirect made of it.
    pub(super) name: OsString,
    /// Where an absolute redirect leads, from the layer roots.
    absolute: Option<PathBuf>,
    /// The first layer an absolute redirect applies to.
    below: usize,
    pub(super) pending: Vec<Pending>,
    dirs: Vec<Arc<LowerDir>>,
    first_lower: Option<Stat>,
}

impl<'a> Walk<'a> {
    pub(super) fn new(overlay: &'a Overlay, parent: &'a View, name: &OsStr) -> Walk<'a> {
        Walk {
            overlay,
            parent,
            name: name.to_owned(),
            absolute: None,
            below: 0,
            pending: Vec::new(),
            dirs: Vec::new(),
            first_lower: None,
        }
    }

    /// An upper directory: what it merges with, and its number.
    pub(super) fn upper_dir(mut self, stat: Stat, marks: Marks) -> io::Result<Option<Found>> {
        self.follow(&marks, 0);
        let origin =
            marks.origin.as_ref().and_then(|origin| self.overlay.numbers.of_origin(origin));
        let has_origin = marks.origin.is_some();
        let numbers = &self.overlay.numbers;
        let copy = self.overlay.table.number_of_copy(stat.dev, stat.ino);
        let own = self.overlay.upper_number(&stat);
        if !marks.opaque {
            self.collect_dirs()?;
        }
        let lower = self.first_lower.map(|lower| numbers.of(lower.dev, lower.ino));
        let mut state = State {
            upper: Some(UpperAt::Named),
            lowers: self.dirs.into(),
            impure: marks.impure,
            xattr_whiteouts: marks.xattr_whiteouts,
            has_origin,
            ..State::default()
        };
        state.set_redirect(marks.redirect.clone());
        Ok(Some(Found { stat, number: copy.or(lower).or(origin).unwrap_or(own), state }))
    }

    /// The name in the lower layers only.
    pub(super) fn lowers(mut self) -> io::Result<Option<Found>> {
        let parent = self.parent;
        for may in parent.places(&self.name.clone(), 0) {
            let dir = &parent.lowers[may.place];
            let fd = self.overlay.lower_dir(dir)?;
            match self.overlay.lower_step(parent, dir, (fd.as_fd(), &self.name), may)? {
                Step::Miss => self.push_dot(dir, may),
                Step::Whiteout => return Ok(None),
                _ if self.is_hidden()? => return Ok(None),
                Step::Other(stat) => return self.lower_file(dir, fd.as_fd(), stat).map(Some),
                Step::Dir(stat, marks) => {
                    return self.lower_dir((dir, may), stat, &marks).map(Some);
                }
            }
        }
        Ok(None)
    }

    /// The whiteout beside the name in a lower directory matters if a layer below has it.
    fn push_dot(&mut self, dir: &Arc<LowerDir>, may: May) {
        if may.dot {
            self.pending.push(Pending::Dot(Place::Lower(dir.clone()), self.name.clone()));
        }
    }

    fn lower_dir(
        mut self,
        dir: (&Arc<LowerDir>, May),
        stat: Stat,
        marks: &Marks,
    ) -> io::Result<Found> {
        self.push_named(dir, marks, stat)?;
        if !marks.opaque {
            self.collect_dirs()?;
        }
        let number = self.overlay.numbers.of(stat.dev, stat.ino);
        Ok(Found { stat, number, state: State { lowers: self.dirs.into(), ..State::default() } })
    }

    fn lower_file(
        mut self,
        dir: &Arc<LowerDir>,
        fd: BorrowedFd<'_>,
        stat: Stat,
    ) -> io::Result<Found> {
        let overlay = self.overlay;
        let mut found = Found {
            stat,
            number: overlay.numbers.of(stat.dev, stat.ino),
            state: State {
                lower: Some(LowerFile { dir: dir.clone(), name: self.name.as_os_str().into() }),
                ..State::default()
            },
        };
        if stat.nlink > 1 {
            overlay.find_group(&mut found, fd, &self.name)?;
        }
        // A crash may have left a metacopy partly filled, with as many blocks as a whole file.
        let sparse = looks_empty(&stat);
        if sparse || (dir.impure && stat.kind() == S_IFREG && stat.size > 0) {
            let marks = whiteout::marks(fd, &self.name, overlay.stack.space)?;
            self.below = dir.layer + 1;
            found.state.lower_data = self.data_of(&marks, sparse)?.map(Box::new);
        }
        Ok(found)
    }

    /// Takes the redirect of an object into account for the layers below `layer`.
    fn follow(&mut self, marks: &Marks, layer: usize) {
        let Some(target) = marks.redirect.as_deref() else {
            return;
        };
        // A `.wh.NAME` is about the name the object has now, not about where it came from.
        self.pending.retain(|pending| matches!(pending, Pending::OpaqueFile(_)));
        match redirect::parse(target) {
            Some(redirect::Target::Absolute(path)) => {
                self.absolute = Some(path);
                self.below = layer;
            }
            Some(redirect::Target::Sibling(name)) => self.name = name,
            None => log::warn!("redirect {target:?} is malformed and not followed"),
        }
    }

    /// Collects the directories of the layers that are left.
    fn collect_dirs(&mut self) -> io::Result<()> {
        if self.absolute.is_some() {
            return self.collect_absolute();
        }
        let parent = self.parent;
        let done = self.dirs.last().map_or(0, |dir| dir.layer + 1);
        let mut name = self.name.clone();
        let mut places = parent.places(&name, parent.lowers.partition_point(|d| d.layer < done));
        while let Some(may) = places.next() {
            let dir = &parent.lowers[may.place];
            let fd = self.overlay.lower_dir(dir)?;
            match self.overlay.lower_step(parent, dir, (fd.as_fd(), &self.name), may)? {
                Step::Miss => self.push_dot(dir, may),
                Step::Whiteout => break,
                _ if self.is_hidden()? => break,
                Step::Other(_) => break,
                Step::Dir(stat, marks) => {
                    self.push_named((dir, may), &marks, stat)?;
                    if marks.opaque {
                        break;
                    }
                    if self.absolute.is_some() {
                        return self.collect_absolute();
                    }
                    if self.name != name {
                        // A redirect: it goes on under another name.
                        name = self.name.clone();
                        places = parent.places(&name, may.place + 1);
                    }
                }
            }
        }
        Ok(())
    }

    /// Collects the directories an absolute redirect names, layer by layer.
    fn collect_absolute(&mut self) -> io::Result<()> {
        let Some(mut path) = self.absolute.take() else { return Ok(()) };
        for layer in self.below..self.overlay.stack.visible {
            let walked = self.overlay.walk_layer(layer, &path)?;
            if let Some((stat, marks)) = walked.found {
                if !stat.is_dir() || self.is_hidden()? {
                    return Ok(());
                }
                self.push_dir(layer, path, &marks, stat)?;
                if marks.opaque {
                    return Ok(());
                }
            }
            if walked.stop {
                return Ok(());
            }
            path = walked.next;
        }
        Ok(())
    }

    /// A directory found by name in a directory of the parent.
    fn push_named(
        &mut self,
        (dir, may): (&Arc<LowerDir>, May),
        marks: &Marks,
        stat: Stat,
    ) -> io::Result<()> {
        if !marks.opaque && dir.layer + 1 < self.overlay.stack.visible {
            self.push_dot(dir, may);
        }
        self.push_dir(dir.layer, dir.path.join(&self.name), marks, stat)?;
        self.follow(marks, dir.layer + 1);
        Ok(())
    }

    fn push_dir(
        &mut self,
        layer: usize,
        path: PathBuf,
        marks: &Marks,
        stat: Stat,
    ) -> io::Result<()> {
        let dir = Arc::new(LowerDir {
            layer,
            path,
            xattr_whiteouts: marks.xattr_whiteouts,
            impure: marks.impure,
            slot: Arc::default(),
        });
        self.first_lower.get_or_insert(stat);
        if !marks.opaque && layer + 1 < self.overlay.stack.visible {
            self.pending.push(Pending::OpaqueFile(Place::Lower(dir.clone())));
        }
        self.dirs.push(dir);
        Ok(())
    }

    /// Whether a mark in a layer above hides what was just found.
    fn is_hidden(&mut self) -> io::Result<bool> {
        for pending in self.pending.drain(..) {
            let overlay = self.overlay;
            let open = |place: Place| match place {
                Place::Upper(fd) => Ok(fd),
                Place::Lower(dir) => overlay.lower_dir(&dir),
            };
            let hidden = match pending {
                Pending::Dot(dir, name) => whiteout::has_dot(open(dir)?.as_fd(), &name)?,
                Pending::OpaqueFile(Place::Upper(dir)) => {
                    let dir = dir.as_fd();
                    lend::lend(&[(dir, OsStr::new(""))], || whiteout::has_opaque_file(dir))?
                }
                Pending::OpaqueFile(dir) => match whiteout::has_opaque_file(open(dir)?.as_fd()) {
                    // Nobody gets to see what is in it, nor in those below.
                    Err(e) if sys::errno(&e) == sys::EACCES => false,
                    other => other?,
                },
            };
            if hidden {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Where the data of a file with these marks is, if not in itself. A metacopy whose data is missing
    /// keeps its name and attributes; only its data cannot be had.
    pub(super) fn data_of(&mut self, marks: &Marks, sparse: bool) -> io::Result<Option<LowerFile>> {
        if is_foreign(marks, sparse) {
            return Ok(Some(LowerFile::nowhere()));
        }
        if !marks.metacopy {
            return Ok(None);
        }
        match self.data(marks) {
            Err(e) if sys::errno(&e) == sys::EIO => Ok(Some(LowerFile::nowhere())),
            other => other.map(Some),
        }
    }

    /// The file that has the data of a metacopy: the first regular one below it that is no metacopy.
    fn data(&mut self, marks: &Marks) -> io::Result<LowerFile> {
        let below = self.below;
        self.follow(marks, below);
        match self.absolute.take() {
            Some(path) => self.overlay.data_by_path(below, path),
            None => self.overlay.data_by_name(self.parent, below, &self.name),
        }
    }
}

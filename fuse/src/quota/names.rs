//! Booking what comes and goes with names.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use super::count::marks_in;
use super::objects::Id;
use super::{Change, Meter, Reserved, Used};
use crate::Overlay;
use crate::inode::{Inode, UpperAt};
use crate::lend;
use crate::sys::{self, Stat};
use crate::whiteout;

/// Names of upper directories that are about to change. When this goes they are looked at again, whatever became of the
/// change, and what came and went with them is booked. It lives shorter than the locks of the directories.
pub(crate) struct Names<'a> {
    fs: &'a Overlay,
    op: Option<Reserved<'a>>,
    places: Vec<(Arc<OwnedFd>, OsString)>,
    /// The directories as they were.
    dirs: Vec<(Arc<OwnedFd>, Stat)>,
    before: Vec<Object>,
    /// Who may lose his last name, if the kernel knows him.
    known: Option<Arc<Inode>>,
    /// An object that is booked without a name already, and gets one.
    given: Option<Object>,
    /// Marks in a directory that goes with them.
    marks: Used,
}

/// An object whose names change. By its descriptor it can be seen whether it has any, whoever took the last one.
pub(super) struct Object {
    /// None where no more descriptors can be had.
    pub(super) fd: Option<Arc<OwnedFd>>,
    pub(super) stat: Stat,
}

impl Overlay {
    /// For a change of names that is never refused.
    pub(crate) fn begin(&self) -> Option<Reserved<'_>> {
        self.meter.as_ref().map(|meter| meter.begin())
    }

    /// Looks at names, given by upper directory and name, before they change.
    pub(crate) fn names<'a>(
        &'a self,
        op: Option<Reserved<'a>>,
        names: &[(&Arc<OwnedFd>, &OsStr)],
    ) -> Option<Names<'a>> {
        let op = Some(op?);
        let mut places = Vec::with_capacity(2 * names.len());
        let mut dirs: Vec<(Arc<OwnedFd>, Stat)> = Vec::with_capacity(names.len());
        for (dir, name) in names {
            places.push(((*dir).clone(), (*name).to_owned()));
            places.extend(whiteout::dot_name(name).map(|dot| ((*dir).clone(), dot)));
            let stat = sys::fstat(&***dir).ok();
            let stat = stat.filter(|stat| !dirs.iter().any(|(_, other)| is_same(other, stat)));
            dirs.extend(stat.map(|stat| ((*dir).clone(), stat)));
        }
        let mut before: Vec<Object> = Vec::new();
        for (dir, name) in &places {
            let object = look(dir, name);
            let is_new = |object: &Object| !before.iter().any(|x| is_same(&x.stat, &object.stat));
            let object = object.filter(is_new);
            before.extend(object);
        }
        let (known, given, marks) = (None, None, Used::default());
        let names = Names { fs: self, op, places, dirs, before, known, given, marks };
        names.before.iter().for_each(|object| names.watch(object));
        Some(names)
    }

    /// Books what became of the blocks of a directory while its lock was held.
    pub(crate) fn book_dir(&self, dir: impl AsFd, before: &Stat) {
        let Some(op) = self.begin() else { return };
        if let Ok(now) = sys::fstat(dir) {
            op.settle(Change::between(before, &now));
        }
    }

    /// An object that is booked has no name; it goes when the kernel forgets it.
    pub(crate) fn keep_booked(&self, object: impl AsFd) {
        let Some(meter) = &self.meter else { return };
        if let Some(stat) = sys::fstat(object).ok().filter(|stat| stat.nlink == 0) {
            meter.objects.lock().keep(id(&stat));
        }
    }

    fn is_shared_whiteout(&self, stat: &Stat) -> bool {
        let upper = self.stack.upper.as_ref().filter(|_| whiteout::is_device(stat));
        let shared = upper.and_then(|upper| upper.shared_whiteout());
        shared.is_some_and(|shared| is_same(&shared, stat))
    }
}

impl Names<'_> {
    /// This object may lose its last name.
    pub(crate) fn of(mut self, known: Option<&Arc<Inode>>) -> Self {
        self.known = known.cloned();
        self
    }

    /// This object gets a name and is booked already.
    pub(crate) fn gives(mut self, fd: &Arc<OwnedFd>) -> Self {
        if let (Some(meter), Ok(stat)) = (self.meter(), sys::fstat(&**fd)) {
            meter.objects.lock().begin(id(&stat));
            // From here on nobody takes its last name without this being known.
            let named = sys::fstat(&**fd).is_ok_and(|stat| stat.nlink > 0);
            let object = Object { fd: Some(fd.clone()), stat };
            if named {
                self.before.push(object);
            } else {
                meter.objects.lock().end(id(&stat), false, false);
                self.given = Some(object);
            }
        }
        self.moves()
    }

    /// Objects get other names.
    pub(crate) fn moves(mut self) -> Self {
        if let Some(op) = &mut self.op {
            op.moves = true;
        }
        self
    }

    /// This directory, which holds marks at most, may go.
    pub(crate) fn emptied(mut self, dir: Option<&OwnedFd>) -> Self {
        let fs = self.fs;
        let marks = dir.map(|dir| marks_in(dir.as_fd(), |stat| fs.is_shared_whiteout(stat)));
        match marks {
            None => {}
            Some(Err(e)) => log::debug!("list a directory that goes: {e}"),
            Some(Ok((marks, shared))) => {
                self.marks = marks;
                for object in shared {
                    if !self.has(&object.stat) {
                        self.watch(&object);
                        self.before.push(object);
                    }
                }
            }
        }
        self
    }

    fn meter(&self) -> Option<&Meter> {
        self.fs.meter.as_deref()
    }

    fn watch(&self, object: &Object) {
        if let Some(meter) = self.meter() {
            meter.objects.lock().begin(id(&object.stat));
        }
    }

    fn has(&self, stat: &Stat) -> bool {
        self.before.iter().chain(&self.given).any(|object| is_same(&object.stat, stat))
    }

    /// What the names stand for now.
    fn after(&self) -> Vec<Stat> {
        let mut found: Vec<Stat> = Vec::with_capacity(self.places.len());
        for (dir, name) in &self.places {
            let at = dir.as_fd();
            let stat = lend::lend(&[(at, OsStr::new(""))], || sys::has(at, name));
            found.extend(stat.ok().flatten().filter(|stat| !holds(&found, stat)));
        }
        found
    }

    /// Whether an object that lost its last name is kept by its inode until that is forgotten.
    fn is_kept(&self, stat: &Stat) -> bool {
        let pin = self.known.as_ref().and_then(|inode| match &inode.state.lock().upper {
            Some(UpperAt::Pinned(pin)) => Some(pin.clone()),
            _ => None,
        });
        pin.and_then(|pin| sys::fstat(&*pin).ok()).is_some_and(|own| is_same(&own, stat))
    }

    /// What went of an object that had a name.
    fn end(&self, meter: &Meter, object: &Object, after: &[Stat]) -> Change {
        let (before, mut change) = (&object.stat, Change::default());
        let now = object.fd.as_ref().map(|fd| sys::fstat(&**fd));
        let nameless = match &now {
            // A directory has one name, which nobody else changes.
            _ if before.is_dir() => !holds(after, before),
            Some(Ok(now)) => now.nlink == 0,
            _ => before.nlink < 2 && !holds(after, before),
        };
        let kept = nameless && self.is_kept(before);
        if kept {
            meter.leaves();
        }
        if !meter.objects.lock().end(id(before), nameless, kept) {
            return change;
        }
        if before.is_dir() {
            change.went += self.marks;
        }
        match now {
            _ if !kept => change.went += Used::of(before),
            // Without its marks it may be smaller.
            Some(Ok(now)) if before.is_dir() => change += Change::between(before, &now),
            _ => {}
        }
        change
    }

    /// Whether what has a name was nowhere before.
    fn is_new(&self, meter: &Meter, stat: &Stat) -> bool {
        if self.has(stat) {
            return false;
        }
        // It may have got another name by somebody else since it was made.
        if self.fs.is_shared_whiteout(stat) {
            return meter.objects.lock().is_new_whiteout(id(stat));
        }
        stat.is_dir() || stat.nlink < 2
    }
}

impl Drop for Names<'_> {
    fn drop(&mut self) {
        let (Some(op), Some(meter)) = (self.op.take(), self.fs.meter.as_deref()) else { return };
        let (after, mut change) = (self.after(), Change::default());
        for (dir, before) in &self.dirs {
            if let Ok(now) = sys::fstat(&**dir) {
                change += Change::between(before, &now);
            }
        }
        for object in &self.before {
            change += self.end(meter, object, &after);
        }
        for new in after.iter().filter(|stat| self.is_new(meter, stat)) {
            change.came += Used::of(new);
        }
        let given = self.given.as_ref().filter(|given| holds(&after, &given.stat));
        if let Some(given) = given {
            meter.objects.lock().named(id(&given.stat));
        }
        op.settle(change);
    }
}

/// What a name stands for, opened.
fn look(dir: &OwnedFd, name: &OsStr) -> Option<Object> {
    let at = dir.as_fd();
    let opened = lend::lend(&[(at, OsStr::new(""))], || sys::open(at, name, sys::O_PATH));
    match opened.and_then(|fd| Ok(Object { stat: sys::fstat(&fd)?, fd: Some(Arc::new(fd)) })) {
        Ok(object) => Some(object),
        Err(e) if matches!(sys::errno(&e), sys::ENOENT | sys::ENAMETOOLONG) => None,
        Err(_) => {
            let stat: io::Result<_> = lend::lend(&[(at, OsStr::new(""))], || sys::has(at, name));
            stat.ok().flatten().map(|stat| Object { fd: None, stat })
        }
    }
}

pub(super) fn id(stat: &Stat) -> Id {
    (stat.dev, stat.ino)
}

fn is_same(a: &Stat, b: &Stat) -> bool {
    id(a) == id(b)
}

fn holds(stats: &[Stat], stat: &Stat) -> bool {
    stats.iter().any(|other| is_same(other, stat))
}

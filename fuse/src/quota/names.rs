//! Booking what comes and goes with names.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use super::count::marks_in;
use super::{Change, Reserved, Used};
use crate::Overlay;
use crate::inode::{Inode, UpperAt};
use crate::lend;
use crate::sys::{self, Stat};
use crate::whiteout;

/// Names of upper directories that are about to change. When this goes they are looked at again, whatever became of the
/// change, and what came and went with them is booked. It lives shorter than the locks of the directories.
pub(crate) struct Names<'a> {
    op: Option<Reserved<'a>>,
    places: Vec<(Arc<OwnedFd>, OsString)>,
    before: Vec<Stat>,
    /// Who may lose his last name, if the kernel knows him.
    known: Option<Arc<Inode>>,
    /// An object that is booked without a name already.
    booked: Option<(u64, u64)>,
    /// Marks in a directory that goes with them.
    marks: Used,
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
        for (dir, name) in names {
            places.push(((*dir).clone(), (*name).to_owned()));
            places.extend(whiteout::dot_name(name).map(|dot| ((*dir).clone(), dot)));
        }
        let (known, booked, marks) = (None, None, Used::default());
        let mut names = Names { op, places, before: Vec::new(), known, booked, marks };
        names.before = names.look();
        Some(names)
    }
}

impl Names<'_> {
    /// This object may lose its last name.
    pub(crate) fn of(mut self, known: Option<&Arc<Inode>>) -> Self {
        self.known = known.cloned();
        self
    }

    /// This object gets a name and is booked already.
    pub(crate) fn gives(mut self, fd: impl AsFd) -> Self {
        self.booked = sys::fstat(fd).ok().map(|stat| (stat.dev, stat.ino));
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
        if let Some(dir) = dir {
            self.marks = marks_in(dir.as_fd()).unwrap_or_else(|e| {
                log::debug!("list a directory that goes: {e}");
                Used::default()
            });
        }
        self
    }

    fn look(&self) -> Vec<Stat> {
        let mut found: Vec<Stat> = Vec::with_capacity(self.places.len());
        for (dir, name) in &self.places {
            let at = dir.as_fd();
            let stat = lend::lend(&[(at, OsStr::new(""))], || sys::has(at, name));
            if let Some(stat) = stat.ok().flatten().filter(|stat| !holds(&found, stat)) {
                found.push(stat);
            }
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
}

impl Drop for Names<'_> {
    fn drop(&mut self) {
        let Some(op) = self.op.take() else { return };
        let after = self.look();
        let mut change = Change::default();
        for gone in self.before.iter().filter(|stat| !holds(&after, stat)) {
            if gone.is_dir() {
                change.went += self.marks;
            }
            if !is_only(gone) {
                continue;
            }
            if self.is_kept(gone) {
                op.meter.leaves();
            } else {
                change.went += Used::of(gone);
            }
        }
        for new in after.iter().filter(|stat| !holds(&self.before, stat)) {
            if is_only(new) && self.booked != Some((new.dev, new.ino)) {
                change.came += Used::of(new);
            }
        }
        op.settle(change);
    }
}

/// Whether an object has no other name.
fn is_only(stat: &Stat) -> bool {
    stat.is_dir() || stat.nlink < 2
}

fn is_same(a: &Stat, b: &Stat) -> bool {
    (a.dev, a.ino) == (b.dev, b.ino)
}

fn holds(stats: &[Stat], stat: &Stat) -> bool {
    stats.iter().any(|other| is_same(other, stat))
}

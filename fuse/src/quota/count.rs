//! Counting what an upper directory holds.
//!
//! Others may change it meanwhile: what is not there any more is passed over, and [`super::Meter::recount`] judges what the
//! result is worth.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::Used;
use super::names::Object;
use crate::Overlay;
use crate::inode::UpperAt;
use crate::lend;
use crate::sys::{self, Stat};
use crate::whiteout::OPAQUE_FILE;

/// A sum, with the objects in it: they can be met again by another name, also by one that they got meanwhile.
#[derive(Default)]
struct Sum {
    used: Used,
    seen: HashSet<u64>,
    dev: u64,
}

impl Sum {
    fn add(&mut self, stat: &Stat) {
        // Another filesystem that is mounted there is not the upper layer's.
        if stat.dev == self.dev && self.seen.insert(stat.ino) {
            self.used += Used::of(stat);
        }
    }

    /// Adds everything below a directory. The way down is kept on the heap, and no descriptor with it.
    fn tree(&mut self, root: BorrowedFd<'_>) -> io::Result<()> {
        let mut left = vec![PathBuf::new()];
        while let Some(path) = left.pop() {
            let entries = match open(root, &path).and_then(|dir| entries(dir.as_fd())) {
                Err(e) if is_gone(&e) => continue,
                other => other?,
            };
            for (name, stat) in entries {
                self.add(&stat);
                if stat.is_dir() && stat.dev == self.dev {
                    left.push(path.join(name));
                }
            }
        }
        Ok(())
    }
}

fn is_gone(error: &io::Error) -> bool {
    matches!(sys::errno(error), sys::ENOENT | sys::ENOTDIR | sys::ESTALE)
}

/// Opens a directory of the upper layer, also below one that its owner has closed to himself.
fn open(root: BorrowedFd<'_>, path: &Path) -> io::Result<OwnedFd> {
    let flags = sys::O_PATH | sys::O_DIRECTORY;
    match sys::open_beneath(root, path, flags) {
        Err(e) if sys::errno(&e) == sys::EACCES => {}
        other => return other,
    }
    let mut here = sys::open(root, OsStr::new("."), flags)?;
    for name in path {
        let at = here.as_fd();
        here = lend::lend(&[(at, OsStr::new(""))], || sys::open(at, name, flags))?;
    }
    Ok(here)
}

/// The names in a directory with what they are.
fn entries(dir: BorrowedFd<'_>) -> io::Result<Vec<(OsString, Stat)>> {
    lend::lend(&[(dir, OsStr::new(""))], || {
        let mut found = Vec::new();
        for entry in sys::list(dir)? {
            if let Some(stat) = sys::has(dir, &entry.name)? {
                found.push((entry.name, stat));
            }
        }
        Ok(found)
    })
}

/// What goes with a directory that holds nothing but marks, and those marks that may have names elsewhere: that they go is seen
/// when they have. The file that makes it opaque is never booked by itself, so that it is not given back more often than it came.
pub(super) fn marks_in(
    dir: BorrowedFd<'_>,
    is_shared: impl Fn(&Stat) -> bool,
) -> io::Result<(Used, Vec<Object>)> {
    let (mut used, mut shared): (Used, Vec<Object>) = (Used::default(), Vec::new());
    let mut seen = HashSet::new();
    for (name, stat) in entries(dir)? {
        if stat.is_dir() || name == OPAQUE_FILE {
            continue;
        }
        if stat.nlink < 2 && !is_shared(&stat) {
            used += Used::of(&stat);
        } else if seen.insert(stat.ino) {
            let open = || sys::open(dir, &name, sys::O_PATH);
            let fd = lend::lend(&[(dir, OsStr::new(""))], open)?;
            shared.push(Object { fd: Some(Arc::new(fd)), stat });
        }
    }
    Ok((used, shared))
}

impl Overlay {
    /// Looks at everything that is booked: the upper directory, the index of hard links, of which some have no name
    /// there, and what the kernel knows without a name.
    pub(super) fn count(&self) -> io::Result<Used> {
        let Some(upper) = &self.stack.upper else { return Ok(Used::default()) };
        let root = sys::fstat(&*upper.root)?;
        let mut sum = Sum { dev: root.dev, ..Sum::default() };
        sum.used += Used::bytes(Used::of(&root).bytes);
        sum.tree(upper.root.as_fd())?;
        if let Some(index) = upper.work.index() {
            for (_, stat) in entries(index)? {
                sum.add(&stat);
            }
        }
        let mut pinned: Vec<Arc<OwnedFd>> = Vec::new();
        self.table.each(|inode| {
            if let Some(UpperAt::Pinned(fd)) = &inode.state.lock().upper {
                pinned.push(fd.clone());
            }
        });
        for fd in pinned {
            let stat = sys::fstat(&*fd)?;
            if stat.is_dir() || stat.nlink == 0 {
                sum.add(&stat);
            }
        }
        Ok(sum.used)
    }

    /// Whether a request that needs room may have to wait for it.
    pub(crate) fn is_tight(&self) -> bool {
        self.meter.as_ref().is_some_and(|meter| meter.is_tight())
    }

    /// Puts the books right, as [`super::Meter::count_elsewhere`] asks for.
    pub(crate) fn count_now(&self) {
        if let Some(meter) = &self.meter {
            meter.count_now(|| self.count());
        }
    }

    /// Has counts without need made by `start`, which returns at once.
    pub(crate) fn count_elsewhere(&self, start: impl Fn() + Send + Sync + 'static) {
        if let Some(meter) = &self.meter {
            meter.count_elsewhere(start);
        }
    }

    /// Opens the books, if there are limits.
    pub(crate) fn start_meter(&self) -> io::Result<()> {
        if let Some(meter) = &self.meter {
            meter.start(self.count()?);
        }
        Ok(())
    }

    /// What is booked and what a count finds, on a mount with limits; for tests.
    pub fn used(&self) -> Option<io::Result<(Used, Used)>> {
        let meter = self.meter.as_ref()?;
        Some(self.count().map(|found| (meter.used(), found)))
    }
}

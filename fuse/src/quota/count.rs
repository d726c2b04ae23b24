//! Counting what an upper directory holds.
//!
//! Others may change it meanwhile: what is not there any more is passed over, and [`super::Meter::recount`] judges what the
//! result is worth.

use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::Used;
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

/// What goes with a directory that holds nothing but marks. The file that makes it opaque is never booked by itself, so that
/// it is not given back more often than it came.
pub(super) fn marks_in(dir: BorrowedFd<'_>) -> io::Result<Used> {
    let mut linked: HashMap<u64, u32> = HashMap::new();
    let mut used = Used::default();
    for (name, stat) in entries(dir)? {
        let names = linked.entry(stat.ino).or_default();
        *names += 1;
        if !stat.is_dir() && *names >= stat.nlink && name != OPAQUE_FILE {
            used += Used::of(&stat);
        }
    }
    Ok(used)
}

impl Overlay {
    /// Looks at everything that is booked: the upper directory, the index of hard links, of which some have no name
    /// there, and what the kernel knows without a name.
    pub(super) fn count(&self) -> io::Result<Used> {
        let Some(upper) = &self.stack.upper else { return Ok(Used::default()) };
        let mut sum = Sum { dev: sys::fstat(&*upper.root)?.dev, ..Sum::default() };
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

//! Hard-link groups that survive copy-up and remount.
//!
//! When a lower file with several names is copied up, the copy also gets a name in `work/index`,
//! made from the lower file's handle, as the kernel's overlay does with `index=on`, or from what stat tells of it where a
//! file system has no handles. Any other name
//! of the group, found in a lower layer later, leads there. The count of names over the merged tree
//! is kept in the `overlay.nlink` xattr, relative to the upper count (`U+n`), or to the lower one
//! (`L+n`) while a change of the upper count is under way: so it is right after a crash at any step.

mod settle;

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use crate::Overlay;
use crate::copy_up::restore_times;
use crate::error::{Context, Error, Result};
use crate::inode::{Inode, LowerFile, UpperAt};
use crate::lend;
use crate::namei::Found;
use crate::origin::Origin;
use crate::side;
use crate::sys::{self, Stat};
use crate::whiteout::{self, Marks};
pub use settle::settle;

/// The merged count a record stands for.
fn merged_count(record: &[u8], upper: u32, lower: Option<u32>) -> Option<u32> {
    let (base, rest) = match record.split_first()? {
        (b'U', rest) => (upper, rest),
        (b'L', rest) => (lower?, rest),
        _ => return None,
    };
    let difference: i64 = std::str::from_utf8(rest).ok()?.parse().ok()?;
    u32::try_from(i64::from(base) + difference).ok()
}

impl Overlay {
    /// The record of a lower object by which its copy is found again.
    pub(crate) fn origin_of(&self, dir: BorrowedFd<'_>, name: &OsStr, dev: u64) -> Option<Origin> {
        let uuid = self.numbers.uuid(dev)?;
        let handle = sys::file_handle(dir, name).ok()?;
        Some(Origin { uuid, handle_type: handle.kind, handle: handle.bytes })
    }

    /// The record of a lower file with several names, by which all of them find one copy: that of its
    /// handle, or where there is none, of what stat tells. Without one the names would be one object to the
    /// kernel, and its copy have one of them only.
    pub(crate) fn group_origin(
        &self,
        dir: BorrowedFd<'_>,
        name: &OsStr,
        (layer, stat): (usize, &Stat),
    ) -> Origin {
        let layer = self.stack.layers.len() - layer;
        self.origin_of(dir, name, stat.dev).unwrap_or_else(|| Origin::of_inode(layer, stat))
    }

    /// An upper object with an origin and several links: a member of a group, if the index has it.
    pub(crate) fn join_group(
        &self,
        found: &mut Found,
        origin: &Origin,
        marks: &Marks,
    ) -> io::Result<()> {
        let Some(index) = self.stack.upper.as_ref().and_then(|upper| upper.work.index()) else {
            return Ok(());
        };
        let name = OsString::from(origin.hex());
        if sys::has(index, &name)?.is_none_or(|stat| stat.ino != found.stat.ino) {
            return Ok(());
        }
        found.state.group_nlink = group_count(marks, &found.stat, None);
        found.state.upper = Some(UpperAt::Index(Arc::new(name)));
        Ok(())
    }

    /// A lower object with several links: its upper twin, if another name of it was copied up.
    pub(crate) fn find_group(
        &self,
        found: &mut Found,
        dir: BorrowedFd<'_>,
        name: &OsStr,
    ) -> io::Result<()> {
        let Some(index) = self.stack.upper.as_ref().and_then(|upper| upper.work.index()) else {
            return Ok(());
        };
        let layer = found.state.lower.as_ref().map_or(0, |file| file.dir.layer);
        let origin = self.group_origin(dir, name, (layer, &found.stat));
        let key = OsString::from(origin.hex());
        let Some(stat) = sys::has(index, &key)? else {
            return Ok(());
        };
        let Some(upper) = &self.stack.upper else { return Ok(()) };
        let marks = side::marks(upper, (index, &key), stat.kind())?;
        found.state.group_nlink = group_count(&marks, &stat, Some(found.stat.nlink));
        found.state.upper = Some(UpperAt::Index(Arc::new(key)));
        found.state.has_origin = true;
        found.stat = stat;
        if origin.is_of_inode() {
            // No other name can tell the number that the lower file had.
            found.number = self.upper_number(&stat);
        }
        Ok(())
    }

    /// Publishes the copy of a group's file: index first, then the name. The lock of the parent is
    /// held, its descriptor is `parent`.
    pub(crate) fn publish_group(
        &self,
        temp: &OsStr,
        origin: &Origin,
        lower: &Stat,
        place: (BorrowedFd<'_>, &OsStr),
    ) -> io::Result<UpperAt> {
        let key = OsString::from(origin.hex());
        let upper = self.stack.upper.as_ref();
        let upper = upper.ok_or_else(|| io::Error::from_raw_os_error(sys::EROFS))?;
        let index = upper.work.make_index()?;
        self.write_lower_count(upper.work.dir(), temp, lower.nlink)?;
        self.write_count(upper.work.dir(), temp, 'L', 0)?;
        sys::rename(upper.work.dir(), temp, index, &key, 0)?;
        // The group is copied up by now, whatever fails from here on: the name leads to the index.
        let named = || -> io::Result<()> {
            lend::lend(&[(place.0, OsStr::new(""))], || sys::link(index, &key, place.0, place.1))?;
            let now = sys::stat(index, &key)?.nlink;
            self.write_count(index, &key, 'U', i64::from(lower.nlink) - i64::from(now))
        };
        if let Err(e) = named() {
            log::debug!("{:?} stays a name of the lower layer: {e}", place.1);
        }
        Ok(UpperAt::Index(Arc::new(key)))
    }

    /// Gives a group's upper file the name it has in a lower layer only, so that what happens to
    /// the name next is one step. The lock of the parent is held.
    pub(crate) fn materialize(
        &self,
        inode: &Arc<Inode>,
        lower: &LowerFile,
        place: (BorrowedFd<'_>, &OsStr),
    ) -> Result<()> {
        let (key, count) = {
            let state = inode.state.lock();
            (state.index(), state.group_nlink)
        };
        let (Some(key), Some(index)) =
            (key, self.stack.upper.as_ref().and_then(|u| u.work.index()))
        else {
            return Ok(());
        };
        let link = || -> io::Result<()> {
            let dir = self.lower_dir(&lower.dir)?;
            let lower_count = sys::stat(&*dir, &lower.name)?.nlink;
            let count = count.unwrap_or(lower_count);
            self.write_lower_count(index, &key, lower_count)?;
            self.write_count(index, &key, 'L', i64::from(count) - i64::from(lower_count))?;
            let before = sys::fstat(place.0)?;
            lend::lend(&[(place.0, OsStr::new(""))], || sys::link(index, &key, place.0, place.1))?;
            restore_times(place.0, &before)?;
            let upper_count = sys::stat(index, &key)?.nlink;
            self.write_count(index, &key, 'U', i64::from(count) - i64::from(upper_count))
        };
        link().on("link", place.1)
    }

    /// A name of a group was added or removed; the index goes with the last name.
    pub(crate) fn count_group(&self, inode: &Arc<Inode>, change: i32) -> Result<()> {
        let mut state = inode.state.lock();
        let Some(count) = state.group_nlink else {
            return Ok(());
        };
        let count = count.saturating_add_signed(change);
        state.group_nlink = Some(count);
        let Some(key) = state.index().filter(|_| count == 0) else {
            return Ok(());
        };
        drop(state);
        let Some(index) = self.stack.upper.as_ref().and_then(|upper| upper.work.index()) else {
            return Ok(());
        };
        let pin = sys::open(index, &key, sys::O_PATH).on("open", &*key)?;
        sys::unlink(index, &key).on("unlink", &*key)?;
        self.keep_booked(&pin);
        let mut state = inode.state.lock();
        state.upper = Some(UpperAt::Pinned(Arc::new(pin)));
        state.group_nlink = None;
        Ok(())
    }

    /// Removes from the index what lost its last name when the process ended before that was noticed.
    pub(crate) fn drop_orphans(&self) -> io::Result<()> {
        let Some(upper) = &self.stack.upper else { return Ok(()) };
        let Some(index) = upper.work.index() else { return Ok(()) };
        for entry in sys::list(index)? {
            let stat = sys::stat(index, &entry.name)?;
            if stat.nlink > 1 || stat.is_dir() || whiteout::is_device(&stat) {
                continue;
            }
            let marks = side::marks(upper, (index, &entry.name), stat.kind())?;
            let count = marks.nlink.and_then(|record| merged_count(&record, stat.nlink, None));
            if count == Some(0) {
                sys::unlink(index, &entry.name)?;
            }
        }
        Ok(())
    }

    /// The lower file of an inode that is a group and not copied up yet.
    pub(crate) fn needs_group(&self, inode: &Arc<Inode>) -> Result<bool> {
        let lower = {
            let state = inode.state.lock();
            if state.upper.is_some() || inode.is_dir() {
                return Ok(false);
            }
            state.lower.clone()
        };
        let Some(lower) = lower else { return Ok(false) };
        let stat = self
            .lower_dir(&lower.dir)
            .and_then(|dir| sys::stat(&*dir, &lower.name))
            .map_err(|e| Error::new("stat", inode.path(), e))?;
        Ok(stat.nlink > 1)
    }

    /// Makes the count relative to the upper links before they change with it. It is already, unless
    /// a crash came between.
    pub(crate) fn settle_group(&self, inode: &Inode) -> Result<()> {
        let (key, count) = {
            let state = inode.state.lock();
            (state.index(), state.group_nlink)
        };
        let Some(upper) = &self.stack.upper else { return Ok(()) };
        let (Some(key), Some(count), Some(index)) = (key, count, upper.work.index()) else {
            return Ok(());
        };
        let settle = || -> io::Result<()> {
            let stat = sys::stat(index, &key)?;
            let marks = side::marks(upper, (index, &key), stat.kind())?;
            if marks.nlink.is_some_and(|record| record.first() == Some(&b'U')) {
                return Ok(());
            }
            self.write_count(index, &key, 'U', i64::from(count) - i64::from(stat.nlink))
        };
        settle().on("count links", &*key)
    }

    fn write_lower_count(&self, dir: BorrowedFd<'_>, name: &OsStr, count: u32) -> io::Result<()> {
        match &self.stack.upper {
            Some(upper) => {
                side::set_mark(upper, (dir, name), "nlink.lower", count.to_string().as_bytes())
            }
            None => Ok(()),
        }
    }

    fn write_count(
        &self,
        dir: BorrowedFd<'_>,
        name: &OsStr,
        base: char,
        difference: i64,
    ) -> io::Result<()> {
        let value = format!("{base}{difference:+}");
        match &self.stack.upper {
            Some(upper) => side::set_mark(upper, (dir, name), "nlink", value.as_bytes()),
            None => Ok(()),
        }
    }
}

fn group_count(marks: &Marks, upper: &Stat, lower: Option<u32>) -> Option<u32> {
    let kept = || std::str::from_utf8(marks.lower_nlink.as_deref()?).ok()?.parse().ok();
    let lower = lower.or_else(kept);
    let counted =
        marks.nlink.as_deref().and_then(|record| merged_count(record, upper.nlink, lower));
    // Without a record: the index itself is one of the upper links.
    counted.or(Some(upper.nlink.saturating_sub(1).max(lower.unwrap_or(0).min(upper.nlink))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_relative_to_one_side() {
        for (record, upper, lower, count) in [
            ("U+0", 3, None, Some(3)),
            ("U-1", 3, None, Some(2)),
            ("L+2", 9, Some(2), Some(4)),
            ("L+2", 9, None, None),
            ("U-4", 3, None, None),
            ("x", 3, None, None),
            ("", 3, None, None),
        ] {
            assert_eq!(merged_count(record.as_bytes(), upper, lower), count, "{record}");
        }
    }
}

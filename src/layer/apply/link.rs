//! Hard links: to a file of the same layer, or to one below, which is copied first.

use std::ffi::OsStr;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;

use plyfs_fuse::sys;

use super::dirs::At;
use super::reader::Entry;
use super::remove::LINKED;
use super::unpack::Unpack;
use super::way::Wanted;
use crate::error::Result;
use crate::layer::split::clean;

impl Unpack<'_> {
    /// Makes a link. What it is to is resolved in the root, the last name not followed; attributes are those of
    /// the file, whatever the entry says.
    pub(super) fn link(&mut self, entry: &Entry, above: &[&[u8]], name: &OsStr) -> Result<()> {
        let target = clean(&entry.link);
        let missing = || {
            entry.wrong(format!("is a link to '{}', which is missing", entry.link.escape_ascii()))
        };
        let Some((last, way)) = target.split_last() else { return Err(missing()) };
        let last = OsStr::from_bytes(last);
        let (from, path) = if way == [LINKED] {
            (self.kept_dir().ok_or_else(missing)?, None)
        } else {
            if !self.enter(way, Wanted::Look, entry)? || !self.bring_up(last)? {
                return Err(missing());
            }
            let fd = self.dirs.fd().try_clone_to_owned().at("open", &self.dirs, b"")?;
            (fd, Some(self.dirs.path_of(last.as_bytes())))
        };
        self.enter(above, Wanted::Content, entry)?;
        let own = self.dirs.path_of(name.as_bytes());
        if path.as_ref() == Some(&own) {
            return Ok(());
        }
        loop {
            match sys::link(from.as_fd(), last, self.dirs.fd(), name) {
                Err(error) if sys::errno(&error) == sys::EEXIST => self.make_way(name)?,
                Err(error) if sys::errno(&error) == sys::ENOENT => return Err(missing()),
                made => {
                    made.at("link", &self.dirs, name.as_bytes())?;
                    break;
                }
            }
        }
        self.dirs.top_mut().changed = true;
        self.bring(&own)
    }

    /// Sees to it that the name is in the last directory; false when it is nowhere.
    fn bring_up(&mut self, name: &OsStr) -> Result<bool> {
        let stat = sys::has(self.dirs.fd(), name).at("stat", &self.dirs, name.as_bytes())?;
        if let Some(stat) = stat {
            return Ok(!self.is_whiteout(name, &stat)?);
        }
        match self.below(name.as_bytes())? {
            None => Ok(false),
            Some(found) => {
                self.copy_up(&found, name)?;
                self.dirs.top_mut().changed = true;
                self.lend(&self.dirs.path_of(name.as_bytes()))?;
                Ok(true)
            }
        }
    }
}

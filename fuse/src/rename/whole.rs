//! A directory about to be moved where no redirect may say so: everything below it is copied up and it
//! is made opaque.
//!
//! The way down is kept on the heap, a step a directory, and no step keeps a descriptor: depth costs
//! memory only.

use std::ffi::{OsStr, OsString};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStringExt;
use std::sync::Arc;

use super::{Counted, Side};
use crate::Overlay;
use crate::copy_up::restore_times;
use crate::error::{Context, Error, Result};
use crate::inode::{Inode, Lowers};
use crate::lend;
use crate::options::RedirectDir;
use crate::readdir::DirEntry;
use crate::redirect;
use crate::sys;
use crate::whiteout::{self, Space};

/// A directory on the way down, with what is left of it.
struct Step<'a> {
    dir: Arc<Inode>,
    left: std::vec::IntoIter<DirEntry>,
    /// The lookup that keeps it; none for the directory that is moved.
    _counted: Option<Counted<'a>>,
}

impl Overlay {
    /// Makes an object fit to be renamed: it has an upper twin, and a directory's lower part comes
    /// along.
    pub(super) fn prepare(&self, inode: &Arc<Inode>) -> Result<()> {
        if !inode.is_dir() {
            // A metacopy finds its data by its name unless it bears a redirect; it gets the data.
            return self.copy_up_data(inode, None);
        }
        let merged = !inode.state.lock().lowers.is_empty();
        let (redirect, whole) = match self.options.redirect_dir {
            _ if !merged => return self.copy_up(inode),
            RedirectDir::Off => return Err(Error::code("rename", inode.path(), sys::EXDEV)),
            RedirectDir::Copy => (None, true),
            RedirectDir::Auto => {
                (redirect::value(&self.lower_path(inode)), self.stack.space != Space::Trusted)
            }
            RedirectDir::On => {
                (redirect::value(&self.lower_path(inode)), self.stack.space == Space::None)
            }
        };
        let Some(value) = redirect.filter(|_| !whole) else {
            return self.copy_whole(inode);
        };
        self.copy_up(inode)?;
        let key = self.stack.space.key("redirect");
        self.at(inode, |dir, name| lend::set_xattr(dir, name, &key, &value))
            .on("redirect", inode.path())?;
        inode.state.lock().set_redirect(Some(OsString::from_vec(value)));
        Ok(())
    }

    /// Copies everything below a directory up and makes it opaque, so that it has no lower part.
    fn copy_whole(&self, dir: &Arc<Inode>) -> Result<()> {
        let mut way: Vec<Step<'_>> = self.step_into(dir, None)?.into_iter().collect();
        while let Some(step) = way.last_mut() {
            let Some(entry) = step.left.next() else {
                self.seal(&step.dir)?;
                way.pop();
                continue;
            };
            let dir = step.dir.clone();
            let Some(child) = self.child(&dir, &entry.name)? else {
                continue;
            };
            let counted = Counted { overlay: self, ino: Some(child.ino) };
            if child.is_dir() {
                way.extend(self.step_into(&child, Some(counted))?);
                continue;
            }
            self.copy_up_data(&child, None)?;
            let held = self.hold(&dir, Some(&entry.name))?;
            let side = Side { dir: &dir, name: &entry.name, inode: Some(child.clone()) };
            self.name_group(&held, &side)?;
        }
        Ok(())
    }

    /// Copies one directory up; its content is to be copied when it has a lower part.
    fn step_into<'a>(
        &'a self,
        dir: &Arc<Inode>,
        counted: Option<Counted<'a>>,
    ) -> Result<Option<Step<'a>>> {
        self.copy_up(dir)?;
        if dir.state.lock().lowers.is_empty() {
            return Ok(None);
        }
        let view = self.view(dir)?;
        let names = self.merge(&view).at("copy directory", || dir.path())?;
        Ok(Some(Step { dir: dir.clone(), left: names.into_iter(), _counted: counted }))
    }

    /// Makes a directory opaque whose lower names all have upper twins or whiteouts by now.
    fn seal(&self, dir: &Arc<Inode>) -> Result<()> {
        let upper = self.writable("rename")?;
        if let Some(link) = dir.link() {
            if let Some(parent) = self.upper_dir(&link.parent)? {
                self.mark_impure(&link.parent, parent.as_fd()).at("set mark", || dir.path())?;
            }
        }
        let held = self.hold(dir, None)?;
        let (here, top) = (held.fd.as_fd(), OsStr::new(""));
        if let Some(lower) = held.view.lowers.first() {
            let lower = self.lower_dir(lower).at("open", || dir.path())?;
            let dev = sys::fstat(&*lower).at("stat", || dir.path())?.dev;
            if let Some(origin) = self.origin_of(lower.as_fd(), top, dev) {
                self.write_origin(here, top, &origin).at("set origin", || dir.path())?;
            }
        }
        upper.dialect.set_opaque(here, top).at("make opaque", || dir.path())?;
        self.note_copy(dir, here, top);
        let mut state = dir.state.lock();
        state.lowers = Lowers::default();
        state.set_redirect(None);
        state.has_origin = true;
        drop(state);
        let before = sys::fstat(here).at("stat", || dir.path())?;
        for entry in sys::list(here).at("list", || dir.path())? {
            let dot = whiteout::dot_target(&entry.name).is_some();
            let stat = || sys::stat(here, &entry.name).ok();
            let whiteout = matches!(entry.kind, sys::S_IFCHR | sys::S_IFREG | 0)
                && (entry.kind != sys::S_IFREG || held.view.xattr_whiteouts())
                && stat().is_some_and(|stat| held.is_whiteout(&entry.name, &stat).unwrap_or(false));
            if dot || whiteout {
                let _names = self.names(self.begin(), &[(&held.fd, &entry.name)]);
                lend::lend(&[(here, top)], || sys::unlink(here, &entry.name))
                    .on("remove whiteout", &entry.name)?;
            }
        }
        restore_times(here, &before).at("set times", || dir.path())
    }
}

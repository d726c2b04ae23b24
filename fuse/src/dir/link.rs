//! link: a second name for an object, in one step.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use super::Place;
use crate::Overlay;
use crate::error::{Context, Error, Result};
use crate::inode::{Ino, Inode, UpperAt};
use crate::namei::{Entry, check_name};
use crate::quota::Used;
use crate::sys;

impl Overlay {
    /// Gives an object a second name.
    pub fn link(&self, ino: Ino, parent: Ino, name: &OsStr) -> Result<Entry> {
        let inode = self.inode(ino, "link")?;
        let parent = self.dir_inode(parent, "link")?;
        check_name(name)?;
        let upper = self.writable("link")?;
        if inode.is_dir() {
            return Err(Error::code("link", name, sys::EPERM));
        }
        self.copy_up_data(&inode, None)?;
        if self.meter.is_some() {
            self.copy_up(&parent)?;
        }
        let room = self.reserve_name(Used::default()).on("link", name)?;
        let from = self.link_source(&inode)?;
        let held = self.hold(&parent, Some(name))?;
        let place = self.place(&held, name, false)?;
        if !may_be_linked(&inode) {
            return Err(Error::code("link", name, sys::ENOENT));
        }
        let names = self.names(room, &[(&held.fd, name)]).map(|names| names.gives(&from));
        self.settle_group(&inode)?;
        if inode.state.lock().has_origin {
            self.mark_impure(&parent, held.fd.as_fd()).on("link", name)?;
        }
        if place == Place::Whiteout {
            let temp = upper.work.temp();
            sys::link_fd(&*from, temp.dir(), temp.name()).on("link", name)?;
            sys::rename(temp.dir(), temp.name(), &*held.fd, name, 0).on("link", name)?;
            temp.keep();
        } else {
            sys::link_fd(&*from, held.fd.as_fd(), name).on("link", name)?;
        }
        if place == Place::Dot {
            upper.dialect.drop_dot(held.fd.as_fd(), name);
        }
        self.adopt_link(&inode, &parent, name);
        self.count_group(&inode, 1)?;
        drop(names);
        drop(held);
        self.table.count_lookup(&inode);
        self.entry(&inode)
    }

    fn adopt_link(&self, inode: &Arc<Inode>, parent: &Arc<Inode>, name: &OsStr) {
        let mut state = inode.state.lock();
        state.add_link(parent, name);
        if matches!(state.upper, Some(UpperAt::Pinned(_))) {
            state.upper = Some(UpperAt::Named);
        }
    }

    /// The object by descriptor: its names may change until the link is made.
    fn link_source(&self, inode: &Arc<Inode>) -> Result<Arc<OwnedFd>> {
        if let Some(UpperAt::Pinned(fd)) = &inode.state.lock().upper {
            return Ok(fd.clone());
        }
        let open = self.at(inode, |dir, name| sys::open(dir, name, sys::O_PATH));
        open.map(Arc::new).on("link", inode.path())
    }
}

/// Whether an object may get another name. The filesystem may not say so: what was copied up may have been made without a
/// name there.
fn may_be_linked(inode: &Inode) -> bool {
    let state = inode.state.lock();
    state.linkable || !state.links.is_empty()
}

//! Where an object can be reached right now.
//!
//! The upper object of a name is reached through its directory's descriptor, with the directory's
//! lock held shared and the name checked again under it, so a rename at the same moment cannot lead
//! to another object. Lower objects need no lock, for lower layers do not change.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

use crate::Overlay;
use crate::dir::Held;
use crate::error::{Context, Error, Result};
use crate::inode::{Inode, Link, LowerDir, LowerFile, State, UpperAt};
use crate::namei::View;
use crate::stack::Stack;
use crate::sys;
use crate::whiteout;

/// Where the root lives: in the upper layer and in every lower one, down to an opaque root.
pub(crate) fn root(stack: &Stack) -> io::Result<State> {
    let mut state = State::default();
    let top = OsStr::new("");
    let mut lowers = Vec::new();
    let mut opaque = false;
    if let Some(upper) = &stack.upper {
        let marks = whiteout::marks(&*upper.root, top, stack.space)?;
        opaque = marks.opaque || whiteout::has_opaque_file(upper.root.as_fd())?;
        state.upper = Some(UpperAt::Named);
        state.impure = marks.impure;
        state.xattr_whiteouts = marks.xattr_whiteouts;
    }
    for (layer, lower) in stack.layers[..stack.visible].iter().enumerate() {
        if opaque {
            break;
        }
        let marks = whiteout::marks(&lower.root, top, stack.space)?;
        opaque = marks.opaque || whiteout::has_opaque_file(lower.root.as_fd())?;
        let (path, slot) = (PathBuf::new(), Arc::default());
        lowers.push(Arc::new(LowerDir {
            layer,
            path,
            xattr_whiteouts: marks.xattr_whiteouts,
            impure: marks.impure,
            slot,
        }));
    }
    state.lowers = lowers.into();
    Ok(state)
}

impl Overlay {
    /// Descriptor of a lower directory.
    pub(crate) fn lower_dir(&self, dir: &LowerDir) -> io::Result<Arc<OwnedFd>> {
        self.dir_fds.get(&dir.slot, || {
            let root = &self.stack.layers[dir.layer].root;
            sys::open_beneath(root, &dir.path, sys::O_PATH | sys::O_DIRECTORY)
        })
    }

    /// Opens the data of a lower file.
    pub(crate) fn open_lower(&self, file: &LowerFile, flags: i32) -> io::Result<OwnedFd> {
        if file.is_nowhere() {
            return Err(io::Error::from_raw_os_error(sys::EIO));
        }
        sys::open(&*self.lower_dir(&file.dir)?, &file.name, flags)
    }

    /// Descriptor of the upper directory, `None` while there is none. No directory's lock may be
    /// held by the caller.
    pub(crate) fn upper_dir(&self, inode: &Arc<Inode>) -> Result<Option<Arc<OwnedFd>>> {
        loop {
            // Down from the nearest directory with a descriptor; every step is one name.
            let mut missing = Vec::new();
            let mut here = inode.clone();
            let mut fd = loop {
                match cached(&here) {
                    Some(fd) => break fd,
                    None if !here.is_upper() => return Ok(None),
                    None => {}
                }
                let Some(link) = here.link() else {
                    // It is pinned before it loses its name: who saw neither looks again.
                    match cached(&here) {
                        Some(fd) => break fd,
                        None => return Err(gone(&here)),
                    }
                };
                let parent = link.parent.clone();
                missing.push((here, link));
                here = parent;
            };
            let mut whole = true;
            for (dir, link) in missing.iter().rev() {
                match self.open_upper_child(&fd, dir, link)? {
                    Some(child) => fd = child,
                    None => {
                        whole = false;
                        break;
                    }
                }
            }
            if whole {
                return Ok(Some(fd));
            }
        }
    }

    /// Opens a directory below its parent's descriptor; `None` when it moved meanwhile.
    fn open_upper_child(
        &self,
        parent: &OwnedFd,
        dir: &Arc<Inode>,
        link: &Link,
    ) -> Result<Option<Arc<OwnedFd>>> {
        let (Some(part), Some(lock)) = (dir.dir(), link.parent.dir()) else {
            return Ok(None);
        };
        let _guard = lock.ns.read();
        if !dir.has_link(&link.parent, &link.name) {
            return Ok(None);
        }
        let open = || sys::open(parent, &link.name, sys::O_PATH | sys::O_DIRECTORY);
        self.dir_fds.get(&part.slot, open).map(Some).on("open directory", &*link.name)
    }

    /// The places of a directory whose parent is held.
    pub(crate) fn view_below(
        &self,
        inode: &Arc<Inode>,
        held: &Held<'_>,
        name: &OsStr,
    ) -> Result<View> {
        if let (true, Some(part)) = (inode.is_upper(), inode.dir()) {
            let open = || sys::open(&*held.fd, name, sys::O_PATH | sys::O_DIRECTORY);
            self.dir_fds.get(&part.slot, open).on("open directory", name)?;
        }
        let fd = cached(inode).filter(|_| inode.is_upper());
        Ok(View::new(inode, fd))
    }

    /// Calls `f` with where the object is, as directory and name; the empty name stands for the
    /// descriptor itself.
    pub(crate) fn at<T>(
        &self,
        inode: &Arc<Inode>,
        f: impl Fn(BorrowedFd<'_>, &OsStr) -> io::Result<T>,
    ) -> io::Result<T> {
        let top = OsStr::new("");
        loop {
            let (upper, lower, dirs) = {
                let state = inode.state.lock();
                (state.upper.clone(), state.lower.clone(), state.lowers.clone())
            };
            match upper {
                Some(UpperAt::Pinned(fd)) => return f(fd.as_fd(), top),
                Some(UpperAt::Index(name)) => {
                    let index = self.stack.upper.as_ref().and_then(|upper| upper.work.index());
                    let index = index.ok_or_else(|| io::Error::from_raw_os_error(sys::ESTALE))?;
                    return f(index, &name);
                }
                Some(UpperAt::Named) if inode.is_dir() => {
                    let fd = self.upper_dir(inode).map_err(|e| e.source)?;
                    return f(
                        fd.ok_or_else(|| io::Error::from_raw_os_error(sys::ESTALE))?.as_fd(),
                        top,
                    );
                }
                Some(UpperAt::Named) => {
                    if let Some(result) = self.at_name(inode, &f) {
                        return result;
                    }
                    let state = inode.state.lock();
                    if state.links.is_empty() && matches!(state.upper, Some(UpperAt::Named)) {
                        return Err(io::Error::from_raw_os_error(sys::ESTALE));
                    }
                }
                None => {
                    if let Some(dir) = dirs.first() {
                        return f(self.lower_dir(dir)?.as_fd(), top);
                    }
                    let file = lower.ok_or_else(|| io::Error::from_raw_os_error(sys::ESTALE))?;
                    return f(self.lower_dir(&file.dir)?.as_fd(), &file.name);
                }
            }
        }
    }

    /// [`Overlay::at`] for a named upper object; `None` when it moved meanwhile.
    fn at_name<T>(
        &self,
        inode: &Arc<Inode>,
        f: &impl Fn(BorrowedFd<'_>, &OsStr) -> io::Result<T>,
    ) -> Option<io::Result<T>> {
        let link = inode.link()?;
        let dir = match self.upper_dir(&link.parent) {
            Ok(dir) => dir?,
            Err(e) => return Some(Err(e.source)),
        };
        let _guard = link.parent.dir()?.ns.read();
        let state = inode.state.lock();
        let still =
            state.has_link(&link.parent, &link.name) && matches!(state.upper, Some(UpperAt::Named));
        drop(state);
        still.then(|| f(dir.as_fd(), &link.name))
    }
}

/// The descriptor of an upper directory, if it is at hand.
fn cached(inode: &Inode) -> Option<Arc<OwnedFd>> {
    if let Some(UpperAt::Pinned(fd)) = &inode.state.lock().upper {
        return Some(fd.clone());
    }
    inode.dir()?.slot.get()
}

fn gone(inode: &Arc<Inode>) -> Error {
    Error::code("open directory", inode.path(), sys::ENOENT)
}

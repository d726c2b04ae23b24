//! Passthrough: which open files the kernel reads and writes without us.
//!
//! All opens of an inode that live at one time agree: either the kernel keeps pages of it, or all of them
//! use one registered file, also for mappings (fs/fuse/iomode.c, passthrough.c). The first open decides. A
//! file that may still be copied up is not handed over: whoever opens it for writing meanwhile could only be
//! given the lower file, and a shared mapping would write to it.

use std::collections::HashMap;
use std::os::fd::OwnedFd;

use fuser::FopenFlags;
use parking_lot::Mutex;

use super::answer::Opened;
use crate::inode::Ino;
use crate::{Overlay, sys};

/// From this size on the kernel reads a file of a read-only mount itself: what it keeps of small ones
/// outlives their close.
const LARGE: u64 = 256 * 1024;

/// What the open files of an inode agree on.
#[derive(Debug)]
struct Use {
    opens: u64,
    how: How,
}

#[derive(Clone, Copy, Debug)]
enum How {
    /// The kernel keeps pages.
    Cached,
    /// This registered file.
    Backed(u32),
}

/// The registered files of a connection.
#[derive(Debug)]
pub(super) struct Backings {
    connection: OwnedFd,
    /// Held over the registration, so that two opens at once agree. Only system calls on the connection
    /// are made under it.
    used: Mutex<HashMap<Ino, Use>>,
}

impl Backings {
    /// Tries whether the kernel takes files from us.
    pub(super) fn start(connection: OwnedFd) -> std::io::Result<Backings> {
        let id = sys::open_backing(&connection, sys::memory_file()?)?;
        sys::close_backing(&connection, id)?;
        Ok(Backings { connection, used: Mutex::default() })
    }

    /// Counts an open that the core has made.
    pub(super) fn open(&self, core: &Overlay, node: Ino, writes: bool) -> Opened {
        let mut used = self.used.lock();
        let how = match used.get_mut(&node) {
            Some(open) => {
                open.opens += 1;
                open.how
            }
            None => {
                let how = self.decide(core, node, writes);
                used.insert(node, Use { opens: 1, how });
                how
            }
        };
        match how {
            How::Cached => {
                Opened { handle: 0, flags: FopenFlags::FOPEN_KEEP_CACHE.bits(), backing: None }
            }
            How::Backed(id) => {
                Opened { handle: 0, flags: FopenFlags::FOPEN_PASSTHROUGH.bits(), backing: Some(id) }
            }
        }
    }

    fn decide(&self, core: &Overlay, node: Ino, writes: bool) -> How {
        let Some(data) = core.backing(node, writes, LARGE) else { return How::Cached };
        match sys::open_backing(&self.connection, &data.fd) {
            Ok(id) => How::Backed(id),
            Err(e) => {
                log::debug!("the kernel does not take the file of {}: {e}", node.0);
                How::Cached
            }
        }
    }

    /// Ends an open.
    pub(super) fn release(&self, node: Ino) {
        let mut used = self.used.lock();
        let Some(open) = used.get_mut(&node) else { return };
        open.opens -= 1;
        if open.opens > 0 {
            return;
        }
        let how = open.how;
        used.remove(&node);
        if let How::Backed(id) = how {
            if let Err(e) = sys::close_backing(&self.connection, id) {
                log::debug!("give a registered file back: {e}");
            }
        }
    }
}

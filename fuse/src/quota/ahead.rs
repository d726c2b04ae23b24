//! Blocks beyond the end of a file that the filesystem takes in advance, up to as many as the file has (XFS). They count like all
//! others as long as there is room, and are given back when there is none.

use std::os::fd::{AsFd, BorrowedFd};

use super::blocks::ceil;
use super::booked;
use crate::Overlay;
use crate::copy_up::restore_times;
use crate::sys::{self, Stat};

/// Less than this is not worth the calls; some of it may be attributes.
const SLACK: u64 = 64 * 1024;

fn has_more(stat: &Stat) -> bool {
    stat.blocks.saturating_mul(512) > ceil(stat.size).saturating_add(SLACK)
}

impl Overlay {
    /// Gives back what was taken for one file, whose `copy_up` lock is held; whether there was anything.
    pub(super) fn trim(&self, fd: BorrowedFd<'_>) -> bool {
        let Some(before) = sys::fstat(fd).ok().filter(has_more) else { return false };
        let trim = || {
            let ahead = sys::takes_ahead(fd)?;
            if ahead {
                sys::drop_ahead(fd, ceil(before.size))?;
                restore_times(fd, &before)?;
            }
            Ok(ahead)
        };
        booked(self.begin(), || sys::fstat(fd), trim).unwrap_or_else(|e| {
            log::debug!("blocks beyond the end of a file stay: {e}");
            false
        })
    }

    /// The same for all files whose data is open. The filesystem looks after those that are closed.
    pub(super) fn trim_open(&self) -> bool {
        let mut any = false;
        for inode in self.table.all() {
            let data = inode.state.lock().data.clone().filter(|data| data.writes);
            // Who is at work on it looks after it.
            if let (Some(data), Some(_alone)) = (data, inode.copy_up.try_lock()) {
                any |= self.trim(data.fd.as_fd());
            }
        }
        any
    }
}

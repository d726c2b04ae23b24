//! Room for data: how much a change of a file's data, or a copy of it, may take.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use super::{Change, FORGETS_WITHIN, Meter, Reserved, Used};
use crate::Overlay;
use crate::inode::Inode;
use crate::sys::{self, Seek, Stat};

/// Bytes that a filesystem gives at once.
const BLOCK: u64 = 4096;

/// A part of a file that is about to get data.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span {
    /// Where it begins.
    pub(crate) offset: u64,
    /// How long it is; with 0 nothing grows.
    pub(crate) length: u64,
    /// Less than all of it may be done.
    pub(crate) divisible: bool,
}

impl Span {
    /// A change that takes no block.
    pub(crate) const NOTHING: Span = Span { offset: 0, length: 0, divisible: false };

    /// The blocks that the span touches, as offsets of the first and of the end.
    fn blocks(&self) -> (u64, u64) {
        if self.length == 0 {
            return (0, 0);
        }
        let end = self.offset.saturating_add(self.length);
        (self.offset / BLOCK * BLOCK, ceil(end))
    }
}

pub(super) fn ceil(bytes: u64) -> u64 {
    bytes.div_ceil(BLOCK).saturating_mul(BLOCK)
}

/// The parts of `from..end` that have no data, in whole blocks. Where that cannot be told, all of it.
fn missing(fd: BorrowedFd<'_>, from: u64, end: u64) -> Vec<(u64, u64)> {
    let (mut parts, mut at) = (Vec::new(), from);
    while at < end {
        let data = match sys::lseek(fd, at, Seek::Data) {
            Ok(data) => (data / BLOCK * BLOCK).clamp(at, end),
            Err(_) => end,
        };
        if data > at {
            parts.push((at, data));
        }
        if data >= end {
            break;
        }
        at = sys::lseek(fd, data, Seek::Hole).map_or(end, ceil).max(data + BLOCK);
    }
    parts
}

fn sum(parts: &[(u64, u64)]) -> u64 {
    parts.iter().map(|(from, end)| end - from).sum()
}

/// How far into the parts `room` lasts.
fn reach(parts: &[(u64, u64)], mut room: u64) -> u64 {
    for (from, end) in parts {
        if end - from > room {
            return from + room / BLOCK * BLOCK;
        }
        room -= end - from;
    }
    u64::MAX
}

/// Bytes that a copy of the first `length` bytes of a file takes at most: holes are kept.
pub(crate) fn data_in(fd: impl AsFd, length: u64) -> u64 {
    let end = ceil(length);
    end - sum(&missing(fd.as_fd(), 0, end)).min(end)
}

impl Overlay {
    /// Sets room aside; none where nothing is limited. ENOSPC when there is none to be had, also after what was just deleted
    /// has been forgotten and everything was counted again.
    pub(crate) fn reserve(&self, room: Used) -> io::Result<Option<Reserved<'_>>> {
        let Some(meter) = &self.meter else { return Ok(None) };
        meter.freshen(|| self.count());
        if let Some(room) = meter.reserve(room) {
            return Ok(Some(room));
        }
        let start = Instant::now();
        while meter.is_leaving() && start.elapsed() < FORGETS_WITHIN {
            std::thread::sleep(Duration::from_millis(1));
            self.table.sweep_late();
            if let Some(room) = meter.reserve(room) {
                return Ok(Some(room));
            }
        }
        meter.may_give_back(|| self.trim_open());
        if let Some(room) = meter.reserve(room) {
            return Ok(Some(room));
        }
        meter.recount(|| self.count());
        meter.reserve(room).map(Some).ok_or_else(|| io::Error::from_raw_os_error(sys::ENOSPC))
    }

    /// [`Overlay::reserve`] for an object that gets a name, which may take a block of its directory: not where there is more than
    /// there may be already.
    pub(crate) fn reserve_name(&self, room: Used) -> io::Result<Option<Reserved<'_>>> {
        if let Some(meter) = self.meter.as_ref().filter(|meter| meter.is_over()) {
            meter.recount(|| self.count());
            if meter.is_over() {
                return Err(io::Error::from_raw_os_error(sys::ENOSPC));
            }
        }
        self.reserve(room)
    }

    /// The span that a copy from `offset` of a file fills.
    pub(crate) fn span_of_copy(&self, span: Span, from: impl AsFd, offset: u64) -> Span {
        if self.meter.is_none() {
            return span;
        }
        let left = sys::fstat(from).map_or(u64::MAX, |stat| stat.size.saturating_sub(offset));
        Span { length: span.length.min(left), ..span }
    }

    /// Changes the data of an upper file: `change` gets the length for which there is room, which is less than the span's only
    /// where that may be.
    pub(crate) fn resize<T>(
        &self,
        inode: &Inode,
        fd: impl AsFd,
        span: Span,
        change: impl FnOnce(u64) -> io::Result<T>,
    ) -> io::Result<T> {
        let Some(meter) = &self.meter else { return change(span.length) };
        meter.freshen(|| self.count());
        // One at a time, or two would both book the blocks that one of them has made.
        let _alone = inode.copy_up.lock();
        let fd = fd.as_fd();
        let (room, length) = self.room_for(meter, fd, span)?;
        let done = booked(Some(room), || sys::fstat(fd), || change(length));
        if meter.is_over() {
            self.trim(fd);
        }
        done
    }

    fn room_for<'a>(
        &'a self,
        meter: &'a Meter,
        fd: BorrowedFd<'_>,
        span: Span,
    ) -> io::Result<(Reserved<'a>, u64)> {
        let (from, end) = span.blocks();
        if let Some(room) = meter.reserve(Used::bytes(end - from)) {
            return Ok((room, span.length));
        }
        let parts = missing(fd, from, end);
        let need = Used::bytes(sum(&parts));
        if let Some(room) = meter.reserve(need) {
            return Ok((room, span.length));
        }
        // Blocks that were reserved for the file look like holes.
        let stat = sys::fstat(fd)?;
        if !meter.is_over() && has_all_blocks(fd, &stat, (from, end)) {
            return Ok((meter.begin(), span.length));
        }
        self.trim(fd);
        let no_room = match self.reserve(need) {
            Ok(Some(room)) => return Ok((room, span.length)),
            Ok(None) => return Ok((meter.begin(), span.length)),
            Err(e) => e,
        };
        // As much as there is room for, if less will do.
        let stop = reach(&parts, meter.free().bytes);
        let length = stop.saturating_sub(span.offset).min(span.length);
        let (from, end) = Span { length, ..span }.blocks();
        let part = || meter.reserve(Used::bytes(sum(&missing(fd, from, end))));
        let room = if span.divisible && length > 0 { part() } else { None };
        room.map(|room| (room, length)).ok_or(no_room)
    }
}

/// Whether a file has the blocks of a span, as far as its filesystem tells; else whether it has as many as can be up to the end of the
/// span and up to its own. Their number alone is not enough: it may have some for its own records.
fn has_all_blocks(fd: BorrowedFd<'_>, stat: &Stat, (from, end): (u64, u64)) -> bool {
    stat.blocks.saturating_mul(512) >= ceil(stat.size).max(end)
        && sys::has_blocks(fd, from, end).unwrap_or(true)
}

/// Does what changes the blocks of one object, and books what came of it, whether it worked or not.
pub(crate) fn booked<T>(
    room: Option<Reserved<'_>>,
    stat: impl Fn() -> io::Result<Stat>,
    change: impl FnOnce() -> io::Result<T>,
) -> io::Result<T> {
    let Some(room) = room else { return change() };
    let before = stat()?;
    let done = change();
    match stat() {
        Ok(after) => room.settle(Change::between(&before, &after)),
        Err(e) => log::debug!("stat of what was changed: {e}"),
    }
    done
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_touches_whole_blocks() {
        let span = |offset, length| Span { offset, length, divisible: false };
        assert_eq!(span(5000, 1).blocks(), (4096, 8192));
        assert_eq!(span(4096, 4096).blocks(), (4096, 8192));
        assert_eq!(span(4095, 2).blocks(), (0, 8192));
        assert_eq!(Span::NOTHING.blocks(), (0, 0));
    }

    #[test]
    fn room_reaches_over_what_is_there() {
        let parts = [(0, 4096), (8192, 16384)];
        assert_eq!(reach(&parts, 0), 0);
        assert_eq!(reach(&parts, 5000), 8192);
        assert_eq!(reach(&parts, 8192), 12288);
        assert_eq!(reach(&parts, 12288), u64::MAX);
        assert_eq!(reach(&[], 0), u64::MAX);
    }

    #[test]
    fn holes_are_what_is_missing() {
        let file = tempfile::tempfile().unwrap();
        sys::truncate(&file, 10 * BLOCK).unwrap();
        sys::pwrite(&file, &[1; 100], 4 * BLOCK).unwrap();
        let parts = missing(file.as_fd(), 0, 12 * BLOCK);
        assert_eq!(parts, [(0, 4 * BLOCK), (5 * BLOCK, 12 * BLOCK)]);
        assert_eq!(data_in(&file, 10 * BLOCK), BLOCK);
    }
}

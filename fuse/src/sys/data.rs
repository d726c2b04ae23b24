//! File contents.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use rustix::fs::{FallocateFlags, SeekFrom};
use rustix::io::{IoSlice, IoSliceMut, ReadWriteFlags};

use super::fault;

/// Raw mode bits of fallocate(2).
pub type Fallocate = i32;

/// Which boundary a seek looks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seek {
    /// The next data at or after the offset.
    Data,
    /// The next hole at or after the offset.
    Hole,
}

/// Fills the buffer from `offset` until it is full or the file ends.
pub fn pread(fd: impl AsFd, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut done = 0;
    while done < buffer.len() {
        match rustix::io::pread(&fd, &mut buffer[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(rustix::io::Errno::INTR) => {}
            // A short count would be the end of the file to the kernel.
            Err(e) => return Err(e.into()),
        }
    }
    Ok(done)
}

/// Like [`pread`] but only from the page cache: EAGAIN when the disk would have to be asked.
pub fn pread_cached(fd: impl AsFd, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut slices = [IoSliceMut::new(buffer)];
    Ok(rustix::io::preadv2(fd, &mut slices, offset, ReadWriteFlags::NOWAIT)?)
}

/// Writes all of `data` at `offset`; a short count only when some of it was written.
pub fn pwrite(fd: impl AsFd, data: &[u8], offset: u64) -> io::Result<usize> {
    fault::point()?;
    let mut done = 0;
    while done < data.len() {
        match rustix::io::pwritev(&fd, &[IoSlice::new(&data[done..])], offset + done as u64) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(rustix::io::Errno::INTR) => {}
            Err(_) if done > 0 => break,
            Err(e) => return Err(e.into()),
        }
    }
    Ok(done)
}

/// Sets the length.
pub fn truncate(fd: impl AsFd, size: u64) -> io::Result<()> {
    fault::point()?;
    Ok(rustix::fs::ftruncate(fd, size)?)
}

/// Whether a mode of [`fallocate`] may take blocks.
pub fn fallocate_grows(mode: Fallocate) -> bool {
    let shrinks =
        FallocateFlags::PUNCH_HOLE | FallocateFlags::COLLAPSE_RANGE | FallocateFlags::INSERT_RANGE;
    !FallocateFlags::from_bits_retain(mode as u32).intersects(shrinks)
}

/// Reserves, punches or moves ranges.
pub fn fallocate(fd: impl AsFd, mode: Fallocate, offset: u64, length: u64) -> io::Result<()> {
    fault::point()?;
    Ok(rustix::fs::fallocate(fd, FallocateFlags::from_bits_retain(mode as u32), offset, length)?)
}

/// `XFS_SUPER_MAGIC`, linux/magic.h.
const XFS: i64 = 0x5846_5342;
/// `FS_IOC_FSGETXATTR`, linux/fs.h.
const GET_FLAGS: u32 = 0x801c_581f;
/// `FS_XFLAG_PREALLOC`: fallocate(2) took blocks of the file.
const PREALLOC: u8 = 2;

/// Whether blocks beyond the end of a file are there because its filesystem takes them in advance.
pub fn takes_ahead(fd: impl AsFd) -> io::Result<bool> {
    if super::fstatfs(&fd)?.magic != XFS {
        return Ok(false);
    }
    let flags = super::inode_ioctl(&fd, GET_FLAGS, &[], 28)?;
    Ok(flags.first().is_some_and(|flags| flags & PREALLOC == 0))
}

/// Bytes of `struct fiemap` and of each `struct fiemap_extent` behind it (linux/fiemap.h).
const FIEMAP: (usize, usize) = (32, 56);
/// `FS_IOC_FIEMAP` of linux/fs.h.
const GET_EXTENTS: libc::c_ulong = 0xc020_660b;

/// Whether a file has blocks for all of `from..end`, written to or only reserved. EOPNOTSUPP where the filesystem does not tell.
pub fn has_blocks(fd: impl AsFd, from: u64, end: u64) -> io::Result<bool> {
    const EXTENTS: usize = 16;
    let mut at = from;
    while at < end {
        let mut map = [0_u8; FIEMAP.0 + EXTENTS * FIEMAP.1];
        map[..8].copy_from_slice(&at.to_ne_bytes());
        map[8..16].copy_from_slice(&(end - at).to_ne_bytes());
        map[24..28].copy_from_slice(&(EXTENTS as u32).to_ne_bytes());
        // SAFETY: the live local has room for the head and as many extents as it announces.
        let result = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), GET_EXTENTS, map.as_mut_ptr()) };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        let word =
            |at: usize| map[at..].first_chunk().map_or(0, |bytes| u64::from_ne_bytes(*bytes));
        let found = map[20..].first_chunk().map_or(0, |bytes| u32::from_ne_bytes(*bytes)) as usize;
        for extent in (0..found.min(EXTENTS)).map(|n| FIEMAP.0 + n * FIEMAP.1) {
            let (logical, length) = (word(extent), word(extent + 16));
            if logical > at {
                return Ok(false);
            }
            at = at.max(logical.saturating_add(length));
        }
        if found == 0 {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Gives back the blocks of a file from `offset` on.
pub fn drop_ahead(fd: impl AsFd, offset: u64) -> io::Result<()> {
    let length = i64::MAX as u64 - offset.min(i64::MAX as u64 - 1);
    let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    Ok(rustix::fs::fallocate(fd, mode, offset, length)?)
}

/// The next data or hole; ENXIO past the end.
pub fn lseek(fd: impl AsFd, offset: u64, what: Seek) -> io::Result<u64> {
    let from = match what {
        Seek::Data => SeekFrom::Data(offset),
        Seek::Hole => SeekFrom::Hole(offset),
    };
    Ok(rustix::fs::seek(fd, from)?)
}

/// Copies a range inside the kernel; a short count is no error.
pub fn copy_range(
    src: impl AsFd,
    from: u64,
    dst: impl AsFd,
    to: u64,
    length: u64,
) -> io::Result<u64> {
    fault::point()?;
    let (mut from, mut to) = (from, to);
    let length = usize::try_from(length).unwrap_or(usize::MAX).min(1 << 30);
    Ok(rustix::fs::copy_file_range(src, Some(&mut from), dst, Some(&mut to), length)? as u64)
}

/// Makes `dst` share all blocks of `src`, where the filesystem can.
pub fn reflink(src: impl AsFd, dst: impl AsFd) -> io::Result<()> {
    fault::hold();
    fault::point()?;
    Ok(rustix::fs::ioctl_ficlone(dst, src)?)
}

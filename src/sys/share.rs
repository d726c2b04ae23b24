//! Files that share their blocks: which do, and letting two of the same content do so.
//!
//! Nothing here can change what a file holds: the kernel locks both, compares them, and shares only what is the same
//! (`FIDEDUPERANGE`, ioctl_fideduperange(2)). Times do not change either.

use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, ErrorKind, Write};
use std::mem::size_of;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{CWD, IFlags, Mode, OFlags};
use rustix::ioctl::{Opcode, opcode};

use super::change;

/// What is shared by one call: btrfs takes no more.
pub const PIECE: u64 = 16 << 20;

/// `struct file_dedupe_range` (linux/fs.h) with one `struct file_dedupe_range_info`.
#[repr(C)]
struct Request {
    header: Header,
    target: i64,
    target_offset: u64,
    shared: u64,
    status: i32,
    reserved: u32,
}
const _: () = assert!(size_of::<Request>() == 56);

#[repr(C)]
struct Header {
    offset: u64,
    length: u64,
    count: u16,
    reserved: u16,
    reserved_too: u32,
}
const _: () = assert!(size_of::<Header>() == 24);

const FIDEDUPERANGE: Opcode = opcode::read_write::<Header>(0x94, 54);
/// `FILE_DEDUPE_RANGE_DIFFERS`
const DIFFERS: i32 = 1;

/// Lets `to` share the blocks of `from`, as far as [`PIECE`] goes. Returns for how many bytes from `offset` it does, 0 where the
/// content differs. Both may be open for reading only; whoever asks has to be the owner of `to` or allowed to write it.
pub fn share(from: &File, to: &File, offset: u64, length: u64) -> io::Result<u64> {
    change::point()?;
    loop {
        let length = length.min(PIECE);
        let header = Header { offset, length, count: 1, reserved: 0, reserved_too: 0 };
        let target = i64::from(to.as_raw_fd());
        let mut request =
            Request { header, target, target_offset: offset, shared: 0, status: 0, reserved: 0 };
        // SAFETY: the request reads a header and as many targets as that counts from the live value, and writes them.
        let done = unsafe {
            libc::ioctl(from.as_raw_fd(), FIDEDUPERANGE as libc::Ioctl, &raw mut request)
        };
        let error = match (done, request.status) {
            (0, 0) => return Ok(request.shared),
            (0, DIFFERS) => return Ok(0),
            (0, status) => io::Error::from_raw_os_error(status.saturating_neg()),
            _ => io::Error::last_os_error(),
        };
        if error.kind() != ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// Whether an error of [`share`] is about what `to` is, and would be the same each time: ioctl_fideduperange(2) has EPERM for what is
/// immutable (and for what is somebody else's), and ETXTBSY for swap files.
pub fn is_refused(to: &File, error: &io::Error) -> bool {
    match error.raw_os_error() {
        Some(libc::EPERM) => flags(to).intersects(IFlags::IMMUTABLE),
        Some(libc::ETXTBSY) => true,
        _ => false,
    }
}

/// Whether a file is written in place, without copying (`chattr +C`): on btrfs it shares blocks only with such files.
pub fn is_in_place(file: &File) -> bool {
    flags(file).intersects(IFlags::NOCOW)
}

/// None where the filesystem has no flags.
fn flags(file: &File) -> IFlags {
    rustix::fs::ioctl_getflags(file).unwrap_or(IFlags::empty())
}

/// Whether files in a directory can share blocks, found by trying with two files that have no name.
pub fn can_share(dir: &Path) -> io::Result<bool> {
    let block = vec![0x5a; usize::try_from(block_size(dir)?).unwrap_or(4096)];
    let file = || {
        change::point()?;
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let file = File::from(rustix::fs::openat(CWD, dir, flags, Mode::RUSR | Mode::WUSR)?);
        (&file).write_all(&block)?;
        Ok(file)
    };
    let tried = file().and_then(|one| share(&one, &file()?, 0, block.len() as u64));
    match tried {
        Ok(shared) => Ok(shared > 0),
        Err(error) => match error.raw_os_error() {
            // No such call, files without names, or files below that can.
            Some(libc::EOPNOTSUPP | libc::ENOTTY | libc::EINVAL | libc::EISDIR | libc::ENOSYS) => {
                Ok(false)
            }
            // Then it is seen with the first files.
            Some(libc::ENOSPC | libc::EDQUOT) => Ok(true),
            _ => Err(error),
        },
    }
}

/// Bytes of a block of the filesystem: what is shorter has none to share, or shares nothing but its end.
pub fn block_size(path: &Path) -> io::Result<u64> {
    Ok(rustix::fs::statvfs(path)?.f_bsize.max(512))
}

/// `struct fiemap_extent` (linux/fiemap.h).
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Extent {
    logical: u64,
    physical: u64,
    length: u64,
    reserved: [u64; 2],
    flags: u32,
    reserved_too: [u32; 3],
}
const _: () = assert!(size_of::<Extent>() == 56);

/// `struct fiemap` with room for some extents.
#[repr(C)]
struct Map {
    start: u64,
    length: u64,
    flags: u32,
    mapped: u32,
    room: u32,
    reserved: u32,
    extents: [Extent; ROOM],
}
const ROOM: usize = 64;
const _: () = assert!(size_of::<Map>() == 32 + 56 * ROOM);

/// `_IOWR('f', 11, struct fiemap)`, whose size is that without extents.
const FS_IOC_FIEMAP: Opcode = opcode::read_write::<[u64; 4]>(b'f', 11);
const LAST: u32 = 0x1;
/// `FIEMAP_EXTENT_UNKNOWN`, `_DELALLOC` and `_DATA_INLINE`: there is no place, or not yet.
const NOWHERE: u32 = 0x2 | 0x4 | 0x200;
/// `FIEMAP_EXTENT_UNWRITTEN`: to readers the same as a hole, once what is in memory is written.
const UNWRITTEN: u32 = 0x800;
/// `FIEMAP_FLAG_SYNC`
const SYNC: u32 = 1;

/// A sum of where on the disk the data of the first `size` bytes of a file is: two files of one filesystem and size with the
/// same sum share all of it. None where that is not known.
pub fn whereabouts(file: &File, size: u64) -> Option<u64> {
    // Few files have anything in memory that is not written yet.
    places(file, size, 0).or_else(|| places(file, size, SYNC))
}

fn places(file: &File, size: u64, flags: u32) -> Option<u64> {
    let unknown = if flags == SYNC { NOWHERE } else { NOWHERE | UNWRITTEN };
    let (mut sum, mut start) = (DefaultHasher::new(), 0);
    // What goes on where the last one ended is no other: filesystems cut them at different places.
    let (mut run, mut reserved) = (Extent::default(), false);
    while start < size {
        let (map, count) = extents(file, (start, size - start), flags)?;
        let found = map.extents.get(..count)?;
        if found.iter().any(|extent| extent.flags & unknown != 0) {
            return None;
        }
        for extent in found {
            if extent.flags & UNWRITTEN != 0 {
                reserved = true;
                continue;
            }
            let length = extent.length.min(size.saturating_sub(extent.logical));
            let (end, on_disk) = (run.logical + run.length, run.physical + run.length);
            if run.length > 0 && (extent.logical, extent.physical) == (end, on_disk) {
                run.length += length;
                continue;
            }
            (run.logical, run.physical, run.length).hash(&mut sum);
            run = Extent { length, ..*extent };
        }
        match found.last() {
            Some(last) if last.flags & LAST == 0 && last.length > 0 => {
                start = last.logical.checked_add(last.length)?;
            }
            _ => break,
        }
    }
    // Data is on its way where there are blocks and no extent.
    if run.length == 0 && !reserved && file.metadata().map_or(true, |found| found.blocks() > 0) {
        return None;
    }
    (run.logical, run.physical, run.length).hash(&mut sum);
    Some(sum.finish())
}

/// Some of a file's extents from `start` on.
fn extents(file: &File, (start, length): (u64, u64), flags: u32) -> Option<(Map, usize)> {
    let (room, extents) = (ROOM as u32, [Extent::default(); ROOM]);
    let mut map = Map { start, length, flags, mapped: 0, room, reserved: 0, extents };
    // SAFETY: the request reads the 32 bytes before the extents, and writes them and at most the extents there is room for.
    let done = unsafe { libc::ioctl(file.as_raw_fd(), FS_IOC_FIEMAP as libc::Ioctl, &raw mut map) };
    let count = usize::try_from(map.mapped).ok()?;
    (done == 0).then_some((map, count))
}

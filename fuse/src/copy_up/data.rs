//! Copying the data of one file to another on whatever filesystem.

use std::io;
use std::os::fd::OwnedFd;

use crate::sys::{self, Seek};

/// Bytes copied at once where the kernel cannot copy by itself.
const CHUNK: usize = 1 << 18;

/// Copies the first `length` bytes, sharing blocks where the filesystem can and keeping holes.
pub(super) fn copy_data(from: &OwnedFd, to: &OwnedFd, length: u64) -> io::Result<()> {
    let whole = sys::fstat(from)?.size;
    if length == whole && sys::reflink(from, to).is_ok() {
        return Ok(());
    }
    sys::truncate(to, length)?;
    let mut at = 0;
    while at < length {
        let start = match sys::lseek(from, at, Seek::Data) {
            Ok(start) => start.min(length),
            Err(e) if sys::errno(&e) == sys::ENXIO => break,
            Err(_) => at,
        };
        let end = match sys::lseek(from, start, Seek::Hole) {
            Ok(end) if end > start => end.min(length),
            _ => length,
        };
        copy_extent(from, to, start, end)?;
        at = end;
    }
    Ok(())
}

fn copy_extent(from: &OwnedFd, to: &OwnedFd, mut at: u64, end: u64) -> io::Result<()> {
    while at < end {
        match sys::copy_range(from, at, to, at, end - at) {
            Ok(0) => return Ok(()),
            Ok(n) => at += n,
            Err(e)
                if matches!(
                    sys::errno(&e),
                    sys::EXDEV | sys::EOPNOTSUPP | sys::EINVAL | sys::ENOSYS
                ) =>
            {
                return copy_by_hand(from, to, at, end);
            }
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

fn copy_by_hand(from: &OwnedFd, to: &OwnedFd, mut at: u64, end: u64) -> io::Result<()> {
    let mut buffer = vec![0_u8; CHUNK];
    while at < end {
        let want = buffer.len().min(usize::try_from(end - at).unwrap_or(usize::MAX));
        let got = sys::pread(from, &mut buffer[..want], at)?;
        if got == 0 {
            return Ok(());
        }
        let mut done = 0;
        while done < got {
            match sys::pwrite(to, &buffer[done..got], at + done as u64)? {
                0 => return Err(io::Error::from_raw_os_error(sys::EIO)),
                n => done += n,
            }
        }
        at += got as u64;
    }
    Ok(())
}

//! The core's values as fuser's and back.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{FileAttr, FileType, INodeNo, TimeOrNow};

use crate::attr::{Attr, SetTime, Time};
use crate::sys;

/// Type bits as fuser names them.
pub(super) fn kind(mode: u32) -> FileType {
    match mode & sys::S_IFMT {
        sys::S_IFDIR => FileType::Directory,
        sys::S_IFLNK => FileType::Symlink,
        sys::S_IFIFO => FileType::NamedPipe,
        sys::S_IFSOCK => FileType::Socket,
        sys::S_IFCHR => FileType::CharDevice,
        sys::S_IFBLK => FileType::BlockDevice,
        _ => FileType::RegularFile,
    }
}

/// Attributes.
pub(super) fn attr(attr: &Attr) -> FileAttr {
    FileAttr {
        ino: INodeNo(attr.ino.0),
        size: attr.size,
        blocks: attr.blocks,
        atime: system_time(attr.atime),
        mtime: system_time(attr.mtime),
        ctime: system_time(attr.ctime),
        crtime: attr.btime.map_or(UNIX_EPOCH, system_time),
        kind: kind(attr.mode),
        perm: (attr.mode & 0o7777) as u16,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.rdev,
        blksize: attr.blksize,
        flags: 0,
    }
}

fn system_time(time: Time) -> SystemTime {
    let nanos = Duration::from_nanos(u64::from(time.nsec));
    let seconds = Duration::from_secs(time.sec.unsigned_abs());
    let base = if time.sec < 0 {
        UNIX_EPOCH.checked_sub(seconds)
    } else {
        UNIX_EPOCH.checked_add(seconds)
    };
    base.and_then(|base| base.checked_add(nanos)).unwrap_or(UNIX_EPOCH)
}

/// A time to set. fuser hands times before 1970 over as the epoch less seconds and nanoseconds both,
/// though the nanoseconds on the wire count forwards.
pub(super) fn set_time(time: TimeOrNow) -> SetTime {
    let TimeOrNow::SpecificTime(time) = time else {
        return SetTime::Now;
    };
    let signed = |seconds: u64| i64::try_from(seconds).unwrap_or(i64::MAX);
    SetTime::At(match time.duration_since(UNIX_EPOCH) {
        Ok(after) => Time { sec: signed(after.as_secs()), nsec: after.subsec_nanos() },
        Err(before) => {
            let before = before.duration();
            Time { sec: -signed(before.as_secs()), nsec: before.subsec_nanos() }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_1970_keep_their_nanoseconds() {
        let time = Time { sec: -1, nsec: 500_000_000 };
        assert_eq!(system_time(time), UNIX_EPOCH - Duration::from_millis(500));
        // As fuser decodes seconds -1 and nanoseconds 500,000,000.
        let wire = UNIX_EPOCH - Duration::new(1, 500_000_000);
        assert_eq!(set_time(TimeOrNow::SpecificTime(wire)), SetTime::At(time));
    }
}

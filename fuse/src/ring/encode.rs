//! Answers as bytes of the FUSE protocol (linux/fuse.h, 7.45). Pure.

use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use crate::attr::{Attr, Statfs, Time, decode_dev};
use crate::readdir::DirEntry;
use crate::server::answer::{Answer, Opened};
use crate::sys;

/// How an answer is written where requests of one meaning differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// As all do.
    Usual,
    /// Attributes as `struct fuse_statx`.
    Statx,
    /// A count in 64 bits.
    Wide,
}

/// What every name of a listing has (FUSE_NAME_OFFSET), and one with attributes before that.
const DIRENT: usize = 24;
const ENTRY: usize = 128;

/// Bytes put one after the other; what does not fit is noted and left out.
struct Out<'a> {
    bytes: &'a mut [u8],
    at: usize,
    fits: bool,
}

impl Out<'_> {
    fn put(&mut self, bytes: &[u8]) {
        match self.at.checked_add(bytes.len()).and_then(|end| self.bytes.get_mut(self.at..end)) {
            Some(place) => {
                place.copy_from_slice(bytes);
                self.at += bytes.len();
            }
            None => self.fits = false,
        }
    }

    fn u16(&mut self, word: u16) {
        self.put(&word.to_ne_bytes());
    }

    fn u32(&mut self, word: u32) {
        self.put(&word.to_ne_bytes());
    }

    fn u64(&mut self, word: u64) {
        self.put(&word.to_ne_bytes());
    }

    fn words<const N: usize>(&mut self, words: [u32; N]) {
        words.into_iter().for_each(|word| self.u32(word));
    }

    fn times(&mut self, attr: &Attr) {
        let times = [attr.atime, attr.mtime, attr.ctime];
        times.iter().for_each(|time| self.u64(time.sec as u64));
        times.iter().for_each(|time| self.u32(time.nsec));
    }

    /// `struct fuse_attr`
    fn attr(&mut self, attr: &Attr) {
        self.u64(attr.ino.0);
        self.u64(attr.size);
        self.u64(attr.blocks);
        self.times(attr);
        self.words([attr.mode, attr.nlink, attr.uid, attr.gid, attr.rdev, attr.blksize, 0]);
    }

    /// `struct fuse_entry_out`
    fn entry(&mut self, attr: &Attr, ttl: Duration) {
        self.u64(attr.ino.0);
        self.u64(u64::from(attr.generation));
        self.u64(ttl.as_secs());
        self.u64(ttl.as_secs());
        self.words([ttl.subsec_nanos(), ttl.subsec_nanos()]);
        self.attr(attr);
    }

    /// `struct fuse_attr_out`
    fn attr_out(&mut self, attr: &Attr, ttl: Duration) {
        self.u64(ttl.as_secs());
        self.words([ttl.subsec_nanos(), 0]);
        self.attr(attr);
    }

    /// `struct fuse_open_out`
    fn opened(&mut self, opened: Opened) {
        self.u64(opened.handle);
        self.words([opened.flags, opened.backing.unwrap_or(0)]);
    }

    /// `struct fuse_statx_out`
    fn statx(&mut self, attr: &Attr, ttl: Duration) {
        self.u64(ttl.as_secs());
        self.words([ttl.subsec_nanos(), 0, 0, 0, 0, 0]);
        let birth = if attr.btime.is_some() { STATX_BTIME } else { 0 };
        self.words([STATX_BASIC_STATS | birth, attr.blksize]);
        self.u64(0);
        self.words([attr.nlink, attr.uid, attr.gid]);
        self.u16((attr.mode & 0xffff) as u16);
        self.u16(0);
        self.u64(attr.ino.0);
        self.u64(attr.size);
        self.u64(attr.blocks);
        self.u64(0);
        for time in [attr.atime, attr.btime.unwrap_or_default(), attr.ctime, attr.mtime] {
            self.sx_time(time);
        }
        let dev = decode_dev(attr.rdev);
        let major = (dev >> 8 & 0xfff) | (dev >> 32 & 0xffff_f000);
        let minor = (dev & 0xff) | (dev >> 12 & 0xffff_ff00);
        self.words([major as u32, minor as u32, 0, 0]);
        self.put(&[0; 112]);
    }

    fn sx_time(&mut self, time: Time) {
        self.u64(time.sec as u64);
        self.words([time.nsec, 0]);
    }

    /// `struct fuse_kstatfs`
    fn statfs(&mut self, stat: &Statfs) {
        [stat.blocks, stat.bfree, stat.bavail, stat.files, stat.ffree]
            .into_iter()
            .for_each(|word| self.u64(word));
        self.words([stat.bsize, stat.namelen, stat.frsize, 0]);
        self.put(&[0; 24]);
    }
}

const STATX_BASIC_STATS: u32 = 0x7ff;
const STATX_BTIME: u32 = 0x800;

/// Writes an answer and returns its length; `None` when there is no room for it.
pub(super) fn answer(
    bytes: &mut [u8],
    answer: &Answer<'_>,
    form: Form,
    ttl: Duration,
) -> Option<usize> {
    let mut out = Out { bytes, at: 0, fits: true };
    match *answer {
        Answer::Done => {}
        Answer::Entry(attr) => out.entry(attr, ttl),
        Answer::Absent => out.entry(&Attr::absent(), ttl),
        Answer::Attr(attr) if form == Form::Statx => out.statx(attr, ttl),
        Answer::Attr(attr) => out.attr_out(attr, ttl),
        Answer::Opened(opened) => out.opened(opened),
        Answer::Created(attr, opened) => {
            out.entry(attr, ttl);
            out.opened(opened);
        }
        Answer::Data(data) => out.put(data),
        Answer::Written(count) if form == Form::Wide => out.u64(u64::from(count)),
        Answer::Size(count) | Answer::Written(count) => out.words([count, 0]),
        Answer::Statfs(stat) => out.statfs(stat),
        Answer::Offset(at) => out.u64(at as u64),
        Answer::Ioctl(data) => {
            out.words([0; 4]);
            out.put(data);
        }
    }
    out.fits.then_some(out.at)
}

/// Writes one name of a listing, with its attributes where they are asked for. Returns its length, or
/// `None` when it does not fit.
pub(super) fn dirent(
    bytes: &mut [u8],
    next: u64,
    entry: &DirEntry,
    plus: Option<(&Attr, Duration)>,
) -> Option<usize> {
    let name = entry.name.as_bytes();
    let before = if plus.is_some() { ENTRY } else { 0 };
    let length = (before + DIRENT + name.len()).next_multiple_of(8);
    let mut out = Out { bytes: bytes.get_mut(..length)?, at: 0, fits: true };
    let (ino, kind) = match plus {
        Some((attr, ttl)) => {
            out.entry(attr, ttl);
            (attr.ino, attr.mode)
        }
        None => (entry.ino, entry.kind),
    };
    out.u64(ino.0);
    out.u64(next);
    out.words([u32::try_from(name.len()).ok()?, (kind & sys::S_IFMT) >> 12]);
    out.put(name);
    while out.at < length && out.fits {
        out.put(&[0]);
    }
    out.fits.then_some(length)
}

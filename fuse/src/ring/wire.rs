//! The requests of the FUSE protocol as values (linux/fuse.h, 7.45). Pure: bytes in, values out.
//!
//! A slot's head has three parts: the header that all requests share, the structure of this kind of
//! request, and what belongs to the ring. Names and data are in the body. Whatever the bytes are, nothing here
//! panics: what cannot be a request is an error.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use crate::attr::{SetAttr, SetTime, Time};
use crate::inode::Ino;
use crate::server::answer::{Asker, Code};
use crate::server::handlers::New;
use crate::sys;

/// Bytes of `struct fuse_uring_req_header`.
pub(super) const HEADER: usize = 288;
/// Where the structure of the request is in it.
const OP: usize = 128;
/// Where `struct fuse_uring_ent_in_out` is.
const ENTRY: usize = 256;
/// Bytes of `struct fuse_out_header`, which an answer's length counts.
const OUT_HEADER: u32 = 16;

type Result<T> = std::result::Result<T, Code>;

/// What all requests have.
#[derive(Clone, Copy, Debug)]
pub(super) struct Header {
    /// The kind of request.
    pub(super) opcode: u32,
    /// Its number, which the answer repeats.
    pub(super) unique: u64,
    /// The number under which the ring expects the answer.
    pub(super) commit: u64,
    /// The object it is about.
    pub(super) node: Ino,
    /// Who asks.
    pub(super) asker: Asker,
    /// Bytes in the body.
    pub(super) payload: usize,
}

/// A request whose answer fits beside it: names and data stay where they are meanwhile.
#[derive(Debug)]
pub(super) enum Request<'a> {
    Lookup {
        name: &'a OsStr,
    },
    Getattr,
    Statx,
    Setattr {
        set: SetAttr,
        kills: Option<bool>,
    },
    Mknod {
        name: &'a OsStr,
        new: New,
        rdev: u32,
    },
    Mkdir {
        name: &'a OsStr,
        new: New,
    },
    Unlink {
        name: &'a OsStr,
    },
    Rmdir {
        name: &'a OsStr,
    },
    Symlink {
        name: &'a OsStr,
        target: &'a OsStr,
    },
    Rename {
        name: &'a OsStr,
        to: Ino,
        new_name: &'a OsStr,
        flags: u32,
    },
    Link {
        node: Ino,
        name: &'a OsStr,
    },
    Open {
        flags: i32,
    },
    Create {
        name: &'a OsStr,
        new: New,
    },
    Tmpfile {
        new: New,
    },
    Write {
        offset: u64,
        data: &'a [u8],
        kill: bool,
        cached: bool,
    },
    Release,
    Fsync {
        data_only: bool,
    },
    Opendir,
    Releasedir {
        handle: u64,
    },
    Fsyncdir {
        data_only: bool,
    },
    Statfs,
    Syncfs,
    Setxattr {
        name: &'a OsStr,
        value: &'a [u8],
        flags: i32,
    },
    Removexattr {
        name: &'a OsStr,
    },
    Ioctl {
        command: u32,
        input: &'a [u8],
        out_size: usize,
    },
    Fallocate {
        mode: i32,
        offset: u64,
        length: u64,
    },
    Lseek {
        offset: i64,
        whence: i32,
    },
    CopyFileRange {
        offset: u64,
        to: (Ino, u64),
        length: u64,
        wide: bool,
    },
    /// Nothing to do.
    Destroy,
}

/// A request whose answer takes the body.
#[derive(Debug)]
pub(super) enum Long {
    Readlink,
    Read { offset: u64, size: usize },
    Readdir { handle: u64, offset: u64, size: usize },
    Readdirplus { handle: u64, offset: u64, size: usize },
    Getxattr { name: OsString, size: u32 },
    Listxattr { size: u32 },
}

/// Numbers out of bytes; what is past the end is not a request.
#[derive(Clone, Copy)]
struct Words<'a>(&'a [u8]);

impl Words<'_> {
    fn array<const N: usize>(self, at: usize) -> Result<[u8; N]> {
        let bytes = at.checked_add(N).and_then(|end| self.0.get(at..end));
        bytes.and_then(|bytes| bytes.try_into().ok()).ok_or(sys::EIO)
    }

    fn u32(self, at: usize) -> Result<u32> {
        self.array(at).map(u32::from_ne_bytes)
    }

    fn u64(self, at: usize) -> Result<u64> {
        self.array(at).map(u64::from_ne_bytes)
    }

    fn size(self, at: usize) -> Result<usize> {
        self.u32(at).map(|size| size as usize)
    }
}

/// Names, each with a zero byte behind it.
struct Names<'a>(&'a [u8]);

impl<'a> Names<'a> {
    fn next(&mut self) -> Result<&'a OsStr> {
        let end = self.0.iter().position(|byte| *byte == 0).ok_or(sys::EIO)?;
        let (name, rest) = self.0.split_at(end);
        self.0 = rest.get(1..).unwrap_or_default();
        if name.is_empty() { Err(sys::EIO) } else { Ok(OsStr::from_bytes(name)) }
    }

    /// The target of a symlink may be any bytes.
    fn one(payload: &'a [u8]) -> Result<&'a OsStr> {
        Names(payload).next()
    }
}

/// The header of the request in a slot.
pub(super) fn header(head: &[u8]) -> Result<Header> {
    let words = Words(head);
    Ok(Header {
        opcode: words.u32(4)?,
        unique: words.u64(8)?,
        node: Ino(words.u64(16)?),
        asker: Asker { uid: words.u32(24)?, gid: words.u32(28)?, pid: words.u32(32)? },
        commit: words.u64(ENTRY + 8)?,
        payload: words.size(ENTRY + 16)?,
    })
}

/// Writes the header of an answer: `length` bytes in the body, or an error.
pub(super) fn answer(head: &mut [u8], unique: u64, result: Result<u32>) {
    let (length, error) = match result {
        Ok(length) => (length, 0),
        Err(code) => (0, code.saturating_neg()),
    };
    let mut put = |at: usize, bytes: &[u8]| {
        if let Some(place) = head.get_mut(at..at + bytes.len()) {
            place.copy_from_slice(bytes);
        }
    };
    put(0, &OUT_HEADER.saturating_add(length).to_ne_bytes());
    put(4, &error.to_ne_bytes());
    put(8, &unique.to_ne_bytes());
    put(ENTRY + 16, &length.to_ne_bytes());
}

/// The request when it is one with a long answer.
pub(super) fn long(header: &Header, head: &[u8], payload: &[u8]) -> Option<Result<Long>> {
    let op = Words(head.get(OP..ENTRY).unwrap_or_default());
    let list = || Ok((op.u64(0)?, op.u64(8)?, op.size(16)?));
    Some(match header.opcode {
        op::READLINK => Ok(Long::Readlink),
        op::READ => list().map(|(_, offset, size)| Long::Read { offset, size }),
        op::READDIR => list().map(|(handle, offset, size)| Long::Readdir { handle, offset, size }),
        op::READDIRPLUS => {
            list().map(|(handle, offset, size)| Long::Readdirplus { handle, offset, size })
        }
        op::GETXATTR => Names::one(payload)
            .and_then(|name| Ok(Long::Getxattr { name: name.to_owned(), size: op.u32(0)? })),
        op::LISTXATTR => op.u32(0).map(|size| Long::Listxattr { size }),
        _ => return None,
    })
}

/// Any other request. ENOSYS for those that are not served, which the kernel remembers.
pub(super) fn request<'a>(header: &Header, head: &[u8], payload: &'a [u8]) -> Result<Request<'a>> {
    let op = Words(head.get(OP..ENTRY).unwrap_or_default());
    let mut names = Names(payload);
    Ok(match header.opcode {
        op::LOOKUP => Request::Lookup { name: names.next()? },
        op::GETATTR => Request::Getattr,
        op::STATX => Request::Statx,
        op::SETATTR => setattr(op)?,
        op::SYMLINK => Request::Symlink { name: names.next()?, target: names.next()? },
        op::MKNOD => {
            let new = New { mode: op.u32(0)?, umask: op.u32(8)? };
            Request::Mknod { name: names.next()?, new, rdev: op.u32(4)? }
        }
        op::MKDIR => {
            let new = New { mode: op.u32(0)?, umask: op.u32(4)? };
            Request::Mkdir { name: names.next()?, new }
        }
        op::UNLINK => Request::Unlink { name: names.next()? },
        op::RMDIR => Request::Rmdir { name: names.next()? },
        op::RENAME | op::RENAME2 => {
            let flags = if header.opcode == op::RENAME2 { op.u32(8)? } else { 0 };
            let (name, new_name) = (names.next()?, names.next()?);
            Request::Rename { name, to: Ino(op.u64(0)?), new_name, flags }
        }
        op::LINK => Request::Link { node: Ino(op.u64(0)?), name: names.next()? },
        op::OPEN => Request::Open { flags: op.u32(0)? as i32 },
        op::CREATE => Request::Create { name: names.next()?, new: created(op)? },
        op::TMPFILE => Request::Tmpfile { new: created(op)? },
        op::SETXATTR => {
            let (size, flags) = (op.size(0)?, op.u32(4)? as i32);
            let name = names.next()?;
            let value = names.0.get(..size).ok_or(sys::EIO)?;
            Request::Setxattr { name, value, flags }
        }
        op::REMOVEXATTR => Request::Removexattr { name: names.next()? },
        _ => on_open(header, op, payload)?,
    })
}

/// Requests on what is open, and on the whole filesystem.
fn on_open<'a>(header: &Header, op: Words<'_>, payload: &'a [u8]) -> Result<Request<'a>> {
    Ok(match header.opcode {
        op::WRITE => {
            let flags = op.u32(20)?;
            let (kill, cached) = (flags & WRITE_KILL_SUIDGID != 0, flags & WRITE_CACHE != 0);
            let data = payload.get(..op.size(16)?).ok_or(sys::EIO)?;
            Request::Write { offset: op.u64(8)?, data, kill, cached }
        }
        op::STATFS => Request::Statfs,
        op::SYNCFS => Request::Syncfs,
        op::RELEASE => Request::Release,
        op::FSYNC => Request::Fsync { data_only: op.u32(8)? & FSYNC_FDATASYNC != 0 },
        op::OPENDIR => Request::Opendir,
        op::RELEASEDIR => Request::Releasedir { handle: op.u64(0)? },
        op::FSYNCDIR => Request::Fsyncdir { data_only: op.u32(8)? & FSYNC_FDATASYNC != 0 },
        op::IOCTL => {
            let input = payload.get(..op.size(24)?).ok_or(sys::EIO)?;
            Request::Ioctl { command: op.u32(12)?, input, out_size: op.size(28)? }
        }
        op::FALLOCATE => {
            Request::Fallocate { mode: op.u32(24)? as i32, offset: op.u64(8)?, length: op.u64(16)? }
        }
        op::LSEEK => Request::Lseek { offset: op.u64(8)? as i64, whence: op.u32(16)? as i32 },
        op::COPY_FILE_RANGE | op::COPY_FILE_RANGE_64 => Request::CopyFileRange {
            offset: op.u64(8)?,
            to: (Ino(op.u64(16)?), op.u64(32)?),
            length: op.u64(40)?,
            wide: header.opcode == op::COPY_FILE_RANGE_64,
        },
        op::DESTROY => Request::Destroy,
        _ => return Err(sys::ENOSYS),
    })
}

fn created(op: Words<'_>) -> Result<New> {
    Ok(New { mode: op.u32(4)?, umask: op.u32(8)? })
}

fn setattr(op: Words<'_>) -> Result<Request<'static>> {
    let valid = op.u32(0)?;
    let word = |bit: u32, at| if valid & bit != 0 { op.u32(at).map(Some) } else { Ok(None) };
    let time = |bit: u32, now: u32, at: usize, nanos_at: usize| -> Result<Option<SetTime>> {
        if valid & now != 0 {
            return Ok(Some(SetTime::Now));
        }
        if valid & bit == 0 {
            return Ok(None);
        }
        // 1,000,000,000 and more are no nanoseconds.
        let nsec = op.u32(nanos_at)?.min(999_999_999);
        Ok(Some(SetTime::At(Time { sec: op.u64(at)? as i64, nsec })))
    };
    let set = SetAttr {
        mode: word(1, 68)?,
        uid: word(1 << 1, 76)?,
        gid: word(1 << 2, 80)?,
        size: if valid & 1 << 3 != 0 { Some(op.u64(16)?) } else { None },
        atime: time(1 << 4, 1 << 7, 32, 56)?,
        mtime: time(1 << 5, 1 << 8, 40, 60)?,
    };
    // The bit is told with a new length only.
    let kills = set.size.map(|_| valid & 1 << 11 != 0);
    Ok(Request::Setattr { set, kills })
}

const WRITE_KILL_SUIDGID: u32 = 1 << 2;
const WRITE_CACHE: u32 = 1 << 0;
const FSYNC_FDATASYNC: u32 = 1;

/// The kinds of requests (enum fuse_opcode).
pub(super) mod op {
    pub(in crate::ring) const LOOKUP: u32 = 1;
    pub(in crate::ring) const GETATTR: u32 = 3;
    pub(in crate::ring) const SETATTR: u32 = 4;
    pub(in crate::ring) const READLINK: u32 = 5;
    pub(in crate::ring) const SYMLINK: u32 = 6;
    pub(in crate::ring) const MKNOD: u32 = 8;
    pub(in crate::ring) const MKDIR: u32 = 9;
    pub(in crate::ring) const UNLINK: u32 = 10;
    pub(in crate::ring) const RMDIR: u32 = 11;
    pub(in crate::ring) const RENAME: u32 = 12;
    pub(in crate::ring) const LINK: u32 = 13;
    pub(in crate::ring) const OPEN: u32 = 14;
    pub(in crate::ring) const READ: u32 = 15;
    pub(in crate::ring) const WRITE: u32 = 16;
    pub(in crate::ring) const STATFS: u32 = 17;
    pub(in crate::ring) const RELEASE: u32 = 18;
    pub(in crate::ring) const FSYNC: u32 = 20;
    pub(in crate::ring) const SETXATTR: u32 = 21;
    pub(in crate::ring) const GETXATTR: u32 = 22;
    pub(in crate::ring) const LISTXATTR: u32 = 23;
    pub(in crate::ring) const REMOVEXATTR: u32 = 24;
    pub(in crate::ring) const OPENDIR: u32 = 27;
    pub(in crate::ring) const READDIR: u32 = 28;
    pub(in crate::ring) const RELEASEDIR: u32 = 29;
    pub(in crate::ring) const FSYNCDIR: u32 = 30;
    pub(in crate::ring) const CREATE: u32 = 35;
    pub(in crate::ring) const DESTROY: u32 = 38;
    pub(in crate::ring) const IOCTL: u32 = 39;
    pub(in crate::ring) const FALLOCATE: u32 = 43;
    pub(in crate::ring) const READDIRPLUS: u32 = 44;
    pub(in crate::ring) const RENAME2: u32 = 45;
    pub(in crate::ring) const LSEEK: u32 = 46;
    pub(in crate::ring) const COPY_FILE_RANGE: u32 = 47;
    pub(in crate::ring) const SYNCFS: u32 = 50;
    pub(in crate::ring) const TMPFILE: u32 = 51;
    pub(in crate::ring) const STATX: u32 = 52;
    pub(in crate::ring) const COPY_FILE_RANGE_64: u32 = 53;
}

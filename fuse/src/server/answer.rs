//! What requests are answered with, whatever brings them.
//!
//! A transport has one type for each way of answering. Each is used once; one that is dropped
//! answers EIO, so that nobody waits for ever.

use std::os::fd::BorrowedFd;

use crate::attr::{Attr, Statfs};
use crate::owner::Caller;
use crate::readdir::DirEntry;
use crate::sys;

/// The number of an error.
pub(crate) type Code = i32;

/// How an open is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Opened {
    /// The handle, given back at the close.
    pub(crate) handle: u64,
    /// The kernel's `FOPEN_*` flags.
    pub(crate) flags: u32,
    /// The file that the kernel is to read and write itself, registered with the connection.
    pub(crate) backing: Option<u32>,
}

/// What a request is answered with.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Answer<'a> {
    /// It is done.
    Done,
    /// A name with its attributes.
    Entry(&'a Attr),
    /// A name that there is not, to be remembered.
    Absent,
    /// Attributes.
    Attr(&'a Attr),
    /// An open file or directory.
    Opened(Opened),
    /// A new name that is open.
    Created(&'a Attr, Opened),
    /// Bytes: a target, a value, a list of names.
    Data(&'a [u8]),
    /// How many bytes a value or a list has.
    Size(u32),
    /// How many bytes were written or copied.
    Written(u32),
    /// Counts of a filesystem.
    Statfs(&'a Statfs),
    /// A position in a file.
    Offset(i64),
    /// What an ioctl gave out.
    Ioctl(&'a [u8]),
}

/// One answer to one request.
pub(crate) trait Reply: Send + Sized + 'static {
    /// Answers.
    fn answer(self, answer: Answer<'_>);

    /// Answers with an error.
    fn error(self, code: Code);
}

/// The answer to a read, in a buffer of the transport's.
pub(crate) trait Fill: Reply {
    /// Answers with what `read` put into a buffer of `size` bytes.
    fn fill(self, size: usize, read: impl FnOnce(&mut [u8]) -> Result<usize, Code>);

    /// Whether `size` bytes are worth asking [`Fill::pass`] for.
    fn passes(&self, _size: usize) -> bool {
        false
    }

    /// Answers with `count` bytes of `file` from `offset`, which no buffer holds in between. Gives the reply back where
    /// that cannot be.
    fn pass(self, _file: BorrowedFd<'_>, _offset: u64, _count: usize) -> Option<Self> {
        Some(self)
    }

    /// The same as [`Fill::fill`], but gives the reply back when `read` has nothing.
    fn try_fill(self, size: usize, read: impl FnOnce(&mut [u8]) -> Option<usize>) -> Option<Self>;
}

/// The answer to a listing, name by name.
pub(crate) trait List: Reply {
    /// Adds a name; `next` is where a listing goes on after it. True when there was no room.
    fn add(&mut self, next: u64, entry: &DirEntry, attr: &Attr) -> bool;

    /// Answers with the names that were added.
    fn done(self);
}

/// Who asks: `u32::MAX` for ids that the kernel does not tell.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asker {
    /// User.
    pub(crate) uid: u32,
    /// Group.
    pub(crate) gid: u32,
    /// Process.
    pub(crate) pid: u32,
}

impl Asker {
    /// As the core takes it.
    pub(crate) fn caller(self, umask: u32) -> Caller {
        Caller { uid: self.uid, gid: self.gid, umask }
    }

    /// The user who asks. On a mount that takes other owners the kernel names nobody but the maker of
    /// a new object (`FUSE_ALLOW_IDMAP`); the process tells then, or else it is somebody without
    /// privilege.
    pub(crate) fn known(self) -> Caller {
        if self.uid != u32::MAX {
            return self.caller(0);
        }
        let (uid, gid) = sys::ids_of(self.pid).unwrap_or((u32::MAX, u32::MAX));
        Caller { uid, gid, umask: 0 }
    }
}

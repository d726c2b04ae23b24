//! Answers as fuser's replies.

use std::cell::RefCell;
use std::time::Duration;

use fuser::{
    Errno, FileHandle, FopenFlags, Generation, INodeNo, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen,
    ReplyStatfs, ReplyWrite, ReplyXattr,
};

use super::answer::{Answer, Code, Fill, List, Opened, Reply};
use super::convert;
use crate::attr::Attr;
use crate::readdir::DirEntry;
use crate::sys;

thread_local! {
    /// The buffer of the reads of this thread.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// One of fuser's replies, with the time that the kernel may keep what it says.
pub(super) struct Sent<R> {
    pub(super) reply: R,
    pub(super) ttl: Duration,
}

fn generation(attr: &Attr) -> Generation {
    Generation(u64::from(attr.generation))
}

/// Answers of the kinds that fit the reply; EIO, which says that the handler is wrong, else.
macro_rules! reply {
    ($($kind:ty: $sent:ident { $($answer:pat => $send:expr,)* })*) => {$(
        impl Reply for Sent<$kind> {
            fn answer(self, answer: Answer<'_>) {
                let $sent = self;
                match answer {
                    $($answer => $send,)*
                    other => {
                        log::error!("an answer that does not fit: {other:?}");
                        $sent.reply.error(Errno::EIO);
                    }
                }
            }

            fn error(self, code: Code) {
                self.reply.error(Errno::from_i32(code));
            }
        }
    )*};
}

reply! {
    ReplyEntry: sent {
        Answer::Entry(attr) => sent.reply.entry(&sent.ttl, &convert::attr(attr), generation(attr)),
        Answer::Absent => {
            sent.reply.entry(&sent.ttl, &convert::attr(&Attr::absent()), Generation(0))
        },
    }
    ReplyAttr: sent {
        Answer::Attr(attr) => sent.reply.attr(&sent.ttl, &convert::attr(attr)),
    }
    ReplyData: sent {
        Answer::Data(bytes) => sent.reply.data(bytes),
    }
    ReplyEmpty: sent {
        Answer::Done => sent.reply.ok(),
    }
    ReplyOpen: sent {
        Answer::Opened(Opened { handle, flags, backing }) => match backing {
            Some(id) => sys::opened(sent.reply, handle, flags, id),
            None => sent.reply.opened(FileHandle(handle), FopenFlags::from_bits_retain(flags)),
        },
    }
    ReplyCreate: sent {
        Answer::Created(attr, Opened { handle, flags, backing }) => {
            let (shown, generation) = (convert::attr(attr), generation(attr));
            if let Some(id) = backing {
                let entry = (&sent.ttl, &shown, generation);
                return sys::created(sent.reply, entry, (handle, flags), id);
            }
            let (handle, flags) = (FileHandle(handle), FopenFlags::from_bits_retain(flags));
            sent.reply.created(&sent.ttl, &shown, generation, handle, flags)
        },
    }
    ReplyWrite: sent {
        Answer::Written(count) => sent.reply.written(count),
    }
    ReplyStatfs: sent {
        Answer::Statfs(s) => sent.reply.statfs(
            s.blocks, s.bfree, s.bavail, s.files, s.ffree, s.bsize, s.namelen, s.frsize,
        ),
    }
    ReplyXattr: sent {
        Answer::Size(size) => sent.reply.size(size),
        Answer::Data(bytes) => sent.reply.data(bytes),
    }
    ReplyLseek: sent {
        Answer::Offset(at) => sent.reply.offset(at),
    }
    ReplyIoctl: sent {
        Answer::Ioctl(bytes) => sent.reply.ioctl(0, bytes),
    }
    ReplyDirectory: sent {
        Answer::Done => sent.reply.ok(),
    }
    ReplyDirectoryPlus: sent {
        Answer::Done => sent.reply.ok(),
    }
}

/// The first `size` bytes of a buffer that only grows: what is new in it is zeroed, once.
fn at_least(buffer: &mut Vec<u8>, size: usize) -> &mut [u8] {
    if buffer.len() < size {
        buffer.resize(size, 0);
    }
    &mut buffer[..size]
}

impl Fill for Sent<ReplyData> {
    fn fill(self, size: usize, read: impl FnOnce(&mut [u8]) -> Result<usize, Code>) {
        BUFFER.with_borrow_mut(|buffer| {
            let buffer = at_least(buffer, size);
            match read(buffer) {
                Ok(count) => self.answer(Answer::Data(&buffer[..count])),
                Err(code) => self.error(code),
            }
        });
    }

    fn try_fill(self, size: usize, read: impl FnOnce(&mut [u8]) -> Option<usize>) -> Option<Self> {
        BUFFER.with_borrow_mut(|buffer| {
            let buffer = at_least(buffer, size);
            let Some(count) = read(buffer) else { return Some(self) };
            self.answer(Answer::Data(&buffer[..count]));
            None
        })
    }
}

impl List for Sent<ReplyDirectory> {
    fn add(&mut self, next: u64, entry: &DirEntry, _attr: &Attr) -> bool {
        self.reply.add(INodeNo(entry.ino.0), next, convert::kind(entry.kind), &entry.name)
    }

    fn done(self) {
        self.answer(Answer::Done);
    }
}

impl List for Sent<ReplyDirectoryPlus> {
    fn add(&mut self, next: u64, entry: &DirEntry, attr: &Attr) -> bool {
        let (node, shown) = (INodeNo(attr.ino.0), convert::attr(attr));
        self.reply.add(node, next, &entry.name, &self.ttl, &shown, generation(attr))
    }

    fn done(self) {
        self.answer(Answer::Done);
    }
}

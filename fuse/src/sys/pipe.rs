//! Data of files on its way to another descriptor without a copy in between (splice(2)).

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};

/// Pages that fit a pipe: the largest read of the kernel's read-ahead, what comes before it, and as much again.
const ROOM: usize = 64 * 4096;

/// A pipe that holds nothing between two calls.
#[derive(Debug)]
pub struct Pipe {
    from: OwnedFd,
    into: OwnedFd,
}

impl Pipe {
    /// Bytes of a file that one call carries at most: each page takes a place, whatever it holds, and so does the head.
    pub const MOST: usize = ROOM / 2;

    /// An empty pipe.
    pub fn new() -> io::Result<Pipe> {
        let (from, into) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        fcntl_setpipe_size(&into, ROOM)?;
        Ok(Pipe { from, into })
    }

    /// Hands `head` and then `count` bytes of `file` to `to` as one message, which has not gone when this fails. What is left
    /// in the pipe then must not be sent: the pipe is to be given up.
    pub fn carry(
        &self,
        head: &[u8],
        (file, mut offset, count): (impl AsFd, u64, usize),
        to: impl AsFd,
    ) -> io::Result<()> {
        let short = || io::Error::from(io::ErrorKind::UnexpectedEof);
        if rustix::io::write(&self.into, head)? != head.len() {
            return Err(short());
        }
        let mut left = count;
        while left > 0 {
            match splice(&file, Some(&mut offset), &self.into, None, left, SpliceFlags::NONBLOCK)? {
                0 => return Err(short()),
                got => left -= got,
            }
        }
        let whole = head.len() + count;
        match splice(&self.from, None, to, None, whole, SpliceFlags::empty())? {
            sent if sent == whole => Ok(()),
            _ => Err(short()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Seek, Write};

    #[test]
    fn a_message_is_whole_or_has_not_gone() {
        let pipe = Pipe::new().unwrap();
        let data: Vec<u8> = (0..Pipe::MOST + 5000).map(|n| (n % 251) as u8).collect();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&data).unwrap();
        for (offset, count) in [(0, Pipe::MOST), (4096, 5000), (4999, Pipe::MOST), (0, 1)] {
            let mut to = tempfile::tempfile().unwrap();
            pipe.carry(b"head", (&file, offset as u64, count), &to).unwrap();
            to.rewind().unwrap();
            let mut got = Vec::new();
            to.read_to_end(&mut got).unwrap();
            assert_eq!(got.split_at(4), (&b"head"[..], &data[offset..offset + count]));
        }
        let to = tempfile::tempfile().unwrap();
        let beyond = (&file, Pipe::MOST as u64, 5001);
        assert_eq!(
            pipe.carry(b"head", beyond, &to).unwrap_err().kind(),
            io::ErrorKind::UnexpectedEof
        );
        assert_eq!(to.metadata().unwrap().len(), 0);
    }
}

//! An archive on its way out. Headers are collected with the data between them, which is read straight into what is written,
//! so many small files make few large writes and nothing is copied twice.

use std::io::Write;

use crate::error::{Context, Result};

/// Bytes that are written at a time.
const BUFFER: usize = 256 * 1024;

/// Less room than this is no room for data.
const LEAST: usize = 64 * 1024;

/// The archive. What it still has goes out with [`Output::finish`] only.
pub(super) struct Output<'a> {
    to: &'a mut dyn Write,
    buffer: Vec<u8>,
    filled: usize,
}

impl<'a> Output<'a> {
    pub(super) fn new(to: &'a mut dyn Write) -> Output<'a> {
        Output { to, buffer: vec![0; BUFFER], filled: 0 }
    }

    /// Adds bytes.
    pub(super) fn write(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            if self.filled == BUFFER {
                self.flush()?;
            }
            let (now, rest) = bytes.split_at(bytes.len().min(BUFFER - self.filled));
            self.buffer[self.filled..self.filled + now.len()].copy_from_slice(now);
            self.filled += now.len();
            bytes = rest;
        }
        Ok(())
    }

    /// Where the next bytes may be put, `most` at most and at least one of them: [`Output::added`] says how many there are.
    pub(super) fn room(&mut self, most: usize) -> Result<&mut [u8]> {
        if BUFFER - self.filled < most.min(LEAST) {
            self.flush()?;
        }
        let end = BUFFER.min(self.filled.saturating_add(most));
        Ok(&mut self.buffer[self.filled..end])
    }

    /// Takes over what was put where there was room, and returns it.
    pub(super) fn added(&mut self, count: usize) -> &[u8] {
        let from = self.filled;
        self.filled = self.filled.saturating_add(count).min(BUFFER);
        &self.buffer[from..self.filled]
    }

    fn flush(&mut self) -> Result<()> {
        let filled = std::mem::take(&mut self.filled);
        self.to.write_all(&self.buffer[..filled]).on("write", "the archive")
    }

    /// Writes what is left.
    pub(super) fn finish(mut self) -> Result<()> {
        self.flush()?;
        self.to.flush().on("write", "the archive")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_out_in_the_order_in_which_they_went_in() {
        let (mut archive, mut wanted) = (Vec::new(), Vec::new());
        let mut out = Output::new(&mut archive);
        for (number, length) in
            [1, 512, BUFFER - 700, LEAST, 3 * BUFFER, 0, 7].into_iter().enumerate()
        {
            let bytes = vec![u8::try_from(number).unwrap(); length];
            out.write(&bytes).unwrap();
            wanted.extend_from_slice(&bytes);
            let room = out.room(length).unwrap();
            assert!(length == 0 || (!room.is_empty() && room.len() <= length), "{length}");
            let some = room.len() / 2;
            room[..some].fill(9);
            assert_eq!(out.added(some), vec![9; some]);
            wanted.resize(wanted.len() + some, 9);
        }
        out.finish().unwrap();
        assert!(archive == wanted);
    }
}

//! Data begins its way to the disk while the archive is still being read, by a thread of its own, so that the sync at the end,
//! without which a layer does not last, finds little left to do. A disk that does not keep up holds the archive back.

use std::fs::File;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::{Builder, JoinHandle};

use crate::error::{Context, Result};
use crate::sys::unpack;

/// Stretches that are handed over at once, and how many times as much may wait for the thread: their files are open meanwhile.
const BATCH: usize = 16;
const WAITING: usize = 4;

/// A file is handed over in pieces of this size, in bytes.
const PIECE: u64 = 8 * 1024 * 1024;

/// A stretch of a file that was written.
struct Piece {
    file: Arc<File>,
    start: u64,
    length: u64,
}

/// The thread, and what is collected for it.
pub(super) struct Writeback {
    batch: Vec<Piece>,
    thread: Option<(SyncSender<Vec<Piece>>, JoinHandle<()>)>,
}

impl Writeback {
    pub(super) fn start() -> Result<Writeback> {
        let (to, pieces) = sync_channel::<Vec<Piece>>(WAITING);
        let work = move || {
            for Piece { file, start, length } in pieces.into_iter().flatten() {
                // Whatever it says: the sync at the end does it all.
                if let Err(error) = unpack::begin_writing(&file, start, length) {
                    log::trace!("write what is in memory: {error}");
                }
            }
        };
        let thread =
            Builder::new().name("plyfs-write".into()).spawn(work).on("start", "a thread")?;
        Ok(Writeback { batch: Vec::new(), thread: Some((to, thread)) })
    }

    /// Something up to `end` was written to a file of which all before `start` was handed over. Returns the new start.
    pub(super) fn wrote(&mut self, file: &Arc<File>, start: u64, end: u64) -> u64 {
        match end.saturating_sub(start) >= PIECE {
            true => {
                self.hand_over(file, start, end);
                end
            }
            false => start,
        }
    }

    /// Hands over a stretch.
    pub(super) fn hand_over(&mut self, file: &Arc<File>, start: u64, end: u64) {
        let length = end.saturating_sub(start);
        if length > 0 {
            self.batch.push(Piece { file: Arc::clone(file), start, length });
        }
        if self.batch.len() >= BATCH || length >= PIECE {
            self.send();
        }
    }

    fn send(&mut self) {
        let Some((to, _)) = &self.thread else { return };
        if to.send(std::mem::take(&mut self.batch)).is_err() {
            log::debug!("the thread that writes is gone");
        }
    }

    /// Waits until everything is on its way.
    pub(super) fn finish(mut self) {
        self.stop();
    }

    fn stop(&mut self) {
        self.send();
        let Some((to, thread)) = self.thread.take() else { return };
        drop(to);
        if thread.join().is_err() {
            log::debug!("the thread that writes has failed");
        }
    }
}

impl Drop for Writeback {
    fn drop(&mut self) {
        self.stop();
    }
}

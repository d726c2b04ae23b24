//! Copies that take as long as a test wants: see `PLYFS_HOLD` in the overlay's fault points.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::mpsc::channel;
use std::thread::{Scope, ScopedJoinHandle, scope};
use std::time::Duration;

use rustix::fs::{CWD, FileType, Mode, mknodat};

use super::{Test, wait_until};

const O_NONBLOCK: i32 = 0o4000;
/// More than any machine needs for what nobody keeps from going on.
const PATIENCE: Duration = Duration::from_secs(30);

/// Does `others` while a copy of data that `work` needs is held, and fails when they have to wait for it.
pub fn during_a_copy(t: &Test, work: impl FnOnce() + Send, others: impl FnOnce() + Send) {
    let fifo = t.at("hold");
    mknodat(CWD, &fifo, FileType::Fifo, Mode::from(0o666), 0).unwrap();
    let went_on = scope(|scope| {
        let work = scope.spawn(work);
        let copying = copying(&work, &fifo);
        let went_on = ends(scope, others) && !work.is_finished();
        std::fs::remove_file(&fifo).unwrap();
        drop(copying);
        work.join().unwrap();
        went_on
    });
    assert!(went_on, "others had to wait for a copy");
}

/// Waits until a copy is held, which it is as long as the answer is open.
fn copying(work: &ScopedJoinHandle<'_, ()>, fifo: &Path) -> Option<File> {
    let mut held = None;
    wait_until("a copy of data", || {
        // Without a reader an open that does not block fails.
        held = OpenOptions::new().write(true).custom_flags(O_NONBLOCK).open(fifo).ok();
        held.is_some() || work.is_finished()
    });
    held
}

fn ends<'a>(scope: &'a Scope<'a, '_>, work: impl FnOnce() + Send + 'a) -> bool {
    let (tell, told) = channel();
    scope.spawn(move || {
        work();
        let _ = tell.send(());
    });
    told.recv_timeout(PATIENCE).is_ok()
}

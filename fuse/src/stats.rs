//! What serving took: requests by kind with their times, copy-ups, and how large the tables are.
//!
//! Counting is a few relaxed additions and takes no lock, so it is always on. The parts of a report
//! are read one after the other while others count: sums may be a request apart.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::Overlay;

/// Upper ends of the columns of the histogram but the last, which has none.
const COLUMNS: [(Duration, &str); 5] = [
    (Duration::from_micros(10), "<10us"),
    (Duration::from_micros(100), "<100us"),
    (Duration::from_millis(1), "<1ms"),
    (Duration::from_millis(10), "<10ms"),
    (Duration::from_millis(100), "<100ms"),
];

macro_rules! ops {
    ($($op:ident $name:literal,)*) => {
        /// A kind of request.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum Op { $($op,)* }

        /// Their names, in the same order.
        const NAMES: &[&str] = &[$($name,)*];
    };
}

ops! {
    Lookup "lookup", Forget "forget", Getattr "getattr", Setattr "setattr", Readlink "readlink",
    Mknod "mknod", Mkdir "mkdir", Unlink "unlink", Rmdir "rmdir", Symlink "symlink",
    Rename "rename", Link "link", Open "open", Create "create", Read "read", Write "write",
    Release "release", Fsync "fsync", Opendir "opendir", Readdir "readdir",
    Readdirplus "readdirplus", Releasedir "releasedir", Fsyncdir "fsyncdir", Statfs "statfs",
    Setxattr "setxattr", Getxattr "getxattr", Listxattr "listxattr", Removexattr "removexattr",
    Ioctl "ioctl", Fallocate "fallocate", Lseek "lseek", CopyFileRange "copy_file_range",
    Tmpfile "tmpfile", Syncfs "syncfs",
}

/// The counters of an overlay.
#[derive(Debug)]
pub(crate) struct Stats {
    ops: Box<[Times]>,
    copied_up: AtomicU64,
    copied_bytes: AtomicU64,
}

/// What the requests of one kind took.
#[derive(Debug, Default)]
struct Times {
    count: AtomicU64,
    nanos: AtomicU64,
    longest: AtomicU64,
    columns: [AtomicU64; COLUMNS.len() + 1],
}

/// The overlay, while a request is counted that ends with this.
pub(crate) struct Timed<'a> {
    overlay: &'a Overlay,
    op: Op,
    start: Instant,
}

impl Stats {
    pub(crate) fn new() -> Stats {
        let ops = NAMES.iter().map(|_| Times::default()).collect();
        Stats { ops, copied_up: AtomicU64::new(0), copied_bytes: AtomicU64::new(0) }
    }

    /// A request of this kind is done.
    pub(crate) fn done(&self, op: Op, start: Instant) {
        let time = start.elapsed();
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let column = COLUMNS.iter().position(|(end, _)| time < *end).unwrap_or(COLUMNS.len());
        let Some(times) = self.ops.get(op as usize) else { return };
        times.count.fetch_add(1, Ordering::Relaxed);
        times.nanos.fetch_add(nanos, Ordering::Relaxed);
        if nanos > times.longest.load(Ordering::Relaxed) {
            times.longest.fetch_max(nanos, Ordering::Relaxed);
        }
        if let Some(column) = times.columns.get(column) {
            column.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// An object has an upper twin now.
    pub(crate) fn copied_up(&self) {
        self.copied_up.fetch_add(1, Ordering::Relaxed);
    }

    /// So much data was copied for it.
    pub(crate) fn copied_data(&self, bytes: u64) {
        self.copied_bytes.fetch_add(bytes, Ordering::Relaxed);
    }
}

impl<'a> Timed<'a> {
    pub(crate) fn new(overlay: &'a Overlay, op: Op) -> Timed<'a> {
        Timed { overlay, op, start: Instant::now() }
    }

    /// Counts nothing: somebody else finishes the request.
    pub(crate) fn leave(self) {
        std::mem::forget(self);
    }
}

impl std::ops::Deref for Timed<'_> {
    type Target = Overlay;

    fn deref(&self) -> &Overlay {
        self.overlay
    }
}

impl Drop for Timed<'_> {
    fn drop(&mut self) {
        self.overlay.stats.done(self.op, self.start);
    }
}

/// The counters of a mount. Displays as a report of several lines, as they are at that moment.
#[derive(Clone, Debug)]
pub struct Counters(pub(crate) Arc<Overlay>);

impl fmt::Display for Counters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let overlay = &*self.0;
        let (mut inodes, mut directories, mut opens) = (0, 0, 0);
        overlay.table.each(|inode| {
            inodes += 1;
            directories += u64::from(inode.is_dir());
            opens += u64::from(inode.opens.load(Ordering::Relaxed));
        });
        let descriptors = std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
        writeln!(
            f,
            "inodes {inodes} (directories {directories}), open files {opens}, open directories {}, descriptors {descriptors}",
            overlay.open_dirs.len(),
        )?;
        let stats = &overlay.stats;
        let (objects, bytes) =
            (stats.copied_up.load(Ordering::Relaxed), stats.copied_bytes.load(Ordering::Relaxed));
        writeln!(f, "copied up {objects} objects, {bytes} bytes")?;
        write!(f, "{:<16}{:>10}{:>11}{:>11}", "request", "count", "mean us", "longest us")?;
        for (_, name) in COLUMNS {
            write!(f, "{name:>9}")?;
        }
        write!(f, "{:>9}", "more")?;
        for (name, times) in NAMES.iter().zip(&stats.ops) {
            times.show(f, name)?;
        }
        Ok(())
    }
}

impl Times {
    fn show(&self, f: &mut fmt::Formatter<'_>, name: &str) -> fmt::Result {
        let count = self.count.load(Ordering::Relaxed);
        if count == 0 {
            return Ok(());
        }
        let micros = |nanos: u64| nanos as f64 / 1000.0;
        let mean = micros(self.nanos.load(Ordering::Relaxed)) / count as f64;
        let longest = micros(self.longest.load(Ordering::Relaxed));
        write!(f, "\n{name:<16}{count:>10}{mean:>11.1}{longest:>11.1}")?;
        self.columns.iter().try_for_each(|n| write!(f, "{:>9}", n.load(Ordering::Relaxed)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_counted_in_its_row_and_column() {
        let stats = Stats::new();
        let now = Instant::now();
        stats.done(Op::CopyFileRange, now);
        stats.done(Op::Lookup, now.checked_sub(Duration::from_millis(5)).unwrap());
        stats.done(Op::Lookup, now.checked_sub(Duration::from_secs(1)).unwrap());
        let count = |op: Op| stats.ops[op as usize].count.load(Ordering::Relaxed);
        assert_eq!((count(Op::Lookup), count(Op::CopyFileRange), count(Op::Read)), (2, 1, 0));
        assert_eq!(NAMES[Op::CopyFileRange as usize], "copy_file_range");
        let columns: Vec<_> =
            stats.ops[0].columns.iter().map(|n| n.load(Ordering::Relaxed)).collect();
        assert_eq!(columns, [0, 0, 0, 1, 0, 1]);
        let longest = stats.ops[0].longest.load(Ordering::Relaxed);
        assert!((1_000_000_000..2_000_000_000).contains(&longest));
    }
}

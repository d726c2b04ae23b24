//! Fault points: with the feature `fault-injection`, `PLYFS_FAULT=N` kills the process before its
//! N-th change on disk (N counts from 1), and `PLYFS_FAULT=N:ERRNO` fails that change and every
//! later one with the number instead. Counting starts when [`arm`] is called. `PLYFS_HOLD=FIFO`
//! makes copying of data as slow as a test wants: while the pipe exists, a copy waits until somebody
//! has opened it for writing and closed it again. Without the feature every point is nothing.

use std::io;

/// Starts counting; called once the mount answers, or by a test.
#[cfg(feature = "fault-injection")]
pub fn arm() {
    plan().armed.store(true, std::sync::atomic::Ordering::SeqCst);
}

/// Starts counting; nothing without the feature.
#[cfg(not(feature = "fault-injection"))]
pub fn arm() {}

#[cfg(feature = "fault-injection")]
struct Plan {
    at: u64,
    errno: Option<i32>,
    count: std::sync::atomic::AtomicU64,
    armed: std::sync::atomic::AtomicBool,
}

#[cfg(feature = "fault-injection")]
fn plan() -> &'static Plan {
    static PLAN: std::sync::OnceLock<Plan> = std::sync::OnceLock::new();
    PLAN.get_or_init(|| {
        let text = std::env::var("PLYFS_FAULT").unwrap_or_default();
        let (at, errno) = text.split_once(':').unwrap_or((&text, ""));
        Plan {
            at: at.parse().unwrap_or(0),
            errno: errno.parse().ok(),
            count: Default::default(),
            armed: Default::default(),
        }
    })
}

/// One change on disk is about to happen.
#[cfg(feature = "fault-injection")]
pub(super) fn point() -> io::Result<()> {
    use std::sync::atomic::Ordering::SeqCst;
    let plan = plan();
    if plan.at == 0 || !plan.armed.load(SeqCst) {
        return Ok(());
    }
    let now = plan.count.fetch_add(1, SeqCst) + 1;
    match plan.errno {
        Some(code) if now >= plan.at => Err(io::Error::from_raw_os_error(code)),
        None if now == plan.at => {
            let pid = rustix::process::getpid();
            rustix::process::kill_process(pid, rustix::process::Signal::KILL)?;
            loop {
                std::thread::park();
            }
        }
        _ => Ok(()),
    }
}

/// One change on disk is about to happen.
#[cfg(not(feature = "fault-injection"))]
#[inline(always)]
pub(super) fn point() -> io::Result<()> {
    Ok(())
}

/// Data is about to be copied.
#[cfg(feature = "fault-injection")]
pub(super) fn hold() {
    static HOLD: std::sync::OnceLock<Option<std::ffi::OsString>> = std::sync::OnceLock::new();
    if let Some(fifo) = HOLD.get_or_init(|| std::env::var_os("PLYFS_HOLD")) {
        // No pipe: nobody holds.
        drop(std::fs::read(fifo));
    }
}

/// Data is about to be copied.
#[cfg(not(feature = "fault-injection"))]
#[inline(always)]
pub(super) fn hold() {}

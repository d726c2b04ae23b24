//! Fault points: with the feature `fault-injection`, `PLYFS_FAULT=N` kills the process before its
//! N-th change on disk (N counts from 1), and `PLYFS_FAULT=N:ERRNO` fails that change and every
//! later one with the number instead. Counting starts when [`arm`] is called; a process that changes
//! a store and serves nothing asks for another variable ([`arm_by`]), so that the server of a mount it
//! starts is not meant too. Each change is logged (`trace`) with its number. `PLYFS_HOLD=FIFO`
//! makes copying of data as slow as a test wants: while the pipe exists, a copy waits until somebody
//! has opened it for writing and closed it again. Without the feature every point is nothing.

use std::io;

/// Starts counting; called once the mount answers, or by a test.
pub fn arm() {
    arm_by("PLYFS_FAULT");
}

/// Starts counting, with the plan in another variable; the first who arms decides.
#[cfg(feature = "fault-injection")]
pub fn arm_by(variable: &str) {
    PLAN.get_or_init(|| Plan::read(&std::env::var(variable).unwrap_or_default()));
}

/// Starts counting; nothing without the feature.
#[cfg(not(feature = "fault-injection"))]
pub fn arm_by(_variable: &str) {}

#[cfg(feature = "fault-injection")]
static PLAN: std::sync::OnceLock<Plan> = std::sync::OnceLock::new();

#[cfg(feature = "fault-injection")]
struct Plan {
    at: u64,
    errno: Option<i32>,
    count: std::sync::atomic::AtomicU64,
}

#[cfg(feature = "fault-injection")]
impl Plan {
    fn read(text: &str) -> Plan {
        let (at, errno) = text.split_once(':').unwrap_or((text, ""));
        Plan { at: at.parse().unwrap_or(0), errno: errno.parse().ok(), count: Default::default() }
    }
}

/// One change on disk is about to happen.
#[cfg(feature = "fault-injection")]
pub fn point() -> io::Result<()> {
    let Some(plan) = PLAN.get().filter(|plan| plan.at > 0) else { return Ok(()) };
    let now = plan.count.fetch_add(1, std::sync::atomic::Ordering::SeqCst) + 1;
    log::trace!("change {now}");
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
pub fn point() -> io::Result<()> {
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

//! Processes: fork, wait, and what a server does to its own.

use std::fs::File;
use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{MemfdFlags, XattrFlags};
use rustix::process::{Pid, PidfdFlags, Resource, Rlimit, Signal, WaitOptions, WaitStatus};

/// How often a bounded wait looks again.
const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// With a status of its own.
    Status(u8),
    /// By a signal.
    Signal(i32),
}

impl Ended {
    /// The status a shell would show: 128 + n for signal n.
    pub fn code(self) -> u8 {
        match self {
            Ended::Status(status) => status,
            Ended::Signal(signal) => u8::try_from(128 + signal).unwrap_or(u8::MAX),
        }
    }

    fn from_raw(status: WaitStatus) -> Option<Ended> {
        if let Some(code) = status.exit_status() {
            return Some(Ended::Status(u8::try_from(code & 0xff).unwrap_or(u8::MAX)));
        }
        status.terminating_signal().map(Ended::Signal)
    }
}

/// A forked process that has not been waited for.
#[derive(Debug)]
pub struct Child(Pid);

impl Child {
    /// Its process id in our pid namespace.
    pub fn id(&self) -> i32 {
        self.0.as_raw_nonzero().get()
    }

    /// Sends it a signal; one that has ended already is no error.
    pub fn signal(&self, number: i32) -> io::Result<()> {
        // SAFETY: kill takes two integers; the id is of a child that has not been waited for, so
        // the kernel has not given it to another process.
        if unsafe { libc::kill(self.id(), number) } == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if super::is(&error, libc::ESRCH) { Ok(()) } else { Err(error) }
    }

    /// Waits until it ends.
    pub fn wait(&self) -> io::Result<Ended> {
        loop {
            match rustix::process::waitpid(Some(self.0), WaitOptions::empty()) {
                Ok(Some((_, status))) => {
                    if let Some(ended) = Ended::from_raw(status) {
                        return Ok(ended);
                    }
                }
                Ok(None) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// How it ended, or `None` while it runs.
    pub fn try_wait(&self) -> io::Result<Option<Ended>> {
        match rustix::process::waitpid(Some(self.0), WaitOptions::NOHANG) {
            Ok(found) => Ok(found.and_then(|(_, status)| Ended::from_raw(status))),
            Err(rustix::io::Errno::INTR) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits until it ends, but no longer than `limit`.
    pub fn wait_for(&self, limit: Duration) -> io::Result<Option<Ended>> {
        let start = Instant::now();
        loop {
            if let Some(ended) = self.try_wait()? {
                return Ok(Some(ended));
            }
            if start.elapsed() >= limit {
                return Ok(None);
            }
            std::thread::sleep(LOOK_AGAIN);
        }
    }
}

/// A process that need not be our child.
#[derive(Debug)]
pub struct Other(OwnedFd);

impl Other {
    /// Holds on to a process, so that its number cannot come to mean another.
    pub fn open(id: i32) -> io::Result<Other> {
        let pid = Pid::from_raw(id).ok_or_else(|| io::Error::from_raw_os_error(libc::ESRCH))?;
        Ok(Other(rustix::process::pidfd_open(pid, PidfdFlags::empty())?))
    }

    /// Waits until it ends, but no longer than `limit`; whether it has ended.
    pub fn wait_for(&self, limit: Duration) -> io::Result<bool> {
        let limit = Timespec::try_from(limit).map_err(io::Error::other)?;
        let mut wanted = [PollFd::new(&self.0, PollFlags::IN)];
        Ok(rustix::event::poll(&mut wanted, Some(&limit))? > 0)
    }
}

/// Runs `child` in a new process, which ends with the returned status; nothing of the caller's stack
/// is unwound or flushed there. Refused while the process has other threads: their locks would stay
/// taken in the copy for ever.
pub fn fork(child: impl FnOnce() -> u8) -> io::Result<Child> {
    if std::fs::read_dir("/proc/self/task").is_ok_and(|tasks| tasks.count() > 1) {
        return Err(io::Error::other("the process has more than one thread"));
    }
    // SAFETY: the process has one thread, so the copy holds no lock of another; the copy leaves
    // through _exit and never returns into the caller.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            let status = catch_unwind(AssertUnwindSafe(child)).unwrap_or(125);
            // SAFETY: ends the process; no destructor of the parent's values runs in the copy.
            unsafe { libc::_exit(i32::from(status)) }
        }
        pid => Pid::from_raw(pid)
            .map(Child)
            .ok_or_else(|| io::Error::other("fork answered no process id")),
    }
}

/// Waits for any child that has ended; `None` when there is none now.
pub fn reap() -> io::Result<Option<(i32, Ended)>> {
    loop {
        match rustix::process::wait(WaitOptions::NOHANG) {
            Ok(Some((pid, status))) => {
                if let Some(ended) = Ended::from_raw(status) {
                    return Ok(Some((pid.as_raw_nonzero().get(), ended)));
                }
            }
            Ok(None) | Err(rustix::io::Errno::CHILD) => return Ok(None),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// What a process has used so far.
#[derive(Clone, Copy, Debug)]
pub struct Usage {
    /// Processor time of its own.
    pub user: Duration,
    /// Processor time of the kernel on its behalf.
    pub system: Duration,
    /// The most memory it had at one time, bytes.
    pub peak_memory: u64,
}

/// What this process, all its threads, has used.
pub fn usage() -> Usage {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: the pointer is to a record of the size the call fills; zeroes are a record too, so it
    // is initialised even if the call fails.
    let usage = unsafe {
        libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr());
        usage.assume_init()
    };
    let time = |time: libc::timeval| {
        let (seconds, micros) = (time.tv_sec.unsigned_abs(), time.tv_usec.unsigned_abs());
        Duration::from_secs(seconds) + Duration::from_micros(micros)
    };
    Usage {
        user: time(usage.ru_utime),
        system: time(usage.ru_stime),
        peak_memory: usage.ru_maxrss.unsigned_abs() * 1024,
    }
}

/// Our process id.
pub fn process_id() -> i32 {
    rustix::process::getpid().as_raw_nonzero().get()
}

/// Our parent's process id, 0 when it is outside our pid namespace.
pub fn parent_id() -> i32 {
    rustix::process::getppid().map_or(0, |pid| pid.as_raw_nonzero().get())
}

/// Whether we act with user id 0.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Our user and group id.
pub fn real_ids() -> (u32, u32) {
    (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw())
}

/// Asks for `signal` when our parent ends. Must be called again after a change of user.
pub fn exit_with_parent(signal: i32) -> io::Result<()> {
    let signal =
        Signal::from_named_raw(signal).ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))?;
    Ok(rustix::process::set_parent_process_death_signal(Some(signal))?)
}

/// Leaves the terminal and the process group.
pub fn new_session() -> io::Result<()> {
    rustix::process::setsid()?;
    Ok(())
}

/// Makes standard input, output and error the null device, so that nobody waits for their end.
pub fn close_stdio() -> io::Result<()> {
    let null = File::options().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&null)?;
    Ok(())
}

/// The descriptors that the program was started with, beside the three streams: what it opens itself
/// is closed at an exec, what an exec left open is not. None where there is no /proc.
pub fn inherited() -> Vec<RawFd> {
    let entries = std::fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
    let numbers = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    numbers.filter(|fd| *fd > libc::STDERR_FILENO && stays_open(*fd)).collect()
}

/// Whether a descriptor is open and stays so at an exec.
fn stays_open(fd: RawFd) -> bool {
    // SAFETY: fcntl only reads a flag of a number that need not be open.
    let flags = unsafe { libc::fcntl(fd, libc::F_GETFD) };
    flags >= 0 && flags & libc::FD_CLOEXEC == 0
}

/// Closes what [`inherited`] found, so that nobody waits for the end of a pipe that only we hold.
pub fn close_inherited(descriptors: &[RawFd]) {
    for fd in descriptors {
        // SAFETY: no value of this program owns a descriptor it was started with.
        unsafe { libc::close(*fd) };
    }
}

/// Raises the number of files we may open to the most the system lets us have.
pub fn raise_open_files() -> io::Result<()> {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    Ok(rustix::process::setrlimit(
        Resource::Nofile,
        Rlimit { current: limit.maximum, maximum: limit.maximum },
    )?)
}

/// Gives up the right to exceed quotas (`CAP_SYS_RESOURCE`), for this thread and those it starts.
pub fn keep_to_limits() -> io::Result<()> {
    use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
    let mut sets = capabilities(None)?;
    if sets.effective.contains(CapabilitySet::SYS_RESOURCE) {
        sets.effective.remove(CapabilitySet::SYS_RESOURCE);
        set_capabilities(None, sets)?;
    }
    Ok(())
}

/// A pipe, reading end first; neither end survives an exec.
pub fn pipe() -> io::Result<(File, File)> {
    let (reading, writing) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    Ok((File::from(reading), File::from(writing)))
}

/// An unnamed file in memory. Copies of it in forked processes share one position, so what they
/// write one after another is kept in that order.
pub fn memory_file() -> io::Result<File> {
    let file: OwnedFd = rustix::fs::memfd_create("plyfs", MemfdFlags::CLOEXEC)?;
    Ok(File::from(file))
}

/// Whether the filesystem that holds `directory` keeps extended attributes of users.
pub fn supports_user_xattrs(directory: &Path) -> io::Result<()> {
    rustix::fs::setxattr(directory, "user.plyfs.probe", b"y", XattrFlags::empty())?;
    Ok(rustix::fs::removexattr(directory, "user.plyfs.probe")?)
}

//! Mounts that go away again, also when the test fails. Each test that mounts does so in a mount
//! namespace of its own.

use std::ffi::CString;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::mount::{MountFlags, UnmountFlags};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::cmd::Cmd;
use super::model::Who;

/// A mounted filesystem.
#[derive(Debug)]
pub struct Mounted {
    path: PathBuf,
    server: Option<Server>,
    up: bool,
}

/// Upper and work directory.
pub type Upper<'a> = Option<(&'a Path, &'a Path)>;

/// Mounts plyfs by the program under test; `extra` is more `-o` text, or nothing.
pub fn plyfs(lowers: &[PathBuf], upper: Upper<'_>, extra: &str, at: &Path) -> Mounted {
    own_namespace();
    let options = option_text(lowers, upper, extra);
    Cmd::plyfs().args(["mount", "-o", &options]).arg(at).dir(at).succeeds();
    Mounted { path: at.to_owned(), server: server_of(at), up: true }
}

/// Gives the calling thread, and what it starts from now on, a mount namespace of its own. No other
/// namespace then has copies of its mounts, which would keep a filesystem alive after its unmounting,
/// and nothing is left over when the test is killed. The thread's mounts are in
/// `/proc/thread-self/mounts`, not in `/proc/self/mounts`.
pub fn own_namespace() {
    thread_local! {
        static OWN: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
    }
    if OWN.replace(true) || !rustix::process::geteuid().is_root() {
        return;
    }
    // SAFETY: a plain system call on this thread alone.
    let done = unsafe { libc::unshare(libc::CLONE_NEWNS) };
    assert_eq!(done, 0, "unshare: {}", std::io::Error::last_os_error());
    super::rootless::make_private().unwrap();
}

/// Mounts the kernel's overlay, with `userxattr` where root is root of a user namespace only.
pub fn kernel(
    lowers: &[PathBuf],
    upper: Upper<'_>,
    extra: &str,
    at: &Path,
) -> std::io::Result<Mounted> {
    let mut options = option_text(lowers, upper, extra);
    if !Who::me().privileged {
        options.push_str(",userxattr");
    }
    let data = CString::new(options)?;
    own_namespace();
    rustix::mount::mount("overlay", at, "overlay", MountFlags::empty(), &*data)?;
    Ok(Mounted { path: at.to_owned(), server: None, up: true })
}

/// The `-o` text of a stack, top first.
pub fn option_text(lowers: &[PathBuf], upper: Upper<'_>, extra: &str) -> String {
    let lowers: Vec<String> = lowers.iter().map(|path| escaped(path)).collect();
    let mut text = format!("lowerdir={}", lowers.join(":"));
    if let Some((upper, work)) = upper {
        text += &format!(",upperdir={},workdir={}", escaped(upper), escaped(work));
    }
    if !extra.is_empty() {
        text += &format!(",{extra}");
    }
    text
}

/// A path with the characters that mean something in an option list made plain.
fn escaped(path: &Path) -> String {
    let mut text = String::new();
    for c in path.to_str().unwrap().chars() {
        if matches!(c, '\\' | ':' | ',') {
            text.push('\\');
        }
        text.push(c);
    }
    text
}

impl Mounted {
    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The process that serves it, if one does.
    pub fn server(&self) -> Option<i32> {
        self.server.as_ref().map(|server| server.pid)
    }

    /// Unmounts, and waits until the server is gone, so that the layers are free.
    pub fn unmount(mut self) {
        self.down();
    }

    fn down(&mut self) {
        if !std::mem::take(&mut self.up) {
            return;
        }
        let end = Instant::now() + Duration::from_secs(5);
        loop {
            match rustix::mount::unmount(&self.path, UnmountFlags::NOFOLLOW) {
                Err(rustix::io::Errno::BUSY) if Instant::now() < end => {
                    std::thread::sleep(Duration::from_millis(20))
                }
                Err(rustix::io::Errno::BUSY) => {
                    eprintln!("{} is busy: unmounted lazily", self.path.display());
                    let _ = rustix::mount::unmount(&self.path, UnmountFlags::DETACH);
                    break;
                }
                _ => break,
            }
        }
        if let Some(server) = &self.server {
            if !server.ends_within(Duration::from_secs(10)) {
                eprintln!("the server of {} ({}) does not end", self.path.display(), server.pid);
            }
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        self.down();
    }
}

/// A process that serves a mount.
#[derive(Debug)]
struct Server {
    pid: i32,
    handle: OwnedFd,
}

impl Server {
    /// Waits until all its threads are gone, and with them what it had open; its state in `/proc`
    /// tells of the first thread alone.
    fn ends_within(&self, limit: Duration) -> bool {
        let mut fds = [PollFd::new(&self.handle, PollFlags::IN)];
        let limit = Timespec { tv_sec: limit.as_secs() as i64, tv_nsec: 0 };
        rustix::event::poll(&mut fds, Some(&limit)).is_ok_and(|ready| ready == 1)
    }
}

/// The running process of the program under test that has `mountpoint` among its arguments.
fn server_of(mountpoint: &Path) -> Option<Server> {
    let program = Path::new(env!("CARGO_BIN_EXE_plyfs")).canonicalize().ok()?;
    for entry in std::fs::read_dir("/proc").ok()?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let exe = std::fs::read_link(entry.path().join("exe")).unwrap_or_default();
        let cmdline = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if exe == program
            && cmdline.split(|b| *b == 0).any(|arg| arg == mountpoint.as_os_str().as_bytes())
        {
            let handle = pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()?;
            return Some(Server { pid, handle });
        }
    }
    None
}

//! One test in the shoes of an ordinary user: the test program runs itself again for that one test,
//! under an ordinary user id and as root of a user and mount namespace of its own.
//!
//! ```ignore
//! #[test]
//! fn rename_works_rootless() {
//!     needs!(UserNs, Fuse);
//!     if rootless::run(this_test!()) {
//!         return;
//!     }
//!     // here the process is root of a namespace and nobody on the host
//! }
//! ```
//!
//! Started by root, the user is one that nobody has, with ids mapped as subordinate ids are (host
//! 100000.. as 0..); root writes the map, so no account is needed. Started by an ordinary user, the
//! namespace has his own id alone, so tests cannot change owners there.

use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use super::model::Who;

/// First host id of the ordinary user; the namespace's root.
pub const BASE: u32 = 100_000;
/// How many ids the namespace has.
const COUNT: u32 = 65_536;
/// Set in the process that runs as the ordinary user.
const INSIDE: &str = "PLYFS_ROOTLESS";

/// Whether this process is the one inside.
pub fn inside() -> bool {
    std::env::var_os(INSIDE).is_some()
}

/// Runs the test inside and returns true when it passed; returns false to the process inside, which
/// then has to do the test.
pub fn run(test: &str) -> bool {
    run_in(test, &super::sandbox::base())
}

/// The same with the test's sandbox in a directory.
pub fn run_in(test: &str, dir: &Path) -> bool {
    if inside() {
        return false;
    }
    let base = tempfile::Builder::new()
        .prefix("plyfs-rootless.")
        .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .tempdir_in(dir)
        .unwrap();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([test, "--exact", "--nocapture", "--test-threads=1"]);
    command.env(INSIDE, "1").env("PLYFS_TEST_DIR", base.path()).current_dir(base.path());
    let privileged = Who::me().privileged;
    if privileged {
        std::os::unix::fs::chown(base.path(), Some(BASE), Some(BASE)).unwrap();
    }
    let output = if privileged { spawn_mapped(command) } else { spawn_own(command) };
    let passed =
        output.status.success() && String::from_utf8_lossy(&output.stdout).contains("1 passed");
    if !passed {
        let kept = base.keep();
        panic!(
            "{test} failed rootless: {}\nkept: {}\n{}{}",
            output.status,
            kept.display(),
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    // What it had to say about capabilities that are missing.
    eprint!("{}", String::from_utf8_lossy(&output.stderr));
    true
}

/// As root: the child becomes the user, makes the namespaces, waits for its id maps.
fn spawn_mapped(mut command: Command) -> std::process::Output {
    let (ready, ready_end) = pipe();
    let (mapped_end, mapped) = pipe();
    let (tell, wait) = (ready_end.as_raw_fd(), mapped_end.as_raw_fd());
    // SAFETY: between fork and exec only system calls are made, on descriptors that stay open.
    unsafe {
        command.pre_exec(move || {
            check(libc::setgroups(0, std::ptr::null()))?;
            check(libc::setresgid(BASE, BASE, BASE))?;
            check(libc::setresuid(BASE, BASE, BASE))?;
            // Changing ids made the process undumpable, and its /proc files root's.
            check(libc::prctl(libc::PR_SET_DUMPABLE, 1))?;
            check(libc::unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNS))?;
            send_pid(tell)?;
            let mut byte = 0_u8;
            if libc::read(wait, (&raw mut byte).cast(), 1) != 1 {
                return Err(std::io::Error::other("no id map"));
            }
            check(libc::setresgid(0, 0, 0))?;
            check(libc::setresuid(0, 0, 0))?;
            make_private()
        });
    }
    // The child is spawned when it has run its program, so somebody else has to map its ids.
    let mapper = std::thread::spawn(move || {
        let mut pid = [0; 4];
        std::fs::File::from(ready).read_exact(&mut pid)?;
        let pid = i32::from_ne_bytes(pid);
        let map = format!("0 {BASE} {COUNT}\n");
        std::fs::write(format!("/proc/{pid}/gid_map"), &map)?;
        std::fs::write(format!("/proc/{pid}/uid_map"), &map)?;
        std::fs::File::from(mapped).write_all(&[1])
    });
    let output = command.output();
    drop(ready_end);
    let mapping = mapper.join().unwrap();
    output.unwrap_or_else(|e| panic!("run as an ordinary user: {e}; id maps: {mapping:?}"))
}

/// As an ordinary user: the child maps its own id to root.
fn spawn_own(mut command: Command) -> std::process::Output {
    let who = Who::me();
    let maps = [
        ("/proc/self/setgroups", "deny".to_owned()),
        ("/proc/self/gid_map", format!("0 {} 1\n", who.gid)),
        ("/proc/self/uid_map", format!("0 {} 1\n", who.uid)),
    ];
    let maps = maps.map(|(path, text)| (std::ffi::CString::new(path).unwrap(), text));
    // SAFETY: between fork and exec only system calls are made, on memory made before.
    unsafe {
        command.pre_exec(move || {
            check(libc::unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNS))?;
            for (path, text) in &maps {
                let fd = libc::open(path.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
                check(fd)?;
                if libc::write(fd, text.as_ptr().cast(), text.len()) != text.len() as isize {
                    return Err(std::io::Error::last_os_error());
                }
            }
            make_private()
        });
    }
    command.output().unwrap_or_else(|e| panic!("run in a user namespace: {e}"))
}

fn check(result: libc::c_int) -> std::io::Result<()> {
    if result < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
}

/// Mounts made inside stay inside.
pub fn make_private() -> std::io::Result<()> {
    let (none, flags) = (std::ptr::null(), libc::MS_REC | libc::MS_PRIVATE);
    // SAFETY: the target is a literal that ends in a zero byte; the other pointers are allowed to be null.
    check(unsafe { libc::mount(none, c"/".as_ptr(), none, flags, std::ptr::null()) })
}

fn send_pid(fd: RawFd) -> std::io::Result<()> {
    // SAFETY: a plain system call, then a write of four bytes that live on this stack.
    unsafe {
        let pid = libc::getpid();
        if libc::write(fd, (&raw const pid).cast(), 4) != 4 {
            return Err(std::io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Reading end, writing end; neither survives an exec.
fn pipe() -> (OwnedFd, OwnedFd) {
    let mut fds = [0; 2];
    // SAFETY: two descriptors are written to an array of two, and owned from here on.
    unsafe {
        assert_eq!(libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC), 0);
        (OwnedFd::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1]))
    }
}

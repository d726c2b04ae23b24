//! One test, one process: it starts as the first process of its own process, mount and (rootless)
//! user namespaces, so that nothing it mounts or starts outlives it. A test that hangs is ended.

use std::ffi::CString;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::pipe::{PipeFlags, pipe_with};

use super::Mode;
use super::sys::{self, Isolation, Users};

/// The host id that root of a rootless test is, when the tests run as root.
const FIRST_ID: u32 = 100_000;
const IDS: u32 = 65_536;
/// How long a test may take.
const LIMIT: Duration = Duration::from_secs(120);

/// What became of a test's process.
pub struct Outcome {
    pub status: ExitStatus,
    pub hung: bool,
    pub output: String,
}

/// Runs the test `name` of this program in `scratch`, a directory that it owns.
pub fn run(name: &str, mode: Mode, scratch: &Path) -> Outcome {
    let log = scratch.join("log");
    let output = File::create(&log).unwrap();
    let mut command = prepared(name, mode, scratch);
    command.stdin(Stdio::null()).stdout(output.try_clone().unwrap()).stderr(output);
    let mut child = started(command, mode, scratch);
    let (status, hung) = watched(&mut child);
    let output = fs::read(&log).unwrap_or_default();
    let output = String::from_utf8_lossy(&output);
    // The harness inside repeats itself at its end.
    let output = output.split("\nfailures:").next().unwrap_or_default().to_owned();
    Outcome { status, hung, output }
}

/// Makes the scratch directory of one test, owned by whoever the test will be.
pub fn scratch(mode: Mode) -> tempfile::TempDir {
    let base = std::env::var_os("PLYFS_TEST_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
    let dir = tempfile::Builder::new().prefix("plyfs-").tempdir_in(base).unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    if mode == Mode::Rootless && super::is_root() {
        chown(dir.path(), Some(FIRST_ID), Some(FIRST_ID)).unwrap();
    }
    dir
}

/// Removes what a test leaves, directories without permissions included.
pub fn remove(dir: tempfile::TempDir) {
    fn open_up(dir: &Path) {
        if fs::set_permissions(dir, fs::Permissions::from_mode(0o700)).is_err() {
            return;
        }
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                open_up(&entry.path());
            }
        }
    }
    open_up(dir.path());
    let _ = dir.close();
}

fn prepared(name: &str, mode: Mode, scratch: &Path) -> Command {
    let mut program = std::env::current_exe().unwrap();
    let mut plyfs = PathBuf::from(env!("CARGO_BIN_EXE_plyfs"));
    if bound(mode) {
        // The user that the test becomes may not reach the build directory.
        program = scratch.join("bin/tests");
        plyfs = scratch.join("bin/plyfs");
        fs::create_dir(scratch.join("bin")).unwrap();
        File::create(&program).unwrap();
        File::create(&plyfs).unwrap();
    }
    let mut command = Command::new(program);
    command.args(["--exact", name, "--nocapture", "--test-threads=1", "--include-ignored"]);
    command.current_dir(scratch);
    command.env("PLYFS_SEMANTICS_DIR", scratch).env("PLYFS_SEMANTICS_BIN", plyfs);
    command.env("PLYFS_HOLD", scratch.join("hold")).env("RUST_BACKTRACE", "0");
    command
}

/// True when root starts the test for somebody else.
fn bound(mode: Mode) -> bool {
    mode == Mode::Rootless && super::is_root()
}

fn started(mut command: Command, mode: Mode, scratch: &Path) -> Child {
    let mut isolation = Isolation { users: Users::Same, binds: Vec::new() };
    if !bound(mode) {
        if mode == Mode::Rootless {
            let id = |id: u32| CString::new(format!("0 {id} 1")).unwrap();
            let uid_map = id(rustix::process::geteuid().as_raw());
            let gid_map = id(rustix::process::getegid().as_raw());
            isolation.users = Users::Own { uid_map, gid_map };
        }
        sys::isolate(&mut command, isolation);
        return command.spawn().expect("a test in its own namespaces");
    }
    let path = |path: &Path| CString::new(path.as_os_str().as_bytes()).unwrap();
    for (from, to) in [
        (std::env::current_exe().unwrap(), "bin/tests"),
        (PathBuf::from(env!("CARGO_BIN_EXE_plyfs")), "bin/plyfs"),
    ] {
        isolation.binds.push((path(&from), path(&scratch.join(to))));
    }
    let (told, tell) = pipe_with(PipeFlags::CLOEXEC).unwrap();
    let (wait, go) = pipe_with(PipeFlags::CLOEXEC).unwrap();
    let (mut told, mut go) = (File::from(told), File::from(go));
    isolation.users = Users::Given { tell: tell.as_raw_fd(), wait: wait.as_raw_fd() };
    sys::isolate(&mut command, isolation);
    // The maps are written by somebody outside, while `spawn` waits for the program to start.
    let mapper = std::thread::spawn(move || {
        let mut pid = [0; 4];
        told.read_exact(&mut pid).unwrap();
        let pid = i32::from_ne_bytes(pid);
        for map in ["uid_map", "gid_map"] {
            fs::write(format!("/proc/{pid}/{map}"), format!("0 {FIRST_ID} {IDS}")).unwrap();
        }
        go.write_all(&[1]).unwrap();
    });
    let child = command.spawn();
    drop((tell, wait));
    mapper.join().expect("the id maps of a rootless test");
    child.expect("a test in its own namespaces")
}

fn watched(child: &mut Child) -> (ExitStatus, bool) {
    let start = Instant::now();
    while start.elapsed() < LIMIT {
        if let Some(status) = child.try_wait().unwrap() {
            return (status, false);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    abort_mounts(child.id());
    let _ = child.kill();
    let _ = child.wait();
    (ExitStatus::from_raw(9), true)
}

/// Aborts the FUSE connections of the mount namespace of `pid`: a daemon that waits for itself
/// cannot even be killed.
fn abort_mounts(pid: u32) {
    let text = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap_or_default();
    let own = tempfile::tempdir().unwrap();
    let flags = rustix::mount::MountFlags::empty();
    let mounted = rustix::mount::mount("fusectl", own.path(), "fusectl", flags, None);
    let connections =
        if mounted.is_ok() { own.path() } else { Path::new("/sys/fs/fuse/connections") };
    for line in text.lines().filter(|line| line.contains(" - fuse")) {
        let device = line.split(' ').nth(2).and_then(|x| x.strip_prefix("0:"));
        if let Some(minor) = device {
            let _ = fs::write(connections.join(minor).join("abort"), "1");
        }
    }
    if mounted.is_ok() {
        let _ = rustix::mount::unmount(own.path(), rustix::mount::UnmountFlags::DETACH);
    }
}

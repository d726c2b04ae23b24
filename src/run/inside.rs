//! Init and the command: the two processes that live in the view.
//!
//! Init is process 1 of its pid namespace. It arranges the view in a mount namespace of its own, so
//! that nothing it mounts or pivots is seen by the keeper or the server, and it ends when the
//! command ends.

use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::keeper::Job;
use super::notes::Note;
use super::{FAILED, NOT_EXECUTABLE, NOT_FOUND, Spec};
use crate::error::{Context, Error, Result};
use crate::sys::{self, Child};

/// The kernel's own filesystems. A view that is to be a root has a directory for each.
pub(super) const KERNEL_TREES: [&str; 3] = ["proc", "dev", "sys"];

/// Arranges the view, starts the command and waits for it. The status is the command's.
pub(super) fn init(job: &Job<'_>) -> u8 {
    let attempt = || {
        // Whoever kills the keeper kills everything in here.
        sys::exit_with_parent(sys::SIGKILL).on("prctl", "")?;
        arrange(job)?;
        let command = sys::fork(|| execute(job)).on("fork", "")?;
        wait(&command).on("wait", "")
    };
    attempt().unwrap_or_else(|error| {
        job.notes.write(&[Note::Failure(error)]);
        FAILED
    })
}

/// Reaps whatever ends until it is the command; passes signals on.
fn wait(command: &Child) -> io::Result<u8> {
    loop {
        while let Some((pid, ended)) = sys::reap()? {
            if pid == command.id() {
                return Ok(ended.code());
            }
        }
        let received = sys::next_signal()?;
        if received.signal != sys::SIGCHLD && !received.from_kernel {
            command.signal(received.signal)?;
        }
    }
}

fn arrange(job: &Job<'_>) -> Result<()> {
    let start = std::env::current_dir().ok();
    let named = job.spec.hostname.as_deref();
    let names = if named.is_some() { sys::CLONE_NEWUTS } else { 0 };
    sys::unshare(sys::CLONE_NEWNS | names).on("unshare", "mount namespace")?;
    if let Some(name) = named {
        sys::set_hostname(name).on("sethostname", name)?;
    }
    let merged = &job.state.merged;
    if job.as_root {
        furnish(merged, &job.state.directory)?;
        sys::pivot_root(merged).on("pivot_root", merged)?;
        return enter_directory(job.spec, start.as_deref(), Path::new("/"));
    }
    let top = job.lowers.first().map_or(Path::new("/"), PathBuf::as_path);
    sys::bind(merged, top).on("bind", top)?;
    cover(&job.state.directory);
    show_processes(Path::new("/proc"))?;
    enter_directory(job.spec, start.as_deref(), top)
}

/// Puts the kernel's own filesystems into a view that is to be the root.
fn furnish(view: &Path, state: &Path) -> Result<()> {
    for name in KERNEL_TREES {
        let place = view.join(name);
        if name == "proc" {
            show_processes(&place)?;
            continue;
        }
        let host = Path::new("/").join(name);
        sys::bind_recursive(&host, &place).on("bind", &host)?;
        // Root could remove the host's device nodes and change its settings through them.
        protect(&place, name == "sys");
    }
    // Shared memory is files too: what the command leaves there is not for the host.
    let memory = view.join("dev/shm");
    if is_directory(&memory) {
        sys::mount_scratch(&memory).on("mount", &memory)?;
    }
    if let Ok(inside) = state.strip_prefix("/") {
        cover(&view.join(inside));
    }
    Ok(())
}

fn is_directory(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|found| found.is_dir())
}

fn protect(place: &Path, deeply: bool) {
    if let Err(error) = sys::make_read_only(place, deeply) {
        log::debug!("make {} read-only: {error}", place.display());
    }
}

/// The processes of our pid namespace; where part of the host's table is hidden from us, the kernel
/// refuses a fresh one, and the host's has to do.
fn show_processes(place: &Path) -> Result<()> {
    match sys::mount_proc(place) {
        Ok(()) => Ok(()),
        Err(error) if sys::is(&error, sys::EPERM) => {
            sys::bind_recursive(Path::new("/proc"), place).on("bind", "/proc")
        }
        Err(error) => Err(Error::io("mount", place, error)),
    }
}

/// Hides the state directory from the command: it would see its own changes twice.
fn cover(place: &Path) {
    if is_directory(place) {
        if let Err(error) = sys::mount_empty(place) {
            log::debug!("cover {}: {error}", place.display());
        }
    }
}

/// Goes where the command is to start: the named directory, else the caller's if the view has it,
/// else the top of the view.
fn enter_directory(spec: &Spec, start: Option<&Path>, top: &Path) -> Result<()> {
    if let Some(directory) = &spec.directory {
        let directory = top.join(directory);
        return std::env::set_current_dir(&directory).on("chdir", &directory);
    }
    match start.filter(|start| start.starts_with(top)) {
        Some(start) if std::env::set_current_dir(start).is_ok() => Ok(()),
        _ => std::env::set_current_dir(top).on("chdir", top),
    }
}

/// Becomes the command; returns only when that fails.
fn execute(job: &Job<'_>) -> u8 {
    let Some((program, arguments)) = job.spec.command.split_first() else {
        return FAILED;
    };
    let mut command = Command::new(program);
    command.args(arguments);
    command.envs(job.spec.env.iter().map(|(name, value)| (name, value)));
    if let Err(error) = sys::unblock_signals() {
        log::debug!("unblock signals: {error}");
    }
    let error = command.exec();
    let name = Path::new(program).display().to_string();
    let (status, failure) = match error.kind() {
        io::ErrorKind::NotFound => (NOT_FOUND, Error::NotFound { kind: "command", name }),
        _ => (NOT_EXECUTABLE, Error::io("execute", program, error)),
    };
    job.notes.write(&[Note::Failure(failure)]);
    status
}

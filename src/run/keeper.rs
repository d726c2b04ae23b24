//! The keeper: owns the namespaces in which the server and the command live.
//!
//! It enters a user namespace only when the mount needs one. Once the server is started, every way
//! out of here unmounts, waits for the server and removes the state directory.

use std::path::{Path, PathBuf};
use std::time::Duration;

use plyfs_fuse::Options;
use plyfs_fuse::options::MountFlags;

use super::notes::{Note, Notes};
use super::state::State;
use super::users::{Door, Ids};
use super::{FAILED, Spec, inside};
use crate::error::{Context, Error, Result};
use crate::layer::changes;
use crate::mount::serve::{self, Lifetime};
use crate::sys::{self, Child};

/// How long the server may take to write back and end after its mount is gone.
const SERVER_ENDS_WITHIN: Duration = Duration::from_secs(60);

/// How long a server that does not end may take to obey a signal.
const SERVER_OBEYS_WITHIN: Duration = Duration::from_secs(5);

/// How often an unmount is tried while the ended command's namespace is still being taken down.
const UNMOUNTS: u32 = 100;
const UNMOUNT_AGAIN: Duration = Duration::from_millis(10);

/// What the keeper was started for.
pub(super) struct Job<'a> {
    pub(super) spec: &'a Spec,
    /// Resolved, top first.
    pub(super) lowers: &'a [PathBuf],
    /// Whether the view becomes the command's root.
    pub(super) as_root: bool,
    pub(super) state: &'a State,
    pub(super) notes: &'a Notes,
    /// The process id of the caller; another parent means that the caller has died.
    pub(super) caller: i32,
}

/// Runs the job and returns the status to end with.
pub(super) fn run(job: &Job<'_>, door: Door) -> u8 {
    let result = attempt(job, door);
    job.state.clean(job.spec.keep && result.is_ok());
    result.unwrap_or_else(|error| {
        job.notes.write(&[Note::Failure(error)]);
        FAILED
    })
}

fn attempt(job: &Job<'_>, door: Door) -> Result<u8> {
    let ids = enter_namespaces(door)?;
    // After the namespaces: a change of capabilities forgets the signal.
    sys::exit_with_parent(sys::SIGTERM).on("prctl", "")?;
    if sys::parent_id() != job.caller {
        return Err(Error::io("run", "", std::io::Error::other("the caller has ended")));
    }
    let mut lowers = job.lowers.to_vec();
    if job.as_root && !has_all(&lowers, &inside::KERNEL_TREES) {
        lowers.push(job.state.make_base(&inside::KERNEL_TREES)?);
    }
    let server = serve::start(options(job, lowers, ids), &job.state.merged, Lifetime::Bound)?;
    let status = run_command(job, &server);
    close(&job.state.merged, &server);
    let status = status?;
    list_changes(job);
    Ok(status)
}

/// A mount namespace of our own; inside a user namespace of our own unless we may do without.
fn enter_namespaces(door: Door) -> Result<Ids> {
    let alone = sys::is_root() && sys::unshare(sys::CLONE_NEWNS).is_ok();
    let ids = if alone {
        door.pass()?
    } else {
        let ids = door.enter()?;
        sys::unshare(sys::CLONE_NEWNS).on("unshare", "mount namespace")?;
        ids
    };
    sys::make_private().on("make private", "/")?;
    Ok(ids)
}

fn has_all(lowers: &[PathBuf], names: &[&str]) -> bool {
    names.iter().all(|name| lowers.iter().any(|lower| lower.join(name).is_dir()))
}

fn options(job: &Job<'_>, lowers: Vec<PathBuf>, ids: Ids) -> Options {
    let throwaway = job.spec.upper.is_none() && !job.spec.keep;
    // With one id the kernel lets nobody change what belongs to others, not even in our upper: so all
    // is shown as belonging to that one.
    let squash = (ids == Ids::One).then_some(0);
    let plyfs = || Some("plyfs".to_owned());
    Options {
        lowers,
        upper: Some(job.state.upper.clone()),
        work: Some(job.state.work.clone()),
        squash_uid: squash,
        squash_gid: squash,
        // The host's own files have owners without a name in a user namespace. They show as root's:
        // as anybody else's, half the programs refuse them.
        squash_unmapped: (!plyfs_fuse::sys::in_initial_user_namespace()).then_some(0),
        // What is thrown away at the end needs no place on disk before.
        volatile: throwaway,
        mount: MountFlags {
            fsname: plyfs(),
            subtype: plyfs(),
            suid: Some(true),
            dev: Some(true),
            allow_other: Some(true),
            ..MountFlags::default()
        },
        ..Options::default()
    }
}

/// Starts init in a new pid namespace and waits for it. The end of the caller or of the server ends
/// it at once: nobody would take its status, or nothing it does could succeed.
fn run_command(job: &Job<'_>, server: &Child) -> Result<u8> {
    sys::unshare(sys::CLONE_NEWPID).on("unshare", "pid namespace")?;
    let init = sys::fork(|| inside::init(job)).on("fork", "")?;
    let mut served = true;
    loop {
        if let Some(ended) = init.try_wait().on("wait", "")? {
            return if served { Ok(ended.code()) } else { Err(server_died()) };
        }
        let received = sys::next_signal().on("wait", "")?;
        served = served && server.try_wait().on("wait", "")?.is_none();
        if !served || sys::parent_id() != job.caller {
            init.signal(sys::SIGKILL).on("kill", "init")?;
        } else if received.signal != sys::SIGCHLD && !received.from_kernel {
            init.signal(received.signal).on("kill", "init")?;
        }
    }
}

fn server_died() -> Error {
    Error::io("run", "", std::io::Error::other("the server of the view ended before the command"))
}

/// Unmounts and waits until the server has ended, so that upper is complete on return.
fn close(merged: &Path, server: &Child) {
    if let Err(error) = unmount(merged) {
        log::warn!("unmount {}: {error}", merged.display());
    }
    for (limit, then) in [(SERVER_ENDS_WITHIN, sys::SIGTERM), (SERVER_OBEYS_WITHIN, sys::SIGKILL)] {
        match server.wait_for(limit) {
            Ok(Some(_)) => return,
            // It ended before, and has been waited for.
            Err(error) if sys::is(&error, sys::ECHILD) => return,
            Ok(None) => log::warn!("the server does not end: signal {then}"),
            Err(error) => log::warn!("wait for the server: {error}"),
        }
        if let Err(error) = server.signal(then) {
            log::warn!("signal the server: {error}");
        }
    }
    if let Err(error) = server.wait_for(SERVER_OBEYS_WITHIN) {
        log::warn!("wait for the server: {error}");
    }
}

fn unmount(merged: &Path) -> std::io::Result<()> {
    for _ in 0..UNMOUNTS {
        match sys::unmount(merged, false) {
            Err(error) if sys::is(&error, sys::EBUSY) => std::thread::sleep(UNMOUNT_AGAIN),
            // A server that died has taken its mount along.
            Err(error) if sys::is(&error, sys::EINVAL) => return Ok(()),
            result => return result,
        }
    }
    sys::unmount(merged, true)
}

fn list_changes(job: &Job<'_>) {
    let notes = match changes::list(&job.state.upper, job.lowers) {
        Ok(changes) => changes.into_iter().map(Note::Change).collect(),
        Err(error) => vec![Note::Failure(error)],
    };
    job.notes.write(&notes);
}

//! One command in a throwaway writable view of some directories.
//!
//! The exit status is the command's. Nothing stays mounted and nothing of ours stays on disk after
//! it, whichever process is killed. Four processes stand between the caller and the command, each
//! with one reason to exist:
//!
//! - the *caller* stays outside all namespaces: it maps ids into the new user namespace, passes
//!   signals on, and sweeps up should the keeper be killed;
//! - the *keeper* owns the user and mount namespace, in which upper's files have readable owners:
//!   it starts the server, waits, unmounts, lists the changes and removes the state directory;
//! - the *server* answers for the mount until the keeper unmounts it;
//! - *init* is process 1 of a new pid namespace: it makes the view the root, starts the command and
//!   reaps orphans; when it ends, the kernel ends all that the command left running.
//!
//! What the inner processes have to say comes back through one unnamed file (`notes`).

mod inside;
mod keeper;
mod notes;
mod state;
mod users;

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use crate::error::{Context, Error, Result};
use crate::layer::changes::Change;
use crate::sys::{self, Child, Ended};
use keeper::Job;
use notes::{Note, Notes};
use state::State;

/// Our own failure before the command started.
pub const FAILED: u8 = 125;
/// The command was found but could not be executed.
pub const NOT_EXECUTABLE: u8 = 126;
/// The command was not found.
pub const NOT_FOUND: u8 = 127;

/// Found in the lowers of a root filesystem.
const SHELLS: [&str; 2] = ["bin/sh", "usr/bin/sh"];

/// How often the caller tries to remove what a killed keeper left, and how long it waits between.
const SWEEPS: u32 = 25;
const SWEEP_AGAIN: Duration = Duration::from_millis(20);

/// Where the command sees the view.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum View {
    /// As its root when the lowers look like a root filesystem (a shell, or places for the kernel's
    /// own filesystems), in place otherwise.
    #[default]
    Auto,
    /// As its root directory.
    Root,
    /// Over the topmost lower directory, the rest of the host around it.
    Place,
}

/// What to run, and on what.
#[derive(Clone, Debug, Default)]
pub struct Spec {
    /// Directories to stack, top first; they are not changed.
    pub lowers: Vec<PathBuf>,
    /// Where changes go and stay; made when missing. Without one they go to a state directory.
    pub upper: Option<PathBuf>,
    /// Scratch directory on the filesystem of `upper`.
    pub work: Option<PathBuf>,
    /// Keep the state directory's upper.
    pub keep: bool,
    /// The program, searched on PATH inside the view, and its arguments.
    pub command: Vec<OsString>,
    /// Variables added to our own environment.
    pub env: Vec<(OsString, OsString)>,
    /// Directory inside the view to start in; ours without one, `/` where that is missing.
    pub directory: Option<PathBuf>,
    /// Name of the host inside.
    pub hostname: Option<OsString>,
    /// Where the command sees the view.
    pub view: View,
}

/// How it went.
#[derive(Debug)]
pub struct Outcome {
    /// The status to end with.
    pub status: u8,
    /// What the command changed.
    pub changes: Vec<Change>,
    /// Where the changes are kept, if they are.
    pub upper: Option<PathBuf>,
    /// What to tell the user besides, one line each.
    pub warnings: Vec<String>,
    /// Why the command did not start, or why the changes could not be listed.
    pub failure: Option<Error>,
}

/// Runs the command and waits for it. An error means that it was never started. The process must
/// have one thread, since it forks.
pub fn run(spec: &Spec) -> Result<Outcome> {
    let lowers = resolve_lowers(&spec.lowers)?;
    let as_root = match spec.view {
        View::Root => true,
        View::Place => false,
        View::Auto => is_root_filesystem(&lowers),
    };
    let state = State::create(spec, &lowers)?;
    let outcome = supervise(spec, &lowers, as_root, &state);
    sweep(&state, spec.keep && outcome.is_ok());
    let mut outcome = outcome?;
    if spec.upper.is_some() || spec.keep {
        outcome.upper = Some(state.upper.clone());
    }
    Ok(outcome)
}

/// Removes what a keeper that was killed has left. Its server may still be ending, and files of
/// mapped owners yield only to somebody who has those ids too.
fn sweep(state: &State, keep: bool) {
    for _ in 0..SWEEPS {
        if state.is_clean(keep) {
            return;
        }
        state.clean(keep);
        std::thread::sleep(SWEEP_AGAIN);
    }
    if !state.is_clean(keep) {
        if let Err(error) = users::with_mapped_ids(|| state.clean(keep)) {
            log::warn!("remove {}: {error}", state.directory.display());
        }
    }
}

fn resolve_lowers(lowers: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let resolve = |path: &PathBuf| {
        let resolved = path.canonicalize().on("open", path)?;
        if !resolved.is_dir() {
            return Err(Error::invalid(format!("lower '{}'", path.display()), "not a directory"));
        }
        Ok(resolved)
    };
    lowers.iter().map(resolve).collect()
}

fn is_root_filesystem(lowers: &[PathBuf]) -> bool {
    let any = |name: &str| lowers.iter().any(|lower| lower.join(name).symlink_metadata().is_ok());
    SHELLS.into_iter().any(any) || inside::KERNEL_TREES.into_iter().all(any)
}

/// Starts the keeper, gives it its ids, and passes signals on until it ends.
fn supervise(spec: &Spec, lowers: &[PathBuf], as_root: bool, state: &State) -> Result<Outcome> {
    sys::block_signals().on("block signals", "")?;
    let notes = Notes::create()?;
    let job = Job { spec, lowers, as_root, state, notes: &notes, caller: sys::process_id() };
    let keeper = users::fork_with_door(|door| keeper::run(&job, door))?;
    let ended = pass_signals(&keeper).on("wait", "")?;
    sys::unblock_signals().on("unblock signals", "")?;
    outcome(ended, &notes)
}

/// Waits for `child`; signals that were sent to us alone go to it.
fn pass_signals(child: &Child) -> std::io::Result<Ended> {
    loop {
        if let Some(ended) = child.try_wait()? {
            return Ok(ended);
        }
        let received = sys::next_signal()?;
        if received.signal != sys::SIGCHLD && !received.from_kernel {
            child.signal(received.signal)?;
        }
    }
}

fn outcome(ended: Ended, notes: &Notes) -> Result<Outcome> {
    let mut outcome = Outcome {
        status: ended.code(),
        changes: Vec::new(),
        upper: None,
        warnings: Vec::new(),
        failure: None,
    };
    if let Ended::Signal(signal) = ended {
        outcome.warnings.push(format!("the keeper of the view was ended by signal {signal}"));
    }
    for note in notes.read()? {
        match note {
            Note::Change(change) => outcome.changes.push(change),
            Note::Warning(text) => outcome.warnings.push(text),
            Note::Failure(error) => outcome.failure = Some(error),
        }
    }
    Ok(outcome)
}

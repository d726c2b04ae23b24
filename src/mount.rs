//! Mounts: what is mounted where, starting the server of one of ours, its flags, taking one away.
//!
//! The only room that starts a server, remounts or unmounts. A mount that is reported as made answers; a mount
//! that is reported as taken away is gone from the table of mounts.

pub mod count;
mod holder;
mod namespace;
pub mod plan;
mod remount;
pub mod serve;
pub mod table;

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::error::{Context, Error, Result};
use crate::sys;
pub use remount::remount;
use table::MountPoint;

/// How long the server of a mount that is gone may take to write back and end.
const SERVER_ENDS_WITHIN: Duration = Duration::from_secs(10);

/// How long a mount may stay in the table after the call that takes it away.
const GONE_WITHIN: Duration = Duration::from_secs(10);

/// The programs that unmount for an ordinary user, the newer first.
const HELPERS: [&str; 2] = ["fusermount3", "fusermount"];

/// Takes away the plyfs mount at `target`: at once, or (`lazily`) when its last user has gone.
/// Returns when it is no longer in the table of mounts, and (where the system tells who serves it, and
/// unless `lazily`) when its server has ended, so that upper is complete and free for another mount.
pub fn unmount(target: &Path, lazily: bool) -> Result<()> {
    unmount_then(target, lazily, || ())
}

/// The same; `then` is done when the mount is gone from the table, before its server is waited for.
fn unmount_then(target: &Path, lazily: bool, then: impl FnOnce()) -> Result<()> {
    let found = find(target)?;
    if !found.is_ours() {
        let why = format!("holds a mount of type {}, not one of plyfs", found.kind);
        return Err(Error::invalid(format!("'{}'", target.display()), why));
    }
    let server = if lazily { None } else { holder::server(&found) };
    match sys::unmount(&found.target, lazily) {
        Ok(()) => {}
        Err(error) if sys::is(&error, sys::EBUSY) => return Err(busy(target)),
        Err(error) if sys::is(&error, sys::EPERM) => {
            unmount_by_helper(&found.target, target, lazily)?
        }
        Err(error) => return Err(Error::io("unmount", target, error)),
    }
    wait_until_gone(&found)?;
    then();
    match server.map(|server| server.wait_for(SERVER_ENDS_WITHIN)) {
        Some(Ok(false)) => log::debug!("the server of {} still runs", target.display()),
        Some(Err(error)) => log::debug!("wait for the server: {error}"),
        Some(Ok(true)) | None => {}
    }
    Ok(())
}

/// The topmost mount at `target`. The path is not opened, so that a mount whose server has died is
/// found too.
fn find(target: &Path) -> Result<MountPoint> {
    let mounts = table::read()?;
    let absolute = std::path::absolute(target).on("resolve", target)?;
    let resolved = absolute.canonicalize().ok().or_else(|| resolve_parent(&absolute));
    [Some(absolute), resolved]
        .into_iter()
        .flatten()
        .find_map(|path| table::topmost(&mounts, &path))
        .cloned()
        .ok_or_else(|| Error::NotFound { kind: "mount", name: target.display().to_string() })
}

fn resolve_parent(path: &Path) -> Option<PathBuf> {
    Some(path.parent()?.canonicalize().ok()?.join(path.file_name()?))
}

fn busy(target: &Path) -> Error {
    let by = "a process with a file or its working directory there".to_owned();
    Error::InUse { kind: "mount", name: target.display().to_string(), by }
}

/// `given` is the target as the caller named it, for messages.
fn unmount_by_helper(target: &Path, given: &Path, lazily: bool) -> Result<()> {
    for helper in HELPERS {
        let mut command = Command::new(helper);
        command.arg("-u").args(lazily.then_some("-z")).arg("--").arg(target);
        match command.stdin(Stdio::null()).stdout(Stdio::null()).output() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(Error::io("run", helper, error)),
            Ok(output) if output.status.success() => return Ok(()),
            Ok(output) => {
                let text = String::from_utf8_lossy(&output.stderr).trim().to_owned();
                if text.contains("busy") {
                    return Err(busy(given));
                }
                return Err(Error::io("unmount", given, io::Error::other(text)));
            }
        }
    }
    let reason = "only root may, and neither fusermount3 nor fusermount is installed";
    Err(Error::unsupported(format!("unmount {}", given.display()), reason))
}

fn wait_until_gone(mount: &MountPoint) -> Result<()> {
    let start = Instant::now();
    while table::read()?.iter().any(|other| other.id == mount.id && other.target == mount.target) {
        if start.elapsed() > GONE_WITHIN {
            let still = io::Error::other("still in the table of mounts");
            return Err(Error::io("unmount", &mount.target, still));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

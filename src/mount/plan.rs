//! A mount as data, and performing it.

mod ids;
mod overlay;

use std::ffi::OsString;
use std::fs::File;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use plyfs_fuse::Options;

use super::serve::{self, Lifetime};
use super::{find, table, wait_until_gone};
use crate::error::{Context, Error, Result};
use crate::sys::{self, Ids, change};
pub use ids::try_ids;
pub use overlay::{Attempt, trial};

/// The longest single word of a command line (`MAX_ARG_STRLEN`, linux/binfmts.h), its zero byte counted.
const WORD_LIMIT: usize = 128 * 1024;

/// Why root is refused.
pub(crate) const MAY_NOT_MOUNT: &str = "root may not mount here: it lacks CAP_SYS_ADMIN, or the mounts belong to another user namespace";

/// What is mounted, how and where. Whoever performs it makes the target and, when it is taken away, removes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Who shows it.
    pub kind: Kind,
    /// The directories, top first, that are merged.
    pub lowers: Vec<PathBuf>,
    /// Where changes go, and the scratch directory beside it; a mount without is read-only.
    pub upper: Option<(PathBuf, PathBuf)>,
    /// Options of the filesystem, as `-o` takes them, in order.
    pub options: Vec<String>,
    /// The ids that the lower directories are seen with, in the place of those on disk. What goes to the upper one is stored as
    /// it is seen.
    pub ids: Ids,
    /// Where it is seen.
    pub target: PathBuf,
}

impl Mount {
    /// Shows a directory at the target too, read-only.
    pub fn bind(dir: PathBuf, ids: &Ids, target: PathBuf) -> Mount {
        let (kind, lowers, options, ids) = (Kind::Bind, vec![dir], Vec::new(), ids.clone());
        Mount { kind, lowers, upper: None, options, ids, target }
    }
}

/// Who shows a mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The kernel's overlay.
    Overlay,
    /// Our own, over FUSE.
    Fuse,
    /// Nobody: one directory is seen at the target too, read-only.
    Bind,
    /// The same, where it can be changed: what is written is stored with the ids on disk.
    BindWritable,
}

/// Which process serves a mount of our own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Server {
    /// A copy of this one, which has to have a single thread.
    #[default]
    Fork,
    /// A new one, of the plyfs program at this path.
    Program(PathBuf),
}

/// A mount that was made, which goes with this value unless it is kept.
#[derive(Debug)]
pub struct Mounted {
    target: PathBuf,
    kept: bool,
}

impl Mounted {
    /// Where it is.
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// Leaves it to stay when this process ends.
    pub fn keep(mut self) -> PathBuf {
        self.kept = true;
        std::mem::take(&mut self.target)
    }

    /// Takes it away and removes its directory.
    pub fn unmount(mut self) -> Result<()> {
        self.kept = true;
        take_away(&self.target, false)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if !self.kept {
            if let Err(error) = take_away(&self.target, true) {
                log::warn!("{error}");
            }
        }
    }
}

/// Makes the mount's target and mounts there. It answers when this returns; after an error nothing is left.
pub fn perform(mount: &Mount, server: &Server) -> Result<Mounted> {
    perform_under(mount, server, None)
}

/// The same under a lock, which a program that is run to mount has too: when we are killed it goes on, and ends the lock.
pub(super) fn perform_under(
    mount: &Mount,
    server: &Server,
    lock: Option<&File>,
) -> Result<Mounted> {
    if mount.lowers.is_empty() {
        return Err(Error::invalid("mount", "has no lower directory"));
    }
    if table::topmost(&table::read()?, &mount.target).is_some() {
        let name = mount.target.display().to_string();
        return Err(Error::InUse { kind: "mountpoint", name, by: "another mount".to_owned() });
    }
    let made = make_target(&mount.target)?;
    let result = match mount.kind {
        Kind::Overlay => overlay::perform(mount),
        Kind::Fuse => serve_fuse(mount, server, lock),
        Kind::Bind | Kind::BindWritable => bind(mount),
    };
    if let Err(error) = result {
        if made {
            remove_target(&mount.target);
        }
        return Err(error);
    }
    Ok(Mounted { target: mount.target.clone(), kept: false })
}

/// Takes away the mount at `target`, whoever serves it, at once or (`lazily`) when its last user has gone, and removes the
/// directory it was at; that drops copies of it in other mount namespaces too. No mount there is no error.
pub fn take_away(target: &Path, lazily: bool) -> Result<()> {
    let found = match find(target) {
        Err(Error::NotFound { .. }) => {
            remove_target(target);
            return Ok(());
        }
        other => other?,
    };
    if found.is_ours() {
        // Copies of it in other namespaces keep the server until the directory has gone.
        return super::unmount_then(target, lazily, || remove_target(target));
    } else {
        match sys::unmount(&found.target, lazily) {
            Ok(()) => {
                wait_until_gone(&found)?;
                if let Some(marks) = overlay::marks(&found).filter(|_| !lazily) {
                    overlay::settle(&marks);
                }
            }
            Err(error) if sys::is(&error, sys::EBUSY) => return Err(super::busy(target)),
            Err(error) => return Err(Error::io("unmount", target, error)),
        }
    }
    remove_target(target);
    Ok(())
}

/// Puts into the upper directory of a mount of ours, which nobody has mounted, what only its work directory tells: the end of
/// its server does it too, unless that was killed.
pub fn settle(mount: &Mount) -> Result<()> {
    Ok(plyfs_fuse::settle(&fuse_options(mount)?)?)
}

/// What has to be settled after the mount at `target` has been taken away, for [`after_crash`].
pub(super) fn unsettled(target: &Path) -> Option<PathBuf> {
    overlay::marks(&find(target).ok()?)
}

/// Ends what a crash left of taking a mount away: it is gone, and what was to be settled may not be. Nothing of it may have
/// been lost since: the machine is up as it was.
pub(super) fn after_crash(target: &Path, unsettled: Option<&Path>) {
    if let Some(marks) = unsettled.filter(|marks| marks.is_dir()) {
        overlay::settle(marks);
    }
    remove_target(target);
}

/// Whether this call made it.
fn make_target(target: &Path) -> Result<bool> {
    match change::make_dir(target, 0o700) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(Error::io("create", target, error)),
    }
}

/// Removes a directory where nothing is mounted any more.
fn remove_target(target: &Path) {
    match change::remove_dir(target) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            log::debug!("remove {}: {error}", target.display());
        }
        _ => {}
    }
}

fn bind(mount: &Mount) -> Result<()> {
    let [source] = mount.lowers.as_slice() else {
        return Err(Error::invalid("bind mount", "shows one directory"));
    };
    let read_only = mount.kind == Kind::Bind;
    if mount.ids.is_none() && read_only {
        return sys::bind_read_only(source, &mount.target).on("mount", &mount.target);
    }
    let shown = ids::directory(source, &mount.ids, read_only)?;
    shown.attach(&mount.target).on("mount", &mount.target)
}

/// The directory that a layer is seen as, where the mount that was to show it read-only is one that nobody may make here.
pub fn unmountable(mount: &Mount, error: &Error) -> Option<PathBuf> {
    // The last one is said by security modules.
    let refused = [sys::EPERM, sys::ENOSYS, sys::EACCES];
    let own = mount.lowers.first().filter(|_| mount.kind == Kind::Bind && mount.ids.is_none())?;
    match error {
        Error::Io { source, .. } if refused.iter().any(|code| sys::is(source, *code)) => {
            Some(own.clone())
        }
        _ => None,
    }
}

fn serve_fuse(mount: &Mount, server: &Server, lock: Option<&File>) -> Result<()> {
    let options = fuse_options(mount)?;
    if let (Some(lower), false) = (mount.lowers.first(), mount.ids.is_none()) {
        // The server can only say that it ended.
        try_ids(lower, &mount.ids)?;
    }
    match server {
        // The server outlives us: nobody waits for it.
        Server::Fork => serve::start(options, &mount.target, Lifetime::Detached).map(drop),
        Server::Program(program) => run(program, options, &mount.target, lock),
    }
}

fn fuse_options(mount: &Mount) -> Result<Options> {
    let wrong = |error: plyfs_fuse::options::OptionError| {
        Error::invalid(format!("option '{}'", error.option), error.why)
    };
    let mut options = Options::parse(OsString::from(mount.options.join(","))).map_err(wrong)?;
    if let Some(warning) = options.warnings.first() {
        return Err(Error::invalid("mount options", warning.clone()));
    }
    options.lowers.clone_from(&mount.lowers);
    (options.upper, options.work) = mount.upper.clone().unzip();
    options.lower_uid_map.clone_from(&mount.ids.users);
    options.lower_gid_map.clone_from(&mount.ids.groups);
    options.mount.fsname.get_or_insert_with(|| "plyfs".to_owned());
    options.mount.subtype.get_or_insert_with(|| "plyfs".to_owned());
    options.validate().map_err(wrong)?;
    Ok(options)
}

/// Lets a new process mount and serve; it ends when the mount answers, and its server stays.
fn run(program: &Path, mut options: Options, target: &Path, lock: Option<&File>) -> Result<()> {
    // Names relative to the directory that holds all layers keep the list short.
    let base = target.ancestors().nth(2).unwrap_or(Path::new("/"));
    let layers = options.lowers.iter_mut().chain(&mut options.upper).chain(&mut options.work);
    for path in layers {
        if let Ok(short) = path.strip_prefix(base) {
            *path = short.to_path_buf();
        }
    }
    let list = options.to_string();
    if list.len() >= WORD_LIMIT {
        let layers = options.lowers.len();
        let why = "their names do not fit on a command line; mount from a process with one thread";
        return Err(Error::unsupported(format!("mount of {layers} layers"), why));
    }
    let held = lock.map(File::try_clone).transpose().on("run", program)?;
    change::point().on("run", program)?;
    let output = Command::new(program)
        .args(["mount", "-o", &list, "--"])
        .arg(target)
        .current_dir(base)
        // Its server closes that before it answers.
        .stdin(held.map_or_else(Stdio::null, Stdio::from))
        .stdout(Stdio::null())
        .output()
        .on("run", program)?;
    if output.status.success() {
        return Ok(());
    }
    let text = said(&String::from_utf8_lossy(&output.stderr), target);
    Err(Error::io("mount", target, std::io::Error::other(text)))
}

/// The error among the lines of a program that was to mount, without what its reader says too.
fn said(lines: &str, target: &Path) -> String {
    let error = |line: &'_ str| {
        let text = line.strip_prefix("plyfs: ")?;
        (!text.starts_with("warning: ")).then(|| text.to_owned())
    };
    let text = lines.lines().rev().find_map(error).unwrap_or_else(|| lines.trim().to_owned());
    let same = format!("mount {}: ", target.display());
    text.strip_prefix(&same).map_or_else(|| text.clone(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_of_another_program_is_told_once() {
        let target = Path::new("/a b/merged");
        for (lines, text) in [
            ("plyfs: mount /a b/merged: refused\n", "refused"),
            ("plyfs: warning: x\nplyfs: open /l: no such\nhint: look\n", "open /l: no such"),
            ("[WARN] w\nplyfs: option 'x': unknown\n", "option 'x': unknown"),
            ("killed by a stranger\n", "killed by a stranger"),
            ("", ""),
        ] {
            assert_eq!(said(lines, target), text);
        }
    }
}

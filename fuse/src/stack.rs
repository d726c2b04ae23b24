//! The opened layers, top first, and what the upper filesystem can do.
//!
//! Lower layers are private copies of the mount tree, taken before our own mount appears, so no
//! path below one leads back into us, and are never written. Upper and work are on one filesystem,
//! locked against a second mount, and probed by doing.

mod probe;

use std::collections::HashSet;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::error::{Context, Error, Result};
use crate::number::Numbers;
use crate::options::{Namespace, Options};
use crate::origin::Origin;
use crate::sys;
use crate::whiteout::{Dialect, Space, Style};
use crate::workdir::{self, Workdir};
use probe::{Feature, no_room, probe};

/// One lower layer.
#[derive(Debug)]
pub(crate) struct Layer {
    /// Its root.
    pub root: OwnedFd,
}

/// The writable layer.
#[derive(Debug)]
pub(crate) struct Upper {
    /// Its root.
    pub root: Arc<OwnedFd>,
    /// Its path when it was opened, for messages.
    pub path: PathBuf,
    /// Its work directory.
    pub work: Workdir,
    /// What is written there.
    pub dialect: Dialect,
    /// Nothing is flushed, and the work directory says so.
    pub volatile: bool,
    rename_whiteout: Feature,
    exchange: Feature,
    /// A device whiteout that is in use, of which others are further names.
    whiteout: Mutex<Option<Arc<OwnedFd>>>,
}

impl Upper {
    /// Whether `RENAME_WHITEOUT` leaves a device whiteout.
    pub(crate) fn can_rename_whiteout(&self) -> io::Result<bool> {
        self.rename_whiteout.get(&self.work)
    }

    /// Whether `RENAME_EXCHANGE` works.
    pub(crate) fn can_exchange(&self) -> io::Result<bool> {
        self.exchange.get(&self.work)
    }

    /// What [`Upper::write_whiteout`] gives another name to.
    pub(crate) fn shared_whiteout(&self) -> Option<sys::Stat> {
        let shared = self.whiteout.lock().clone();
        shared.and_then(|shared| sys::fstat(&*shared).ok())
    }

    /// Deletes a name that nothing in an upper directory has. A device whiteout is one more name of
    /// the last one where that can be had, which spares an inode each, as the kernel's overlay does.
    pub(crate) fn write_whiteout(&self, dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
        if self.dialect.style != Style::Device {
            return self.dialect.write(dir, name);
        }
        let known = self.whiteout.lock().clone();
        // Its last name may have gone, or it may have as many as it can have.
        if known.is_some_and(|known| sys::link_fd(&*known, dir, name).is_ok()) {
            return Ok(());
        }
        self.dialect.write(dir, name)?;
        let made = sys::open(dir, name, sys::O_PATH).ok();
        *self.whiteout.lock() = made.map(Arc::new);
        Ok(())
    }
}

/// All layers.
#[derive(Debug)]
pub(crate) struct Stack {
    /// The writable layer; `None` for a read-only mount.
    pub upper: Option<Upper>,
    /// The lower layers, top first, the data-only ones last.
    pub layers: Vec<Layer>,
    /// How many of them are seen; the others only give data to metacopies.
    pub visible: usize,
    /// Directories, by device and inode number, whose tree is seen as it is and not as a copy: a
    /// mount below one would be reached by our own paths.
    pub open_to_mounts: Vec<(u64, u64)>,
    /// Where marks are looked for first.
    pub space: Space,
}

impl Stack {
    /// Opens, locks and probes everything the options name.
    pub(crate) fn open(options: &Options, numbers: &Numbers) -> Result<Stack> {
        if !sys::has_proc() {
            let why = "not found; descriptors are opened again by it: mount -t proc proc /proc";
            return Err(Error::refuse("look for", "/proc/self/fd", why));
        }
        let upper = match (&options.upper, &options.work) {
            (Some(upper), Some(work)) => Some(open_upper(options, upper, work)?),
            _ => None,
        };
        if let Some(upper) = &upper {
            add_filesystem(numbers, upper.root.as_fd()).on("stat upper directory", &upper.path)?;
        }
        let mut open_to_mounts = Vec::new();
        if let Some(upper) = &upper {
            for dir in [upper.root.as_fd(), upper.work.dir()] {
                let stat = sys::fstat(dir).on("stat upper directory", &upper.path)?;
                open_to_mounts.push((stat.dev, stat.ino));
            }
        }
        let owners = owners(options)?;
        let mut layers = Vec::with_capacity(options.lowers.len() + options.data_lowers.len());
        for path in options.lowers.iter().chain(&options.data_lowers) {
            let root = sys::open_root(path).on("open lower directory", path)?;
            add_filesystem(numbers, root.as_fd()).on("stat lower directory", path)?;
            let stat = sys::fstat(&root).on("stat lower directory", path)?;
            let (root, copied) = match &owners {
                Some(owners) => (owners.show(&root, true).on(MAPPED, path)?, true),
                None => detach(root, path),
            };
            if !copied {
                open_to_mounts.push((stat.dev, stat.ino));
            }
            layers.push(Layer { root });
        }
        let space = match &upper {
            Some(upper) => upper.dialect.space,
            None => reading_space(options)?,
        };
        Ok(Stack { upper, layers, visible: options.lowers.len(), open_to_mounts, space })
    }
}

/// What is tried where lower layers have a map of their own.
const MAPPED: &str = "show with other ids the lower directory";

/// The map of the lower layers' ids, if they have one: what is below the upper layer is seen, and copied, with it.
fn owners(options: &Options) -> Result<Option<sys::Owners>> {
    let (users, groups) = (&options.lower_uid_map, &options.lower_gid_map);
    if users.is_empty() && groups.is_empty() {
        return Ok(None);
    }
    let first = options.lowers.first().cloned().unwrap_or_default();
    sys::Owners::new(users, groups).map(Some).on(MAPPED, first)
}

fn add_filesystem(numbers: &Numbers, root: BorrowedFd<'_>) -> io::Result<()> {
    let stat = sys::fstat(root)?;
    let uuid = sys::fs_uuid(root);
    let readable = sys::file_handle(root, OsStr::new("")).is_ok_and(|handle| {
        let origin = Origin { uuid, handle_type: handle.kind, handle: handle.bytes };
        origin.inode_number() == Some(stat.ino)
    });
    numbers.add(stat.dev, uuid, readable);
    Ok(())
}

/// A copy of the mount tree at a layer's root that later mounts do not reach, and true; the root
/// itself where that is not allowed, which is safe as long as the mount point is not below it.
fn detach(root: OwnedFd, path: &Path) -> (OwnedFd, bool) {
    match sys::clone_tree(&root, true) {
        Ok(tree) => (tree, true),
        Err(e) => {
            log::debug!("lower directory {}: used as it is: {e}", path.display());
            (root, false)
        }
    }
}

fn privileged() -> bool {
    sys::effective_ids().0 == 0 && sys::in_initial_user_namespace()
}

fn reading_space(options: &Options) -> Result<Space> {
    match options.namespace {
        Namespace::Auto | Namespace::Trusted if privileged() => Ok(Space::Trusted),
        Namespace::Trusted => {
            let why = "nouserxattr was given, but only root of the initial user namespace sees \
                       trusted.* attributes; leave nouserxattr out";
            let lower = options.lowers.first().cloned().unwrap_or_default();
            Err(Error::refuse("mount", lower, why))
        }
        Namespace::Auto | Namespace::User => Ok(Space::User),
    }
}

fn open_upper(options: &Options, path: &Path, work_path: &Path) -> Result<Upper> {
    let root = sys::open_root(path).on("open upper directory", path)?;
    let work_root = sys::open_root(work_path).on("open work directory", work_path)?;
    check_places(path, work_path)?;
    check_overlap(options, [(path, &root), (work_path, &work_root)])?;
    let (a, b) =
        (sys::fstat(&root).on("stat", path)?, sys::fstat(&work_root).on("stat", work_path)?);
    if a.dev != b.dev {
        let why = "not on the filesystem of the upper directory; both must be on one";
        return Err(Error::refuse("open work directory", work_path, why));
    }
    take((&root, path), &work_root, "upper directory")?;
    take((&work_root, work_path), &work_root, "work directory")?;
    let work = Workdir::open(work_root, work_path)?;
    check_one_mount(&root, &work, path, work_path)?;
    let probe = probe(&work, options, (path, work_path))?;
    let volatile = options.volatile && mark_volatile(&work)?;
    Ok(Upper {
        root: Arc::new(root),
        path: path.to_path_buf(),
        work,
        dialect: probe.dialect,
        volatile,
        rename_whiteout: probe.rename_whiteout,
        exchange: probe.exchange,
        whiteout: Mutex::default(),
    })
}

/// False when there is no room for the mark: what no later mount would be warned of is not done.
fn mark_volatile(work: &Workdir) -> Result<bool> {
    match work.mark_volatile() {
        Err(e) if no_room(&e.source) => {
            log::warn!("{e}; mounted without volatile");
            Ok(false)
        }
        other => other.map(|()| true),
    }
}

fn check_places(upper: &Path, work: &Path) -> Result<()> {
    let upper = upper.canonicalize().on("open upper directory", upper)?;
    let work = work.canonicalize().on("open work directory", work)?;
    if upper.starts_with(&work) || work.starts_with(&upper) {
        let why = "upper and work directory must not be inside each other; give each its own";
        return Err(Error::refuse("mount", work, why));
    }
    Ok(())
}

/// A lower directory that is the upper or the work directory, or inside, would change under its reader;
/// the kernel's overlay refuses it too. An upper directory inside a lower one is fine.
fn check_overlap(options: &Options, changing: [(&Path, &OwnedFd); 2]) -> Result<()> {
    let mut seen = HashSet::new();
    for lower in options.lowers.iter().chain(&options.data_lowers) {
        let place = lower.canonicalize().on("open lower directory", lower)?;
        for above in place.ancestors() {
            if !seen.insert(above.to_path_buf()) {
                break;
            }
            let stat = sys::open_root(above).and_then(sys::fstat).on("stat", above)?;
            for (path, dir) in &changing {
                let other = sys::fstat(dir).on("stat", path)?;
                if (stat.dev, stat.ino) == (other.dev, other.ino) {
                    let why = format!("is, or is inside, {}, which is written to", path.display());
                    return Err(Error::refuse("open lower directory", lower, why));
                }
            }
        }
    }
    Ok(())
}

/// Objects move from work to upper by rename, which does not cross mounts even of one filesystem.
fn check_one_mount(root: &OwnedFd, work: &Workdir, upper: &Path, work_path: &Path) -> Result<()> {
    // The kernel looks at the mounts before it finds that there is nothing to rename.
    let missing = OsStr::new("#plyfs-none");
    match sys::rename(work.dir(), missing, root, missing, 0) {
        Err(e) if sys::errno(&e) == sys::EXDEV => {
            let why = "not on the mount of the upper directory; both must be on one";
            Err(Error::refuse("open work directory", work_path, why))
        }
        Err(e) if sys::errno(&e) == sys::EROFS => {
            Err(Error::new("write upper directory", upper, e))
        }
        _ => Ok(()),
    }
}

/// The server of a mount that was taken off just now may not have ended yet; it is waited for this
/// long.
const PATIENCE: Duration = Duration::from_secs(3);

/// In all, while it says that it is ending.
const LONG_PATIENCE: Duration = Duration::from_secs(120);

fn take((dir, path): (&OwnedFd, &Path), work: &OwnedFd, what: &str) -> Result<()> {
    let start = Instant::now();
    let mut until = start + PATIENCE;
    let mut pause = Duration::from_millis(1);
    while Instant::now() < until {
        if sys::lock_dir(dir).on("lock", path)? {
            return Ok(());
        }
        if start.elapsed() < LONG_PATIENCE && workdir::is_settling(work) {
            until = Instant::now() + PATIENCE;
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(100));
    }
    let holder = holder(dir).unwrap_or_else(|| "another process".to_owned());
    let why = format!("{what} is in use by {holder}; unmount that first or use another directory");
    Err(Error::refuse("mount", path, why))
}

/// Who holds the lock of a directory: process id and command. /proc/locks (proc(5)) is one look, but names
/// no filesystem as stat does, and skips lines when locks go while it is read; what processes say of their
/// own descriptors is asked when it does not tell.
fn holder(dir: &OwnedFd) -> Option<String> {
    let end = format!(":{}", sys::fstat(dir).ok()?.ino);
    let of_line = |line: &str| -> Option<u32> {
        let mut words = line.split_whitespace().skip_while(|word| *word != "FLOCK").skip(3);
        let pid = words.next()?.parse().ok()?;
        words.next()?.ends_with(&end).then_some(pid)
    };
    let locks = std::fs::read_to_string("/proc/locks").ok()?;
    // Filesystems number alike: of several locks the one of a process that we can see is meant.
    locks.lines().filter_map(of_line).find_map(named).or_else(|| {
        let processes = std::fs::read_dir("/proc").ok()?;
        let pids = processes.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        pids.filter(|pid| *pid != std::process::id())
            .find(|pid| {
                let infos = std::fs::read_dir(format!("/proc/{pid}/fdinfo"));
                infos.into_iter().flatten().flatten().any(|info| {
                    std::fs::read_to_string(info.path())
                        .is_ok_and(|text| text.lines().any(|line| of_line(line).is_some()))
                })
            })
            .and_then(named)
    })
}

fn named(pid: u32) -> Option<String> {
    let command = std::fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    Some(format!("process {pid} ({})", command.trim()))
}

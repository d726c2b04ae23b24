//! A userspace overlay filesystem.
//!
//! An overlay shows a stack of directories as one tree: read-only *lower* layers, top first, and at
//! most one writable *upper* layer above them. What a name stands for is decided by the topmost
//! layer that has it; directories of the same name merge. What is written goes to the upper layer:
//! a lower object is *copied up* before it changes, a deletion leaves a *whiteout*, a directory that
//! replaces a deleted one is *opaque*. The words and the marks on disk are those of the kernel's
//! overlayfs document, and the kernel's overlay can mount what this crate wrote.
//!
//! [`Overlay`] is the whole filesystem, callable without a mount, a kernel or privilege. [`mount`]
//! puts it behind a FUSE mount; that adapter knows the protocol and nothing else.
//!
//! | room | what it owns |
//! |---|---|
//! | [`options`] | text to options and back |
//! | `stack`, `dirfd` | the opened layers; cached directory descriptors |
//! | `inode`, `number` | the inode table; inode numbers |
//! | `namei`, `redirect`, `metacopy`, `hardlink` | one name through the stack |
//! | `dir`, `rename`, `copy_up` | changes of names; upper twins |
//! | [`quota`] | limits of bytes and inodes |
//! | `file`, `attr`, `readdir`, `xattr` | contents, attributes, listings |
//! | `whiteout`, `origin`, `side`, `workdir` | marks on disk; temporaries |
//! | `owner`, `identity`, `acl` | who owns what |
//! | `server`, `ring`, `session` | the FUSE adapter, its transports and the life of a mount |
//! | `stats` | what serving took |
//! | `sys` | system calls, and all unsafe code |

pub mod acl;
pub mod attr;
mod copy_up;
mod dir;
mod dirfd;
pub mod error;
mod file;
mod hardlink;
mod identity;
pub mod inode;
mod lend;
mod metacopy;
pub mod namei;
mod number;
pub mod options;
pub mod origin;
pub mod owner;
mod place;
pub mod quota;
pub mod readdir;
mod redirect;
mod rename;
mod ring;
mod server;
mod session;
mod side;
mod stack;
mod stats;
#[allow(unsafe_code)]
pub mod sys;
pub mod whiteout;
mod workdir;
mod xattr;

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, OnceLock};

use dashmap::DashMap;
use parking_lot::Mutex;

pub use error::{Error, Result};
pub use hardlink::settle;
pub use options::Options;
pub use session::{Session, mount};
pub use side::marks_name;
pub use stats::Counters;

use dirfd::{DirFds, OpenData};
use inode::{Ino, Inode, State, Table};
use number::Numbers;
use owner::Identity;
use quota::Meter;
use readdir::OpenDir;
use stack::Stack;

/// What a log without special wishes has of this crate, in the form of `env_logger`. The FUSE library warns of
/// each request that is answered with "not implemented", which is how the kernel learns not to send it again.
/// An answer that the kernel does not take is to a request that has ended, or to the interrupt of one that came
/// through a ring.
pub const LOG_FILTER: &str = "fuser=error,fuser::reply=off,plyfs_fuse::stats=info";

/// A mounted, or merely opened, overlay. Every method may be called from any thread.
#[derive(Debug)]
pub struct Overlay {
    options: Options,
    stack: Stack,
    identity: Identity,
    numbers: Numbers,
    table: Table,
    dir_fds: DirFds,
    room_below: namei::Room,
    open_data: OpenData,
    open_dirs: DashMap<u64, Arc<OpenDir>>,
    next_handle: AtomicU64,
    /// Held while names move between directories, before any directory's lock.
    moves: Mutex<()>,
    /// User and group that own what this process creates.
    daemon_ids: (u32, u32),
    /// Told of attributes that changed without being asked to.
    watcher: Watcher,
    /// Layers may change behind the mount: nothing is believed for longer than a request.
    live: bool,
    /// The kernel does not tell who has a file open: data is kept open until the inode is forgotten or
    /// the bound is reached.
    handleless: bool,
    stats: stats::Stats,
    /// The limits, where there are any, and what counts against them.
    meter: Option<Arc<Meter>>,
}

type Watch = Box<dyn Fn(Ino) + Send + Sync>;

/// Who is told of changed attributes.
#[derive(Default)]
struct Watcher(OnceLock<Watch>);

impl std::fmt::Debug for Watcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Watcher")
    }
}

impl Overlay {
    /// Opens the layers. The process's umask has to be 0 when objects are created; the server sees
    /// to that, and so does this call.
    pub fn open(options: &Options) -> Result<Overlay> {
        sys::set_umask(0);
        let limit = sys::raise_nofile();
        let numbers = Numbers::new(options.ino32);
        let stack = Stack::open(options, &numbers)?;
        let volatile = stack.upper.as_ref().is_some_and(|upper| upper.volatile);
        // What the layers and the process itself hold open is gone from the limit.
        let held = stack.layers.len() as u64 + 32;
        let free = usize::try_from(limit.saturating_sub(held)).unwrap_or(usize::MAX);
        let directories = (free / 4).min(4096);
        let dir_fds = DirFds::new(directories);
        if let Some(layer) = stack.layers.first() {
            sys::reserve_descriptors(&layer.root, held.saturating_add(directories as u64));
        }
        let root = place::root(&stack).map_err(|e| Error::new("open layers", "/", e))?;
        let root = Arc::new(Inode::new(Ino::ROOT, sys::S_IFDIR, root));
        if let (Some(upper), Some(dir)) = (&stack.upper, root.dir()) {
            dir_fds.keep(&dir.slot, upper.root.clone());
        }
        let meter = Meter::new(options).map(Arc::new);
        let overlay = Overlay {
            identity: Identity::new(options),
            numbers,
            table: Table::new(root, options.nfs_export, meter.clone()),
            dir_fds,
            room_below: namei::Room::default(),
            open_data: OpenData::new((free / 2).min(8192), free / 8 * 5),
            open_dirs: DashMap::new(),
            next_handle: AtomicU64::new(1),
            moves: Mutex::new(()),
            daemon_ids: sys::effective_ids(),
            watcher: Watcher::default(),
            live: options.timeout.is_zero(),
            handleless: options.settled_io() == options::Io::Handleless,
            stats: stats::Stats::new(),
            meter,
            options: Options { volatile, ..options.clone() },
            stack,
        };
        overlay.drop_orphans().map_err(|e| Error::new("clean index", "/", e))?;
        overlay.start_meter().map_err(|e| Error::new("count upper directory", "/", e))?;
        Ok(overlay)
    }

    /// What the overlay was opened with.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// Has `f` called with every object whose attributes change as a side effect, so that whoever
    /// caches them can ask again. The first caller stays.
    pub fn watch(&self, f: impl Fn(Ino) + Send + Sync + 'static) {
        if self.watcher.0.set(Box::new(f)).is_err() {
            log::debug!("attributes are watched already");
        }
    }

    /// Whether a directory, by device and inode number, is one of those that a mount must not be
    /// below: a path of ours would lead into the mount itself.
    pub(crate) fn must_not_hold_mount(&self, place: (u64, u64)) -> bool {
        self.stack.open_to_mounts.contains(&place)
    }

    /// Whether there is no upper layer.
    pub fn is_read_only(&self) -> bool {
        self.stack.upper.is_none()
    }

    /// Inodes the kernel holds.
    pub fn known_inodes(&self) -> usize {
        self.table.count()
    }

    pub(crate) fn inode(&self, ino: Ino, op: &'static str) -> Result<Arc<Inode>> {
        self.table.get(ino).ok_or_else(|| Error::code(op, "", sys::ESTALE))
    }

    pub(crate) fn dir_inode(&self, ino: Ino, op: &'static str) -> Result<Arc<Inode>> {
        let inode = self.inode(ino, op)?;
        if inode.is_dir() { Ok(inode) } else { Err(Error::code(op, inode.path(), sys::ENOTDIR)) }
    }

    /// What has to hold whenever no operation is under way; for tests.
    pub fn check_invariants(&self) -> std::result::Result<(), String> {
        for inode in self.table.all() {
            check_inode(&inode)?;
        }
        if let Some(upper) = &self.stack.upper {
            let left = sys::list(upper.work.dir()).map_err(|e| format!("work directory: {e}"))?;
            if let Some(name) = left.iter().find(|name| name.name != "incompat") {
                return Err(format!("work directory holds {:?}", name.name));
            }
        }
        Ok(())
    }
}

fn check_inode(inode: &Arc<Inode>) -> std::result::Result<(), String> {
    let state: std::result::Result<(), String> = {
        let state = inode.state.lock();
        check_state(inode, &state)
    };
    state
}

fn check_state(inode: &Inode, state: &State) -> std::result::Result<(), String> {
    let number = inode.ino.0;
    if inode.is_dir() && state.links.len() > 1 {
        return Err(format!("directory {number} has {} names", state.links.len()));
    }
    if inode.is_dir() && state.lower.is_some() {
        return Err(format!("directory {number} has a lower file"));
    }
    if state.upper.is_none() && state.lower.is_none() && state.lowers.is_empty() {
        return Err(format!("inode {number} lives nowhere"));
    }
    if inode.opens.load(std::sync::atomic::Ordering::Relaxed) == 0
        && state.data.is_some()
        && !inode.is_dir()
    {
        log::debug!("inode {number} keeps data open while nobody has it open");
    }
    Ok(())
}

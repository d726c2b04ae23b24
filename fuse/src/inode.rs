//! The inode table: numbers, lookup counts, and where each object lives.
//!
//! A number names one object while the kernel holds it; copy-up, rename and remount do not change
//! it. An object's place moves one way only: lower, then upper, then (unlinked) pinned. A lookup
//! count rises before the reply that carries it is sent; when it falls to zero the inode leaves the
//! table and its memory and descriptors are given back.
//!
//! Lock order: `copy_up` (an object before its directory), then `Dir::ns` (ancestors before
//! descendants, otherwise ascending numbers), then a shard of the table, then `state`. `state` and the
//! shards are never held across a system call.

mod limbo;
mod parts;

use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use dashmap::DashMap;
use dashmap::mapref::entry::Entry as Slot_;
use parking_lot::{Mutex, RwLock};
use smallvec::SmallVec;

use limbo::Limbo;
pub use parts::Lowers;
use parts::Rare;

use crate::dirfd::{OpenCount, Slot};
use crate::namei::{Above, Below, Misses};
use crate::quota::Meter;
use crate::sys;

/// An inode number, which is also the kernel's node id.
#[derive(Copy, Clone, Eq, PartialEq, Hash, Ord, PartialOrd, Debug)]
pub struct Ino(pub u64);

impl Ino {
    /// The root (`FUSE_ROOT_ID`, linux/fuse.h).
    pub const ROOT: Ino = Ino(1);
}

/// One directory of one lower layer. Lower layers do not change, so its path is right for good.
#[derive(Debug)]
pub struct LowerDir {
    /// Index of the layer in the stack.
    pub layer: usize,
    /// Path from the layer's root; empty for the root.
    pub path: PathBuf,
    /// The directory may hold xattr whiteouts.
    pub xattr_whiteouts: bool,
    /// The directory may hold objects that were copied up when the layer was an upper one.
    pub impure: bool,
    /// Its cached descriptor.
    pub slot: Arc<Slot>,
}

/// A name in a lower directory.
#[derive(Debug, Clone)]
pub struct LowerFile {
    /// The directory.
    pub dir: Arc<LowerDir>,
    /// The name there; often one allocation with the name it goes by.
    pub name: Arc<OsStr>,
}

impl LowerFile {
    /// The place of data that is nowhere to be found: whoever asks for it gets EIO, never zeros.
    pub fn nowhere() -> LowerFile {
        let dir = LowerDir {
            layer: 0,
            path: PathBuf::new(),
            xattr_whiteouts: false,
            impure: false,
            slot: Arc::default(),
        };
        LowerFile { dir: Arc::new(dir), name: OsStr::new("").into() }
    }

    /// Whether this is [`LowerFile::nowhere`].
    pub fn is_nowhere(&self) -> bool {
        self.name.is_empty()
    }
}

/// A name of an object in the merged tree.
#[derive(Debug, Clone)]
pub struct Link {
    /// The directory that has the name.
    pub parent: Arc<Inode>,
    /// The name.
    pub name: Arc<OsStr>,
}

/// Where an object of the upper layer is reached.
#[derive(Debug, Clone)]
pub enum UpperAt {
    /// At its name, which is the merged one.
    Named,
    /// In the hard-link index, under this name.
    Index(Arc<OsString>),
    /// By a descriptor only: it was unlinked, or never had a name.
    Pinned(Arc<OwnedFd>),
}

/// Data of a file, opened.
#[derive(Debug)]
pub struct Data {
    /// The descriptor.
    pub fd: OwnedFd,
    /// It can be read.
    pub reads: bool,
    /// It can be written; it is the upper object's then.
    pub writes: bool,
    /// Only at its end.
    pub appends: bool,
    /// It counts as open.
    pub count: OpenCount,
}

/// What changes in the life of an inode. Held for moments only.
#[derive(Debug, Default)]
pub struct State {
    /// The known names; a directory has one, an unlinked object none.
    pub links: SmallVec<[Link; 1]>,
    /// Where the upper object is, if there is one.
    pub upper: Option<UpperAt>,
    /// The lower directories that merge into this one, top first.
    pub lowers: Lowers,
    /// The lower file: the object itself while there is no upper one.
    pub lower: Option<LowerFile>,
    /// Where the data is, when the topmost object is a metacopy.
    pub lower_data: Option<Box<LowerFile>>,
    /// Opened data, kept while the file is open.
    pub data: Option<Arc<Data>>,
    /// Links of a hard-link group in the index, counted over the merged tree.
    pub group_nlink: Option<u32>,
    /// The upper directory may hold objects with an origin.
    pub impure: bool,
    /// The upper directory may hold xattr whiteouts.
    pub xattr_whiteouts: bool,
    /// The upper object has an origin.
    pub has_origin: bool,
    /// Whether the directory has a default ACL; `None` until it was asked.
    pub default_acl: Option<bool>,
    /// It was made without a name, so it may get one whenever it has none.
    pub linkable: bool,
    /// The redirect of the upper directory, and where a copy-up led to.
    pub(crate) rare: Option<Box<Rare>>,
}

/// The part only directories have.
#[derive(Debug, Default)]
pub struct Dir {
    /// The namespace lock: shared to look up, exclusive to change names in this directory.
    /// It holds what is known of the names of the upper one.
    pub ns: RwLock<Above>,
    /// The cached descriptor of the upper directory.
    pub slot: Arc<Slot>,
    /// Which lower layers have which names.
    pub(crate) below: OnceLock<Arc<Below>>,
    /// What looking for names in them has cost.
    pub(crate) misses: Misses,
}

/// One object of the merged tree.
#[derive(Debug)]
pub struct Inode {
    /// Its number.
    pub ino: Ino,
    /// Tells it from those that had its number before, in file handles.
    pub generation: u32,
    /// Its type bits; an object never changes its type.
    pub kind: u32,
    /// Open files.
    pub opens: AtomicU32,
    /// It is in the queue of those whose data is open.
    pub queued: AtomicBool,
    /// No set-id bit can be left on the upper file, so a write need not look.
    pub plain_mode: AtomicBool,
    /// Held while the object is copied up.
    pub copy_up: Mutex<()>,
    /// Everything that changes.
    pub state: Mutex<State>,
    dir: Option<Box<Dir>>,
    lookups: AtomicU64,
}

impl Inode {
    /// An inode nobody has looked up yet.
    pub fn new(ino: Ino, kind: u32, state: State) -> Inode {
        Inode {
            ino,
            generation: 0,
            kind,
            opens: AtomicU32::new(0),
            queued: AtomicBool::new(false),
            plain_mode: AtomicBool::new(false),
            copy_up: Mutex::new(()),
            state: Mutex::new(state),
            dir: (kind == sys::S_IFDIR).then(Box::default),
            lookups: AtomicU64::new(0),
        }
    }

    /// Whether this is a directory.
    pub fn is_dir(&self) -> bool {
        self.kind == sys::S_IFDIR
    }

    /// The directory's part; `None` for everything else.
    pub fn dir(&self) -> Option<&Dir> {
        self.dir.as_deref()
    }

    /// Whether there is an upper object.
    pub fn is_upper(&self) -> bool {
        self.state.lock().upper.is_some()
    }

    /// The first known name.
    pub fn link(&self) -> Option<Link> {
        self.state.lock().links.first().cloned()
    }

    /// Whether the object has this name.
    pub fn has_link(&self, parent: &Arc<Inode>, name: &OsStr) -> bool {
        self.state.lock().has_link(parent, name)
    }

    /// Lookups the kernel has not given back.
    pub fn lookups(&self) -> u64 {
        self.lookups.load(Ordering::Relaxed)
    }

    /// The path from the root, for messages; names may change while it is put together.
    pub fn path(self: &Arc<Self>) -> PathBuf {
        let mut names = Vec::new();
        let mut here = self.link();
        while let Some(link) = here {
            names.push(link.name);
            here = link.parent.link();
        }
        let mut path = PathBuf::from("/");
        path.extend(names.iter().rev().map(Path::new));
        path
    }

    /// The directories above this one, nearest first.
    pub fn is_below(self: &Arc<Self>, ancestor: &Arc<Inode>) -> bool {
        let mut here = Some(self.clone());
        while let Some(inode) = here {
            if Arc::ptr_eq(&inode, ancestor) {
                return true;
            }
            here = inode.link().map(|link| link.parent);
        }
        false
    }
}

impl State {
    /// Whether the object has this name.
    pub fn has_link(&self, parent: &Arc<Inode>, name: &OsStr) -> bool {
        self.links.iter().any(|link| Arc::ptr_eq(&link.parent, parent) && *link.name == *name)
    }

    /// Adds a name, once.
    pub fn add_link(&mut self, parent: &Arc<Inode>, name: &OsStr) {
        if !self.has_link(parent, name) {
            let below = self.lower.as_ref().filter(|file| *file.name == *name);
            let name = below.map_or_else(|| name.into(), |file| file.name.clone());
            self.links.push(Link { parent: parent.clone(), name });
        }
    }

    /// Removes a name.
    pub fn drop_link(&mut self, parent: &Arc<Inode>, name: &OsStr) {
        self.links.retain(|link| !(Arc::ptr_eq(&link.parent, parent) && *link.name == *name));
    }

    /// The index name of a hard-link group.
    pub fn index(&self) -> Option<Arc<OsString>> {
        match &self.upper {
            Some(UpperAt::Index(name)) => Some(name.clone()),
            _ => None,
        }
    }
}

/// Every inode the kernel knows of.
#[derive(Debug)]
pub struct Table {
    inodes: DashMap<u64, Arc<Inode>>,
    /// Upper objects, by device and number there, whose inode goes by another number because it was
    /// looked up before it was copied up.
    copies: DashMap<(u64, u64), u64>,
    /// Inodes nobody looked up that were in use when they should have left.
    limbo: Mutex<Limbo>,
    /// The generation of the next inode where those that have a name stay for good, so that file
    /// handles find them; they leave with their last lookup otherwise.
    generations: Option<AtomicU32>,
    /// The most inodes there were since memory was given back.
    most: AtomicUsize,
    /// Forgets until that is looked at again.
    rest: AtomicU32,
    /// Told of objects that go for good.
    meter: Option<Arc<Meter>>,
}

/// Memory of fewer inodes than this is kept for the next ones.
const KEPT: usize = 2048;
/// How many forgets go by between two looks at the number of inodes.
const FORGETS: u32 = 1024;

impl Table {
    /// A table with the root, which never leaves. With `lasting` nothing leaves that has a name.
    pub(crate) fn new(root: Arc<Inode>, lasting: bool, meter: Option<Arc<Meter>>) -> Table {
        let inodes = DashMap::new();
        root.lookups.store(1, Ordering::Relaxed);
        inodes.insert(root.ino.0, root);
        // From anywhere: handles of a server that has ended are not to be taken for ours.
        let generations = lasting.then(|| AtomicU32::new(sys::random_u64() as u32));
        Table {
            inodes,
            copies: DashMap::new(),
            limbo: Mutex::default(),
            generations,
            most: AtomicUsize::new(0),
            rest: AtomicU32::new(0),
            meter,
        }
    }

    /// The upper object `real` (device, number) is this inode's from now on.
    pub fn copied(&self, inode: &Inode, real: (u64, u64)) {
        self.copies.insert(real, inode.ino.0);
        let before = inode.state.lock().set_copy(real);
        if let Some(before) = before.filter(|before| *before != real) {
            self.copies.remove(&before);
        }
    }

    /// The number by which an upper object goes that was copied up while it was known.
    pub fn number_of_copy(&self, dev: u64, ino: u64) -> Option<u64> {
        if self.copies.is_empty() {
            return None;
        }
        self.copies.get(&(dev, ino)).map(|number| *number)
    }

    /// The inode of a number the kernel holds.
    pub fn get(&self, ino: Ino) -> Option<Arc<Inode>> {
        self.inodes.get(&ino.0).map(|entry| entry.clone())
    }

    /// The same with a lookup counted on it.
    pub fn get_counted(&self, ino: Ino) -> Option<Arc<Inode>> {
        // The entry is held meanwhile, so that it does not leave between the two.
        let entry = self.inodes.get(&ino.0)?;
        entry.lookups.fetch_add(1, Ordering::Relaxed);
        Some(entry.clone())
    }

    /// Finds the inode of `number` or puts the one that `make` builds, and counts `lookups` on it.
    /// `same` decides whether an inode found is the object meant; when it is not, the next number
    /// that `next` names is tried.
    pub fn intern(
        &self,
        (mut number, lookups): (u64, u64),
        same: impl Fn(&Arc<Inode>) -> bool,
        next: impl Fn(u64) -> u64,
        make: impl FnOnce(Ino) -> Inode,
    ) -> Arc<Inode> {
        loop {
            match self.inodes.entry(number) {
                Slot_::Occupied(entry) => {
                    if same(entry.get()) {
                        entry.get().lookups.fetch_add(lookups, Ordering::Relaxed);
                        return entry.get().clone();
                    }
                }
                Slot_::Vacant(entry) => {
                    let mut inode = make(Ino(number));
                    let next = self.generations.as_ref();
                    inode.generation = next.map_or(0, |next| next.fetch_add(1, Ordering::Relaxed));
                    let inode = Arc::new(inode);
                    inode.lookups.store(lookups, Ordering::Relaxed);
                    entry.insert(inode.clone());
                    return inode;
                }
            }
            number = next(number);
        }
    }

    /// Counts one lookup more on an inode at hand.
    pub fn count_lookup(&self, inode: &Inode) {
        let _shard = self.inodes.entry(inode.ino.0);
        inode.lookups.fetch_add(1, Ordering::Relaxed);
    }

    /// Gives lookups back. The inode leaves with the last one, unless an inode the kernel still
    /// holds names it as its directory: there is never a second inode for one object, so that its
    /// lock is one, too. True when so many have left that their memory can be given back to the system.
    pub fn forget(&self, ino: Ino, count: u64) -> bool {
        if let Some(inode) = self.get(ino) {
            let had = inode.lookups.load(Ordering::Relaxed);
            let less = inode.lookups.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |had| {
                Some(had.saturating_sub(count))
            });
            debug_assert!(less.is_ok() && had >= count, "more forgets than lookups");
        }
        self.sweep(ino);
        self.sweep_late();
        self.rest.fetch_add(1, Ordering::Relaxed) % FORGETS == FORGETS - 1 && self.has_shrunk()
    }

    /// Removes one that was in use when it should have left, if it is not now.
    pub(crate) fn sweep_late(&self) {
        let late = self.limbo.lock().pop();
        if let Some(ino) = late {
            self.sweep(ino);
        }
    }

    /// Whether most of many inodes have left since this was so before; the table gets smaller then. The
    /// number is looked at while inodes leave, so it is about the last thousand behind.
    fn has_shrunk(&self) -> bool {
        let now = self.count();
        let most = self.most.fetch_max(now, Ordering::Relaxed).max(now);
        let shrunk = most > KEPT.max(4 * now);
        if shrunk {
            self.most.store(now, Ordering::Relaxed);
            self.inodes.shrink_to_fit();
            self.copies.shrink_to_fit();
        }
        shrunk
    }

    fn stays(&self, inode: &Inode) -> bool {
        self.generations.is_some() && !inode.state.lock().links.is_empty()
    }

    /// Removes an inode nobody holds, and the directories that only it held.
    fn sweep(&self, ino: Ino) {
        let mut idle = vec![ino];
        while let Some(ino) = idle.pop() {
            let mut busy = false;
            let op = self.meter.as_ref().map(|meter| meter.begin());
            let gone = self.inodes.remove_if(&ino.0, |_, inode| {
                let unknown = ino != Ino::ROOT && inode.lookups() == 0 && !self.stays(inode);
                busy = unknown && Arc::strong_count(inode) > 1;
                unknown && !busy
            });
            if busy {
                self.limbo.lock().push(ino);
            }
            // The drop happens outside the shard's lock: it may close descriptors.
            if let Some((_, inode)) = gone {
                let state = inode.state.lock();
                idle.extend(state.links.iter().map(|link| link.parent.ino));
                if let Some(copy) = state.copy() {
                    self.copies.remove(&copy);
                }
                if let (Some(op), Some(UpperAt::Pinned(pin))) = (op, &state.upper) {
                    let pin = pin.clone();
                    drop(state);
                    op.forget(&*pin);
                }
            }
        }
    }

    /// Known inodes.
    pub fn count(&self) -> usize {
        self.inodes.len()
    }

    /// Looks at every inode, with the lock of its shard held: no system calls. Nobody holds an inode for
    /// that, so one that is given back meanwhile leaves at once.
    pub fn each(&self, mut look: impl FnMut(&Inode)) {
        self.inodes.iter().for_each(|entry| look(entry.value()));
    }

    /// A copy of the list of all inodes, for checks.
    pub fn all(&self) -> Vec<Arc<Inode>> {
        self.inodes.iter().map(|entry| entry.value().clone()).collect()
    }
}

#[cfg(test)]
mod tests;

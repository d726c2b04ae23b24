//! Temporaries, and the scrub at mount.
//!
//! Everything in `work/work` is ours and is garbage when a mount begins; `work/index` holds the
//! hard-link index and survives. A temporary is removed when its guard drops, unless it was renamed
//! away. The layout is the kernel's, so that a mount by the kernel finds what it expects.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crate::acl;
use crate::error::{Context, Error, Result};
use crate::sys;

/// The scratch folder inside the work directory.
const SCRATCH: &str = "work";
/// The hard-link index inside the work directory.
const INDEX: &str = "index";
/// Marks of objects that bear no xattrs, inside the work directory.
const MARKS: &str = "marks";
/// Says that no name is told by the index alone.
const SETTLED: &str = "settled";
/// Features that a later mount must know of (kernel document "overlayfs", volatile mount).
const INCOMPAT: &str = "incompat";
/// The marker of a volatile mount inside `incompat`.
const VOLATILE: &str = "volatile";

/// The opened work directory.
#[derive(Debug)]
pub(crate) struct Workdir {
    root: OwnedFd,
    scratch: OwnedFd,
    index: OnceLock<OwnedFd>,
    marks: OnceLock<OwnedFd>,
    path: PathBuf,
    next: AtomicU64,
    /// The filesystem makes no files without a name.
    names_all: AtomicBool,
}

/// A name in the scratch folder, removed on drop unless kept.
#[derive(Debug)]
pub(crate) struct Temp<'a> {
    work: &'a Workdir,
    name: OsString,
    kept: bool,
}

fn open_index(root: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    sys::open(root, OsStr::new(INDEX), sys::O_RDONLY | sys::O_DIRECTORY)
}

/// Whether the server that has the lock of a work directory said so with [`Workdir::start_settling`].
pub(crate) fn is_settling(root: &OwnedFd) -> bool {
    open_index(root.as_fd()).is_ok_and(|index| sys::lock_dir(&index).is_ok_and(|free| !free))
}

impl Workdir {
    /// Opens the work directory, refuses one left by a volatile mount that the machine did not
    /// survive, and empties the scratch folder.
    pub(crate) fn open(root: OwnedFd, path: &Path) -> Result<Workdir> {
        let scratch = make_dir(root.as_fd(), SCRATCH).on("open work directory", path)?;
        check_volatile(scratch.as_fd(), path)?;
        disinherit(scratch.as_fd()).on("open work directory", path)?;
        let work = Workdir {
            root,
            scratch,
            index: OnceLock::new(),
            marks: OnceLock::new(),
            path: path.to_path_buf(),
            next: AtomicU64::new(sys::random_u64() & 0xffff_ffff),
            names_all: AtomicBool::new(false),
        };
        work.scrub()?;
        if let Ok(index) =
            sys::open(work.root.as_fd(), OsStr::new(INDEX), sys::O_PATH | sys::O_DIRECTORY)
        {
            work.index.get_or_init(|| index);
            match sys::unlink(work.root.as_fd(), OsStr::new(SETTLED)) {
                Err(e) if sys::errno(&e) != sys::ENOENT => {
                    return Err(Error::new("open work directory", path, e));
                }
                _ => {}
            }
        }
        if let Ok(marks) =
            sys::open(work.root.as_fd(), OsStr::new(MARKS), sys::O_PATH | sys::O_DIRECTORY)
        {
            work.marks.get_or_init(|| marks);
        }
        Ok(work)
    }

    /// The scratch folder.
    pub(crate) fn dir(&self) -> BorrowedFd<'_> {
        self.scratch.as_fd()
    }

    /// The index folder, if any hard-link group was ever copied up.
    pub(crate) fn index(&self) -> Option<BorrowedFd<'_>> {
        self.index.get().map(AsFd::as_fd)
    }

    /// The index folder, made when it is missing.
    pub(crate) fn make_index(&self) -> io::Result<BorrowedFd<'_>> {
        if self.index.get().is_none() {
            let index = make_dir(self.root.as_fd(), INDEX)?;
            self.index.get_or_init(|| index);
        }
        self.index().ok_or_else(|| io::Error::from_raw_os_error(sys::EIO))
    }

    /// Tells who waits for these directories that no mount uses them any more, only `Overlay::settle`, until the
    /// descriptor is closed.
    pub(crate) fn start_settling(&self) -> io::Result<OwnedFd> {
        let index = open_index(self.root.as_fd())?;
        // Whoever looks has the lock for that moment; nobody keeps us from ending by keeping it.
        for _ in 0..100 {
            if sys::lock_dir(&index)? {
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(index)
    }

    /// Says, until the next mount, that the upper directory tells all names.
    pub(crate) fn mark_settled(&self) -> Result<()> {
        match sys::mknod(self.root.as_fd(), OsStr::new(SETTLED), sys::S_IFREG | 0o600, 0) {
            Err(e) if sys::errno(&e) == sys::EEXIST => Ok(()),
            other => other.on("mark settled", &self.path),
        }
    }

    /// The folder of marks, if there are any.
    pub(crate) fn marks(&self) -> Option<BorrowedFd<'_>> {
        self.marks.get().map(AsFd::as_fd)
    }

    /// The folder of marks, made when it is missing.
    pub(crate) fn make_marks(&self) -> io::Result<BorrowedFd<'_>> {
        if self.marks.get().is_none() {
            let marks = make_dir(self.root.as_fd(), MARKS)?;
            self.marks.get_or_init(|| marks);
        }
        self.marks().ok_or_else(|| io::Error::from_raw_os_error(sys::EIO))
    }

    /// A fresh name in the scratch folder.
    pub(crate) fn temp(&self) -> Temp<'_> {
        let n = self.next.fetch_add(1, Ordering::Relaxed);
        Temp { work: self, name: OsString::from(format!("#{n:x}")), kept: false }
    }

    /// A new file without a name, where the filesystem has such.
    pub(crate) fn unnamed(&self) -> io::Result<Option<OwnedFd>> {
        if self.names_all.load(Ordering::Relaxed) {
            return Ok(None);
        }
        match sys::open_unnamed(self.dir(), 0o600) {
            // What open(2) says of a filesystem, or of a kernel, that does not know O_TMPFILE.
            Err(e)
                if matches!(
                    sys::errno(&e),
                    sys::EOPNOTSUPP | sys::EISDIR | sys::ENOENT | sys::EINVAL
                ) =>
            {
                self.names_all.store(true, Ordering::Relaxed);
                Ok(None)
            }
            file => file.map(Some),
        }
    }

    /// Marks the upper directory as one whose data is not flushed.
    pub(crate) fn mark_volatile(&self) -> Result<()> {
        let mark = || -> io::Result<()> {
            let incompat = make_dir(self.scratch.as_fd(), INCOMPAT)?;
            let volatile = make_dir(incompat.as_fd(), VOLATILE)?;
            make_dir(volatile.as_fd(), &boot_mark())?;
            Ok(())
        };
        mark().on("mark volatile", &self.path)
    }

    fn scrub(&self) -> Result<()> {
        let names = sys::list(self.dir()).on("list work directory", &self.path)?;
        for name in names.iter().filter(|name| name.name != OsStr::new(INCOMPAT)) {
            sys::remove_tree(self.dir(), &name.name).on("clean work directory", &self.path)?;
        }
        Ok(())
    }
}

impl Temp<'_> {
    /// The name in the scratch folder.
    pub(crate) fn name(&self) -> &OsStr {
        &self.name
    }

    /// The scratch folder.
    pub(crate) fn dir(&self) -> BorrowedFd<'_> {
        self.work.dir()
    }

    /// The object was renamed away, or is somebody else's now.
    pub(crate) fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Temp<'_> {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        if let Err(e) = sys::remove_tree(self.work.dir(), &self.name) {
            if sys::errno(&e) != sys::ENOENT {
                log::debug!("temporary {:?} stays until the next mount: {e}", self.name);
            }
        }
    }
}

/// What the volatile marker holds while the machine that wrote it is up: data that a mount did not
/// flush is lost only when the machine goes down, so a marker of the current boot harms nobody.
fn boot_mark() -> String {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    format!("boot-{}", id.trim())
}

fn check_volatile(scratch: BorrowedFd<'_>, path: &Path) -> Result<()> {
    let Ok(incompat) = sys::open(scratch, OsStr::new(INCOMPAT), sys::O_PATH | sys::O_DIRECTORY)
    else {
        return Ok(());
    };
    for name in sys::list(&incompat).on("list work directory", path)? {
        if name.name == OsStr::new(VOLATILE) {
            let marks = sys::open(&incompat, OsStr::new(VOLATILE), sys::O_PATH | sys::O_DIRECTORY)
                .on("open volatile marker", path)?;
            if sys::has(marks, OsStr::new(&boot_mark())).on("read volatile marker", path)?.is_some()
            {
                continue;
            }
        }
        let marker = path.join(SCRATCH).join(INCOMPAT).join(&name.name);
        let why = "an earlier mount was volatile and its data may be lost; \
                   make the upper directory anew, or remove this marker to use it as it is";
        return Err(Error::refuse("mount", marker, why));
    }
    Ok(())
}

fn make_dir(parent: BorrowedFd<'_>, name: &str) -> io::Result<OwnedFd> {
    let name = OsStr::new(name);
    match sys::mkdir(parent, name, 0o700) {
        Err(e) if sys::errno(&e) != sys::EEXIST => return Err(e),
        _ => {}
    }
    sys::open(parent, name, sys::O_PATH | sys::O_DIRECTORY)
}

/// Takes from the scratch folder what it would hand down to the objects built in it: a default ACL and
/// the group of a set-group-id directory. Those come from the directory an object is made for.
fn disinherit(scratch: BorrowedFd<'_>) -> io::Result<()> {
    let top = OsStr::new("");
    match sys::remove_xattr(scratch, top, OsStr::new(acl::DEFAULT)) {
        Err(e) if !matches!(sys::errno(&e), sys::ENODATA | sys::EOPNOTSUPP) => return Err(e),
        _ => {}
    }
    let mode = sys::fstat(scratch)?.mode;
    if mode & sys::S_ISGID != 0 { sys::chmod(scratch, top, mode & 0o777) } else { Ok(()) }
}

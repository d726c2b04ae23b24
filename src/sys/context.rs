//! A filesystem being put together (fsopen(2)), and the mount that comes of it, which is nowhere until it is
//! attached: letting go of it takes it away.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, OpenTreeFlags,
    fsconfig_create, fsconfig_set_fd, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen,
    move_mount, open_tree,
};

use super::change;

/// The kernel's messages are lines of at most this length.
const MESSAGE: usize = 1024;

/// A filesystem that has no mount yet.
#[derive(Debug)]
pub struct Context(OwnedFd);

impl Context {
    /// Begins one of type `kind`.
    pub fn open(kind: &str) -> io::Result<Context> {
        Ok(Context(fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?))
    }

    /// Sets an option without a value.
    pub fn flag(&self, key: &str) -> io::Result<()> {
        Ok(fsconfig_set_flag(&self.0, key)?)
    }

    /// Sets an option to a text of at most 255 bytes.
    pub fn text(&self, key: &str, value: &OsStr) -> io::Result<()> {
        Ok(fsconfig_set_string(&self.0, key, value)?)
    }

    /// Sets an option to an open file.
    pub fn file(&self, key: &str, value: BorrowedFd<'_>) -> io::Result<()> {
        Ok(fsconfig_set_fd(&self.0, key, value)?)
    }

    /// What the kernel has said of it since the last call, on one line; empty when it said nothing.
    pub fn messages(&self) -> String {
        let mut texts = Vec::new();
        let mut line = [0_u8; MESSAGE];
        while let Ok(length) = rustix::io::read(&self.0, &mut line) {
            if length == 0 {
                break;
            }
            let text = String::from_utf8_lossy(&line[..length]).trim().to_owned();
            // A letter for its weight stands before each.
            texts.push(text.get(2..).unwrap_or(&text).to_owned());
        }
        texts.join("; ")
    }

    /// Makes the filesystem. Set-id programs and devices in it do what they do elsewhere.
    pub fn create(&self, read_only: bool) -> io::Result<Detached> {
        // The kernel's overlay makes a directory in its work directory.
        change::point()?;
        fsconfig_create(&self.0)?;
        let attributes =
            if read_only { MountAttrFlags::MOUNT_ATTR_RDONLY } else { MountAttrFlags::empty() };
        Ok(Detached(fsmount(&self.0, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?))
    }
}

/// A mount that is not part of any tree.
#[derive(Debug)]
pub struct Detached(OwnedFd);

impl Detached {
    /// Shows it at `target`.
    pub fn attach(&self, target: &Path) -> io::Result<()> {
        change::point()?;
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        Ok(move_mount(&self.0, "", CWD, target, flags)?)
    }

    /// A path to its root that this process can use as long as it has it.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.0.as_raw_fd()))
    }
}

impl From<OwnedFd> for Detached {
    fn from(mount: OwnedFd) -> Detached {
        Detached(mount)
    }
}

impl AsFd for Detached {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A copy of the mount at a path that is nowhere.
pub fn copy_of(path: &Path) -> io::Result<Detached> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    Ok(Detached(open_tree(CWD, path, flags)?))
}

/// Opens a directory for the kernel to build a filesystem on.
pub fn open_layer(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

/// Mounts a filesystem by the old call. `data` is shorter than a page: the kernel would cut off the rest.
pub fn mount_by_text(kind: &str, target: &Path, data: &OsStr, read_only: bool) -> io::Result<()> {
    use std::os::unix::ffi::OsStrExt;
    if data.len() >= rustix::param::page_size() {
        return Err(rustix::io::Errno::TOOBIG.into());
    }
    let data = std::ffi::CString::new(data.as_bytes())?;
    change::point()?;
    let flags = if read_only { MountFlags::RDONLY } else { MountFlags::empty() };
    Ok(rustix::mount::mount("plyfs", target, kind, flags, data.as_c_str())?)
}

/// The same with data in which relative names are the numbers of descriptors of this process.
pub fn mount_by_numbers(
    kind: &str,
    target: &Path,
    data: &OsStr,
    read_only: bool,
) -> io::Result<()> {
    // The working directory is the whole process's but for a thread that has left it.
    let mount = || {
        super::unshare(libc::CLONE_FS)?;
        std::env::set_current_dir("/proc/self/fd")?;
        mount_by_text(kind, target, data, read_only)
    };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().spawn_scoped(scope, mount)?;
        thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread that mounts ended")))
    })
}

/// Makes a FUSE filesystem that nobody serves, and takes it away: whether there can be one.
pub fn try_fuse() -> io::Result<()> {
    let device = std::fs::File::options().read(true).write(true).open("/dev/fuse")?;
    let context = Context::open("fuse")?;
    for (key, value) in [("rootmode", "40000"), ("user_id", "0"), ("group_id", "0")] {
        context.text(key, OsStr::new(value))?;
    }
    let number = device.as_fd().as_raw_fd().to_string();
    context.text("fd", OsStr::new(&number))?;
    context.create(false)?;
    Ok(())
}

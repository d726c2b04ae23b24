//! The system calls of the semantic tests that need `unsafe`; every other room goes through here.

#![allow(unsafe_code)]

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::ptr::{null, null_mut};

/// How the child of [`isolate`] becomes root of its own user namespace.
#[derive(Clone)]
pub enum Users {
    /// It does not: it keeps the caller's.
    Same,
    /// It maps its one id to root.
    Own { uid_map: CString, gid_map: CString },
    /// It writes its process id to the first descriptor and goes on when the second has a byte.
    Given { tell: RawFd, wait: RawFd },
}

/// What happens between fork and exec of a test.
pub struct Isolation {
    pub users: Users,
    /// Files that are bound over others before privileges are dropped.
    pub binds: Vec<(CString, CString)>,
}

/// Lets `command` start as the first process of its own process and mount namespaces. The process
/// that [`Command::spawn`] returns only waits for it; when that one dies, everything inside does.
pub fn isolate(command: &mut Command, isolation: Isolation) {
    // SAFETY: `enter` makes system calls only, with memory that was allocated before the fork.
    unsafe { command.pre_exec(move || enter(&isolation)) };
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn enter(isolation: &Isolation) -> io::Result<()> {
    let mounts = libc::CLONE_NEWNS;
    let pids = libc::CLONE_NEWPID;
    // SAFETY: plain system calls; every pointer is to a live, NUL-terminated string or null.
    unsafe {
        match &isolation.users {
            Users::Same => {
                check(libc::unshare(mounts | pids))?;
                private_mounts()?;
            }
            Users::Own { uid_map, gid_map } => {
                check(libc::unshare(libc::CLONE_NEWUSER | mounts | pids))?;
                write_file(c"/proc/self/setgroups", c"deny")?;
                write_file(c"/proc/self/uid_map", uid_map)?;
                write_file(c"/proc/self/gid_map", gid_map)?;
                private_mounts()?;
            }
            Users::Given { tell, wait } => {
                check(libc::unshare(mounts))?;
                private_mounts()?;
                for (from, to) in &isolation.binds {
                    check(libc::mount(from.as_ptr(), to.as_ptr(), null(), libc::MS_BIND, null()))?;
                }
                let own = libc::getpid();
                check(libc::unshare(libc::CLONE_NEWUSER | mounts | pids))?;
                let bytes = own.to_ne_bytes();
                check(libc::write(*tell, bytes.as_ptr().cast(), bytes.len()) as libc::c_int)?;
                let mut byte = 0u8;
                if libc::read(*wait, (&raw mut byte).cast(), 1) != 1 {
                    return Err(io::Error::from_raw_os_error(libc::EPIPE));
                }
                check(libc::setgroups(0, null()))?;
                check(libc::setresgid(0, 0, 0))?;
                check(libc::setresuid(0, 0, 0))?;
            }
        }
        let child = check(libc::fork())?;
        if child != 0 {
            wait_for(child);
        }
        check(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL))?;
        let proc = c"proc".as_ptr();
        check(libc::mount(proc, c"/proc".as_ptr(), proc, 0, null()))?;
    }
    Ok(())
}

/// Nothing that is mounted here reaches the outside.
unsafe fn private_mounts() -> io::Result<()> {
    let flags = libc::MS_REC | libc::MS_PRIVATE;
    // SAFETY: constant strings and null pointers.
    check(unsafe { libc::mount(null(), c"/".as_ptr(), null(), flags, null()) }).map(|_| ())
}

unsafe fn write_file(path: &CStr, text: &CStr) -> io::Result<()> {
    // SAFETY: both strings are live; the descriptor is closed once.
    unsafe {
        let fd = check(libc::open(path.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC))?;
        let done = libc::write(fd, text.as_ptr().cast(), text.count_bytes());
        libc::close(fd);
        check(done as libc::c_int).map(|_| ())
    }
}

/// Ends this process with the status of `child`.
unsafe fn wait_for(child: libc::pid_t) -> ! {
    // SAFETY: plain system calls; `status` outlives the wait.
    unsafe {
        libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, 0);
        let mut status = 0;
        while libc::waitpid(child, &raw mut status, 0) != child {}
        let code = libc::WEXITSTATUS(status);
        libc::_exit(if libc::WIFEXITED(status) { code } else { 128 + libc::WTERMSIG(status) })
    }
}

/// A mapping of a whole file.
pub struct Mapping {
    start: *mut u8,
    length: usize,
}

impl Mapping {
    /// Maps the first `length` bytes shared, writable when asked.
    pub fn shared(file: impl AsFd, length: usize, writable: bool) -> io::Result<Mapping> {
        let write = if writable { libc::PROT_WRITE } else { 0 };
        let fd = file.as_fd().as_raw_fd();
        // SAFETY: a new mapping at an address that the kernel chooses.
        let start = unsafe {
            libc::mmap(null_mut(), length, libc::PROT_READ | write, libc::MAP_SHARED, fd, 0)
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Mapping { start: start.cast(), length })
    }

    /// What the mapping shows now.
    pub fn read(&self, from: usize, length: usize) -> Vec<u8> {
        assert!(from + length <= self.length);
        // SAFETY: inside the mapping; volatile because the file changes beneath it.
        (from..from + length).map(|at| unsafe { self.start.add(at).read_volatile() }).collect()
    }

    /// Writes through the mapping.
    pub fn write(&mut self, at: usize, data: &[u8]) {
        assert!(at + data.len() <= self.length);
        for (index, byte) in data.iter().enumerate() {
            // SAFETY: inside the mapping, which is writable or the test dies of it.
            unsafe { self.start.add(at + index).write_volatile(*byte) };
        }
    }

    /// Writes the mapping back to the file.
    pub fn sync(&self) -> io::Result<()> {
        // SAFETY: exactly the mapping.
        check(unsafe { libc::msync(self.start.cast(), self.length, libc::MS_SYNC) }).map(|_| ())
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: exactly the mapping, once.
        unsafe { libc::munmap(self.start.cast(), self.length) };
    }
}

/// Tries a byte-range lock of the open file description; false when somebody else has it.
pub fn lock_range(file: impl AsFd, write: bool, start: i64, length: i64) -> io::Result<bool> {
    let kind = if write { libc::F_WRLCK } else { libc::F_RDLCK };
    let lock = libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: start,
        l_len: length,
        l_pid: 0,
    };
    // SAFETY: `lock` is a complete structure for this command.
    let done = unsafe { libc::fcntl(file.as_fd().as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) };
    match check(done) {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => Ok(false),
        Err(error) => Err(error),
    }
}

/// One extent of a file as FIEMAP tells it.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Extent {
    pub logical: u64,
    pub physical: u64,
    pub length: u64,
    reserved: [u64; 2],
    pub flags: u32,
    reserved2: [u32; 3],
}

/// The extents of a file, the first 64.
pub fn extents(file: impl AsFd) -> io::Result<Vec<Extent>> {
    #[repr(C)]
    struct Request {
        start: u64,
        length: u64,
        flags: u32,
        mapped: u32,
        count: u32,
        reserved: u32,
        extents: [Extent; 64],
    }
    let mut request = Request {
        start: 0,
        length: u64::MAX,
        flags: 1, // FIEMAP_FLAG_SYNC
        mapped: 0,
        count: 64,
        reserved: 0,
        extents: [Extent::default(); 64],
    };
    const FS_IOC_FIEMAP: libc::c_ulong = 0xc020_660b;
    // SAFETY: the structure has room for the 64 extents that it announces.
    check(unsafe { libc::ioctl(file.as_fd().as_raw_fd(), FS_IOC_FIEMAP, &raw mut request) })?;
    Ok(request.extents[..request.mapped as usize].to_vec())
}

/// Lowers the limit of open files of this process and of those it starts.
pub fn limit_open_files(soft: u64, hard: u64) -> io::Result<()> {
    let limit = libc::rlimit { rlim_cur: soft, rlim_max: hard };
    // SAFETY: `limit` outlives the call.
    check(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) }).map(|_| ())
}

/// What `FS_IOC_FSGETXATTR` tells of an inode (linux/fs.h, `struct fsxattr`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct FsXattr {
    pub flags: u32,
    pub extent_size: u32,
    pub extents: u32,
    pub project: u32,
    pub cow_extent_size: u32,
    pub pad: [u8; 8],
}

/// Asks for the extended attributes of `lsattr -p` and `xfs_io`.
pub fn fs_xattr(file: impl AsFd) -> io::Result<FsXattr> {
    const FS_IOC_FSGETXATTR: libc::c_ulong = 0x801c_581f;
    let mut told = FsXattr::default();
    // SAFETY: the structure is the one that the request writes.
    check(unsafe { libc::ioctl(file.as_fd().as_raw_fd(), FS_IOC_FSGETXATTR, &raw mut told) })?;
    Ok(told)
}

/// Sets them.
pub fn set_fs_xattr(file: impl AsFd, wanted: &FsXattr) -> io::Result<()> {
    const FS_IOC_FSSETXATTR: libc::c_ulong = 0x401c_5820;
    let fd = file.as_fd().as_raw_fd();
    // SAFETY: the structure is the one that the request reads.
    check(unsafe { libc::ioctl(fd, FS_IOC_FSSETXATTR, wanted as *const FsXattr) }).map(|_| ())
}

/// A file handle, as an NFS server hands it out.
#[derive(Clone, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Handle {
    bytes: libc::c_uint,
    kind: libc::c_int,
    data: [u8; 128],
}

/// The handle of what is at `path`.
pub fn handle_of(path: &std::path::Path) -> io::Result<Handle> {
    let path = CString::new(std::os::unix::ffi::OsStrExt::as_bytes(path.as_os_str()))?;
    let mut handle = Handle { bytes: 128, kind: 0, data: [0; 128] };
    let mut mount = 0;
    // SAFETY: the handle has the room that it announces.
    check(unsafe {
        libc::syscall(
            libc::SYS_name_to_handle_at,
            libc::AT_FDCWD,
            path.as_ptr(),
            &raw mut handle,
            &raw mut mount,
            0,
        ) as libc::c_int
    })?;
    Ok(handle)
}

/// Opens the object of a handle on the filesystem of `mount`.
pub fn open_handle(mount: impl AsFd, handle: &Handle, flags: i32) -> io::Result<std::fs::File> {
    let (mount, flags) = (mount.as_fd().as_raw_fd(), flags | libc::O_CLOEXEC);
    // SAFETY: the handle has the bytes that it announces; the new descriptor is owned by nobody.
    unsafe {
        let handle = handle as *const Handle;
        let fd = libc::syscall(libc::SYS_open_by_handle_at, mount, handle, flags) as libc::c_int;
        Ok(std::os::fd::FromRawFd::from_raw_fd(check(fd)?))
    }
}

/// A user namespace in which the ids from 0 are those from `first` of this one.
pub fn user_namespace(first: u32, count: u32) -> io::Result<std::fs::File> {
    let mut command = Command::new("sleep");
    // SAFETY: one system call between fork and exec.
    unsafe { command.arg("60").pre_exec(|| check(libc::unshare(libc::CLONE_NEWUSER)).map(drop)) };
    let mut child = command.spawn()?;
    let made = (|| {
        for map in ["uid_map", "gid_map"] {
            std::fs::write(format!("/proc/{}/{map}", child.id()), format!("0 {first} {count}"))?;
        }
        std::fs::File::open(format!("/proc/{}/ns/user", child.id()))
    })();
    child.kill()?;
    child.wait()?;
    made
}

/// Shows the mount at `from` at `to` too, with owners moved as the user namespace says.
pub fn mount_idmapped(
    from: &std::path::Path,
    to: &std::path::Path,
    namespace: impl AsFd,
) -> io::Result<()> {
    use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = open_tree(rustix::fs::CWD, from, flags)?;
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_IDMAP,
        attr_clr: 0,
        propagation: 0,
        userns_fd: namespace.as_fd().as_raw_fd() as u64,
    };
    // SAFETY: an empty path and a structure of the size that is told.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        ) as libc::c_int
    })?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    Ok(move_mount(&tree, "", rustix::fs::CWD, to, flags)?)
}

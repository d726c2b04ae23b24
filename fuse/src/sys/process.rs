//! The process: signals, limits, identity, descriptors passed over sockets, ioctls.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::OnceLock;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use rustix::process::{Resource, Rlimit};

/// The signals that end a mount, and the one that asks for counts.
const SIGNALS: [libc::c_int; 4] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGUSR1];

fn signal_set() -> libc::sigset_t {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigemptyset initialises the set, sigaddset changes an initialised one.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        for signal in SIGNALS {
            libc::sigaddset(set.as_mut_ptr(), signal);
        }
        set.assume_init()
    }
}

/// Blocks TERM, INT, HUP and USR1 in this thread and those it starts, for [`wait_signal`].
pub fn block_signals() -> io::Result<()> {
    let set = signal_set();
    // SAFETY: both pointers are valid or null as the call allows.
    let result =
        unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) };
    if result == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(result)) }
}

/// Lets the signals of [`block_signals`] through again.
pub fn unblock_signals() -> io::Result<()> {
    let set = signal_set();
    // SAFETY: both pointers are valid or null as the call allows.
    let result =
        unsafe { libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const set, std::ptr::null_mut()) };
    if result == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(result)) }
}

/// Waits for one of the signals of [`block_signals`]; true for USR1.
pub fn wait_signal() -> io::Result<bool> {
    let set = signal_set();
    let mut signal: libc::c_int = 0;
    loop {
        // SAFETY: both pointers are to live locals.
        match unsafe { libc::sigwait(&raw const set, &raw mut signal) } {
            0 => return Ok(signal == libc::SIGUSR1),
            libc::EINTR => {}
            code => return Err(io::Error::from_raw_os_error(code)),
        }
    }
}

/// Has the process's table of descriptors hold `count` of them. The kernel makes the table larger
/// when it has to, and where there is more than one thread that takes milliseconds each time: before
/// there are, it takes none.
pub fn reserve_descriptors(fd: impl AsFd, count: u64) {
    let last = i32::try_from(count).unwrap_or(i32::MAX).saturating_sub(1);
    if let Err(e) = rustix::io::fcntl_dupfd_cloexec(fd, last) {
        log::debug!("{count} descriptors are not reserved: {e}");
    }
}

/// Ends the process at once: what it serves ends with it.
pub fn end_process() -> ! {
    std::process::exit(1)
}

/// Raises the soft limit of open files to the hard one and returns it.
pub fn raise_nofile() -> u64 {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if rustix::process::setrlimit(Resource::Nofile, raised).is_ok() {
        return limit.maximum.unwrap_or(1 << 20);
    }
    limit.current.unwrap_or(1024)
}

/// Gives memory that is free inside the process back to the system.
pub fn trim_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim takes the allocator's own locks and may be called at any time.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Effective user and group.
pub fn effective_ids() -> (u32, u32) {
    (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw())
}

/// Whether the process is in a group, as the filesystem sees it.
pub fn is_member(gid: u32) -> bool {
    let all = rustix::process::getgroups().unwrap_or_default();
    effective_ids().1 == gid || all.iter().any(|group| group.as_raw() == gid)
}

/// User and group a process acts as on files, as our user namespace names them (proc(5), status);
/// `None` when it is not ours to see.
pub fn ids_of(process: u32) -> Option<(u32, u32)> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let id = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key))?;
        line.split_whitespace().nth(3)?.parse().ok()
    };
    Some((id("Uid:")?, id("Gid:")?))
}

/// Whether this process is in the initial user namespace, where trusted.* xattrs can be had.
pub fn in_initial_user_namespace() -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let mut words = map.split_whitespace();
    words.next() == Some("0") && words.next() == Some("0") && words.next() == Some("4294967295")
}

/// Sets the file mode creation mask; returns what it was.
pub fn set_umask(mask: u32) -> u32 {
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(mask)).as_raw_mode()
}

/// A random number for names of temporaries; not a secret.
pub fn random_u64() -> u64 {
    let mut bytes = [0_u8; 8];
    match rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()) {
        Ok(8) => u64::from_ne_bytes(bytes),
        _ => u64::from(std::process::id()),
    }
}

/// Two connected sockets; the second is inherited by programs that are started.
pub fn socket_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
    let (ours, theirs) =
        socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::empty(), None)?;
    rustix::io::fcntl_setfd(&ours, rustix::io::FdFlags::CLOEXEC)?;
    Ok((ours, theirs))
}

/// Receives one descriptor over a Unix socket, as fusermount3 sends it.
pub fn recv_fd(socket: impl AsFd) -> io::Result<OwnedFd> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0_u8; 1];
    let mut parts = [io::IoSliceMut::new(&mut byte)];
    rustix::net::recvmsg(socket, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(mut fds) = message {
            if let Some(fd) = fds.next() {
                return Ok(fd);
            }
        }
    }
    Err(io::Error::new(io::ErrorKind::UnexpectedEof, "no descriptor came"))
}

/// The requests that act on one inode and carry at most `IOCTL_SIZE` bytes: flags, version and
/// extended attributes of `lsattr`, `chattr` and `xfs_io` (linux/fs.h). Those that change something
/// are the ones whose caller the kernel checks before it asks us; FS_IOC_SETVERSION is not.
const INODE_IOCTLS: [(u32, bool); 6] = [
    (0x8008_6601, false), // FS_IOC_GETFLAGS
    (0x4008_6602, true),  // FS_IOC_SETFLAGS
    (0x8008_7601, false), // FS_IOC_GETVERSION
    (0x801c_581f, false), // FS_IOC_FSGETXATTR
    (0x401c_5820, true),  // FS_IOC_FSSETXATTR
    (0x8004_6601, false), // FS_IOC32_GETFLAGS
];
const IOCTL_SIZE: usize = 64;

/// Whether the kernel checks who changes flags before it asks us: from Linux 5.13 on (`fileattr_set`).
pub fn checks_who_sets_flags() -> bool {
    static CHECKS: OnceLock<bool> = OnceLock::new();
    *CHECKS.get_or_init(|| {
        let system = rustix::system::uname();
        version(&system.release().to_string_lossy()).is_none_or(|version| version >= (5, 13))
    })
}

/// The first two numbers of a release as uname(2) tells it.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// Whether the request is served, and whether it changes the inode.
pub fn ioctl_changes(request: u32) -> Option<bool> {
    INODE_IOCTLS.iter().find(|(code, _)| *code == request).map(|(_, changes)| *changes)
}

/// Whether a request has the filesystem give a file more blocks at once than are written (`FS_XFLAG_EXTSIZE`,
/// `FS_XFLAG_EXTSZINHERIT` and `FS_XFLAG_COWEXTSIZE` of FS_IOC_FSSETXATTR, linux/fs.h).
pub fn ioctl_takes_extents(request: u32, input: &[u8]) -> bool {
    const EXTENTS: u32 = 0x800 | 0x1000 | 0x1_0000;
    let flags = input.first_chunk::<4>().map_or(0, |bytes| u32::from_ne_bytes(*bytes));
    request == 0x401c_5820 && flags & EXTENTS != 0
}

/// One of the requests that [`ioctl_changes`] knows; returns what the filesystem wrote back.
pub fn inode_ioctl(
    fd: impl AsFd,
    request: u32,
    input: &[u8],
    out_size: usize,
) -> io::Result<Vec<u8>> {
    if ioctl_changes(request).is_none() || input.len() > IOCTL_SIZE || out_size > IOCTL_SIZE {
        return Err(io::Error::from_raw_os_error(libc::ENOTTY));
    }
    let mut buffer = [0_u8; IOCTL_SIZE];
    buffer[..input.len()].copy_from_slice(input);
    // SAFETY: the known requests read and write fewer than `IOCTL_SIZE` bytes of the live local.
    let result = unsafe {
        libc::ioctl(fd.as_fd().as_raw_fd(), libc::c_ulong::from(request), buffer.as_mut_ptr())
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(buffer[..out_size].to_vec())
}

/// Whether there is the directory by which [`super::reopen`] finds descriptors.
pub fn has_proc() -> bool {
    std::path::Path::new("/proc/self/fd").is_dir()
}

#[cfg(test)]
mod tests {
    use super::version;

    #[test]
    fn releases_have_two_numbers() {
        for (release, numbers) in [
            ("6.18.44-fc-v657", Some((6, 18))),
            ("5.12.0", Some((5, 12))),
            ("5.4-generic", Some((5, 4))),
            ("7", None),
            ("v6.1", None),
        ] {
            assert_eq!(version(release), numbers, "{release}");
        }
    }
}

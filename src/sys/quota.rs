//! Projects and their quota: which project an object is in, and what a project takes and may take.
//!
//! The generic calls (linux/quota.h) serve every filesystem that has projects, XFS too.

use std::fs::File;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::ioctl::{Opcode, opcode};

use super::change;

/// `struct fsxattr` (linux/fs.h).
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Attributes {
    flags: u32,
    extent_size: u32,
    extents: u32,
    project: u32,
    cow_extent_size: u32,
    padding: [u8; 8],
}
const _: () = assert!(size_of::<Attributes>() == 28);

const FS_IOC_FSGETXATTR: Opcode = opcode::read::<Attributes>(b'X', 31);
const FS_IOC_FSSETXATTR: Opcode = opcode::write::<Attributes>(b'X', 32);
/// What is made in the directory is in its project.
const FS_XFLAG_PROJINHERIT: u32 = 0x200;

/// `struct if_nextdqblk` (linux/quota.h); `struct if_dqblk` is the same without the last field, which is padding there.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Block {
    /// In units of 1024 bytes.
    bytes_hard: u64,
    bytes_soft: u64,
    bytes: u64,
    inodes_hard: u64,
    inodes_soft: u64,
    inodes: u64,
    bytes_time: u64,
    inodes_time: u64,
    valid: u32,
    id: u32,
}
const _: () = assert!(size_of::<Block>() == 72 || size_of::<u64>() != align_of::<u64>());

/// `struct fs_quota_statv` (linux/dqblk_xfs.h), version 1.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct State {
    version: i8,
    padding: u8,
    flags: u16,
    /// Files, times and warnings of the quota.
    rest: [u64; 19],
}
const _: () = assert!(size_of::<State>() == 160 || size_of::<u64>() != align_of::<u64>());

const PROJECT: u32 = 2;
const Q_GETQUOTA: u32 = 0x80_0007;
const Q_SETQUOTA: u32 = 0x80_0008;
const Q_GETNEXTQUOTA: u32 = 0x80_0009;
const Q_XGETQSTATV: u32 = ((b'X' as u32) << 8) + 8;
/// `QIF_BLIMITS | QIF_ILIMITS`
const LIMITS: u32 = 1 | 4;
/// `FS_QUOTA_PDQ_ENFD`
const ENFORCED: u16 = 1 << 5;
/// Bytes of a unit of `Block::bytes_hard` (`QIF_DQBLKSIZE`).
const UNIT: u64 = 1024;

/// The project of a directory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Project {
    /// Its number; 0 is none.
    pub id: u32,
    /// What is made in the directory is in it too.
    pub inherited: bool,
}

/// What a project takes and may take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Balance {
    /// Bytes it has.
    pub bytes: u64,
    /// Inodes it has.
    pub inodes: u64,
    /// Bytes it may have.
    pub most_bytes: Option<u64>,
    /// Inodes it may have.
    pub most_inodes: Option<u64>,
}

fn open(dir: &Path) -> io::Result<File> {
    let flags = libc::O_DIRECTORY | libc::O_NOFOLLOW;
    File::options().read(true).custom_flags(flags).open(dir)
}

/// The project of a directory; none where the filesystem has no projects.
pub fn project(dir: &Path) -> io::Result<Project> {
    match attributes(&open(dir)?) {
        Ok(found) => {
            let inherited = found.flags & FS_XFLAG_PROJINHERIT != 0;
            Ok(Project { id: found.project, inherited })
        }
        Err(error) if is_unknown(&error) => Ok(Project::default()),
        Err(error) => Err(error),
    }
}

/// Puts a directory, and what will be made in it, into a project; what is in it already stays where it is.
pub fn set_project(dir: &Path, id: u32) -> io::Result<()> {
    let file = open(dir)?;
    let mut wanted = attributes(&file)?;
    wanted.project = id;
    wanted.flags |= FS_XFLAG_PROJINHERIT;
    change::point()?;
    // SAFETY: the request reads a `struct fsxattr` from the live value.
    check(unsafe {
        libc::ioctl(file.as_raw_fd(), FS_IOC_FSSETXATTR as libc::Ioctl, &raw const wanted)
    })
}

fn attributes(file: &File) -> io::Result<Attributes> {
    let mut found = Attributes::default();
    // SAFETY: the request writes a `struct fsxattr` into the live value.
    check(unsafe {
        libc::ioctl(file.as_raw_fd(), FS_IOC_FSGETXATTR as libc::Ioctl, &raw mut found)
    })?;
    Ok(found)
}

/// The filesystem does not know the request.
fn is_unknown(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOTTY | libc::ENOSYS | libc::EOPNOTSUPP))
}

/// The project quota of the filesystem that holds a directory.
#[derive(Debug)]
pub struct Ledger(File);

impl Ledger {
    /// Of the filesystem that holds `dir`.
    pub fn open(dir: &Path) -> io::Result<Ledger> {
        Ok(Ledger(open(dir)?))
    }

    /// Whether limits are kept; false too where the kernel or the filesystem has no quota.
    pub fn is_enforced(&self) -> io::Result<bool> {
        let mut state = State { version: 1, ..State::default() };
        // SAFETY: the command reads the version and writes at most a `struct fs_quota_statv` into the live value.
        match unsafe { self.call(Q_XGETQSTATV, 0, (&raw mut state).cast()) } {
            Ok(()) => Ok(state.flags & ENFORCED != 0),
            Err(error) => match error.raw_os_error() {
                Some(libc::ENOSYS | libc::ESRCH | libc::EINVAL | libc::ENODEV | libc::ENOTBLK) => {
                    Ok(false)
                }
                _ => Err(error),
            },
        }
    }

    /// What a project takes and may take.
    pub fn balance(&self, id: u32) -> io::Result<Balance> {
        match self.block(Q_GETQUOTA, id) {
            Ok(block) => Ok(balance(&block)),
            // Nothing was ever in it.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(Balance::default()),
            Err(error) => Err(error),
        }
    }

    /// The first project from `id` on that takes anything or has limits.
    pub fn next(&self, id: u32) -> io::Result<Option<(u32, Balance)>> {
        match self.block(Q_GETNEXTQUOTA, id) {
            Ok(block) => Ok(Some((block.id, balance(&block)))),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Limits a project; `None` is no limit. It may hold more already, and then gets no more.
    pub fn limit(&self, id: u32, bytes: Option<u64>, inodes: Option<u64>) -> io::Result<()> {
        let mut block = Block {
            bytes_hard: bytes.unwrap_or(0).div_ceil(UNIT),
            inodes_hard: inodes.unwrap_or(0),
            valid: LIMITS,
            ..Block::default()
        };
        change::point()?;
        // SAFETY: the command reads a `struct if_dqblk` from the live value, which is longer.
        unsafe { self.call(Q_SETQUOTA, id, (&raw mut block).cast()) }
    }

    fn block(&self, command: u32, id: u32) -> io::Result<Block> {
        let mut block = Block::default();
        // SAFETY: the commands this is used with write at most a `struct if_nextdqblk` into the live value.
        unsafe { self.call(command, id, (&raw mut block).cast())? };
        Ok(block)
    }

    /// quotactl_fd(2).
    ///
    /// # Safety
    ///
    /// `data` is what the command reads and writes.
    unsafe fn call(&self, command: u32, id: u32, data: *mut libc::c_void) -> io::Result<()> {
        let command = (command << 8) | PROJECT;
        let fd: RawFd = self.0.as_raw_fd();
        // SAFETY: as the caller has promised; the other arguments are numbers.
        let done = unsafe { libc::syscall(libc::SYS_quotactl_fd, fd, command, id, data) };
        if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

fn balance(block: &Block) -> Balance {
    let limit = |value: u64| (value != 0).then_some(value);
    Balance {
        bytes: block.bytes,
        inodes: block.inodes,
        most_bytes: limit(block.bytes_hard.saturating_mul(UNIT)),
        most_inodes: limit(block.inodes_hard),
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

//! A real directory as a target: ext4's own answers, or those of whatever is mounted there.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{
    AtFlags, FallocateFlags, FileType, Gid, Mode, OFlags, RenameFlags, ResolveFlags, Timespec,
    Timestamps, Uid, XattrFlags,
};
use rustix::io::Errno;

use super::ops::{Op, Outcome, Said, Target, split};
use super::tree::{Meta, Stamp, Tree, kind_letter, proc_path};

type Res<T> = Result<T, Errno>;

/// A directory, and what is held open in it.
#[derive(Debug)]
pub struct Plain {
    root: OwnedFd,
    held: BTreeMap<usize, File>,
    /// Whether a listing has to give the inode numbers that stat gives.
    pub strict: bool,
}

impl Plain {
    /// The directory at `path`.
    pub fn open(path: &Path) -> std::io::Result<Plain> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Plain {
            root: rustix::fs::open(path, flags, Mode::empty())?,
            held: BTreeMap::new(),
            strict: true,
        })
    }

    fn beneath(&self, path: &str, flags: OFlags) -> Res<OwnedFd> {
        let path = if path.is_empty() { "." } else { path };
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        rustix::fs::openat2(&self.root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve)
    }

    /// The directory of a path, and the last name.
    fn at<'a>(&self, path: &'a str) -> Res<(OwnedFd, &'a str)> {
        let (dir, name) = split(path);
        let fd = self.beneath(dir, OFlags::PATH | OFlags::DIRECTORY)?;
        Ok((fd, if name.is_empty() { "." } else { name }))
    }

    /// A regular file, opened; other kinds are answered for as the language says.
    fn data(&self, path: &str, flags: OFlags) -> Res<File> {
        let (dir, name) = self.at(path)?;
        let stat = rustix::fs::statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
        match kind_letter(stat.st_mode) {
            '-' => {}
            'd' => return Err(Errno::ISDIR),
            'l' => return Err(Errno::LOOP),
            _ => return Err(Errno::NXIO),
        }
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(File::from(rustix::fs::openat(&dir, name, flags, Mode::empty())?))
    }

    fn slot(&self, slot: usize) -> Res<&File> {
        self.held.get(&slot).ok_or(Errno::BADF)
    }

    fn names(&self, path: &str) -> Res<Outcome> {
        let (dir, name) = self.at(path)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let dir = rustix::fs::openat(&dir, name, flags, Mode::empty())?;
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::read_from(&dir)? {
            let entry = entry?;
            let kind = match entry.file_type() {
                FileType::RegularFile => '-',
                FileType::Directory => 'd',
                FileType::Symlink => 'l',
                FileType::Fifo => 'p',
                FileType::CharacterDevice => 'c',
                _ => '?',
            };
            names.push((entry.file_name().to_string_lossy().into_owned(), kind));
        }
        names.sort();
        let all = names.len();
        names.retain(|(name, _)| name != "." && name != "..");
        // A listing without dots shows as one with the name it lacks.
        if names.len() + 2 != all {
            names.push(("(no . or ..)".to_owned(), '?'));
        }
        Ok(Outcome::Names(names))
    }

    fn stat(&self, path: &str) -> Res<Outcome> {
        let (dir, name) = self.at(path)?;
        Ok(Outcome::Stat(Meta::of(&rustix::fs::statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW)?)))
    }

    fn tmpfile(&self, path: &str, mode: u32) -> Res<File> {
        let dir = self.beneath(path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::DIRECTORY)?;
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        Ok(File::from(rustix::fs::openat(&dir, ".", flags, Mode::from_raw_mode(mode))?))
    }

    fn copy_range(
        &self,
        (from, mut from_at): (&str, u64),
        (to, mut to_at): (&str, u64),
        len: u64,
    ) -> Res<Outcome> {
        let source = self.data(from, OFlags::RDONLY)?;
        let target = self.data(to, OFlags::WRONLY)?;
        let done = rustix::fs::copy_file_range(
            &source,
            Some(&mut from_at),
            &target,
            Some(&mut to_at),
            len as usize,
        )?;
        Ok(Outcome::Count(done as u64))
    }

    fn answer(&mut self, op: &Op) -> Res<Outcome> {
        let done = |()| Outcome::Done;
        let mode_of = |mode: &u32| Mode::from_raw_mode(mode & 0o7777);
        match op {
            Op::Create { path, mode, fill } => {
                let (dir, name) = self.at(path)?;
                let flags = OFlags::CREATE
                    | OFlags::EXCL
                    | OFlags::WRONLY
                    | OFlags::NOFOLLOW
                    | OFlags::CLOEXEC;
                let file = File::from(rustix::fs::openat(&dir, name, flags, mode_of(mode))?);
                write(&file, 0, &fill.bytes()).map(|_| Outcome::Done)
            }
            Op::Overwrite { path, fill } => {
                write(&self.data(path, OFlags::WRONLY | OFlags::TRUNC)?, 0, &fill.bytes())
                    .map(|_| Outcome::Done)
            }
            Op::Write { path, at, fill } => {
                write(&self.data(path, OFlags::WRONLY)?, *at, &fill.bytes())
            }
            Op::Truncate { path, size } => {
                rustix::fs::ftruncate(self.data(path, OFlags::WRONLY)?, *size).map(done)
            }
            Op::Fallocate { path, mode, at, len } => {
                let flags = FallocateFlags::from_bits_retain(*mode);
                rustix::fs::fallocate(self.data(path, OFlags::WRONLY)?, flags, *at, *len).map(done)
            }
            Op::CopyRange { from, from_at, to, to_at, len } => {
                self.copy_range((from, *from_at), (to, *to_at), *len)
            }
            Op::Mkdir { path, mode } => {
                let (dir, name) = self.at(path)?;
                rustix::fs::mkdirat(&dir, name, mode_of(mode)).map(done)
            }
            Op::Mknod { path, mode, rdev } => {
                let (dir, name) = self.at(path)?;
                let dev = rustix::fs::makedev(rdev.0, rdev.1);
                rustix::fs::mknodat(&dir, name, FileType::from_raw_mode(*mode), mode_of(mode), dev)
                    .map(done)
            }
            Op::Symlink { path, target } => {
                let (dir, name) = self.at(path)?;
                rustix::fs::symlinkat(target, &dir, name).map(done)
            }
            Op::Link { from, to } => {
                let (dir, name) = self.at(from)?;
                rustix::fs::statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
                let (new_dir, new_name) = self.at(to)?;
                rustix::fs::linkat(&dir, name, &new_dir, new_name, AtFlags::empty()).map(done)
            }
            Op::Rename { from, to, flags } => {
                let ((dir, name), (new_dir, new_name)) = (self.at(from)?, self.at(to)?);
                let flags = RenameFlags::from_bits_retain(*flags);
                rustix::fs::renameat_with(&dir, name, &new_dir, new_name, flags).map(done)
            }
            Op::Unlink { path } => {
                let (dir, name) = self.at(path)?;
                rustix::fs::unlinkat(&dir, name, AtFlags::empty()).map(done)
            }
            Op::Rmdir { path } => {
                let (dir, name) = self.at(path)?;
                rustix::fs::unlinkat(&dir, name, AtFlags::REMOVEDIR).map(done)
            }
            Op::Read { path, at, len } => read(&self.data(path, OFlags::RDONLY)?, *at, *len),
            Op::ReadLink { path } => {
                let (dir, name) = self.at(path)?;
                Ok(Outcome::Bytes(rustix::fs::readlinkat(&dir, name, Vec::new())?.into_bytes()))
            }
            Op::ReadDir { path } => self.names(path),
            Op::Stat { path } => self.stat(path),
            _ => self.answer_attributes(op),
        }
    }

    fn answer_attributes(&mut self, op: &Op) -> Res<Outcome> {
        match op {
            Op::Chmod { path, mode } => {
                let (dir, name) = self.at(path)?;
                chmod(&dir, name, *mode)?;
            }
            Op::Chown { path, uid, gid } => {
                let (dir, name) = self.at(path)?;
                let (uid, gid) = (uid.map(Uid::from_raw), gid.map(Gid::from_raw));
                rustix::fs::chownat(&dir, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?;
            }
            Op::Utimes { path, mtime } => {
                let (dir, name) = self.at(path)?;
                rustix::fs::utimensat(&dir, name, &times(*mtime), AtFlags::SYMLINK_NOFOLLOW)?;
            }
            Op::SetXattr { path, name, value, flags } => {
                let (dir, last) = self.at(path)?;
                let flags = XattrFlags::from_bits_retain(*flags);
                rustix::fs::lsetxattr(proc_path(&dir, last), name, value.as_bytes(), flags)?;
            }
            Op::RemoveXattr { path, name } => {
                let (dir, last) = self.at(path)?;
                rustix::fs::lremovexattr(proc_path(&dir, last), name)?;
            }
            Op::GetXattr { path, name } => {
                let (dir, last) = self.at(path)?;
                let mut value = vec![0_u8; 4096];
                let len = rustix::fs::lgetxattr(proc_path(&dir, last), name, &mut value[..])?;
                return Ok(Outcome::Bytes(value[..len].to_vec()));
            }
            _ => return self.answer_held(op),
        }
        Ok(Outcome::Done)
    }

    fn answer_held(&mut self, op: &Op) -> Res<Outcome> {
        match op {
            Op::Hold { slot, path, write } => {
                let file = self.data(path, if *write { OFlags::RDWR } else { OFlags::RDONLY })?;
                self.held.insert(*slot, file);
            }
            Op::HoldTmp { slot, path, mode } => {
                let file = self.tmpfile(path, *mode)?;
                self.held.insert(*slot, file);
            }
            Op::HeldWrite { slot, at, fill } => {
                return write(self.slot(*slot)?, *at, &fill.bytes());
            }
            Op::HeldRead { slot, at, len } => return read(self.slot(*slot)?, *at, *len),
            Op::HeldStat { slot } => {
                return Ok(Outcome::Stat(Meta::of(&rustix::fs::fstat(self.slot(*slot)?)?)));
            }
            Op::HeldTruncate { slot, size } => rustix::fs::ftruncate(self.slot(*slot)?, *size)?,
            Op::HeldChmod { slot, mode } => {
                rustix::fs::fchmod(self.slot(*slot)?, Mode::from_raw_mode(*mode))?
            }
            Op::HeldLink { slot, to } => {
                let source = format!("/proc/self/fd/{}", self.slot(*slot)?.as_raw_fd());
                let (dir, name) = self.at(to)?;
                rustix::fs::linkat(rustix::fs::CWD, source, &dir, name, AtFlags::SYMLINK_FOLLOW)?;
            }
            Op::Close { slot } => drop(self.held.remove(slot).ok_or(Errno::BADF)?),
            Op::Reopen => self.held.clear(),
            other => unreachable!("{other}"),
        }
        Ok(Outcome::Done)
    }
}

impl Target for Plain {
    fn apply(&mut self, op: &Op) -> Said {
        self.answer(op).map_err(Errno::raw_os_error)
    }

    fn tree(&self) -> Result<Tree, String> {
        Tree::read_at(&self.root, self.strict)
    }

    fn close_all(&mut self) {
        self.held.clear();
    }
}

/// Both times of a file.
fn times(stamp: Stamp) -> Timestamps {
    let time = Timespec { tv_sec: stamp.sec, tv_nsec: stamp.nsec.into() };
    Timestamps { last_access: time, last_modification: time }
}

/// chmod that does not follow a symlink (and refuses one), which older interfaces cannot say.
fn chmod(dir: &OwnedFd, name: &str, mode: u32) -> Res<()> {
    let name = std::ffi::CString::new(name).unwrap();
    const SYS_FCHMODAT2: libc::c_long = 452;
    // SAFETY: the descriptor is open and the name ends in a zero byte, for as long as the call takes.
    let done = unsafe {
        libc::syscall(
            SYS_FCHMODAT2,
            dir.as_fd().as_raw_fd(),
            name.as_ptr(),
            mode,
            libc::AT_SYMLINK_NOFOLLOW,
        )
    };
    if done == 0 {
        Ok(())
    } else {
        Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap())
    }
}

fn os(error: std::io::Error) -> Errno {
    Errno::from_io_error(&error).unwrap_or(Errno::IO)
}

fn write(file: &File, at: u64, data: &[u8]) -> Res<Outcome> {
    file.write_all_at(data, at).map_err(os)?;
    Ok(Outcome::Count(data.len() as u64))
}

fn read(file: &File, at: u64, len: usize) -> Res<Outcome> {
    let mut bytes = vec![0; len];
    let mut done = 0;
    while done < len {
        match file.read_at(&mut bytes[done..], at + done as u64).map_err(os)? {
            0 => break,
            n => done += n,
        }
    }
    bytes.truncate(done);
    Ok(Outcome::Bytes(bytes))
}

//! Directories seen with other owners: id-mapped mounts (mount_setattr(2)).

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::mount::OpenTreeFlags;

use super::layer::set_mount_attributes;
use crate::options::IdMap;

/// Every id that is one, as itself.
const SAME: &str = "0 0 4294967295\n";

/// A map of ids that mounts can be given. It is a user namespace, which nobody is in.
#[derive(Debug)]
pub struct Owners(OwnedFd);

impl Owners {
    /// Takes the right to map any id; who has none is told EPERM.
    pub fn new(users: &IdMap, groups: &IdMap) -> io::Result<Owners> {
        let process = Inside::enter()?;
        let write = |file: &str, map: &IdMap| {
            let mut file = File::options().write(true).open(process.file(file))?;
            file.write_all(lines(map).as_bytes())
        };
        write("uid_map", users)?;
        write("gid_map", groups)?;
        Ok(Owners(File::open(process.file("ns/user"))?.into()))
    }

    /// A detached copy of the mount at a directory, without what is mounted below it, in which ids on disk are shown as the map
    /// says; one that it does not name is shown as nobody's, and gives nobody any right.
    pub fn show(&self, dir: impl AsFd, read_only: bool) -> io::Result<OwnedFd> {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_EMPTY_PATH;
        let tree = rustix::mount::open_tree(dir, "", flags)?;
        let read_only = if read_only { libc::MOUNT_ATTR_RDONLY } else { 0 };
        set_mount_attributes(
            &tree,
            libc::mount_attr {
                attr_set: libc::MOUNT_ATTR_IDMAP | read_only,
                attr_clr: 0,
                propagation: libc::MS_PRIVATE,
                userns_fd: u64::try_from(self.0.as_raw_fd()).unwrap_or_default(),
            },
        )?;
        Ok(tree)
    }
}

/// What a file of a map in /proc takes.
fn lines(map: &IdMap) -> String {
    if map.is_empty() {
        return SAME.to_owned();
    }
    let line = |range: &crate::options::IdRange| {
        format!("{} {} {}\n", range.on_disk, range.presented, range.length)
    };
    map.ranges().iter().map(line).collect()
}

/// A process in a user namespace of its own, which goes with this value.
struct Inside {
    id: libc::pid_t,
    /// It ends when nobody has the other end any more.
    _end: File,
}

impl Inside {
    fn enter() -> io::Result<Inside> {
        let pipe = || rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC);
        let ((wait, end), (told, tell)) = (pipe()?, pipe()?);
        // SAFETY: whatever threads there are, the copy only calls what is safe after fork (signal-safety(7)), on its stack, and
        // leaves through _exit.
        let id = match unsafe { libc::fork() } {
            -1 => return Err(io::Error::last_os_error()),
            // SAFETY: this is the copy, and it has what was open before.
            0 => unsafe { stay(wait.as_raw_fd(), end.as_raw_fd(), tell.as_raw_fd()) },
            id => id,
        };
        // From here on it is waited for.
        let inside = Inside { id, _end: end.into() };
        drop((wait, tell));
        let mut answer = [0; 4];
        File::from(told).read_exact(&mut answer)?;
        match i32::from_ne_bytes(answer) {
            0 => Ok(inside),
            code => Err(io::Error::from_raw_os_error(code)),
        }
    }

    fn file(&self, name: &str) -> String {
        format!("/proc/{}/{name}", self.id)
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        // SAFETY: both take integers, and a null pointer for a status that nobody asks for; the process is a child of ours that
        // was not waited for.
        unsafe {
            libc::kill(self.id, libc::SIGKILL);
            while libc::waitpid(self.id, std::ptr::null_mut(), 0) < 0
                && *libc::__errno_location() == libc::EINTR
            {}
        }
    }
}

/// Enters a new user namespace, tells what came of it, and stays until it is let go of.
///
/// # Safety
/// The process is a copy that fork made. The descriptors are open.
unsafe fn stay(wait: i32, end: i32, tell: i32) -> ! {
    // SAFETY: system calls on integers and on buffers of this function.
    unsafe {
        libc::close(end);
        let code = match libc::unshare(libc::CLONE_NEWUSER) {
            0 => 0,
            _ => *libc::__errno_location(),
        };
        let bytes = code.to_ne_bytes();
        libc::write(tell, bytes.as_ptr().cast(), bytes.len());
        let mut none = [0_u8; 1];
        libc::read(wait, none.as_mut_ptr().cast(), 1);
        libc::_exit(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_is_lines_from_the_disk_to_what_is_shown() {
        let map = IdMap::parse("0:100000:10:20:7:1").unwrap();
        assert_eq!(lines(&map), "0 100000 10\n20 7 1\n");
        assert_eq!(lines(&IdMap::default()), SAME);
    }
}

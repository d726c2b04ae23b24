//! The process that serves a FUSE mount, as far as the kernel tells: on newer kernels the record of an
//! open `/dev/fuse` names its connection.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use super::table::MountPoint;
use crate::sys::Other;

const DEVICE: &str = "/dev/fuse";

/// The server of a mount; `None` when it is not ours to see or the kernel does not tell.
pub(super) fn server(mount: &MountPoint) -> Option<Other> {
    find(mount).map(|(other, _)| other)
}

/// The words of the server's command line; `None` as above.
pub(super) fn command_line(mount: &MountPoint) -> Option<Vec<OsString>> {
    let (_held, process) = find(mount)?;
    let bytes = fs::read(process.join("cmdline")).ok()?;
    let words = bytes.strip_suffix(b"\0").unwrap_or(&bytes).split(|byte| *byte == 0);
    Some(words.map(|word| OsString::from_vec(word.to_vec())).collect())
}

/// The server and its directory of /proc. A connection's number is given to the next mount as soon as its own is gone, when
/// the server of the former one may not have ended yet: it is the last that was started.
fn find(mount: &MountPoint) -> Option<(Other, PathBuf)> {
    let connection = mount.device.1;
    let processes = fs::read_dir("/proc").ok()?;
    let candidates = processes.flatten().filter_map(|process| {
        let id = process.file_name().to_str()?.parse().ok()?;
        if id == crate::sys::process_id() {
            return None;
        }
        let process = process.path();
        // Held before it is looked at, so that it is this one that is waited for.
        let other = Other::open(id).ok()?;
        serves(&process, connection).then(|| ((started(&process), id), (other, process)))
    });
    candidates.max_by_key(|(age, _)| *age).map(|(_, found)| found)
}

/// When a process was started, in the kernel's ticks (proc(5), stat, field 22).
fn started(process: &Path) -> Option<u64> {
    let text = fs::read_to_string(process.join("stat")).ok()?;
    // The second field, the only one with blanks, ends with the last parenthesis.
    text.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

fn serves(process: &Path, connection: u32) -> bool {
    let Ok(files) = fs::read_dir(process.join("fd")) else { return false };
    files.flatten().any(|file| {
        let is_device = fs::read_link(file.path()).is_ok_and(|link| link == Path::new(DEVICE));
        is_device && connection_of(process, &file.file_name()) == Some(connection)
    })
}

fn connection_of(process: &Path, descriptor: &OsStr) -> Option<u32> {
    parse(&fs::read_to_string(process.join("fdinfo").join(descriptor)).ok()?)
}

fn parse(text: &str) -> Option<u32> {
    text.lines().find_map(|line| line.strip_prefix("fuse_connection:"))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_two_processes_the_later_one_is_known() {
        let own = started(Path::new("/proc/self")).unwrap();
        assert!(started(Path::new("/proc/1")).unwrap() <= own);
        assert_eq!(started(Path::new("/nowhere")), None);
    }

    #[test]
    fn the_connection_is_read_from_a_record() {
        let table = [
            ("pos:\t0\nflags:\t0100002\nfuse_connection:\t53\n", Some(53)),
            ("pos:\t0\n", None),
            ("fuse_connection:\tx\n", None),
        ];
        for (text, wanted) in table {
            assert_eq!(parse(text), wanted);
        }
    }
}

//! Mounting as an ordinary user: the set-user-id helper fusermount3 does it and hands the device
//! back over a socket (libfuse, fusermount3(1)).

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::process::{Command, Stdio};

use crate::error::{Context, Error, Result};
use crate::options::Options;
use crate::sys;

const NAMES: [&str; 2] = ["fusermount3", "fusermount"];

/// Mounts at `mountpoint` and returns the device.
pub(super) fn mount(options: &Options, flags: u64, mountpoint: &Path) -> Result<OwnedFd> {
    let (ours, theirs) = sys::socket_pair().on("socketpair", mountpoint)?;
    let list = list(options, flags);
    let mut last = Error::refuse(
        "mount",
        mountpoint,
        "not allowed; install fuse3, whose fusermount3 mounts for users",
    );
    for name in NAMES {
        let child = Command::new(name)
            .args(["-o", &list, "--"])
            .arg(mountpoint)
            .env("_FUSE_COMMFD", theirs.as_raw_fd().to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .output();
        match child {
            Ok(output) if output.status.success() => {
                return sys::recv_fd(&ours).on("mount", mountpoint);
            }
            Ok(output) => {
                let text = String::from_utf8_lossy(&output.stderr);
                last = Error::refuse("mount", mountpoint, text.trim().replace('\n', "; "));
            }
            Err(_) => continue,
        }
    }
    Err(last)
}

fn list(options: &Options, flags: u64) -> String {
    let mut list = vec!["default_permissions".to_owned()];
    list.push(format!("fsname={}", options.mount.fsname.as_deref().unwrap_or("plyfs")));
    list.push(format!("subtype={}", options.mount.subtype.as_deref().unwrap_or("plyfs")));
    for (flag, name) in [
        (sys::MS_RDONLY, "ro"),
        (sys::MS_NOEXEC, "noexec"),
        (sys::MS_NOATIME, "noatime"),
        (sys::MS_SYNCHRONOUS, "sync"),
        (sys::MS_DIRSYNC, "dirsync"),
    ] {
        if flags & flag != 0 {
            list.push(name.to_owned());
        }
    }
    if options.mount.allow_other.unwrap_or_else(user_allow_other) {
        list.push("allow_other".to_owned());
    }
    list.join(",")
}

/// Whether the administrator lets users show their mounts to others (fuse.conf, mount.fuse3(8)).
fn user_allow_other() -> bool {
    let text = std::fs::read_to_string("/etc/fuse.conf").unwrap_or_default();
    text.lines().any(|line| line.trim() == "user_allow_other")
}

/// Takes a mount off lazily.
pub(super) fn unmount(mountpoint: &Path) -> Result<()> {
    for name in NAMES {
        let child = Command::new(name)
            .args(["-u", "-z", "--"])
            .arg(mountpoint)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        if child.is_ok_and(|status| status.success()) {
            return Ok(());
        }
    }
    Err(Error::code("unmount", mountpoint, sys::EPERM))
}

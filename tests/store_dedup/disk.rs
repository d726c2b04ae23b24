//! A store on a filesystem of its own, in a file.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use rustix::mount::UnmountFlags;

use crate::common::mount::own_namespace;
use crate::common::needs::{self, Need};
use crate::common::rootless;
use crate::common::sandbox::Sandbox;
use crate::driver_kit::{self, Store, assert_no_mounts};

/// A module of tests, one for each filesystem, driver and standing.
macro_rules! every_sharer {
    ($($name:ident, $body:expr;)+) => {$(
        mod $name {
            use super::*;
            every_sharer!(@ overlay2, "xfs", "overlay2", false, $body);
            every_sharer!(@ overlay2_rootless, "xfs", "overlay2", true, $body);
            every_sharer!(@ fuse_overlay, "xfs", "fuse-overlay", false, $body);
            every_sharer!(@ fuse_overlay_rootless, "xfs", "fuse-overlay", true, $body);
            every_sharer!(@ vfs, "xfs", "vfs", false, $body);
            every_sharer!(@ vfs_rootless, "xfs", "vfs", true, $body);
            every_sharer!(@ hardlink, "xfs", "overlay", false, $body);
            every_sharer!(@ hardlink_rootless, "xfs", "overlay", true, $body);
            every_sharer!(@ fuse_overlay_btrfs, "btrfs", "fuse-overlay", false, $body);
            every_sharer!(@ vfs_btrfs_rootless, "btrfs", "vfs", true, $body);
        }
    )+};
    (@ $test:ident, $kind:expr, $driver:expr, $rootless:expr, $body:expr) => {
        #[test]
        fn $test() {
            disk::with($crate::this_test!(), $kind, $driver, $rootless, $body);
        }
    };
}
pub(super) use every_sharer;

/// The same for some of them.
macro_rules! some_sharers {
    ($($name:ident, $body:expr;)+) => {$(
        mod $name {
            use super::*;
            every_sharer!(@ overlay2, "xfs", "overlay2", false, $body);
            every_sharer!(@ hardlink_rootless, "xfs", "overlay", true, $body);
            every_sharer!(@ vfs_btrfs_rootless, "btrfs", "vfs", true, $body);
        }
    )+};
}
pub(super) use some_sharers;

/// Runs a test with a driver on a filesystem of this kind, which root mounts; as an ordinary user when `rootless`.
pub fn with(test: &str, kind: &str, driver: &str, rootless: bool, body: fn(&Store)) {
    if rootless::inside() {
        if needs::met(test, driver_kit::needed(driver)) {
            own_namespace();
            play(Sandbox::new(), driver, body);
        }
        return;
    }
    let standing = if rootless { Need::UserNs } else { Need::Root };
    if !needs::met(test, &[Need::Root, standing]) {
        return;
    }
    own_namespace();
    let outside = Sandbox::new();
    let (image, at) = (outside.at("image"), outside.dir("disk"));
    File::create(&image).unwrap().set_len(512 << 20).unwrap();
    let made = quiet(Command::new(format!("mkfs.{kind}")).arg("-q").arg(&image))
        && quiet(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&at));
    if !made {
        eprintln!("skipped: {test}: needs {kind} (mkfs.{kind}, the filesystem and loop devices)");
        return;
    }
    let disk = Disk(at);
    fs::set_permissions(&disk.0, Permissions::from_mode(0o777)).unwrap();
    if rootless {
        assert!(rootless::run_in(test, &disk.0));
    } else if needs::met(test, driver_kit::needed(driver)) {
        play(Sandbox::beneath(&disk.0), driver, body);
    }
}

fn play(sandbox: Sandbox, driver: &str, body: fn(&Store)) {
    let driver = driver_kit::open(driver, &sandbox.at("root"));
    let store = Store { sandbox, driver };
    body(&store);
    assert_no_mounts(&store.root());
}

/// A mounted filesystem, unmounted on drop.
struct Disk(PathBuf);

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, UnmountFlags::DETACH);
    }
}

fn quiet(command: &mut Command) -> bool {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

//! A filesystem with project quota, in a file.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::mount::UnmountFlags;
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};

use crate::common::mount::own_namespace;
use crate::common::needs::{self, Need};
use crate::common::sandbox::Sandbox;
use crate::driver_kit::{self, Store};

/// A module of tests, one for each filesystem and driver.
macro_rules! every_disk {
    ($($name:ident, $body:expr;)+) => {$(
        mod $name {
            #[allow(unused_imports)]
            use super::*;
            every_disk!(@ overlay2_xfs, "xfs", "overlay2", $body);
            every_disk!(@ overlay2_ext4, "ext4", "overlay2", $body);
            every_disk!(@ fuse_overlay_xfs, "xfs", "fuse-overlay", $body);
            every_disk!(@ fuse_overlay_ext4, "ext4", "fuse-overlay", $body);
            every_disk!(@ vfs_xfs, "xfs", "vfs", $body);
            every_disk!(@ vfs_ext4, "ext4", "vfs", $body);
        }
    )+};
    (@ $test:ident, $kind:expr, $driver:expr, $body:expr) => {
        #[test]
        fn $test() {
            disk::with($crate::this_test!(), $kind, $driver, $body);
        }
    };
}
pub(crate) use every_disk;

/// A store on a filesystem of its own.
pub struct Lab {
    // Unmounted before the directory it is in goes.
    disk: Disk,
    pub store: Store,
}

/// Runs a test with a driver on a filesystem of this kind, as root of the host.
pub fn with(test: &str, kind: &'static str, driver: &str, body: fn(&mut Lab)) {
    let mut needed = vec![Need::Root];
    needed.extend(match driver {
        "overlay2" => Some(Need::KernelOverlay),
        "fuse-overlay" => Some(Need::Fuse),
        _ => None,
    });
    if !needs::met(test, &needed) {
        return;
    }
    own_namespace();
    let sandbox = Sandbox::new();
    let root = sandbox.dir("root");
    let Some(disk) = Disk::new(kind, &sandbox.at("image"), root.clone()) else {
        eprintln!(
            "skipped: {test}: needs project quota in the kernel (on {kind}, with mkfs.{kind} and loop devices)"
        );
        return;
    };
    let driver = driver_kit::open(driver, &root);
    body(&mut Lab { disk, store: Store { sandbox, driver } });
}

impl Lab {
    /// The filesystem.
    pub fn kind(&self) -> &str {
        self.disk.kind
    }

    /// What is seen of a layer. A mount holds everybody to limits; where there is none, root's right to exceed those of ext4 is
    /// given up meanwhile.
    pub fn see<T>(&self, name: &str, look: impl FnOnce(&Path) -> T) -> T {
        let mounted = self.store.driver.name() != "vfs" && name != "base";
        self.store.see(name, |root| if mounted { look(root) } else { self.held(|| look(root)) })
    }

    /// Does something without the right to exceed quotas.
    pub fn held<T>(&self, act: impl FnOnce() -> T) -> T {
        let before = capabilities(None).unwrap();
        let mut sets = before;
        sets.effective.remove(CapabilitySet::SYS_RESOURCE);
        set_capabilities(None, sets).unwrap();
        let done = act();
        set_capabilities(None, before).unwrap();
        done
    }
}

/// A mounted filesystem, unmounted on drop.
struct Disk {
    at: PathBuf,
    kind: &'static str,
}

impl Disk {
    /// None where it cannot be had. What is missing once is not tried again.
    fn new(kind: &'static str, image: &Path, at: PathBuf) -> Option<Disk> {
        use std::sync::atomic::{AtomicBool, Ordering};
        static MISSING: [AtomicBool; 2] = [const { AtomicBool::new(false) }; 2];
        let missing = &MISSING[usize::from(kind == "xfs")];
        if missing.load(Ordering::Relaxed) {
            return None;
        }
        // Modules that nobody loads by name.
        quiet(Command::new("modprobe").args(["-a", "-q", "loop", "quota_v2", kind]));
        let options: &[&str] = match kind {
            "xfs" => &["-q"],
            _ => &["-q", "-O", "quota,project", "-E", "quotatype=prjquota"],
        };
        File::create(image).unwrap().set_len(512 << 20).unwrap();
        let made = quiet(Command::new(format!("mkfs.{kind}")).args(options).arg(image))
            && quiet(Command::new("mount").args(["-o", "loop,prjquota"]).arg(image).arg(&at));
        missing.store(!made, Ordering::Relaxed);
        made.then_some(Disk { at, kind })
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.at, UnmountFlags::DETACH);
    }
}

fn quiet(command: &mut Command) -> bool {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

//! What `plyfs doctor` and a store choose on hosts that lack something: both the same, what a person would, and they say why.
//!
//! `scripts/vmtest` runs this where the kernel has no overlay, no FUSE, or neither; `PLYFS_TEST_DRIVER` is what it knows to
//! be right there.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode};
use rustix::mount::{MountFlags, UnmountFlags};
use serde_json::Value;

use crate::common::cmd::Cmd;
use crate::common::mount::own_namespace;
use crate::common::needs::Need;
use crate::common::rootless;
use crate::common::sandbox::Sandbox;
use crate::{needs, this_test};

/// What was said of a host.
struct Said {
    doctor: Value,
    status: Value,
}

impl Said {
    /// Asks both about a root each, by a program that runs another one.
    fn by(before: &[&str], dir: &Path) -> Said {
        let ask = |root: &str, words: &[&str]| -> Value {
            let root = dir.join(root);
            let plyfs = [env!("CARGO_BIN_EXE_plyfs"), "--json", "--root", root.to_str().unwrap()];
            let words = [before, &plyfs, words].concat();
            let done = Cmd::new(words[0]).args(&words[1..]).succeeds();
            serde_json::from_str(&done.stdout).unwrap()
        };
        let said = Said {
            doctor: ask("doctor", &["doctor"]),
            status: ask("status", &["driver", "status"]),
        };
        assert_eq!(said.doctor["driver"], said.status["driver"], "{said}");
        said
    }

    /// What is chosen.
    fn driver(&self) -> &str {
        self.status["driver"].as_str().unwrap()
    }

    /// Asserts that this one is chosen.
    fn chooses(&self, driver: &str) {
        assert_eq!(self.driver(), driver, "{self}");
    }

    /// Asserts that a driver does not work, and that both say why; one that is `better` than the chosen one is a reason for it.
    fn refuses(&self, driver: &str, why: &str, better: bool) {
        self.doctor_refuses(driver, why, better);
        if better {
            self.status_refuses(driver, why);
        }
    }

    fn doctor_refuses(&self, driver: &str, why: &str, better: bool) {
        let drivers = self.doctor["drivers"].as_array().unwrap();
        let one = drivers.iter().find(|one| one["name"] == driver).unwrap();
        assert_eq!(one["ok"], false, "{self}");
        assert!(one["reason"].as_str().unwrap().contains(why), "{why}? {self}");
        if better {
            let reason = self.doctor["reason"].as_str().unwrap();
            assert!(reason.contains(driver) && reason.contains(why), "{why}? {self}");
        }
    }

    fn status_refuses(&self, driver: &str, why: &str) {
        let refused = self.status["refused"].as_array().unwrap();
        let one = refused.iter().find(|one| one["driver"] == driver);
        let text = one.and_then(|one| one["reason"].as_str());
        assert!(text.is_some_and(|text| text.contains(why)), "{why}? {self}");
    }
}

impl std::fmt::Display for Said {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "doctor: {:#}\nstatus: {:#}", self.doctor, self.status)
    }
}

/// Whether the kernel knows a type of filesystem, loaded already or not.
fn knows(kind: &str) -> bool {
    let known = || fs::read_to_string("/proc/filesystems").unwrap();
    known().lines().any(|line| line.trim_start_matches("nodev").trim() == kind)
}

/// Asserts what there is to choose from.
fn judge(said: &Said, overlay: bool, fuse: bool, no_fuse: &str) {
    let driver = match (overlay, fuse) {
        (true, _) => "overlay2",
        (false, true) => "fuse-overlay",
        (false, false) => "vfs",
    };
    said.chooses(driver);
    if !overlay {
        let why = if knows("overlay") { "the kernel's overlay" } else { "not in this kernel" };
        said.refuses("overlay2", why, true);
    }
    if !fuse {
        said.refuses("fuse-overlay", no_fuse, !overlay);
    }
}

/// Does it in a thread with mounts of its own, that others may need as they are.
fn apart(body: impl FnOnce() + Send) {
    std::thread::scope(|scope| {
        let body = || {
            own_namespace();
            body();
        };
        if let Err(panic) = scope.spawn(body).join() {
            std::panic::resume_unwind(panic);
        }
    });
}

fn mount(kind: &str, at: &Path) {
    rustix::mount::mount(kind, at, kind, MountFlags::empty(), None::<&std::ffi::CStr>).unwrap();
}

/// Shows other devices than the host's: without FUSE's.
fn hide_device(sandbox: &Sandbox) {
    let dev = sandbox.dir("dev");
    mount("tmpfs", &dev);
    for name in ["null", "zero", "random", "urandom", "shm"] {
        let (from, to) = (Path::new("/dev").join(name), dev.join(name));
        if from.is_dir() {
            fs::create_dir(&to).unwrap();
        } else {
            fs::write(&to, "").unwrap();
        }
        rustix::mount::mount_bind_recursive(&from, &to).unwrap();
    }
    rustix::mount::mount_bind_recursive(&dev, "/dev").unwrap();
    assert!(!Path::new("/dev/fuse").exists());
}

/// A directory of the user that `setpriv` makes of root, and how it does.
fn as_user(sandbox: &Sandbox) -> (std::path::PathBuf, Vec<String>) {
    let dir = sandbox.dir("user");
    chown(&dir, Some(rootless::BASE), Some(rootless::BASE)).unwrap();
    let id = rootless::BASE.to_string();
    let words = ["setpriv", "--reuid", &id, "--regid", &id, "--clear-groups"];
    (dir, words.map(str::to_owned).to_vec())
}

#[test]
fn the_best_that_works_is_chosen() {
    needs!(Root);
    own_namespace();
    let sandbox = Sandbox::new();
    let said = Said::by(&[], sandbox.at("").as_path());
    judge(&said, Need::KernelOverlay.met(), Need::Fuse.met(), "/dev/fuse: No such file");
    if let Ok(driver) = std::env::var("PLYFS_TEST_DRIVER") {
        said.chooses(&driver);
    }
}

#[test]
fn without_the_device_there_is_no_fuse_overlay() {
    needs!(Root);
    let overlay = Need::KernelOverlay.met();
    let sandbox = Sandbox::new();
    apart(|| {
        hide_device(&sandbox);
        let said = Said::by(&[], &sandbox.at(""));
        judge(
            &said,
            overlay,
            false,
            "/dev/fuse: No such file or directory (os error 2); load the module",
        );
        let named = Cmd::plyfs().args(["--driver", "fuse-overlay", "--root"]).arg(sandbox.at("x"));
        named.args(["driver", "status"]).exits(1).complains("load the module fuse");
    });
}

#[test]
fn a_user_namespace_has_what_its_root_may_mount() {
    needs!(UserNs);
    if rootless::run(this_test!()) {
        return;
    }
    own_namespace();
    let sandbox = Sandbox::new();
    let overlay = Need::KernelOverlay.met();
    let said = Said::by(&[], &sandbox.at(""));
    assert_eq!(said.doctor["standing"], "root in a user namespace");
    judge(&said, overlay, Need::Fuse.met(), "/dev/fuse: No such file");
    if overlay {
        assert_eq!(said.status["status"]["userxattr"], "true");
        assert!(said.doctor["reason"].as_str().unwrap().contains("userxattr"), "{said}");
    }
    // A filesystem in memory takes the attributes of users on newer kernels only.
    let memory = sandbox.dir("memory");
    mount("tmpfs", &memory);
    let flags = rustix::fs::XattrFlags::empty();
    let takes = rustix::fs::setxattr(&memory, "user.plyfs.probe", b"y", flags).is_ok();
    let said = Said::by(&[], &memory);
    rustix::mount::unmount(&memory, UnmountFlags::empty()).unwrap();
    judge(&said, overlay && takes, Need::Fuse.met(), "/dev/fuse: No such file");
    if Need::Fuse.met() {
        apart(|| {
            rustix::mount::mount_bind("/dev/null", "/dev/fuse").unwrap();
            let sandbox = Sandbox::new();
            judge(&Said::by(&[], &sandbox.at("")), overlay, false, "not the FUSE device");
        });
    }
}

#[test]
fn a_base_on_which_the_kernels_overlay_breaks_in_use_is_no_base_for_it() {
    needs!(Root, KernelOverlay);
    own_namespace();
    let sandbox = Sandbox::new();
    let base = sandbox.dir("base");
    // It takes no attributes: mounting succeeds, and removing a directory fails.
    mount("ramfs", &base);
    let said = Said::by(&[], &base);
    rustix::mount::unmount(&base, UnmountFlags::empty()).unwrap();
    said.chooses(if Need::Fuse.met() { "fuse-overlay" } else { "vfs" });
    said.refuses("overlay2", "on ramfs: mounts, but deletion", true);
}

#[test]
fn an_ordinary_user_mounts_by_the_helper() {
    needs!(Root);
    own_namespace();
    let sandbox = Sandbox::new();
    let (dir, words) = as_user(&sandbox);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let said = Said::by(&words, &dir);
    assert_eq!(said.doctor["standing"], "an ordinary user");
    let device = fs::metadata("/dev/fuse").ok().map(|device| device.permissions().mode() & 0o006);
    match (device, Path::new("/usr/bin/fusermount3").exists()) {
        (Some(0o006), true) => {
            said.chooses("fuse-overlay");
            assert!(said.doctor["drivers"][1]["reason"].as_str().unwrap().contains("fusermount3"));
        }
        (Some(0o006), false) => {
            said.chooses("vfs");
            said.refuses("fuse-overlay", "needs fusermount3", true);
        }
        (Some(_), _) => {
            said.chooses("vfs");
            said.refuses("fuse-overlay", "/dev/fuse: Permission denied", true);
        }
        (None, _) => {
            said.chooses("vfs");
            said.refuses("fuse-overlay", "/dev/fuse: No such file", true);
        }
    }
    let why = if knows("overlay") { "needs root" } else { "not in this kernel" };
    said.doctor_refuses("overlay2", why, true);
    said.status_refuses("overlay2", "needs root");
    if said.doctor["facts"]["overlay.user"]["ok"] == true {
        said.refuses("overlay2", "unshare -Urm", false);
    }
}

#[test]
fn a_device_that_may_not_be_opened_is_another_matter() {
    needs!(Root, Fuse);
    let sandbox = Sandbox::new();
    apart(|| {
        let node = sandbox.at("fuse");
        let device = rustix::fs::makedev(10, 229);
        rustix::fs::mknodat(CWD, &node, FileType::CharacterDevice, Mode::RWXU, device).unwrap();
        rustix::mount::mount_bind(&node, "/dev/fuse").unwrap();
        let (dir, words) = as_user(&sandbox);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let said = Said::by(&words, &dir);
        said.chooses("vfs");
        said.refuses("fuse-overlay", "Permission denied (os error 13); users may open it", true);
    });
}

#[test]
fn root_without_the_right_to_mount_copies() {
    needs!(Root);
    own_namespace();
    let sandbox = Sandbox::new();
    let words = ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin"];
    let said = Said::by(&words, &sandbox.at(""));
    said.chooses("vfs");
    if Need::Fuse.met() {
        said.refuses("fuse-overlay", "CAP_SYS_ADMIN", true);
    }
    if Need::KernelOverlay.met() {
        said.refuses("overlay2", "may not mount", true);
    }
}

//! A store of one driver for one test, and the same test for every driver, as root and as an ordinary user.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use plyfs::driver::registry::{Config, Registry};
use plyfs::driver::{Create, Diffing, Driver, LayerId, MountOptions, Parts, View};
use plyfs::layer::apply::{Applied, Limits};
use plyfs::layer::compare::{self, Tree};
use plyfs::layer::{changes, diff};
use plyfs::mount::plan::{self, Mounted, Server};

use crate::common::mount::own_namespace;
use crate::common::needs::{self, Need};
use crate::common::rootless;
use crate::common::sandbox::Sandbox;

/// A driver on an empty root.
pub struct Store {
    pub sandbox: Sandbox,
    pub driver: Box<dyn Driver>,
}

/// Who may, beside root or an ordinary user: what the drivers themselves cannot do without.
pub fn needed(driver: &str) -> &'static [Need] {
    match driver {
        "overlay2" | "overlay" => &[Need::KernelOverlay],
        "fuse-overlay" => &[Need::Fuse],
        _ => &[],
    }
}

/// Runs a test with a driver, as an ordinary user when `rootless`.
pub fn with(test: &str, driver: &str, rootless: bool, body: fn(&Store)) {
    let standing = if rootless { Need::UserNs } else { Need::Root };
    if !rootless::inside() && !needs::met(test, &[standing]) {
        return;
    }
    if rootless && rootless::run(test) {
        return;
    }
    if !needs::met(test, needed(driver)) {
        return;
    }
    own_namespace();
    let store = Store::open(driver);
    body(&store);
    assert_no_mounts(&store.root());
}

/// Nothing is mounted below a directory.
pub fn assert_no_mounts(dir: &Path) {
    let table = std::fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
    let below = format!(" {}/", dir.display());
    let left: Vec<_> = table.lines().filter(|line| line.contains(&below)).collect();
    assert!(left.is_empty(), "mounts are left: {left:?}");
}

/// A module of tests, one for each driver and standing.
#[macro_export]
macro_rules! every_driver {
    ($($name:ident, $body:expr;)+) => {$(
        mod $name {
            #[allow(unused_imports)]
            use super::*;
            $crate::every_driver!(@ overlay2, "overlay2", false, $body);
            $crate::every_driver!(@ overlay2_rootless, "overlay2", true, $body);
            $crate::every_driver!(@ fuse_overlay, "fuse-overlay", false, $body);
            $crate::every_driver!(@ fuse_overlay_rootless, "fuse-overlay", true, $body);
            $crate::every_driver!(@ vfs, "vfs", false, $body);
            $crate::every_driver!(@ vfs_rootless, "vfs", true, $body);
            $crate::every_driver!(@ hardlink, "overlay", false, $body);
            $crate::every_driver!(@ hardlink_rootless, "overlay", true, $body);
        }
    )+};
    (@ $test:ident, $driver:expr, $rootless:expr, $body:expr) => {
        #[test]
        fn $test() {
            $crate::driver_kit::with($crate::this_test!(), $driver, $rootless, $body);
        }
    };
}

/// A layer's name.
pub fn id(name: &str) -> LayerId {
    LayerId::new(name).unwrap()
}

/// The program that serves mounts.
pub fn server() -> Server {
    Server::Program(PathBuf::from(env!("CARGO_BIN_EXE_plyfs")))
}

impl Store {
    pub fn open(driver: &str) -> Store {
        let sandbox = Sandbox::new();
        let driver = open(driver, &sandbox.at("root"));
        Store { sandbox, driver }
    }

    pub fn root(&self) -> PathBuf {
        self.sandbox.at("root")
    }

    /// The same store with another driver, or the same one opened again.
    pub fn reopen(&mut self, driver: &str) {
        self.driver = open(driver, &self.root());
    }

    pub fn read_write(&self, name: &str, parent: Option<&str>) {
        self.create(name, parent, &Create::default());
    }

    pub fn read_only(&self, name: &str, parent: Option<&str>) {
        self.create(name, parent, &Create { read_only: true, ..Create::default() });
    }

    fn create(&self, name: &str, parent: Option<&str>, spec: &Create) {
        self.driver.create(&id(name), parent.map(id).as_ref(), spec).unwrap();
    }

    /// The layer's own directory.
    pub fn own(&self, name: &str) -> PathBuf {
        self.driver.parts(&id(name)).unwrap().own
    }

    /// What is seen of a layer while `look` runs.
    pub fn see<T>(&self, name: &str, look: impl FnOnce(&Path) -> T) -> T {
        self.see_with(name, &MountOptions::default(), look)
    }

    pub fn see_with<T>(
        &self,
        name: &str,
        options: &MountOptions,
        look: impl FnOnce(&Path) -> T,
    ) -> T {
        match self.driver.view(&id(name), options).unwrap() {
            View::Path(path) => look(&path),
            View::Mount(mount) => {
                let mounted: Mounted = plan::perform(&mount, &server()).unwrap();
                let seen = look(mounted.target());
                // What this process has open, a child of another thread has too until it runs its program.
                let start = Instant::now();
                let mut gone = mounted.unmount();
                while gone.is_err() && start.elapsed() < Duration::from_secs(5) {
                    std::thread::sleep(Duration::from_millis(5));
                    gone = plan::take_away(&mount.target, false);
                }
                gone.unwrap();
                assert!(!mount.target.exists(), "the mountpoint is left");
                seen
            }
        }
    }
}

impl Store {
    fn tree(&self, name: &str) -> Tree {
        let Parts { own, below } = self.driver.parts(&id(name)).unwrap();
        Tree { top: own, below }
    }

    /// How one layer's view differs from another's, as lines.
    pub fn differences(&self, from: &str, to: &str) -> Vec<String> {
        let list = compare::list(Some(&self.tree(from)), &self.tree(to)).unwrap();
        list.iter().map(ToString::to_string).collect()
    }

    /// What a layer changes in its parent, as lines.
    pub fn changes(&self, name: &str, parent: Option<&str>) -> Vec<String> {
        let Parts { own, below } = self.driver.parts(&id(name)).unwrap();
        let list = match self.driver.diffing(&id(name)).unwrap() {
            Diffing::Native => changes::list_believing(&own, &below, self.driver.belief()).unwrap(),
            Diffing::Naive => {
                let parent = parent.map(|parent| self.tree(parent));
                compare::list(parent.as_ref(), &self.tree(name)).unwrap()
            }
        };
        list.iter().map(ToString::to_string).collect()
    }

    /// What a layer changes in its parent, as an archive.
    pub fn diff(&self, name: &str, parent: Option<&str>) -> Vec<u8> {
        let Parts { own, below } = self.driver.parts(&id(name)).unwrap();
        let mut bytes = Vec::new();
        match self.driver.diffing(&id(name)).unwrap() {
            Diffing::Native => {
                let spec = diff::Spec { upper: own, lowers: below, user_marks: false };
                diff::write_believing(&spec, self.driver.belief(), &mut bytes).unwrap();
            }
            Diffing::Naive => {
                let parent = parent.map(|parent| self.tree(parent));
                compare::write(parent.as_ref(), &self.tree(name), &mut bytes).unwrap();
            }
        }
        bytes
    }

    pub fn apply(&self, name: &str, archive: &[u8]) -> plyfs::Result<Applied> {
        self.driver.apply(&id(name), &mut &*archive, &Limits::default(), None)
    }
}

/// Opens a driver on a root.
pub fn open(driver: &str, root: &Path) -> Box<dyn Driver> {
    let config = Config { root: root.to_owned(), ..Config::default() };
    Registry::built_in().select(Some(driver), &[], &config).unwrap().driver
}

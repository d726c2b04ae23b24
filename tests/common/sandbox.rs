//! A directory of one test's own: `lower1`.. (top first), `upper`, `work`, `merged`, and whatever the
//! test adds. On a disk filesystem by default, since an overlay's upper has to be able to hold
//! whiteouts and attributes; `PLYFS_TEST_DIR` says where.
//!
//! A test that fails leaves its sandbox behind and prints where it is.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// The directory; removed on drop unless the test fails.
#[derive(Debug)]
pub struct Sandbox {
    dir: Option<tempfile::TempDir>,
    path: PathBuf,
    kept: bool,
}

/// Where sandboxes are made.
pub fn base() -> PathBuf {
    std::env::var_os("PLYFS_TEST_DIR").map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from)
}

impl Sandbox {
    /// A fresh sandbox with empty `upper`, `work` and `merged`.
    pub fn new() -> Sandbox {
        Sandbox::beneath(&base())
    }

    /// One in memory, for what syncs often; on disk where memory takes no attributes.
    pub fn in_memory() -> Sandbox {
        let memory = Path::new("/dev/shm");
        let takes = |dir: tempfile::TempDir| {
            let flags = rustix::fs::XattrFlags::empty();
            rustix::fs::setxattr(dir.path(), "user.plyfs.probe", b"y", flags).is_ok()
        };
        match tempfile::tempdir_in(memory).is_ok_and(takes) {
            true => Sandbox::beneath(memory),
            false => Sandbox::new(),
        }
    }

    /// A fresh sandbox in a directory.
    pub fn beneath(base: &Path) -> Sandbox {
        let dir = tempfile::Builder::new()
            .prefix("plyfs-test.")
            .permissions(Permissions::from_mode(0o755))
            .tempdir_in(base);
        let dir = dir.unwrap_or_else(|e| panic!("make a sandbox in {}: {e}", base.display()));
        let path = dir.path().canonicalize().unwrap();
        let sandbox = Sandbox { dir: Some(dir), path, kept: true };
        for name in ["upper", "work", "merged"] {
            std::fs::create_dir(sandbox.at(name)).unwrap();
        }
        sandbox
    }

    /// A sandbox that goes whatever happens, for what a seed makes again.
    pub fn scratch() -> Sandbox {
        let mut sandbox = Sandbox::new();
        sandbox.kept = false;
        sandbox
    }

    /// A path in it.
    pub fn at(&self, name: impl AsRef<Path>) -> PathBuf {
        self.path.join(name)
    }

    /// The `n`th lower from the top, counted from 1; made when it is missing.
    pub fn lower(&self, n: usize) -> PathBuf {
        self.dir(&format!("lower{n}"))
    }

    /// A directory, made when it is missing.
    pub fn dir(&self, name: &str) -> PathBuf {
        let path = self.at(name);
        std::fs::create_dir_all(&path).unwrap();
        path
    }

    /// The writable layer.
    pub fn upper(&self) -> PathBuf {
        self.at("upper")
    }

    /// Its scratch directory.
    pub fn work(&self) -> PathBuf {
        self.at("work")
    }

    /// Where to mount.
    pub fn merged(&self) -> PathBuf {
        self.at("merged")
    }

    /// Leaves it behind whatever happens, and says where.
    pub fn keep(&mut self) -> PathBuf {
        if let Some(dir) = self.dir.take() {
            let _ = dir.keep();
        }
        self.path.clone()
    }
}

impl Default for Sandbox {
    fn default() -> Self {
        Sandbox::new()
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        if self.dir.is_none() {
            return;
        }
        if self.kept && std::thread::panicking() {
            let path = self.keep();
            eprintln!("sandbox kept: {}", path.display());
            return;
        }
        // An ordinary user cannot remove what is in a directory without permissions, and the
        // kernel's overlay leaves one.
        open_up(&self.path);
    }
}

/// Makes every directory below `dir` one that its owner may empty.
pub fn open_up(dir: &Path) {
    if rustix::process::geteuid().is_root() && std::env::var_os("PLYFS_ROOTLESS").is_none() {
        return;
    }
    let _ = std::fs::set_permissions(dir, Permissions::from_mode(0o700));
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            open_up(&entry.path());
        }
    }
}

//! A store of an ordinary user without a namespace of his own, who may do with his files what their modes let their owner do.

use std::fs::{self, DirBuilder, Permissions};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use crate::common::cmd::Cmd;
use crate::common::needs::Need;
use crate::common::sandbox::Sandbox;
use crate::layer_apply_kit::Tar;
use crate::needs;
use crate::semantics_kit::{mode, set_xattr, xattr};

/// He and his store, of the driver vfs.
struct Ordinary {
    home: PathBuf,
    _sandbox: Sandbox,
}

impl Ordinary {
    fn new() -> Ordinary {
        let sandbox = Sandbox::new();
        let home = sandbox.dir("home");
        give(&home);
        Ordinary { home, _sandbox: sandbox }
    }

    fn plyfs(&self, words: &[&str]) -> Cmd {
        let user =
            ["--reuid=54321", "--regid=54321", "--clear-groups", env!("CARGO_BIN_EXE_plyfs")];
        let root = self.home.join("store");
        let cmd = Cmd::new("setpriv").args(user).cwd(&self.home).arg("--root").arg(root);
        cmd.args(["--driver", "vfs"]).args(words)
    }

    fn does(&self, words: &[&str]) -> String {
        self.plyfs(words).succeeds().stdout.trim_end().to_owned()
    }

    fn own(&self, layer: &str) -> PathBuf {
        self.home.join("store/vfs/dir").join(layer)
    }
}

fn give(path: &Path) {
    chown(path, Some(54321), Some(54321)).unwrap();
}

#[test]
fn who_may_not_mount_is_given_the_directory_and_keeps_others_off() {
    needs!(Root);
    let user = Ordinary::new();
    let (home, plyfs) = (&user.home, |words: &[&str]| user.plyfs(words));
    fs::write(home.join("a"), "one\n").unwrap();
    Cmd::new("tar")
        .cwd(home)
        .args(["-cf", "base.tar", "--owner=54321", "--group=54321", "a"])
        .succeeds();
    for name in ["base", "empty"] {
        plyfs(&["layer", "create", "--read-only", name]).succeeds();
    }
    plyfs(&["layer", "apply", "base", "base.tar"]).succeeds();
    for name in ["base", "empty"] {
        let at = plyfs(&["layer", "mount", name]).succeeds().stdout;
        assert!(Path::new(at.trim_end()).is_dir(), "{at}");
    }
    // Who may mount is given the same meanwhile, and takes nothing from the other when he gives it back.
    let root = home.join("store");
    let own = root.join("vfs/dir/base");
    let inside = |words: &[&str]| {
        let user = ["--reuid=54321", "--regid=54321", "--clear-groups", "unshare", "-Urm"];
        let cmd = Cmd::new("setpriv").args(user).arg(env!("CARGO_BIN_EXE_plyfs")).cwd(home);
        cmd.arg("--root").arg(&root).args(["--driver", "vfs", "layer"]).args(words)
    };
    if Need::AnyUserNs.met() {
        inside(&["mount", "base"]).succeeds().says(own.to_str().unwrap());
        inside(&["umount", "base"]).succeeds();
    }
    let create = ["layer", "create", "--parent", "base", "box"];
    plyfs(&create).exits(1).complains("layer 'base': in use by its mount, 1 times");
    plyfs(&["layer", "create", "--template", "base", "copy"]).exits(1).complains("'base': in use");
    plyfs(&["layer", "apply", "empty", "base.tar"]).exits(1).complains("'empty': in use");
    for name in ["base", "empty"] {
        plyfs(&["layer", "umount", name]).succeeds();
    }
    plyfs(&create).succeeds();
    plyfs(&["layer", "apply", "empty", "base.tar"]).succeeds();
    plyfs(&["check"]).succeeds().says("3 layers, nothing wrong");
}

#[test]
fn nodes_that_nobody_may_write_are_recorded() {
    needs!(Root);
    let user = Ordinary::new();
    let closed = |block: &mut [u8; 512], mode: &[u8]| block[100..107].copy_from_slice(mode);
    let tar = Tar::default()
        .edited(b'6', "pipe", b"", |block| closed(block, b"0000444"))
        .edited(b'3', "device", b"", |block| closed(block, b"0000000"))
        .file("file", "x");
    let bytes = tar.end();
    fs::write(user.home.join("a.tar"), &bytes).unwrap();
    user.does(&["layer", "create", "--read-only", "a"]);
    user.does(&["layer", "apply", "a", "a.tar"]);
    let told = |name: &str| {
        let record = xattr(user.own("a").join(name), "user.containers.override_stat").unwrap();
        String::from_utf8(record).unwrap()
    };
    assert_eq!(told("pipe"), "0:0:0444:pipe");
    assert_eq!(told("device"), "0:0:0000:char-0-0");
    user.does(&["layer", "diff", "-o", "b.tar", "a"]);
    assert!(fs::read(user.home.join("b.tar")).unwrap() == bytes);
    user.does(&["layer", "create", "--parent", "a", "b"]);
    user.does(&["check"]);
}

#[test]
fn files_that_their_owner_may_not_write_are_copied_with_their_attributes() {
    needs!(Root);
    let user = Ordinary::new();
    user.does(&["layer", "create", "a"]);
    let own = user.own("a");
    fs::write(own.join("file"), "x").unwrap();
    fs::create_dir(own.join("dir")).unwrap();
    for (name, mode) in [("file", 0o444), ("dir", 0o555)] {
        let path = own.join(name);
        set_xattr(&path, "user.k", b"v").unwrap();
        Cmd::new("setfacl").args(["-m", "u:1:r"]).arg(&path).succeeds();
        give(&path);
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }
    user.does(&["layer", "create", "--parent", "a", "b"]);
    for (name, bits) in [("file", 0o444), ("dir", 0o555)] {
        let path = user.own("b").join(name);
        assert_eq!(xattr(&path, "user.k").unwrap(), b"v", "{name}");
        assert_eq!(mode(&path) & 0o7777, bits, "{name}");
        let access =
            |layer: &str| xattr(user.own(layer).join(name), "system.posix_acl_access").unwrap();
        assert_eq!(access("b"), access("a"), "{name}");
    }
}

/// Deeper than a walk keeps directories open.
#[test]
fn deep_directories_that_their_owner_may_not_write_are_removed() {
    needs!(Root);
    let user = Ordinary::new();
    user.does(&["layer", "create", "a"]);
    let mut at = user.own("a");
    for _ in 0..140 {
        at.push("d");
        DirBuilder::new().mode(0o555).create(&at).unwrap();
        give(&at);
    }
    let done = user.plyfs(&["layer", "rm", "a"]).succeeds();
    assert_eq!(done.stderr, "");
    let left = |dir: &str| fs::read_dir(user.home.join("store").join(dir)).unwrap().count();
    crate::semantics_kit::wait_until("all is deleted", || {
        user.does(&["layer", "ls"]);
        !user.own("a").exists() && left("layers") == 0
    });
    let names =
        fs::read_dir(user.home.join("store/vfs/dir")).unwrap().map(|x| x.unwrap().file_name());
    let names: Vec<_> = names.collect();
    assert!(names.iter().all(|name| !name.to_string_lossy().starts_with(".gone")), "{names:?}");
}

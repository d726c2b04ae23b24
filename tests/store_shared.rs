//! What a layer holds is changed by nobody but its own user: neither by who has the layer below it, nor by who looks at it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use plyfs::mount::count::Counts;

use crate::common::cmd::Cmd;
use crate::common::needs::Need;
use crate::common::sandbox::Sandbox;
use crate::driver_kit;
use crate::store_kit::{Box_, tree};
use crate::{every_driver, needs};

/// Where a layer is after it has been mounted.
fn mounted(store: &Box_<'_>, name: &str) -> PathBuf {
    PathBuf::from(store.does(&["layer", "mount", name]).stdout.trim_end())
}

fn read(dir: &Path) -> String {
    fs::read_to_string(dir.join("a")).unwrap()
}

fn a_read_only_layer_cannot_be_written_by_who_has_it(store: &driver_kit::Store) {
    let store = Box_(store);
    store.fill("base", None, &tree(store.0));
    store.does(&["layer", "create", "--read-only", "empty"]);
    for name in ["base", "empty"] {
        let at = mounted(&store, name);
        assert_eq!(mounted(&store, name), at);
        assert!(fs::write(at.join("a"), "late\n").is_err(), "{name} can be changed");
        assert!(fs::write(at.join("new"), "late\n").is_err(), "{name} can be added to");
        assert!(fs::set_permissions(&at, fs::Permissions::from_mode(0o700)).is_err(), "{name}");
        store.does(&["layer", "umount", name]);
        store.plyfs(&["layer", "rm", name]).exits(1).complains("its mount, 1 times");
        store.does(&["layer", "umount", name]);
        store.plyfs(&["layer", "umount", name]).exits(1).complains("not found");
    }
    store.does(&["layer", "create", "--parent", "base", "box"]);
    assert_eq!(read(&mounted(&store, "box")), "one\n");
    store.does(&["layer", "umount", "box"]);
    store.does(&["check"]).says("3 layers, nothing wrong");
    for name in ["box", "base", "empty"] {
        store.does(&["layer", "rm", name]);
    }
}

fn no_layer_lies_on_one_that_somebody_writes(store: &driver_kit::Store) {
    let store = Box_(store);
    store.does(&["layer", "create", "image"]);
    let at = mounted(&store, "image");
    fs::write(at.join("a"), "one\n").unwrap();
    let create = ["layer", "create", "--parent", "image", "box"];
    store.plyfs(&create).exits(1).complains("layer 'image': in use by its mount, 1 times");
    store.does(&["layer", "umount", "image"]);
    store.does(&create);
    // Whoever has it now does not write it, or what lies on it has files of its own.
    let at = mounted(&store, "image");
    let late = fs::write(at.join("a"), "late\n");
    assert_eq!(late.is_ok(), store.0.driver.name() == "vfs");
    assert_eq!(read(&mounted(&store, "box")), "one\n");
    store.does(&["layer", "umount", "box"]);
    if late.is_err() {
        // And keeps nobody from making more on it.
        store.does(&["layer", "create", "--parent", "image", "more"]);
    }
    store.does(&["layer", "umount", "image"]);
    let changed = mounted(&store, "box");
    store.plyfs(&["layer", "create", "--parent", "box", "top"]).exits(1).complains("'box': in use");
    fs::write(changed.join("a"), "two\n").unwrap();
    store.does(&["layer", "umount", "box"]);
    store.does(&["layer", "create", "--parent", "box", "top"]);
    assert_eq!(read(&mounted(&store, "top")), "two\n");
    store.does(&["layer", "umount", "top"]);
    assert!(fs::read_dir(store.0.root().join("pending")).unwrap().next().is_none());
}

/// Whoever holds a layer's counts may be at a mount, which takes long.
fn who_waits_for_a_template_keeps_nobody_from_other_layers(store: &driver_kit::Store) {
    let store = Box_(store);
    store.does(&["layer", "create", "one"]);
    for number in 0..3000 {
        fs::write(store.0.own("one").join(format!("{number}")), "x").unwrap();
    }
    let (root, fill) =
        (store.0.root(), store.plyfs(&["layer", "create", "--template", "one", "two"]));
    let counts = Counts::open(&root.join("run")).unwrap();
    std::thread::scope(|scope| {
        let creation = scope.spawn(move || fill.run());
        let start = Instant::now();
        let says = || fs::read_to_string(root.join("pending/two")).unwrap_or_default();
        while !says().ends_with("create") {
            assert!(start.elapsed() < Duration::from_secs(30), "it is never made");
            std::thread::sleep(Duration::from_millis(1));
        }
        let held = counts.hold("one").unwrap();
        // By then it has been copied.
        std::thread::sleep(Duration::from_millis(1500));
        let was_there = !creation.is_finished();
        let start = Instant::now();
        let other = store.plyfs(&["layer", "create", "other"]).limit(Duration::from_secs(10));
        let other = scope.spawn(move || other.run());
        while !other.is_finished() && start.elapsed() < Duration::from_secs(5) {
            std::thread::sleep(Duration::from_millis(10));
        }
        let done = other.is_finished();
        drop(held);
        assert_eq!(creation.join().unwrap().status, 0);
        drop(other.join());
        assert!(was_there, "it was not waiting");
        assert!(done, "another layer waits too");
    });
}

/// Time is told by what else the host does; the changes that are made are not.
fn each_further_user_costs_the_same(store: &driver_kit::Store) {
    let store = Box_(store);
    store.fill("base", None, &tree(store.0));
    store.does(&["layer", "create", "--parent", "base", "box"]);
    let changes = |verb: &str, name: &str| {
        let counted = store.plyfs(&["layer", verb, name]).env("PLYFS_STORE_FAULT", "1000000");
        let done = counted.env("PLYFS_LOG", "plyfs_fuse::sys::fault=trace").succeeds();
        done.stderr.lines().filter(|line| line.contains("change ")).count()
    };
    for name in ["base", "box"] {
        store.does(&["layer", "mount", name]);
        for verb in ["mount", "umount"] {
            let costs: Vec<usize> = (0..12).map(|_| changes(verb, name)).collect();
            assert!(
                costs[0] > 0 && costs.iter().all(|cost| *cost == costs[0]),
                "{verb}: {costs:?}"
            );
        }
        store.does(&["layer", "umount", name]);
    }
}

every_driver! {
    read_only, a_read_only_layer_cannot_be_written_by_who_has_it;
    parents, no_layer_lies_on_one_that_somebody_writes;
    costs, each_further_user_costs_the_same;
    waiting, who_waits_for_a_template_keeps_nobody_from_other_layers;
}

/// An ordinary user without a namespace of his own.
#[test]
fn who_may_not_mount_is_given_the_directory_and_keeps_others_off() {
    needs!(Root);
    let sandbox = Sandbox::new();
    let home = sandbox.dir("home");
    std::os::unix::fs::chown(&home, Some(54321), Some(54321)).unwrap();
    fs::write(home.join("a"), "one\n").unwrap();
    let plyfs = |words: &[&str]| {
        let user =
            ["--reuid=54321", "--regid=54321", "--clear-groups", env!("CARGO_BIN_EXE_plyfs")];
        let cmd = Cmd::new("setpriv").args(user).cwd(&home).arg("--root").arg(home.join("store"));
        cmd.args(["--driver", "vfs"]).args(words)
    };
    Cmd::new("tar")
        .cwd(&home)
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
        let cmd = Cmd::new("setpriv").args(user).arg(env!("CARGO_BIN_EXE_plyfs")).cwd(&home);
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

//! What a layer holds is changed by nobody but its own user: neither by who has the layer below it, nor by who looks at it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use plyfs::mount::count::{Counts, Held};

use crate::driver_kit;
use crate::every_driver;
use crate::store_kit::{Box_, tree};

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

/// The counts of the layer `one`, once `two` is being made from it.
fn held_while_it_is_copied(root: &Path) -> Held {
    let start = Instant::now();
    let says = || fs::read_to_string(root.join("pending/two")).unwrap_or_default();
    while !says().ends_with("create") {
        assert!(start.elapsed() < Duration::from_secs(30), "it is never made");
        std::thread::sleep(Duration::from_millis(1));
    }
    Counts::open(&root.join("run")).unwrap().hold("one").unwrap()
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
    std::thread::scope(|scope| {
        let creation = scope.spawn(move || fill.run());
        let held = held_while_it_is_copied(&root);
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

/// A layer is filled by one copy of what its template or its parent holds at one time.
fn what_is_written_while_it_is_copied_is_no_copy(store: &driver_kit::Store) {
    let store = Box_(store);
    store.does(&["layer", "create", "one"]);
    for number in 0..3000 {
        fs::write(store.0.own("one").join(format!("{number}")), "x").unwrap();
    }
    let root = store.0.root();
    let create = |name: &str| store.plyfs(&["layer", "create", "--template", "one", name]);
    let (meanwhile, after) = (create("two"), create("three"));
    std::thread::scope(|scope| {
        let creation = scope.spawn(move || meanwhile.run());
        let held = held_while_it_is_copied(&root);
        held.take().unwrap();
        assert!(held.give_back().unwrap());
        drop(held);
        let done = creation.join().unwrap();
        assert_eq!(done.status, 1, "{}", done.story());
        done.complains("layer 'one': in use by another plyfs process that changes it");
    });
    store.plyfs(&["layer", "exists", "two"]).exits(1);
    after.succeeds();
    store.does(&["check"]).says("2 layers, nothing wrong");
}

fn who_can_write_is_noted_and_who_reads_is_not(store: &driver_kit::Store) {
    let store = Box_(store);
    store.fill("base", None, &tree(store.0));
    store.does(&["layer", "create", "--parent", "base", "box"]);
    let counts = Counts::open(&store.0.root().join("run")).unwrap();
    for (name, writes) in [("base", false), ("box", true)] {
        let turn = || counts.hold(name).unwrap().turn().unwrap();
        let before = turn();
        mounted(&store, name);
        store.does(&["layer", "umount", name]);
        assert_eq!(turn() != before, writes, "{name}");
    }
}

/// Neither sees what the other writes.
fn a_directory_and_a_mount_are_not_had_at_once(store: &driver_kit::Store) {
    if store.driver.name() != "fuse-overlay" {
        return println!(
            "skipped: {} mounts a layer the same way with and without limits",
            store.driver.name()
        );
    }
    let store = Box_(store);
    store.does(&["layer", "create", "a"]);
    let at = mounted(&store, "a");
    let limit = store.plyfs(&["layer", "quota", "a", "--size", "1G"]).run();
    if limit.status != 0 || !at.ends_with("diff") {
        return println!("skipped: the layer is mounted in any case");
    }
    store
        .plyfs(&["layer", "mount", "a"])
        .exits(1)
        .complains("layer 'a': in use by its mount, 1 times");
    store.does(&["layer", "umount", "a"]);
    assert_ne!(mounted(&store, "a"), at);
    store.does(&["layer", "umount", "a"]);
}

fn who_would_write_is_told_that_others_only_read(store: &driver_kit::Store) {
    let name = store.driver.name();
    if name == "vfs" || name == "overlay" {
        return println!("skipped: a layer that {name} shows to be written has no options");
    }
    let store = Box_(store);
    store.fill("base", None, &tree(store.0));
    store.does(&["layer", "create", "--parent", "base", "box"]);
    let read_only = ["layer", "mount", "-o", "ro", "box"];
    let at = PathBuf::from(store.does(&read_only).stdout.trim_end());
    assert!(fs::write(at.join("a"), "x").is_err());
    store
        .plyfs(&["layer", "mount", "box"])
        .exits(1)
        .complains("option 'ro': layer 'box' is mounted");
    store.does(&read_only);
    store.does(&["layer", "umount", "box"]);
    store.does(&["layer", "umount", "box"]);
    fs::write(mounted(&store, "box").join("a"), "x").unwrap();
    store.does(&["layer", "umount", "box"]);
}

/// Whoever can lock what all commands lock has them wait.
fn nobody_else_can_lock_a_store(store: &driver_kit::Store) {
    let store = Box_(store);
    let lock = store.0.root().join("lock");
    let bits = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
    store.does(&["layer", "create", "a"]);
    assert_eq!(bits(&lock), 0o600);
    fs::set_permissions(&lock, fs::Permissions::from_mode(0o644)).unwrap();
    store.does(&["layer", "ls"]);
    assert_eq!(bits(&lock), 0o600);
}

every_driver! {
    copied, what_is_written_while_it_is_copied_is_no_copy;
    turns, who_can_write_is_noted_and_who_reads_is_not;
    both_ways, a_directory_and_a_mount_are_not_had_at_once;
    only_read, who_would_write_is_told_that_others_only_read;
    locks, nobody_else_can_lock_a_store;
    read_only, a_read_only_layer_cannot_be_written_by_who_has_it;
    parents, no_layer_lies_on_one_that_somebody_writes;
    costs, each_further_user_costs_the_same;
    waiting, who_waits_for_a_template_keeps_nobody_from_other_layers;
}

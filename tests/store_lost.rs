//! A store from which something is lost, or in which a crash left work, can be put in order: what is left can be removed, and
//! each repair is tried.

use std::fs;
use std::path::PathBuf;

use crate::driver_kit;
use crate::every_driver;
use crate::store_kit::{Box_, tree};

fn mounted(store: &Box_<'_>, name: &str) -> PathBuf {
    PathBuf::from(store.does(&["layer", "mount", name]).stdout.trim_end())
}

/// Three layers on each other; where the storage of one is.
fn three_layers(store: &Box_<'_>) -> PathBuf {
    let tree = tree(store.0);
    store.fill("base", None, &tree);
    store.fill("mid", Some("base"), &tree);
    store.does(&["layer", "create", "--parent", "mid", "top"]);
    let own = store.0.own("mid");
    match store.0.driver.name() {
        "vfs" => own,
        _ => own.parent().unwrap().to_path_buf(),
    }
}

fn a_layer_on_a_lost_one_is_removed(store: &driver_kit::Store) {
    let store = Box_(store);
    fs::remove_dir_all(three_layers(&store)).unwrap();
    if store.0.driver.name() != "vfs" {
        store.plyfs(&["layer", "mount", "top"]).exits(1).complains("corrupt");
    }
    store.plyfs(&["check"]).exits(1).says("layer 'mid': its storage is missing");
    for name in ["top", "mid", "base"] {
        store.does(&["layer", "rm", name]);
    }
    store.does(&["check"]).says("0 layers, nothing wrong");
}

fn a_mounted_one_on_a_lost_one_stays(store: &driver_kit::Store) {
    let store = Box_(store);
    let lost = three_layers(&store);
    mounted(&store, "top");
    mounted(&store, "top");
    fs::remove_dir_all(lost).unwrap();
    store.plyfs(&["layer", "rm", "top"]).exits(1).complains("in use by its mount, 2 times");
    store.does(&["layer", "umount", "top"]);
    if store.0.driver.name() != "vfs" {
        // What is really mounted counts, whatever was noted.
        fs::remove_dir_all(store.0.root().join("run")).unwrap();
        store.plyfs(&["layer", "rm", "top"]).exits(1).complains("in use by its mount, 1 times");
    }
    store.does(&["layer", "umount", "top"]);
    store.does(&["layer", "rm", "top"]);
    assert!(!store.does(&["layer", "ls"]).stdout.contains("top"));
}

fn a_repair_that_fails_ends_no_other(store: &driver_kit::Store) {
    let record = match store.driver.name() {
        "overlay" => "parent",
        "vfs" => return println!("skipped: a copy has no record of its parent"),
        _ => "lower",
    };
    let store = Box_(store);
    let lost = three_layers(&store);
    store.does(&["layer", "create", "--parent", "base", "zbox"]);
    fs::remove_dir_all(lost).unwrap();
    fs::write(store.0.driver.home().join("zbox").join(record), "").unwrap();
    let done = store.plyfs(&["check", "--repair"]).exits(1);
    done.says("layer 'mid': its storage is missing").says("layer 'top': ");
    let repaired = |line: &str| line.starts_with("layer 'zbox': ") && line.ends_with("; repaired");
    assert!(done.stdout.lines().any(repaired), "{}", done.story());
    assert!(done.stdout.contains("; it cannot be repaired: "), "{}", done.story());
}

fn an_unreadable_record_ends_no_check(store: &driver_kit::Store) {
    let store = Box_(store);
    let tree = tree(store.0);
    store.fill("base", None, &tree);
    store.fill("last", None, &tree);
    for name in ["base", "last"] {
        let path = store.0.root().join("layers").join(name).join("tar-split.gz");
        fs::remove_file(&path).unwrap();
        // What is there cannot be read as a file.
        fs::create_dir(&path).unwrap();
    }
    let done = store.plyfs(&["check"]).exits(1);
    done.says("layer 'base': ").says("layer 'last': ").says("2 layers, 2 problems");
}

/// As a crash leaves an `apply` that failed, while the layer was made empty again.
fn work_of_another_driver_is_left_to_it(store: &driver_kit::Store) {
    let store = Box_(store);
    let own = store.0.driver.name();
    let other = if own == "vfs" { "overlay" } else { "vfs" };
    let pending = store.0.root().join("pending");
    let there =
        |store: &Box_<'_>, name: &str| store.0.driver.exists(&driver_kit::id(name)).unwrap();
    store.does(&["layer", "create", "--read-only", "half"]);
    store.0.driver.remove(&driver_kit::id("half")).unwrap();
    fs::write(pending.join("half"), format!("{own} apply")).unwrap();
    // Made, without a record yet, and removed, without one any more.
    for (name, word) in [("made", "create"), ("gone", "remove")] {
        store.0.read_write(name, None);
        fs::write(pending.join(name), format!("{own} {word}")).unwrap();
    }
    let done = store.plyfs_on(other, &["layer", "ls"]).succeeds();
    for name in ["half", "made", "gone"] {
        assert!(pending.join(name).exists(), "{name}: {}", done.story());
        assert!(!driver_kit::open(other, &store.0.root()).exists(&driver_kit::id(name)).unwrap());
        assert!(done.stderr.contains(&format!("'{name}'")), "{name}: {}", done.story());
    }
    assert!(done.stderr.contains("kept by another driver"), "{}", done.story());
    assert!(there(&store, "made") && there(&store, "gone"));
    let wanted = format!("kept by another driver than {other}; use --driver {own}");
    for words in [&["layer", "create", "made"][..], &["layer", "apply", "half", "/dev/null"]] {
        store.plyfs_on(other, words).exits(1).complains(&wanted);
    }
    store.does(&["layer", "ls"]);
    assert!(!there(&store, "made") && !there(&store, "gone") && there(&store, "half"));
    assert!(fs::read_dir(&pending).unwrap().next().is_none());
    store.does(&["layer", "rm", "half"]);
}

fn a_half_filled_layer_on_a_lost_one_is_removed(store: &driver_kit::Store) {
    let store = Box_(store);
    store.fill("base", None, &tree(store.0));
    store.does(&["layer", "create", "--read-only", "--parent", "base", "half"]);
    let pending = store.0.root().join("pending/half");
    fs::write(&pending, format!("{} apply", store.0.driver.name())).unwrap();
    fs::remove_dir_all(store.0.driver.place(&driver_kit::id("base"))).unwrap();
    store.does(&["layer", "ls"]).complains("layer 'half': ");
    assert!(pending.exists(), "it cannot be made empty without what it lies on");
    for name in ["half", "base"] {
        store.does(&["layer", "rm", name]);
    }
    store.does(&["check"]).says("0 layers, nothing wrong");
    assert!(!pending.exists());
}

fn what_is_too_deep_to_be_mounted_is_removed(store: &driver_kit::Store) {
    if store.driver.name() != "overlay2" {
        return println!("skipped: only the kernel's overlay has a depth that is soon reached");
    }
    let store = Box_(store);
    store.fill("base", None, &tree(store.0));
    store.does(&["layer", "create", "--parent", "base", "deep"]);
    let path = store.0.driver.place(&driver_kit::id("deep")).join("lower");
    let one = fs::read_to_string(&path).unwrap();
    fs::write(&path, vec![one.trim_end(); 501].join(":")).unwrap();
    store.plyfs(&["layer", "mount", "deep"]).exits(1).complains("use --driver fuse-overlay");
    store.plyfs(&["layer", "umount", "deep"]).exits(1).complains("not found");
    store.does(&["layer", "rm", "deep"]);
}

fn what_is_mounted_within_a_layer_keeps_it(store: &driver_kit::Store) {
    let store = Box_(store);
    store.does(&["layer", "create", "box"]);
    let within = store.0.own("box").join("in");
    fs::create_dir(&within).unwrap();
    rustix::mount::mount_bind(store.0.sandbox.dir("other"), &within).unwrap();
    let done = store.plyfs(&["layer", "rm", "box"]).exits(1);
    let list = store.does(&["layer", "ls"]).stdout;
    rustix::mount::unmount(&within, rustix::mount::UnmountFlags::DETACH).unwrap();
    done.complains("layer 'box': in use by the mount at ");
    assert!(list.contains("box"), "{list}");
    store.does(&["layer", "rm", "box"]);
}

fn what_is_no_layer_is_left_alone(store: &driver_kit::Store) {
    let store = Box_(store);
    let place = store.0.driver.place(&driver_kit::id("box"));
    fs::create_dir(&place).unwrap();
    fs::write(place.join("kept"), "of somebody else").unwrap();
    if store.0.driver.name() != "vfs" {
        store.plyfs(&["layer", "create", "box"]).exits(1).complains("is no layer of ours");
    }
    store.plyfs(&["layer", "rm", "box"]).exits(1).complains("layer 'box': not found");
    assert_eq!(fs::read_to_string(place.join("kept")).unwrap(), "of somebody else");
    fs::remove_dir_all(place).unwrap();
    store.does(&["layer", "create", "box"]);
}

fn one_line_tells_that_there_is_nothing_to_unmount(store: &driver_kit::Store) {
    let store = Box_(store);
    let done = store.plyfs(&["layer", "umount", "none"]).exits(1);
    let root = store.0.root();
    done.complains("layer 'none': not found in ").complains(root.to_str().unwrap());
    done.complains("plyfs layer ls");
    assert_eq!(done.stderr.lines().count(), 1, "{}", done.stderr);
    store.does(&["layer", "create", "box"]);
    let done = store.plyfs(&["layer", "umount", "box"]).exits(1);
    done.complains("mount of layer 'box': not found");
    assert_eq!(done.stderr.lines().count(), 1, "{}", done.stderr);
}

every_driver! {
    removed, a_layer_on_a_lost_one_is_removed;
    mounted_still, a_mounted_one_on_a_lost_one_stays;
    repaired, a_repair_that_fails_ends_no_other;
    unreadable, an_unreadable_record_ends_no_check;
    pending, work_of_another_driver_is_left_to_it;
    half_filled, a_half_filled_layer_on_a_lost_one_is_removed;
    too_deep, what_is_too_deep_to_be_mounted_is_removed;
    mounted_within, what_is_mounted_within_a_layer_keeps_it;
    strangers, what_is_no_layer_is_left_alone;
    unknown, one_line_tells_that_there_is_nothing_to_unmount;
}

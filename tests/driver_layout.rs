//! The overlay format on disk: what it looks like, what a crash leaves, and that both its drivers read it.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::PathBuf;

use plyfs::driver::{Create, Driver, MountOptions, View};
use plyfs::error::Error;

use crate::common::mount::own_namespace;
use crate::driver_kit::{Store, id};
use crate::needs;

fn short(store: &Store, name: &str) -> String {
    fs::read_to_string(store.driver.home().join(name).join("link")).unwrap()
}

#[test]
fn layers_lie_as_other_engines_expect() {
    needs!(Root, KernelOverlay);
    let store = Store::open("overlay2");
    store.read_write("a", None);
    store.read_write("b", Some("a"));
    store.read_write("c", Some("b"));
    let home = store.root().join("overlay2");
    assert_eq!(store.driver.home(), home);
    let mode = |path: &str| fs::metadata(home.join(path)).unwrap().mode() & 0o7777;
    assert_eq!((mode(""), mode("l"), mode("a/diff"), mode("b/work")), (0o710, 0o700, 0o755, 0o700));
    let (a, b) = (short(&store, "a"), short(&store, "b"));
    assert_eq!(a.len(), 26);
    assert!(a.bytes().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit()));
    assert_eq!(fs::read_link(home.join("l").join(&a)).unwrap(), PathBuf::from("../a/diff"));
    assert_eq!(fs::read_to_string(home.join("c/lower")).unwrap(), format!("l/{b}:l/{a}"));
    assert!(!home.join("a/lower").exists() && !home.join("a/work").exists());
    assert!(home.join("a/committed").exists() && !home.join("c/committed").exists());
    let parts = store.driver.parts(&id("c")).unwrap();
    assert_eq!(parts.own, home.join("c/diff"));
    assert_eq!(parts.below, [home.join("b/diff"), home.join("a/diff")]);
}

#[test]
fn both_drivers_see_the_same_layers() {
    needs!(Root, KernelOverlay, Fuse);
    own_namespace();
    for (first, second) in [("overlay2", "fuse-overlay"), ("fuse-overlay", "overlay2")] {
        let mut store = Store::open(first);
        store.read_write("base", None);
        for name in ["gone", "kept", "moved", "dir/a", "dir/b"] {
            let at = store.own("base").join(name);
            fs::create_dir_all(at.parent().unwrap()).unwrap();
            fs::write(at, name).unwrap();
        }
        store.read_write("top", Some("base"));
        store.see("top", |root| {
            fs::remove_file(root.join("gone")).unwrap();
            fs::rename(root.join("moved"), root.join("there")).unwrap();
            fs::remove_dir_all(root.join("dir")).unwrap();
            fs::create_dir(root.join("dir")).unwrap();
            fs::write(root.join("dir/c"), "new").unwrap();
        });
        store.reopen(second);
        store.see("top", |root| {
            let mut names: Vec<_> =
                fs::read_dir(root).unwrap().map(|e| e.unwrap().file_name()).collect();
            names.sort();
            assert_eq!(names, ["dir", "kept", "there"], "{first} to {second}");
            assert_eq!(fs::read_dir(root.join("dir")).unwrap().count(), 1);
            fs::write(root.join("kept"), second).unwrap();
            fs::remove_file(root.join("there")).unwrap();
        });
        store.read_write("above", Some("top"));
        store.reopen(first);
        store.see("above", |root| {
            assert_eq!(fs::read_to_string(root.join("kept")).unwrap(), second);
            assert!(!root.join("there").exists());
        });
    }
}

#[test]
fn five_hundred_lowers_are_mounted_and_more_only_by_ours() {
    needs!(Root, KernelOverlay, Fuse);
    own_namespace();
    let mut store = Store::open("fuse-overlay");
    for n in 0..=501 {
        let parent = (n > 0).then(|| format!("a-layer-with-quite-a-long-name-{}", n - 1));
        store.read_write(&format!("a-layer-with-quite-a-long-name-{n}"), parent.as_deref());
    }
    let name = |n: usize| format!("a-layer-with-quite-a-long-name-{n}");
    fs::write(store.own(&name(0)).join("deepest"), "seen").unwrap();
    let seen = |store: &Store, n: usize| {
        let text = store.see(&name(n), |root| fs::read_to_string(root.join("deepest")).unwrap());
        assert_eq!(text, "seen");
    };
    seen(&store, 501);
    store.reopen("overlay2");
    // Read-only, so one layer more is a lower.
    seen(&store, 499);
    let error = store.driver.view(&id(&name(501)), &MountOptions::default()).unwrap_err();
    assert!(error.to_string().contains("--driver fuse-overlay"), "{error}");
    let parent = id(&name(500));
    let made = store.driver.create(&id("x"), Some(&parent), &Create::default());
    assert!(matches!(made, Err(Error::Unsupported { .. })), "{made:?}");
    store.read_write("x", Some(&name(499)));
    seen(&store, 499);
    let text = store.see("x", |root| fs::read_to_string(root.join("deepest")).unwrap());
    assert_eq!(text, "seen");
}

#[test]
fn what_a_crash_leaves_is_swept() {
    needs!(Root, KernelOverlay);
    let store = Store::open("overlay2");
    store.read_write("a", None);
    let home = store.driver.home().to_owned();
    fs::create_dir_all(home.join(".new-ABC/diff")).unwrap();
    fs::create_dir_all(home.join(".gone-ABC/diff/deep")).unwrap();
    symlink("../b/diff", home.join("l/ABC")).unwrap();
    fs::create_dir_all(home.join("a/diff.new/half")).unwrap();
    assert_eq!(store.driver.list().unwrap(), [id("a")]);
    // While another process is at work, only what is removed already is deleted.
    let working = fs::File::open(home.join(".lock")).unwrap();
    rustix::fs::flock(&working, rustix::fs::FlockOperation::LockShared).unwrap();
    assert_eq!(store.driver.sweep().unwrap().len(), 1);
    assert!(home.join(".new-ABC").exists() && home.join("a/diff.new").exists());
    drop(working);
    assert_eq!(store.driver.sweep().unwrap().len(), 3);
    assert_eq!(store.driver.sweep().unwrap(), Vec::<String>::new());
    let mut left: Vec<_> = fs::read_dir(&home).unwrap().map(|e| e.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, [".lock", "a", "l"]);
    assert_eq!(fs::read_dir(home.join("l")).unwrap().count(), 1);
    assert_eq!(fs::read_dir(home.join("a")).unwrap().count(), 2);
}

#[test]
fn short_links_are_made_again() {
    needs!(Root, KernelOverlay);
    let store = Store::open("overlay2");
    store.read_write("a", None);
    store.read_write("b", Some("a"));
    let home = store.driver.home().to_owned();
    let before = store.driver.parts(&id("b")).unwrap();
    let link = home.join("l").join(short(&store, "a"));
    // The link alone, then the name alone.
    fs::remove_file(&link).unwrap();
    assert_eq!(store.driver.parts(&id("b")).unwrap(), before, "the layer's own record tells");
    assert!(store.driver.create(&id("c"), Some(&id("a")), &Create::default()).is_err());
    assert_eq!(store.driver.sweep().unwrap().len(), 1);
    assert!(link.symlink_metadata().is_ok());
    fs::remove_file(home.join("a/link")).unwrap();
    assert_eq!(store.driver.sweep().unwrap().len(), 1);
    assert_eq!(store.driver.parts(&id("b")).unwrap(), before);
    assert_eq!(store.driver.sweep().unwrap(), Vec::<String>::new());
    store.read_write("c", Some("a"));
}

#[test]
fn a_list_of_lowers_is_written_again_from_the_parent() {
    needs!(Root, KernelOverlay);
    let store = Store::open("overlay2");
    store.read_write("a", None);
    store.read_write("b", Some("a"));
    store.read_write("c", Some("b"));
    let before = store.driver.parts(&id("c")).unwrap();
    assert!(!store.driver.repair(&id("c"), Some(&id("b"))).unwrap());
    for damage in ["", "l/NOWHERE", "nonsense", "l/../../etc"] {
        fs::write(store.driver.home().join("c/lower"), damage).unwrap();
        if !damage.is_empty() {
            assert!(matches!(store.driver.parts(&id("c")), Err(Error::Corrupt { .. })), "{damage}");
        }
        assert!(store.driver.repair(&id("c"), Some(&id("b"))).unwrap(), "{damage}");
        assert_eq!(store.driver.parts(&id("c")).unwrap(), before);
    }
}

#[test]
fn a_parent_without_children_may_be_changed_again() {
    needs!(Root, KernelOverlay);
    let store = Store::open("overlay2");
    store.read_write("a", None);
    store.read_write("b", Some("a"));
    store.read_only("frozen", Some("a"));
    store.read_write("c", Some("b"));
    let writable = |driver: &dyn Driver, name: &str| match driver
        .view(&id(name), &MountOptions::default())
        .unwrap()
    {
        View::Mount(mount) => mount.upper.is_some(),
        View::Path(_) => true,
    };
    assert!(!writable(&*store.driver, "b") && !writable(&*store.driver, "frozen"));
    store.driver.remove(&id("c")).unwrap();
    store.driver.sweep().unwrap();
    assert!(writable(&*store.driver, "b") && !writable(&*store.driver, "frozen"));
}

#[test]
fn a_label_is_kept_and_asked_for() {
    needs!(Root, KernelOverlay);
    let store = Store::open("overlay2");
    store.read_write("a", None);
    let label = Some("system_u:object_r:container_file_t:s0:c1,c2".to_owned());
    let spec = Create { label, ..Create::default() };
    store.driver.create(&id("b"), Some(&id("a")), &spec).unwrap();
    let last = |options: &MountOptions| match store.driver.view(&id("b"), options).unwrap() {
        View::Mount(mount) => mount.options.last().cloned().unwrap(),
        View::Path(_) => String::new(),
    };
    let wanted = "context=\"system_u:object_r:container_file_t:s0:c1,c2\"";
    assert_eq!(last(&MountOptions::default()), wanted);
    let other = MountOptions { label: Some("x".to_owned()), ..MountOptions::default() };
    assert_eq!(last(&other), "context=\"x\"");
}

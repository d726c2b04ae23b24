//! Limits of layers where the filesystem keeps none: kept by the mounts of `fuse-overlay`, refused by the others.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use plyfs::driver::registry::{Config, Registry};
use plyfs::driver::{Create, Driver, Quota, View};
use plyfs::error::Error;

use crate::driver_kit::{Store, id, with};
use crate::store_kit::Box_;
use crate::{every_driver, this_test};

const MIB: u64 = 1 << 20;

fn options(words: &[(&str, &str)]) -> BTreeMap<String, String> {
    words.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

pub fn limited(words: &[(&str, &str)]) -> Create {
    Create { options: options(words), ..Create::default() }
}

/// The driver of a store opened with options.
pub fn open(store: &Store, words: &[(&str, &str)]) -> plyfs::Result<Box<dyn Driver>> {
    let config = Config { root: store.root(), options: options(words), ..Config::default() };
    let name = store.driver.name();
    Registry::built_in().select(Some(name), &[], &config).map(|selected| selected.driver)
}

/// The filesystem keeps limits: `driver_quota_projects` is about that.
fn by_project(store: &Store) -> bool {
    let quota = store.driver.status().into_iter().find(|(key, _)| *key == "Quota");
    quota.is_some_and(|(_, value)| value.contains("by project"))
}

/// Half of the limit fits, and what is beyond it does not.
fn keeps(root: &Path, bytes: u64) {
    let (half, more) = (root.join("half"), root.join("more"));
    fs::write(&half, vec![1; bytes as usize / 2]).unwrap();
    let refused = fs::write(&more, vec![1; bytes as usize]).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::StorageFull, "{refused}");
    fs::remove_file(more).unwrap();
    fs::remove_file(half).unwrap();
    fs::write(root.join("all"), vec![1; bytes as usize]).unwrap();
    fs::remove_file(root.join("all")).unwrap();
}

every_driver! {
    limits_are_kept_or_refused, |store| {
        if by_project(store) {
            return;
        }
        let quota = Quota { bytes: Some(MIB), inodes: Some(50) };
        let spec = limited(&[("size", "1m"), ("inodes", "50")]);
        if store.driver.name() != "fuse-overlay" {
            let made = store.driver.create(&id("a"), None, &spec);
            assert!(matches!(made, Err(Error::Unsupported { .. })), "{made:?}");
            // One line, with what to do.
            let told = made.unwrap_err().to_string();
            assert!(!told.contains('\n') && told.contains(" use "), "{told}");
            assert!(!store.driver.exists(&id("a")).unwrap());
            store.read_write("a", None);
            let set = store.driver.set_quota(&id("a"), quota);
            assert!(matches!(set, Err(Error::Unsupported { .. })), "{set:?}");
            store.driver.set_quota(&id("a"), Quota::default()).unwrap();
            assert_eq!(store.driver.quota(&id("a")).unwrap(), Quota::default());
            let key = format!("{}.size", store.driver.name());
            assert!(open(store, &[(&key, "1m")]).is_err(), "{key}");
            return;
        }
        store.driver.create(&id("a"), None, &spec).unwrap();
        assert_eq!(store.driver.quota(&id("a")).unwrap(), quota);
        store.see("a", |root| keeps(root, MIB));
        store.read_write("plain", None);
        fs::write(store.own("plain").join("low"), vec![1; 1 << 19]).unwrap();
        store.driver.create(&id("child"), Some(&id("plain")), &limited(&[("size", "1m")])).unwrap();
        store.see("child", |root| {
            keeps(root, MIB);
            for n in 0..60 {
                fs::write(root.join(n.to_string()), "").unwrap();
            }
        });
        assert_eq!(store.driver.usage(&id("child")).unwrap().inodes, 61);
    };

    limits_are_told_and_changed_by_the_command_line, |store| {
        if by_project(store) {
            return;
        }
        let at = Box_(store);
        if store.driver.name() != "fuse-overlay" {
            let told = at.plyfs(&["layer", "create", "--opt", "size=1m", "a"]).exits(1).stderr;
            let wanted = format!("plyfs: quota of driver {}: ", store.driver.name());
            assert!(told.starts_with(&wanted) && told.lines().count() == 1, "{told}");
            at.does(&["layer", "create", "a"]);
            at.plyfs(&["layer", "quota", "--size", "1m", "a"]).exits(1).complains(&wanted);
            at.does(&["layer", "quota", "a"]).says("LIMIT");
            return;
        }
        at.does(&["layer", "create", "--opt", "size=1m", "a"]);
        at.does(&["layer", "quota", "a"]).says("1048576");
        let set = ["--json", "layer", "quota", "a", "--size", "none", "--inodes", "1k"];
        let told: serde_json::Value = serde_json::from_str(&at.does(&set).stdout).unwrap();
        assert!(told["bytes"]["limit"].is_null(), "{told}");
        assert_eq!((&told["inodes"]["used"], &told["inodes"]["limit"]), (&1.into(), &1024.into()), "{told}");
        at.plyfs(&["layer", "quota", "a", "--size", "1"]).exits(1).complains("less than 4096");
        at.plyfs(&["layer", "quota", "b"]).exits(1).complains("layer 'b': not found");
        at.does(&["layer", "create", "--read-only", "fixed"]);
        let fixed = ["layer", "quota", "fixed", "--size", "1m"];
        at.plyfs(&fixed).exits(1).complains("a read-only layer has no limits");
    };

    a_limit_that_changes_holds_at_the_next_mount, |store| {
        if store.driver.name() != "fuse-overlay" || by_project(store) {
            return;
        }
        store.read_write("a", None);
        fs::write(store.own("a").join("old"), vec![1; 1 << 16]).unwrap();
        let set = |quota| store.driver.set_quota(&id("a"), quota);
        set(Quota { bytes: Some(MIB), inodes: None }).unwrap();
        store.see("a", |root| keeps(root, MIB - (1 << 16)));
        set(Quota { bytes: Some(2 * MIB), inodes: Some(2) }).unwrap();
        store.see("a", |root| {
            fs::write(root.join("one"), vec![1; MIB as usize]).unwrap();
            let refused = fs::write(root.join("two"), "").unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::StorageFull, "{refused}");
        });
        for wrong in [Quota { bytes: Some(5), inodes: None }, Quota { bytes: None, inodes: Some(0) }] {
            assert!(matches!(set(wrong), Err(Error::Invalid { .. })), "{wrong:?}");
        }
        set(Quota::default()).unwrap();
        assert_eq!(store.driver.quota(&id("a")).unwrap(), Quota::default());
        store.see("a", |root| {
            for n in 0..5 {
                fs::write(root.join(n.to_string()), vec![1; MIB as usize]).unwrap();
            }
        });
        assert_eq!(store.driver.sweep().unwrap(), Vec::<String>::new());
    };

    layers_come_with_the_limits_of_the_driver, |store| {
        if store.driver.name() != "fuse-overlay" || by_project(store) {
            return;
        }
        let words = [("fuse-overlay.size", "1m"), ("fuse-overlay.inodes", "1k")];
        let driver = open(store, &words).unwrap();
        driver.create(&id("usual"), None, &Create::default()).unwrap();
        driver.create(&id("own"), None, &limited(&[("size", "64k")])).unwrap();
        let read_only = Create { read_only: true, ..Create::default() };
        driver.create(&id("fixed"), None, &read_only).unwrap();
        let quota = |name| driver.quota(&id(name)).unwrap();
        assert_eq!(quota("usual"), Quota { bytes: Some(MIB), inodes: Some(1024) });
        assert_eq!(quota("own"), Quota { bytes: Some(1 << 16), inodes: Some(1024) });
        assert_eq!(quota("fixed"), Quota::default());
        assert!(matches!(driver.set_quota(&id("fixed"), quota("own")), Err(Error::Invalid { .. })));
        // They stay when the driver is opened without.
        assert_eq!(store.driver.quota(&id("usual")).unwrap(), quota("usual"));
        store.see("usual", |root| keeps(root, MIB));
        store.read_write("free", None);
        assert_eq!(store.driver.quota(&id("free")).unwrap(), Quota::default());
        // With a child on it nobody writes to it, and its limits are not in the way.
        store.read_write("child", Some("own"));
        store.see("own", |root| assert!(fs::write(root.join("x"), "").is_err()));
        store.see("child", |root| fs::write(root.join("x"), vec![1; 1 << 17]).unwrap());
        for wrong in [("fuse-overlay.size", "1"), ("fuse-overlay.inodes", "0"), ("fuse-overlay.size", "x")] {
            assert!(matches!(open(store, &[wrong]), Err(Error::Invalid { .. })), "{wrong:?}");
        }
        let told = driver.status().into_iter().find(|(key, _)| *key == "Quota");
        assert!(told.is_some_and(|(_, value)| value.contains("bytes and inodes")));
    };
}

#[test]
fn a_limited_layer_is_seen_by_the_other_driver() {
    with(this_test!(), "overlay2", false, |store| {
        let fuse = crate::driver_kit::open("fuse-overlay", &store.root());
        fuse.create(&id("a"), None, &limited(&[("size", "64k")])).unwrap();
        let view = store.driver.view(&id("a"), &Default::default()).unwrap();
        assert!(matches!(view, View::Path(_)), "{view:?}");
        assert_eq!(store.driver.quota(&id("a")).unwrap(), Quota::default());
        store.see("a", |root| fs::write(root.join("x"), vec![1; 1 << 17]).unwrap());
    });
}

//! Which driver a store uses.

use std::fs;
use std::path::Path;

use plyfs::driver::Driver;
use plyfs::driver::registry::{Config, PRIORITY, Registry, Selected};
use plyfs::error::{Error, Result};

use crate::common::mount::own_namespace;
use crate::common::sandbox::Sandbox;
use crate::driver_kit::Store;
use crate::needs;

fn config(root: &Path) -> Config {
    Config { root: root.to_owned(), ..Config::default() }
}

/// Never works, and says so.
fn unable(_: &Config) -> Result<Box<dyn Driver>> {
    Err(Error::unsupported("this driver", "is made to be refused"))
}

/// Is broken, which is another matter.
fn broken(_: &Config) -> Result<Box<dyn Driver>> {
    Err(Error::Corrupt { what: "this driver".to_owned(), detail: "is broken".to_owned() })
}

fn select(named: Option<&str>, priority: &[&str], root: &Path) -> Result<Selected> {
    let mut registry = Registry::built_in();
    registry.register("unable", "unable", unable).unwrap();
    registry.register("broken", "broken", broken).unwrap();
    registry.select(named, priority, &config(root))
}

#[test]
fn a_name_is_registered_once() {
    let mut registry = Registry::built_in();
    let error = registry.register("overlay2", "elsewhere", unable).unwrap_err();
    assert!(matches!(error, Error::Exists { .. }), "{error}");
    assert_eq!(registry.names(), ["overlay2", "fuse-overlay", "vfs", "overlay"]);
}

#[test]
fn a_driver_that_is_named_is_used_or_it_fails() {
    let sandbox = Sandbox::new();
    let selected = select(Some("vfs"), &PRIORITY, &sandbox.at("root")).unwrap();
    assert_eq!(selected.driver.name(), "vfs");
    assert!(matches!(
        select(Some("unable"), &PRIORITY, &sandbox.at("root")),
        Err(Error::Unsupported { .. })
    ));
    let error = select(Some("zfs"), &PRIORITY, &sandbox.at("root")).unwrap_err();
    assert!(error.to_string().contains("overlay2, fuse-overlay, vfs"), "{error}");
}

#[test]
fn the_first_that_works_is_used_and_the_others_are_remembered() {
    let sandbox = Sandbox::new();
    let selected = select(None, &["unable", "vfs", "broken"], &sandbox.at("root")).unwrap();
    assert_eq!(selected.driver.name(), "vfs");
    assert_eq!(selected.refused.len(), 1);
    assert_eq!(selected.refused[0].name, "unable");
    assert_eq!(selected.refused[0].reason, "this driver: is made to be refused");
    let error = select(None, &["unable", "broken", "vfs"], &sandbox.at("root")).unwrap_err();
    assert!(matches!(error, Error::Corrupt { .. }), "{error}");
}

#[test]
fn a_new_store_gets_the_kernels_overlay() {
    needs!(Root, KernelOverlay);
    own_namespace();
    let sandbox = Sandbox::new();
    let selected = select(None, &PRIORITY, &sandbox.at("root")).unwrap();
    assert_eq!((selected.driver.name(), selected.refused.len()), ("overlay2", 0));
}

#[test]
fn memory_is_no_place_for_every_driver() {
    needs!(Root, KernelOverlay);
    own_namespace();
    // An overlay cannot be the upper directory of another.
    let sandbox = Sandbox::new();
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        sandbox.lower(1).display(),
        sandbox.upper().display(),
        sandbox.work().display()
    );
    let data = std::ffi::CString::new(options).unwrap();
    let flags = rustix::mount::MountFlags::empty();
    rustix::mount::mount("overlay", sandbox.merged(), "overlay", flags, &*data).unwrap();
    let root = sandbox.merged().join("root");
    let error = select(Some("overlay2"), &[], &root).unwrap_err();
    assert!(matches!(error, Error::Unsupported { .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains("overlay2 on overlay") && text.contains("--root"), "{text}");
    let selected = select(None, &["overlay2", "vfs"], &root).unwrap();
    assert_eq!(selected.driver.name(), "vfs");
    assert_eq!(selected.refused[0].name, "overlay2");
    assert!(fs::read_dir(&root).unwrap().flatten().all(|entry| entry.file_name() == "vfs"));
    rustix::mount::unmount(sandbox.merged(), rustix::mount::UnmountFlags::empty()).unwrap();
}

#[test]
fn layers_on_disk_decide() {
    needs!(Root, KernelOverlay);
    own_namespace();
    for (present, priority, chosen) in [
        (&["overlay/x/root"][..], &PRIORITY[..], Ok("overlay")),
        (&["overlay2/x/diff"], &["vfs"], Ok("overlay2")),
        (&["overlay2/x/diff"], &["fuse-overlay", "overlay2"], Ok("fuse-overlay")),
        (&["overlay", "overlay2/l", "vfs/dir/x"], &["vfs", "overlay"], Ok("vfs")),
        (&["vfs/dir/x", "overlay2/x/diff"], &["vfs"], Ok("overlay2")),
        (&["overlay/x/root", "overlay2/x/diff"], &PRIORITY, Err("overlay2, overlay")),
        (&["unable/x", "vfs/dir/x"], &PRIORITY, Err("is made to be refused")),
        (&["broken/x"], &PRIORITY, Err("is broken")),
    ] {
        let sandbox = Sandbox::new();
        for dir in present {
            fs::create_dir_all(sandbox.at("root").join(dir)).unwrap();
        }
        match (select(None, priority, &sandbox.at("root")), chosen) {
            (Ok(selected), Ok(name)) => assert_eq!(selected.driver.name(), name, "{present:?}"),
            (Err(error), Err(text)) => {
                assert!(error.to_string().contains(text), "{present:?}: {error}")
            }
            (got, wanted) => panic!("{present:?}: wanted {wanted:?}, got {got:?}"),
        }
    }
}

#[test]
fn a_store_of_another_engine_is_not_taken_for_the_legacy_driver() {
    needs!(Root, KernelOverlay);
    own_namespace();
    let sandbox = Sandbox::new();
    fs::create_dir_all(sandbox.at("root/overlay/l/X")).unwrap();
    let error = select(None, &PRIORITY, &sandbox.at("root")).unwrap_err();
    assert!(error.to_string().contains("containers/storage"), "{error}");
}

#[test]
fn options_go_to_the_driver_they_name() {
    let sandbox = Sandbox::new();
    let with = |key: &str, value: &str| {
        let mut config = config(&sandbox.at("root"));
        config.options.insert(key.to_owned(), value.to_owned());
        Registry::built_in().select(Some("vfs"), &[], &config)
    };
    let status = with("vfs.xattrs", "best-effort").unwrap().driver.status();
    assert!(status.contains(&("Extended file attributes", "best-effort".to_owned())), "{status:?}");
    assert!(with("overlay2.mountopt", "volatile").is_ok());
    for (key, value) in [
        ("vfs.xattrs", "some"),
        ("vfs.colour", "red"),
        ("zfs.size", "1"),
        ("size", "1"),
        ("vfs.size", "x"),
    ] {
        let error = with(key, value).unwrap_err();
        assert!(matches!(error, Error::Invalid { .. }), "{key}: {error}");
    }
    assert!(matches!(with("vfs.size", "1G"), Err(Error::Unsupported { .. })));
}

#[test]
fn trying_leaves_nothing() {
    needs!(Root, KernelOverlay, Fuse);
    own_namespace();
    let mut store = Store::open("overlay2");
    // One left by a crash goes, and stays while its maker lives.
    let [dead, living] = [".trial-DEAD", ".trial-LIVING"].map(|name| store.root().join(name));
    fs::create_dir_all(dead.join("merged/d")).unwrap();
    fs::create_dir(&living).unwrap();
    let lock = fs::File::open(&living).unwrap();
    plyfs::sys::publish::lock_shared(&lock).unwrap();
    // Where it cannot be tried without being seen, the mount is left too.
    let (flags, none) = (rustix::mount::MountFlags::empty(), None::<&std::ffi::CStr>);
    rustix::mount::mount("plyfs", dead.join("merged"), "tmpfs", flags, none).unwrap();
    store.reopen("overlay2");
    assert!(!dead.exists());
    fs::remove_dir(living).unwrap();
    let mut left: Vec<_> =
        fs::read_dir(store.root()).unwrap().flatten().map(|e| e.file_name()).collect();
    left.sort();
    assert_eq!(left, ["lock", "overlay2"]);
    let table = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
    assert!(!table.contains(store.root().to_str().unwrap()));
}

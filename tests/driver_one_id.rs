//! Layers of a user whose namespace has one id: owners that cannot be set are kept, and given back.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::Command;

use crate::common::needs::Need;
use crate::common::sandbox;
use crate::driver_kit::Store;
use crate::needs;

/// Set in the process that has one id.
const INSIDE: &str = "PLYFS_ONE_ID";

fn archive() -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, kind) in [("file", tar::EntryType::Regular), ("null", tar::EntryType::Char)] {
        let mut header = tar::Header::new_ustar();
        header.set_path(path).unwrap();
        header.set_entry_type(kind);
        header.set_mode(0o4711);
        header.set_uid(1);
        header.set_gid(2);
        header.set_mtime(3);
        header.set_size(0);
        header.set_device_major(1).unwrap();
        header.set_device_minor(3).unwrap();
        header.set_cksum();
        builder.append(&header, std::io::empty()).unwrap();
    }
    builder.into_inner().unwrap()
}

#[test]
fn owners_that_cannot_be_set_are_given_back() {
    needs!(AnyUserNs, Fuse);
    if std::env::var_os(INSIDE).is_none() {
        let base =
            tempfile::Builder::new().prefix("plyfs-test.").tempdir_in(sandbox::base()).unwrap();
        let output = Command::new("unshare")
            .args(["--user", "--map-root-user", "--mount", "--propagation", "private", "--"])
            .arg(std::env::current_exe().unwrap())
            .args([crate::this_test!(), "--exact", "--nocapture"])
            .env(INSIDE, "1")
            .env("PLYFS_TEST_DIR", base.path())
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success() && text.contains("1 passed"), "{text}\n{errors}");
        return;
    }
    assert!(!Need::Root.met());
    for driver in ["fuse-overlay", "overlay2", "vfs", "overlay"] {
        let store = Store::open(driver);
        store.read_only("base", None);
        store.apply("base", &archive()).unwrap();
        store.read_write("top", Some("base"));
        if driver == "fuse-overlay" {
            for name in ["base", "top"] {
                store.see(name, |root| {
                    assert_eq!(fs::symlink_metadata(root.join("file")).unwrap().mode(), 0o10_4711);
                    assert_eq!(fs::symlink_metadata(root.join("null")).unwrap().mode(), 0o2_4711);
                });
            }
        }
        let bytes = store.diff("base", None);
        let mut found = tar::Archive::new(bytes.as_slice());
        let mut count = 0;
        for entry in found.entries().unwrap() {
            let entry = entry.unwrap();
            let header = entry.header();
            assert_eq!((header.uid().unwrap(), header.gid().unwrap()), (1, 2), "{driver}");
            assert_eq!(header.mode().unwrap(), 0o4711, "{driver}");
            count += 1;
        }
        assert_eq!(count, 2);
    }
}

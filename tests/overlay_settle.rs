//! Names of link groups are made when an overlay ends, also beside what its server may not read.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use plyfs_fuse::Overlay;
use plyfs_fuse::inode::Ino;
use plyfs_fuse::options::Options;
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};

use crate::common::rootless;
use crate::common::sandbox::Sandbox;
use crate::{needs, this_test};

/// Takes from this thread what opens directories that are closed to their owner.
fn become_ordinary() {
    let mut sets = capabilities(None).unwrap();
    sets.effective -= CapabilitySet::DAC_OVERRIDE | CapabilitySet::DAC_READ_SEARCH;
    set_capabilities(None, sets).unwrap();
}

fn settles() {
    let sandbox = Sandbox::new();
    let lower = sandbox.lower(1);
    let (upper, work) = (sandbox.dir("upper"), sandbox.dir("work"));
    for number in 0..8 {
        let dir = lower.join(format!("d{number}"));
        fs::create_dir_all(dir.join("private/deep")).unwrap();
        fs::write(dir.join("one"), "old").unwrap();
        fs::hard_link(dir.join("one"), dir.join("two")).unwrap();
    }
    let options = Options {
        lowers: vec![lower.clone()],
        upper: Some(upper.clone()),
        work: Some(work),
        ..Options::default()
    };
    let close = |mode| {
        for number in 0..8 {
            let path = lower.join(format!("d{number}/private"));
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        }
    };
    close(0);
    let settled = std::thread::spawn(move || {
        become_ordinary();
        let overlay = Overlay::open(&options).unwrap();
        for number in 0..8 {
            let dir = overlay.lookup(Ino::ROOT, format!("d{number}").as_ref()).unwrap().attr.ino;
            let file = overlay.lookup(dir, "one".as_ref()).unwrap().attr.ino;
            overlay.write(file, 0, b"new", false).unwrap();
            overlay.forget(file, 1);
            overlay.forget(dir, 1);
        }
        overlay.settle()
    })
    .join();
    close(0o700);
    settled.unwrap().unwrap();
    for number in 0..8 {
        let [one, two] = ["one", "two"].map(|name| upper.join(format!("d{number}/{name}")));
        assert_eq!(fs::read(&two).unwrap(), b"new", "{number}");
        assert_eq!(fs::metadata(&one).unwrap().ino(), fs::metadata(&two).unwrap().ino());
    }
}

#[test]
fn a_closed_directory_keeps_no_name_elsewhere_from_being_made() {
    needs!(Root);
    settles();
}

#[test]
fn a_closed_directory_keeps_no_name_elsewhere_from_being_made_rootless() {
    needs!(UserNs);
    if !rootless::run(this_test!()) {
        settles();
    }
}

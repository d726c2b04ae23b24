//! The mount shown again with other owners (mount_setattr(2), MOUNT_ATTR_IDMAP), as container
//! programs do to share one tree among user namespaces.

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, chown};
use std::path::PathBuf;

use rustix::mount::{UnmountFlags, unmount};

use crate::semantics_kit::sys::{mount_idmapped, user_namespace};
use crate::semantics_kit::{
    Backend, Fs, Test, append, as_user, both, chmod, errno, mode, put, stat, text,
};

const FIRST: u32 = 10_000;

/// The mount at another place, where the owners from 0 are seen as those from [`FIRST`].
struct Shifted {
    point: PathBuf,
    /// Where it is shown as it is.
    _plain: Fs,
}

impl Shifted {
    fn new(t: &Test, plain: Fs) -> Shifted {
        t.needs_ids();
        let point = t.layer("shifted", &[]);
        let namespace = user_namespace(FIRST, 1000).unwrap();
        mount_idmapped(&plain.at(""), &point, namespace).unwrap_or_else(|x| panic!("idmap: {x}"));
        Shifted { point, _plain: plain }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.point.join(name)
    }
}

impl Drop for Shifted {
    fn drop(&mut self) {
        let _ = unmount(&self.point, UnmountFlags::DETACH);
    }
}

fn owner(path: PathBuf) -> (u32, u32) {
    (stat(&path).uid(), stat(&path).gid())
}

both! { an_idmapped_mount_shows_and_stores_shifted_owners, Both("overlay mounts take no id map"), |t| {
    t.needs(t.backend != Backend::FuseOverlayfs, "a peer that takes id maps");
    t.needs_ids();
    put(t.lower("low"), "low");
    put(t.lower("other"), "x");
    chown(t.lower("other"), Some(5), Some(6)).unwrap();
    let fs = t.mount(&["d"]);
    let (low, made) = (fs.at("low"), fs.at("d/made"));
    let shifted = Shifted::new(t, fs);
    assert_eq!(owner(shifted.at("low")), (FIRST, FIRST));
    assert_eq!(owner(shifted.at("other")), (FIRST + 5, FIRST + 6));
    let (file, dir) = (shifted.at("d/made"), shifted.at("d/sub"));
    let (link, low_here) = (shifted.at("d/link"), shifted.at("low"));
    as_user(FIRST, || {
        put(&file, "made");
        fs::create_dir(&dir).unwrap();
        std::os::unix::fs::symlink("x", &link).unwrap();
        append(&low_here, "+");
        chmod(&low_here, 0o640);
    });
    for name in ["d/made", "d/sub", "d/link", "low"] {
        assert_eq!(owner(shifted.at(name)), (FIRST, FIRST), "{name}");
        assert_eq!(owner(t.upper(name)), (0, 0), "{name} on disk");
    }
    assert_eq!((owner(made), owner(low)), ((0, 0), (0, 0)));
    assert_eq!((text(t.upper("low")), mode(t.upper("low"))), ("low+".into(), 0o640));
    chown(shifted.at("d/made"), Some(FIRST + 7), Some(FIRST + 8)).unwrap();
    assert_eq!(owner(t.upper("d/made")), (7, 8));
}}

both! { an_owner_outside_the_id_map_makes_nothing_on_an_idmapped_mount, Both("overlay mounts take no id map"), |t| {
    t.needs(t.backend != Backend::FuseOverlayfs, "a peer that takes id maps");
    let fs = t.mount(&["d", "f=x"]);
    chmod(fs.at("d"), 0o777);
    let shifted = Shifted::new(t, fs);
    let made = File::create(shifted.at("d/new"));
    assert_eq!(errno(made), rustix::io::Errno::OVERFLOW, "root has no id there");
    assert!(chown(shifted.at("f"), Some(0), None).is_err());
    assert_eq!(owner(t.lower("f")), (0, 0));
}}

both! { set_id_bits_fall_on_a_truncation_through_an_idmapped_mount, Both("overlay mounts take no id map"), |t| {
    t.needs(t.backend != Backend::FuseOverlayfs, "a peer that takes id maps");
    let fs = t.mount(&["f=text"]);
    chmod(fs.at("f"), 0o6777);
    let shifted = Shifted::new(t, fs);
    let file = shifted.at("f");
    as_user(FIRST + 3, || drop(File::create(&file).unwrap()));
    assert_eq!(mode(&file), 0o777);
    chmod(&file, 0o6777);
    drop(File::create(&file).unwrap());
    // Root keeps them, unless it is root of a user namespace only.
    put(t.at("local"), "text");
    chmod(t.at("local"), 0o6777);
    drop(File::create(t.at("local")).unwrap());
    assert_eq!(mode(&file), mode(t.at("local")));
    assert_eq!(mode(&file) & 0o4000 != 0, t.is_root());
}}

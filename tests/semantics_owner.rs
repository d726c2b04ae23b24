//! Who owns what: id maps, squashing, and owners kept in the override record.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, chown, lchown, symlink};
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};

use crate::semantics_kit::{
    Stack, append, as_user, both, chmod, exists, mode, names, put, set_xattr, stat, text, whiteout,
    xattr, xattrs,
};

fn owner(path: impl AsRef<Path>) -> (u32, u32) {
    let stat = stat(path);
    (stat.uid(), stat.gid())
}

both! { mapped_ids_are_shown_and_stored_through_the_map, NoDaemon, |t| {
    t.needs_ids();
    for (name, uid, gid) in [("a", 0, 0), ("b", 5, 6), ("c", 12, 0), ("none", 77, 78)] {
        put(t.lower(name), "x");
        chown(t.lower(name), Some(uid), Some(gid)).unwrap();
    }
    symlink("a", t.lower("l")).unwrap();
    lchown(t.lower("l"), Some(5), Some(6)).unwrap();
    let maps = "uidmapping=:0:1000:10:10:2000:5,gidmapping=:0:3000:10";
    let mut fs = t.mount_with(maps, &[]);
    for _ in 0..2 {
        assert_eq!(owner(fs.at("a")), (1000, 3000));
        assert_eq!(owner(fs.at("b")), (1005, 3006));
        assert_eq!(owner(fs.at("c")), (2002, 3000));
        assert_eq!(owner(fs.at("l")), (1005, 3006));
        assert_eq!(owner(fs.at("none")), (65_534, 65_534), "the overflow id");
        fs.remount();
    }
    chown(fs.at("a"), Some(1007), Some(3008)).unwrap();
    assert_eq!(owner(fs.at("a")), (1007, 3008));
    assert_eq!(owner(t.upper("a")), (7, 8));
    assert!(chown(fs.at("b"), Some(4242), None).is_err(), "an id that the map does not have");
    fs.remount();
    assert_eq!(owner(fs.at("a")), (1007, 3008));
}}

both! { a_new_file_of_a_mapped_user_is_stored_as_the_id_on_disk, NoDaemon, |t| {
    t.needs_ids();
    let fs = t.mount_with("uidmapping=0:1000:10,gidmapping=0:1000:10", &["d"]);
    chmod(t.at("upper"), 0o777);
    chown(fs.at("d"), Some(1003), Some(1003)).unwrap();
    as_user(1003, || {
        put(fs.at("d/file"), "x");
        fs::create_dir(fs.at("d/dir")).unwrap();
        symlink("x", fs.at("d/link")).unwrap();
    });
    for name in ["d/file", "d/dir", "d/link"] {
        assert_eq!(owner(fs.at(name)), (1003, 1003), "{name}");
        assert_eq!(owner(t.upper(name)), (3, 3), "{name} on disk");
    }
}}

both! { squashing_shows_one_owner_and_forgives_changes_of_owner, NoDaemon, |t| {
    t.needs_ids();
    for (options, shown) in [
        ("squash_to_uid=1000,squash_to_gid=1001", (1000, 1001)),
        ("squash_to_root", (0, 0)),
        ("squash_to_root,squash_to_uid=1000", (1000, 0)),
    ] {
        let layer = t.layer(&options.replace(',', "+"), &["f=x", "d", "l->f"]);
        chown(layer.join("f"), Some(5), Some(6)).unwrap();
        let upper = (
            t.layer(&format!("u{}", shown.0 + shown.1), &[]),
            t.layer(&format!("w{}", shown.0 + shown.1), &[]),
        );
        let fs = t.mount_stack(Stack {
            lowers: vec![layer],
            upper: Some(upper),
            options: options.to_owned(),
            ..t.stack()
        });
        put(fs.at("new"), "x");
        chown(fs.at("f"), Some(42), Some(43)).unwrap();
        lchown(fs.at("l"), Some(42), Some(43)).unwrap();
        for name in ["f", "d", "l", "new"] {
            assert_eq!(owner(fs.at(name)), shown, "{options}: {name}");
        }
    }
}}

/// The record of an object on disk: the value without the final NUL that some write.
fn record(path: &Path) -> String {
    let value = xattr(path, "user.containers.override_stat").unwrap();
    String::from_utf8(value).unwrap().trim_end_matches('\0').to_owned()
}

both! { owners_and_modes_are_kept_in_the_record, NoDaemon, |t| {
    t.needs_ids();
    let mut fs = t.mount_with("xattr_permissions=2", &["low=x", "lowdir"]);
    put(fs.at("new"), "x");
    fs::create_dir(fs.at("newdir")).unwrap();
    for name in ["new", "newdir", "low", "lowdir"] {
        chown(fs.at(name), Some(1000), Some(1001)).unwrap();
        chmod(fs.at(name), 0o4750);
    }
    for _ in 0..2 {
        for name in ["new", "newdir", "low", "lowdir"] {
            assert_eq!((owner(fs.at(name)), mode(fs.at(name))), ((1000, 1001), 0o4750), "{name}");
            assert_eq!(owner(t.upper(name)), (0, 0), "{name} on disk");
            assert_eq!(mode(t.upper(name)) & 0o7000, 0, "{name}: no set-id bit on disk");
        }
        fs.remount();
    }
    let record = record(&t.upper("new"));
    let fields: Vec<_> = record.split(':').collect();
    assert_eq!(fields[..2], ["1000", "1001"], "{record}");
    assert_eq!(u32::from_str_radix(fields[2], 8).unwrap() & 0o7777, 0o4750, "{record}");
    assert!(xattr(fs.at("new"), "user.containers.override_stat").is_err(), "the record is hidden");
}}

both! { a_new_file_has_a_record_from_the_start, NoDaemon, |t| {
    t.needs_ids();
    let fs = t.mount_with("xattr_permissions=2", &["d"]);
    chmod(fs.at("d"), 0o777);
    as_user(1000, || {
        put(fs.at("d/file"), "x");
        chmod(fs.at("d/file"), 0o600);
        fs::create_dir(fs.at("d/dir")).unwrap();
    });
    for name in ["d/file", "d/dir"] {
        assert_eq!(owner(fs.at(name)), (1000, 1000), "{name}");
        assert_eq!(owner(t.upper(name)), (0, 0), "{name} on disk");
        assert!(record(&t.upper(name)).starts_with("1000:1000:"), "{name}");
    }
    assert_eq!(mode(fs.at("d/file")), 0o600);
}}

both! { the_record_keeps_what_the_disk_cannot, OnlyPlyfs, |t| {
    t.needs_ids();
    let mut fs = t.mount_with("xattr_permissions=2", &["l->target"]);
    symlink("target", fs.at("new")).unwrap();
    lchown(fs.at("new"), Some(1000), Some(1001)).unwrap();
    lchown(fs.at("l"), Some(1002), Some(1003)).unwrap();
    let device = makedev(1, 3);
    if t.is_root() {
        // The kernel lets nobody else ask for a device.
        mknodat(CWD, fs.at("null"), FileType::CharacterDevice, Mode::from(0o666), device).unwrap();
    }
    mknodat(CWD, fs.at("fifo"), FileType::Fifo, Mode::from(0o640), 0).unwrap();
    chown(fs.at("fifo"), Some(1000), Some(1001)).unwrap();
    for _ in 0..2 {
        assert_eq!(fs::read_link(fs.at("new")).unwrap(), Path::new("target"));
        assert_eq!(owner(fs.at("new")), (1000, 1001));
        assert_eq!(fs::read_link(fs.at("l")).unwrap(), Path::new("target"));
        assert_eq!(owner(fs.at("l")), (1002, 1003));
        if t.is_root() {
            assert!(stat(fs.at("null")).file_type().is_char_device());
            assert_eq!(stat(fs.at("null")).rdev(), device);
        }
        assert!(stat(fs.at("fifo")).file_type().is_fifo());
        assert_eq!(owner(fs.at("fifo")), (1000, 1001));
        let kinds = fs::read_dir(fs.at("")).unwrap().map(|x| x.unwrap());
        for entry in kinds {
            assert_eq!(entry.file_type().unwrap(), stat(entry.path()).file_type(), "{entry:?}");
        }
        fs.remount();
    }
}}

both! { records_written_by_others_are_read, NoDaemon, |t| {
    t.needs_ids();
    let values = [
        ("null", "0:0:0666:char-1-3"),
        ("disk", "0:6:0660:block-8-1"),
        ("file", "1000:1001:0640:file"),
        ("three", "1000:1001:640"),
        ("pipe", "1000:1001:0600:pipe"),
    ];
    for (name, value) in values {
        put(t.lower(name), "");
        set_xattr(t.lower(name), "user.containers.override_stat", value.as_bytes()).unwrap();
    }
    let fs = t.mount_with("xattr_permissions=2", &[]);
    assert!(stat(fs.at("null")).file_type().is_char_device());
    assert_eq!(stat(fs.at("null")).rdev(), makedev(1, 3));
    assert!(stat(fs.at("disk")).file_type().is_block_device());
    assert_eq!((stat(fs.at("disk")).rdev(), owner(fs.at("disk"))), (makedev(8, 1), (0, 6)));
    for name in ["file", "three"] {
        assert_eq!((owner(fs.at(name)), mode(fs.at(name))), ((1000, 1001), 0o640), "{name}");
        assert!(stat(fs.at(name)).is_file());
    }
    assert!(stat(fs.at("pipe")).file_type().is_fifo());
    assert_eq!(owner(fs.at("pipe")), (1000, 1001));
}}

both! { a_record_of_a_device_0_0_is_no_whiteout_in_disguise, OnlyPlyfs, |t| {
    let top = t.layer("top", &["f=", "real=x"]);
    set_xattr(top.join("f"), "user.containers.override_stat", b"0:0:0600:char-0-0").unwrap();
    let low = t.layer("low", &["f=low", "gone=x"]);
    whiteout(&top.join("gone"));
    let fs = t.mount_stack(Stack {
        lowers: vec![top, low],
        options: "xattr_permissions=2".to_owned(),
        ..t.stack()
    });
    assert!(!exists(fs.at("gone")));
    assert_eq!(text(fs.at("real")), "x");
    assert!(!names(fs.at("")).contains(&"gone".to_owned()));
}}

both! { a_file_of_an_owner_that_the_namespace_lacks_is_copied_up_when_squashed, NoDaemon, |t| {
    let stack =
        Stack { lowers: vec!["/etc".into()], options: "squash_to_root".to_owned(), ..t.stack() };
    let mut fs = t.mount_stack(stack);
    let before = text(fs.at("passwd"));
    chmod(fs.at("passwd"), 0o640);
    append(fs.at("passwd"), "new");
    fs::remove_file(fs.at("group")).unwrap();
    for _ in 0..2 {
        assert_eq!(text(fs.at("passwd")), format!("{before}new"));
        assert_eq!((owner(fs.at("passwd")), mode(fs.at("passwd"))), ((0, 0), 0o640));
        assert!(!exists(fs.at("group")));
        fs.remount();
    }
}}

both! { security_attributes_are_kept_apart_in_the_user_mode, OnlyPlyfs, |t| {
    let mut fs = t.mount_with("xattr_permissions=2", &["low=x"]);
    put(fs.at("new"), "x");
    for name in ["low", "new"] {
        set_xattr(fs.at(name), "security.note", b"label").unwrap();
    }
    for _ in 0..2 {
        for name in ["low", "new"] {
            assert_eq!(xattr(fs.at(name), "security.note").unwrap(), b"label", "{name}");
            assert_eq!(xattrs(fs.at(name)), ["security.note"], "{name}");
            assert!(xattr(t.upper(name), "security.note").is_err(), "{name}: on the host's file");
        }
        fs.remount();
    }
}}

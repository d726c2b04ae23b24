//! POSIX access lists: kept, enforced, inherited.

use std::fs;
use std::os::unix::fs::{MetadataExt, chown};

use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::process::umask;

use crate::semantics_kit::{as_user, both, chmod, errno, mode, put, set_xattr, stat, text, xattr};

const ACCESS: &str = "system.posix_acl_access";
const DEFAULT: &str = "system.posix_acl_default";
const USER_OBJ: u16 = 1;
const USER: u16 = 2;
const GROUP_OBJ: u16 = 4;
const GROUP: u16 = 8;
const MASK: u16 = 16;
const OTHER: u16 = 32;

/// The binary form of an access list: tag, permissions, id.
fn acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let mut value = 2u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        value.extend(tag.to_le_bytes());
        value.extend(permissions.to_le_bytes());
        value.extend(id.to_le_bytes());
    }
    value
}

/// Owner, user 1001, group, mask, others.
fn list(owner: u16, user: u16, group: u16, mask: u16, other: u16) -> Vec<u8> {
    acl(&[
        (USER_OBJ, owner, u32::MAX),
        (USER, user, 1001),
        (GROUP_OBJ, group, u32::MAX),
        (MASK, mask, u32::MAX),
        (OTHER, other, u32::MAX),
    ])
}

both! { an_access_list_is_enforced, |t| {
    t.needs_ids();
    let mut fs = t.mount(&["f=secret"]);
    chmod(fs.at("f"), 0o600);
    set_xattr(fs.at("f"), ACCESS, &list(6, 4, 0, 4, 0)).unwrap();
    assert_eq!(mode(fs.at("f")), 0o640, "the mask is the group's bits");
    for _ in 0..2 {
        assert_eq!(as_user(1001, || text(fs.at("f"))), "secret");
        assert_eq!(as_user(1002, || errno(fs::read(fs.at("f")))), Errno::ACCESS);
        assert_eq!(as_user(1001, || errno(fs::write(fs.at("f"), "x"))), Errno::ACCESS);
        fs.remount();
    }
}}

both! { an_access_list_of_a_lower_is_enforced_and_copied_up, |t| {
    t.needs_ids();
    put(t.lower("f"), "secret");
    chmod(t.lower("f"), 0o600);
    set_xattr(t.lower("f"), ACCESS, &list(6, 4, 0, 4, 0)).unwrap();
    let mut fs = t.mount(&[]);
    assert_eq!(as_user(1001, || text(fs.at("f"))), "secret");
    put(fs.at("f"), "changed");
    assert_eq!(as_user(1001, || text(fs.at("f"))), "changed");
    assert_eq!(xattr(fs.at("f"), ACCESS).unwrap(), list(6, 4, 0, 4, 0));
    fs.remount();
    assert_eq!(xattr(fs.at("f"), ACCESS).unwrap(), list(6, 4, 0, 4, 0));
    assert_eq!(as_user(1002, || errno(fs::read(fs.at("f")))), Errno::ACCESS);
}}

both! { a_change_of_mode_changes_the_mask_of_the_access_list, |t| {
    t.needs_ids();
    let fs = t.mount(&["f=secret"]);
    set_xattr(fs.at("f"), ACCESS, &list(6, 4, 0, 4, 0)).unwrap();
    chmod(fs.at("f"), 0o600);
    assert_eq!(xattr(fs.at("f"), ACCESS).unwrap(), list(6, 4, 0, 0, 0));
    assert_eq!(as_user(1001, || errno(fs::read(fs.at("f")))), Errno::ACCESS);
}}

both! { a_default_access_list_is_inherited_and_replaces_the_umask, |t| {
    t.needs_ids();
    let rule = list(7, 7, 5, 7, 0);
    fs::create_dir(t.lower("low")).unwrap();
    set_xattr(t.lower("low"), DEFAULT, &rule).unwrap();
    let mut fs = t.mount(&[]);
    fs::create_dir(fs.at("up")).unwrap();
    set_xattr(fs.at("up"), DEFAULT, &rule).unwrap();
    let old = umask(Mode::from(0o077));
    for dir in ["low", "up", "low/sub", "up/sub"] {
        put(fs.at(dir).join("file"), "x");
        fs::create_dir(fs.at(dir).join("sub")).unwrap();
    }
    umask(old);
    for _ in 0..2 {
        for dir in ["low", "up", "low/sub", "up/sub"] {
            let (file, sub) = (fs.at(dir).join("file"), fs.at(dir).join("sub"));
            assert_eq!(mode(&file), 0o660, "{dir}");
            assert_eq!(xattr(&file, ACCESS).unwrap(), list(6, 7, 5, 6, 0), "{dir}");
            assert_eq!(xattr(&file, DEFAULT), Err(Errno::NODATA), "{dir}");
            assert_eq!(mode(&sub), 0o770, "{dir}");
            assert_eq!(xattr(&sub, DEFAULT).unwrap(), rule, "{dir}");
            assert_eq!(xattr(&sub, ACCESS).unwrap(), list(7, 7, 5, 7, 0), "{dir}");
        }
        fs.remount();
    }
}}

both! { a_minimal_default_access_list_gives_modes_without_an_extended_list, |t| {
    let fs = t.mount(&["d"]);
    let rule = [(USER_OBJ, 7, u32::MAX), (GROUP_OBJ, 5, u32::MAX), (OTHER, 1, u32::MAX)];
    set_xattr(fs.at("d"), DEFAULT, &acl(&rule)).unwrap();
    put(fs.at("d/f"), "x");
    assert_eq!(mode(fs.at("d/f")), 0o640);
    assert_eq!(xattr(fs.at("d/f"), ACCESS), Err(Errno::NODATA));
}}

both! { an_access_list_that_equals_a_mode_becomes_the_mode, |t| {
    let fs = t.mount(&["f=x"]);
    let rule = [(USER_OBJ, 6, u32::MAX), (GROUP_OBJ, 0, u32::MAX), (OTHER, 4, u32::MAX)];
    set_xattr(fs.at("f"), ACCESS, &acl(&rule)).unwrap();
    assert_eq!(mode(fs.at("f")), 0o604);
    assert_eq!(xattr(fs.at("f"), ACCESS), Err(Errno::NODATA));
    assert_eq!(stat(fs.at("f")).nlink(), 1);
}}

/// Owner, the user, the group, nobody else; the mask allows all.
fn named(user: u32, group: u32) -> Vec<u8> {
    acl(&[
        (USER_OBJ, 6, u32::MAX),
        (USER, 4, user),
        (GROUP_OBJ, 0, u32::MAX),
        (GROUP, 6, group),
        (MASK, 6, u32::MAX),
        (OTHER, 0, u32::MAX),
    ])
}

const MAPS: &str = "uidmapping=:0:1000:100,gidmapping=:0:3000:100";

both! { ids_in_access_lists_are_shown_and_stored_through_the_map, OnlyPlyfs, |t| {
    t.needs_ids();
    put(t.lower("f"), "secret");
    set_xattr(t.lower("f"), ACCESS, &named(5, 6)).unwrap();
    put(t.lower("foreign"), "secret");
    set_xattr(t.lower("foreign"), ACCESS, &named(500, 600)).unwrap();
    let mut fs = t.mount_with(MAPS, &[]);
    assert_eq!(xattr(fs.at("f"), ACCESS).unwrap(), named(1005, 3006));
    assert_eq!(as_user(1005, || text(fs.at("f"))), "secret");
    assert_eq!(as_user(3006, || text(fs.at("f"))), "secret");
    assert_eq!(as_user(5, || errno(fs::read(fs.at("f")))), Errno::ACCESS);
    assert_eq!(xattr(fs.at("foreign"), ACCESS).unwrap(), named(65_534, 65_534));
    chmod(fs.at("foreign"), 0o640);
    let disk = xattr(t.upper("foreign"), ACCESS).unwrap();
    assert!(disk.windows(4).any(|x| x == 500u32.to_le_bytes()), "the copy has the ids on disk");

    set_xattr(fs.at("f"), ACCESS, &named(1007, 3008)).unwrap();
    assert_eq!(xattr(t.upper("f"), ACCESS).unwrap(), named(7, 8));
    for refused in [named(7, 3008), named(1007, 8)] {
        assert_eq!(set_xattr(fs.at("f"), ACCESS, &refused), Err(Errno::INVAL));
    }
    fs.remount();
    assert_eq!(xattr(fs.at("f"), ACCESS).unwrap(), named(1007, 3008));
    assert_eq!(as_user(1007, || text(fs.at("f"))), "secret");
}}

both! { an_inherited_access_list_has_the_ids_on_disk, OnlyPlyfs, |t| {
    t.needs_ids();
    let maps = "uidmapping=:0:1000:100,gidmapping=:0:1000:100";
    let fs = t.mount_with(maps, &["d"]);
    chown(fs.at("d"), Some(1003), Some(1003)).unwrap();
    set_xattr(fs.at("d"), DEFAULT, &named(1005, 1006)).unwrap();
    assert_eq!(xattr(t.upper("d"), DEFAULT).unwrap(), named(5, 6));
    as_user(1003, || {
        put(fs.at("d/f"), "x");
        fs::create_dir(fs.at("d/sub")).unwrap();
    });
    for (name, key) in [("d/f", ACCESS), ("d/sub", ACCESS), ("d/sub", DEFAULT)] {
        assert_eq!(xattr(t.upper(name), key).unwrap(), named(5, 6), "{name} {key} on disk");
        assert_eq!(xattr(fs.at(name), key).unwrap(), named(1005, 1006), "{name} {key}");
    }
}}

both! { squashing_leaves_one_id_in_access_lists, OnlyPlyfs, |t| {
    t.needs_ids();
    put(t.lower("f"), "x");
    let two = [
        (USER_OBJ, 6, u32::MAX),
        (USER, 4, 5),
        (USER, 6, 7),
        (GROUP_OBJ, 0, u32::MAX),
        (GROUP, 6, 6),
        (MASK, 6, u32::MAX),
        (OTHER, 0, u32::MAX),
    ];
    set_xattr(t.lower("f"), ACCESS, &acl(&two)).unwrap();
    let fs = t.mount_with("squash_to_uid=1000,squash_to_gid=1001", &[]);
    assert_eq!(xattr(fs.at("f"), ACCESS).unwrap(), named(1000, 1001));
    set_xattr(fs.at("f"), ACCESS, &named(42, 43)).unwrap();
    assert_eq!(xattr(t.upper("f"), ACCESS).unwrap(), named(1000, 1001));
}}

both! { an_access_list_and_the_mode_in_the_record_agree, OnlyPlyfs, |t| {
    t.needs_ids();
    let mut fs = t.mount_with("xattr_permissions=2", &["f=secret", "d"]);
    set_xattr(fs.at("f"), ACCESS, &list(4, 4, 0, 4, 0)).unwrap();
    set_xattr(fs.at("d"), DEFAULT, &list(7, 7, 5, 7, 0)).unwrap();
    let old = umask(Mode::from(0o077));
    put(fs.at("d/new"), "secret");
    umask(old);
    for _ in 0..2 {
        assert_eq!((mode(fs.at("f")), mode(fs.at("d/new"))), (0o440, 0o660));
        assert_eq!(xattr(fs.at("f"), ACCESS).unwrap(), list(4, 4, 0, 4, 0));
        assert_eq!(xattr(fs.at("d/new"), ACCESS).unwrap(), list(6, 7, 5, 6, 0));
        for name in ["f", "d/new"] {
            assert_eq!(as_user(1001, || text(fs.at(name))), "secret", "{name}");
            assert_eq!(as_user(1002, || errno(fs::read(fs.at(name)))), Errno::ACCESS, "{name}");
        }
        fs.remount();
    }
    assert_eq!(mode(t.upper("f")) & 0o600, 0o600, "the daemon can get at the file");
    chmod(fs.at("f"), 0o600);
    assert_eq!(xattr(fs.at("f"), ACCESS).unwrap(), list(6, 4, 0, 0, 0));
    assert_eq!(as_user(1001, || errno(fs::read(fs.at("f")))), Errno::ACCESS);
    let minimal = [(USER_OBJ, 6, u32::MAX), (GROUP_OBJ, 0, u32::MAX), (OTHER, 4, u32::MAX)];
    set_xattr(fs.at("f"), ACCESS, &acl(&minimal)).unwrap();
    assert_eq!(mode(fs.at("f")), 0o604);
    assert_eq!(xattr(fs.at("f"), ACCESS), Err(Errno::NODATA));
}}

both! { what_the_work_directory_inherits_is_not_handed_down, |t| {
    t.needs_ids();
    for (name, group) in [("d", 5), ("f", 6)] {
        if name == "d" { fs::create_dir(t.lower(name)).unwrap() } else { put(t.lower(name), "x") }
        chown(t.lower(name), Some(0), Some(group)).unwrap();
    }
    put(t.lower("root"), "x");
    set_xattr(t.at("work"), DEFAULT, &list(7, 7, 5, 7, 0)).unwrap();
    chown(t.at("work"), None, Some(7)).unwrap();
    chmod(t.at("work"), 0o2755);
    let fs = t.mount(&[]);
    put(fs.at("d/new"), "x");
    put(fs.at("f"), "y");
    put(fs.at("root"), "y");
    for (name, group) in [("d", 5), ("f", 6), ("root", 0), ("d/new", 0)] {
        assert_eq!(stat(fs.at(name)).gid(), group, "{name}");
        assert_eq!(mode(fs.at(name)) & 0o7020, 0, "{name}");
        assert_eq!(xattr(fs.at(name), ACCESS), Err(Errno::NODATA), "{name}");
    }
    assert_eq!(xattr(fs.at("d"), DEFAULT), Err(Errno::NODATA));
}}

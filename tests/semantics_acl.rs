//! POSIX access lists: kept, enforced, inherited.

use std::fs;
use std::os::unix::fs::MetadataExt;

use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::process::umask;

use crate::semantics_kit::{as_user, both, chmod, errno, mode, put, set_xattr, stat, text, xattr};

const ACCESS: &str = "system.posix_acl_access";
const DEFAULT: &str = "system.posix_acl_default";
const USER_OBJ: u16 = 1;
const USER: u16 = 2;
const GROUP_OBJ: u16 = 4;
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

//! Extended attributes: the user's pass through, the overlay's own are hidden, nested ones escaped;
//! and what is done to a symlink never reaches what it points to.

use std::fs;
use std::os::unix::fs::{MetadataExt, lchown, symlink};
use std::path::Path;

use rustix::fs::{XattrFlags, lremovexattr, lsetxattr};
use rustix::io::Errno;

use crate::semantics_kit::{
    append, both, chmod, facts, mtime, mv, names, put, set_times, set_xattr, stat, text, xattr,
    xattrs,
};

both! { user_attributes_are_set_listed_replaced_and_removed, |t| {
    let mut fs = t.mount(&["low=x", "lowdir"]);
    put(fs.at("up"), "x");
    fs::create_dir(fs.at("updir")).unwrap();
    for name in ["low", "lowdir", "up", "updir"] {
        let path = fs.at(name);
        assert_eq!(xattr(&path, "user.a"), Err(Errno::NODATA));
        assert_eq!(lsetxattr(&path, "user.a", b"1", XattrFlags::REPLACE), Err(Errno::NODATA));
        lsetxattr(&path, "user.a", b"1", XattrFlags::CREATE).unwrap();
        assert_eq!(lsetxattr(&path, "user.a", b"2", XattrFlags::CREATE), Err(Errno::EXIST));
        lsetxattr(&path, "user.a", b"2", XattrFlags::REPLACE).unwrap();
        set_xattr(&path, "user.b", &[0; 1000]).unwrap();
        set_xattr(&path, "user.c", b"gone").unwrap();
        lremovexattr(&path, "user.c").unwrap();
        assert_eq!(lremovexattr(&path, "user.c"), Err(Errno::NODATA));
    }
    for _ in 0..2 {
        for name in ["low", "lowdir", "up", "updir"] {
            assert_eq!(xattrs(fs.at(name)), ["user.a", "user.b"], "{name}");
            assert_eq!(xattr(fs.at(name), "user.a").unwrap(), b"2");
            assert_eq!(xattr(fs.at(name), "user.b").unwrap(), [0; 1000]);
            let mut small = [0u8; 10];
            let short = rustix::fs::lgetxattr(fs.at(name), "user.b", &mut small);
            assert_eq!(short, Err(Errno::RANGE));
        }
        fs.remount();
    }
}}

both! { attributes_of_a_lower_are_removed_after_copy_up, |t| {
    put(t.lower("f"), "x");
    set_xattr(t.lower("f"), "user.a", b"1").unwrap();
    let mut fs = t.mount(&[]);
    lremovexattr(fs.at("f"), "user.a").unwrap();
    assert_eq!(xattrs(fs.at("f")).len(), 0);
    t.same_after_remount(&mut fs);
    assert_eq!(xattr(t.lower("f"), "user.a").unwrap(), b"1");
}}

both! { the_overlays_own_attributes_are_hidden, |t| {
    let mut fs = t.mount(&["d", "d/f=x", "d/sub", "f=x", "gone", "gone/f=x"]);
    fs::remove_dir_all(fs.at("gone")).unwrap();
    fs::create_dir(fs.at("gone")).unwrap();
    append(fs.at("f"), "x");
    append(fs.at("d/f"), "x");
    fs::remove_file(fs.at("d/f")).unwrap();
    fs::hard_link(fs.at("f"), fs.at("f2")).unwrap();
    let _ = fs::rename(fs.at("d/sub"), fs.at("moved"));
    for _ in 0..2 {
        for name in names(fs.at("")) {
            let own = xattrs(fs.at(&name));
            assert!(own.is_empty(), "{name}: {own:?}");
            for attribute in ["opaque", "origin", "redirect", "metacopy", "impure", "nlink"] {
                let attribute = t.attribute(attribute);
                assert_eq!(
                    xattr(fs.at(&name), &attribute),
                    Err(Errno::NODATA),
                    "{name}: {attribute}"
                );
            }
        }
        fs.remount();
    }
    assert!(!xattrs(t.upper("gone")).is_empty(), "the test sees the attributes on disk");
}}

both! { overlay_attributes_set_through_the_mount_are_kept_and_do_not_act, |t| {
    let mut fs = t.mount(&["d", "d/f=old", "f=x"]);
    let opaque = t.attribute("opaque");
    let redirect = t.attribute("redirect");
    let whiteout = t.attribute("whiteout");
    set_xattr(fs.at("d"), &opaque, b"y").unwrap();
    set_xattr(fs.at("d"), &redirect, b"/elsewhere").unwrap();
    set_xattr(fs.at("f"), &whiteout, b"y").unwrap();
    for _ in 0..2 {
        assert_eq!(xattr(fs.at("d"), &opaque).unwrap(), b"y");
        assert_eq!(xattrs(fs.at("d")), [opaque.clone(), redirect.clone()]);
        assert_eq!(xattr(fs.at("f"), &whiteout).unwrap(), b"y");
        assert_eq!(names(fs.at("d")), ["f"], "the lower directory is still merged");
        assert_eq!(text(fs.at("f")), "x");
        fs.remount();
    }
    lremovexattr(fs.at("d"), &opaque).unwrap();
    assert_eq!(xattrs(fs.at("d")), [redirect]);
    t.same_after_remount(&mut fs);
}}

both! { an_escaped_attribute_of_a_lower_loses_one_escape, |t| {
    fs::create_dir(t.lower("d")).unwrap();
    let prefix = t.attribute("overlay.");
    set_xattr(t.lower("d"), &format!("{prefix}opaque"), b"y").unwrap();
    set_xattr(t.lower("d"), &format!("{prefix}overlay.opaque"), b"z").unwrap();
    let fs = t.mount(&[]);
    assert_eq!(xattrs(fs.at("d")), [t.attribute("opaque"), t.attribute("overlay.opaque")]);
    assert_eq!(xattr(fs.at("d"), &t.attribute("opaque")).unwrap(), b"y");
    assert_eq!(xattr(fs.at("d"), &t.attribute("overlay.opaque")).unwrap(), b"z");
    set_xattr(fs.at("d"), "user.x", b"copied up").unwrap();
    assert_eq!(xattr(t.upper("d"), &format!("{prefix}opaque")).unwrap(), b"y");
}}

both! { trusted_attributes_pass_for_root, |t| {
    t.needs(t.is_root(), "root: trusted attributes");
    let mut fs = t.mount(&["f=x", "l->f"]);
    set_xattr(fs.at("f"), "trusted.note", b"1").unwrap();
    set_xattr(fs.at("l"), "trusted.note", b"2").unwrap();
    for _ in 0..2 {
        assert_eq!(xattr(fs.at("f"), "trusted.note").unwrap(), b"1");
        assert_eq!(xattr(fs.at("l"), "trusted.note").unwrap(), b"2");
        assert_eq!(xattrs(fs.at("l")), ["trusted.note"]);
        fs.remount();
    }
    assert_eq!(xattrs(t.lower("f")).len(), 0);
}}

/// Symlinks of every origin to files inside and outside the mount, and to nothing.
fn links(t: &crate::semantics_kit::Test) -> (crate::semantics_kit::Fs, Vec<&'static str>) {
    put(t.at("outside"), "outside");
    set_times(t.at("outside"), 1000, 0);
    let out = t.at("outside");
    symlink(&out, t.lower("lowout")).unwrap();
    let fs = t.mount(&["target=inside", "lowin->target", "lownone->nothing"]);
    symlink(&out, fs.at("upout")).unwrap();
    symlink("target", fs.at("upin")).unwrap();
    symlink("nothing", fs.at("upnone")).unwrap();
    set_times(fs.at("target"), 1000, 0);
    (fs, vec!["lowout", "lowin", "lownone", "upout", "upin", "upnone"])
}

both! { attributes_of_a_symlink_never_reach_its_target, |t| {
    let (fs, links) = links(t);
    for name in &links {
        let set = set_xattr(fs.at(name), "user.note", b"x");
        assert_eq!(set, Err(Errno::PERM), "{name}: a symlink has no user attributes");
        assert_eq!(xattrs(fs.at(name)).len(), 0, "{name}");
        if t.is_root() {
            set_xattr(fs.at(name), "trusted.note", name.as_bytes()).unwrap();
            assert_eq!(xattr(fs.at(name), "trusted.note").unwrap(), name.as_bytes());
            lremovexattr(fs.at(name), "trusted.note").unwrap();
            set_xattr(fs.at(name), "trusted.kept", b"").unwrap();
        }
    }
    for target in [t.at("outside"), fs.at("target")] {
        assert_eq!(xattrs(&target).len(), 0, "{}", target.display());
    }
}}

both! { times_of_a_symlink_never_reach_its_target, |t| {
    let (mut fs, links) = links(t);
    for name in &links {
        set_times(fs.at(name), 77, 7);
    }
    for _ in 0..2 {
        links.iter().for_each(|x| assert_eq!(mtime(fs.at(x)), (77, 7), "{x}"));
        assert_eq!((mtime(t.at("outside")), mtime(fs.at("target"))), ((1000, 0), (1000, 0)));
        fs.remount();
    }
}}

both! { owners_of_a_symlink_never_reach_its_target, |t| {
    t.needs_ids();
    let (mut fs, links) = links(t);
    for name in &links {
        lchown(fs.at(name), Some(1000), Some(1001)).unwrap();
    }
    for _ in 0..2 {
        for name in &links {
            assert_eq!((stat(fs.at(name)).uid(), stat(fs.at(name)).gid()), (1000, 1001), "{name}");
        }
        assert_eq!((stat(t.at("outside")).uid(), stat(fs.at("target")).uid()), (0, 0));
        fs.remount();
    }
}}

both! { links_and_renames_of_a_symlink_move_the_symlink, |t| {
    let (mut fs, links) = links(t);
    for name in &links {
        fs::hard_link(fs.at(name), fs.at(format!("{name}.hard"))).unwrap();
        mv(fs.at(name), fs.at(format!("{name}.moved")));
        assert!(stat(fs.at(format!("{name}.hard"))).is_symlink());
        assert_eq!(stat(fs.at(format!("{name}.moved"))).nlink(), 2);
    }
    t.same_after_remount(&mut fs);
    for name in &links {
        fs::remove_file(fs.at(format!("{name}.hard"))).unwrap();
        fs::remove_file(fs.at(format!("{name}.moved"))).unwrap();
    }
    assert_eq!((text(t.at("outside")), text(fs.at("target"))), ("outside".into(), "inside".into()));
}}

both! { symlinks_of_a_layer_are_never_followed_by_the_overlay, |t| {
    // A directory of one layer and a symlink of that name in another: the top one alone counts.
    let outside = t.layer("outside", &["secret=secret"]);
    let top = t.layer("top", &["d", "d/top=top"]);
    let low = t.layer("low", &["e", "e/low=low"]);
    symlink(&outside, low.join("d")).unwrap();
    symlink(&outside, top.join("e")).unwrap();
    let mut fs = t.mount_lowers(&[&top, &low]);
    assert_eq!(names(fs.at("d")), ["top"]);
    assert!(stat(fs.at("e")).is_symlink());
    put(fs.at("d/new"), "new");
    chmod(fs.at("d"), 0o700);
    fs::remove_dir_all(fs.at("d")).unwrap();
    fs::create_dir(fs.at("d")).unwrap();
    t.same_after_remount(&mut fs);
    assert_eq!(names(fs.at("d")).len(), 0);
    assert_eq!(facts(&outside).len(), 1);
    assert_eq!(names(&outside), ["secret"]);
    assert_eq!(fs::read_link(fs.at("e")).unwrap(), Path::new(&outside));
}}

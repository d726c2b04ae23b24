//! Who may do what with a new or a written file: umask, set-id bits, capabilities, permissions.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{MetadataExt, chown, symlink};

use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::io::Errno;
use rustix::process::umask;

use crate::semantics_kit::{
    append, as_user, both, chmod, errno, exists, mode, put, set_xattr, stat, text, xattr,
};

both! { the_umask_of_the_caller_decides_the_modes_of_new_objects, |t| {
    let fs = t.mount(&["d"]);
    for (mask, file, dir, fifo) in [(0o077, 0o600, 0o700, 0o600), (0, 0o666, 0o777, 0o666)] {
        let old = umask(Mode::from(mask));
        for place in ["", "d/"] {
            let at = |kind: &str| fs.at(format!("{place}{kind}{mask:o}"));
            put(at("file"), "x");
            fs::create_dir(at("dir")).unwrap();
            mknodat(CWD, at("fifo"), FileType::Fifo, Mode::from(0o666), 0).unwrap();
            assert_eq!(mode(at("file")), file);
            assert_eq!(mode(at("dir")), dir);
            assert_eq!(mode(at("fifo")), fifo);
        }
        umask(old);
    }
}}

both! { new_entries_in_a_setgid_directory_inherit_its_group, |t| {
    t.needs_ids();
    fs::create_dir(t.lower("old")).unwrap();
    chown(t.lower("old"), None, Some(1234)).unwrap();
    chmod(t.lower("old"), 0o2775);
    let fs = t.mount(&[]);
    fs::create_dir(fs.at("new")).unwrap();
    chown(fs.at("new"), None, Some(1234)).unwrap();
    chmod(fs.at("new"), 0o2775);
    for dir in ["old", "new"] {
        let at = |name: &str| fs.at(dir).join(name);
        put(at("file"), "x");
        fs::create_dir(at("dir")).unwrap();
        symlink("x", at("link")).unwrap();
        mknodat(CWD, at("fifo"), FileType::Fifo, Mode::from(0o666), 0).unwrap();
        for name in ["file", "dir", "link", "fifo"] {
            assert_eq!(stat(at(name)).gid(), 1234, "{dir}/{name}");
        }
        assert_eq!(mode(at("dir")) & 0o2000, 0o2000, "a directory hands the bit on");
        assert_eq!(mode(at("file")) & 0o2000, 0);
    }
}}

both! { a_new_object_belongs_to_its_maker, |t| {
    t.needs_ids();
    let mut fs = t.mount(&["d"]);
    chmod(fs.at("d"), 0o777);
    as_user(1000, || {
        put(fs.at("d/file"), "x");
        fs::create_dir(fs.at("d/dir")).unwrap();
        symlink("x", fs.at("d/link")).unwrap();
        mknodat(CWD, fs.at("d/fifo"), FileType::Fifo, Mode::from(0o666), 0).unwrap();
    });
    for _ in 0..2 {
        for name in ["file", "dir", "link", "fifo"] {
            let stat = stat(fs.at("d").join(name));
            assert_eq!((stat.uid(), stat.gid()), (1000, 1000), "{name}");
        }
        fs.remount();
    }
}}

both! { a_write_of_another_user_clears_the_set_id_bits, |t| {
    t.needs_ids();
    let fs = t.mount(&["low=old"]);
    put(fs.at("up"), "old");
    for name in ["low", "up"] {
        chmod(fs.at(name), 0o6777);
        assert_eq!(mode(fs.at(name)), 0o6777);
        as_user(1000, || append(fs.at(name), "new"));
        assert_eq!(mode(fs.at(name)), 0o777, "{name}");
        assert_eq!(text(fs.at(name)), "oldnew");
    }
}}

both! { a_write_of_another_user_to_a_setuid_file_of_a_lower_clears_the_bit, |t| {
    t.needs_ids();
    put(t.lower("f"), "old");
    chmod(t.lower("f"), 0o4777);
    let mut fs = t.mount(&[]);
    as_user(1000, || append(fs.at("f"), "new"));
    assert_eq!(mode(fs.at("f")), 0o777);
    fs.remount();
    assert_eq!(mode(fs.at("f")), 0o777);
    assert_eq!(mode(t.lower("f")), 0o4777);
}}

both! { a_truncation_of_another_user_clears_the_set_id_bits, |t| {
    t.needs_ids();
    let fs = t.mount(&["low=old"]);
    put(fs.at("up"), "old");
    for name in ["low", "up"] {
        for how in ["ftruncate", "O_TRUNC"] {
            chmod(fs.at(name), 0o6777);
            as_user(1000, || {
                if how == "O_TRUNC" {
                    File::create(fs.at(name)).unwrap();
                } else {
                    OpenOptions::new().write(true).open(fs.at(name)).unwrap().set_len(1).unwrap();
                }
            });
            assert_eq!(mode(fs.at(name)), 0o777, "{name} {how}");
        }
    }
}}

both! { a_privileged_write_keeps_the_set_id_bits_where_a_local_filesystem_does, |t| {
    let fs = t.mount(&["f=old"]);
    put(t.at("local"), "old");
    for file in [fs.at("f"), t.at("local")] {
        chmod(&file, 0o6755);
        append(&file, "new");
    }
    assert_eq!(mode(fs.at("f")), mode(t.at("local")));
    assert_eq!(mode(fs.at("f")) & 0o4000 != 0, t.is_root());
}}

/// A `security.capability` value: version 2, cap_net_raw effective.
const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

both! { a_write_clears_the_capabilities_of_a_file, |t| {
    put(t.lower("low"), "old");
    put(t.lower("cut"), "old");
    set_xattr(t.lower("low"), "security.capability", &CAPABILITY).unwrap();
    set_xattr(t.lower("cut"), "security.capability", &CAPABILITY).unwrap();
    let fs = t.mount(&[]);
    put(fs.at("up"), "old");
    set_xattr(fs.at("up"), "security.capability", &CAPABILITY).unwrap();
    for name in ["low", "up", "cut"] {
        assert_eq!(xattr(fs.at(name), "security.capability").unwrap(), CAPABILITY, "{name}");
    }
    for name in ["low", "up"] {
        append(fs.at(name), "new");
        assert_eq!(xattr(fs.at(name), "security.capability"), Err(Errno::NODATA), "{name}");
    }
    File::create(fs.at("cut")).unwrap();
    assert_eq!(xattr(fs.at("cut"), "security.capability"), Err(Errno::NODATA));
}}

both! { capabilities_survive_a_copy_up_that_writes_nothing, |t| {
    put(t.lower("f"), "old");
    set_xattr(t.lower("f"), "security.capability", &CAPABILITY).unwrap();
    let mut fs = t.mount(&[]);
    chmod(fs.at("f"), 0o711);
    assert_eq!(xattr(fs.at("f"), "security.capability").unwrap(), CAPABILITY);
    fs.remount();
    assert_eq!(xattr(fs.at("f"), "security.capability").unwrap(), CAPABILITY);
}}

both! { a_change_of_owner_clears_set_id_bits_and_capabilities, |t| {
    t.needs_ids();
    let fs = t.mount(&["f=x"]);
    chmod(fs.at("f"), 0o6755);
    set_xattr(fs.at("f"), "security.capability", &CAPABILITY).unwrap();
    chown(fs.at("f"), Some(1000), Some(1000)).unwrap();
    assert_eq!(mode(fs.at("f")), 0o755);
    assert_eq!(xattr(fs.at("f"), "security.capability"), Err(Errno::NODATA));
}}

both! { an_owner_outside_the_group_cannot_set_its_setgid_bit, |t| {
    t.needs_ids();
    let fs = t.mount(&["f=x"]);
    chown(fs.at("f"), Some(1000), Some(1234)).unwrap();
    as_user(1000, || chmod(fs.at("f"), 0o2755));
    assert_eq!(mode(fs.at("f")), 0o755);
}}

both! { permissions_are_checked_for_the_caller, |t| {
    t.needs_ids();
    let fs = t.mount(&["secret=x", "closed", "closed/f=x", "sticky", "sticky/f=x"]);
    chmod(fs.at("secret"), 0o600);
    chmod(fs.at("closed"), 0o700);
    chmod(fs.at("sticky"), 0o1777);
    as_user(1000, || {
        assert_eq!(errno(fs::read(fs.at("secret"))), Errno::ACCESS);
        assert_eq!(errno(fs::read(fs.at("closed/f"))), Errno::ACCESS);
        assert_eq!(errno(fs::remove_file(fs.at("sticky/f"))), Errno::PERM);
        assert_eq!(errno(fs::write(fs.at("new"), "x")), Errno::ACCESS);
        assert_eq!(errno(chown(fs.at("secret"), Some(1000), None)), Errno::PERM);
    });
    assert!(exists(fs.at("sticky/f")));
}}

both! { a_file_without_permissions_can_be_made_written_and_copied_up_by_its_owner, |t| {
    t.needs_ids();
    chmod(t.at("lower"), 0o777);
    as_user(1000, || put(t.lower("f"), "old"));
    chmod(t.lower("f"), 0o000);
    let fs = t.mount(&[]);
    chmod(fs.at(""), 0o777);
    as_user(1000, || {
        chmod(fs.at("f"), 0o200);
        append(fs.at("f"), "new");
        let mut new = OpenOptions::new();
        std::os::unix::fs::OpenOptionsExt::mode(&mut new, 0o444);
        let mut file = new.write(true).create_new(true).open(fs.at("g")).unwrap();
        std::io::Write::write_all(&mut file, b"x").unwrap();
        file.set_len(0).unwrap();
    });
    assert_eq!(text(fs.at("f")), "oldnew");
    assert_eq!(mode(fs.at("g")), 0o444);
}}

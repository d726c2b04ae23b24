//! The override record: kinds it shows, devices it stands for, copy-up into it, what falls with a change.

use std::fs::{self, File};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, chown, lchown, symlink};
use std::path::Path;

use rustix::fs::{
    CWD, FallocateFlags, FileType, Mode, copy_file_range, fallocate, makedev, mknodat,
};
use rustix::io::Errno;
use rustix::thread::{CapabilitySet, remove_capability_from_bounding_set};

use crate::semantics_kit::{
    Stack, append, as_user, both, chmod, exists, mode, names, put, read_write, set_xattr, stat,
    text, xattr,
};

const RECORD: &str = "user.containers.override_stat";
const CAPABILITY: &str = "security.capability";
/// cap_net_raw, permitted and effective (`VFS_CAP_REVISION_2`, linux/capability.h).
const NET_RAW: [u8; 20] = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

fn owner(path: impl AsRef<Path>) -> (u32, u32) {
    let stat = stat(path);
    (stat.uid(), stat.gid())
}

fn record(path: &Path) -> String {
    String::from_utf8(xattr(path, RECORD).unwrap()).unwrap()
}

/// Every name of a directory is listed with the type that stat tells.
fn kinds_agree(dir: &Path) {
    // The types come from the listing alone as long as nobody has asked for attributes.
    let listed: Vec<_> =
        fs::read_dir(dir).unwrap().map(|x| x.unwrap()).map(|x| (x.path(), x.file_type())).collect();
    for (path, kind) in listed {
        assert_eq!(kind.unwrap(), stat(&path).file_type(), "{}", path.display());
    }
}

both! { listings_show_the_recorded_kind, OnlyPlyfs, |t| {
    let values = [
        ("null", "0:0:0666:char-1-3"),
        ("disk", "0:0:0660:block-8-1"),
        ("pipe", "0:0:0600:pipe"),
        ("socket", "0:0:0600:socket"),
        ("file", "0:0:0640:file"),
    ];
    for dir in ["alone", "merged"] {
        fs::create_dir(t.lower(dir)).unwrap();
        for (name, value) in values {
            put(t.lower(dir).join(name), "");
            set_xattr(t.lower(dir).join(name), RECORD, value.as_bytes()).unwrap();
        }
    }
    // The kernel asks for attributes with the first names only: the others show what the listing says.
    for number in 0..500 {
        let (dir, name) = (t.lower("alone"), format!("many names of one kind {number}"));
        put(dir.join(&name), "");
        set_xattr(dir.join(&name), RECORD, b"0:0:0600:pipe").unwrap();
    }
    let mut fs = t.mount_with("xattr_permissions=2", &["link->file"]);
    put(fs.at("merged/new"), "x");
    chmod(fs.at("merged/disk"), 0o600);
    for _ in 0..2 {
        for dir in ["alone", "merged", ""] {
            kinds_agree(&fs.at(dir));
        }
        assert!(stat(fs.at("alone/null")).file_type().is_char_device());
        assert!(stat(fs.at("merged/socket")).file_type().is_socket());
        fs.remount();
    }
    let plain = Stack { options: String::new(), ..fs.stack.clone() };
    fs.remount_with(plain);
    kinds_agree(&fs.at("alone"));
    assert!(stat(fs.at("alone/null")).is_file(), "without the option the record says nothing");
}}

both! { a_device_the_daemon_may_not_make_is_kept_in_the_record, OnlyPlyfs, |t| {
    t.needs(t.is_root(), "root: the kernel lets nobody else ask for a device");
    // Only what is executed from here on is bound, the daemon that is.
    remove_capability_from_bounding_set(CapabilitySet::MKNOD).unwrap();
    let mut fs = t.mount_with("xattr_permissions=2", &["gone=x"]);
    fs::remove_file(fs.at("gone")).unwrap();
    let made = [
        ("null", FileType::CharacterDevice, makedev(1, 3), "0:0:0644:char-1-3"),
        ("gone", FileType::BlockDevice, makedev(7, 0), "0:0:0644:block-7-0"),
    ];
    for (name, kind, device, _) in made {
        mknodat(CWD, fs.at(name), kind, Mode::from(0o666), device).unwrap();
    }
    chown(fs.at("gone"), Some(0), Some(6)).unwrap();
    chown(fs.at("gone"), Some(0), Some(0)).unwrap();
    for _ in 0..2 {
        kinds_agree(&fs.at(""));
        for (name, kind, device, value) in made {
            let stat = stat(fs.at(name));
            assert_eq!(FileType::from_raw_mode(stat.mode()), kind, "{name}");
            assert_eq!((stat.rdev(), mode(fs.at(name))), (device, 0o644), "{name}");
            assert!(t.upper(name).is_file(), "{name} on disk");
            assert_eq!(record(&t.upper(name)), value, "{name}");
        }
        fs.remount();
    }
    fs::write(fs.at("null"), "swallowed").unwrap();
    fs::rename(fs.at("null"), fs.at("zero")).unwrap();
    assert!(stat(fs.at("zero")).file_type().is_char_device());
    fs::remove_file(fs.at("zero")).unwrap();
    assert_eq!(names(fs.at("")), ["gone"]);
    let plain = Stack { options: String::new(), ..fs.stack.clone() };
    fs.remount_with(plain);
    let refused = mknodat(CWD, fs.at("n"), FileType::CharacterDevice, Mode::empty(), makedev(1, 3));
    assert_eq!(refused, Err(Errno::PERM), "without the option");
}}

both! { a_copy_up_keeps_the_owner_in_the_record, OnlyPlyfs, |t| {
    t.needs_ids();
    put(t.lower("f"), "x");
    put(t.lower("closed"), "x");
    fs::create_dir(t.lower("d")).unwrap();
    symlink("f", t.lower("l")).unwrap();
    mknodat(CWD, t.lower("p"), FileType::Fifo, Mode::from(0o640), 0).unwrap();
    let low = ["f", "closed", "d", "l", "p"];
    for name in low {
        lchown(t.lower(name), Some(5), Some(6)).unwrap();
    }
    chmod(t.lower("f"), 0o4751);
    chmod(t.lower("closed"), 0);
    let mut fs = t.mount_with("xattr_permissions=2", &["was=x"]);
    set_xattr(t.lower("was"), RECORD, b"7:8:2711:file").unwrap();
    for name in ["f", "closed"] {
        set_xattr(fs.at(name), "user.touched", b"y").unwrap();
    }
    put(fs.at("d/new"), "x");
    lchown(fs.at("l"), Some(9), None).unwrap();
    chown(fs.at("p"), None, Some(9)).unwrap();
    set_xattr(fs.at("was"), "user.touched", b"y").unwrap();
    for _ in 0..2 {
        let shown = low.map(|name| owner(fs.at(name)));
        assert_eq!(shown, [(5, 6), (5, 6), (5, 6), (9, 6), (5, 9)]);
        assert_eq!((mode(fs.at("f")), mode(fs.at("closed"))), (0o4751, 0));
        assert_eq!((owner(fs.at("was")), mode(fs.at("was"))), ((7, 8), 0o2711));
        for name in low.iter().chain(&["was"]) {
            assert_eq!(owner(t.upper(name)), (0, 0), "{name} on disk");
        }
        fs.remount();
    }
    assert_eq!(record(&t.upper("f")), "5:6:4751:file");
    assert_eq!(mode(t.upper("f")), 0o751, "no set-id bit on disk: the owner is another there");
    assert_eq!(mode(t.upper("closed")), 0o600, "the daemon can get at the file");
}}

both! { a_device_that_cannot_be_copied_is_kept_in_the_record, OnlyPlyfs, |t| {
    t.needs_ids();
    let stack = Stack {
        lowers: vec!["/dev".into()],
        options: "xattr_permissions=2".to_owned(),
        ..t.stack()
    };
    if t.is_root() {
        remove_capability_from_bounding_set(CapabilitySet::MKNOD).unwrap();
    }
    let mut fs = t.mount_stack(stack);
    let before = stat(fs.at("null"));
    chmod(fs.at("null"), 0o640);
    for _ in 0..2 {
        let after = stat(fs.at("null"));
        assert!(after.file_type().is_char_device());
        assert_eq!((after.rdev(), after.ino()), (before.rdev(), before.ino()));
        assert_eq!((mode(fs.at("null")), owner(fs.at("null"))), (0o640, (before.uid(), before.gid())));
        assert!(t.upper("null").is_file());
        let kind = fs::read_dir(fs.at("")).unwrap().map(|x| x.unwrap());
        let kind = kind.filter(|x| x.file_name() == "null").map(|x| x.file_type().unwrap()).next();
        assert!(kind.unwrap().is_char_device());
        fs.remount();
    }
    chmod(fs.at("zero"), 0o640);
    fs::rename(fs.at("zero"), fs.at("moved")).unwrap();
    fs::hard_link(fs.at("moved"), fs.at("linked")).unwrap();
    fs::remove_file(fs.at("moved")).unwrap();
    assert!(stat(fs.at("linked")).file_type().is_char_device());
    assert!(!exists(fs.at("zero")) && !exists(fs.at("moved")));
}}

both! { what_is_made_with_a_record_is_open_to_the_daemon_and_bears_no_set_id, OnlyPlyfs, |t| {
    let mut fs = t.mount_with("xattr_permissions=2", &[]);
    let made = [("closed", 0o000), ("program", 0o6755), ("secret", 0o200)];
    for (name, mode) in made {
        File::options().write(true).create_new(true).mode(mode).open(fs.at(name)).unwrap();
        chmod(fs.at(name), mode);
    }
    fs::create_dir(fs.at("dir")).unwrap();
    chmod(fs.at("dir"), 0o1000);
    for _ in 0..2 {
        for (name, bits) in made.iter().chain(&[("dir", 0o1000)]) {
            assert_eq!(mode(fs.at(name)), *bits, "{name}");
            let disk = mode(t.upper(name));
            assert_eq!(disk & 0o7600, 0o600, "{name}: {disk:o} on disk");
        }
        fs.remount();
    }
}}

type Change = fn(&Path);

/// Changes of a file's data, and of its owner.
const CHANGES: [(&str, Change); 8] = [
    ("write", |path| append(path, "x")),
    ("truncate", |path| read_write(path).set_len(1).unwrap()),
    ("overwrite", |path| drop(File::create(path).unwrap())),
    ("reserve", |path| fallocate(read_write(path), FallocateFlags::empty(), 0, 8192).unwrap()),
    ("punch", |path| {
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        fallocate(read_write(path), punch, 0, 4096).unwrap();
    }),
    ("copy", |path| {
        let source = File::open(path.with_file_name("source")).unwrap();
        assert_eq!(copy_file_range(source, None, read_write(path), None, 4), Ok(4));
    }),
    ("chown", |path| chown(path, Some(1000), Some(1000)).unwrap()),
    ("chown to nobody", |path| chown(path, None, None).unwrap()),
];

both! { file_capabilities_fall_with_a_change, |t| {
    t.needs_ids();
    for options in ["", "xattr_permissions=2"] {
        if options.is_empty() || matches!(t.backend, crate::semantics_kit::Backend::Plyfs) {
            let dir = t.layer(&format!("low{options}"), &["source=data"]);
            let (up, work) = (format!("up{options}"), format!("work{options}"));
            let mut fs = t.mount_stack(Stack {
                lowers: vec![dir],
                upper: Some((t.layer(&up, &[]), t.layer(&work, &[]))),
                options: options.to_owned(),
                ..t.stack()
            });
            for (name, change) in CHANGES {
                let path = fs.at(name);
                put(&path, "content");
                for round in 0..2 {
                    set_xattr(&path, CAPABILITY, &NET_RAW).unwrap();
                    chmod(&path, 0o755);
                    assert_eq!(text(&path).is_empty(), round > 0 && name == "overwrite");
                    assert!(xattr(&path, CAPABILITY).is_ok(), "{options} {name}: reading, chmod");
                    change(&path);
                    assert_eq!(xattr(&path, CAPABILITY), Err(Errno::NODATA), "{options} {name}");
                }
            }
            set_xattr(fs.at("write"), CAPABILITY, &NET_RAW).unwrap();
            fs.remount();
            append(fs.at("write"), "x");
            assert_eq!(xattr(fs.at("write"), CAPABILITY), Err(Errno::NODATA), "{options}");
        }
    }
}}

both! { set_id_bits_fall_with_a_change_by_another_than_root, |t| {
    t.needs_ids();
    for options in ["", "xattr_permissions=2"] {
        if options.is_empty() || matches!(t.backend, crate::semantics_kit::Backend::Plyfs) {
            let dir = t.layer(&format!("low{options}"), &["source=data"]);
            let (up, work) = (format!("up{options}"), format!("work{options}"));
            let fs = t.mount_stack(Stack {
                lowers: vec![dir],
                upper: Some((t.layer(&up, &[]), t.layer(&work, &[]))),
                options: options.to_owned(),
                ..t.stack()
            });
            for (name, change) in CHANGES {
                let path = fs.at(name);
                put(&path, "content");
                chown(&path, Some(1000), Some(1000)).unwrap();
                for _ in 0..2 {
                    chmod(&path, 0o6755);
                    if !name.starts_with("chown") {
                        read_write(&path);
                        assert_eq!(mode(&path), 0o6755, "{options} {name}: opened");
                        as_user(1000, || change(&path));
                    } else {
                        change(&path);
                    }
                    assert_eq!(mode(&path), 0o755, "{options} {name}");
                }
            }
            let path = fs.at("write");
            chmod(&path, 0o6755);
            // The kernel's overlay refuses it.
            let _ = as_user(1001, || chown(&path, None, None));
            assert_eq!(mode(&path), 0o6755, "{options}: a stranger takes no bit away");
        }
    }
}}

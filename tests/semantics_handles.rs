//! File handles: what an NFS server needs of a filesystem that it exports.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::Path;

use rustix::io::Errno;
use rustix::mount::{MountFlags, mount_remount};

use crate::semantics_kit::sys::{Handle, handle_of, open_handle};
use crate::semantics_kit::{Fs, Test, append, both, errno, exists, mv, names, put, stat};

const READ: i32 = 0;
const WRITE: i32 = 1;
const DIRECTORY: i32 = 0o200_000;

fn mounted(t: &Test, entries: &[&str]) -> Fs {
    t.mount_with("nfs_export=on", entries)
}

/// Has the kernel give back every name that nobody uses: what a remount does to its filesystem alone.
fn forget(fs: &Fs) {
    mount_remount(fs.at(""), MountFlags::NOATIME, c"").unwrap();
}

fn handle(t: &Test, path: &Path) -> Handle {
    match handle_of(path) {
        Err(error) if error.raw_os_error() == Some(Errno::OPNOTSUPP.raw_os_error()) => {
            t.skip("file handles")
        }
        other => other.unwrap(),
    }
}

fn read(fs: &Fs, handle: &Handle) -> String {
    let mut text = String::new();
    open_handle(File::open(fs.at("")).unwrap(), handle, READ)
        .unwrap_or_else(|x| panic!("open by handle: {x}"))
        .read_to_string(&mut text)
        .unwrap();
    text
}

fn opens(t: &Test, fs: &Fs) {
    put(fs.at("probe"), "");
    let probe = handle(t, &fs.at("probe"));
    let opened = open_handle(File::open(fs.at("")).unwrap(), &probe, READ);
    let refused = opened.is_err_and(|x| x.raw_os_error() == Some(Errno::PERM.raw_os_error()));
    t.needs(!refused, "a kernel that opens handles in a user namespace");
}

both! { a_file_handle_opens_its_object_after_the_kernel_forgot_it, Rootless("userxattr refuses nfs_export"), |t| {
    let fs = mounted(t, &["low=low", "d", "d/deep=deep", "d/e", "d/e/f=f"]);
    put(fs.at("up"), "up");
    opens(t, &fs);
    let cases = [("low", "low"), ("up", "up"), ("d/deep", "deep"), ("d/e/f", "f")];
    let handles = cases.map(|(name, text)| (handle(t, &fs.at(name)), text));
    let dir = handle(t, &fs.at("d/e"));
    for _ in 0..2 {
        forget(&fs);
        for (handle, text) in &handles {
            assert_eq!(read(&fs, handle), *text);
        }
        let dir = open_handle(File::open(fs.at("")).unwrap(), &dir, READ).unwrap();
        let path = fs::read_link(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&dir)));
        assert_eq!(path.unwrap(), fs.at("d/e"), "a directory is found with its place");
        assert_eq!(handle_of(&fs.at("low")).unwrap(), handles[0].0, "it is the same each time");
    }
}}

// Root of a user namespace may open the handles of directories only.
both! { a_directory_handle_leads_to_its_place_after_the_kernel_forgot_it, Rootless("userxattr refuses nfs_export"), |t| {
    let fs = mounted(t, &["d", "d/e", "d/e/f=f", "gone"]);
    fs::create_dir(fs.at("up")).unwrap();
    let open = |handle: &Handle| open_handle(File::open(fs.at("")).unwrap(), handle, DIRECTORY);
    let handles = ["d/e", "up", "gone"].map(|x| handle(t, &fs.at(x)));
    fs::remove_dir(fs.at("gone")).unwrap();
    for name in ["d/e", "d/moved"] {
        forget(&fs);
        let dirs = [open(&handles[0]).unwrap(), open(&handles[1]).unwrap()];
        for (dir, place) in dirs.iter().zip([name, "up"]) {
            let link = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(dir));
            assert_eq!(fs::read_link(link).unwrap(), fs.at(place));
        }
        assert_eq!(errno(open(&handles[2])), Errno::STALE);
        assert_eq!(names(fs.at(name)), ["f"]);
        drop(dirs);
        if exists(fs.at("d/e")) {
            mv(fs.at("d/e"), fs.at("d/moved"));
        }
    }
}}

both! { a_file_handle_follows_copy_up_and_rename, Rootless("userxattr refuses nfs_export"), |t| {
    let fs = mounted(t, &["f=low", "d", "d/g=low", "e"]);
    opens(t, &fs);
    let (file, moved) = (handle(t, &fs.at("f")), handle(t, &fs.at("d/g")));
    append(fs.at("f"), "+up");
    mv(fs.at("d/g"), fs.at("e/h"));
    forget(&fs);
    assert_eq!((read(&fs, &file), read(&fs, &moved)), ("low+up".into(), "low".into()));
    let mut writer = open_handle(File::open(fs.at("")).unwrap(), &file, WRITE).unwrap();
    writer.write_all(b"LOW").unwrap();
    drop(writer);
    assert_eq!(read(&fs, &file), "LOW+up");
    assert_eq!(stat(fs.at("f")).len(), 6);
}}

both! { the_handle_of_a_deleted_file_is_stale, Rootless("userxattr refuses nfs_export"), |t| {
    let fs = mounted(t, &["low=x", "d", "d/f=x"]);
    put(fs.at("up"), "x");
    opens(t, &fs);
    let handles = ["low", "up", "d", "d/f"].map(|x| handle(t, &fs.at(x)));
    for name in ["low", "up", "d/f"] {
        fs::remove_file(fs.at(name)).unwrap();
    }
    fs::remove_dir(fs.at("d")).unwrap();
    forget(&fs);
    // New objects may get the numbers of the old ones, but are others.
    for round in 0..20 {
        put(fs.at(format!("new{round}")), "new");
    }
    assert_eq!(names(fs.at("")).len(), 21);
    for handle in &handles {
        let opened = open_handle(File::open(fs.at("")).unwrap(), handle, READ);
        assert_eq!(errno(opened), Errno::STALE);
    }
}}

both! { a_handle_of_an_earlier_mount_is_stale_and_never_another_file, NoDaemon, |t| {
    let mut fs = mounted(t, &["f=x", "g=y"]);
    opens(t, &fs);
    let handle = handle(t, &fs.at("f"));
    fs.remount();
    assert_eq!(stat(fs.at("g")).len(), 1);
    let opened = open_handle(File::open(fs.at("")).unwrap(), &handle, READ);
    assert_eq!(errno(opened), Errno::STALE);
}}

//! `mount -o remount`: flags change, layers do not.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::io::Errno;

use crate::semantics_kit::backend::{list, plyfs, said};
use crate::semantics_kit::{Stack, Test, append, both, errno, exists, plant, put, text};

/// The program as mount(8) calls it: source, target, one list.
fn helper(t: &Test, name: &str, options: &str) -> Result<(), String> {
    let mut command = Command::new(plyfs());
    said(command.arg0(name).arg("plyfs").arg(t.at("merged")).args(["-o", options]))
}

/// The flags of the mount.
fn flags(point: &Path) -> String {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let line = table.lines().rfind(|x| x.split(' ').nth(4) == point.to_str()).unwrap();
    line.split(' ').nth(5).unwrap().to_owned()
}

fn has(t: &Test, word: &str) -> bool {
    flags(&t.at("merged")).split(',').any(|x| x == word)
}

both! { a_remount_makes_a_mount_read_only_and_writable_again, OnlyPlyfs, |t| {
    let fs = t.mount(&["f=low", "g=low"]);
    append(fs.at("f"), "+");
    for name in ["mount.plyfs", "mount.fuse.plyfs", "fuse-overlayfs"] {
        // As mount(8) says it: with what the table of mounts shows.
        let shown = "user_id=0,group_id=0,default_permissions,allow_other";
        helper(t, name, &format!("ro,noatime,remount,{shown}")).unwrap();
        assert_eq!(errno(fs::write(fs.at("f"), "x")), Errno::ROFS);
        assert_eq!(errno(fs::remove_file(fs.at("g"))), Errno::ROFS);
        assert_eq!(text(fs.at("f")), "low+");
        assert!(has(t, "ro") && has(t, "noatime"));
        helper(t, name, &format!("rw,noatime,remount,{shown}")).unwrap();
        put(fs.at("new"), name);
        assert_eq!(text(t.upper("new")), name);
    }
    let point = t.at("merged");
    let mut command = t.backend.program();
    said(command.args(["mount", "-o", "remount,nosuid,noexec"]).arg(&point)).unwrap();
    assert!(has(t, "nosuid") && has(t, "noexec") && has(t, "rw") && has(t, "noatime"));
    let mut command = t.backend.program();
    said(command.args(["mount", "-o", "remount,exec"]).arg(&point)).unwrap();
    assert!(has(t, "nosuid") && !has(t, "noexec"));
}}

both! { a_remount_accepts_the_line_of_fstab_and_refuses_other_layers, OnlyPlyfs, |t| {
    let stack = Stack { options: "metacopy=on".into(), ..t.stack() };
    let _fs = t.mount_stack(stack.clone());
    let line = format!("ro,remount,noauto,nofail,x-systemd.automount,{}", list(&stack));
    helper(t, "mount.fuse.plyfs", &line).unwrap();
    assert!(has(t, "ro"));
    let other = Stack { lowers: vec![t.layer("other", &[])], ..stack.clone() };
    let upper = Stack { upper: Some((t.layer("up2", &[]), t.at("work"))), ..stack.clone() };
    let cases = [
        (format!("rw,remount,{}", list(&other)), "lowerdir"),
        (format!("rw,remount,{}", list(&upper)), "upperdir"),
        ("rw,remount,timeout=0".to_owned(), "timeout"),
        ("rw,remount,metacopy=off".to_owned(), "metacopy"),
    ];
    for (options, name) in cases {
        let refused = helper(t, "mount.fuse.plyfs", &options).unwrap_err();
        assert!(refused.contains(name) && refused.contains("unmount"), "{refused}");
        assert!(has(t, "ro"), "nothing was changed");
    }
}}

both! { a_remount_that_cannot_be_is_refused_with_its_reason, OnlyPlyfs, |t| {
    let refused = helper(t, "mount.plyfs", "remount,ro").unwrap_err();
    assert!(refused.contains("not found"), "{refused}");
    let fs = t.mount(&["f=x"]);
    let writer = File::options().append(true).open(fs.at("f")).unwrap();
    let refused = helper(t, "mount.plyfs", "remount,ro").unwrap_err();
    assert!(refused.contains("in use") && refused.contains("writing"), "{refused}");
    drop(writer);
    helper(t, "mount.plyfs", "remount,ro").unwrap();
    drop(fs);
    let _fs = t.mount_stack(Stack { upper: None, ..t.stack() });
    let refused = helper(t, "mount.plyfs", "remount,rw").unwrap_err();
    assert!(refused.contains("upper"), "{refused}");
}}

both! { the_mount_command_remounts_through_the_helper, OnlyPlyfs, |t| {
    let program = Path::new("/usr/bin/mount");
    t.needs(exists(program), "mount(8)");
    // The mount namespace is the test's own.
    let helpers = t.layer("helpers", &[]);
    std::os::unix::fs::symlink(plyfs(), helpers.join("mount.fuse.plyfs")).unwrap();
    let sbin = fs::canonicalize("/sbin").unwrap();
    let lowers = vec![helpers, sbin.clone()];
    let point = sbin.clone();
    let _sbin = t.kernel_mount(Stack { lowers, upper: None, options: String::new(), ..Stack { point, ..t.stack() } });
    plant(&t.at("lower"), &["f=x"]);
    let merged: PathBuf = t.at("merged");
    let mount = |words: &[&str]| said(Command::new(program).args(words).arg(&merged));
    let options = list(&t.stack());
    mount(&["-t", "fuse.plyfs", "-o", &options, "none"]).unwrap();
    mount(&["-o", "remount,ro"]).unwrap();
    assert!(has(t, "ro"));
    assert_eq!(errno(fs::write(merged.join("f"), "x")), Errno::ROFS);
    mount(&["-o", "remount,rw"]).unwrap();
    append(merged.join("f"), "y");
    assert_eq!(text(t.upper("f")), "xy");
    rustix::mount::unmount(&merged, rustix::mount::UnmountFlags::empty()).unwrap();
}}

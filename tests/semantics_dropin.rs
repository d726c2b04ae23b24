//! Called as fuse-overlayfs: the forms of the command line that its callers use.

use std::fs;
use std::os::unix::fs::{MetadataExt, lchown, symlink};
use std::os::unix::process::CommandExt;
use std::process::{Command, Output, Stdio};

use rustix::mount::{UnmountFlags, unmount};

use crate::semantics_kit::{Backend, Stack, Test, backend, both, plant, stat, text, wait_until};

/// The program under the name that callers look for.
fn drop_in(t: &Test) -> Command {
    if t.backend == Backend::FuseOverlayfs {
        return t.backend.program();
    }
    named("fuse-overlayfs")
}

fn named(name: &str) -> Command {
    let mut command = Command::new(backend::plyfs());
    command.arg0(name);
    command
}

/// Runs it to its end; what it says comes to an end although a daemon stays.
fn ran(command: &mut Command) -> Output {
    command.stdin(Stdio::null()).output().unwrap()
}

/// The mount that these words made works; ends it.
fn works(t: &Test, words: &[String], output: &Output) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{words:?}: {said}");
    assert_eq!(text(t.at("merged/f")), "x", "{words:?}");
    fs::write(t.at("merged/new"), "x").unwrap();
    unmount(t.at("merged"), UnmountFlags::empty()).unwrap();
    if t.backend == Backend::Plyfs {
        assert_eq!(said, "", "{words:?}");
    }
}

both! { options_come_in_every_order_and_form, NoDaemon, |t| {
    plant(&t.at("lower"), &["f=x"]);
    let list = backend::list(&t.stack());
    let (low, rest) = list.split_once(',').unwrap();
    let point = t.at("merged").to_str().unwrap().to_owned();
    let forms: Vec<Vec<String>> = vec![
        vec!["-o".into(), list.clone(), point.clone()],
        vec![point.clone(), "-o".into(), list.clone()],
        vec![format!("-o{list}"), point.clone()],
        vec!["-o".into(), low.into(), "-o".into(), rest.into(), point.clone()],
        vec!["-o".into(), format!("{low},,{rest},"), point.clone()],
        vec!["-o".into(), format!("rw,{list}"), point.clone()],
    ];
    for words in forms {
        works(t, &words, &ran(drop_in(t).args(&words)));
    }
}}

both! { a_source_word_before_the_mountpoint_is_ignored, NoDaemon, |t| {
    plant(&t.at("lower"), &["f=x"]);
    let list = backend::list(&t.stack());
    let point = t.at("merged").to_str().unwrap().to_owned();
    let words = vec!["source".to_owned(), point, "-o".into(), list, "-o".into(), "dev,suid".into()];
    works(t, &words, &ran(drop_in(t).args(&words)));
}}

both! { the_options_that_engines_pass_are_accepted_in_silence, NoDaemon, |t| {
    plant(&t.at("lower"), &["f=x"]);
    for options in [
        "volatile",
        "nodev",
        "xino=off",
        "redirect_dir=off",
        "fsync=0",
        "userxattr",
        "metacopy=off",
        "threaded=1",
        "writeback=0",
        "fast_ino=1",
        "noxattrs=0",
        "noacl",
        "static_nlink",
        "timeout=3",
        "default_permissions",
        "allow_other",
        "kernel_cache",
        "max_write=65536",
        "splice_read",
        "index=off",
        "lazytime",
        "private",
        "noatime,nodiratime",
        "x-systemd.automount",
    ] {
        let stack = Stack { options: options.to_owned(), ..t.stack() };
        let output = ran(drop_in(t).arg("-o").arg(backend::list(&stack)).arg(t.at("merged")));
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{options}: {said}");
        assert_eq!(text(t.at("merged/f")), "x", "{options}");
        unmount(t.at("merged"), UnmountFlags::empty()).unwrap();
        if t.backend == Backend::Plyfs {
            assert_eq!(said, "", "{options}");
        }
    }
}}

both! { a_quoted_context_keeps_its_comma, NoDaemon, |t| {
    plant(&t.at("lower"), &["f=x"]);
    let quoted = "context=\"system_u:object_r:container_file_t:s0:c1,c2\"";
    for list in [
        format!("{quoted},{}", backend::list(&t.stack())),
        format!("{},{quoted}", backend::list(&t.stack())),
    ] {
        let words = vec!["-o".to_owned(), list, t.at("merged").to_str().unwrap().to_owned()];
        works(t, &words, &ran(drop_in(t).args(&words)));
    }
}}

both! { an_unknown_option_is_warned_about_once_and_not_fatal, OnlyPlyfs, |t| {
    plant(&t.at("lower"), &["f=x"]);
    let stack = Stack { options: "quux=1".to_owned(), ..t.stack() };
    let output = ran(drop_in(t).arg("-o").arg(backend::list(&stack)).arg(t.at("merged")));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert_eq!(said.matches("quux").count(), 1, "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    unmount(t.at("merged"), UnmountFlags::empty()).unwrap();
}}

both! { the_version_line_is_the_one_that_callers_parse, NoDaemon, |t| {
    for word in ["--version", "-V"] {
        let output = ran(drop_in(t).arg(word));
        assert!(output.status.success());
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let line = said.lines().find(|x| x.starts_with("fuse-overlayfs: version ")).expect(&said);
        let version: Vec<u32> =
            line.rsplit(' ').next().unwrap().split('.').map(|x| x.parse().unwrap()).collect();
        assert!(version >= vec![1, 10], "{line}");
    }
}}

both! { help_is_printed_and_a_missing_mountpoint_refused, NoDaemon, |t| {
    let help = ran(drop_in(t).arg("--help"));
    assert!(help.status.success());
    assert!(String::from_utf8_lossy(&[help.stdout, help.stderr].concat()).contains("-o"));
    let refused = ran(drop_in(t).arg("-o").arg(backend::list(&t.stack())));
    assert!(!refused.status.success());
    assert!(!refused.stderr.is_empty());
}}

both! { a_failure_says_why_on_standard_error, NoDaemon, |t| {
    let stack = Stack { lowers: vec![t.at("none")], ..t.stack() };
    let refused = ran(drop_in(t).arg("-o").arg(backend::list(&stack)).arg(t.at("merged")));
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("none"));
}}

both! { plugins_are_refused_and_never_left_out_in_silence, NoDaemon, |t| {
    t.needs(t.backend == Backend::Plyfs, "a peer of another version");
    let list = format!(
        "plugins=/none.so,lowerdir=//none/data/path,upperdir={},workdir={}",
        t.at("upper").display(),
        t.at("work").display()
    );
    let refused = ran(drop_in(t).arg("-o").arg(list).arg(t.at("merged")));
    assert!(!refused.status.success());
    assert!(!refused.stderr.is_empty());
}}

both! { the_foreground_form_serves_until_it_is_told_to_stop, NoDaemon, |t| {
    plant(&t.at("lower"), &["f=x"]);
    let mut command = drop_in(t);
    command.arg("-f").arg("-o").arg(backend::list(&t.stack())).arg(t.at("merged"));
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    wait_until("the mount", || t.at("merged/f").exists());
    assert!(child.try_wait().unwrap().is_none());
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert!(child.wait().unwrap().success());
    assert!(!t.at("merged/f").exists());
}}

both! { the_helper_of_mount_takes_source_and_target, OnlyPlyfs, |t| {
    plant(&t.at("lower"), &["f=x"]);
    for name in ["mount.plyfs", "mount.fuse.plyfs"] {
        let mut command = named(name);
        command
            .arg("none")
            .arg(t.at("merged"))
            .arg("-o")
            .arg(format!("rw,{}", backend::list(&t.stack())));
        works(t, &[name.to_owned()], &ran(&mut command));
    }
}}

// podman --uidmap prepares the root as the host's root, whom the maps do not have, then gives it away.
both! { a_caller_outside_the_maps_makes_objects_of_the_overflow_id, NoDaemon, |t| {
    t.needs_ids();
    let stack = Stack { options: "uidmapping=0:1:10,gidmapping=0:1:10".to_owned(), ..t.stack() };
    let output = ran(drop_in(t).arg("-o").arg(backend::list(&stack)).arg(t.at("merged")));
    assert!(output.status.success(), "{output:?}");
    fs::write(t.at("merged/file"), "x").unwrap();
    fs::create_dir(t.at("merged/dir")).unwrap();
    symlink("/proc/mounts", t.at("merged/link")).unwrap();
    for name in ["file", "dir", "link"] {
        let owner = |stat: fs::Metadata| (stat.uid(), stat.gid());
        let place = t.at("merged").join(name);
        assert_eq!(owner(stat(&place)), (65_534, 65_534), "{name}");
        lchown(&place, Some(1), Some(2)).unwrap();
        assert_eq!(owner(stat(&place)), (1, 2), "{name}");
        assert_eq!(owner(stat(t.upper(name))), (0, 1), "{name} on disk");
    }
    unmount(t.at("merged"), UnmountFlags::empty()).unwrap();
}}

both! { without_device_whiteouts_deletions_are_written_as_files, NoDaemon, |t| {
    plant(&t.at("lower"), &["f=x", "d", "d/g=x"]);
    let mount = || {
        let mut command = drop_in(t);
        command.env("FUSE_OVERLAYFS_DISABLE_OVL_WHITEOUT", "1");
        let output = ran(command.arg("-o").arg(backend::list(&t.stack())).arg(t.at("merged")));
        assert!(output.status.success());
    };
    mount();
    fs::remove_file(t.at("merged/f")).unwrap();
    fs::remove_file(t.at("merged/d/g")).unwrap();
    unmount(t.at("merged"), UnmountFlags::empty()).unwrap();
    assert!(t.upper(".wh.f").is_file() && t.upper("d/.wh.g").is_file());
    mount();
    assert_eq!(crate::semantics_kit::names(t.at("merged")), ["d"]);
    fs::write(t.at("merged/f"), "again").unwrap();
    assert_eq!(text(t.at("merged/f")), "again");
    unmount(t.at("merged"), UnmountFlags::empty()).unwrap();
    assert!(!t.upper(".wh.f").exists());
}}

//! The life of a mount: what a success means, how it ends, what a crash leaves, what is told.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Pid, Signal, kill_process};

use crate::semantics_kit::{
    Backend, Stack, Test, append, as_user, backend, both, chmod, errno, exists, mode, mtime, names,
    plant, put, set_times, set_xattr, stat, text, wait_until, xattr,
};

/// The processes that serve mounts.
fn daemons(t: &Test) -> Vec<Pid> {
    let program = if t.backend == Backend::Plyfs { "plyfs" } else { "fuse-overlayfs" };
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Ok(number) = entry.file_name().to_string_lossy().parse() else { continue };
        let exe = fs::read_link(entry.path().join("exe")).unwrap_or_default();
        if exe.file_name().is_some_and(|x| x == program) {
            found.extend(Pid::from_raw(number));
        }
    }
    found
}

/// The line of the mount table for a mountpoint: options, type, source, options of the filesystem.
fn mounted(point: &Path) -> Option<(String, String, String, String)> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let line = table.lines().rfind(|x| x.split(' ').nth(4) == point.to_str())?;
    let (left, right) = line.split_once(" - ").unwrap();
    let mut right = right.split(' ').map(str::to_owned);
    let options = left.split(' ').nth(5).unwrap().to_owned();
    Some((options, right.next().unwrap(), right.next().unwrap(), right.next().unwrap()))
}

fn has(options: &str, word: &str) -> bool {
    options.split(',').any(|x| x == word)
}

both! { a_mount_answers_when_the_command_returns_and_ends_with_its_unmount, NoDaemon, |t| {
    for _ in 0..20 {
        let mut fs = t.mount(if t.lower("f").exists() { &[] } else { &["f=x"] });
        assert_eq!(text(fs.at("f")), "x");
        let kind = rustix::fs::statfs(fs.at("")).unwrap().f_type;
        assert_eq!(kind as u64, 0x6573_5546, "the filesystem is FUSE");
        fs.unmount();
        assert!(!exists(fs.at("f")));
    }
    wait_until("the daemons end", || daemons(t).is_empty());
}}

both! { a_success_is_silent_and_closes_every_stream, NoDaemon, |t| {
    plant(&t.at("lower"), &["f=x"]);
    let mut command = t.backend.command(&t.stack());
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = String::new();
    // End of file comes while the daemon lives.
    child.stdout.take().unwrap().read_to_string(&mut said).unwrap();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(text(t.at("merged/f")), "x");
    unmount(t.at("merged"), UnmountFlags::empty()).unwrap();
    if t.backend == Backend::Plyfs {
        assert_eq!(said, "");
    }
}}

both! { a_daemon_keeps_no_descriptor_of_its_starter, OnlyPlyfs, |t| {
    plant(&t.at("lower"), &["f=x"]);
    let (reading, writing) = rustix::pipe::pipe().unwrap();
    let mut command = t.backend.command(&t.stack());
    assert!(command.status().unwrap().success());
    drop((command, writing));
    // End of file comes while the daemon lives; the layers may have been named by a descriptor.
    assert_eq!(File::from(reading).read(&mut [0]).unwrap(), 0);
    assert_eq!(text(t.at("merged/f")), "x");
    unmount(t.at("merged"), UnmountFlags::empty()).unwrap();
}}

both! { signals_unmount_and_keep_what_was_written, NoDaemon, |t| {
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        let mut fs = t.mount(if t.lower("f").exists() { &[] } else { &["f=old"] });
        let name = format!("new{}", signal.as_raw());
        put(fs.at(&name), "written");
        append(fs.at("f"), "+");
        let daemon = daemons(t)[0];
        kill_process(daemon, signal).unwrap();
        wait_until("the unmount", || mounted(&fs.at("")).is_none());
        wait_until("the daemon's end", || daemons(t).is_empty());
        fs.forget();
        assert_eq!(text(t.upper(&name)), "written");
    }
    assert_eq!(text(t.upper("f")), "old+++");
}}

both! { a_signal_with_files_open_still_unmounts, NoDaemon, |t| {
    let mut fs = t.mount(&["f=old"]);
    let open = File::open(fs.at("f")).unwrap();
    kill_process(daemons(t)[0], Signal::TERM).unwrap();
    wait_until("the unmount", || mounted(&fs.at("")).is_none());
    fs.forget();
    drop(open);
    wait_until("the daemon's end", || daemons(t).is_empty());
    let fs = t.mount(&[]);
    assert_eq!(text(fs.at("f")), "old");
}}

both! { a_dirty_workdir_is_cleaned, |t| { dirty(t, false) }}

both! { a_deeply_dirty_workdir_is_cleaned, Both("it cleans one level and mounts read-only"), |t| {
    dirty(t, true)
}}

/// Mounts with leftovers in the work directory.
fn dirty(t: &Test, deep: bool) {
    let mut fs = t.mount(&["f=old", "d", "d/g=old", "h=x"]);
    fs.unmount();
    let work = t.at("work/work");
    let _ = fs::create_dir(&work);
    chmod(&work, 0o700);
    for dir in [work, t.at("work")] {
        plant(&dir, &["f=junk", "d", "d/g=junk", "h", "dir", "closed", "closed/x=junk"]);
        if deep {
            plant(&dir, &["dir/sub", "dir/sub/sub", "dir/sub/f=junk", "dir/sub/sub/f=junk"]);
            chmod(dir.join("dir/sub"), 0o000);
        }
        for number in 0..50 {
            put(dir.join(format!("#{number:x}")), "junk");
            put(dir.join(format!("{number}")), "junk");
        }
        chmod(dir.join("closed"), 0o000);
    }
    chmod(t.at("work/work"), 0o000);
    fs.remount_again();
    append(fs.at("f"), "new");
    append(fs.at("d/g"), "new");
    fs::remove_file(fs.at("h")).unwrap();
    fs::create_dir(fs.at("dir")).unwrap();
    put(fs.at("new"), "x");
    fs::rename(fs.at("new"), fs.at("newer")).unwrap();
    assert_eq!(names(fs.at("")), ["d", "dir", "f", "newer"]);
    assert_eq!((text(fs.at("f")), text(fs.at("d/g"))), ("oldnew".into(), "oldnew".into()));
    fs.unmount();
    chmod(t.at("work/work"), 0o700);
    let left: Vec<_> =
        names(t.at("work/work")).into_iter().filter(|x| !x.starts_with('#')).collect();
    assert!(left.is_empty(), "{left:?}");
}

both! { a_daemon_that_was_killed_leaves_a_stack_that_mounts_again, NoDaemon, |t| {
    let mut fs = t.mount(&["f=old", "gone=x"]);
    append(fs.at("f"), "new");
    fs::remove_file(fs.at("gone")).unwrap();
    rustix::fs::syncfs(File::open(fs.at("")).unwrap()).unwrap();
    kill_process(daemons(t)[0], Signal::KILL).unwrap();
    wait_until("the end", || daemons(t).is_empty());
    unmount(fs.at(""), UnmountFlags::DETACH).unwrap();
    fs.forget();
    let fs = t.mount(&[]);
    assert_eq!((text(fs.at("f")), names(fs.at(""))), ("oldnew".into(), vec!["f".to_owned()]));
}}

both! { a_volatile_mount_leaves_a_marker_that_refuses_a_mount_after_a_crash, |t| {
    t.needs(t.backend != Backend::FuseOverlayfs, "a marker");
    let mut fs = t.mount_with("volatile", &["f=old"]);
    append(fs.at("f"), "new");
    File::open(fs.at("f")).unwrap().sync_all().unwrap();
    fs.unmount();
    chmod(t.at("work/work"), 0o700);
    let marker = t.at("work/work/incompat/volatile");
    // As another start of the machine finds it: the marker alone, which is the kernel's form.
    fs::remove_dir_all(&marker).unwrap();
    fs::create_dir(&marker).unwrap();
    let refused = t.try_mount(t.stack()).err().expect("a refusal");
    if t.backend == Backend::Plyfs {
        assert!(refused.contains("volatile"), "{refused}");
        assert!(refused.contains(t.at("work").to_str().unwrap()), "{refused}");
    }
    assert!(t.try_mount(Stack { options: "volatile".to_owned(), ..t.stack() }).is_err());
    chmod(t.at("work/work"), 0o700);
    fs::remove_dir_all(t.at("work/work/incompat")).unwrap();
    fs.stack.options = String::new();
    fs.remount_again();
    assert_eq!(text(fs.at("f")), "oldnew");
}}

/// The drop-in: the program under the name that callers look for.
fn drop_in(t: &Test) -> Command {
    if t.backend == Backend::FuseOverlayfs {
        return t.backend.program();
    }
    let mut command = Command::new(backend::plyfs());
    command.arg0("fuse-overlayfs");
    command
}

both! { the_drop_in_accepts_a_volatile_workdir_again, NoDaemon, |t| {
    let list = backend::list(&Stack { options: "volatile".to_owned(), ..t.stack() });
    for round in 0..3 {
        backend::said(drop_in(t).args(["-o", &list]).arg(t.at("merged"))).unwrap();
        put(t.at("merged/f"), &round.to_string());
        unmount(t.at("merged"), UnmountFlags::empty()).unwrap();
    }
}}

both! { the_mount_table_shows_source_and_type, NoDaemon, |t| {
    let fs = t.mount(&[]);
    let (_, kind, source, _) = mounted(&fs.at("")).unwrap();
    let name = if t.backend == Backend::Plyfs { "plyfs" } else { "fuse-overlayfs" };
    assert_eq!((kind, source), (format!("fuse.{name}"), name.to_owned()));
    drop(fs);
    backend::said(drop_in(t).arg("-o").arg(backend::list(&t.stack())).arg(t.at("merged"))).unwrap();
    let (_, kind, source, _) = mounted(&t.at("merged")).unwrap();
    assert_eq!((&*kind, &*source), ("fuse.fuse-overlayfs", "fuse-overlayfs"));
    unmount(t.at("merged"), UnmountFlags::empty()).unwrap();
}}

both! { fsname_and_subtype_name_the_mount, OnlyPlyfs, |t| {
    let fs = t.mount_with("fsname=my:source,subtype=mine", &[]);
    let (_, kind, source, _) = mounted(&fs.at("")).unwrap();
    assert_eq!((&*kind, &*source), ("fuse.mine", "my:source"));
}}

both! { mount_flags_are_honoured, NoDaemon, |t| {
    let fs = t.mount_with("nosuid,nodev,noexec,noatime", &["f=x"]);
    let (options, ..) = mounted(&fs.at("")).unwrap();
    for word in ["nosuid", "nodev", "noexec", "noatime", "rw"] {
        assert!(has(&options, word), "{word} in {options}");
    }
    fs::copy("/bin/true", fs.at("true")).unwrap();
    chmod(fs.at("true"), 0o755);
    assert_eq!(errno(Command::new(fs.at("true")).status()), rustix::io::Errno::ACCESS);
}}

both! { the_option_ro_makes_a_stack_with_an_upper_read_only, |t| {
    plant(&t.at("lower"), &["f=low"]);
    plant(&t.at("upper"), &["g=up"]);
    t.needs(t.backend != Backend::Kernel, "a list of mount options");
    let fs = t.mount_with("ro", &[]);
    assert!(has(&mounted(&fs.at("")).unwrap().0, "ro"));
    assert_eq!((text(fs.at("f")), text(fs.at("g"))), ("low".into(), "up".into()));
    assert_eq!(errno(fs::write(fs.at("f"), "x")), rustix::io::Errno::ROFS);
    assert_eq!(errno(fs::remove_file(fs.at("g"))), rustix::io::Errno::ROFS);
}}

both! { device_nodes_work_for_root, NoDaemon, |t| {
    t.needs(t.is_root(), "root: device nodes");
    let fs = t.mount_with("dev,suid", &[]);
    let null = rustix::fs::makedev(1, 3);
    let kind = rustix::fs::FileType::CharacterDevice;
    rustix::fs::mknodat(rustix::fs::CWD, fs.at("null"), kind, 0o666.into(), null).unwrap();
    put(fs.at("null"), "swallowed");
    assert_eq!(text(fs.at("null")), "");
    let (options, ..) = mounted(&fs.at("")).unwrap();
    assert!(!has(&options, "nodev") && !has(&options, "nosuid"), "{options}");
}}

both! { memory_is_returned_when_names_are_forgotten, NoDaemon, |t| {
    let fs = t.mount(&["d"]);
    let daemon = daemons(t)[0].as_raw_nonzero();
    let resident = || {
        let pages = text(format!("/proc/{daemon}/statm"));
        pages.split(' ').nth(1).unwrap().parse::<usize>().unwrap() / 256
    };
    let round = |round: u32| {
        for file in 0..1000 {
            put(fs.at(format!("d/{round}-{file}")), "");
        }
        assert_eq!(names(fs.at("d")).len(), 1000);
        for file in 0..1000 {
            fs::remove_file(fs.at(format!("d/{round}-{file}"))).unwrap();
        }
    };
    round(0);
    let before = resident();
    (1..7).for_each(round);
    let after = resident();
    assert!(after <= before + 2, "from {before} to {after} MiB");
}}

/// Runs the program as an ordinary user without a user namespace; what it said when it failed.
fn as_nobody(t: &Test, words: &[&str]) -> Result<(), String> {
    const NOBODY: u32 = 65_534;
    // The build directory may be closed to him.
    let program = t.at("plyfs");
    if !program.exists() {
        fs::copy(backend::plyfs(), &program).unwrap();
    }
    let mut command = Command::new(program);
    backend::said(command.args(words).arg(t.at("merged")).uid(NOBODY).gid(NOBODY))
}

both! { an_ordinary_user_mounts_through_fusermount3, OnlyPlyfs, |t| {
    t.needs(t.is_root(), "root of the host: to become an ordinary user of it");
    let helper = Path::new("/usr/bin/fusermount3");
    t.needs(helper.exists() && mode(helper) & 0o4000 != 0, "fusermount3, set-user-id");
    t.needs(exists("/etc/mtab"), "/etc/mtab, which fusermount3 reads");
    t.needs(!backend::asks_for_privilege(), "options that an ordinary user may give");
    for dir in ["upper", "work", "merged"] {
        std::os::unix::fs::chown(t.at(dir), Some(65_534), Some(65_534)).unwrap();
    }
    plant(&t.at("lower"), &["f=low", "gone=x"]);
    // The mount namespace is the test's own.
    put(t.at("fuse.conf"), "# empty\n");
    rustix::mount::mount_bind(t.at("fuse.conf"), "/etc/fuse.conf").unwrap();
    let list = backend::list(&t.stack());
    let shared = format!("{list},allow_other");
    let refused = as_nobody(t, &["mount", "-o", &shared]).unwrap_err();
    assert!(refused.contains("allow_other") && refused.contains("user_allow_other"), "{refused}");
    assert!(mounted(&t.at("merged")).is_none());
    as_nobody(t, &["mount", "-o", &list]).unwrap();
    let refused = fs::metadata(t.at("merged/f"));
    assert_eq!(errno(refused), rustix::io::Errno::ACCESS, "root is another user too");
    let point = t.at("merged");
    as_user(65_534, || {
        assert_eq!(text(point.join("f")), "low");
        put(point.join("new"), "new");
        fs::remove_file(point.join("gone")).unwrap();
        assert_eq!(names(&point), ["f", "new"]);
    });
    as_nobody(t, &["umount"]).unwrap();
    assert!(mounted(&t.at("merged")).is_none());
    assert_eq!(text(t.upper("new")), "new");
    put(t.at("fuse.conf"), "user_allow_other\n");
    as_nobody(t, &["mount", "-o", &shared]).unwrap();
    assert_eq!(text(t.at("merged/new")), "new");
    as_nobody(t, &["umount"]).unwrap();
}}

both! { an_ordinary_user_changes_his_read_only_files, OnlyPlyfs, |t| {
    t.needs(t.is_root(), "root of the host: to become an ordinary user of it");
    let helper = Path::new("/usr/bin/fusermount3");
    t.needs(helper.exists() && mode(helper) & 0o4000 != 0, "fusermount3, set-user-id");
    t.needs(exists("/etc/mtab"), "/etc/mtab, which fusermount3 reads");
    t.needs(!backend::asks_for_privilege(), "options that an ordinary user may give");
    let own = |path: &Path| std::os::unix::fs::chown(path, Some(65_534), Some(65_534)).unwrap();
    plant(&t.at("lower"), &["f=data", "h=data", "g=data", "d", "d/f=data"]);
    fs::hard_link(t.lower("h"), t.lower("h2")).unwrap();
    for name in ["f", "h", "g", "d/f", "d"] {
        own(&t.lower(name));
        chmod(t.lower(name), if name == "d" { 0o555 } else { 0o444 });
        set_xattr(t.lower(name), "user.own", b"value").unwrap();
    }
    for dir in ["upper", "work", "merged"] {
        own(&t.at(dir));
    }
    for options in ["", ",metacopy=on"] {
        as_nobody(t, &["mount", "-o", &(backend::list(&t.stack()) + options)]).unwrap();
        let at = |name: &str| t.at("merged").join(name);
        as_user(65_534, || {
            set_times(at("h"), 5, 0);
            fs::remove_file(at("h2")).unwrap();
            assert_eq!((mode(at("h")), stat(at("h")).nlink(), mtime(at("h")).0), (0o444, 1, 5));
            fs::hard_link(at("h"), at("h3")).unwrap();
            fs::rename(at("f"), at("moved")).unwrap();
            chmod(at("g"), 0o644);
            append(at("g"), "!");
            chmod(at("d"), 0o700);
            fs::rename(at("d/f"), at("d/moved")).unwrap();
            assert_eq!((text(at("moved")), text(at("g"))), ("data".into(), "data!".into()));
            assert_eq!((text(at("d/moved")), mode(at("d/moved"))), ("data".into(), 0o444));
            assert_eq!(xattr(at("moved"), "user.own").unwrap(), b"value");
        });
        as_nobody(t, &["umount"]).unwrap();
        for dir in ["upper", "work"] {
            fs::remove_dir_all(t.at(dir)).unwrap();
            fs::create_dir(t.at(dir)).unwrap();
            own(&t.at(dir));
        }
    }
}}

both! { a_signal_at_any_moment_leaves_no_dead_mount, OnlyPlyfs, |t| {
    plant(&t.at("lower"), &["f=x"]);
    for pause in 0..20 {
        let mut command = Command::new(backend::plyfs());
        command.args(["mount", "-f", "-o", &backend::list(&t.stack())]).arg(t.at("merged"));
        let mut server = command.stderr(Stdio::null()).spawn().unwrap();
        if pause < 10 {
            wait_until("a mount", || mounted(&t.at("merged")).is_some());
        }
        std::thread::sleep(Duration::from_micros(100 * pause));
        let pid = Pid::from_child(&server);
        kill_process(pid, Signal::TERM).unwrap();
        server.wait().unwrap();
        assert!(mounted(&t.at("merged")).is_none(), "round {pause}");
    }
}}

//! Open files: deleted, replaced, copied up beneath their descriptors, mapped, executed.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, fchown};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime};

use rustix::io::Errno;

use crate::semantics_kit::sys::Mapping;
use crate::semantics_kit::{
    append, both, chmod, errno, is_whiteout, mtime, mv, names, put, read_write, set_times, stat,
    text, xattr,
};

/// Everything that a descriptor must still be able to do after its last name is gone.
fn use_nameless(file: &mut File) {
    let stat = file.metadata().unwrap();
    assert_eq!(stat.nlink(), 0);
    let length = stat.len();
    file.write_all_at(b"tail", length).unwrap();
    assert_eq!(file.metadata().unwrap().len(), length + 4);
    file.set_len(2).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 2);
    assert_eq!(file.seek(SeekFrom::End(0)).unwrap(), 2);
    file.set_permissions(Permissions::from_mode(0o640)).unwrap();
    assert_eq!(file.metadata().unwrap().mode() & 0o7777, 0o640);
    fchown(&*file, Some(0), Some(0)).unwrap();
    file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(7)).unwrap();
    assert_eq!(file.metadata().unwrap().mtime(), 7);
    file.sync_all().unwrap();
    file.seek(SeekFrom::Start(0)).unwrap();
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    assert_eq!(text, "ol");
}

both! { a_created_file_answers_after_its_deletion, |t| {
    let fs = t.mount(&[]);
    put(fs.at("f"), "old");
    let mut file = read_write(fs.at("f"));
    fs::remove_file(fs.at("f")).unwrap();
    use_nameless(&mut file);
    assert_eq!(names(fs.at("")).len(), 0);
}}

both! { a_lower_file_opened_for_writing_answers_after_its_deletion, |t| {
    let fs = t.mount(&["f=old"]);
    let mut file = read_write(fs.at("f"));
    fs::remove_file(fs.at("f")).unwrap();
    use_nameless(&mut file);
    assert_eq!(text(t.lower("f")), "old");
}}

both! { a_lower_file_opened_for_reading_answers_after_its_deletion,
    Both("the descriptor is the lower file's, whose link count stays"), |t| {
    let fs = t.mount(&["f=old"]);
    let mut file = File::open(fs.at("f")).unwrap();
    fs::remove_file(fs.at("f")).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 3);
    assert_eq!(file.metadata().unwrap().nlink(), 0);
    assert_eq!(file.seek(SeekFrom::End(-2)).unwrap(), 1);
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    assert_eq!(text, "ld");
    file.set_permissions(Permissions::from_mode(0o600)).unwrap();
    assert_eq!(file.metadata().unwrap().mode() & 0o7777, 0o600);
}}

both! { a_file_replaced_by_a_rename_answers_through_its_descriptor, |t| {
    let fs = t.mount(&["low=old", "new1=new"]);
    put(fs.at("up"), "old");
    put(fs.at("new2"), "new");
    for (name, new) in [("low", "new2"), ("up", "new1")] {
        let mut file = read_write(fs.at(name));
        mv(fs.at(new), fs.at(name));
        use_nameless(&mut file);
        assert_eq!(text(fs.at(name)), "new");
    }
}}

both! { a_deleted_file_opens_again_through_its_descriptor, |t| {
    let fs = t.mount(&["f=old"]);
    let file = read_write(fs.at("f"));
    fs::remove_file(fs.at("f")).unwrap();
    put(fs.at("f"), "other");
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
    assert_eq!(text(&path), "old");
    append(&path, "new");
    assert_eq!(text(&path), "oldnew");
    assert_eq!(text(fs.at("f")), "other");
}}

both! { a_deleted_open_directory_is_empty_and_takes_no_entries, |t| {
    let fs = t.mount(&["low"]);
    fs::create_dir(fs.at("up")).unwrap();
    for name in ["low", "up"] {
        let dir = File::open(fs.at(name)).unwrap();
        fs::remove_dir(fs.at(name)).unwrap();
        let path = format!("/proc/self/fd/{}/x", std::os::fd::AsRawFd::as_raw_fd(&dir));
        assert_eq!(errno(fs::write(path, "x")), Errno::NOENT, "{name}");
    }
}}

both! { a_deleted_open_directory_has_no_links, Both("a lower directory keeps its links"), |t| {
    let fs = t.mount(&["low"]);
    fs::create_dir(fs.at("up")).unwrap();
    for name in ["low", "up"] {
        let dir = File::open(fs.at(name)).unwrap();
        fs::remove_dir(fs.at(name)).unwrap();
        assert_eq!(dir.metadata().unwrap().nlink(), 0, "{name}");
    }
}}

both! { deleted_files_leave_nothing_behind, |t| {
    let mut fs = t.mount(&["low=old"]);
    put(fs.at("up"), "old");
    let open: Vec<_> = ["low", "up"].iter().map(|x| read_write(fs.at(x))).collect();
    for name in ["low", "up"] {
        fs::remove_file(fs.at(name)).unwrap();
    }
    open[0].set_len(0).unwrap();
    drop(open);
    fs.unmount();
    assert_eq!(names(t.upper("")), ["low"], "the whiteout");
    let work = t.at(if t.at("work/work").exists() { "work/work" } else { "work" });
    chmod(&work, 0o700);
    for name in names(&work) {
        // One whiteout may be kept to make others of by linking.
        assert!(is_whiteout(&work.join(&name)), "{name}");
    }
}}

both! { a_reader_opened_before_the_copy_up_sees_later_writes, |t| {
    let fs = t.mount(&["f=old text"]);
    let file = File::open(fs.at("f")).unwrap();
    let mut buffer = [0; 8];
    file.read_exact_at(&mut buffer, 0).unwrap();
    put(fs.at("f"), "new text");
    file.read_exact_at(&mut buffer, 0).unwrap();
    assert_eq!(&buffer, b"new text");
    assert_eq!(file.metadata().unwrap().ino(), stat(fs.at("f")).ino());
}}

both! { a_mapping_made_before_the_copy_up_sees_later_writes,
    Both("a mapping of a lower file is never moved"), |t| {
    let fs = t.mount(&["f=old text"]);
    let file = File::open(fs.at("f")).unwrap();
    let mapping = Mapping::shared(&file, 8, false).unwrap();
    assert_eq!(mapping.read(0, 8), b"old text");
    let writer = read_write(fs.at("f"));
    writer.write_all_at(b"new", 0).unwrap();
    assert_eq!(mapping.read(0, 8), b"new text");
}}

both! { a_shared_mapping_and_write_see_each_other, |t| {
    let mut fs = t.mount(&["f=0123456789"]);
    let file = read_write(fs.at("f"));
    let mut mapping = Mapping::shared(&file, 10, true).unwrap();
    mapping.write(0, b"ab");
    assert_eq!(text(fs.at("f")), "ab23456789");
    file.write_all_at(b"yz", 8).unwrap();
    assert_eq!(mapping.read(0, 10), b"ab234567yz");
    mapping.sync().unwrap();
    drop(mapping);
    drop(file);
    fs.remount();
    assert_eq!(text(fs.at("f")), "ab234567yz");
    assert_eq!(text(t.lower("f")), "0123456789");
}}

both! { a_mapped_write_moves_the_modification_time, |t| {
    let mut fs = t.mount(&["low=0123456789"]);
    put(fs.at("up"), "0123456789");
    for name in ["low", "up"] {
        set_times(fs.at(name), 1000, 0);
        let file = read_write(fs.at(name));
        let mut mapping = Mapping::shared(&file, 10, true).unwrap();
        mapping.write(0, b"ab");
        mapping.sync().unwrap();
        assert!(mtime(fs.at(name)).0 > 1000, "{name}");
    }
    let after = mtime(fs.at("up"));
    fs.remount();
    assert_eq!(mtime(fs.at("up")), after);
}}

both! { a_write_moves_the_modification_time_and_a_remount_keeps_it, |t| {
    let mut fs = t.mount(&["f=old"]);
    set_times(fs.at("f"), 1000, 0);
    append(fs.at("f"), "new");
    let after = mtime(fs.at("f"));
    assert!(after.0 > 1000);
    fs.remount();
    assert_eq!(mtime(fs.at("f")), after);
    assert_eq!(text(fs.at("f")), "oldnew");
}}

both! { an_explicit_time_set_after_a_write_stays, |t| {
    let mut fs = t.mount(&["f=old"]);
    let file = read_write(fs.at("f"));
    file.write_all_at(b"new", 0).unwrap();
    set_times(fs.at("f"), 1000, 123);
    drop(file);
    assert_eq!(mtime(fs.at("f")), (1000, 123));
    fs.remount();
    assert_eq!(mtime(fs.at("f")), (1000, 123));
}}

both! { two_descriptors_of_one_file_see_each_other, |t| {
    let fs = t.mount(&["f=old"]);
    let reader = File::open(fs.at("f")).unwrap();
    let mut writer = OpenOptions::new().append(true).open(fs.at("f")).unwrap();
    writer.write_all(b"new").unwrap();
    let mut second = OpenOptions::new().append(true).open(fs.at("f")).unwrap();
    second.write_all(b"end").unwrap();
    let mut buffer = [0; 6];
    writer.write_all(b"!").unwrap();
    assert_eq!(text(fs.at("f")), "oldnewend!");
    read_write(fs.at("f")).read_exact_at(&mut buffer, 4).unwrap();
    assert_eq!(&buffer, b"ewend!");
    drop(reader);
}}

fn program(path: &Path) {
    fs::copy("/bin/sleep", path).unwrap();
    chmod(path, 0o755);
}

both! { a_running_program_cannot_be_written_nor_a_written_one_run, |t| {
    program(&t.lower("low"));
    let fs = t.mount(&[]);
    program(&fs.at("up"));
    for name in ["low", "up"] {
        let mut child = Command::new(fs.at(name)).arg("100").spawn().unwrap();
        let busy = errno(OpenOptions::new().write(true).open(fs.at(name)));
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(busy, Errno::TXTBSY, "{name}: written while it runs");
        let _writer = OpenOptions::new().write(true).open(fs.at(name)).unwrap();
        let busy = errno(Command::new(fs.at(name)).arg("0").status());
        assert_eq!(busy, Errno::TXTBSY, "{name}: run while it is written");
    }
}}

both! { a_program_runs_from_every_layer, |t| {
    program(&t.lower("f"));
    let fs = t.mount(&[]);
    assert!(Command::new(fs.at("f")).arg("0").status().unwrap().success());
    chmod(fs.at("f"), 0o711);
    assert!(Command::new(fs.at("f")).arg("0").status().unwrap().success());
    assert_eq!(xattr(fs.at("f"), "user.none"), Err(Errno::NODATA));
}}

//! Files that the kernel reads and writes itself (`io=passthrough`).

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::process::Command;

use crate::semantics_kit::backend::{self, plyfs};
use crate::semantics_kit::{Mode, Stack, Test, both, exists, mtime, plant, put, stat, text};

const PASSTHROUGH: &str = "io=passthrough";
/// Large enough to be handed over while it is a lower file.
const LARGE: usize = 1 << 20;

/// Passthrough is for root of the host.
fn needs(t: &Test) {
    t.needs(t.is_root(), "root of the host: passthrough");
}

both! { a_large_lower_file_is_read_and_then_written_by_others, OnlyPlyfs, |t| {
    needs(t);
    fs::write(t.lower("big"), vec![1; LARGE]).unwrap();
    let mut fs = t.mount_with(PASSTHROUGH, &[]);
    let mut old = File::open(fs.at("big")).unwrap();
    let mut bytes = vec![0; LARGE];
    old.read_exact(&mut bytes).unwrap();
    assert_eq!(bytes, vec![1; LARGE]);
    // The reader is still there while the file is copied up.
    let writer = File::options().read(true).write(true).open(fs.at("big")).unwrap();
    writer.write_all_at(&[2; 4096], 4096).unwrap();
    writer.read_exact_at(&mut bytes[..8192], 0).unwrap();
    assert!(bytes[..4096] == [1; 4096] && bytes[4096..8192] == [2; 4096]);
    let expected = [vec![1; 4096], vec![2; 4096], vec![1; LARGE - 8192]].concat();
    assert!(fs::read(fs.at("big")).unwrap() == expected, "whoever opens it now sees what was written");
    old.seek(SeekFrom::Start(0)).unwrap();
    old.read_exact(&mut bytes).unwrap();
    assert!(bytes == expected, "and so does who had it open");
    drop((old, writer));
    assert!(fs::read(fs.at("big")).unwrap() == expected);
    put(fs.at("big"), "short");
    fs.remount();
    assert_eq!(text(fs.at("big")), "short");
    assert_eq!(fs::read(t.lower("big")).unwrap(), vec![1; LARGE]);
}}

both! { an_upper_file_is_one_for_all_who_have_it_open, OnlyPlyfs, |t| {
    needs(t);
    let fs = t.mount_with(PASSTHROUGH, &["low=x"]);
    let mut one = File::create(fs.at("f")).unwrap();
    one.write_all(b"one").unwrap();
    let two = File::options().read(true).write(true).open(fs.at("f")).unwrap();
    let before = mtime(fs.at("f"));
    two.write_all_at(b"two, longer", 0).unwrap();
    assert_eq!((text(fs.at("f")), stat(fs.at("f")).len()), ("two, longer".to_owned(), 11));
    assert!(mtime(fs.at("f")) >= before);
    fs::rename(fs.at("f"), fs.at("g")).unwrap();
    one.write_all_at(b"TWO", 0).unwrap();
    assert_eq!(text(fs.at("g")), "TWO, longer");
    fs::remove_file(fs.at("g")).unwrap();
    assert_eq!(two.metadata().unwrap().len(), 11);
    two.set_len(2).unwrap();
    let mut bytes = [0; 2];
    two.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(&bytes, b"TW");
}}

both! { large_files_of_a_read_only_mount_are_read_by_the_kernel, OnlyPlyfs, |t| {
    needs(t);
    fs::write(t.lower("big"), vec![1; LARGE]).unwrap();
    fs::write(t.lower("small"), "x").unwrap();
    let stack = Stack { options: PASSTHROUGH.to_owned(), upper: None, ..t.stack() };
    let fs = t.mount_stack(stack);
    for _ in 0..2 {
        assert!(fs::read(fs.at("big")).unwrap() == vec![1; LARGE]);
        assert_eq!(text(fs.at("small")), "x");
    }
    assert!(File::options().write(true).open(fs.at("big")).is_err());
}}

both! { a_lower_file_opened_for_writing_is_not_written_below, OnlyPlyfs, |t| {
    needs(t);
    fs::write(t.lower("big"), vec![1; LARGE]).unwrap();
    let mut fs = t.mount_with(PASSTHROUGH, &[]);
    let writer = File::options().append(true).open(fs.at("big")).unwrap();
    (&writer).write_all(b"end").unwrap();
    assert_eq!(fs::read(fs.at("big")).unwrap().len(), LARGE + 3);
    drop(writer);
    assert_eq!(fs::read(t.lower("big")).unwrap().len(), LARGE);
    fs.remount();
    assert_eq!(fs::read(fs.at("big")).unwrap().len(), LARGE + 3);
}}

both! { passthrough_without_the_right_to_it_is_refused_in_one_line, OnlyPlyfs, |t| {
    t.needs(!t.is_root() || t.mode == Mode::Rootless, "a user namespace: root of the host has the right");
    plant(&t.at("lower"), &["f=x"]);
    let stack = Stack { options: PASSTHROUGH.to_owned(), ..t.stack() };
    let mut command = Command::new(plyfs());
    let output = command.arg("mount").arg("-o").arg(backend::list(&stack)).arg(t.at("merged")).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    assert!(said.contains("io=passthrough") && said.contains("CAP_SYS_ADMIN"), "{said}");
    assert!(!exists(t.at("merged/f")), "nothing is left mounted");
}}

both! { a_live_view_and_kept_data_exclude_each_other, OnlyPlyfs, |t| {
    plant(&t.at("lower"), &["f=x"]);
    for io in ["handleless", "passthrough"] {
        let stack = Stack { options: format!("timeout=0,io={io}"), ..t.stack() };
        let mut command = Command::new(plyfs());
        let output = command.arg("mount").arg("-o").arg(backend::list(&stack)).arg(t.at("merged")).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains("option 'io'"), "{said}");
    }
}}

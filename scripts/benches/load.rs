//! What the rows of scripts/bench do that no standard program does without much of its own on top.
//! Compiled by scripts/bench with rustc alone.
//!
//!   load walk DIR            lists all directories below DIR and stats what is no directory
//!   load stat DIR LIST       stats the names of LIST, a file with one path a line, in DIR
//!   load missing DIR LIST N  stats N names that are not there in each directory of LIST
//!   load cat DIR             opens, reads and closes every file below DIR
//!   load open DIR            opens and closes every file below DIR
//!   load create DIR N        makes N files of 1 KiB in the new directory DIR
//!   load write FILE BYTES    writes FILE in 4 KiB calls
//!   load exec N CMD...       runs CMD N times, one after the other
//!   load nothing             what `exec` runs
//!   load stall DIR LIST FILE stats the names of LIST while FILE, a lower one, is copied up by another
//!                            thread; prints the longest wait in milliseconds

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// The files below a directory.
fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            found.append(&mut files(&entry.path()));
        } else {
            found.push(entry.path());
        }
    }
    found
}

/// Known beforehand: a listing on the mount would let the kernel know the names already.
fn listed(dir: &str, list: &str) -> Vec<PathBuf> {
    fs::read_to_string(list).unwrap().lines().map(|name| Path::new(dir).join(name)).collect()
}

fn stat(names: &[PathBuf]) {
    for name in names {
        fs::symlink_metadata(name).unwrap();
    }
}

fn missing(dirs: &[PathBuf], count: u32) {
    let names: Vec<String> = (0..count).map(|n| format!("absent-{n}.h")).collect();
    for dir in dirs {
        for name in &names {
            assert!(fs::symlink_metadata(dir.join(name)).is_err());
        }
    }
}

fn cat(names: &[PathBuf]) {
    let mut buffer = vec![0; 64 << 10];
    for name in names {
        let mut file = File::open(name).unwrap();
        while file.read(&mut buffer).unwrap() > 0 {}
    }
}

fn create(dir: &str, count: u32) {
    fs::create_dir(dir).unwrap();
    let text = [b'x'; 1024];
    for n in 0..count {
        File::create_new(format!("{dir}/{n:06}")).unwrap().write_all(&text).unwrap();
    }
}

fn write(path: &str, bytes: u64) {
    let mut file = File::create(path).unwrap();
    let block = [b'x'; 4096];
    for _ in 0..bytes / 4096 {
        file.write_all(&block).unwrap();
    }
}

fn stall(names: &[PathBuf], file: &str) {
    let done = Arc::new(AtomicBool::new(false));
    let copier = {
        let (file, done) = (file.to_owned(), done.clone());
        std::thread::spawn(move || {
            File::options().append(true).open(file).unwrap().write_all(b"!").unwrap();
            done.store(true, Ordering::Release);
        })
    };
    let mut longest = Duration::ZERO;
    for name in names {
        let start = Instant::now();
        fs::symlink_metadata(name).unwrap();
        longest = longest.max(start.elapsed());
        if done.load(Ordering::Acquire) {
            break;
        }
        std::thread::sleep(Duration::from_micros(200));
    }
    copier.join().unwrap();
    println!("{:.3}", longest.as_secs_f64() * 1000.0);
}

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        ["walk", dir] => stat(&files(Path::new(dir))),
        ["stat", dir, list] => stat(&listed(dir, list)),
        ["missing", dir, list, count] => missing(&listed(dir, list), count.parse().unwrap()),
        ["cat", dir] => cat(&files(Path::new(dir))),
        ["open", dir] => {
            for file in files(Path::new(dir)) {
                File::open(file).unwrap();
            }
        }
        ["create", dir, count] => create(dir, count.parse().unwrap()),
        ["write", file, bytes] => write(file, bytes.parse().unwrap()),
        ["exec", count, program, ref words @ ..] => {
            for _ in 0..count.parse::<u32>().unwrap() {
                assert!(Command::new(program).args(words).status().unwrap().success());
            }
        }
        ["nothing"] => {}
        ["stall", dir, list, file] => stall(&listed(dir, list), file),
        _ => panic!("load: see the head of load.rs"),
    }
}

//! What the rows of scripts/bench do that no standard program does without much of its own on top.
//! Compiled by scripts/bench with rustc alone.
//!
//!   load walk DIR            stats every name below DIR
//!   load missing DIR N       stats N names that are not there in each directory below DIR
//!   load cat DIR             opens, reads and closes every file below DIR
//!   load open DIR            opens and closes every file below DIR
//!   load create DIR N        makes N files of 1 KiB in the new directory DIR
//!   load write FILE BYTES    writes FILE in 4 KiB calls
//!   load exec N CMD...       runs CMD N times, one after the other
//!   load nothing             what `exec` runs
//!   load stall DIR FILE      stats names below DIR while FILE, a lower one, is copied up by another
//!                            thread; prints the longest wait in milliseconds

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// The directories and the other names below a directory.
#[derive(Default)]
struct Names {
    dirs: Vec<PathBuf>,
    files: Vec<PathBuf>,
}

impl Names {
    fn below(dir: &str) -> Self {
        let mut names = Self::default();
        names.add(Path::new(dir));
        names
    }

    fn add(&mut self, dir: &Path) {
        self.dirs.push(dir.to_path_buf());
        for entry in fs::read_dir(dir).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_dir() {
                self.add(&entry.path());
            } else {
                self.files.push(entry.path());
            }
        }
    }
}

fn missing(dir: &str, count: u32) {
    let names: Vec<String> = (0..count).map(|n| format!("absent-{n}.h")).collect();
    for dir in Names::below(dir).dirs {
        for name in &names {
            assert!(fs::symlink_metadata(dir.join(name)).is_err());
        }
    }
}

fn cat(dir: &str) {
    let mut buffer = vec![0; 64 << 10];
    for file in Names::below(dir).files {
        let mut file = File::open(file).unwrap();
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

/// Each name is asked once: what the kernel knows already would not reach the filesystem.
fn stall(dir: &str, file: &str) {
    let files = Names::below(dir).files;
    let done = Arc::new(AtomicBool::new(false));
    let copier = {
        let (file, done) = (file.to_owned(), done.clone());
        std::thread::spawn(move || {
            File::options().append(true).open(file).unwrap().write_all(b"!").unwrap();
            done.store(true, Ordering::Release);
        })
    };
    let mut longest = Duration::ZERO;
    for file in &files {
        let start = Instant::now();
        fs::symlink_metadata(file).unwrap();
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
        ["walk", dir] => {
            for file in Names::below(dir).files {
                fs::symlink_metadata(file).unwrap();
            }
        }
        ["missing", dir, count] => missing(dir, count.parse().unwrap()),
        ["cat", dir] => cat(dir),
        ["open", dir] => {
            for file in Names::below(dir).files {
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
        ["stall", dir, file] => stall(dir, file),
        _ => panic!("load: see the head of load.rs"),
    }
}

//! An archive that a writer could have written, read by us, by GNU tar and by Python's tarfile.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

use plyfs::layer::apply::{self, Limits, Owners, Target, Whiteouts};

use super::generate::{self, Entry, Feed};
use super::place::{empty, user_marks};
use super::tree::Tree;

/// The bytes choose entries and how they are written.
pub fn run(scratch: &Path, data: &[u8]) {
    empty(scratch);
    let privileged = !user_marks(scratch);
    let mut feed = Feed(data);
    let entries = generate::entries(&mut feed, privileged);
    // The ways to write them are chosen by the same bytes.
    let archive = generate::write(&entries, &mut Feed(data));
    compare(scratch, &entries, &archive, privileged);
    empty(scratch);
}

fn compare(scratch: &Path, entries: &[Entry], archive: &[u8], privileged: bool) {
    let at = scratch.join("archive.tar");
    fs::write(&at, archive).expect("written");
    let dir = |name: &str| {
        let dir = scratch.join(name);
        fs::create_dir(&dir).expect("made");
        dir
    };
    let ours = dir("ours");
    let owners = if privileged { Owners::Set } else { Owners::Ignore };
    let (belief, whiteouts) = (plyfs::layer::Belief::standing(), Whiteouts::Remove);
    let target = Target { root: ours.clone(), lowers: Vec::new(), belief, whiteouts, owners };
    let applied = apply::apply(&mut &archive[..], &target, &Limits::default(), None);
    let gnu = gnu(&at, &dir("gnu"));
    let names = Names::of(entries);
    match (&applied, &gnu) {
        // It makes symlinks that lead elsewhere last, also where something else has taken their place.
        (Ok(_), _) if names.replaces && names.delayed => {}
        (Ok(_), Ok(())) => {
            same("GNU tar", &names, &ours, &scratch.join("gnu"), &|_| {});
        }
        (Err(_), Err(_)) => {}
        (Err(error), Ok(())) => {
            let why = error.to_string();
            assert!(names.refused(&why), "refused here and not by GNU tar: {why}\n{entries:#?}");
        }
        (Ok(_), Err(why)) => {
            assert!(names.replaces, "refused by GNU tar and not here: {why}\n{entries:#?}");
        }
    }
    if applied.is_err() || !names.plain {
        return;
    }
    match python(&at, &dir("python")) {
        None => {}
        Some(said) if said == "done" => {
            // It sets no times of symlinks, no attributes, and times as floating point numbers.
            same("Python", &names, &ours, &scratch.join("python"), &|tree| {
                for node in tree.0.values_mut() {
                    node.mtime = if node.kind == 'l' {
                        (0, 0)
                    } else {
                        ((node.mtime.0 * 1000 + node.mtime.1 / 1_000_000 + 1) >> 2, 0)
                    };
                    node.xattrs.clear();
                }
            });
        }
        Some(said) => panic!("Python and nobody else: {said}\n{entries:#?}"),
    }
}

/// Compares what two readers made, without what the archive leaves out.
fn same(who: &str, names: &Names, ours: &Path, theirs: &Path, less: &dyn Fn(&mut Tree)) {
    let read = |root: &Path| {
        let mut tree = Tree::read(root, &|_| false);
        tree.0.remove(&b""[..]);
        for (path, node) in &mut tree.0 {
            if node.kind == 'd' && !names.dirs.contains(path) {
                (node.mode, node.mtime) = (0, (0, 0));
            }
            node.xattrs.retain(|key, _| key.starts_with(b"user."));
        }
        less(&mut tree);
        tree
    };
    let (ours, theirs) = (read(ours), read(theirs));
    assert!(
        ours == theirs,
        "{who} makes something else (theirs second):\n{}",
        ours.differences(&theirs)
    );
}

/// What the entries of an archive have to do with each other, where readers are known to differ.
struct Names {
    /// Directories that the archive has.
    dirs: BTreeSet<Vec<u8>>,
    /// Something takes the place of something else.
    replaces: bool,
    /// No path is there twice, none leads through a symlink, links are to files that are there.
    plain: bool,
    /// A file's name ends with a slash.
    slash: bool,
    /// A symlink is absolute or goes up.
    delayed: bool,
}

impl Names {
    fn of(entries: &[Entry]) -> Names {
        let mut names = Names {
            dirs: BTreeSet::new(),
            replaces: false,
            plain: true,
            slash: false,
            delayed: false,
        };
        let (mut all, mut files, mut bad) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        for entry in entries {
            let path = clean(&entry.name);
            names.delayed |= entry.kind == b'2'
                && (entry.link.starts_with(b"/") || entry.link.windows(2).any(|two| two == b".."));
            // Python takes an absolute name as it is.
            names.plain &= !entry.name.starts_with(b"/");
            names.slash |= entry.name.ends_with(b"/") && entry.kind != b'5';
            // A plain file of the old format whose name ends with a slash is a directory.
            if entry.kind == b'5' || entry.name.ends_with(b"/") {
                names.dirs.insert(path.clone());
            } else {
                bad.insert(path.clone());
            }
            if entry.kind == b'1' && !files.contains(&clean(&entry.link)) {
                names.plain = false;
            }
            if matches!(entry.kind, b'0' | b'7' | b'S') {
                files.insert(path.clone());
            }
            // The root is there already.
            names.replaces |= path.is_empty() && entry.kind != b'5';
            names.replaces |= !all.insert(path.clone());
        }
        names.replaces |= all
            .iter()
            .any(|path| (0..path.len()).any(|at| path[at] == b'/' && bad.contains(&path[..at])));
        names.plain &= !names.replaces && !names.slash && !all.contains(&b""[..]);
        names
    }

    /// Whether this reader is known to be stricter, or another one to be laxer, about something.
    fn refused(&self, why: &str) -> bool {
        // GNU tar takes a file whose name ends with a slash for a directory, whatever its type is.
        (self.slash && why.contains("is a file whose name ends with a slash"))
            // It replaces the file by a directory, or leaves the entry out with a warning.
            || (self.replaces && why.contains("is no directory"))
    }
}

fn clean(name: &[u8]) -> Vec<u8> {
    let parts = name.split(|&byte| byte == b'/').filter(|part| !part.is_empty() && *part != b".");
    parts.collect::<Vec<_>>().join(&b'/')
}

/// Has GNU tar extract an archive.
fn gnu(archive: &Path, dir: &Path) -> Result<(), String> {
    let done = Command::new("tar")
        .args([
            "--extract",
            "--preserve-permissions",
            "--numeric-owner",
            "--xattrs",
            "--xattrs-include=user.*",
        ])
        .arg("--file")
        .arg(archive)
        .arg("--directory")
        .arg(dir)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()
        .map_err(|error| error.to_string())?;
    match done.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&done.stderr).into_owned()),
    }
}

/// Whether both other readers are there.
pub fn readers() -> bool {
    let there = |program: &str| Command::new(program).arg("--version").output().is_ok();
    there("tar") && there("python3")
}

/// The process that extracts with Python, kept because it starts slowly.
struct Python(Child, BufReader<ChildStdout>);

impl Drop for Python {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        drop(self.0.wait());
    }
}

/// Has Python extract an archive; nothing where there is no Python.
fn python(archive: &Path, dir: &Path) -> Option<String> {
    thread_local! {
        static PYTHON: RefCell<Option<Python>> = const { RefCell::new(None) };
    }
    PYTHON.with_borrow_mut(|kept| {
        if kept.is_none() {
            let mut child = Command::new("python3")
                .args(["-c", include_str!("python.py")])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .ok()?;
            let out = BufReader::new(child.stdout.take()?);
            *kept = Some(Python(child, out));
        }
        let Python(child, out) = kept.as_mut()?;
        let to: PathBuf = dir.to_path_buf();
        let mut said = String::new();
        writeln!(child.stdin.as_mut()?, "{}\t{}", archive.display(), to.display()).ok()?;
        out.read_line(&mut said).ok()?;
        Some(said.trim_end().to_owned())
    })
}

//! Plays scenes: a child acts and is stopped, its parent looks at what is left.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fmt::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use plyfs_fuse::inode::Ino;
use plyfs_fuse::options::Whiteouts;
use plyfs_fuse::{Options, Overlay};

use super::scene::{self, Act, Scene};
use super::seen::{Script, Seen, same, uncounted};
use crate::common::core::Core;
use crate::common::model::{Model, Who};
use crate::common::ops::{Said, Target, errno_name, show};
use crate::common::sandbox::{Sandbox, base};
use crate::common::tree::{Stamp, Tree};

/// More changes than any scene makes.
const ENOUGH: u64 = 600;
/// More failures of one scene tell nothing new.
const TOO_MANY: usize = 30;
/// More seconds than any child needs.
const PATIENCE: Duration = Duration::from_secs(30);

/// How a child is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stop {
    Kill(u64),
    Fail(u64, i32),
}

impl std::fmt::Display for Stop {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Stop::Kill(n) => write!(f, "killed before change {n}"),
            Stop::Fail(n, code) => write!(f, "{} from change {n} on", errno_name(*code)),
        }
    }
}

/// What a child had to say.
struct Report {
    before: Seen,
    /// What the operation said and what was seen afterwards, unless the child was killed.
    after: Option<(Result<(), i32>, Seen)>,
}

/// Where a scene is played.
struct Stage {
    scene: Scene,
    dir: PathBuf,
    lowers: Vec<PathBuf>,
    whiteouts: Whiteouts,
}

impl Stage {
    fn options(&self) -> Options {
        let mut options = Options {
            lowers: self.lowers.clone(),
            upper: Some(self.dir.join("upper")),
            work: Some(self.dir.join("work")),
            whiteouts: self.whiteouts,
            // Power does not fail here, and the disk is slow.
            fsync: false,
            ..Options::default()
        };
        (self.scene.set)(&mut options);
        options
    }

    /// Opens the stack. A process being forked has the locks of its parent for a moment.
    fn open(&self) -> Result<Core, String> {
        let end = Instant::now() + Duration::from_secs(10);
        loop {
            match Overlay::open(&self.options()) {
                Ok(fs) => return Ok(Core::new(Arc::new(fs))),
                Err(e) if e.to_string().contains("in use") && Instant::now() < end => {
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err(e) => return Err(format!("open: {e}")),
            }
        }
    }

    /// Makes upper and work directory as they are before the operation.
    fn set(&self) -> Result<(), String> {
        for name in ["upper", "work"] {
            let dir = self.dir.join(name);
            match std::fs::remove_dir_all(&dir) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e.to_string()),
                _ => {}
            }
            scene::make_dir(&dir).map_err(|e| e.to_string())?;
        }
        if self.scene.before.is_empty() {
            return Ok(());
        }
        let mut core = self.open()?;
        for op in &self.scene.before {
            core.apply(op).map_err(|code| format!("before: {op}: {}", errno_name(code)))?;
        }
        Ok(())
    }

    fn act(&self, core: &mut Core) -> Said {
        for op in &self.scene.warm {
            core.apply(op)?;
        }
        let said = scene::act(core, &self.scene.act);
        core.close_all();
        said
    }

    fn look(&self, core: &Core) -> Result<Seen, String> {
        Ok(self.seen(Tree::of(core)?))
    }

    /// Names in the hard-link index.
    fn index(&self) -> BTreeSet<OsString> {
        let names = std::fs::read_dir(self.dir.join("work/index"));
        names.into_iter().flatten().flatten().map(|entry| entry.file_name()).collect()
    }

    /// A tree without what an interrupted operation may change.
    fn seen(&self, tree: Tree) -> Seen {
        let mut seen = Seen::new();
        for (path, mut node) in tree.nodes {
            if node.meta.kind == 'd' || self.scene.touched.contains(&path) {
                node.meta.mtime = Stamp::NOW;
            }
            let ino = tree.inos.get(&path).copied().unwrap_or(0);
            seen.insert(path.clone(), (ino, node.to_string()));
        }
        seen
    }

    fn script(&self) -> Result<Script, String> {
        self.set()?;
        let mut core = self.open()?;
        let old = self.look(&core)?;
        let said = self.act(&mut core);
        said.map_err(|code| format!("uninterrupted, it says {}", errno_name(code)))?;
        let new = self.look(&core)?;
        core.overlay().check_invariants()?;
        drop(core);
        let mut kept = BTreeMap::new();
        for (path, (ino, _)) in &new {
            if let Some((was, _)) = old.iter().find(|(_, node)| node.0 == *ino) {
                kept.insert(path.clone(), was.clone());
            }
        }
        let script = Script { old, new, kept, index: self.index() };
        self.compare_with_model(&script)?;
        let again = self.look(&self.open()?)?;
        script.is_new(&again, &script.old).map_err(|e| format!("uninterrupted, reopened: {e}"))?;
        Ok(script)
    }

    /// Both trees are those of a local filesystem.
    fn compare_with_model(&self, script: &Script) -> Result<(), String> {
        let Act::Op(op) = &self.scene.act else { return Ok(()) };
        let mut model = Model::merge(&scene::layers(self.scene.afar), Who::me());
        for op in &self.scene.before {
            model.apply(op).map_err(|code| format!("model: {op}: {}", errno_name(code)))?;
        }
        let expected = self.seen(model.tree()?);
        same(&script.old, &expected).map_err(|e| format!("before it, not as the model:\n{e}"))?;
        for op in self.scene.warm.iter().chain([op]) {
            model.apply(op).map_err(|code| format!("model: {op}: {}", errno_name(code)))?;
        }
        model.close_all();
        let expected = self.seen(model.tree()?);
        same(&script.new, &expected).map_err(|e| format!("uninterrupted, not as the model:\n{e}"))
    }

    fn run(&self, stop: Stop, held: bool) -> Result<Report, String> {
        self.set()?;
        for file in ["before", "after", "errors"] {
            let _ = std::fs::remove_file(self.dir.join(file));
        }
        let errors = std::fs::File::create(self.dir.join("errors")).map_err(|e| e.to_string())?;
        let mut command = Command::new(std::env::current_exe().map_err(|e| e.to_string())?);
        command.args(["faults::child", "--exact", "--nocapture", "--test-threads=1"]);
        let lowers: Vec<_> = self.lowers.iter().map(|path| path.to_str().unwrap()).collect();
        command.env("PLYFS_STAGE", &self.dir).env("PLYFS_STAGE_LOWERS", lowers.join(":"));
        command.env("PLYFS_STAGE_SCENE", &self.scene.name);
        command.env("PLYFS_STAGE_DIALECT", format!("{:?}", self.whiteouts));
        command.env("PLYFS_STAGE_HELD", if held { "1" } else { "" });
        match stop {
            Stop::Kill(n) => drop(command.env("PLYFS_FAULT", n.to_string())),
            Stop::Fail(n, code) => drop(command.env("PLYFS_FAULT", format!("{n}:{code}"))),
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(errors);
        let status = finish(command)?;
        let before = self.read("before").ok_or("the child saw nothing")?;
        let after = match status.signal() {
            Some(libc::SIGKILL) => None,
            _ if status.success() => {
                let text =
                    std::fs::read_to_string(self.dir.join("said")).map_err(|e| e.to_string())?;
                let code: i32 = text.parse().map_err(|_| text)?;
                let said = if code == 0 { Ok(()) } else { Err(code) };
                Some((said, self.read("after").ok_or("the child saw nothing afterwards")?))
            }
            _ => {
                let errors = std::fs::read_to_string(self.dir.join("errors")).unwrap_or_default();
                return Err(format!("the child ended with {status}: {}", errors.trim()));
            }
        };
        Ok(Report { before, after })
    }

    fn read(&self, file: &str) -> Option<Seen> {
        let text = std::fs::read_to_string(self.dir.join(file)).ok()?;
        let mut seen = Seen::new();
        for line in text.lines() {
            let mut parts = line.splitn(3, '\t');
            let (path, ino, node) = (parts.next()?, parts.next()?, parts.next()?);
            seen.insert(path.to_owned(), (ino.parse().ok()?, node.to_owned()));
        }
        Some(seen)
    }

    fn write(&self, file: &str, seen: &Seen) {
        let mut text = String::new();
        for (path, (ino, node)) in seen {
            let _ = writeln!(text, "{path}\t{ino}\t{node}");
        }
        std::fs::write(self.dir.join(file), text).unwrap();
    }

    /// What is left is the old tree or the new one, now and later, and the operation can be done.
    fn judge(&self, script: &Script, before: &Seen, must: Option<bool>) -> Result<bool, String> {
        let mut core = self.open()?;
        let found = self.look(&core)?;
        let done = script.which(&found, before, must).map_err(|e| format!("reopened: {e}"))?;
        core.overlay().check_invariants().map_err(|e| format!("reopened: {e}"))?;
        if !done {
            let said = self.act(&mut core);
            if said.is_err() {
                return Err(format!("reopened, it says {} when tried again", show(&said)));
            }
            let found = self.look(&core)?;
            script.is_new(&found, before).map_err(|e| format!("tried again: {e}"))?;
            core.overlay().check_invariants().map_err(|e| format!("tried again: {e}"))?;
        }
        drop(core);
        let core = self.open()?;
        let found = self.look(&core)?;
        script.is_new(&found, before).map_err(|e| format!("reopened once more: {e}"))?;
        core.overlay().check_invariants().map_err(|e| format!("reopened once more: {e}"))?;
        let index = self.index();
        if index != script.index {
            return Err(format!("left in the index: {index:?} instead of {:?}", script.index));
        }
        Ok(done)
    }

    /// Stopped by a signal; false when there are fewer changes.
    fn killed(&self, script: &Script, n: u64) -> Result<bool, String> {
        let report = self.run(Stop::Kill(n), false)?;
        if report.after.is_some() {
            return Ok(false);
        }
        self.judge(script, &report.before, None)?;
        Ok(true)
    }

    fn failed(&self, script: &Script, (n, code): (u64, i32), held: bool) -> Result<(), String> {
        let report = self.run(Stop::Fail(n, code), held)?;
        let (said, found) = report.after.ok_or("the child was killed")?;
        let must = match said {
            Ok(()) => Some(true),
            Err(other) if other != code => {
                return Err(format!("it says {}", errno_name(other)));
            }
            Err(_) => None,
        };
        // What cannot be removed from the work directory still counts as a link.
        let work = std::fs::read_dir(self.dir.join("work/work")).map_err(|e| e.to_string())?;
        let done = if work.count() == 0 {
            script.which(&found, &report.before, must)
        } else {
            script.uncounted().which(&uncounted(&found), &uncounted(&report.before), must)
        };
        let done = done.map_err(|e| {
            let how = if held { ", everything held" } else { "" };
            format!("it says {said:?}, seen without reopening{how}: {e}")
        })?;
        let later = self.judge(script, &report.before, must)?;
        if done != later {
            return Err(format!("done: {done}, reopened: {later}"));
        }
        if done && said.is_err() && std::env::var_os("PLYFS_NOTES").is_some() {
            eprintln!(
                "note: {} [{:?}] {}: error though done",
                self.scene.name,
                self.whiteouts,
                Stop::Fail(n, code)
            );
        }
        Ok(())
    }

    fn failure(&self, stop: Stop, what: &str) -> String {
        format!("{} [{:?}]: {stop}: {what}", self.scene.name, self.whiteouts)
    }

    fn play(&self, failures: &mut Vec<String>) -> u64 {
        let script = match self.script() {
            Ok(script) => script,
            Err(e) => {
                failures.push(format!("{}: {e}", self.scene.name));
                return 0;
            }
        };
        let known = failures.len();
        let mut changes = ENOUGH;
        for n in 1..ENOUGH {
            match self.killed(&script, n) {
                Ok(true) => {}
                Ok(false) => {
                    changes = n - 1;
                    break;
                }
                Err(e) => failures.push(self.failure(Stop::Kill(n), &e)),
            }
            if failures.len() > known + TOO_MANY {
                return n;
            }
        }
        let all = std::env::var("PLYFS_FAULTS").is_ok_and(|text| text == "all");
        for n in 1..=changes {
            for (code, turn) in [(libc::ENOSPC, 0), (libc::EIO, 1)] {
                for held in [true, false] {
                    if !all && (n % 2 != turn || held != (n % 4 < 2)) {
                        continue;
                    }
                    if let Err(e) = self.failed(&script, (n, code), held) {
                        failures.push(self.failure(Stop::Fail(n, code), &e));
                    }
                }
            }
        }
        changes
    }
}

fn finish(mut command: Command) -> Result<std::process::ExitStatus, String> {
    let mut child = command.spawn().map_err(|e| format!("start the child: {e}"))?;
    let end = Instant::now() + PATIENCE;
    loop {
        match child.try_wait().map_err(|e| e.to_string())? {
            Some(status) => return Ok(status),
            None if Instant::now() > end => {
                let _ = child.kill();
                let _ = child.wait();
                return Err("the child does not end".to_owned());
            }
            None => std::thread::sleep(Duration::from_micros(500)),
        }
    }
}

/// Plays scenes; fails with everything that was found.
pub fn play(test: &str, scenes: Vec<Scene>, whiteouts: Whiteouts) {
    let mut sandbox = Sandbox::new();
    let far = Path::new("/dev/shm");
    let far = if far.is_dir() { far.to_owned() } else { base() };
    let far = tempfile::Builder::new().prefix("plyfs-test.").tempdir_in(far).unwrap();
    let near_lowers = scene::write_layers(&scene::layers(false), &sandbox.at("."));
    let far_lowers = scene::write_layers(&scene::layers(true), far.path());
    let wanted = std::env::var("PLYFS_SCENE").unwrap_or_default();
    let read =
        |paths: &[PathBuf]| -> Vec<_> { paths.iter().map(|path| Tree::read(path)).collect() };
    let lowers_before = (read(&near_lowers), read(&far_lowers));
    let (mut failures, mut changes, mut count) = (Vec::new(), 0, 0);
    for scene in scenes.into_iter().filter(|scene| scene.name.contains(&wanted)) {
        let lowers = if scene.afar { far_lowers.clone() } else { near_lowers.clone() };
        let stage = Stage { scene, dir: sandbox.at("."), lowers, whiteouts };
        changes += stage.play(&mut failures);
        count += 1;
    }
    if (read(&near_lowers), read(&far_lowers)) != lowers_before {
        failures.push("a lower layer has changed".to_owned());
    }
    println!("{test}: {count} scenes, {changes} changes, {} failures", failures.len());
    if !failures.is_empty() {
        sandbox.keep();
        panic!("{} failures\n{}", failures.len(), failures.join("\n"));
    }
}

/// Keeps a lookup of everything, as the kernel's cache of names does.
fn hold(fs: &Overlay, dir: Ino) {
    let handle = fs.open_dir(dir).unwrap();
    let names = fs.read_dir(handle).unwrap();
    fs.release_dir(handle);
    for name in names.iter().filter(|entry| entry.name != "." && entry.name != "..") {
        let entry = fs.lookup(dir, &name.name).unwrap();
        if entry.attr.mode & libc::S_IFMT == libc::S_IFDIR {
            hold(fs, entry.attr.ino);
        }
    }
}

/// Plays the child, if this process is one.
pub fn child() {
    let Some(dir) = std::env::var_os("PLYFS_STAGE").map(PathBuf::from) else { return };
    let text = |name: &str| std::env::var(name).unwrap();
    let scenes = super::scenes::all();
    let scene = scenes.into_iter().find(|scene| scene.name == text("PLYFS_STAGE_SCENE")).unwrap();
    let lowers = text("PLYFS_STAGE_LOWERS").split(':').map(PathBuf::from).collect();
    let dot = text("PLYFS_STAGE_DIALECT") == "Dot";
    let whiteouts = if dot { Whiteouts::Dot } else { Whiteouts::Device };
    let stage = Stage { scene, dir, lowers, whiteouts };
    let mut core = stage.open().unwrap();
    stage.write("before", &stage.look(&core).unwrap());
    if !text("PLYFS_STAGE_HELD").is_empty() {
        hold(core.overlay(), Ino::ROOT);
    }
    for op in &stage.scene.warm {
        core.apply(op).unwrap();
    }
    plyfs_fuse::sys::fault::arm();
    let said = scene::act(&mut core, &stage.scene.act);
    core.close_all();
    let code = said.err().unwrap_or(0);
    std::fs::write(stage.dir.join("said"), code.to_string()).unwrap();
    match stage.look(&core) {
        Ok(seen) => stage.write("after", &seen),
        Err(e) => {
            eprintln!("after it said {}: {e}", errno_name(code));
            std::process::exit(1);
        }
    }
    std::process::exit(0);
}

use std::collections::{BTreeMap, HashMap};
use std::sync::Mutex;

use super::*;

/// A filesystem with projects, in memory: directories are names, each an inode of a block.
#[derive(Debug, Default)]
struct Simulated {
    dirs: Mutex<HashMap<PathBuf, Project>>,
    limits: Mutex<BTreeMap<u32, Quota>>,
}

impl Filesystem for Simulated {
    fn project(&self, dir: &Path) -> io::Result<Project> {
        self.dirs.lock().unwrap().get(dir).copied().ok_or(io::ErrorKind::NotFound.into())
    }

    fn set_project(&self, dir: &Path, id: u32) -> io::Result<()> {
        self.dirs.lock().unwrap().insert(dir.to_owned(), Project { id, inherited: true });
        Ok(())
    }

    fn balance(&self, id: u32) -> io::Result<Balance> {
        let dirs = self.dirs.lock().unwrap();
        let inodes = dirs.values().filter(|project| project.id == id).count() as u64;
        let limits = self.limits.lock().unwrap().get(&id).copied().unwrap_or_default();
        let (most_bytes, most_inodes) = (limits.bytes, limits.inodes);
        Ok(Balance { bytes: inodes * 4096, inodes, most_bytes, most_inodes })
    }

    fn next(&self, id: u32) -> io::Result<Option<(u32, Balance)>> {
        let mut ids: Vec<u32> = self.dirs.lock().unwrap().values().map(|one| one.id).collect();
        ids.extend(self.limits.lock().unwrap().keys());
        let next = ids.into_iter().filter(|one| *one >= id).min();
        next.map(|next| Ok((next, self.balance(next)?))).transpose()
    }

    fn limit(&self, id: u32, quota: Quota) -> io::Result<()> {
        let mut limits = self.limits.lock().unwrap();
        match quota == Quota::default() {
            true => limits.remove(&id),
            false => limits.insert(id, quota),
        };
        Ok(())
    }
}

struct Lab {
    filesystem: Arc<Simulated>,
    projects: Projects,
    dir: tempfile::TempDir,
}

impl Lab {
    fn new(home: u32) -> Lab {
        let dir = tempfile::tempdir().unwrap();
        let filesystem = Arc::new(Simulated::default());
        let locks = vec![dir.path().join("lock")];
        let projects = Projects { filesystem: filesystem.clone(), locks, home };
        Lab { filesystem, projects, dir }
    }

    /// A new directory, which really is there too.
    fn dir(&self, name: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::create_dir(&path).unwrap();
        self.filesystem.dirs.lock().unwrap().insert(path.clone(), Project::default());
        path
    }

    fn assigned(&self, name: &str) -> u32 {
        let dir = self.dir(name);
        self.projects.assign(&[&dir]).unwrap();
        self.id(name)
    }

    fn id(&self, name: &str) -> u32 {
        self.filesystem.project(&self.dir.path().join(name)).unwrap().id
    }

    fn remove(&self, name: &str) {
        self.filesystem.dirs.lock().unwrap().remove(&self.dir.path().join(name));
    }
}

const LIMITS: Quota = Quota { bytes: Some(1 << 20), inodes: Some(9) };

#[test]
fn numbers_are_taken_above_the_homes_and_used_again() {
    for (home, first) in [(0, BASE + 1), (70_000_000, 70_000_001)] {
        let lab = Lab::new(home);
        let ids: Vec<u32> = ["a", "b", "c"].map(|name| lab.assigned(name)).into();
        assert_eq!(ids, [first, first + 1, first + 2]);
        lab.remove("b");
        assert_eq!(lab.assigned("d"), first + 1, "the one that is free");
        assert_eq!(lab.assigned("e"), first + 3);
    }
}

#[test]
fn numbers_that_others_use_are_left() {
    let lab = Lab::new(0);
    let other = lab.dir("other");
    lab.filesystem.set_project(&other, BASE + 1).unwrap();
    assert_eq!(lab.assigned("a"), BASE + 2);
}

#[test]
fn limits_that_a_crash_left_are_nobodys() {
    let lab = Lab::new(0);
    lab.filesystem.limit(BASE + 1, LIMITS).unwrap();
    assert_eq!(lab.assigned("a"), BASE + 1);
    let state = lab.projects.state(&lab.dir.path().join("a")).unwrap().unwrap();
    assert_eq!((state.limits, state.usage.inodes), (Quota::default(), 1));
}

#[test]
fn limits_are_set_read_back_and_taken_off() {
    let lab = Lab::new(0);
    let (upper, work) = (lab.dir("upper"), lab.dir("work"));
    lab.projects.assign(&[&upper, &work]).unwrap();
    assert_eq!(lab.id("upper"), lab.id("work"));
    lab.projects.limit(&upper, LIMITS).unwrap();
    let state = lab.projects.state(&work).unwrap().unwrap();
    assert_eq!(state, State { limits: LIMITS, usage: Usage { bytes: 8192, inodes: 2 } });
    lab.projects.release(&upper).unwrap();
    assert_eq!(lab.projects.state(&work).unwrap().unwrap().limits, Quota::default());
    lab.projects.release(&lab.dir.path().join("missing")).unwrap();
}

#[test]
fn the_project_of_the_home_is_no_layers_own() {
    let lab = Lab::new(5);
    lab.filesystem.limit(5, LIMITS).unwrap();
    let dir = lab.dir("a");
    for project in [
        Project { id: 5, inherited: true },
        Project { id: 0, inherited: true },
        Project { id: 6, inherited: false },
    ] {
        lab.filesystem.dirs.lock().unwrap().insert(dir.clone(), project);
        assert_eq!(lab.projects.state(&dir).unwrap(), None, "{project:?}");
        lab.projects.release(&dir).unwrap();
    }
    assert_eq!(lab.filesystem.balance(5).unwrap().most_inodes, Some(9));
}

#[test]
fn numbers_with_names_are_found() {
    let text = "# 1:/x\n10:/var/log\nbuild:11\n\nbad\n 12 : /y\n";
    let mut found: Vec<u32> = numbers(text).into_iter().collect();
    found.sort_unstable();
    assert_eq!(found, [10, 11, 12]);
}

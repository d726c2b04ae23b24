//! Mount namespaces: which one this thread is in, and what is mounted in another.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::table::{self, MountPoint};

/// How the kernel names the first namespace of processes, in which all of them are seen (`PROC_PID_INIT_INO`, linux/proc_ns.h).
const ALL_PROCESSES: &str = "pid:[4026531836]";

/// Where a mount was made. Empty where that was not told.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Namespace {
    /// The namespace of mounts, as the kernel names it while there is one.
    #[serde(default)]
    mounts: String,
    /// That of processes.
    #[serde(default)]
    processes: String,
}

impl Namespace {
    /// That of this thread.
    pub(super) fn ours() -> Namespace {
        let name = |kind: &str| {
            let link = fs::read_link(Path::new("/proc/thread-self/ns").join(kind));
            link.map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
        };
        Namespace { mounts: name("mnt"), processes: name("pid") }
    }

    /// Who has something mounted in this namespace, if that is another one than ours; `is` knows the mount. Nobody where the
    /// namespace has gone, and its mounts with it.
    pub(super) fn holder(&self, is: impl Fn(&MountPoint) -> bool) -> Option<String> {
        let ours = Namespace::ours();
        if self.mounts.is_empty() || self.mounts == ours.mounts {
            return None;
        }
        let text = "its mount in another mount namespace";
        let name = Path::new(&self.mounts);
        for task in tasks() {
            match fs::read_link(task.join("ns/mnt")) {
                Ok(other) if other != name => continue,
                // Of another user namespace that is not told, and the mounts are.
                Ok(_) | Err(_) => {}
            }
            if table::of(&task.join("mountinfo")).is_ok_and(|mounts| mounts.iter().any(&is)) {
                let process = task.file_name().unwrap_or_default().to_string_lossy();
                return Some(format!("{text}, that of process {process}"));
            }
        }
        let seen = self.processes == ours.processes || ours.processes == ALL_PROCESSES;
        (!seen).then(|| format!("{text}, whose processes are not seen from here"))
    }
}

/// The directories of all threads that are seen.
fn tasks() -> impl Iterator<Item = PathBuf> {
    let list = |dir: &Path| fs::read_dir(dir).into_iter().flatten().flatten();
    let processes = list(Path::new("/proc")).filter(|entry| {
        entry.file_name().as_encoded_bytes().first().is_some_and(u8::is_ascii_digit)
    });
    processes.flat_map(move |process| list(&process.path().join("task"))).map(|task| task.path())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_namespace_holds_nothing_from_us() {
        let ours = Namespace::ours();
        assert!(ours.mounts.starts_with("mnt:["), "{ours:?}");
        assert_eq!(ours.holder(|_| true), None);
        assert_eq!(Namespace::default().holder(|_| true), None);
    }

    #[test]
    fn a_namespace_that_has_gone_holds_nothing() {
        let ours = Namespace::ours();
        let gone = Namespace { mounts: "mnt:[1]".to_owned(), ..ours };
        assert_eq!(gone.holder(|_| false), None);
    }
}

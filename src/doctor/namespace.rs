//! Namespaces for the trials, and whether this user may make them.

use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::trial::{Answers, reason, while_doing};
use crate::error::Result;
use crate::sys::{self, probe};

/// Whether our user namespace is the initial one, in which root is root everywhere.
pub(super) fn is_initial() -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    map.split_whitespace().eq(["0", "0", "4294967295"])
}

/// Enters a mount namespace from which no mount gets out.
pub(super) fn enter_mounts() -> io::Result<()> {
    sys::unshare(sys::CLONE_NEWNS).map_err(|e| while_doing("a new mount namespace", &e))?;
    sys::make_private().map_err(|e| while_doing("private mounts", &e))
}

/// Becomes root of a new user namespace, with such mounts.
pub(super) fn enter_user() -> io::Result<()> {
    let (uid, gid) = sys::real_ids();
    sys::unshare(sys::CLONE_NEWUSER | sys::CLONE_NEWNS)
        .map_err(|e| while_doing("a new user namespace", &e))?;
    let write = |file: &str, text: String| {
        std::fs::write(format!("/proc/self/{file}"), text).map_err(|e| while_doing(file, &e))
    };
    write("setgroups", "deny".to_owned())?;
    write("uid_map", format!("0 {uid} 1"))?;
    write("gid_map", format!("0 {gid} 1"))?;
    sys::make_private().map_err(|e| while_doing("private mounts", &e))
}

/// Finds a program on PATH and where administrators' programs are.
pub(crate) fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let more = ["/usr/bin", "/usr/sbin", "/bin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(more).map(|dir| dir.join(name)).find(|path| path.is_file())
}

/// Tries user namespaces and subordinate ids.
pub(super) fn probe(answers: &mut Answers) -> Result<()> {
    answers.trial(&["userns.create", "userns.mount"], |answers| match enter_user() {
        Ok(()) => {
            answers.say("userns.create", true, limit());
            let mounted = probe::mount("tmpfs", "none", Path::new("/"), "size=4k");
            answers.tried("userns.mount", &mounted);
        }
        Err(error) => {
            answers.say("userns.create", false, format!("{}{}", reason(&error), obstacles()));
            answers.say("userns.mount", false, "needs one");
        }
    })?;
    let uids = range("/etc/subuid");
    let gids = range("/etc/subgid");
    for (key, file, range) in
        [("subid.uid", "/etc/subuid", &uids), ("subid.gid", "/etc/subgid", &gids)]
    {
        match range {
            Some((start, count)) => answers.say(key, true, format!("{count} from {start}")),
            None => answers.say(key, false, format!("{file} has no range for {}", user())),
        }
    }
    match (uids, gids, program("newuidmap"), program("newgidmap")) {
        (_, _, None, _) | (_, _, _, None) => answers.say("subid.map", false, "not installed"),
        (Some(uids), Some(gids), Some(newuidmap), Some(newgidmap)) => {
            answers.trial(&["subid.map"], |answers| {
                answers.tried("subid.map", &map([(newuidmap, uids), (newgidmap, gids)]));
            })?;
        }
        _ => answers.leave("subid.map", "installed, no ranges to try them with"),
    }
    Ok(())
}

fn limit() -> String {
    match std::fs::read_to_string("/proc/sys/user/max_user_namespaces") {
        Ok(max) => format!("max_user_namespaces is {}", max.trim()),
        Err(_) => String::new(),
    }
}

/// Settings that forbid user namespaces, as far as they are set.
fn obstacles() -> String {
    let mut text = String::new();
    for (file, forbidding) in [
        ("user/max_user_namespaces", "0"),
        ("kernel/unprivileged_userns_clone", "0"),
        ("kernel/apparmor_restrict_unprivileged_userns", "1"),
    ] {
        let value = std::fs::read_to_string(Path::new("/proc/sys").join(file)).unwrap_or_default();
        if value.trim() == forbidding {
            text.push_str(&format!("; {file} is {forbidding}"));
        }
    }
    text
}

/// Our name in /etc/passwd, or our number.
fn user() -> String {
    let uid = sys::real_ids().0.to_string();
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let mut lines = passwd.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let found = lines.find(|fields| fields.get(2) == Some(&uid.as_str()));
    found.and_then(|fields| fields.first().map(|name| (*name).to_owned())).unwrap_or(uid)
}

/// Our first range of subordinate ids.
fn range(file: &str) -> Option<(u64, u64)> {
    range_in(&std::fs::read_to_string(file).ok()?, &[&user(), &sys::real_ids().0.to_string()])
}

fn range_in(text: &str, names: &[&str]) -> Option<(u64, u64)> {
    text.lines().find_map(|line| {
        let mut fields = line.split(':');
        fields.next().filter(|name| names.contains(name))?;
        let start = fields.next()?.trim().parse().ok()?;
        let count = fields.next()?.trim().parse().ok().filter(|&count| count > 0)?;
        Some((start, count))
    })
}

/// Gives a new user namespace its ids by the two programs.
fn map(programs: [(PathBuf, (u64, u64)); 2]) -> io::Result<()> {
    let (mut ready, mut tell) = sys::pipe()?;
    let (mut done, hold) = sys::pipe()?;
    let copy = hold.try_clone()?;
    let child = sys::fork(move || {
        drop(copy);
        let made = sys::unshare(sys::CLONE_NEWUSER).and_then(|()| tell.write_all(b"y"));
        drop(tell);
        // Ends when the other process has closed its end, which is when it has mapped the ids.
        let waited = done.read(&mut [0]);
        u8::from(made.is_err() || waited.is_err())
    })?;
    let mut byte = [0];
    let result = ready.read_exact(&mut byte).and_then(|()| {
        let (uid, gid) = sys::real_ids();
        programs
            .iter()
            .zip([uid, gid])
            .try_for_each(|((path, range), own)| run(path, child.id(), own, *range))
    });
    child.signal(sys::SIGKILL)?;
    child.wait()?;
    drop(hold);
    result
}

fn run(program: &Path, pid: i32, own: u32, (start, count): (u64, u64)) -> io::Result<()> {
    let numbers = [u64::try_from(pid).unwrap_or(0), 0, u64::from(own), 1, 1, start, count];
    let output = Command::new(program)
        .args(numbers.map(|number| number.to_string()))
        .stdin(Stdio::null())
        .output()
        .map_err(|e| while_doing(&program.display().to_string(), &e))?;
    if output.status.success() {
        return Ok(());
    }
    let name =
        program.file_name().unwrap_or(OsStr::new("newuidmap")).to_string_lossy().into_owned();
    let said = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
    Err(io::Error::other(if said.is_empty() { format!("{name} refused") } else { said }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_found_by_name_or_number() {
        let text = "a:1:2\n# b:5:6\nme:100000:65536\n7:3:4\nnull:1:0\n";
        assert_eq!(range_in(text, &["me", "1000"]), Some((100_000, 65_536)));
        assert_eq!(range_in(text, &["x", "7"]), Some((3, 4)));
        assert_eq!(range_in(text, &["b"]), None);
        assert_eq!(range_in(text, &["null"]), None);
    }
}

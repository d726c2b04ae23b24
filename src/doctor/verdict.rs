//! Which driver plyfs uses here, and why not the better ones. Pure: facts in, decision out.

use serde::Serialize;

use super::Standing;
use super::trial::Answers;

/// A driver and whether it works here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Driver {
    /// Its name, as `--driver` takes it.
    pub name: &'static str,
    /// Whether it works.
    pub ok: bool,
    /// How, or why not.
    pub reason: String,
}

/// What is used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Choice {
    /// The driver, if any works.
    pub driver: Option<&'static str>,
    /// Why this one.
    pub reason: String,
}

/// The drivers, most wanted first, and the fact that says whether each works.
pub(super) const DRIVERS: [(&str, &str); 4] = [
    ("overlay2", "driver.overlay2"),
    ("fuse-overlay", "driver.fuse-overlay"),
    ("vfs", "driver.vfs"),
    ("overlay", "driver.overlay"),
];

/// Judges the drivers and takes the one that a store would: of those that keep layers there already (`prior`, by
/// directory) if there are any, the first that works.
pub(super) fn decide(
    standing: Standing,
    answers: &Answers,
    prior: &[(&'static str, Vec<&'static str>)],
) -> (Vec<Driver>, Choice) {
    let drivers: Vec<Driver> = DRIVERS.iter().map(|one| judge(standing, answers, *one)).collect();
    let choice = match prior {
        [] => first(&drivers, |_| true, ""),
        [(home, names)] => {
            first(&drivers, |name| names.contains(&name), &format!("{home} has layers"))
        }
        several => {
            let homes: Vec<&str> = several.iter().map(|(home, _)| *home).collect();
            let reason = format!(
                "there are layers of several drivers: {}; choose with --driver",
                homes.join(", ")
            );
            Choice { driver: None, reason }
        }
    };
    (drivers, choice)
}

fn first(drivers: &[Driver], wanted: impl Fn(&str) -> bool, why: &str) -> Choice {
    let mut reasons: Vec<String> =
        Some(why.to_owned()).filter(|why| !why.is_empty()).into_iter().collect();
    for driver in drivers.iter().filter(|driver| wanted(driver.name)) {
        if driver.ok {
            if reasons.is_empty() {
                reasons.push(driver.reason.clone());
            }
            return Choice { driver: Some(driver.name), reason: reasons.join("; ") };
        }
        reasons.push(format!("{}: {}", driver.name, driver.reason));
    }
    Choice { driver: None, reason: reasons.join("; ") }
}

fn judge(standing: Standing, answers: &Answers, (name, key): (&'static str, &str)) -> Driver {
    let not = |reason: String| Driver { name, ok: false, reason };
    if !answers.is("fs.writable") {
        return not("the state directory cannot be written".to_owned());
    }
    if !answers.is(key) {
        let mut why = answers.why(key).to_owned();
        let unknown = answers.get("overlay.kernel").is_some_and(|fact| fact.ok == Some(false));
        if unknown && matches!(name, "overlay2" | "overlay") {
            // Who may not mount is told that before he is told that there is nothing to mount.
            "the kernel's overlay: not in this kernel".clone_into(&mut why);
        }
        if name == "overlay2" && standing == Standing::User && answers.is("overlay.user") {
            why.push_str("; it works inside one, as unshare -Urm and podman unshare make it");
        }
        return not(why);
    }
    let how = match (name, standing) {
        ("overlay2", Standing::Root) => "the kernel's overlay, as root",
        ("overlay2", _) => "the kernel's overlay, with userxattr",
        ("fuse-overlay", Standing::User) => "our own overlay, mounted by fusermount3",
        ("fuse-overlay", _) => "our own overlay over /dev/fuse",
        ("vfs", _) => "whole copies, works everywhere",
        _ => "images that share files, for stores that have such",
    };
    Driver { name, ok: true, reason: how.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::registry::Registry;

    fn answers(yes: &[&str]) -> Answers {
        let mut answers = Answers::default();
        let keys = DRIVERS.map(|(_, key)| key);
        for key in keys.into_iter().chain(["fs.writable", "overlay.user"]) {
            answers.say(key, yes.contains(&key), format!("why {key}"));
        }
        answers
    }

    #[test]
    fn nobody_is_sent_to_a_namespace_for_what_the_kernel_has_not() {
        let mut answers = answers(&["fs.writable", "driver.vfs"]);
        answers.say("overlay.kernel", false, "unknown to the kernel");
        let (drivers, choice) = decide(Standing::User, &answers, &[]);
        assert!(drivers[0].reason.ends_with("not in this kernel"), "{}", drivers[0].reason);
        assert!(drivers[3].reason.ends_with("not in this kernel"), "{}", drivers[3].reason);
        assert!(choice.reason.contains("not in this kernel"), "{}", choice.reason);
    }

    #[test]
    fn the_drivers_are_those_there_are() {
        let mut names = Registry::built_in().names();
        let mut known: Vec<&str> = DRIVERS.iter().map(|(name, _)| *name).collect();
        names.sort_unstable();
        known.sort_unstable();
        assert_eq!(names, known);
    }

    #[test]
    fn the_best_driver_that_works_is_chosen() {
        let all = &[
            "fs.writable",
            "driver.overlay2",
            "driver.fuse-overlay",
            "driver.vfs",
            "driver.overlay",
        ][..];
        let no_overlay = &["fs.writable", "driver.fuse-overlay", "driver.vfs"];
        let kernel = ("overlay2", vec!["overlay2", "fuse-overlay"]);
        let legacy = ("overlay", vec!["overlay"]);
        for (standing, yes, prior, driver, reason) in [
            (Standing::Root, all, vec![], Some("overlay2"), "as root"),
            (Standing::Inside, all, vec![], Some("overlay2"), "userxattr"),
            (
                Standing::Root,
                no_overlay,
                vec![],
                Some("fuse-overlay"),
                "overlay2: why driver.overlay2",
            ),
            (
                Standing::User,
                &["fs.writable", "driver.vfs"],
                vec![],
                Some("vfs"),
                "fuse-overlay: why",
            ),
            (Standing::Root, &all[1..], vec![], None, "cannot be written"),
            (Standing::Root, all, vec![legacy.clone()], Some("overlay"), "overlay has layers"),
            (
                Standing::Root,
                no_overlay,
                vec![kernel.clone()],
                Some("fuse-overlay"),
                "overlay2 has layers; overlay2: why",
            ),
            (Standing::Root, no_overlay, vec![legacy.clone()], None, "overlay: why driver.overlay"),
            (
                Standing::Root,
                all,
                vec![kernel, legacy],
                None,
                "several drivers: overlay2, overlay; choose",
            ),
        ] {
            let (drivers, choice) = decide(standing, &answers(yes), &prior);
            assert_eq!(drivers.len(), 4);
            assert_eq!(choice.driver, driver, "{standing:?} {yes:?}");
            assert!(choice.reason.contains(reason), "{}", choice.reason);
        }
    }

    #[test]
    fn who_may_have_the_kernels_overlay_in_a_namespace_is_told_so() {
        let (drivers, _) = decide(Standing::User, &answers(&["fs.writable", "overlay.user"]), &[]);
        assert!(drivers[0].reason.contains("unshare -Urm"), "{}", drivers[0].reason);
    }
}

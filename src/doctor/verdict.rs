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

/// Judges the drivers, most wanted first, and takes the first that works.
pub(super) fn decide(standing: Standing, answers: &Answers) -> (Vec<Driver>, Choice) {
    let drivers = vec![overlay2(standing, answers), fuse_overlay(standing, answers), vfs(answers)];
    let choice = match drivers.iter().find(|driver| driver.ok) {
        None => Choice { driver: None, reason: "the state directory cannot be written".to_owned() },
        Some(chosen) => {
            let better = drivers.iter().take_while(|driver| !driver.ok);
            let refused: Vec<String> =
                better.map(|driver| format!("{}: {}", driver.name, driver.reason)).collect();
            let reason =
                if refused.is_empty() { chosen.reason.clone() } else { refused.join("; ") };
            Choice { driver: Some(chosen.name), reason }
        }
    };
    (drivers, choice)
}

fn overlay2(standing: Standing, answers: &Answers) -> Driver {
    let (key, how) = match standing {
        Standing::Root => ("overlay.trusted", "the kernel's overlay, as root"),
        Standing::Inside => ("overlay.user", "the kernel's overlay, with userxattr"),
        Standing::User => {
            ("overlay.user", "the kernel's overlay, in a user namespace with userxattr")
        }
    };
    driver("overlay2", answers, &[(key, how)])
}

fn fuse_overlay(standing: Standing, answers: &Answers) -> Driver {
    let ways: &[_] = match standing {
        Standing::User => &[
            ("fuse.mount", "our own overlay, mounted in a user namespace"),
            ("fuse.fusermount", "our own overlay, mounted by fusermount3"),
        ],
        _ => &[("fuse.mount", "our own overlay over /dev/fuse")],
    };
    driver("fuse-overlay", answers, ways)
}

fn vfs(answers: &Answers) -> Driver {
    driver("vfs", answers, &[("fs.writable", "whole copies, works everywhere")])
}

/// A driver that works in the first of some ways that does.
fn driver(name: &'static str, answers: &Answers, ways: &[(&str, &str)]) -> Driver {
    let unwritable =
        (!answers.is("fs.writable")).then(|| "the state directory cannot be written".to_owned());
    if let Some(reason) = unwritable {
        return Driver { name, ok: false, reason };
    }
    if let Some((_, how)) = ways.iter().find(|(key, _)| answers.is(key)) {
        return Driver { name, ok: true, reason: (*how).to_owned() };
    }
    let mut reasons: Vec<&str> = ways.iter().map(|(key, _)| answers.why(key)).collect();
    reasons.dedup();
    Driver { name, ok: false, reason: reasons.join("; ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answers(yes: &[&str]) -> Answers {
        let mut answers = Answers::default();
        for key in
            ["fs.writable", "overlay.trusted", "overlay.user", "fuse.mount", "fuse.fusermount"]
        {
            answers.say(key, yes.contains(&key), format!("why {key}"));
        }
        answers
    }

    #[test]
    fn the_best_driver_that_works_is_chosen() {
        for (standing, yes, driver, reason) in [
            (Standing::Root, &["fs.writable", "overlay.trusted"][..], Some("overlay2"), "as root"),
            (Standing::User, &["fs.writable", "overlay.user"], Some("overlay2"), "userxattr"),
            (
                Standing::Root,
                &["fs.writable", "overlay.user", "fuse.mount"],
                Some("fuse-overlay"),
                "overlay2: why",
            ),
            (
                Standing::User,
                &["fs.writable", "fuse.fusermount"],
                Some("fuse-overlay"),
                "overlay2: why",
            ),
            (
                Standing::Inside,
                &["fs.writable", "overlay.trusted"],
                Some("vfs"),
                "fuse-overlay: why fuse.mount",
            ),
            (Standing::Root, &["overlay.trusted", "fuse.mount"], None, "cannot be written"),
        ] {
            let (drivers, choice) = decide(standing, &answers(yes));
            assert_eq!(drivers.len(), 3);
            assert_eq!(choice.driver, driver, "{standing:?} {yes:?}");
            assert!(choice.reason.contains(reason), "{}", choice.reason);
        }
    }
}

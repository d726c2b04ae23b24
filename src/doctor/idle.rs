//! What a virtual machine does when a processor has nothing to do.
//!
//! A request to a FUSE server wakes the server, and the answer wakes the caller. Where the idle processor
//! has been given back to the host, each costs an exit of the virtual machine, tens of microseconds. A guest
//! that polls a moment before it halts is spared that (kernel document "Guest halt polling").

use std::fs;

use super::trial::Answers;

const KEY: &str = "fuse.halt_polling";
const GOVERNOR: &str = "/sys/devices/system/cpu/cpuidle/current_governor";
const POLL_NS: &str = "/sys/module/haltpoll/parameters/guest_halt_poll_ns";

/// Looks; nothing is tried.
pub(super) fn probe(answers: &mut Answers) {
    let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let governor = fs::read_to_string(GOVERNOR).unwrap_or_default();
    let nanoseconds = fs::read_to_string(POLL_NS).ok().and_then(|text| text.trim().parse().ok());
    match judge(is_guest(&cpus), governor.trim() == "haltpoll", nanoseconds) {
        (Some(ok), detail) => answers.say(KEY, ok, detail),
        (None, detail) => answers.leave(KEY, detail),
    }
}

/// Whether /proc/cpuinfo has the flag that hypervisors set (x86 only; others have none).
fn is_guest(cpus: &str) -> bool {
    let flags = cpus.lines().find(|line| line.starts_with("flags"));
    flags.is_some_and(|line| line.split_ascii_whitespace().any(|flag| flag == "hypervisor"))
}

fn judge(guest: bool, governs: bool, nanoseconds: Option<u64>) -> (Option<bool>, String) {
    if !guest {
        return (None, "no virtual machine, as far as its processors say".into());
    }
    match nanoseconds {
        Some(0) if governs => (
            Some(false),
            format!("each request wakes a halted processor; as root: echo 200000 > {POLL_NS}"),
        ),
        Some(time) if governs => {
            (Some(true), format!("{} us before a processor halts", time / 1000))
        }
        _ => (
            Some(false),
            "each request wakes a halted processor; as root: modprobe cpuidle_haltpoll force=1"
                .into(),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guests_are_known_by_the_flag() {
        assert!(is_guest("processor\t: 0\nflags\t\t: fpu hypervisor lahf_lm\n"));
        assert!(!is_guest("processor\t: 0\nflags\t\t: fpu hypervisorless\n"));
        assert!(!is_guest("BogoMIPS\t: 50.00\nFeatures\t: fp asimd\n"));
    }

    #[test]
    fn each_state_has_its_advice() {
        assert_eq!(judge(false, true, Some(0)).0, None);
        let (ok, why) = judge(true, true, Some(0));
        assert!(ok == Some(false) && why.ends_with(POLL_NS), "{why}");
        assert_eq!(
            judge(true, true, Some(200_000)),
            (Some(true), "200 us before a processor halts".into())
        );
        for (governs, time) in [(false, Some(200_000)), (true, None), (false, None)] {
            let (ok, why) = judge(true, governs, time);
            assert!(ok == Some(false) && why.contains("modprobe"), "{why}");
        }
    }
}

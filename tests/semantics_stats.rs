//! What a server tells of its work: on USR1, and when the mount is gone.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Pid, Signal, kill_process};

use crate::semantics_kit::backend::{list, plyfs, said};
use crate::semantics_kit::{Test, append, both, exists, names, plant, put, text, wait_until};

/// Looks up, reads, copies up, lists and deletes.
fn work(point: &Path) {
    assert_eq!(text(point.join("f")), "low");
    append(point.join("f"), "er");
    put(point.join("new"), "x");
    assert_eq!(fs::read_dir(point).unwrap().count(), 4);
    fs::remove_file(point.join("gone")).unwrap();
}

/// What was logged, without the blanks that a logger puts before the lines of one message.
fn told(log: &Path) -> String {
    text(log).replace("\n    ", "\n")
}

/// The last report, asked for until it has the last request: a reply goes out before it is counted.
fn report(server: Pid, log: &Path) -> String {
    let mut report = String::new();
    wait_until("the report", || {
        kill_process(server, Signal::USR1).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(20));
        report = told(log).rsplit("copied up").next().unwrap().to_owned();
        ["\nunlink", "\nwrite"].iter().all(|x| report.contains(x))
    });
    told(log).rsplit("[INFO").next().unwrap().to_owned()
}

/// The number after a word in a report.
fn after(report: &str, word: &str) -> u64 {
    let rest = report.split(word).nth(1).unwrap_or_else(|| panic!("{word} in {report}"));
    let digits: String = rest.trim_start().chars().take_while(char::is_ascii_digit).collect();
    digits.parse().unwrap_or_else(|_| panic!("{word} in {report}"))
}

fn check(report: &str) {
    assert_eq!(after(report, "copied up"), 1, "{report}");
    assert_eq!(after(report, "copied up 1 objects,"), 3, "{report}");
    let made = if report.contains("\ncreate") { "\ncreate" } else { "\nmknod" };
    for op in ["\nlookup", "\nread ", "\nwrite ", made, "\nunlink"] {
        assert!(after(report, op) >= 1, "{op} in {report}");
    }
    assert_eq!(after(report, "\nunlink"), 1);
    let line = report.lines().find(|x| x.starts_with("unlink")).unwrap();
    let columns: Vec<f64> = line.split_whitespace().skip(1).map(|x| x.parse().unwrap()).collect();
    assert_eq!(columns.len(), 9, "count, mean, longest, six columns: {line}");
    assert!(columns[1] > 0.0 && (columns[1] - columns[2]).abs() < 0.2, "one request: {line}");
    assert_eq!(columns[3..].iter().sum::<f64>(), 1.0, "{line}");
}

fn serve(t: &Test, words: &[&str], log: &Path) -> Child {
    let mut command = Command::new(plyfs());
    command.arg("mount").arg("-o").arg(list(&t.stack())).args(words).arg(t.at("merged"));
    let log = fs::File::create(log).unwrap();
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap();
    wait_until("the mount", || exists(t.at("merged/f")));
    child
}

both! { without_handles_an_open_is_no_request, OnlyPlyfs, |t| {
    plant(&t.at("lower"), &["f=low", "gone=x", "g=x"]);
    let mut child = serve(t, &["-f", "-o", "io=handleless"], &t.at("told"));
    work(&t.at("merged"));
    for _ in 0..10 {
        assert_eq!(text(t.at("merged/f")), "lower");
    }
    let report = report(Pid::from_child(&child), &t.at("told"));
    assert!(["\nopen ", "\nrelease ", "\ncreate "].iter().all(|x| !report.contains(x)), "{report}");
    assert!(after(&report, "\nread ") <= 4, "what was read is kept: {report}");
    unmount(t.at("merged"), UnmountFlags::empty()).unwrap();
    assert!(child.wait().unwrap().success());
}}

both! { a_signal_has_the_counters_told_on_standard_error, OnlyPlyfs, |t| {
    plant(&t.at("lower"), &["f=low", "gone=x", "g=x"]);
    let mut child = serve(t, &["-f"], &t.at("told"));
    work(&t.at("merged"));
    let report = report(Pid::from_child(&child), &t.at("told"));
    assert!(report.contains(t.at("merged").to_str().unwrap()));
    assert!(after(&report, "inodes") >= 2 && after(&report, "descriptors") >= 5, "{report}");
    check(&report);
    assert_eq!(text(t.at("merged/f")), "lower", "it goes on serving");
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    assert!(child.wait().unwrap().success());
}}

both! { the_statistics_are_told_when_the_mount_is_gone, OnlyPlyfs, |t| {
    plant(&t.at("lower"), &["f=low", "gone=x", "g=x"]);
    let mut child = serve(t, &["--stats"], &t.at("told"));
    work(&t.at("merged"));
    said(Command::new(plyfs()).arg("umount").arg(t.at("merged"))).unwrap();
    assert!(child.wait().unwrap().success());
    let report = told(&t.at("told"));
    assert!(report.contains("mounted ") && report.contains("MiB"), "{report}");
    check(&report);
}}

both! { a_detached_server_logs_to_the_file_that_is_named, OnlyPlyfs, |t| {
    plant(&t.at("lower"), &["f=low", "gone=x", "g=x"]);
    let log = t.at("plyfs.log");
    let mut command = t.backend.command(&t.stack());
    said(command.env("PLYFS_LOG_FILE", &log)).unwrap();
    work(&t.at("merged"));
    let server = fs::read_dir("/proc").unwrap().flatten().find_map(|entry| {
        let exe = fs::read_link(entry.path().join("exe")).unwrap_or_default();
        let ours = exe.file_name().is_some_and(|x| x == "plyfs");
        entry.file_name().to_str().filter(|_| ours).and_then(|x| x.parse().ok()).and_then(Pid::from_raw)
    });
    check(&report(server.unwrap(), &log));
    rustix::mount::unmount(t.at("merged"), rustix::mount::UnmountFlags::empty()).unwrap();
}}

/// How often a kind of request came.
fn count(report: &str, op: &str) -> u64 {
    let line = report.lines().find(|x| x.split_whitespace().next() == Some(op));
    line.map_or(0, |x| x.split_whitespace().nth(1).unwrap().parse().unwrap())
}

/// Serves the default stack while `work` runs; the last report.
fn told_of(t: &Test, work: impl FnOnce(&Path)) -> String {
    let mut child = serve(t, &["--stats"], &t.at("told"));
    work(&t.at("merged"));
    said(Command::new(plyfs()).arg("umount").arg(t.at("merged"))).unwrap();
    assert!(child.wait().unwrap().success());
    told(&t.at("told"))
}

both! { names_attributes_and_absence_are_asked_for_once, OnlyPlyfs, |t| {
    plant(&t.at("lower"), &["f=low", "d", "d/g=x"]);
    let report = told_of(t, |point| {
        for _ in 0..500 {
            assert!(!exists(point.join("d/missing")));
            assert_eq!(fs::metadata(point.join("d/g")).unwrap().len(), 1);
        }
        put(point.join("d/missing"), "here");
        assert_eq!(text(point.join("d/missing")), "here", "a name that was absent comes");
    });
    let asked = count(&report, "lookup") + count(&report, "getattr");
    assert!(asked < 20, "{report}");
}}

both! { a_listing_that_did_not_change_is_read_once, OnlyPlyfs, |t| {
    plant(&t.at("lower"), &["f=low", "d"]);
    for file in 0..500 {
        put(t.lower(format!("d/{file}")), "");
    }
    let mut reads = [0; 2];
    for (round, reads) in reads.iter_mut().enumerate() {
        let report = told_of(t, |point| {
            for _ in 0..1 + 20 * round {
                assert_eq!(names(point.join("d")).len(), 500 + round);
            }
            put(point.join("d/new"), "");
            assert_eq!(names(point.join("d")).len(), 501, "a change shows");
        });
        *reads = count(&report, "readdir") + count(&report, "readdirplus");
    }
    assert!(reads[1] <= reads[0] + 10, "20 more listings took {reads:?} requests");
}}

both! { inodes_that_the_kernel_gave_back_are_forgotten, OnlyPlyfs, |t| {
    plant(&t.at("lower"), &["f=low", "d", "gone=x"]);
    for file in 0..1000 {
        put(t.lower(format!("d/{file}")), "");
    }
    let mut child = serve(t, &["-f"], &t.at("told"));
    let point = t.at("merged");
    append(point.join("f"), "+");
    for name in names(point.join("d")) {
        assert!(exists(point.join("d").join(name)));
    }
    fs::remove_file(point.join("gone")).unwrap();
    let server = Pid::from_child(&child);
    assert!(after(&report(server, &t.at("told")), "inodes") > 1000);
    // A remount has the kernel give back every name of its filesystem that nobody uses; what is used at
    // that moment goes with a later one.
    wait_until("few inodes", || {
        rustix::mount::mount_remount(&point, rustix::mount::MountFlags::NOATIME, c"").unwrap();
        after(&report(server, &t.at("told")), "inodes") < 5
    });
    kill_process(server, Signal::TERM).unwrap();
    assert!(child.wait().unwrap().success());
}}

both! { without_xattrs_the_kernel_asks_once, OnlyPlyfs, |t| {
    plant(&t.at("lower"), &["f=low"]);
    let mut child = serve(t, &["--stats", "-o", "noxattrs=1"], &t.at("told"));
    for n in 0..10 {
        put(t.at("merged").join(format!("new{n}")), "x");
        let refused = rustix::fs::getxattr(t.at("merged/f"), "user.x", &mut [0; 8]).unwrap_err();
        assert_eq!(refused, rustix::io::Errno::OPNOTSUPP);
    }
    said(Command::new(plyfs()).arg("umount").arg(t.at("merged"))).unwrap();
    assert!(child.wait().unwrap().success());
    let report = told(&t.at("told"));
    assert!(count(&report, "getxattr") <= 1 && count(&report, "lookup") >= 10, "{report}");
}}

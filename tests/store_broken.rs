//! A store goes on where something in it or around it is broken: a full disk, a record that cannot be read, a stray file.

use std::fs;
use std::io::{Read, Write};
use std::process::{Command, Stdio};

use rustix::mount::{MountFlags, UnmountFlags};

use crate::common::cmd::Cmd;
use crate::driver_kit;
use crate::every_driver;
use crate::semantics_kit::wait_until;
use crate::store_kit::{Box_, tree};

fn room_is_made_on_a_full_disk(store: &driver_kit::Store) {
    let (disk, run) = (store.sandbox.dir("disk"), store.sandbox.dir("run"));
    rustix::mount::mount("disk", &disk, "tmpfs", MountFlags::empty(), Some(c"size=3m")).unwrap();
    let plyfs = |words: &[&str]| {
        let root = disk.join("store");
        let cmd = Cmd::plyfs().env("XDG_RUNTIME_DIR", &run).arg("--root").arg(root);
        cmd.args(["--driver", store.driver.name()]).args(words)
    };
    plyfs(&["layer", "create", "kept"]).succeeds();
    plyfs(&["layer", "create", "--parent", "kept", "big"]).succeeds();
    plyfs(&["layer", "mount", "big"]).succeeds();
    let path = plyfs(&["layer", "mount", "big"]).succeeds().stdout;
    let path = std::path::Path::new(path.trim()).join("f");
    let fill = |path: &std::path::Path| {
        let mut file = fs::File::options().create(true).append(true).open(path).unwrap();
        while file.write(&[1; 4096]).is_ok_and(|done| done > 0) {}
    };
    fill(&path);
    fill(&disk.join("rest"));
    assert!(fs::write(disk.join("more"), "x").is_err(), "there is room left");
    plyfs(&["layer", "umount", "big"]).succeeds();
    plyfs(&["layer", "umount", "big"]).succeeds();
    plyfs(&["layer", "umount", "big"]).exits(1).complains("not found");
    // The count of its mounts has gone too.
    fill(&disk.join("rest"));
    assert!(fs::write(disk.join("more"), "x").is_err(), "there is room left");
    plyfs(&["layer", "ls"]).succeeds().says("big").says("kept");
    plyfs(&["layer", "rm", "big"]).succeeds();
    plyfs(&["layer", "ls"]).succeeds().says("kept");
    wait_until("room", || fs::write(disk.join("more"), [1; 1 << 20]).is_ok());
    plyfs(&["check"]).succeeds().says("1 layer, nothing wrong");
    driver_kit::assert_no_mounts(&disk);
    rustix::mount::unmount(&disk, UnmountFlags::DETACH).unwrap();
}

fn a_layer_is_removed_where_no_file_can_be_made(store: &driver_kit::Store) {
    let (disk, run) = (store.sandbox.dir("disk"), store.sandbox.dir("run"));
    let size = Some(c"size=50m,nr_inodes=400");
    rustix::mount::mount("disk", &disk, "tmpfs", MountFlags::empty(), size).unwrap();
    let plyfs = |words: &[&str]| {
        let cmd = Cmd::plyfs().env("XDG_RUNTIME_DIR", &run).arg("--root").arg(disk.join("store"));
        cmd.args(["--driver", store.driver.name()]).args(words)
    };
    let fill = || (0..).find(|n| fs::write(disk.join(format!("rest{n}")), "").is_err()).unwrap();
    for name in ["kept", "one", "two"] {
        plyfs(&["layer", "create", name]).succeeds();
    }
    for name in ["one", "two"] {
        fill();
        plyfs(&["layer", "ls"]).succeeds().says(name);
        plyfs(&["layer", "create", "more"]).exits(1).complains("No space left");
        plyfs(&["layer", "rm", name]).succeeds();
        wait_until("room", || fs::write(disk.join("more"), "").is_ok());
        fs::remove_file(disk.join("more")).unwrap();
    }
    for n in 0..400 {
        fs::remove_file(disk.join(format!("rest{n}"))).unwrap_or_default();
    }
    plyfs(&["check"]).succeeds().says("1 layer, nothing wrong");
    driver_kit::assert_no_mounts(&disk);
    rustix::mount::unmount(&disk, UnmountFlags::DETACH).unwrap();
}

fn a_broken_record_stops_no_other_layer(store: &driver_kit::Store) {
    let store = Box_(store);
    store.fill("base", None, &tree(store.0));
    for name in ["box", "torn"] {
        store.does(&["layer", "create", "--parent", "base", name]);
    }
    fs::write(store.0.root().join("layers/torn/layer.json"), "{").unwrap();
    let told = store.does(&["layer", "ls"]);
    told.says("base").says("box").complains("torn/layer.json: corrupt");
    store.plyfs(&["check"]).exits(1).says("plyfs layer rm torn removes the layer");
    store.does(&["layer", "rm", "box"]);
    if store.0.driver.name() != "vfs" {
        // What lies on a layer is told by its storage too.
        store.plyfs(&["layer", "rm", "base"]).exits(1).complains("in use by layer 'torn'");
    }
    store.does(&["layer", "rm", "torn"]);
    store.does(&["layer", "rm", "base"]);
    store.does(&["check"]).says("0 layers, nothing wrong");
}

fn stray_files_are_passed_over(store: &driver_kit::Store) {
    let store = Box_(store);
    store.fill("base", None, &tree(store.0));
    let home = store.0.driver.home().to_path_buf();
    let places = if home.ends_with("vfs") { vec![home.join("dir")] } else { vec![home] };
    for place in &places {
        fs::write(place.join("README"), "of somebody else").unwrap();
    }
    fs::create_dir(store.0.root().join("pending/stray")).unwrap();
    store.does(&["check"]).says("1 layer, nothing wrong").complains("layer 'stray': ");
    store.does(&["prune"]).says("0 layers removed");
    store.does(&["layer", "create", "--parent", "base", "box"]);
    assert!(places.iter().all(|place| place.join("README").exists()));
}

fn an_archive_that_nobody_reads_to_its_end_is_a_failure(store: &driver_kit::Store) {
    let store = Box_(store);
    store.fill("base", None, &tree(store.0));
    store.does(&["layer", "create", "--parent", "base", "box"]);
    for id in ["base", "box"] {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        drop(reader);
        let mut command = Command::new(env!("CARGO_BIN_EXE_plyfs"));
        command.env("XDG_RUNTIME_DIR", store.0.sandbox.at("run")).arg("--root").arg(store.0.root());
        command.args(["--driver", store.0.driver.name(), "layer", "diff", id]);
        let mut child = command.stdout(Stdio::from(writer)).stderr(Stdio::piped()).spawn().unwrap();
        let mut said = String::new();
        child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(1), "{said}");
        assert!(said.contains("whoever reads it has gone"), "{said}");
    }
}

/// Root may forbid the deletion of a file (chattr +i).
fn what_cannot_be_deleted_is_told_as_it_is(store: &driver_kit::Store) {
    use rustix::fs::{IFlags, ioctl_getflags, ioctl_setflags};
    let store = Box_(store);
    for name in ["fixed", "other"] {
        store.does(&["layer", "create", name]);
        fs::write(store.0.own(name).join("f"), "x").unwrap();
    }
    let file = fs::File::open(store.0.own("fixed").join("f")).unwrap();
    let flags = ioctl_getflags(&file).unwrap_or(IFlags::empty());
    if ioctl_setflags(&file, flags | IFlags::IMMUTABLE).is_err() {
        return println!("skipped: {}: needs a file that cannot be deleted", store.0.driver.name());
    }
    store.plyfs(&["layer", "rm", "fixed"]).run().complains("Operation not permitted");
    let rest = store.plyfs(&["layer", "rm", "other"]).run();
    ioctl_setflags(&file, flags).unwrap();
    assert_eq!(rest.status, 0, "{}", rest.story());
    store.does(&["layer", "ls"]);
    store.does(&["check"]).says("0 layers, nothing wrong");
}

every_driver! {
    full_disk, room_is_made_on_a_full_disk;
    no_inodes, a_layer_is_removed_where_no_file_can_be_made;
    broken_record, a_broken_record_stops_no_other_layer;
    immutable, what_cannot_be_deleted_is_told_as_it_is;
    strays, stray_files_are_passed_over;
    cut_short, an_archive_that_nobody_reads_to_its_end_is_a_failure;
}

//! The stack: its order, how many, how they are written, what is refused.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::Command;

use rustix::fs::MemfdFlags;
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};

use crate::semantics_kit::backend::said;
use crate::semantics_kit::{
    Backend, Stack, Test, append, both, errno, exists, names, plant, put, set_xattr, stat, text,
    wait_until,
};

both! { the_top_layer_wins_and_directories_merge, |t| {
    let one = t.layer("one", &["f=1", "d", "d/1=1", "kind", "kind/in=1"]);
    let two = t.layer("two", &["f=2", "g=2", "d", "d/2=2", "kind=2"]);
    let three = t.layer("three", &["f=3", "g=3", "h=3", "d", "d/3=3", "kind", "kind/low=3"]);
    let fs = t.mount_lowers(&[&one, &two, &three]);
    assert_eq!(["f", "g", "h"].map(|x| text(fs.at(x))), ["1", "2", "3"]);
    assert_eq!(names(fs.at("d")), ["1", "2", "3"]);
    assert_eq!(names(fs.at("kind")), ["in"], "a file between two directories separates them");
    assert_eq!(names(fs.at("")), ["d", "f", "g", "h", "kind"]);
}}

both! { five_hundred_lowers_are_one_tree, |t| {
    let layers: Vec<_> = (0..500)
        .map(|x| {
            t.layer(
                &format!("l{x}"),
                &[&format!("f{x}={x}"), "d", &format!("d/in{x}={x}"), &format!("d/all={x}")],
            )
        })
        .collect();
    let mut fs = t.mount_stack(Stack { lowers: layers, ..t.stack() });
    assert_eq!(names(fs.at("")).len(), 501);
    assert_eq!(names(fs.at("d")).len(), 501);
    assert_eq!(
        (text(fs.at("f499")), text(fs.at("d/in499")), text(fs.at("d/all"))),
        ("499".into(), "499".into(), "0".into())
    );
    append(fs.at("d/in499"), "x");
    fs::remove_file(fs.at("d/all")).unwrap();
    fs.remount();
    assert_eq!(names(fs.at("d")).len(), 500);
    assert_eq!(text(fs.at("d/in499")), "499x");
}}

both! { colons_and_commas_in_paths_are_escaped, NoDaemon, |t| {
    let lowers = ["a:b", "c,d", "e\\f", "g h", "i=j"]
        .map(|x| t.layer(x, &[&format!("{x}=x").replace("i=j=", "ij=")]));
    let upper = (t.layer("up,per:1", &[]), t.layer("wo,rk:1", &[]));
    let mut fs = t.mount_stack(Stack { lowers: lowers.to_vec(), upper: Some(upper), ..t.stack() });
    assert_eq!(names(fs.at("")), ["a:b", "c,d", "e\\f", "g h", "ij"]);
    put(fs.at("new"), "x");
    fs.remount();
    assert!(t.at("up,per:1/new").exists());
}}

both! { symlinked_and_relative_layers_are_resolved_at_the_start, NoDaemon, |t| {
    for name in ["A", "B"] {
        t.layer(name, &[&format!("{name}={name}")]);
    }
    t.layer("l", &[]);
    symlink("../A", t.at("l/AAAA")).unwrap();
    symlink(t.at("B"), t.at("l/BBBB")).unwrap();
    let lowers = vec![PathBuf::from("l/AAAA"), PathBuf::from("l/BBBB")];
    let upper = Some((PathBuf::from("upper"), PathBuf::from("work")));
    let fs = t.mount_stack(Stack { lowers, upper, ..t.stack() });
    fs::remove_dir_all(t.at("l")).unwrap();
    assert_eq!((text(fs.at("A")), text(fs.at("B"))), ("A".into(), "B".into()));
    put(fs.at("new"), "x");
    append(fs.at("A"), "x");
    assert_eq!(text(t.upper("A")), "Ax");
}}

both! { layers_are_given_one_by_one_and_by_inherited_descriptor, OnlyPlyfs, |t| {
    let layers = ["a,b", "c:d", "e", "data", "up"].map(|x| t.layer(x, &[]));
    for (layer, words) in layers.iter().zip([&["f=1"][..], &["f=2", "g=2"], &["h=3"], &[], &[]]) {
        plant(layer, words);
    }
    let open = layers.each_ref().map(|x| {
        let dir = File::open(x).unwrap();
        rustix::io::fcntl_setfd(&dir, rustix::io::FdFlags::empty()).unwrap();
        dir
    });
    let fd = open.each_ref().map(std::os::fd::AsRawFd::as_raw_fd);
    let list = format!(
        "lowerdir+=/proc/self/fd/{},lowerdir+={},lowerdir+=/dev/fd/{},datadir+=/proc/self/fd/{},\
         upperdir=/proc/self/fd/{},workdir={}",
        fd[0],
        layers[1].display(),
        fd[2],
        fd[3],
        fd[4],
        t.at("work").display(),
    );
    let mut command = t.backend.program();
    said(command.args(["mount", "-o", &list]).arg(t.at("merged"))).unwrap();
    drop(open);
    let at = |name: &str| t.at("merged").join(name);
    assert_eq!(["f", "g", "h"].map(|x| text(at(x))), ["1", "2", "3"]);
    put(at("new"), "x");
    append(at("h"), "+");
    assert_eq!((text(layers[4].join("new")), text(layers[4].join("h"))), ("x".into(), "3+".into()));
    unmount(t.at("merged"), UnmountFlags::empty()).unwrap();
    let list = "lowerdir+=/proc/self/fd/987";
    let refused = said(t.backend.program().args(["mount", "-o", list]).arg(t.at("merged")));
    assert!(refused.unwrap_err().contains("/proc/self/fd/987"));
}}

both! { without_an_upper_the_mount_is_read_only, |t| {
    let (one, two) =
        (t.layer("one", &["f=1", "d"]), t.layer("two", &["f=2", "g=2", "d", "d/in=x"]));
    let fs = t.mount_stack(Stack { lowers: vec![one, two], upper: None, ..t.stack() });
    assert_eq!(names(fs.at("")), ["d", "f", "g"]);
    assert_eq!((text(fs.at("f")), text(fs.at("d/in"))), ("1".into(), "x".into()));
    let read_only = Errno::ROFS;
    assert_eq!(errno(fs::write(fs.at("f"), "x")), read_only);
    assert_eq!(errno(fs::write(fs.at("new"), "x")), read_only);
    assert_eq!(errno(fs::create_dir(fs.at("new"))), read_only);
    assert_eq!(errno(fs::remove_file(fs.at("f"))), read_only);
    assert_eq!(errno(fs::rename(fs.at("f"), fs.at("h"))), read_only);
    assert_eq!(errno(fs::hard_link(fs.at("f"), fs.at("h"))), read_only);
    assert_eq!(set_xattr(fs.at("f"), "user.a", b"x"), Err(read_only));
}}

both! { one_lower_alone_is_shown_read_only, Both("it wants two layers"), |t| {
    let fs =
        t.mount_stack(Stack { lowers: vec![t.layer("one", &["f=1"])], upper: None, ..t.stack() });
    assert_eq!(text(fs.at("f")), "1");
    assert_eq!(errno(fs::write(fs.at("f"), "x")), Errno::ROFS);
}}

both! { an_empty_placeholder_layer_is_accepted, |t| {
    let fs = t.mount_lowers(&[&t.layer("empty", &[]), &t.layer("one", &["f=1"])]);
    assert_eq!(names(fs.at("")), ["f"]);
}}

both! { data_only_layers_give_data_and_no_names, |t| {
    let data = t.layer("data", &["objects", "objects/1234=the data", "visible=no"]);
    let low = t.layer("low", &["f=", "d"]);
    File::options().write(true).open(low.join("f")).unwrap().set_len(8).unwrap();
    set_xattr(low.join("f"), &t.attribute("metacopy"), b"").unwrap();
    set_xattr(low.join("f"), &t.attribute("redirect"), b"/objects/1234").unwrap();
    let options = if t.is_root() { "metacopy=on" } else { "" }.to_owned();
    let stack = Stack { lowers: vec![low], data: vec![data.clone()], options, ..t.stack() };
    let mut fs = t.mount_stack(stack);
    assert_eq!(names(fs.at("")), ["d", "f"]);
    assert_eq!(text(fs.at("f")), "the data");
    assert!(!exists(fs.at("objects")));
    append(fs.at("f"), "!");
    fs.remount();
    assert_eq!(text(fs.at("f")), "the data!");
    assert_eq!(text(data.join("objects/1234")), "the data");
}}

/// Uses a mount whose mountpoint hides one of its layers.
fn mount_over(t: &Test, point: PathBuf, upper_hidden: bool) {
    let mut fs = t.mount_stack(Stack { point, ..t.stack() });
    assert_eq!(text(fs.at("f")), "old");
    append(fs.at("f"), "new");
    put(fs.at("d/made"), "made");
    fs::remove_file(fs.at("gone")).unwrap();
    fs::rename(fs.at("d/g"), fs.at("g")).unwrap();
    fs::remove_dir_all(fs.at("d")).unwrap();
    fs::create_dir(fs.at("d")).unwrap();
    assert_eq!(names(fs.at("")), ["d", "f", "g"]);
    assert_eq!(text(fs.at("f")), "oldnew");
    fs.unmount();
    assert_eq!(text(t.upper("f")), "oldnew");
    assert_eq!(text(t.lower("f")), "old");
    assert_eq!(upper_hidden, fs.at("g").exists());
}

both! { a_mount_over_its_own_lower_works, |t| {
    plant(&t.at("lower"), &["f=old", "d", "d/g=x", "gone=x"]);
    mount_over(t, t.at("lower"), false);
}}

both! { a_mount_over_its_own_upper_works, |t| {
    plant(&t.at("lower"), &["f=old", "d", "d/g=x", "gone=x"]);
    mount_over(t, t.at("upper"), true);
}}

both! { a_mount_over_the_directory_that_holds_all_layers_works, |t| {
    let home = t.layer("home", &["lower", "upper", "work", "lower/f=old"]);
    let stack = Stack {
        lowers: vec![home.join("lower")],
        upper: Some((home.join("upper"), home.join("work"))),
        point: home.clone(),
        ..t.stack()
    };
    let mut fs = t.mount_stack(stack);
    assert_eq!(names(&home), ["f"]);
    append(home.join("f"), "new");
    fs.unmount();
    assert_eq!(text(home.join("upper/f")), "oldnew");
}}

both! { an_upper_or_workdir_in_use_is_refused_with_its_holder, OnlyPlyfs, |t| {
    let fs = t.mount(&["f=x"]);
    let point = t.layer("second", &[]);
    let spare = |name: &str| t.layer(name, &[]);
    for upper in
        [(t.at("upper"), spare("w")), (spare("u"), t.at("work")), (t.at("upper"), t.at("work"))]
    {
        let refused =
            t.try_mount(Stack { point: point.clone(), upper: Some(upper.clone()), ..t.stack() });
        let said = refused.err().unwrap_or_else(|| panic!("{upper:?} was accepted twice"));
        let holder = [fs.stack.point.to_str().unwrap(), "(plyfs)"];
        assert!(holder.iter().any(|x| said.contains(x)), "{said}");
        assert!(said.lines().count() <= 2, "{said}");
    }
    put(fs.at("f"), "still works");
    drop(fs);
    let fs = t.mount_stack(Stack { point, ..t.stack() });
    assert_eq!(text(fs.at("f")), "still works");
}}

both! { a_lower_that_is_written_to_is_refused, |t| {
    t.needs(t.backend != Backend::FuseOverlayfs, "a peer that looks");
    put(t.upper("f"), "the only one");
    let inside = [t.at("upper"), t.layer("upper/sub", &[]), t.at("work"), t.layer("work/sub", &[])];
    let link = t.at("link");
    symlink(t.at("upper"), &link).unwrap();
    for lower in inside.into_iter().chain([link]) {
        let refused = t.try_mount(Stack { lowers: vec![lower.clone()], ..t.stack() });
        let said = refused.err().unwrap_or_else(|| panic!("{lower:?} was accepted"));
        assert!(t.backend != Backend::Plyfs || said.contains(lower.to_str().unwrap()), "{said}");
    }
    assert!(exists(t.at("work/sub")));
    assert_eq!(text(t.upper("f")), "the only one");
}}

both! { an_upper_inside_a_lower_is_accepted, |t| {
    let home = t.layer("home", &["u", "w", "f=x"]);
    let upper = Some((home.join("u"), home.join("w")));
    let fs = t.mount_stack(Stack { lowers: vec![home.clone()], upper, ..t.stack() });
    put(fs.at("new"), "new");
    assert_eq!(text(home.join("u/new")), "new");
}}

both! { two_mounts_share_their_lowers, |t| {
    let one = t.mount(&["f=old"]);
    let upper = Some((t.layer("u", &[]), t.layer("w", &[])));
    let two = t.mount_stack(Stack { upper, point: t.layer("second", &[]), ..t.stack() });
    append(one.at("f"), "one");
    append(two.at("f"), "two");
    assert_eq!((text(one.at("f")), text(two.at("f"))), ("oldone".into(), "oldtwo".into()));
}}

both! { layers_that_cannot_be_are_refused_by_name, OnlyPlyfs, |t| {
    let none = t.at("none");
    put(t.at("file"), "x");
    let refused = |stack: Stack| t.try_mount(stack).err().expect("a refusal");
    for bad in [none, t.at("file")] {
        let said = refused(Stack { lowers: vec![bad.clone()], ..t.stack() });
        assert!(said.contains(bad.to_str().unwrap()), "{said}");
        let said = refused(Stack { upper: Some((bad.clone(), t.at("work"))), ..t.stack() });
        assert!(said.contains(bad.to_str().unwrap()), "{said}");
        let said = refused(Stack { upper: Some((t.at("upper"), bad.clone())), ..t.stack() });
        assert!(said.contains(bad.to_str().unwrap()), "{said}");
        let said = refused(Stack { point: bad.clone(), ..t.stack() });
        assert!(said.contains(bad.to_str().unwrap()), "{said}");
    }
}}

both! { an_upper_and_a_workdir_on_two_filesystems_are_refused, |t| {
    let work = t.layer("tmpfs", &[]);
    rustix::mount::mount("t", &work, "tmpfs", rustix::mount::MountFlags::empty(), None).unwrap();
    let refused = t.try_mount(Stack { upper: Some((t.at("upper"), work)), ..t.stack() });
    assert!(refused.is_err());
}}

both! { timeout_0_shows_layers_as_they_change, NoDaemon, |t| {
    let fs = t.mount_with("timeout=0", &["f=old", "d", "d/gone=x"]);
    assert_eq!((text(fs.at("f")), names(fs.at("d"))), ("old".into(), vec!["gone".to_owned()]));
    assert!(!exists(fs.at("new")));
    put(t.lower("new"), "new");
    put(t.lower("d/new"), "new");
    put(t.lower("f"), "changed a lot");
    fs::remove_file(t.lower("d/gone")).unwrap();
    assert_eq!((text(fs.at("new")), text(fs.at("d/new"))), ("new".into(), "new".into()));
    assert_eq!((text(fs.at("f")), stat(fs.at("f")).len()), ("changed a lot".into(), 13));
    wait_until("the listing", || names(fs.at("d")) == ["new"]);
    assert!(!exists(fs.at("d/gone")));
    put(t.upper("up"), "up");
    assert_eq!(text(fs.at("up")), "up");
}}

both! { a_small_limit_of_open_files_does_not_hurt, |t| {
    crate::semantics_kit::sys::limit_open_files(1024, 1024).unwrap();
    for dir in 0..100 {
        fs::create_dir(t.lower(format!("d{dir}"))).unwrap();
        for file in 0..200 {
            File::create(t.lower(format!("d{dir}/f{file}"))).unwrap();
        }
    }
    let mut fs = t.mount(&[]);
    for dir in 0..100 {
        assert_eq!(names(fs.at(format!("d{dir}"))).len(), 200);
        for file in 0..200 {
            assert_eq!(stat(fs.at(format!("d{dir}/f{file}"))).len(), 0);
        }
    }
    let mut open: Vec<_> = (0..900)
        .map(|x| {
            File::options()
                .read(true)
                .write(true)
                .open(fs.at(format!("d{}/f{}", x / 200 * 20, x % 200)))
                .unwrap()
        })
        .collect();
    for (number, file) in open.iter_mut().enumerate() {
        std::io::Write::write_all(file, number.to_string().as_bytes()).unwrap();
    }
    for dir in 0..50 {
        put(fs.at(format!("d{dir}/new")), "x");
        fs::remove_file(fs.at(format!("d{dir}/f199"))).unwrap();
    }
    drop(open);
    fs.remount();
    assert_eq!(text(fs.at("d20/f5")), "205");
    assert_eq!(names(fs.at("d40")).len(), 200);
}}

both! { a_program_without_a_home_or_a_clock_can_mount, OnlyPlyfs, |t| {
    // No environment at all, and a descriptor that the caller forgot.
    let _forgotten = rustix::fs::memfd_create("forgotten", MemfdFlags::empty()).unwrap();
    let mut command: Command = t.backend.command(&t.stack());
    command.env_clear();
    crate::semantics_kit::backend::said(&mut command).unwrap();
    put(t.at("merged/f"), "x");
    rustix::mount::unmount(t.at("merged"), rustix::mount::UnmountFlags::empty()).unwrap();
    assert_eq!(text(t.upper("f")), "x");
}}

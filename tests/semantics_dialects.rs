//! What others wrote into a layer is understood: whiteouts and opaque marks of every dialect,
//! redirects, metadata-only files, whole uppers of the kernel and of fuse-overlayfs.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::RenameFlags;
use rustix::io::Errno;

use crate::semantics_kit::{
    Backend, Stack, Test, append, backend, both, chmod, errno, exists, facts, mode, mv, names, put,
    rename, set_xattr, stat, text, whiteout,
};

const LOW: [&str; 6] = ["d", "d/f=old", "d/g=old", "d/sub", "d/sub/h=deep", "x=old"];

/// Two layers: `top`, and `low` with [`LOW`].
fn layers(t: &Test, top: &[&str]) -> (PathBuf, PathBuf) {
    (t.layer("top", top), t.layer("low", &LOW))
}

both! { device_whiteouts_of_a_lower_hide_what_is_beneath, |t| {
    let (top, low) = layers(t, &["d", "d/f=!", "d/sub=!", "x=!"]);
    let mut fs = t.mount_lowers(&[&top, &low]);
    assert_eq!(names(fs.at("")), ["d"]);
    assert_eq!(names(fs.at("d")), ["g"]);
    assert_eq!(errno(fs::metadata(fs.at("x"))), Errno::NOENT);
    fs::create_dir(fs.at("d/sub")).unwrap();
    put(fs.at("x"), "new");
    t.same_after_remount(&mut fs);
    assert_eq!(names(fs.at("d/sub")).len(), 0);
}}

both! { dot_whiteouts_of_a_lower_hide_what_is_beneath, Both("it knows no dot whiteouts"), |t| {
    let (top, low) = layers(t, &["d", "d/.wh.f=", "d/.wh.sub=", ".wh.x="]);
    let mut fs = t.mount_lowers(&[&top, &low]);
    for _ in 0..2 {
        assert_eq!(names(fs.at("")), ["d"]);
        assert_eq!(names(fs.at("d")), ["g"]);
        assert_eq!(errno(fs::metadata(fs.at("x"))), Errno::NOENT);
        fs.remount();
    }
    fs::create_dir(fs.at("d/sub")).unwrap();
    fs.remount();
    assert_eq!(names(fs.at("d/sub")).len(), 0);
}}

both! { attribute_whiteouts_of_a_lower_hide_what_is_beneath, |t| {
    let (top, low) = layers(t, &["d", "d/f=", "d/top=", "x="]);
    set_xattr(&top, &t.attribute("opaque"), b"x").unwrap();
    set_xattr(top.join("d"), &t.attribute("opaque"), b"x").unwrap();
    set_xattr(top.join("d/f"), &t.attribute("whiteout"), b"y").unwrap();
    set_xattr(top.join("x"), &t.attribute("whiteout"), b"").unwrap();
    let fs = t.mount_lowers(&[&top, &low]);
    assert!(!exists(fs.at("d/f")));
    assert!(!exists(fs.at("x")));
    assert_eq!(names(fs.at("d")), ["g", "sub", "top"]);
    assert_eq!(names(fs.at("")), ["d"]);
    put(fs.at("d/f"), "new");
    assert_eq!(text(fs.at("d/f")), "new");
}}

/// Mounts with an opaque mark of one dialect on `d` of the upper lower.
fn opaque(t: &Test, mark: impl Fn(&Path)) {
    let (top, low) = layers(t, &["d", "d/top=top"]);
    mark(&top.join("d"));
    let mut fs = t.mount_lowers(&[&top, &low]);
    assert_eq!(names(fs.at("d")), ["top"]);
    assert!(!exists(fs.at("d/f")));
    fs::create_dir(fs.at("d/sub")).unwrap();
    assert_eq!(names(fs.at("d/sub")).len(), 0);
    // The copy of the directory lies over what the mark is in.
    fs.remount();
    assert_eq!(names(fs.at("d")), ["sub", "top"]);
    assert_eq!(text(fs.at("d/top")), "top");
}

both! { a_native_opaque_mark_of_a_lower_hides_what_is_beneath, |t| {
    opaque(t, |dir| set_xattr(dir, &t.attribute("opaque"), b"y").unwrap());
}}

both! { an_opaque_mark_of_the_user_namespace_is_read, AsRoot("trusted marks only"), |t| {
    opaque(t, |dir| set_xattr(dir, "user.overlay.opaque", b"y").unwrap());
}}

both! { an_opaque_mark_of_fuse_overlayfs_is_read, Both("its own marks only"), |t| {
    opaque(t, |dir| set_xattr(dir, "user.fuseoverlayfs.opaque", b"y").unwrap());
}}

both! { an_opaque_file_of_a_lower_is_read, Both("attributes only"), |t| {
    opaque(t, |dir| put(dir.join(".wh..wh..opq"), ""));
}}

both! { an_opaque_device_of_a_lower_is_read, Both("attributes only"), |t| {
    opaque(t, |dir| crate::semantics_kit::whiteout(&dir.join(".wh..opq")));
}}

both! { an_opaque_device_stays_when_a_name_like_it_comes_and_goes, OnlyPlyfs, |t| {
    crate::semantics_kit::plant(&t.at("upper"), &["d", "d/own=own", "d/.wh..opq=!"]);
    let mut fs = t.mount(&LOW);
    assert_eq!(names(fs.at("d")), ["own"]);
    put(fs.at("d/.opq"), "a user's");
    for _ in 0..2 {
        assert_eq!(names(fs.at("d")), [".opq", "own"]);
        assert_eq!(text(fs.at("d/.opq")), "a user's");
        fs.remount();
    }
    fs::remove_file(fs.at("d/.opq")).unwrap();
    fs.remount();
    assert_eq!(names(fs.at("d")), ["own"]);
    fs::remove_file(fs.at("d/own")).unwrap();
    fs::remove_dir(fs.at("d")).unwrap();
    fs::create_dir(fs.at("d")).unwrap();
    assert_eq!(names(fs.at("d")).len(), 0);
}}

both! { an_upper_with_device_whiteouts_written_by_fuse_overlayfs_is_read, Both("marks of its own"), |t| {
    crate::semantics_kit::plant(&t.at("lower"), &LOW);
    let mut command = Backend::FuseOverlayfs.command(&t.stack());
    t.needs(
        Command::new(command.get_program()).arg("--version").output().is_ok(),
        "fuse-overlayfs",
    );
    backend::said(&mut command).unwrap();
    fs::remove_dir_all(t.at("merged/d")).unwrap();
    fs::create_dir(t.at("merged/d")).unwrap();
    put(t.at("merged/d/own"), "own");
    rustix::mount::unmount(t.at("merged"), rustix::mount::UnmountFlags::empty()).unwrap();
    let mut fs = t.mount_stack(t.stack());
    for _ in 0..2 {
        assert_eq!(names(fs.at("d")), ["own"]);
        fs.remount();
    }
}}

both! { an_opaque_mark_between_two_layers_cuts_there, |t| {
    let top = t.layer("top", &["d", "d/1=1"]);
    let middle = t.layer("middle", &["d", "d/2=2"]);
    let low = t.layer("low", &LOW);
    set_xattr(middle.join("d"), &t.attribute("opaque"), b"y").unwrap();
    let fs = t.mount_lowers(&[&top, &middle, &low]);
    assert_eq!(names(fs.at("d")), ["1", "2"]);
}}

both! { redirects_of_a_lower_are_followed, Rootless("userxattr follows no redirects"), |t| {
    let (top, low) = layers(t, &["abs", "abs/new=new", "sub", "d", "d/rel"]);
    set_xattr(top.join("abs"), &t.attribute("redirect"), b"/d").unwrap();
    set_xattr(top.join("d/rel"), &t.attribute("redirect"), b"sub").unwrap();
    let mut fs = t.mount_lowers(&[&top, &low]);
    for _ in 0..2 {
        assert_eq!(names(fs.at("abs")), ["f", "g", "new", "sub"]);
        assert_eq!(text(fs.at("abs/sub/h")), "deep");
        assert_eq!(text(fs.at("d/rel/h")), "deep");
        fs.remount();
    }
    append(fs.at("abs/f"), "new");
    assert_eq!(text(fs.at("abs/f")), "oldnew");
    assert_eq!(text(low.join("d/f")), "old");
}}

both! { a_redirect_never_leaves_the_layer, |t| {
    t.layer("secret", &["f=secret"]);
    let (top, low) = layers(t, &["a", "b", "c"]);
    for (name, to) in [("a", "/../secret"), ("b", "../secret"), ("c", "..")] {
        set_xattr(top.join(name), &t.attribute("redirect"), to.as_bytes()).unwrap();
    }
    let Ok(fs) = t.try_mount(Stack { lowers: vec![top, low], ..t.stack() }) else { return };
    for name in ["a", "b", "c"] {
        let names = fs::read_dir(fs.at(name)).map(|x| x.count()).unwrap_or_default();
        assert_eq!(names, 0, "{name}");
        assert!(!exists(fs.at(name).join("f")), "{name}");
    }
}}

/// `top/f` says mode 600 and 8 bytes, `low/f` has them.
fn metadata_only(t: &Test) -> (PathBuf, PathBuf) {
    let top = t.layer("top", &["f=", "moved="]);
    let low = t.layer("low", &["f=the data", "was=moved data"]);
    for (name, size) in [("f", 8), ("moved", 10)] {
        File::options().write(true).open(top.join(name)).unwrap().set_len(size).unwrap();
        set_xattr(top.join(name), &t.attribute("metacopy"), b"").unwrap();
        chmod(top.join(name), 0o600);
    }
    set_xattr(top.join("moved"), &t.attribute("redirect"), b"/was").unwrap();
    (top, low)
}

both! { metadata_only_files_of_a_lower_have_their_data,
    Rootless("userxattr reads no metacopy"), |t| {
    let (top, low) = metadata_only(t);
    let options = "metacopy=on".to_owned();
    let mut fs = t.mount_stack(Stack { lowers: vec![top, low], options, ..t.stack() });
    for _ in 0..2 {
        assert_eq!(
            (text(fs.at("f")), text(fs.at("moved"))),
            ("the data".into(), "moved data".into())
        );
        assert_eq!((mode(fs.at("f")), mode(fs.at("moved"))), (0o600, 0o600));
        fs.remount();
    }
    append(fs.at("moved"), "!");
    assert_eq!(text(fs.at("moved")), "moved data!");
    fs.remount();
    assert_eq!((text(fs.at("moved")), mode(fs.at("moved"))), ("moved data!".into(), 0o600));
}}

both! { metadata_only_files_are_read_without_being_asked_for,
    Both("metacopy=off, the default, refuses them"), |t| {
    let (top, low) = metadata_only(t);
    let fs = t.mount_lowers(&[&top, &low]);
    assert_eq!((text(fs.at("f")), text(fs.at("moved"))), ("the data".into(), "moved data".into()));
}}

both! { a_metadata_only_file_that_a_crash_left_partly_filled_shows_no_zeros,
    Both("metacopy=off, the default, refuses them"), |t| {
    let (top, low) = metadata_only(t);
    let file = File::options().write(true).open(top.join("f")).unwrap();
    rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, 8192).unwrap();
    file.set_len(8192).unwrap();
    let data: String = "0123456789abcdef".repeat(512);
    put(low.join("f"), &data);
    set_xattr(&top, &t.attribute("impure"), b"y").unwrap();
    let fs = t.mount_lowers(&[&top, &low]);
    assert_eq!(text(fs.at("f")), data);
    append(fs.at("f"), "!");
    assert_eq!(text(fs.at("f")), data + "!");
}}

both! { a_metadata_only_file_without_data_is_an_error_and_never_zeros, |t| {
    let top = t.layer("top", &["f="]);
    File::options().write(true).open(top.join("f")).unwrap().set_len(8).unwrap();
    set_xattr(top.join("f"), &t.attribute("metacopy"), b"").unwrap();
    let fs = t.mount_lowers(&[&top, &t.layer("low", &[])]);
    assert!(fs::read(fs.at("f")).is_err());
    let written = File::options().append(true).open(fs.at("f"));
    assert!(written.and_then(|mut x| std::io::Write::write_all(&mut x, b"x")).is_err());
}}

both! { a_file_without_data_takes_no_other_from_the_listing, |t| {
    let low = t.layer("low", &["d"]);
    for n in 0..30 {
        put(low.join(format!("d/good{n:02}")), "x");
    }
    for name in ["a", "good15-bad", "z"] {
        File::create(low.join("d").join(name)).unwrap().set_len(5000).unwrap();
        set_xattr(low.join("d").join(name), &t.attribute("metacopy"), b"").unwrap();
    }
    let options = if t.is_root() { "metacopy=on" } else { "" }.to_owned();
    let fs = t.mount_stack(Stack { lowers: vec![low], options, ..t.stack() });
    for _ in 0..2 {
        assert_eq!(names(fs.at("d")).len(), 33);
        for n in 0..30 {
            assert_eq!(text(fs.at(format!("d/good{n:02}"))), "x");
        }
    }
    if t.backend == Backend::Plyfs {
        assert_eq!(stat(fs.at("d/a")).len(), 5000);
        assert_eq!(errno(fs::read(fs.at("d/a"))), Errno::IO);
        fs::rename(fs.at("d/z"), fs.at("d/b")).unwrap_err();
        fs::remove_dir_all(fs.at("d")).unwrap();
    }
}}

both! { whiteouts_inside_an_opaque_directory_are_tolerated, |t| {
    let (top, low) = layers(t, &["d", "d/f=!", "d/own=1"]);
    set_xattr(top.join("d"), &t.attribute("opaque"), b"y").unwrap();
    let fs = t.mount_lowers(&[&top, &low]);
    assert!(!exists(fs.at("d/f")));
    assert_eq!(text(fs.at("d/own")), "1");
    put(fs.at("d/f"), "new");
    assert_eq!(text(fs.at("d/f")), "new");
}}

both! { a_whiteout_in_the_lowest_layer_hides_nothing_and_is_not_shown,
    Both("it lists one in a directory that only that layer has"), |t| {
    let (top, low) = layers(t, &["y=new"]);
    whiteout(&low.join("w"));
    whiteout(&low.join("d/w"));
    let fs = t.mount_lowers(&[&top, &low]);
    assert_eq!(names(fs.at("")), ["d", "x", "y"]);
    assert_eq!(names(fs.at("d")), ["f", "g", "sub"]);
    put(fs.at("d/w"), "new");
    fs::create_dir(fs.at("w")).unwrap();
    assert_eq!(names(fs.at("")), ["d", "w", "x", "y"]);
}}

/// Changes of every sort.
fn change(root: &Path, rename_dirs: bool) {
    let at = |name: &str| root.join(name);
    append(at("d/f"), "new");
    fs::remove_file(at("d/g")).unwrap();
    put(at("new"), "new");
    fs::remove_file(at("x")).unwrap();
    fs::create_dir(at("x")).unwrap();
    put(at("x/in"), "in");
    fs::hard_link(at("new"), at("x/hard")).unwrap();
    std::os::unix::fs::symlink("d/f", at("link")).unwrap();
    if rename_dirs {
        mv(at("d"), at("moved"));
        mv(at("moved/sub"), at("moved/renamed"));
        rename(at("new"), at("moved/f"), RenameFlags::EXCHANGE).unwrap();
    } else {
        fs::remove_dir_all(at("d/sub")).unwrap();
        fs::create_dir(at("d/sub")).unwrap();
    }
}

both! { an_upper_written_by_the_kernel_is_read, |t| {
    crate::semantics_kit::plant(&t.at("lower"), &LOW);
    let mut kernel = t.kernel_mount(t.stack());
    change(&kernel.at(""), t.is_root());
    kernel.remount();
    let before = facts(&kernel.at(""));
    drop(kernel);
    let fs = t.mount_stack(t.stack());
    assert_eq!(facts(&fs.at("")), before);
}}

both! { an_upper_written_here_is_written_on_by_the_kernel_and_read_again, |t| {
    let mut fs = t.mount(&LOW);
    change(&fs.at(""), t.is_root());
    let before = facts(&fs.at(""));
    fs.unmount();
    let kernel = t.kernel_mount(t.stack());
    assert_eq!(facts(&kernel.at("")), before, "as the kernel reads it");
    put(kernel.at("kernel"), "kernel");
    append(kernel.at("x/in"), "kernel");
    fs::remove_file(kernel.at("link")).unwrap();
    let before = facts(&kernel.at(""));
    drop(kernel);
    fs.remount_again();
    assert_eq!(facts(&fs.at("")), before, "after the kernel");
}}

both! { an_upper_written_by_fuse_overlayfs_is_read,
    Both("it has dot whiteouts and marks of its own"), |t| {
    crate::semantics_kit::plant(&t.at("lower"), &LOW);
    let mut command = Backend::FuseOverlayfs.command(&t.stack());
    t.needs(
        Command::new(command.get_program()).arg("--version").output().is_ok(),
        "fuse-overlayfs",
    );
    command.env("FUSE_OVERLAYFS_DISABLE_OVL_WHITEOUT", "1");
    backend::said(&mut command).unwrap();
    change(&t.at("merged"), false);
    rustix::mount::unmount(t.at("merged"), rustix::mount::UnmountFlags::empty()).unwrap();
    let mut fs = t.mount_stack(t.stack());
    for _ in 0..2 {
        assert_eq!(names(fs.at("")), ["d", "link", "new", "x"]);
        assert_eq!(names(fs.at("d")), ["f", "sub"]);
        assert_eq!(names(fs.at("d/sub")).len(), 0);
        assert_eq!(names(fs.at("x")), ["hard", "in"]);
        assert_eq!(
            ["d/f", "link", "new", "x/hard", "x/in"].map(|x| text(fs.at(x))),
            ["oldnew", "oldnew", "new", "new", "in"]
        );
        assert!(!exists(fs.at("d/g")));
        fs.remount();
    }
    append(fs.at("x/hard"), "!");
    assert_eq!(text(fs.at("new")), "new!");
}}

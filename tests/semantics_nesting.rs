//! Overlays on overlays.

use std::fs;

use crate::semantics_kit::{
    Fs, Stack, Test, append, both, exists, facts, names, put, set_xattr, text, xattr,
};

/// Changes of every sort in an overlay over [`lower`].
fn work(fs: &Fs) {
    append(fs.at("d/f"), "new");
    fs::remove_file(fs.at("x")).unwrap();
    fs::remove_dir_all(fs.at("d/sub")).unwrap();
    fs::create_dir(fs.at("d/sub")).unwrap();
    put(fs.at("d/sub/only"), "only");
    put(fs.at("new"), "new");
    fs::hard_link(fs.at("new"), fs.at("d/hard")).unwrap();
    fs::rename(fs.at("y"), fs.at("d/z")).unwrap();
}

fn check(fs: &Fs) {
    assert_eq!(names(fs.at("")), ["d", "new"]);
    assert_eq!(names(fs.at("d")), ["f", "hard", "sub", "z"]);
    assert_eq!(names(fs.at("d/sub")), ["only"]);
    assert_eq!(text(fs.at("d/f")), "oldnew");
    assert_eq!(text(fs.at("d/z")), "y");
    assert!(!exists(fs.at("x")));
}

const LOWER: [&str; 6] = ["d", "d/f=old", "d/sub", "d/sub/gone=x", "x=x", "y=y"];

/// A stack over the root of another mount.
fn over(t: &Test, fs: &Fs) -> Stack {
    let upper = Some((t.layer("upper2", &[]), t.layer("work2", &[])));
    Stack { lowers: vec![fs.at("")], upper, point: t.layer("merged2", &[]), ..t.stack() }
}

both! { the_kernels_overlay_mounts_on_top, |t| {
    let inner = t.mount(&LOWER);
    put(inner.at("up"), "x");
    fs::remove_file(inner.at("up")).unwrap();
    let mut outer = t.kernel_mount(over(t, &inner));
    work(&outer);
    check(&outer);
    outer.remount();
    check(&outer);
    assert_eq!(text(inner.at("x")), "x");
    assert_eq!(text(inner.at("d/f")), "old");
}}

both! { an_overlay_mounts_on_top_of_itself, |t| {
    let inner = t.mount(&LOWER);
    append(inner.at("y"), "");
    let mut outer = t.mount_stack(over(t, &inner));
    work(&outer);
    check(&outer);
    outer.remount();
    check(&outer);
    assert_eq!(text(inner.at("x")), "x");
}}

both! { deletions_of_the_inner_overlay_show_in_the_outer, |t| {
    let inner = t.mount(&LOWER);
    fs::remove_file(inner.at("x")).unwrap();
    fs::remove_dir_all(inner.at("d/sub")).unwrap();
    fs::create_dir(inner.at("d/sub")).unwrap();
    let outer = t.mount_stack(over(t, &inner));
    assert_eq!(names(outer.at("")), ["d", "y"]);
    assert_eq!(names(outer.at("d/sub")).len(), 0);
    assert_eq!(facts(&outer.at("")), facts(&inner.at("")));
}}

both! { an_upper_inside_another_overlay_works, Both("its upper may not be an overlay"), |t| {
    let mut inner =
        t.mount(&["l", "l/d", "l/d/f=old", "l/d/sub", "l/d/sub/gone=x", "l/x=x", "l/y=y"]);
    for name in ["u", "w"] {
        fs::create_dir(inner.at(name)).unwrap();
    }
    let stack = Stack {
        lowers: vec![inner.at("l")],
        upper: Some((inner.at("u"), inner.at("w"))),
        point: t.layer("merged2", &[]),
        ..t.stack()
    };
    let mut outer = t.mount_stack(stack);
    work(&outer);
    check(&outer);
    outer.remount();
    check(&outer);
    outer.unmount();
    inner.unmount_patiently();
    inner.remount_again();
    outer.remount_again();
    check(&outer);
    // The upper is a layer like any other to who mounts it read-only, and empties may stay empties.
    put(outer.at("d/empty"), "");
    outer.unmount();
    let lowers = vec![inner.at("u"), inner.at("l")];
    outer.stack = Stack { lowers, upper: None, ..outer.stack.clone() };
    outer.remount_again();
    assert_eq!(names(outer.at("d")), ["empty", "f", "hard", "sub", "z"]);
    assert!(!exists(outer.at("x")) && !exists(outer.at("y")));
}}

both! { attributes_of_two_overlays_do_not_meet, |t| {
    let inner = t.mount(&LOWER);
    let opaque = t.attribute("opaque");
    let outer = t.mount_stack(over(t, &inner));
    set_xattr(outer.at("d"), &opaque, b"y").unwrap();
    assert_eq!(xattr(outer.at("d"), &opaque).unwrap(), b"y");
    assert_eq!(names(outer.at("d")), ["f", "sub"]);
    assert!(xattr(inner.at("d"), &opaque).is_err());
}}

both! { a_layer_written_for_an_outer_overlay_passes_through_an_inner_one, |t| {
    // An opaque mark and a redirect that were made through the inner mount act in the outer one.
    let inner = t.mount(&["top", "top/d", "top/d/new=new", "low", "low/d", "low/d/old=old"]);
    set_xattr(inner.at("top/d"), &t.attribute("opaque"), b"y").unwrap();
    let lowers = vec![inner.at("top"), inner.at("low")];
    let outer = t.mount_stack(Stack { lowers, ..over(t, &inner) });
    assert_eq!(names(outer.at("d")), ["new"]);
    assert_eq!(names(inner.at("top/d")), ["new"]);
}}

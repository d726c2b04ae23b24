//! Labels and digests: `security.*` attributes, SELinux mount options, fs-verity.

use std::fs;

use crate::semantics_kit::{Backend, Stack, append, both, chmod, put, set_xattr, text, xattr};

const LABEL: &[u8] = b"system_u:object_r:container_file_t:s0:c1,c2\0";

both! { a_file_label_is_stored_and_kept_over_copy_up, |t| {
    let mut fs = t.mount(&["low=x", "d", "l->low"]);
    put(fs.at("up"), "x");
    put(t.at("local"), "x");
    if let Err(refused) = set_xattr(t.at("local"), "security.selinux", LABEL) {
        // Labels belong to the host, most kernels say: root of a user namespace may not set them.
        for name in ["low", "up", "d"] {
            let set = set_xattr(fs.at(name), "security.selinux", LABEL);
            assert_eq!(set, Err(refused), "{name}");
        }
        assert_eq!(text(fs.at("low")), "x");
        return;
    }
    set_xattr(t.lower("low"), "security.selinux", LABEL).unwrap();
    for name in ["up", "d", "l"] {
        set_xattr(fs.at(name), "security.selinux", LABEL).unwrap();
    }
    chmod(fs.at("low"), 0o600);
    for _ in 0..2 {
        for name in ["low", "up", "d", "l"] {
            assert_eq!(xattr(fs.at(name), "security.selinux").unwrap(), LABEL, "{name}");
            assert_eq!(xattr(t.upper(name), "security.selinux").unwrap(), LABEL, "{name} on disk");
        }
        fs.remount();
    }
}}

both! { selinux_mount_options_are_accepted_in_silence, OnlyPlyfs, |t| {
    for name in ["context", "fscontext", "defcontext", "rootcontext"] {
        let options = format!("{name}=\"system_u:object_r:container_file_t:s0:c1,c2\"");
        let list = crate::semantics_kit::backend::list(&Stack { options, ..t.stack() });
        let mut command = Backend::Plyfs.program();
        command.args(["mount", "-o", &list]).arg(t.at("merged"));
        let said = t.at("said-by-mount");
        let to = fs::File::create(&said).unwrap();
        let status = command.stdin(std::process::Stdio::null()).stdout(to.try_clone().unwrap());
        assert!(status.stderr(to).status().unwrap().success(), "{name}");
        assert_eq!(text(said), "", "{name}");
        rustix::mount::unmount(t.at("merged"), rustix::mount::UnmountFlags::empty()).unwrap();
    }
}}

both! { verity_is_refused_unless_off_since_no_digest_would_be_checked, OnlyPlyfs, |t| {
    for word in ["on", "require"] {
        let options = format!("verity={word}");
        let refused = t.try_mount(Stack { options, ..t.stack() }).err().expect("a refusal");
        assert!(refused.contains("verity") && refused.contains("expected off"), "{refused}");
    }
    let fs = t.mount_with("verity=off", &["f=x"]);
    append(fs.at("f"), "y");
    assert_eq!(text(fs.at("f")), "xy");
}}

both! { a_metadata_only_file_with_a_digest_is_read_where_verity_is_off, Both("metacopy=off, the default, refuses it"), |t| {
    t.needs(t.is_root(), "root: metacopies of userxattr are not believed");
    let (top, low) = (t.layer("top", &["f="]), t.layer("low", &["f=the data"]));
    fs::File::options().write(true).open(top.join("f")).unwrap().set_len(8).unwrap();
    // Version 0, 36 bytes, no flags, SHA-256, and the digest (struct ovl_metacopy).
    let mut mark = vec![0, 36, 0, 1];
    mark.extend([0x5a; 32]);
    set_xattr(top.join("f"), &t.attribute("metacopy"), &mark).unwrap();
    let fs = t.mount_stack(Stack { options: "verity=off".into(), lowers: vec![top, low], ..t.stack() });
    assert_eq!(text(fs.at("f")), "the data");
}}

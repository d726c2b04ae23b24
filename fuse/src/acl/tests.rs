//! Vectors: default ACLs set with setfacl, and what ext4 gave files made below them.

use super::{AclError, Equivalent, equivalent_mode, inherit, map_ids, with_mode};

/// Version, then `u::` and so on.
fn acl(entries: &str) -> Vec<u8> {
    let hex = format!("02000000{}", entries.replace(' ', ""));
    let digits = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
    (0..hex.len()).step_by(2).map(digits).collect()
}

const NAMED: &str =
    "01000700ffffffff 02000700e8030000 04000500ffffffff 10000700ffffffff 20000000ffffffff";
const PLAIN: &str = "01000700ffffffff 04000700ffffffff 20000500ffffffff";
const MASKED: &str = "01000700ffffffff 04000700ffffffff 10000500ffffffff 20000000ffffffff";

#[test]
fn files_inherit_what_the_kernel_gives_them() {
    for (default, asked, mode, access) in [
        (
            NAMED,
            0o100_640,
            0o100_640,
            Some(
                "01000600ffffffff 02000700e8030000 04000500ffffffff 10000400ffffffff 20000000ffffffff",
            ),
        ),
        (
            NAMED,
            0o104_666,
            0o104_660,
            Some(
                "01000600ffffffff 02000700e8030000 04000500ffffffff 10000600ffffffff 20000000ffffffff",
            ),
        ),
        (PLAIN, 0o100_666, 0o100_664, None),
        (
            MASKED,
            0o100_660,
            0o100_640,
            Some("01000600ffffffff 04000700ffffffff 10000400ffffffff 20000000ffffffff"),
        ),
    ] {
        let inherited = inherit(&acl(default), asked, false).unwrap();
        assert_eq!(inherited.mode, mode, "{asked:o} under {default}");
        assert_eq!(inherited.access, access.map(acl), "{asked:o} under {default}");
        assert_eq!(inherited.default, None);
    }
}

#[test]
fn directories_also_take_the_default_acl() {
    for (default, asked, mode, access) in [
        (NAMED, 0o777, 0o770, Some(NAMED)),
        (
            NAMED,
            0o700,
            0o700,
            Some(
                "01000700ffffffff 02000700e8030000 04000500ffffffff 10000000ffffffff 20000000ffffffff",
            ),
        ),
        (PLAIN, 0o2777, 0o2775, None),
    ] {
        let inherited = inherit(&acl(default), asked, true).unwrap();
        assert_eq!(inherited.mode, mode, "{asked:o} under {default}");
        assert_eq!(inherited.access, access.map(acl), "{asked:o} under {default}");
        assert_eq!(inherited.default, Some(acl(default)));
    }
}

#[test]
fn the_mode_shows_the_mask_for_the_group() {
    // setfacl -m u:1000:rw,g:50:r on a file of mode 644.
    let access = "01000600ffffffff 02000600e8030000 04000400ffffffff 0800040032000000 \
                  10000600ffffffff 20000400ffffffff";
    for (entries, bits, minimal) in
        [(access, 0o664, false), (MASKED, 0o750, false), (PLAIN, 0o775, true)]
    {
        assert_eq!(equivalent_mode(&acl(entries)), Ok(Equivalent { bits, minimal }), "{entries}");
    }
}

#[test]
fn what_is_not_an_acl_is_refused() {
    for (entries, why) in [
        ("", "owner, group and other must each be there once"),
        ("01000700", "cut off in an entry"),
        (
            "01000700ffffffff 01000700ffffffff 04000700ffffffff 20000500ffffffff",
            "owner, group and other must each be there once",
        ),
        (
            "01000700ffffffff 02000700e8030000 04000700ffffffff 20000500ffffffff",
            "named entries need one mask",
        ),
        ("04000700ffffffff 01000700ffffffff 20000500ffffffff", "entries out of order"),
        ("01000800ffffffff 04000700ffffffff 20000500ffffffff", "unknown permissions"),
        ("03000700ffffffff 04000700ffffffff 20000500ffffffff", "unknown tag"),
        (
            "01000700ffffffff 02000700ffffffff 04000700ffffffff 10000700ffffffff 20000500ffffffff",
            "entry without an id",
        ),
    ] {
        assert_eq!(inherit(&acl(entries), 0o666, false), Err(AclError(why)), "{entries}");
    }
    assert_eq!(equivalent_mode(&[2, 0, 0]), Err(AclError("too short")));
    assert_eq!(equivalent_mode(&[1, 0, 0, 0]), Err(AclError("unknown version")));
}

#[test]
fn ids_are_mapped_and_entries_of_one_id_become_one() {
    let two = "01000700ffffffff 02000600e8030000 02000500e9030000 04000500ffffffff \
               08000700e8030000 10000700ffffffff 20000000ffffffff";
    let moved = "01000700ffffffff 02000600ea030000 02000500eb030000 04000500ffffffff \
                 08000700e7030000 10000700ffffffff 20000000ffffffff";
    let one = "01000700ffffffff 0200040005000000 04000500ffffffff \
               0800070006000000 10000700ffffffff 20000000ffffffff";
    let add = |id: u32| id.checked_add(2);
    assert_eq!(map_ids(&acl(two), add, |id| Some(id - 1)), Ok(acl(moved)));
    assert_eq!(map_ids(&acl(two), |_| Some(5), |_| Some(6)), Ok(acl(one)));
    assert!(map_ids(&acl(two), |id| Some(id).filter(|id| *id == 1000), Some).is_err());
    assert_eq!(map_ids(&acl(PLAIN), |_| None, |_| None), Ok(acl(PLAIN)));
}

#[test]
fn a_mode_goes_to_the_mask_or_to_the_group() {
    let masked = "01000600ffffffff 04000700ffffffff 10000000ffffffff 20000400ffffffff";
    let plain = "01000600ffffffff 04000000ffffffff 20000400ffffffff";
    assert_eq!(with_mode(&acl(MASKED), 0o4604), Ok(acl(masked)));
    assert_eq!(with_mode(&acl(PLAIN), 0o4604), Ok(acl(plain)));
}

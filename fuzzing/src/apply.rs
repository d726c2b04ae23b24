//! Arbitrary bytes as an archive.

use std::path::Path;

use plyfs::layer::apply::{Applied, Limits, Whiteouts};
use plyfs::layer::{changes, compare, diff};

use super::place::{How, Place};
use super::tar;
use super::tree::Tree;

/// The first two bytes say how, the others are the archive.
pub fn run(scratch: &Path, data: &[u8]) {
    let [how, form, archive @ ..] = data else { return };
    let how = How { over: how & 1 != 0, removing: how & 2 != 0, recording: how & 4 != 0 };
    let limits = limits(form >> 4);
    let plain = if form & 4 == 0 { tar::seal(archive) } else { archive.to_vec() };
    let packed = match form & 3 {
        1 => tar::gzip(&plain),
        2 => tar::zstd(&plain),
        _ => plain.clone(),
    };
    let place = Place::new(scratch, how);
    let Some((applied, record)) = place.apply(&place.target, &packed, &limits) else { return };
    within(&place, how, &applied, &limits);
    let bytes = place.assembled(&place.target.root, &record);
    // What is packed is not known here when the input itself is.
    let known = form & 3 != 0 || applied.digest == applied.diff_id;
    assert!(!known || bytes == plain, "other bytes than went in");
    if how.removing {
        let new = compare::Tree { top: place.target.root.clone(), below: Vec::new() };
        compare::write(None, &new, &mut Vec::new()).expect("the tree is written");
    } else {
        comes_back(&place, &limits);
    }
}

/// Two sorts: many small things, and few large ones. Paths stay below what the kernel takes at once, for the sake of those
/// who look at the result.
fn limits(number: u8) -> Limits {
    let sizes = Limits { bytes: 4 << 20, ratio: 500, entries: 200, ..Limits::default() };
    match number & 3 {
        0 => Limits { depth: 12, name: 255, ..sizes },
        1 => Limits { depth: 150, name: 12, ..sizes },
        2 => Limits { depth: 3, name: 8, bytes: 700, entries: 4, ..sizes },
        _ => Limits { depth: 12, name: 255, window: 1 << 20, ratio: 20, ..sizes },
    }
}

/// Nothing is more than the limits say.
fn within(place: &Place, how: How, applied: &Applied, limits: &Limits) {
    let tree = Tree::read(&place.target.root, &|_| false);
    assert!(applied.entries <= limits.entries && applied.size <= limits.bytes, "{applied:?}");
    let mut bytes = 0;
    for (path, node) in &tree.0 {
        let names: Vec<&[u8]> = path.split(|&byte| byte == b'/').collect();
        assert!(names.len() as u64 <= limits.depth, "{}", path.escape_ascii());
        for name in names {
            let plain = name.strip_prefix(b".wh.").unwrap_or(name);
            assert!(plain.len() as u64 <= limits.name, "{}", path.escape_ascii());
            assert!(!name.starts_with(b".wh..wh.plyfs"), "left behind: {}", path.escape_ascii());
        }
        if node.kind == '-' && node.first.as_ref().is_none_or(|first| first == path) {
            bytes += node.size;
        }
    }
    // What is below may be copied.
    let below = if how.over { 100 } else { 0 };
    assert!(bytes <= limits.bytes + below, "{bytes} bytes");
}

/// The layer as an archive makes the same layer.
fn comes_back(place: &Place, limits: &Limits) {
    let (root, lowers) = (&place.target.root, &place.target.lowers);
    changes::list(root, lowers).expect("the changes are listed");
    let spec = diff::Spec { upper: root.clone(), lowers: lowers.clone(), user_marks: true };
    let mut archive = Vec::new();
    diff::write(&spec, &mut archive).expect("the layer is written");
    let again = place.again();
    let limits =
        Limits { entries: u64::MAX, bytes: u64::MAX, depth: limits.depth + 1, ..Limits::default() };
    let (_, record) =
        place.apply(&again, &archive, &limits).expect("the layer's archive is applied");
    assert!(
        place.assembled(&again.root, &record) == archive,
        "the layer's archive does not come back"
    );
    let want = comparable(Tree::read(root, &|_| false));
    let got = comparable(Tree::read(&again.root, &|_| false));
    assert!(want == got, "applied and applied again:\n{}", want.differences(&got));
    assert!(matches!(again.whiteouts, Whiteouts::Overlay { .. }));
}

/// Without what a layer's archive says nothing of: what the root has, all of whiteouts but their being there, and
/// attributes that are neither the user's nor an overlay's, like `trusted.mine`, which are set but not written.
pub fn comparable(mut tree: Tree) -> Tree {
    tree.0.remove(&b""[..]);
    for node in tree.0.values_mut().filter(|node| node.is_whiteout()) {
        (node.mode, node.owner, node.mtime, node.first) = (0, (0, 0), (0, 0), None);
        node.xattrs.clear();
    }
    let kept = ["user.", "security.capability", "system.posix_acl_", "trusted.overlay."];
    for node in tree.0.values_mut() {
        node.xattrs.retain(|key, _| kept.iter().any(|space| key.starts_with(space.as_bytes())));
    }
    tree
}

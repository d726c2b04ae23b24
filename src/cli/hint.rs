//! What to do about an error, where we know.

use std::io::ErrorKind;

use crate::error::Error;

/// One line of advice.
pub(super) fn hint(error: &Error) -> Option<&'static str> {
    match error {
        Error::NotFound { kind: "mount", .. } => {
            Some("findmnt -t fuse.plyfs lists the mounts there are")
        }
        Error::InUse { kind: "mount", .. } => {
            Some("end that process (fuser -m lists them), or detach the mount with plyfs umount -l")
        }
        Error::Unsupported { feature, .. } if feature.contains("namespace") => {
            Some("plyfs doctor shows what this host allows")
        }
        Error::Io { path, .. } if path.as_os_str() == "/dev/fuse" => {
            Some("plyfs doctor shows what this host allows; ordinary users need mode 0666 there")
        }
        Error::Io { path, source, .. }
            if path.ends_with("lock") && source.kind() == ErrorKind::ReadOnlyFilesystem =>
        {
            Some(
                "a store that cannot be written is read through another: --root ELSEWHERE --storage-opt additionalimagestore=DIR",
            )
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn advice_is_given_where_there_is_some() {
        let io = |path: &str| Error::io("open", path, std::io::Error::from_raw_os_error(13));
        let table = [
            (Error::NotFound { kind: "mount", name: "/m".into() }, Some("findmnt")),
            (Error::NotFound { kind: "command", name: "x".into() }, None),
            (Error::unsupported("user namespace", "refused"), Some("plyfs doctor")),
            (io("/dev/fuse"), Some("plyfs doctor")),
            (io("/elsewhere"), None),
            (Error::io("open", "/ro/lock", ErrorKind::ReadOnlyFilesystem.into()), Some("a store")),
        ];
        for (error, start) in table {
            let hint = hint(&error);
            let fits = match (hint, start) {
                (Some(hint), Some(start)) => hint.starts_with(start),
                (hint, start) => hint == start,
            };
            assert!(fits, "{error}: {hint:?}");
        }
    }
}

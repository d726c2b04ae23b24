//! The limits of a layer, in a file of its directory.

use std::io::ErrorKind;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::Quota;
use crate::durable;
use crate::error::{Context, Error, Result};

/// The name of the file.
const FILE: &str = "limits.json";
/// The version of its format. Another one is refused, never guessed at.
const VERSION: u32 = 1;

#[derive(Debug, Serialize, Deserialize)]
struct Limits {
    version: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    bytes: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    inodes: Option<u64>,
}

/// Reads the limits of the layer in a directory.
pub(super) fn read(dir: &Path) -> Result<Quota> {
    let path = dir.join(FILE);
    let bytes = match durable::read(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Quota::default()),
        other => other.on("read", &path)?,
    };
    let corrupt = |detail: String| Error::Corrupt { what: path.display().to_string(), detail };
    let found: Limits = serde_json::from_slice(&bytes).map_err(|e| corrupt(e.to_string()))?;
    if found.version != VERSION {
        return Err(corrupt(format!("version {}; this program knows {VERSION}", found.version)));
    }
    Ok(Quota { bytes: found.bytes, inodes: found.inodes })
}

/// Replaces them.
pub(super) fn write(dir: &Path, quota: Quota) -> Result<()> {
    let Quota { bytes, inodes } = quota;
    let path = dir.join(FILE);
    let text = serde_json::to_string(&Limits { version: VERSION, bytes, inodes });
    let text = text.map_err(|error| Error::io("write", &path, error.into()))?;
    durable::replace(&path, format!("{text}\n").as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_read_back_and_another_version_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read(dir.path()).unwrap(), Quota::default());
        for quota in [
            Quota { bytes: Some(1 << 40), inodes: None },
            Quota { bytes: None, inodes: Some(7) },
            Quota::default(),
        ] {
            write(dir.path(), quota).unwrap();
            assert_eq!(read(dir.path()).unwrap(), quota);
        }
        for text in ["{\"version\":2,\"bytes\":5}", "{}", ""] {
            std::fs::write(dir.path().join(FILE), text).unwrap();
            assert!(matches!(read(dir.path()), Err(Error::Corrupt { .. })), "{text}");
        }
        std::fs::File::create(dir.path().join(FILE)).unwrap().set_len(1 << 40).unwrap();
        assert!(read(dir.path()).unwrap_err().to_string().contains("larger than 8 MiB"));
    }
}

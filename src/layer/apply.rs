//! A tar archive becomes a directory.

/// What an archive held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// Bytes of the data of its files.
    pub size: u64,
    /// Its entries.
    pub entries: u64,
    /// `sha256:` and the digest of the uncompressed archive (the OCI DiffID), lower-case hexadecimal.
    pub diff_id: String,
    /// The same of the archive as it came.
    pub digest: String,
}

/// What an archive may ask for. Going beyond is an error that names the limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the data of all files, holes counted.
    pub bytes: u64,
    /// Uncompressed bytes for each compressed one, once more than a mebibyte came out.
    pub ratio: u64,
    /// Entries.
    pub entries: u64,
    /// Names in a path.
    pub depth: u64,
    /// Bytes of one name.
    pub name: u64,
}

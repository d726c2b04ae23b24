//! Archives out of an input's bytes.

use std::io::Write;

/// Bytes of a block.
pub const BLOCK: usize = 512;

/// The input as an archive: whole blocks, where every block that bears a magic number also has the right checksum, so
/// that the fuzzer gets behind it.
pub fn seal(bytes: &[u8]) -> Vec<u8> {
    let mut archive = bytes.to_vec();
    archive.resize(bytes.len().next_multiple_of(BLOCK), 0);
    for block in archive.chunks_exact_mut(BLOCK) {
        if block[257..262] == *b"ustar" || block[148..156] == *b"checksum" {
            sum(block);
        }
    }
    archive
}

/// Writes the checksum of a header block.
pub fn sum(block: &mut [u8]) {
    block[148..156].copy_from_slice(b"        ");
    let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
    block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    out.write_all(bytes).expect("packed");
    out.finish().expect("packed")
}

pub fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 1).expect("packed")
}

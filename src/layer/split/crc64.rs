//! CRC-64 with the ISO 3309 polynomial, as Go's hash/crc64 has it: bits reflected, all ones before and after.

use crc_fast::{CrcAlgorithm, Digest};

/// The sum so far.
#[derive(Clone, Debug)]
pub(super) struct Crc64(Digest);

impl Crc64 {
    pub(super) fn new() -> Crc64 {
        Crc64(Digest::new(CrcAlgorithm::Crc64GoIso))
    }

    pub(super) fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// As it stands in a record.
    pub(super) fn bytes(&self) -> [u8; 8] {
        self.0.finalize().to_be_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition, bit by bit.
    fn slow(bytes: &[u8]) -> u64 {
        let mut crc = u64::MAX;
        for byte in bytes {
            crc ^= u64::from(*byte);
            for _ in 0..8 {
                crc = if crc & 1 == 1 { (crc >> 1) ^ 0xd800_0000_0000_0000 } else { crc >> 1 };
            }
        }
        !crc
    }

    #[test]
    fn sums_are_those_of_go() {
        assert_eq!((slow(b"a"), slow(b"ab")), (0x3420_0000_0000_0000, 0x36c4_2000_0000_0000));
        let bytes: Vec<u8> = (0..10_000_u32).map(|n| ((n * n) >> 3) as u8).collect();
        for length in [0, 1, 2, 15, 16, 17, 127, 128, 129, 255, 256, 1023, 4096, 9999] {
            let mut crc = Crc64::new();
            crc.update(&bytes[..length / 3]);
            crc.update(&bytes[length / 3..length]);
            assert_eq!(u64::from_be_bytes(crc.bytes()), slow(&bytes[..length]), "{length}");
        }
    }
}

//! CRC-64 with the ISO 3309 polynomial, as Go's hash/crc64 has it: bits reflected, all ones before and after.
//! Sixteen bytes at a time, each looked up in a table of its own.

const POLYNOMIAL: u64 = 0xd800_0000_0000_0000;
const AT_ONCE: usize = 16;

static TABLES: [[u64; 256]; AT_ONCE] = tables();

const fn tables() -> [[u64; 256]; AT_ONCE] {
    let mut tables = [[0; 256]; AT_ONCE];
    let mut byte = 0;
    while byte < 256 {
        let (mut crc, mut bit) = (byte as u64, 0);
        while bit < 8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ POLYNOMIAL } else { crc >> 1 };
            bit += 1;
        }
        tables[0][byte] = crc;
        byte += 1;
    }
    let mut table = 1;
    while table < AT_ONCE {
        let mut byte = 0;
        while byte < 256 {
            let crc = tables[table - 1][byte];
            tables[table][byte] = crc >> 8 ^ tables[0][(crc & 0xff) as usize];
            byte += 1;
        }
        table += 1;
    }
    tables
}

/// The sum so far.
#[derive(Clone, Copy, Debug)]
pub(super) struct Crc64(u64);

impl Crc64 {
    pub(super) fn new() -> Crc64 {
        Crc64(u64::MAX)
    }

    pub(super) fn update(&mut self, bytes: &[u8]) {
        let mut crc = self.0;
        let mut pieces = bytes.chunks_exact(AT_ONCE);
        for piece in &mut pieces {
            let mut next = 0;
            let low = crc.to_le_bytes();
            for (at, byte) in piece.iter().enumerate() {
                let byte = if at < 8 { byte ^ low[at] } else { *byte };
                next ^= TABLES[AT_ONCE - 1 - at][usize::from(byte)];
            }
            crc = next;
        }
        for byte in pieces.remainder() {
            crc = TABLES[0][usize::from(crc.to_le_bytes()[0] ^ byte)] ^ crc >> 8;
        }
        self.0 = crc;
    }

    /// As it stands in a record.
    pub(super) fn bytes(self) -> [u8; 8] {
        (!self.0).to_be_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(bytes: &[u8]) -> u64 {
        let mut crc = Crc64::new();
        crc.update(bytes);
        u64::from_be_bytes(crc.bytes())
    }

    /// Known answers: hash/crc64 of Go has them for its own tests.
    #[test]
    fn sums_are_those_of_go() {
        for (text, known) in [
            ("", 0_u64),
            ("a", 0x3420_0000_0000_0000),
            ("ab", 0x36c4_2000_0000_0000),
            ("abc", 0x3776_c420_0000_0000),
            ("abcd", 0x3367_76c4_2000_0000),
        ] {
            assert_eq!(sum(text.as_bytes()), known, "{text}");
        }
    }

    #[test]
    fn pieces_sum_up_to_the_whole() {
        let bytes: Vec<u8> = (0..10_000_u32).map(|n| ((n * n) >> 3) as u8).collect();
        let mut slow = Crc64::new();
        bytes.iter().for_each(|byte| slow.update(&[*byte]));
        for cut in [0, 1, 7, 15, 16, 17, 4096, 9999] {
            let mut crc = Crc64::new();
            crc.update(&bytes[..cut]);
            crc.update(&bytes[cut..]);
            assert_eq!(crc.bytes(), slow.bytes(), "{cut}");
        }
    }
}

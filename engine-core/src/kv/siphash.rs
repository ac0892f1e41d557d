//! SipHash-2-4 with 128 bits of output over 64-bit words (Aumasson and Bernstein, "SipHash: a fast short-input
//! PRF", 2012; the 128-bit variant of their reference code). With a secret key nobody outside the process can find
//! two inputs that collide, which is what lets the prefix cache trust a hash without comparing tokens.

/// The secret key of one process.
pub type Key = [u64; 2];

/// A running hash.
#[derive(Clone, Copy)]
pub struct SipHasher {
    v: [u64; 4],
    words: u64,
}

impl SipHasher {
    /// An empty message under `key`.
    pub fn new(key: Key) -> Self {
        let [k0, k1] = key;
        let v = [
            k0 ^ 0x736f_6d65_7073_6575,
            k1 ^ 0x646f_7261_6e64_6f6d ^ 0xee,
            k0 ^ 0x6c79_6765_6e65_7261,
            k1 ^ 0x7465_6462_7974_6573,
        ];
        SipHasher { v, words: 0 }
    }

    /// Appends eight bytes, little endian.
    pub fn word(&mut self, m: u64) {
        self.v[3] ^= m;
        self.rounds(2);
        self.v[0] ^= m;
        self.words += 1;
    }

    /// The hash of the words so far and of `tail`, at most seven bytes more.
    pub fn finish(mut self, tail: &[u8]) -> u128 {
        debug_assert!(tail.len() < 8);
        let mut last = [0u8; 8];
        last[..tail.len()].copy_from_slice(tail);
        let bytes = self.words * 8 + tail.len() as u64;
        self.word(u64::from_le_bytes(last) | (bytes << 56));
        self.v[2] ^= 0xee;
        self.rounds(4);
        let low = self.v[0] ^ self.v[1] ^ self.v[2] ^ self.v[3];
        self.v[1] ^= 0xdd;
        self.rounds(4);
        let high = self.v[0] ^ self.v[1] ^ self.v[2] ^ self.v[3];
        u128::from(low) | (u128::from(high) << 64)
    }

    #[inline]
    fn rounds(&mut self, n: u32) {
        let [mut a, mut b, mut c, mut d] = self.v;
        for _ in 0..n {
            a = a.wrapping_add(b);
            b = b.rotate_left(13) ^ a;
            a = a.rotate_left(32);
            c = c.wrapping_add(d);
            d = d.rotate_left(16) ^ c;
            a = a.wrapping_add(d);
            d = d.rotate_left(21) ^ a;
            c = c.wrapping_add(b);
            b = b.rotate_left(17) ^ c;
            c = c.rotate_left(32);
        }
        self.v = [a, b, c, d];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reference vectors of the authors: key 00..0f, message 00, 01, 02 .. of the given length.
    #[test]
    fn published_vectors() {
        let key = [0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908];
        let cases: [(usize, [u8; 16]); 2] = [
            (
                0,
                [
                    0xa3, 0x81, 0x7f, 0x04, 0xba, 0x25, 0xa8, 0xe6, 0x6d, 0xf6, 0x72, 0x14, 0xc7, 0x55, 0x02,
                    0x93,
                ],
            ),
            (
                1,
                [
                    0xda, 0x87, 0xc1, 0xd8, 0x6b, 0x99, 0xaf, 0x44, 0x34, 0x76, 0x59, 0x11, 0x9b, 0x22, 0xfc,
                    0x45,
                ],
            ),
        ];
        for (len, expected) in cases {
            let message: Vec<u8> = (0..len as u8).collect();
            assert_eq!(SipHasher::new(key).finish(&message).to_le_bytes(), expected, "length {len}");
        }
    }

    #[test]
    fn every_word_and_its_place_count() {
        let hash = |words: &[u64]| {
            let mut h = SipHasher::new([1, 2]);
            words.iter().for_each(|w| h.word(*w));
            h.finish(&[])
        };
        let all = [hash(&[]), hash(&[0]), hash(&[0, 0]), hash(&[1, 0]), hash(&[0, 1])];
        for (i, a) in all.iter().enumerate() {
            assert!(all[i + 1..].iter().all(|b| a != b));
        }
    }
}

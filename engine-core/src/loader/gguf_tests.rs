//! GGUF files built field by field: read when right, refused by name when wrong.
#![allow(clippy::unwrap_used, clippy::expect_used)]
use super::*;

/// Builds files; every field can be made wrong.
#[derive(Clone)]
struct Builder(Vec<u8>);

impl Builder {
    fn new(tensors: u64, entries: u64) -> Self {
        let mut b = Builder(b"GGUF".to_vec());
        b.u32(3).u64(tensors).u64(entries);
        b
    }
    fn u32(&mut self, n: u32) -> &mut Self {
        self.0.extend(n.to_le_bytes());
        self
    }
    fn u64(&mut self, n: u64) -> &mut Self {
        self.0.extend(n.to_le_bytes());
        self
    }
    fn text(&mut self, t: &str) -> &mut Self {
        self.u64(t.len() as u64);
        self.0.extend(t.as_bytes());
        self
    }
    fn tensor(&mut self, name: &str, dims: &[u64], kind: u32, offset: u64) -> &mut Self {
        self.text(name).u32(dims.len() as u32);
        for d in dims {
            self.u64(*d);
        }
        self.u32(kind).u64(offset)
    }
    fn data(&mut self, len: usize) -> &mut Self {
        let start = self.0.len().next_multiple_of(32);
        self.0.resize(start + len, 7);
        self
    }
    fn open(&self) -> Result<GgufFile> {
        GgufFile::parse(Path::new("m.gguf"), self.0.clone().into())
    }
    fn refused(&self) -> String {
        self.open().unwrap_err().to_string()
    }
}

fn sample() -> Builder {
    let mut b = Builder::new(2, 4);
    b.text("general.architecture").u32(8).text("llama");
    b.text("a.count").u32(4).u32(7);
    b.text("tokens").u32(9).u32(8).u64(2).text("x").text("yz");
    b.text("scores").u32(9).u32(6).u64(2).u32(1.5f32.to_bits()).u32((-2.0f32).to_bits());
    b.tensor("w", &[32, 3], 2, 0).tensor("v", &[4], 0, 64).data(80);
    b
}

#[test]
fn metadata_and_tensors_are_read() {
    let f = sample().open().unwrap();
    assert_eq!(f.text("general.architecture").unwrap(), Some("llama"));
    assert_eq!(f.u32("a.count").unwrap(), Some(7));
    assert_eq!(f.array("tokens").unwrap().unwrap().texts().unwrap(), ["x", "yz"]);
    assert_eq!(f.array("scores").unwrap().unwrap().numbers().unwrap(), [1.5, -2.0]);
    let w = &f.tensors()["w"];
    assert_eq!((w.format, &w.shape[..]), (WeightFormat::Ggml(GgmlType::Q4_0), &[3u64, 32][..]));
    assert_eq!(w.bytes.len(), 54);
    assert_eq!(f.tensors()["v"].bytes.len(), 16);
    let wrong = f.u32("general.architecture").unwrap_err().to_string();
    assert!(wrong.contains("general.architecture is \"llama\"; a whole number is wanted"), "{wrong}");
}

#[test]
fn damage_is_named() {
    let empty = |tensors, entries| Builder::new(tensors, entries);
    assert!(Builder(b"GGML0000".to_vec()).refused().contains("no GGUF file"));
    let mut old = empty(0, 0);
    old.0[4] = 1;
    assert!(old.refused().contains("version 1"));
    old.0[4..8].copy_from_slice(&3u32.to_be_bytes());
    assert!(old.refused().contains("big-endian"));
    assert!(empty(1 << 40, 0).refused().contains("promises 1099511627776 tensors"));
    assert!(empty(0, u64::MAX).refused().contains("metadata entries"));
    let mut b = empty(0, 1);
    b.text("k").u32(9).u32(4).u64(u64::MAX / 2).u64(0);
    assert!(b.refused().contains("values of k"), "{}", b.refused());
    let mut b = empty(0, 1);
    b.text("k").u32(9).u32(9).u64(1).u64(0);
    assert!(b.refused().contains("array of type 9"), "{}", b.refused());
    let mut b = empty(1, 0);
    b.tensor("w", &[u64::MAX, u64::MAX], 0, 0);
    assert!(b.refused().contains("is not in the file"), "{}", b.refused());
    let mut b = empty(1, 0);
    b.tensor("w", &[33, 2], 2, 0).data(4096);
    assert!(b.refused().contains("whole blocks"), "{}", b.refused());
    let mut b = empty(1, 0);
    b.tensor("w", &[32], 2, u64::MAX - 31).data(4096);
    assert!(b.refused().contains("is not in the file"), "{}", b.refused());
    let mut b = empty(1, 0);
    b.tensor("w", &[256], 16, 0).data(4096);
    assert!(b.refused().contains("IQ2_XXS; F32, F16, BF16, Q4_0"), "{}", b.refused());
}

/// Every prefix and every flipped bit is read or refused, never a panic.
#[test]
fn no_damage_panics() {
    let whole = sample().0;
    for cut in 0..whole.len() {
        let refused = Builder(whole[..cut].to_vec()).refused();
        assert!(refused.contains("m.gguf"), "{refused}");
    }
    for at in 0..whole.len() {
        for bit in 0..8 {
            let mut b = Builder(whole.clone());
            b.0[at] ^= 1 << bit;
            if let Ok(f) = b.open() {
                for key in f.keys().map(str::to_owned).collect::<Vec<_>>() {
                    let _ = (f.u32(&key), f.f64(&key), f.text(&key), f.bool(&key));
                    if let Ok(Some(a)) = f.array(&key) {
                        let _ = (a.texts(), a.numbers());
                    }
                }
            }
        }
    }
}

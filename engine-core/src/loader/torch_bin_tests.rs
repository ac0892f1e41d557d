//! Torch files of both forms, as torch wrote them, and damaged.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use serde_json::Value as Json;

use super::*;
use crate::loader::testing::{TempDir, fixtures};
use crate::loader::{Checkpoint, LoadFormat};

fn fixture(name: &str) -> PathBuf {
    fixtures().join("torch_bins").join(name)
}

fn refusal(bytes: Vec<u8>) -> String {
    let message = TorchFile::from_bytes(Path::new("m.bin"), HostBytes::from(bytes)).unwrap_err().to_string();
    assert!(message.starts_with("m.bin: "), "{message}");
    message
}

fn file_refusal(name: &str) -> String {
    refusal(std::fs::read(fixture(name)).unwrap())
}

fn dtype(torch: &str) -> FileDType {
    match torch {
        "float64" => FileDType::F64,
        "float32" => FileDType::F32,
        "float16" => FileDType::F16,
        "bfloat16" => FileDType::Bf16,
        "float8_e4m3fn" => FileDType::F8E4m3,
        "int64" => FileDType::I64,
        "int32" => FileDType::I32,
        "int16" => FileDType::I16,
        "int8" => FileDType::I8,
        "uint16" => FileDType::U16,
        "uint8" => FileDType::U8,
        "bool" => FileDType::Bool,
        other => panic!("{other}"),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[test]
fn every_form_holds_what_torch_says() {
    let expected: Json = serde_json::from_slice(&std::fs::read(fixture("expected.json")).unwrap()).unwrap();
    for (file, tensors) in expected.as_object().unwrap() {
        let reader = TorchFile::open(&fixture(file)).unwrap();
        let tensors = tensors.as_object().unwrap();
        let mut names: Vec<&str> = tensors.keys().map(String::as_str).collect();
        names.sort_unstable();
        assert_eq!(reader.names().collect::<Vec<_>>(), names, "{file}");
        for (name, want) in tensors {
            let shape: Vec<u64> =
                want["shape"].as_array().unwrap().iter().map(|d| d.as_u64().unwrap()).collect();
            let got = reader.tensor(name).unwrap().unwrap();
            assert_eq!(got.dtype, dtype(want["dtype"].as_str().unwrap()), "{file} {name}");
            assert_eq!(got.shape, shape, "{file} {name}");
            assert_eq!(hex(&got.bytes), want["hex"].as_str().unwrap(), "{file} {name}");
        }
    }
}

#[test]
fn contiguous_tensors_are_not_copied() {
    for file in ["zip.bin", "legacy.bin"] {
        let reader = TorchFile::open(&fixture(file)).unwrap();
        for (name, mapped) in [
            ("layout.plain", true),
            ("layout.rows", true),
            ("parameter", true),
            ("layout.scalar", true),
            ("layout.transposed", false),
            ("layout.columns", false),
            ("layout.expanded", false),
        ] {
            assert_eq!(reader.tensor(name).unwrap().unwrap().bytes.is_mapped(), mapped, "{file} {name}");
        }
        let at = |name: &str| reader.tensor(name).unwrap().unwrap().bytes.as_ptr();
        assert_eq!(at("tied.a"), at("tied.b"));
    }
}

#[test]
fn files_that_are_more_than_tensors_are_refused_by_name() {
    for (file, part) in [
        ("evil.bin", "it calls for posix.system"),
        ("evil_legacy.bin", "it calls for posix.system"),
        ("numpy_scalar.bin", "multiarray.scalar"),
        ("whole_module.bin", "torch.nn.modules.linear.Linear"),
        ("no_names.bin", "holds no tensors by name"),
    ] {
        let message = file_refusal(file);
        assert!(message.contains(part), "{file}: {message}");
    }
    assert!(refusal(b"GGUF....".to_vec()).contains("starts with [47, 47, 55, 46"));
    assert!(refusal(Vec::new()).contains("starts with []"));
    assert!(refusal(b"\x80\x02K\x01.".to_vec()).contains("not torch's"));
}

#[test]
fn every_truncation_is_refused() {
    for file in ["zip.bin", "legacy.bin"] {
        let good = std::fs::read(fixture(file)).unwrap();
        for n in 0..good.len() {
            let message = refusal(good[..n].to_vec());
            assert!(!message.is_empty(), "{file} cut to {n}");
        }
    }
    let cut = |file: &str, by: usize| {
        let good = std::fs::read(fixture(file)).unwrap();
        refusal(good[..good.len() - by].to_vec())
    };
    assert!(cut("legacy.bin", 1).contains("is cut off (truncated download?)"));
    assert!(cut("zip.bin", 22).contains("truncated download?"));
}

#[test]
fn every_flipped_byte_ends_in_an_answer() {
    for file in ["module.bin", "module_legacy.bin", "typed.bin"] {
        let good = std::fs::read(fixture(file)).unwrap();
        for at in 0..good.len() {
            for flip in [0x01, 0x10, 0x80, 0xFF] {
                let mut bad = good.clone();
                bad[at] ^= flip;
                let Ok(reader) = TorchFile::from_bytes(Path::new("m.bin"), HostBytes::from(bad)) else {
                    continue;
                };
                for name in reader.names() {
                    let tensor = reader.tensor(name).unwrap().unwrap();
                    assert_eq!(Some(tensor.bytes.len() as u64), shape_bytes(&tensor.shape, tensor.dtype));
                }
            }
        }
    }
}

/// A legacy file of one float storage of 4 elements and one tensor over it with these pickled arguments.
fn legacy(offset: &[u8], shape: &[u8], strides: &[u8]) -> Vec<u8> {
    let head = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.\x80\x02M\xe9\x03.\x80\x02}.";
    let state: &[&[u8]] = &[
        b"\x80\x02}X\x01\0\0\0wctorch._utils\n_rebuild_tensor_v2\n(",
        b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x04NtQ",
        offset,
        shape,
        strides,
        b"\x89}tRs.\x80\x02]X\x01\0\0\x000a.",
    ];
    let data = [&4u64.to_le_bytes()[..], &[0; 16]].concat();
    [&head[..], &state.concat(), &data].concat()
}

#[test]
fn views_past_their_storage_are_refused() {
    let good = legacy(b"K\x01", b"K\x03\x85", b"K\x01\x85");
    let reader = TorchFile::from_bytes(Path::new("m.bin"), HostBytes::from(good)).unwrap();
    assert_eq!(reader.info("w"), Some((FileDType::F32, &[3][..])));
    let (one, max) = (b"K\x01\x85", b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f");
    let (max1, zero) = ([&max[..], b"\x85"].concat(), b"K\0\x85");
    type Case<'a> = (&'a [u8], &'a [u8], &'a [u8], &'a str);
    let cases: [Case<'_>; 7] = [
        (b"K\x02", b"K\x03\x85", one, "reach past the 16 bytes"),
        (b"K\0", b"K\x03\x85", b"K\x02\x85", "reach past the 16 bytes"),
        (max, b"K\x03\x85", one, "reach past the 16 bytes"),
        (b"K\0", b"K\x03\x85", &max1, "reach past the 16 bytes"),
        (b"K\0", &max1, zero, "too large for the file"),
        (b"K\0", b"J\0\0\0\x40\x85", zero, "too large for the file"),
        (b"K\0", b"K\x03\x85", b")", "of shape [3] with strides []"),
    ];
    for (offset, shape, strides, part) in cases {
        let message = refusal(legacy(offset, shape, strides));
        assert!(message.contains(part), "{offset:?} {shape:?} {strides:?}: {message}");
    }
}

#[test]
fn a_sharded_checkpoint_opens_by_its_index() {
    let c = Checkpoint::open(&fixture("sharded"), LoadFormat::Auto).unwrap();
    assert_eq!(c.names().collect::<Vec<_>>(), ["a", "b", "c"]);
    assert_eq!((c.total_bytes(), c.file_count()), (28, 2));
    assert_eq!(c.tensor("c").unwrap().dtype, FileDType::Bf16);
    let dir = TempDir::new("single-pt");
    std::fs::copy(fixture("nested.pt"), dir.path().join("weights.pt")).unwrap();
    dir.write("training_args.bin", b"not read");
    let c = Checkpoint::open(dir.path(), LoadFormat::Auto).unwrap();
    assert_eq!(c.names().collect::<Vec<_>>(), ["0.bias", "0.weight", "1.bias", "1.weight"]);
}

/// The same zip with every size, offset and count in its ZIP64 form, as torch writes files past 4 GB.
fn as_zip64(zip: &[u8]) -> Vec<u8> {
    let number = |at: usize, n: usize| zip[at..at + n].iter().rev().fold(0u64, |v, b| v << 8 | u64::from(*b));
    let end = zip.len() - 22;
    let (count, start) = (number(end + 10, 2), number(end + 16, 4) as usize);
    let mut out = zip[..start].to_vec();
    let mut at = start;
    for _ in 0..count {
        let [name, extra, comment] = [28, 30, 32].map(|field| number(at + field, 2) as usize);
        let wide = [24, 20, 42].map(|field| number(at + field, 4).to_le_bytes()).concat();
        let mut record = zip[at..at + 46 + name].to_vec();
        record[20..28].fill(0xFF);
        record[42..46].fill(0xFF);
        record[30..32].copy_from_slice(&28u16.to_le_bytes());
        record[32..34].fill(0);
        // The ZIP64 field: its id, its length, then sizes and offset.
        record.extend_from_slice(&[1, 0, 24, 0]);
        record.extend_from_slice(&wide);
        out.extend_from_slice(&record);
        at += 46 + name + extra + comment;
    }
    let (record, directory) = (out.len() as u64, (out.len() - start) as u64);
    out.extend_from_slice(b"PK\x06\x06\x2c\0\0\0\0\0\0\0\x2d\0\x2d\0\0\0\0\0\0\0\0\0");
    for value in [count, count, directory, start as u64] {
        out.extend_from_slice(&value.to_le_bytes());
    }
    out.extend_from_slice(b"PK\x06\x07\0\0\0\0");
    out.extend_from_slice(&record.to_le_bytes());
    out.extend_from_slice(b"\x01\0\0\0PK\x05\x06\0\0\0\0");
    out.extend_from_slice(&[0xFF; 12]);
    out.extend_from_slice(&[0, 0]);
    out
}

#[test]
fn zip64_reads_as_the_plain_form() {
    let plain = std::fs::read(fixture("module.bin")).unwrap();
    let open = |bytes: Vec<u8>| TorchFile::from_bytes(Path::new("m.bin"), HostBytes::from(bytes)).unwrap();
    let wide = open(as_zip64(&plain));
    let plain = open(plain);
    assert_eq!(wide.names().collect::<Vec<_>>(), plain.names().collect::<Vec<_>>());
    for name in plain.names() {
        let [a, b] = [&wide, &plain].map(|file| file.tensor(name).unwrap().unwrap());
        assert_eq!((&*a.bytes, a.shape, a.dtype), (&*b.bytes, b.shape, b.dtype), "{name}");
    }
}

#[test]
fn other_zips_are_refused_by_entry() {
    let good = std::fs::read(fixture("module.bin")).unwrap();
    let start = u32::from_le_bytes(good[good.len() - 6..good.len() - 2].try_into().unwrap()) as usize;
    let change = |at: usize, value: u8| {
        let mut bad = good.clone();
        bad[at] = value;
        refusal(bad)
    };
    assert!(change(start + 10, 8).contains("module/data.pkl: is compressed; torch stores its entries"));
    assert!(change(start + 8, 1).contains("module/data.pkl: is encrypted"));
    assert!(change(start + 27, 0x7F).contains("is compressed"));
    assert!(change(start + 45, 0x7F).contains("has no header at byte"));
    assert!(change(good.len() - 12, 0xFF).contains("entries; at most"));
}

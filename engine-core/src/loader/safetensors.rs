//! The safetensors format: an 8-byte little-endian header length, a JSON header, the tensors' bytes.
//!
//! Own reader rather than the crate's, because every failure has to name the file and the tensor. It is as strict
//! as the format's text: offsets cover the data without overlap or hole, names are unique, shapes agree with
//! lengths, and the header is bounded before a byte of it is parsed.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::de::{self, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::{FileDType, HostBytes, HostTensor, shape_bytes};
use crate::limits::{MAX_SAFETENSORS_HEADER_BYTES, MAX_TENSOR_RANK};
use crate::{Error, Result};

/// One mapped safetensors file with its checked table of tensors.
#[derive(Debug)]
pub struct SafetensorsFile {
    path: PathBuf,
    bytes: HostBytes,
    /// Where the data starts in the file.
    data_at: usize,
    /// In the order of their bytes.
    tensors: Vec<TensorInfo>,
    by_name: HashMap<String, usize>,
}

/// What the header says of one tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    pub name: String,
    pub dtype: FileDType,
    /// Dimensions, outermost first.
    pub shape: Vec<u64>,
    /// First byte, and the one past the last, relative to the start of the data.
    pub range: [u64; 2],
}

impl SafetensorsFile {
    /// Maps `path` and checks its header against its length.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be read, [`Error::Checkpoint`] naming file and tensor when it is damaged.
    pub fn open(path: &Path) -> Result<Self> {
        Self::from_bytes(path, HostBytes::map_file(path)?)
    }

    /// The same, of bytes already in hand; `path` is used in messages only.
    ///
    /// # Errors
    /// As [`SafetensorsFile::open`].
    pub fn from_bytes(path: &Path, bytes: HostBytes) -> Result<Self> {
        let at = |reason: String| Error::Checkpoint(format!("{}: {reason}", path.display()));
        let header = header_slice(&bytes).map_err(at)?;
        let data_at = 8 + header.len();
        let mut tensors = parse_header(header).map_err(at)?;
        tensors.sort_by_key(|t| t.range);
        check_layout(&tensors, (bytes.len() - data_at) as u64).map_err(at)?;
        let by_name = tensors.iter().enumerate().map(|(i, t)| (t.name.clone(), i)).collect();
        Ok(SafetensorsFile { path: path.to_owned(), bytes, data_at, tensors, by_name })
    }

    /// Every tensor, in the order of their bytes in the file.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What the header says of the tensor of this name.
    pub fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.by_name.get(name).map(|i| &self.tensors[*i])
    }

    /// The tensor of this name, without a copy.
    pub fn tensor(&self, name: &str) -> Option<HostTensor> {
        let info = self.info(name)?;
        let [start, end] = info.range.map(|x| self.data_at + x as usize);
        let bytes = self.bytes.slice(start..end);
        Some(HostTensor { bytes, dtype: info.dtype, shape: info.shape.clone() })
    }

    /// All of the tensors' bytes, for advice to the kernel.
    pub fn data(&self) -> HostBytes {
        self.bytes.slice(self.data_at..self.bytes.len())
    }
}

/// The header's text, its length checked against the bound and the file.
fn header_slice(bytes: &[u8]) -> std::result::Result<&[u8], String> {
    let Some((length, rest)) = bytes.split_first_chunk::<8>() else {
        return Err(format!(
            "has {} bytes; a safetensors file starts with an 8-byte header length",
            bytes.len()
        ));
    };
    let length = u64::from_le_bytes(*length);
    if length > MAX_SAFETENSORS_HEADER_BYTES {
        return Err(format!(
            "says its header is {length} bytes long; the format allows {MAX_SAFETENSORS_HEADER_BYTES} \
             (is it a safetensors file?)"
        ));
    }
    rest.get(..length as usize).ok_or_else(|| {
        format!(
            "is truncated: the header is {length} bytes long, but only {} bytes follow its length",
            rest.len()
        )
    })
}

/// Offsets lie in the data, follow each other without overlap or hole, and reach its end.
fn check_layout(tensors: &[TensorInfo], data_bytes: u64) -> std::result::Result<(), String> {
    let mut end = 0;
    let mut previous = "the header";
    for t in tensors {
        let [start, stop] = t.range;
        if stop > data_bytes {
            return Err(format!(
                "tensor {} ends at byte {stop} of the data, but the file holds only {data_bytes} bytes of it \
                 (truncated download?)",
                t.name
            ));
        }
        if start < end {
            return Err(format!(
                "tensor {} starts at byte {start}, inside {previous} (ends at {end})",
                t.name
            ));
        }
        if start > end {
            return Err(format!(
                "tensor {} starts at byte {start}; {previous} ends at {end}, a hole",
                t.name
            ));
        }
        (end, previous) = (stop, &t.name);
    }
    if end != data_bytes {
        return Err(format!(
            "has {data_bytes} bytes of data, but its last tensor ({previous}) ends at {end}"
        ));
    }
    Ok(())
}

/// The header's tensors, in file order. Messages name the tensor.
fn parse_header(header: &[u8]) -> std::result::Result<Vec<TensorInfo>, String> {
    let mut json = serde_json::Deserializer::from_slice(header);
    let tensors = json.deserialize_map(HeaderVisitor).map_err(|e| format!("header: {e}"))?;
    json.end().map_err(|e| format!("header: {e}"))?;
    Ok(tensors)
}

struct HeaderVisitor;

impl<'de> Visitor<'de> for HeaderVisitor {
    type Value = Vec<TensorInfo>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Self::Value, A::Error> {
        let mut tensors = Vec::new();
        let mut seen = std::collections::HashSet::new();
        while let Some(name) = map.next_key::<String>()? {
            if !seen.insert(name.clone()) {
                return Err(de::Error::custom(format!("tensor {name} stands twice")));
            }
            if name == "__metadata__" {
                map.next_value::<IgnoredAny>()?;
                continue;
            }
            tensors.push(map.next_value_seed(EntrySeed { name })?);
        }
        Ok(tensors)
    }
}

/// Reads one tensor's entry; knows its name, for messages.
struct EntrySeed {
    name: String,
}

impl<'de> DeserializeSeed<'de> for EntrySeed {
    type Value = TensorInfo;
    fn deserialize<D: Deserializer<'de>>(self, d: D) -> std::result::Result<TensorInfo, D::Error> {
        let name = self.name.clone();
        d.deserialize_map(self).map_err(|e| de::Error::custom(format!("tensor {name}: {e}")))
    }
}

impl<'de> Visitor<'de> for EntrySeed {
    type Value = TensorInfo;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with dtype, shape and data_offsets")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<TensorInfo, A::Error> {
        let (mut dtype, mut shape, mut range) = (None::<String>, None::<Dims>, None::<[u64; 2]>);
        while let Some(key) = map.next_key::<String>()? {
            let twice = match key.as_str() {
                "dtype" => dtype.replace(map.next_value()?).is_some(),
                "shape" => shape.replace(map.next_value()?).is_some(),
                "data_offsets" => range.replace(map.next_value()?).is_some(),
                _ => return Err(de::Error::custom(format!("unknown field {key}"))),
            };
            if twice {
                return Err(de::Error::custom(format!("field {key} stands twice")));
            }
        }
        let dtype = dtype.ok_or_else(|| de::Error::missing_field("dtype"))?;
        let Dims(shape) = shape.ok_or_else(|| de::Error::missing_field("shape"))?;
        let range = range.ok_or_else(|| de::Error::missing_field("data_offsets"))?;
        let dtype = known_dtype(&dtype).map_err(de::Error::custom)?;
        check_length(&shape, dtype, range).map_err(de::Error::custom)?;
        Ok(TensorInfo { name: self.name, dtype, shape, range })
    }
}

fn known_dtype(name: &str) -> std::result::Result<FileDType, String> {
    FileDType::from_safetensors(name).ok_or_else(|| {
        let known: Vec<_> = FileDType::ALL.iter().map(|(_, n)| *n).collect();
        format!("unknown dtype {name:?}; known: {}", known.join(", "))
    })
}

fn check_length(shape: &[u64], dtype: FileDType, [start, end]: [u64; 2]) -> std::result::Result<(), String> {
    let length =
        end.checked_sub(start).ok_or_else(|| format!("data_offsets [{start}, {end}] run backwards"))?;
    match shape_bytes(shape, dtype) {
        Some(want) if want == length => Ok(()),
        Some(want) => Err(format!(
            "shape {shape:?} of {dtype} is {want} bytes, but data_offsets [{start}, {end}] span {length}"
        )),
        None => Err(format!("the size of shape {shape:?} of {dtype} is no whole number of bytes below 2^61")),
    }
}

/// Dimensions, bounded in number while they are read.
struct Dims(Vec<u64>);

impl<'de> de::Deserialize<'de> for Dims {
    fn deserialize<D: Deserializer<'de>>(d: D) -> std::result::Result<Self, D::Error> {
        d.deserialize_seq(DimsVisitor)
    }
}

struct DimsVisitor;

impl<'de> Visitor<'de> for DimsVisitor {
    type Value = Dims;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of dimensions")
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> std::result::Result<Dims, A::Error> {
        let mut dims = Vec::new();
        while let Some(d) = seq.next_element()? {
            if dims.len() == MAX_TENSOR_RANK {
                return Err(de::Error::custom(format!("more than {MAX_TENSOR_RANK} dimensions")));
            }
            dims.push(d);
        }
        Ok(Dims(dims))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use crate::loader::testing::safetensors_bytes;

    fn open(bytes: Vec<u8>) -> Result<SafetensorsFile> {
        SafetensorsFile::from_bytes(Path::new("m.safetensors"), HostBytes::from(bytes))
    }

    /// The message of a file of this header and `data_bytes` of data; it must name the file.
    fn refusal(header: &str, data_bytes: usize) -> String {
        let message = open(safetensors_bytes(header, &vec![0; data_bytes])).unwrap_err().to_string();
        assert!(message.starts_with("m.safetensors: "), "{message}");
        message
    }

    #[test]
    fn a_good_file_reads_without_a_copy() {
        let header = r#"{"__metadata__":{"format":"pt"},
            "b":{"dtype":"BF16","shape":[2],"data_offsets":[12,16]},
            "a":{"dtype":"F32","shape":[3,1],"data_offsets":[0,12]},
            "e":{"dtype":"I64","shape":[0,4],"data_offsets":[16,16]},
            "f":{"dtype":"F4","shape":[2],"data_offsets":[16,17]}}   "#;
        let data: Vec<u8> = (0..17).collect();
        let file = open(safetensors_bytes(header, &data)).unwrap();
        let names: Vec<_> = file.tensors().iter().map(|t| t.name.as_str()).collect();
        assert_eq!(names, ["a", "b", "e", "f"]);
        let b = file.tensor("b").unwrap();
        assert_eq!((b.dtype, &*b.shape, &*b.bytes), (FileDType::Bf16, &[2][..], &[12, 13, 14, 15][..]));
        assert!(file.tensor("e").unwrap().is_empty());
        assert!(file.tensor("c").is_none());
        assert_eq!(&*file.data(), &data[..]);
    }

    #[test]
    fn damaged_headers_are_refused_by_name() {
        let entry = |dtype: &str, shape: &str, at: &str| {
            format!(r#"{{"w.q":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{at}}}}}"#)
        };
        let max = u64::MAX;
        let cases = [
            (entry("F32", "[2]", "[0,9]"), 9, "shape [2] of F32 is 8 bytes"),
            (entry("F32", "[2]", "[0,8]"), 7, "truncated download?"),
            (entry("F32", "[2]", "[8,0]"), 8, "run backwards"),
            (entry("F99", "[2]", "[0,8]"), 8, "unknown dtype \"F99\""),
            (entry("F32", "[2,-1]", "[0,8]"), 8, "invalid value"),
            (entry("F32", "[4611686018427387904,4]", "[0,0]"), 0, "no whole number of bytes"),
            (entry("F4", "[3]", "[0,2]"), 2, "no whole number of bytes"),
            (entry("U8", &format!("[{max}]"), &format!("[0,{max}]")), 8, "no whole number of bytes"),
            (entry("U8", "[1152921504606846976]", "[0,1152921504606846976]"), 8, "truncated download?"),
            (entry("U8", "[1,1,1,1,1,1,1,1,1]", "[0,1]"), 1, "more than 8 dimensions"),
            (entry("U8", "[1]", "[0]"), 1, "invalid length"),
            (entry("U8", "[1]", "[1,2]"), 2, "a hole"),
            (r#"{"w.q":{"dtype":"U8","shape":[1]}}"#.into(), 1, "missing field `data_offsets`"),
            (r#"{"w.q":7}"#.into(), 0, "invalid type"),
            (r#"{"w.q":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"x":1}}"#.into(), 1, "unknown field x"),
        ];
        for (header, data_bytes, part) in cases {
            let message = refusal(&header, data_bytes);
            assert!(message.contains("w.q") && message.contains(part), "{header}\n{message}");
        }
    }

    #[test]
    fn overlaps_duplicates_and_rests_are_refused() {
        let u8s = |name: &str, a: u32, b: u32| {
            format!(r#""{name}":{{"dtype":"U8","shape":[{}],"data_offsets":[{a},{b}]}}"#, b - a)
        };
        let overlap = refusal(&format!("{{{},{}}}", u8s("a", 0, 4), u8s("b", 3, 6)), 6);
        assert!(overlap.contains("tensor b starts at byte 3, inside a"), "{overlap}");
        let twice = refusal(&format!("{{{},{}}}", u8s("a", 0, 4), u8s("a", 4, 6)), 6);
        assert!(twice.contains("tensor a stands twice"), "{twice}");
        let rest = refusal(&format!("{{{}}}", u8s("a", 0, 4)), 6);
        assert!(rest.contains("6 bytes of data"), "{rest}");
        assert!(refusal("{} {}", 0).contains("trailing"));
        assert!(refusal("[1]", 0).contains("JSON object"));
        assert!(refusal(r#"{"a":"#, 0).contains("EOF"));
        let deep = format!(r#"{{"__metadata__":{}"#, "[".repeat(100_000));
        assert!(refusal(&deep, 0).contains("EOF"));
    }

    #[test]
    fn header_lengths_out_of_proportion_allocate_nothing() {
        let mut huge = (1u64 << 60).to_le_bytes().to_vec();
        huge.extend_from_slice(b"{}");
        assert!(open(huge).unwrap_err().to_string().contains("1152921504606846976 bytes long"));
        let mut past = 1000u64.to_le_bytes().to_vec();
        past.extend_from_slice(b"{}");
        assert!(open(past).unwrap_err().to_string().contains("is truncated"));
        assert!(open(vec![1, 2, 3]).unwrap_err().to_string().contains("has 3 bytes"));
    }

    #[test]
    fn every_truncation_and_every_flipped_byte_ends_in_an_answer() {
        let header = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"U8","shape":[1],"data_offsets":[8,9]}}"#;
        let good = safetensors_bytes(header, &[7; 9]);
        assert!(open(good.clone()).is_ok());
        for n in 0..good.len() {
            assert!(open(good[..n].to_vec()).is_err(), "{n} bytes were accepted");
        }
        for i in 0..8 + header.len() {
            for flip in [1, 0x20, 0x80] {
                let mut bad = good.clone();
                bad[i] ^= flip;
                if let Ok(file) = open(bad) {
                    for t in file.tensors() {
                        assert!(file.tensor(&t.name).is_some());
                    }
                }
            }
        }
    }
}

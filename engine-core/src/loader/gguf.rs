//! A safe reader of GGUF files (versions 2 and 3, little-endian): metadata and a table of tensors.
//!
//! The file is mapped; nothing in it is trusted. Every count, length, offset and type is checked against the bytes
//! that are there before it is used, and what is kept is in proportion to the file: arrays stay ranges of the map and
//! are read when they are asked for.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::mmap::HostBytes;
use crate::quant::{GgmlType, WeightFormat};
use crate::tensor::DType;
use crate::{Error, Result};

/// Longest key or tensor name.
const MAX_NAME_BYTES: u64 = 1 << 16;
/// Most dimensions of a tensor.
const MAX_DIMS: u32 = 4;
/// Fewest bytes of a metadata entry and of a tensor's.
const MIN_ENTRY_BYTES: u64 = 13;
const MIN_TENSOR_BYTES: u64 = 24;

/// An open GGUF file.
#[derive(Debug)]
pub struct GgufFile {
    path: PathBuf,
    data: HostBytes,
    metadata: BTreeMap<String, GgufValue>,
    tensors: BTreeMap<String, GgufTensor>,
}

/// A metadata value.
#[derive(Clone, Debug)]
pub enum GgufValue {
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Bool(bool),
    Text(String),
    Array(GgufArray),
}

/// An array of metadata, still in the file.
#[derive(Clone, Debug)]
pub struct GgufArray {
    element: u32,
    len: u64,
    bytes: HostBytes,
}

/// One tensor of the table.
#[derive(Clone, Debug)]
pub struct GgufTensor {
    /// How its numbers are stored.
    pub format: WeightFormat,
    /// Dimensions, outermost first.
    pub shape: Vec<u64>,
    pub bytes: HostBytes,
}

impl GgufFile {
    /// Maps `path` and reads its tables.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be mapped; [`Error::Checkpoint`] naming file, place and what is wrong there.
    pub fn open(path: &Path) -> Result<Self> {
        Self::parse(path, HostBytes::map_file(path)?)
    }

    /// The same of bytes in hand; `path` is for messages.
    ///
    /// # Errors
    /// [`Error::Checkpoint`], as [`GgufFile::open`].
    pub fn parse(path: &Path, data: HostBytes) -> Result<Self> {
        let mut r = Reader { path, data: &data, at: 0 };
        if r.take(4, "the magic")? != b"GGUF" {
            return Err(r.error("does not start with GGUF: it is no GGUF file"));
        }
        let version = r.u32("the version")?;
        if !(2..=3).contains(&version) {
            let hint =
                if version.swap_bytes() <= 3 { " (it is big-endian; little-endian is read)" } else { "" };
            return Err(r.error(&format!("is of version {version}{hint}; versions 2 and 3 are read")));
        }
        let tensor_count = r.u64("the number of tensors")?;
        let entry_count = r.u64("the number of metadata entries")?;
        r.check_count(entry_count, MIN_ENTRY_BYTES, "metadata entries")?;
        let metadata = metadata(&mut r, entry_count)?;
        r.check_count(tensor_count, MIN_TENSOR_BYTES, "tensors")?;
        let tensors = tensors(&mut r, tensor_count, alignment(path, &metadata)?)?;
        Ok(GgufFile { path: path.to_owned(), data, metadata, tensors })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The whole file.
    pub fn data(&self) -> &HostBytes {
        &self.data
    }

    /// A metadata value.
    pub fn get(&self, key: &str) -> Option<&GgufValue> {
        self.metadata.get(key)
    }

    /// All metadata keys, sorted.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.metadata.keys().map(String::as_str)
    }

    /// All tensors by name.
    pub fn tensors(&self) -> &BTreeMap<String, GgufTensor> {
        &self.tensors
    }

    /// A whole number that fits u32, if the key is there.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] when it is something else.
    pub fn u32(&self, key: &str) -> Result<Option<u32>> {
        let number = match self.get(key) {
            None => return Ok(None),
            Some(GgufValue::Unsigned(n)) => u32::try_from(*n).ok(),
            Some(GgufValue::Signed(n)) => u32::try_from(*n).ok(),
            Some(_) => None,
        };
        number.map(Some).ok_or_else(|| self.wrong(key, "a whole number"))
    }

    /// A number, if the key is there.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] when it is something else.
    pub fn f64(&self, key: &str) -> Result<Option<f64>> {
        match self.get(key) {
            None => Ok(None),
            Some(GgufValue::Unsigned(n)) => Ok(Some(*n as f64)),
            Some(GgufValue::Signed(n)) => Ok(Some(*n as f64)),
            Some(GgufValue::Float(x)) if x.is_finite() => Ok(Some(*x)),
            Some(_) => Err(self.wrong(key, "a number")),
        }
    }

    /// A text, if the key is there.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] when it is something else.
    pub fn text(&self, key: &str) -> Result<Option<&str>> {
        match self.get(key) {
            None => Ok(None),
            Some(GgufValue::Text(text)) => Ok(Some(text)),
            Some(_) => Err(self.wrong(key, "a text")),
        }
    }

    /// A truth value, if the key is there.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] when it is something else.
    pub fn bool(&self, key: &str) -> Result<Option<bool>> {
        match self.get(key) {
            None => Ok(None),
            Some(GgufValue::Bool(value)) => Ok(Some(*value)),
            Some(_) => Err(self.wrong(key, "true or false")),
        }
    }

    /// An array, if the key is there.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] when it is something else.
    pub fn array(&self, key: &str) -> Result<Option<&GgufArray>> {
        match self.get(key) {
            None => Ok(None),
            Some(GgufValue::Array(array)) => Ok(Some(array)),
            Some(_) => Err(self.wrong(key, "an array")),
        }
    }

    /// An error about a metadata value.
    pub fn wrong(&self, key: &str, wanted: &str) -> Error {
        let found = match self.get(key) {
            None => "is missing".to_owned(),
            Some(GgufValue::Array(a)) => format!("is an array of {} values", a.len),
            Some(GgufValue::Text(t)) => format!("is {:?}", t.chars().take(60).collect::<String>()),
            Some(other) => format!("is {other:?}"),
        };
        Error::Checkpoint(format!("{}: metadata {key} {found}; {wanted} is wanted", self.path.display()))
    }
}

impl GgufArray {
    /// Number of elements.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The texts of an array of texts; invalid UTF-8 becomes U+FFFD. None for other arrays.
    pub fn texts(&self) -> Option<Vec<String>> {
        if self.element != TEXT {
            return None;
        }
        let mut bytes = self.bytes.as_slice();
        let mut texts = Vec::new();
        // The lengths were checked when the array was found.
        while let Some((len, rest)) = bytes.split_first_chunk::<8>() {
            let (text, rest) = rest.split_at_checked(u64::from_le_bytes(*len) as usize)?;
            texts.push(String::from_utf8_lossy(text).into_owned());
            bytes = rest;
        }
        Some(texts)
    }

    /// The numbers of an array of numbers. None for other arrays.
    pub fn numbers(&self) -> Option<Vec<f64>> {
        let size = scalar_bytes(self.element).filter(|_| self.element != BOOL)? as usize;
        let one = |bytes: &[u8]| match scalar(self.element, bytes) {
            GgufValue::Unsigned(n) => n as f64,
            GgufValue::Signed(n) => n as f64,
            GgufValue::Float(x) => x,
            _ => f64::NAN,
        };
        Some(self.bytes.as_slice().chunks_exact(size).map(one).collect())
    }
}

const BOOL: u32 = 7;
const TEXT: u32 = 8;
const ARRAY: u32 = 9;

/// Bytes of a scalar of this type.
fn scalar_bytes(kind: u32) -> Option<u64> {
    match kind {
        0 | 1 | BOOL => Some(1),
        2 | 3 => Some(2),
        4..=6 => Some(4),
        10..=12 => Some(8),
        _ => None,
    }
}

/// A scalar from exactly its bytes.
fn scalar(kind: u32, b: &[u8]) -> GgufValue {
    let mut eight = [0u8; 8];
    eight[..b.len()].copy_from_slice(b);
    let unsigned = u64::from_le_bytes(eight);
    let shift = 64 - 8 * b.len() as u32;
    let signed = (unsigned << shift) as i64 >> shift;
    match kind {
        1 | 3 | 5 | 11 => GgufValue::Signed(signed),
        6 => GgufValue::Float(f64::from(f32::from_bits(unsigned as u32))),
        12 => GgufValue::Float(f64::from_bits(unsigned)),
        BOOL => GgufValue::Bool(unsigned != 0),
        _ => GgufValue::Unsigned(unsigned),
    }
}

struct Reader<'a> {
    path: &'a Path,
    data: &'a HostBytes,
    at: u64,
}

impl<'a> Reader<'a> {
    fn left(&self) -> u64 {
        self.data.len() as u64 - self.at
    }

    fn take(&mut self, len: u64, what: &str) -> Result<&'a [u8]> {
        if len > self.left() {
            let left = self.left();
            return Err(self.error(&format!("ends at {what}: {len} bytes are wanted, {left} are left")));
        }
        let start = self.at as usize;
        self.at += len;
        Ok(&self.data.as_slice()[start..start + len as usize])
    }

    fn u32(&mut self, what: &str) -> Result<u32> {
        let b = self.take(4, what)?;
        Ok(u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
    }

    fn u64(&mut self, what: &str) -> Result<u64> {
        let b = self.take(8, what)?;
        Ok(u64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]))
    }

    fn text(&mut self, what: &str) -> Result<&'a [u8]> {
        let len = self.u64(what)?;
        self.take(len, what)
    }

    fn name(&mut self, what: &str) -> Result<String> {
        let bytes = self.text(what)?;
        match std::str::from_utf8(bytes) {
            Ok(name) if bytes.len() as u64 <= MAX_NAME_BYTES => Ok(name.to_owned()),
            _ => Err(self.error(&format!("{what} is no name of at most {MAX_NAME_BYTES} bytes in UTF-8"))),
        }
    }

    fn check_count(&self, count: u64, least_bytes: u64, what: &str) -> Result<()> {
        if count > self.left() / least_bytes {
            let left = self.left();
            return Err(self.error(&format!("promises {count} {what} with {left} bytes left")));
        }
        Ok(())
    }

    fn error(&self, what: &str) -> Error {
        Error::Checkpoint(format!("{}: byte {}: {what}", self.path.display(), self.at))
    }
}

fn metadata(r: &mut Reader<'_>, count: u64) -> Result<BTreeMap<String, GgufValue>> {
    let mut map = BTreeMap::new();
    for _ in 0..count {
        let key = r.name("a metadata key")?;
        let kind = r.u32(&key)?;
        let value = match kind {
            TEXT => GgufValue::Text(String::from_utf8_lossy(r.text(&key)?).into_owned()),
            ARRAY => GgufValue::Array(array(r, &key)?),
            _ => match scalar_bytes(kind) {
                Some(bytes) => scalar(kind, r.take(bytes, &key)?),
                None => return Err(r.error(&format!("metadata {key} has the unknown type {kind}"))),
            },
        };
        if map.insert(key.clone(), value).is_some() {
            return Err(r.error(&format!("metadata {key} stands there twice")));
        }
    }
    Ok(map)
}

fn array(r: &mut Reader<'_>, key: &str) -> Result<GgufArray> {
    let element = r.u32(key)?;
    let len = r.u64(key)?;
    let start = r.at;
    match (element, scalar_bytes(element)) {
        (_, Some(bytes)) => {
            r.check_count(len, bytes, &format!("values of {key}"))?;
            r.take(len * bytes, key)?;
        }
        (TEXT, _) => {
            r.check_count(len, 8, &format!("texts of {key}"))?;
            for _ in 0..len {
                r.text(key)?;
            }
        }
        _ => {
            let text = format!("metadata {key} is an array of type {element}; numbers and texts are read");
            return Err(r.error(&text));
        }
    }
    Ok(GgufArray { element, len, bytes: r.data.slice(start as usize..r.at as usize) })
}

fn alignment(path: &Path, metadata: &BTreeMap<String, GgufValue>) -> Result<u64> {
    match metadata.get("general.alignment") {
        None => Ok(32),
        Some(GgufValue::Unsigned(n)) if n.is_power_of_two() && *n <= 1 << 20 => Ok(*n),
        Some(other) => Err(Error::Checkpoint(format!(
            "{}: general.alignment is {other:?}; a power of two is wanted",
            path.display()
        ))),
    }
}

fn tensors(r: &mut Reader<'_>, count: u64, alignment: u64) -> Result<BTreeMap<String, GgufTensor>> {
    let mut entries = Vec::new();
    for _ in 0..count {
        entries.push(tensor_entry(r)?);
    }
    let start = r.at.next_multiple_of(alignment);
    let mut tensors = BTreeMap::new();
    for (name, shape, kind, offset) in entries {
        let format = format(kind)
            .ok_or_else(|| r.error(&format!("tensor {name} is stored as {}", unknown_type(kind))))?;
        let bytes = tensor_bytes(&shape, format).filter(|_| offset.is_multiple_of(alignment));
        let range = bytes.and_then(|len| {
            let begin = start.checked_add(offset)?;
            let end = begin.checked_add(len)?;
            (end <= r.data.len() as u64).then_some(begin as usize..end as usize)
        });
        let Some(range) = range else {
            return Err(r.error(&format!(
                "tensor {name} of shape {shape:?} in {format} at offset {offset} is not in the file's {} bytes \
                 (rows must be whole blocks, offsets multiples of {alignment})",
                r.data.len()
            )));
        };
        let tensor = GgufTensor { format, shape, bytes: r.data.slice(range) };
        if tensors.insert(name.clone(), tensor).is_some() {
            return Err(r.error(&format!("tensor {name} stands there twice")));
        }
    }
    Ok(tensors)
}

type Entry = (String, Vec<u64>, u32, u64);

fn tensor_entry(r: &mut Reader<'_>) -> Result<Entry> {
    let name = r.name("a tensor's name")?;
    let dims = r.u32(&name)?;
    if dims > MAX_DIMS {
        return Err(r.error(&format!("tensor {name} has {dims} dimensions; at most {MAX_DIMS} are read")));
    }
    let mut shape = Vec::new();
    for _ in 0..dims {
        shape.push(r.u64(&name)?);
    }
    shape.reverse();
    let kind = r.u32(&name)?;
    Ok((name.clone(), shape, kind, r.u64(&name)?))
}

fn format(kind: u32) -> Option<WeightFormat> {
    match kind {
        0 => Some(WeightFormat::Dense(DType::F32)),
        1 => Some(WeightFormat::Dense(DType::F16)),
        30 => Some(WeightFormat::Dense(DType::Bf16)),
        _ => GgmlType::from_file_number(kind).map(WeightFormat::Ggml),
    }
}

fn unknown_type(kind: u32) -> String {
    let name = match kind {
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        21 => "IQ3_S",
        22 => "IQ2_S",
        29 => "IQ1_M",
        34 => "TQ1_0",
        35 => "TQ2_0",
        _ => "",
    };
    let known: Vec<&str> = GgmlType::ALL.iter().map(|t| t.name()).collect();
    format!("type {kind} {name}; F32, F16, BF16, {} are read", known.join(", "))
}

fn tensor_bytes(shape: &[u64], format: WeightFormat) -> Option<u64> {
    let len = shape.iter().try_fold(1u64, |n, d| n.checked_mul(*d))?;
    match format {
        WeightFormat::Ggml(t) => {
            t.bytes_of(*shape.last()?)?;
            t.bytes_of(len)
        }
        format => len.checked_mul(format.dense()?.size_bytes() as u64),
    }
}

#[cfg(test)]
#[path = "gguf_tests.rs"]
mod tests;

//! The zip form of a torch file (torch 1.6 and later): stored entries, never compressed, so that each storage is a
//! range of the mapped file. ZIP64 is read; checksums are not computed (that would read every weight twice).

use std::collections::HashMap;
use std::ops::Range;

use super::pickle::{self, Heap, Reason, Value};
use crate::limits::MAX_ZIP_ENTRIES;

/// What a torch file holds, whichever its form.
pub(super) struct Contents {
    pub heap: Heap,
    pub root: Value,
    /// Bytes of each storage in the file, by key.
    pub storages: HashMap<String, Range<usize>>,
}

/// Whether a file starts as a zip does.
pub(super) fn is_zip(file: &[u8]) -> bool {
    file.starts_with(b"PK\x03\x04") || file.starts_with(b"PK\x05\x06")
}

/// Reads the directory and the pickle of a zip.
pub(super) fn read(file: &[u8]) -> Reason<Contents> {
    let entries = entries(file)?;
    let mut roots = entries.keys().filter_map(|name| name.strip_suffix("data.pkl"));
    let (Some(root), None) = (roots.next(), roots.next()) else {
        return Err("zip: not exactly one data.pkl in it; is it a torch checkpoint?".to_owned());
    };
    if let Some(order) = entries.get(&format!("{root}byteorder"))
        && &file[order.clone()] != b"little"
    {
        return Err("it was saved on a big-endian machine; little-endian is wanted".to_owned());
    }
    let (heap, value, _) = pickle::load(&file[entries[&format!("{root}data.pkl")].clone()])?;
    let data = format!("{root}data/");
    let storages = entries
        .iter()
        .filter_map(|(name, range)| Some((name.strip_prefix(data.as_str())?.to_owned(), range.clone())));
    Ok(Contents { heap, root: value, storages: storages.collect() })
}

/// Every entry's bytes in the file, by name.
fn entries(file: &[u8]) -> Reason<HashMap<String, Range<usize>>> {
    let (count, mut at) = directory(file)?;
    let mut entries = HashMap::new();
    for _ in 0..count {
        let (entry, next) = central_entry(file, at)?;
        let range = entry.data(file).map_err(|reason| format!("zip: {}: {reason}", entry.name))?;
        if entries.insert(entry.name.clone(), range).is_some() {
            return Err(format!("zip: {} stands twice", entry.name));
        }
        at = next;
    }
    Ok(entries)
}

/// Number of entries and where the central directory starts.
fn directory(file: &[u8]) -> Reason<(u64, usize)> {
    let truncated = || "zip: it has no directory at its end (truncated download?)".to_owned();
    // The record is 22 bytes and a comment of at most 65535.
    let tail = file.len().saturating_sub(22 + 65_535);
    let end = file[tail..].windows(4).rposition(|w| w == b"PK\x05\x06").ok_or_else(truncated)? + tail;
    if end + 22 + field(file, end + 20, 2)? as usize > file.len() {
        return Err(truncated());
    }
    let mut count = field(file, end + 10, 2)?;
    let mut start = field(file, end + 16, 4)?;
    if (count == 0xFFFF || start == 0xFFFF_FFFF)
        && let Some(locator) = end.checked_sub(20)
        && file[locator..].starts_with(b"PK\x06\x07")
    {
        let record = position(field(file, locator + 8, 8)?)?;
        if !file.get(record..).is_some_and(|r| r.starts_with(b"PK\x06\x06")) {
            return Err(truncated());
        }
        count = field(file, record + 32, 8)?;
        start = field(file, record + 48, 8)?;
    }
    if count > MAX_ZIP_ENTRIES || count > file.len() as u64 / 46 {
        return Err(format!("zip: it says it has {count} entries; at most {MAX_ZIP_ENTRIES} are read"));
    }
    Ok((count, position(start)?))
}

struct Entry {
    name: String,
    flags: u64,
    method: u64,
    packed_bytes: u64,
    bytes: u64,
    header_at: u64,
}

impl Entry {
    /// Where its bytes lie, behind its local header.
    fn data(&self, file: &[u8]) -> Reason<Range<usize>> {
        if self.flags & 1 != 0 {
            return Err("is encrypted".to_owned());
        }
        if self.method != 0 || self.packed_bytes != self.bytes {
            return Err("is compressed; torch stores its entries".to_owned());
        }
        let header = position(self.header_at)?;
        if !file.get(header..).is_some_and(|h| h.starts_with(b"PK\x03\x04")) {
            return Err(format!("has no header at byte {header}"));
        }
        let (name, extra) = (field(file, header + 26, 2)?, field(file, header + 28, 2)?);
        let start = header + 30 + name as usize + extra as usize;
        let end = position(self.bytes)?.checked_add(start).filter(|end| *end <= file.len());
        end.map(|end| start..end).ok_or_else(|| {
            format!(
                "is {} bytes from byte {start}, past the end of the file (truncated download?)",
                self.bytes
            )
        })
    }
}

/// The entry whose directory record is at `at`, and where the next one is.
fn central_entry(file: &[u8], at: usize) -> Reason<(Entry, usize)> {
    if !file.get(at..).is_some_and(|r| r.starts_with(b"PK\x01\x02")) {
        return Err(format!("zip: no directory record at byte {at}"));
    }
    let f = |offset: usize, n: usize| field(file, at + offset, n);
    let [name, extra, comment] = [f(28, 2)? as usize, f(30, 2)? as usize, f(32, 2)? as usize];
    let slice = |from: usize, n: usize| {
        file.get(from..from + n).ok_or_else(|| format!("zip: the directory record at byte {at} is cut off"))
    };
    let text = std::str::from_utf8(slice(at + 46, name)?);
    let mut entry = Entry {
        name: text.map_err(|_| format!("zip: the name at byte {at} is no UTF-8"))?.to_owned(),
        flags: f(8, 2)?,
        method: f(10, 2)?,
        packed_bytes: f(20, 4)?,
        bytes: f(24, 4)?,
        header_at: f(42, 4)?,
    };
    widen(&mut entry, slice(at + 46 + name, extra)?)?;
    Ok((entry, at + 46 + name + extra + comment))
}

/// Replaces fields that did not fit 32 bits by those of the ZIP64 extra field, which has just these, in order.
fn widen(entry: &mut Entry, mut extra: &[u8]) -> Reason<()> {
    while extra.len() >= 4 {
        let (id, n) = (field(extra, 0, 2)?, field(extra, 2, 2)? as usize);
        let body = extra.get(4..4 + n).ok_or_else(|| format!("zip: {}: a field is cut off", entry.name))?;
        if id == 1 {
            let mut at = 0;
            for value in [&mut entry.bytes, &mut entry.packed_bytes, &mut entry.header_at] {
                if *value == 0xFFFF_FFFF {
                    *value = field(body, at, 8)?;
                    at += 8;
                }
            }
        }
        extra = &extra[4 + n..];
    }
    Ok(())
}

/// A little-endian number of `n` bytes.
fn field(file: &[u8], at: usize, n: usize) -> Reason<u64> {
    let bytes = at.checked_add(n).and_then(|end| file.get(at..end));
    let bytes = bytes.ok_or_else(|| format!("zip: a record at byte {at} is cut off"))?;
    Ok(bytes.iter().rev().fold(0, |v, b| v << 8 | u64::from(*b)))
}

/// An offset or size as a `usize` that may be added to without overflow.
fn position(value: u64) -> Reason<usize> {
    usize::try_from(value)
        .ok()
        .filter(|v| *v <= isize::MAX as usize)
        .ok_or_else(|| format!("zip: an offset of {value}"))
}

//! The older form of a torch file (before 1.6, or `_use_new_zipfile_serialization=False`): five pickles in a row,
//! then each storage as an element count and its elements.

use std::collections::HashMap;
use std::ops::Range;

use super::pickle::{self, Heap, Reason, Value};
use super::torch_zip::Contents;

/// The first pickle's number, little-endian.
const MAGIC: [u8; 10] = [0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];
const PROTOCOL: i64 = 1001;

/// Reads the five pickles and where each storage lies.
pub(super) fn read(file: &[u8]) -> Reason<Contents> {
    let mut at = 0;
    let mut next = |what: &str| -> Reason<(Heap, Value)> {
        let (heap, value, n) = pickle::load(&file[at..]).map_err(|e| format!("{what}: {e}"))?;
        at += n;
        Ok((heap, value))
    };
    let (heap, magic) = next("magic number")?;
    if heap.bytes(magic) != Some(&MAGIC) {
        return Err("it starts with a pickle that is not torch's; is it a torch checkpoint?".to_owned());
    }
    let (_, protocol) = next("protocol")?;
    if protocol != Value::Int(PROTOCOL) {
        return Err(format!("protocol {protocol:?}; {PROTOCOL} is wanted"));
    }
    let (heap, system) = next("system")?;
    if heap.item(system, "little_endian") == Some(Value::Bool(false)) {
        return Err("it was saved on a big-endian machine; little-endian is wanted".to_owned());
    }
    let (heap, root) = next("state")?;
    let (names, keys) = next("storage keys")?;
    let keys: Option<Vec<&str>> =
        names.list(keys).and_then(|list| list.iter().map(|key| names.text(*key)).collect());
    let keys = keys.ok_or("the storage keys are no list of strings")?;
    let storages = storages(file, at, &heap, &keys)?;
    Ok(Contents { heap, root, storages })
}

/// Walks the storages from byte `at`, in the order of `keys`.
fn storages(file: &[u8], mut at: usize, heap: &Heap, keys: &[&str]) -> Reason<HashMap<String, Range<usize>>> {
    let mut sizes: HashMap<&str, u64> = HashMap::new();
    for storage in heap.storages() {
        let bytes = storage.dtype.map_or(1, |d| u64::from(d.size_bits()) / 8);
        let key = heap.text(storage.key).unwrap_or_default();
        if sizes.insert(key, bytes).is_some_and(|other| other != bytes) {
            return Err(format!("storage {key} is used with elements of two sizes"));
        }
    }
    let mut storages = HashMap::new();
    for key in keys {
        let size = *sizes.get(key).ok_or_else(|| format!("storage {key} is used by no tensor"))?;
        let count = file.get(at..).and_then(|rest| rest.first_chunk::<8>()).map(|n| u64::from_le_bytes(*n));
        let cut = || format!("storage {key} is cut off (truncated download?)");
        let bytes = count.ok_or_else(cut)?.checked_mul(size).and_then(|n| usize::try_from(n).ok());
        let start = at + 8;
        let end =
            bytes.and_then(|n| start.checked_add(n)).filter(|end| *end <= file.len()).ok_or_else(cut)?;
        if storages.insert((*key).to_owned(), start..end).is_some() {
            return Err(format!("storage {key} stands twice"));
        }
        at = end;
    }
    Ok(storages)
}

//! Weights as plain f32 rows, and the KV pool as plain pages.

use std::os::unix::fs::FileExt as _;

use engine_core::backend::{Fuse, HostPart, HostWeight, PartData, Shard, Uses, Weight};
use engine_core::{Error, Result};

use super::dtype::{decode, encode};

/// A weight as the reference keeps it.
pub struct Rows {
    /// [N, K], or the elements of a vector.
    pub values: Vec<f32>,
}

/// The values of a loaded weight.
pub fn values(w: &Weight) -> &[f32] {
    &w.inner::<Rows>().values
}

/// Reads, shards and stacks the parts.
///
/// # Errors
/// `Unsupported` for a per-head transpose; `Checkpoint` for parts that do not fit their shape; `Io` when a file
/// cannot be read.
pub fn load(w: &HostWeight) -> Result<Rows> {
    if matches!(w.fuse, Fuse::Heads { .. }) {
        return Err(Error::Unsupported(format!("the reference does not load per-head weights ({})", w.name)));
    }
    let mut values = Vec::new();
    for part in &w.parts {
        let all = read(part)?;
        values.extend(shard(&all, part, w));
    }
    Ok(Rows { values })
}

fn shard(values: &[f32], part: &HostPart, w: &HostWeight) -> Vec<f32> {
    // A vector's elements are split where a matrix's rows would be.
    let k = if w.uses == Uses::Vector && part.shape[0] == 1 { 1 } else { part.shape[1] as usize };
    match w.shard {
        Shard::Whole => values.to_vec(),
        Shard::Rows { rank, world } => {
            let share = values.len() / k / world as usize;
            values[rank as usize * share * k..][..share * k].to_vec()
        }
        Shard::Cols { rank, world } => {
            let share = k / world as usize;
            let columns = rank as usize * share..(rank as usize + 1) * share;
            values.chunks_exact(k).flat_map(|row| row[columns.clone()].to_vec()).collect()
        }
    }
}

fn read(part: &HostPart) -> Result<Vec<f32>> {
    let Some(dtype) = part.format.dense() else { return super::quantized::values(part) };
    let count = part.shape[0] * part.shape[1];
    let bytes = match &part.data {
        PartData::Mapped(bytes) => bytes.to_vec(),
        PartData::File { file, at, len } => {
            let mut bytes = vec![0; *len as usize];
            file.read_exact_at(&mut bytes, *at).map_err(|e| Error::io(&part.name, e))?;
            bytes
        }
        PartData::Fill(fill) => encode(dtype, &(0..count).map(|i| fill.value(i)).collect::<Vec<_>>()),
    };
    let wanted = count as usize * dtype.size_bytes();
    if bytes.len() != wanted {
        let text = format!(
            "{} has {} bytes, its shape {:?} of {dtype} needs {wanted}",
            part.name,
            bytes.len(),
            part.shape
        );
        return Err(Error::Checkpoint(text));
    }
    Ok(decode(dtype, &bytes))
}

//! Weights as this device keeps them: matrices [N, K] row by row in the checkpoint's type, gate and up rows
//! interleaved by eights so that one tile of a product holds both; vectors and tables in f32.

use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use engine_core::backend::{Fuse, HostPart, HostWeight, PartData, Shard, Uses, Weight};
use engine_core::loader::fill::Fill;
use engine_core::{DType, Error, Result};
use half::{bf16, f16};
use kernels::params;

use super::driver::Queue;
use super::gpu::Gpu;
use super::mem::Region;
use super::ops::code;

/// Rows of gate (or up) that stand together in an interleaved weight.
const INTERLEAVE: u64 = 8;

/// A weight on the device.
pub struct CudaWeight {
    pub region: Arc<Region>,
    pub dtype: DType,
    /// Rows stored, those of padding included.
    pub rows: u32,
    pub cols: u32,
    pub interleaved: bool,
}

/// The device's side of a weight.
pub fn inner(w: &Weight) -> &CudaWeight {
    w.inner::<CudaWeight>()
}

/// Reads, shards, fuses and copies a weight.
///
/// # Errors
/// `Unsupported` for a format that is not dense; `Checkpoint` and `Io` from the file; out of memory.
pub fn load(gpu: &Arc<Gpu>, w: &HostWeight) -> Result<CudaWeight> {
    if matches!(w.fuse, Fuse::Heads { .. }) {
        return Err(Error::Unsupported(format!("per-head weights have no kernel here yet ({})", w.name)));
    }
    match w.uses {
        Uses::Vector => load_vector(gpu, w),
        _ => load_matrix(gpu, w),
    }
}

fn load_vector(gpu: &Arc<Gpu>, w: &HostWeight) -> Result<CudaWeight> {
    let mut values: Vec<f32> = Vec::new();
    for part in &w.parts {
        let dtype = dense(part)?;
        values.extend(decode(dtype, &shard(read(part, dtype)?, part, w, dtype)));
    }
    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    let region = Region::new(gpu, bytes.len() as u64, &w.name)?;
    region.write(0, &bytes)?;
    let cols = w.meta().k;
    let rows = (values.len() as u32).checked_div(cols).unwrap_or(0);
    Ok(CudaWeight { region, dtype: DType::F32, rows, cols, interleaved: false })
}

fn load_matrix(gpu: &Arc<Gpu>, w: &HostWeight) -> Result<CudaWeight> {
    let first = w.parts.first().unwrap_or_else(|| panic!("weight {} has no parts", w.name));
    let dtype = dense(first)?;
    if let Some(other) = w.parts.iter().find(|p| p.format.dense() != Some(dtype)) {
        return Err(Error::Unsupported(format!(
            "{} is {}, but {} that is fused with it is {dtype}: one product of mixed types has no kernel here yet",
            other.name, other.format, first.name
        )));
    }
    let (meta, interleaved) = (w.meta(), w.fuse == Fuse::GateUp);
    let (rows, cols) = (u64::from(meta.n), u64::from(meta.k));
    let stored = if interleaved { 2 * (rows / 2).next_multiple_of(INTERLEAVE) } else { rows };
    let region = Region::new(gpu, stored * cols * dtype.size_bytes() as u64, &w.name)?;
    let mut row = 0;
    for (i, part) in w.parts.iter().enumerate() {
        let place =
            Place { cols, first_row: if interleaved { i as u64 * INTERLEAVE } else { row }, interleaved };
        row += match (&part.data, w.shard) {
            (PartData::Fill(fill), Shard::Whole) => {
                fill_part(gpu, &region, fill, dtype, part.shape[0], &place)?;
                part.shape[0]
            }
            _ => {
                let bytes = shard(read(part, dtype)?, part, w, dtype);
                copy_part(&region, &bytes, dtype, &place)?
            }
        };
    }
    Ok(CudaWeight { region, dtype, rows: stored as u32, cols: cols as u32, interleaved })
}

/// Where a part's rows go.
struct Place {
    cols: u64,
    first_row: u64,
    interleaved: bool,
}

/// Copies the rows of a part and says how many there are.
fn copy_part(region: &Region, bytes: &[u8], dtype: DType, place: &Place) -> Result<u64> {
    let row_bytes = place.cols * dtype.size_bytes() as u64;
    let rows = bytes.len() as u64 / row_bytes.max(1);
    if !place.interleaved {
        region.write(place.first_row * row_bytes, bytes)?;
        return Ok(rows);
    }
    for (i, block) in bytes.chunks((INTERLEAVE * row_bytes) as usize).enumerate() {
        region.write((i as u64 * 2 * INTERLEAVE + place.first_row) * row_bytes, block)?;
    }
    Ok(rows)
}

/// Makes a part's random values on the device.
fn fill_part(
    gpu: &Arc<Gpu>,
    region: &Region,
    fill: &Fill,
    dtype: DType,
    rows: u64,
    place: &Place,
) -> Result<()> {
    gpu.bind()?;
    let (scale, mean) = fill.scale_and_mean();
    let queue = Queue::new()?;
    let params = params::Fill {
        out: region.address(),
        key: fill.key(),
        rows,
        cols: place.cols,
        scale,
        mean,
        dtype: code(dtype),
        interleave: u32::from(place.interleaved),
        row_offset: place.first_row as u32,
        ..Default::default()
    };
    let blocks = (rows * place.cols).div_ceil(256 * 16).clamp(1, u64::from(gpu.units) * 32) as u32;
    gpu.launch(queue.0, "fill_random", [blocks, 1, 1], 256, 0, &params)?;
    queue.synchronize("fill_random")
}

fn dense(part: &HostPart) -> Result<DType> {
    let dtype = part.format.dense().filter(|d| matches!(d, DType::F32 | DType::F16 | DType::Bf16));
    dtype.ok_or_else(|| {
        Error::Unsupported(format!(
            "{} is of format {}: the CUDA backend has dense weights (float32, float16, bfloat16) so far",
            part.name, part.format
        ))
    })
}

fn read(part: &HostPart, dtype: DType) -> Result<Vec<u8>> {
    let wanted = (part.shape[0] * part.shape[1]) as usize * dtype.size_bytes();
    let bytes = match &part.data {
        PartData::Mapped(bytes) => bytes.to_vec(),
        PartData::File { file, at, len } => {
            let mut bytes = vec![0; *len as usize];
            file.read_exact_at(&mut bytes, *at).map_err(|e| Error::io(&part.name, e))?;
            bytes
        }
        PartData::Fill(fill) => {
            let mut bytes = vec![0; wanted];
            fill.write(0, dtype, &mut bytes);
            bytes
        }
    };
    if bytes.len() != wanted {
        return Err(Error::Checkpoint(format!(
            "{} has {} bytes, its shape {:?} of {dtype} needs {wanted}",
            part.name,
            bytes.len(),
            part.shape
        )));
    }
    Ok(bytes)
}

fn shard(bytes: Vec<u8>, part: &HostPart, w: &HostWeight, dtype: DType) -> Vec<u8> {
    let size = dtype.size_bytes();
    // A vector's elements are split where a matrix's rows would be.
    let k = if w.uses == Uses::Vector && part.shape[0] == 1 { 1 } else { part.shape[1] as usize };
    match w.shard {
        Shard::Whole => bytes,
        Shard::Rows { rank, world } => {
            let share = bytes.len() / size / k / world as usize * k * size;
            bytes[rank as usize * share..][..share].to_vec()
        }
        Shard::Cols { rank, world } => {
            let share = k / world as usize * size;
            let columns = rank as usize * share..(rank as usize + 1) * share;
            bytes.chunks_exact(k * size).flat_map(|row| row[columns.clone()].to_vec()).collect()
        }
    }
}

fn decode(dtype: DType, bytes: &[u8]) -> Vec<f32> {
    match dtype {
        DType::F16 => bytes.as_chunks::<2>().0.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect(),
        DType::Bf16 => bytes.as_chunks::<2>().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect(),
        _ => bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
    }
}

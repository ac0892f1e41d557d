//! Weights: from checkpoint parts to the layout the kernels stream.
//!
//! A matrix [N, K] is stored in *panels* of 32 outputs. Within a panel K runs slowest, so that one panel is one
//! contiguous stream and vector lanes are outputs; every output is then summed over K in one fixed order whatever
//! the number of rows that meet it. bfloat16 keeps pairs of K together, [K/2][32][2], which serves `vdpbf16ps` as it
//! is and the f32 path by one shift or mask; f16 and f32 are [K][32]. With `Fuse::GateUp` a panel holds 16 gate and
//! the 16 matching up outputs, so that the epilogue finds both in one place. Outputs past N are zeros.
//!
//! Tied embeddings (`Uses::Both`) are panels too; the embedding gathers from them. `Uses::Embed` is row-major, and
//! `Uses::Vector` is f32. Matrices are stored in the type of the activations that meet them, so `--dtype float32`
//! means f32 arithmetic on f32 weights whatever the checkpoint holds.

use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use engine_core::backend::{ActFormat, Fuse, HostPart, HostWeight, PartData, Shard, Uses, WeightMeta};
use engine_core::loader::HostBytes;
use engine_core::loader::fill::Fill;
use engine_core::quant::{WeightFormat, dequantized};
use engine_core::{DType, Error, Result};
use half::{bf16, f16};

use crate::memory::{Memory, Region};
use crate::simd::transpose;
use crate::strips::{self, Strips};

/// Outputs of a panel.
pub(crate) const PANEL: usize = 32;

/// How a weight's elements are laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    Panels,
    Rows,
    /// Quantized; see [`crate::strips`].
    Strips,
}

/// A loaded weight.
pub(crate) struct CpuWeight {
    pub region: Arc<Region>,
    pub layout: Layout,
    pub dtype: DType,
    pub n: usize,
    pub k: usize,
    /// Gate and up interleaved.
    pub gate_up: bool,
    /// Of [`Layout::Strips`].
    pub strips: Option<Strips>,
}

impl CpuWeight {
    /// Panels of the matrix.
    pub fn panels(&self) -> usize {
        panels(self.n, self.gate_up)
    }
    /// Bytes of one panel.
    pub fn panel_bytes(&self) -> usize {
        panel_bytes(self.k, self.dtype)
    }
}

/// Loads `w` into `memory`.
///
/// # Errors
/// `Unsupported` for per-head weights; `Checkpoint` for parts that do not fit together.
pub(crate) fn load(memory: &Arc<Memory>, mut w: HostWeight) -> Result<(WeightMeta, CpuWeight)> {
    if w.parts.iter().any(|p| !p.format.is_dense()) {
        if let Some(loaded) = strips::load(memory, &w)? {
            return Ok(loaded);
        }
        w.parts = w.parts.into_iter().map(dequantized).collect::<Result<_>>()?;
    }
    let source = Source::new(&w)?;
    let dtype = if w.uses == Uses::Vector { DType::F32 } else { w.act_dtype };
    if !matches!(dtype, DType::F32 | DType::F16 | DType::Bf16) {
        let text =
            format!("weight {}: the CPU computes in float32, float16 or bfloat16, not {dtype}", w.name);
        return Err(Error::Unsupported(text));
    }
    let layout = match w.uses {
        Uses::Linear | Uses::Both => Layout::Panels,
        Uses::Embed | Uses::Vector => Layout::Rows,
    };
    let gate_up = source.gate_up;
    let (n, k) = (source.n, source.k);
    let bytes = match layout {
        Layout::Panels => panels(n, gate_up) * panel_bytes(k, dtype),
        Layout::Rows | Layout::Strips => n * k * dtype.size_bytes(),
    };
    let hint = "choose a smaller model, --dtype bfloat16, or a machine with more memory";
    let region = memory.allocate(bytes, &format!("weight {}", w.name), hint)?;
    let loaded = CpuWeight { region, layout, dtype, n, k, gate_up, strips: None };
    match layout {
        Layout::Panels => pack_panels(&source, &loaded),
        Layout::Rows if w.uses == Uses::Vector && n == 1 => pack_vector(&source, &loaded),
        Layout::Rows => pack_rows(&source, &loaded),
        Layout::Strips => {}
    }
    let meta = WeightMeta {
        name: w.name,
        n: n as u32,
        k: k as u32,
        format: WeightFormat::Dense(dtype),
        act: ActFormat::Plain,
        fuse: w.fuse,
        uses: w.uses,
        bytes: bytes as u64,
    };
    Ok((meta, loaded))
}

pub(crate) fn panels(n: usize, gate_up: bool) -> usize {
    if gate_up { (n / 2).div_ceil(PANEL / 2) } else { n.div_ceil(PANEL) }
}

fn panel_bytes(k: usize, dtype: DType) -> usize {
    let k = if dtype == DType::Bf16 { k.next_multiple_of(2) } else { k };
    k * PANEL * dtype.size_bytes()
}

/// The parts of a weight, sharded, as rows of elements.
struct Source {
    parts: Vec<Part>,
    n: usize,
    k: usize,
    gate_up: bool,
}

/// Whether a weight is a vector (its parts, of one row each, follow each other) rather than a small table.
fn is_vector(w: &HostWeight) -> bool {
    w.uses == Uses::Vector && w.parts.iter().all(|p| p.shape[0] == 1)
}

struct Part {
    data: Data,
    dtype: DType,
    rows: Range<usize>,
    cols: Range<usize>,
    /// Columns of the whole tensor.
    width: usize,
}

enum Data {
    Bytes(HostBytes),
    Values(Fill),
}

impl Source {
    fn new(w: &HostWeight) -> Result<Source> {
        if let Fuse::Heads { .. } = w.fuse {
            let text = format!("weight {}: per-head weights have no CPU kernel yet", w.name);
            return Err(Error::Unsupported(text));
        }
        let parts = w.parts.iter().map(|p| Part::new(p, w)).collect::<Result<Vec<_>>>()?;
        let Some(first) = parts.first() else {
            return Err(Error::Checkpoint(format!("weight {} has no parts", w.name)));
        };
        let gate_up = w.fuse == Fuse::GateUp && !is_vector(w);
        if is_vector(w) {
            let k = parts.iter().map(|p| p.cols.len()).sum();
            return Ok(Source { parts, n: 1, k, gate_up });
        }
        let k = first.cols.len();
        if let Some(i) = parts.iter().position(|p| p.cols.len() != k) {
            let (name, got) = (&w.parts[i].name, parts[i].cols.len());
            return Err(Error::Checkpoint(format!("{name} has {got} columns, {} has {k}", w.parts[0].name)));
        }
        if gate_up && (parts.len() != 2 || parts[0].rows.len() != parts[1].rows.len()) {
            let text = format!("weight {} must have a gate and an up part of one shape", w.name);
            return Err(Error::Checkpoint(text));
        }
        let n = parts.iter().map(|p| p.rows.len()).sum();
        Ok(Source { parts, n, k, gate_up })
    }

    /// Part and row within it of output `o` of the packed order; none past the end.
    fn output(&self, o: usize) -> Option<(&Part, usize)> {
        if self.gate_up {
            let half = PANEL / 2;
            let (panel, lane) = (o / PANEL, o % PANEL);
            let row = panel * half + lane % half;
            let part = &self.parts[lane / half];
            return (row < part.rows.len()).then_some((part, row));
        }
        self.row(o)
    }

    /// Part and row within it of row `o` of the stacked parts.
    fn row(&self, mut o: usize) -> Option<(&Part, usize)> {
        for part in &self.parts {
            if o < part.rows.len() {
                return Some((part, o));
            }
            o -= part.rows.len();
        }
        None
    }
}

impl Part {
    fn new(part: &HostPart, w: &HostWeight) -> Result<Part> {
        let Some(dtype) = part.format.dense() else {
            let text = format!("{}: format {} has no CPU kernel", part.name, part.format);
            return Err(Error::Unsupported(text));
        };
        let [n, k] = part.shape.map(|s| s as usize);
        let share = |len: usize, rank: u32, world: u32| {
            let (rank, world) = (rank as usize, world as usize);
            if !len.is_multiple_of(world) {
                let text = format!("{}: {len} does not divide over {world} ranks", part.name);
                return Err(Error::Config(text));
            }
            Ok(rank * (len / world)..(rank + 1) * (len / world))
        };
        let (rows, cols) = match w.shard {
            Shard::Whole => (0..n, 0..k),
            Shard::Rows { rank, world } if !is_vector(w) => (share(n, rank, world)?, 0..k),
            Shard::Rows { rank, world } | Shard::Cols { rank, world } => (0..n, share(k, rank, world)?),
        };
        let data = match &part.data {
            PartData::Mapped(bytes) => Data::Bytes(bytes.clone()),
            PartData::File { file, at, len } => {
                let mut bytes = vec![0u8; *len as usize];
                file.read_exact_at(&mut bytes, *at).map_err(|e| Error::io(&part.name, e))?;
                Data::Bytes(bytes.into())
            }
            PartData::Fill(fill) => Data::Values(*fill),
        };
        let wanted = n as u64 * k as u64 * dtype.size_bytes() as u64;
        if let Data::Bytes(bytes) = &data
            && bytes.len() as u64 != wanted
        {
            let text =
                format!("{}: {} bytes for [{n}, {k}] {dtype}, wanted {wanted}", part.name, bytes.len());
            return Err(Error::Checkpoint(text));
        }
        Ok(Part { data, dtype, rows, cols, width: k })
    }

    /// Bytes of row `r` (of the shard), if they are stored as `dtype`.
    fn stored(&self, r: usize, dtype: DType) -> Option<&[u8]> {
        match &self.data {
            Data::Bytes(bytes) if self.dtype == dtype => Some(self.bytes_of(bytes, r)),
            _ => None,
        }
    }

    fn bytes_of<'a>(&self, bytes: &'a HostBytes, r: usize) -> &'a [u8] {
        let size = self.dtype.size_bytes();
        let first = (self.rows.start + r) * self.width;
        &bytes.as_slice()[(first + self.cols.start) * size..(first + self.cols.end) * size]
    }

    /// Index of the first element of row `r` (of the shard) in the whole tensor.
    fn first(&self, r: usize) -> u64 {
        ((self.rows.start + r) * self.width + self.cols.start) as u64
    }

    /// Row `r` as f32.
    fn widen(&self, r: usize, into: &mut [f32]) {
        match &self.data {
            Data::Bytes(bytes) => widen(self.bytes_of(bytes, r), self.dtype, into),
            Data::Values(values) => {
                for (i, x) in (self.first(r)..).zip(into) {
                    *x = round(values.value(i), self.dtype);
                }
            }
        }
    }
}

/// What `dtype` stores of `x`.
fn round(x: f32, dtype: DType) -> f32 {
    match dtype {
        DType::Bf16 => bf16::from_f32(x).to_f32(),
        DType::F16 => f16::from_f32(x).to_f32(),
        _ => x,
    }
}

fn widen(bytes: &[u8], dtype: DType, into: &mut [f32]) {
    let halves = |f: fn(u16) -> f32, into: &mut [f32]| {
        for (x, b) in into.iter_mut().zip(bytes.as_chunks::<2>().0) {
            *x = f(u16::from_le_bytes(*b));
        }
    };
    match dtype {
        DType::Bf16 => halves(|b| bf16::from_bits(b).to_f32(), into),
        DType::F16 => halves(|b| f16::from_bits(b).to_f32(), into),
        _ => {
            for (x, b) in into.iter_mut().zip(bytes.as_chunks::<4>().0) {
                *x = f32::from_le_bytes(*b);
            }
        }
    }
}

/// Row `r` of `part` in `dtype`: a borrow of the mapping where it is stored so, else converted into `buffer`.
fn row_as<'a>(part: &'a Part, r: usize, dtype: DType, wide: &mut [f32], buffer: &'a mut [u8]) -> &'a [u8] {
    if let Some(bytes) = part.stored(r, dtype) {
        return bytes;
    }
    if let (Data::Values(values), true) = (&part.data, part.dtype == dtype) {
        values.write(part.first(r), dtype, buffer);
        return buffer;
    }
    part.widen(r, wide);
    match dtype {
        DType::F32 => {
            for (b, x) in buffer.as_chunks_mut::<4>().0.iter_mut().zip(wide) {
                *b = x.to_le_bytes();
            }
        }
        DType::F16 => narrow(buffer, wide, |x| f16::from_f32(x).to_bits()),
        _ => narrow(buffer, wide, |x| bf16::from_f32(x).to_bits()),
    }
    buffer
}

fn narrow(buffer: &mut [u8], wide: &[f32], f: impl Fn(f32) -> u16) {
    for (b, x) in buffer.as_chunks_mut::<2>().0.iter_mut().zip(wide) {
        *b = f(*x).to_le_bytes();
    }
}

fn pack_vector(source: &Source, w: &CpuWeight) {
    let mut at = 0;
    for part in &source.parts {
        // SAFETY: the region has as many f32 as all parts together, and nobody else has it yet.
        let into =
            unsafe { std::slice::from_raw_parts_mut(w.region.base().cast::<f32>().add(at), part.cols.len()) };
        part.widen(0, into);
        at += part.cols.len();
    }
}

fn pack_rows(source: &Source, w: &CpuWeight) {
    let row_bytes = w.k * w.dtype.size_bytes();
    let mut wide = vec![0f32; w.k];
    let mut buffer = vec![0u8; row_bytes];
    for o in 0..w.n {
        let Some((part, r)) = source.row(o) else { return };
        let row = row_as(part, r, w.dtype, &mut wide, &mut buffer);
        // SAFETY: the region has n · k elements and nobody else has it yet.
        unsafe { std::ptr::copy_nonoverlapping(row.as_ptr(), w.region.base().add(o * row_bytes), row_bytes) };
    }
}

fn pack_panels(source: &Source, w: &CpuWeight) {
    let row_bytes = w.k * w.dtype.size_bytes();
    let mut wide = vec![0f32; w.k];
    let mut buffers = vec![0u8; PANEL * row_bytes];
    let zeros = vec![0u8; row_bytes];
    for p in 0..w.panels() {
        let mut rows: [&[u8]; PANEL] = [&zeros; PANEL];
        for (lane, buffer) in buffers.chunks_exact_mut(row_bytes.max(1)).enumerate() {
            if let Some((part, r)) = source.output(p * PANEL + lane) {
                rows[lane] = row_as(part, r, w.dtype, &mut wide, buffer);
            }
        }
        // SAFETY: the region has `panels()` panels and nobody else has it yet.
        let panel = unsafe {
            std::slice::from_raw_parts_mut(w.region.base().add(p * w.panel_bytes()), w.panel_bytes())
        };
        match w.dtype {
            DType::F16 => transpose::plain::<2>(&rows, panel, 0),
            DType::F32 => transpose::words(&rows, panel),
            // A pair of bfloat16 moves as one; the last of an odd K has a zero beside it.
            _ => {
                transpose::words(&rows, panel);
                if w.k % 2 == 1 {
                    for (row, pair) in rows.iter().zip(panel[w.k / 2 * PANEL * 4..].as_chunks_mut::<4>().0) {
                        pair[..2].copy_from_slice(&row[row_bytes - 2..]);
                    }
                }
            }
        }
    }
}

//! Weight formats. One file per quantized format turns checkpoint tensors into host parts and says, in a slow
//! dequantize, what they mean. No kernels here.
//!
//! A format has two readings. [`dequantize`] is the specification: every number of a part as f32. [`coded`] gives
//! the same part as rows of codes and scales ([`codes`]), from which a backend builds its tiles without knowing the
//! checkpoint's packing; tests hold the two together. A backend without tiles for a format may load
//! [`dequantized`] parts instead: correct, at the size of a dense weight.
//!
//! Parts fuse by rows ([`crate::backend::Fuse::Stack`], `GateUp`) whatever their formats; a shard of rows is a shard
//! of any format, a shard of columns is taken of the dequantized part.

pub mod at_load;
mod awq;
mod bitsandbytes;
pub mod checkpoint;
pub mod codes;
mod compressed_tensors;
pub mod ggml;
mod gptq;
mod parts;
mod scaled;
mod squeezellm;

use std::os::unix::fs::FileExt as _;

pub use awq::AwqPacking;
pub use bitsandbytes::Bnb4;
pub use codes::{RowCodes, Scheme};
pub use ggml::GgmlType;
pub use gptq::GptqZeros;
pub use scaled::ScaleBlock;

use crate::backend::{HostPart, PartData};
use crate::error::{Error, Result};
use crate::loader::HostBytes;
use crate::tensor::DType;

/// How the numbers of a weight are stored in the checkpoint. A `group` is so many numbers of K; 0 is all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum WeightFormat {
    /// Plain floating point.
    Dense(DType),
    /// Blocks as in GGUF files, row after row.
    Ggml(GgmlType),
    /// GPTQ: 2, 3, 4 or 8 bits packed along K.
    Gptq { bits: u8, group: u32, zeros: GptqZeros },
    /// AWQ: 4 bits.
    Awq { packing: AwqPacking, group: u32 },
    /// compressed-tensors' pack-quantized integers.
    Packed { bits: u8, group: u32 },
    /// int8 or fp8 numbers with scales.
    Scaled { element: DType, block: ScaleBlock },
    /// bitsandbytes in 4 bits.
    Bnb4 { kind: Bnb4, block: u32 },
    /// SqueezeLLM: a table of values for each output.
    SqueezeLlm { bits: u8 },
}

impl WeightFormat {
    /// Whether matrix products with it are `Op::Gemm` (else `Op::QuantizedMatmul`).
    pub fn is_dense(self) -> bool {
        matches!(self, WeightFormat::Dense(_))
    }

    /// The element type of a dense format.
    pub fn dense(self) -> Option<DType> {
        match self {
            WeightFormat::Dense(d) => Some(d),
            _ => None,
        }
    }
}

impl std::fmt::Display for WeightFormat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let of = |group: &u32| if *group == 0 { "rows".to_owned() } else { format!("groups of {group}") };
        match self {
            WeightFormat::Dense(d) => d.fmt(f),
            WeightFormat::Ggml(t) => t.fmt(f),
            WeightFormat::Gptq { bits, group, zeros } => {
                let version = if *zeros == GptqZeros::Plain { " v2" } else { "" };
                write!(f, "GPTQ{version} {bits} bits, {}", of(group))
            }
            WeightFormat::Awq { packing, group } => write!(f, "AWQ {packing:?}, {}", of(group)),
            WeightFormat::Packed { bits, group } => {
                write!(f, "compressed-tensors packed {bits} bits, {}", of(group))
            }
            WeightFormat::Scaled { element, block } => match (block.rows, block.cols) {
                (0, 0) => write!(f, "{element}, one scale"),
                (1, cols) => write!(f, "{element}, scales of {}", of(&cols)),
                (rows, cols) => write!(f, "{element}, scales of {rows}×{cols}"),
            },
            WeightFormat::Bnb4 { kind, block } => write!(f, "bitsandbytes {kind:?}, blocks of {block}"),
            WeightFormat::SqueezeLlm { bits } => write!(f, "SqueezeLLM {bits} bits"),
        }
    }
}

/// Every number of a quantized part, [N, K] row-major: the specification of its format.
///
/// # Errors
/// `Checkpoint` when its tensors do not fit its shape; `Io` when its file cannot be read.
pub fn dequantize(part: &HostPart) -> Result<Vec<f32>> {
    match part.format {
        WeightFormat::Dense(d) => Err(Error::Checkpoint(format!("{} is plain {d}", part.name))),
        WeightFormat::Ggml(t) => {
            let bytes = host_bytes(&part.name, &part.data)?;
            check_ggml(part, t, &bytes)?;
            t.dequantize(&bytes)
        }
        WeightFormat::Gptq { bits, group, zeros } => gptq::dequantize(part, bits, group, zeros),
        WeightFormat::Awq { packing, group } => awq::dequantize(part, packing, group),
        WeightFormat::Packed { bits, group } => compressed_tensors::dequantize(part, bits, group),
        WeightFormat::Scaled { element, block } => scaled::dequantize(part, element, block),
        WeightFormat::Bnb4 { kind, block } => bitsandbytes::dequantize(part, kind, block),
        WeightFormat::SqueezeLlm { bits } => squeezellm::dequantize(part, bits),
    }
}

/// A part whose numbers are those of `part` as f32; a dense part as it is.
///
/// # Errors
/// As [`dequantize`].
pub fn dequantized(part: HostPart) -> Result<HostPart> {
    if part.format.is_dense() {
        return Ok(part);
    }
    let bytes: Vec<u8> = dequantize(&part)?.iter().flat_map(|x| x.to_le_bytes()).collect();
    Ok(HostPart {
        data: PartData::Mapped(bytes.into()),
        format: WeightFormat::Dense(DType::F32),
        aux: Vec::new(),
        ..part
    })
}

/// A part as rows of codes.
pub struct Coded {
    pub scheme: Scheme,
    /// Column of the checkpoint that stands at each place of a row, where the format sorts columns by group.
    pub order: Option<Vec<u32>>,
    rows: RowReader,
}

/// Appends the codes of a row.
type RowReader = Box<dyn Fn(usize, &mut RowCodes) + Send + Sync>;

impl Coded {
    /// Row `n` in place of what `row` held.
    pub fn row(&self, n: usize, row: &mut RowCodes) {
        row.clear();
        (self.rows)(n, row);
    }
}

/// A quantized part as rows of codes; none for a dense part, and for formats without such a form.
///
/// # Errors
/// As [`dequantize`].
pub fn coded(part: &HostPart) -> Result<Option<Coded>> {
    match part.format {
        WeightFormat::Dense(_) | WeightFormat::SqueezeLlm { .. } => Ok(None),
        WeightFormat::Ggml(t) => {
            let bytes = host_bytes(&part.name, &part.data)?;
            check_ggml(part, t, &bytes)?;
            let row_bytes = part.shape[1] as usize / t.block() * t.block_bytes();
            let rows = move |n: usize, row: &mut RowCodes| {
                codes::ggml_row(t, &bytes.as_slice()[n * row_bytes..][..row_bytes], row);
            };
            Ok(Some(Coded { scheme: codes::ggml_scheme(t), order: None, rows: Box::new(rows) }))
        }
        WeightFormat::Gptq { bits, group, zeros } => gptq::coded(part, bits, group, zeros),
        WeightFormat::Awq { packing, group } => awq::coded(part, packing, group),
        WeightFormat::Packed { bits, group } => compressed_tensors::coded(part, bits, group),
        WeightFormat::Scaled { element, block } => scaled::coded(part, element, block),
        WeightFormat::Bnb4 { kind, block } => bitsandbytes::coded(part, kind, block),
    }
}

fn check_ggml(part: &HostPart, t: GgmlType, bytes: &[u8]) -> Result<()> {
    let [n, k] = part.shape;
    let wanted = t.bytes_of(k).and_then(|row| row.checked_mul(n));
    if wanted == Some(bytes.len() as u64) {
        return Ok(());
    }
    Err(Error::Checkpoint(format!(
        "{}: {} bytes are no {t} weight of shape [{n}, {k}] (rows are whole blocks of {})",
        part.name,
        bytes.len(),
        t.block()
    )))
}

/// The bytes of a part; random values have none.
pub(crate) fn host_bytes(name: &str, data: &PartData) -> Result<HostBytes> {
    match data {
        PartData::Mapped(bytes) => Ok(bytes.clone()),
        PartData::File { file, at, len } => {
            let mut bytes = vec![0u8; *len as usize];
            file.read_exact_at(&mut bytes, *at).map_err(|e| Error::io(name, e))?;
            Ok(bytes.into())
        }
        PartData::Fill(_) => Err(Error::Checkpoint(format!("{name}: random weights are made unquantized"))),
    }
}

//! Weight formats. One file per quantized format turns checkpoint tensors into host parts and says, in a slow
//! dequantize, what they mean. No kernels here.
//!
//! A format has two readings. [`dequantize`] is the specification: every number of a part as f32. [`coded`] gives
//! the same part as rows of codes and scales ([`codes`]), from which a backend builds its tiles without knowing the
//! checkpoint's packing; tests hold the two together. A backend without tiles for a format may load
//! [`dequantized`] parts instead: correct, at the size of a dense weight.

pub mod codes;
pub mod ggml;

use std::os::unix::fs::FileExt as _;

pub use codes::{RowCodes, Scheme};
pub use ggml::GgmlType;

use crate::backend::{HostPart, PartData};
use crate::error::{Error, Result};
use crate::loader::HostBytes;
use crate::tensor::DType;

/// How the numbers of a weight are stored in the checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum WeightFormat {
    /// Plain floating point.
    Dense(DType),
    /// Blocks as in GGUF files, row after row.
    Ggml(GgmlType),
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
        match self {
            WeightFormat::Dense(d) => d.fmt(f),
            WeightFormat::Ggml(t) => t.fmt(f),
        }
    }
}

/// Every number of a quantized part, [N, K] row-major: the specification of its format.
///
/// # Errors
/// `Checkpoint` when its tensors do not fit its shape; `Io` when its file cannot be read.
pub fn dequantize(part: &HostPart) -> Result<Vec<f32>> {
    let bytes = host_bytes(&part.name, &part.data)?;
    match part.format {
        WeightFormat::Dense(d) => Err(Error::Checkpoint(format!("{} is plain {d}", part.name))),
        WeightFormat::Ggml(t) => {
            check_ggml(part, t, &bytes)?;
            t.dequantize(&bytes)
        }
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
    rows: Rows,
}

enum Rows {
    Ggml { t: GgmlType, bytes: HostBytes, row_bytes: usize },
}

impl Coded {
    /// Row `n` in place of what `row` held.
    pub fn row(&self, n: usize, row: &mut RowCodes) {
        row.clear();
        match &self.rows {
            Rows::Ggml { t, bytes, row_bytes } => {
                codes::ggml_row(*t, &bytes.as_slice()[n * row_bytes..][..*row_bytes], row);
            }
        }
    }
}

/// A quantized part as rows of codes; none for a dense part, and for formats without such a form.
///
/// # Errors
/// As [`dequantize`].
pub fn coded(part: &HostPart) -> Result<Option<Coded>> {
    let WeightFormat::Ggml(t) = part.format else { return Ok(None) };
    let bytes = host_bytes(&part.name, &part.data)?;
    check_ggml(part, t, &bytes)?;
    let row_bytes = part.shape[1] as usize / t.block() * t.block_bytes();
    Ok(Some(Coded { scheme: codes::ggml_scheme(t), order: None, rows: Rows::Ggml { t, bytes, row_bytes } }))
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
fn host_bytes(name: &str, data: &PartData) -> Result<HostBytes> {
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

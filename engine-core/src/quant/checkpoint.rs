//! Quantized checkpoints in Hugging Face layout: which method a config.json names, and which tensors make a weight.
//!
//! A weight whose plain tensor is there stays dense whatever the method: checkpoints leave out some modules.

use serde_json::Value;

use super::WeightFormat;
use super::awq::AwqPacking;
use super::bitsandbytes::Bnb4;
use super::gptq::GptqZeros;
use super::parts::float_at;
use super::scaled::ScaleBlock;
use crate::backend::{AuxKind, HostAux, HostPart, PartData};
use crate::config::ModelConfig;
use crate::error::{Error, Result};
use crate::loader::source::WeightSource;
use crate::loader::{Checkpoint, FileDType, HostTensor};
use crate::tensor::DType;

/// What `quantization_config` of a config.json says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    Gptq { group: u32, zeros: GptqZeros },
    Awq { packing: AwqPacking, group: u32 },
    Fp8 { block: Option<ScaleBlock> },
    CompressedTensors { block: Option<ScaleBlock> },
    BitsAndBytes,
    SqueezeLlm,
}

impl Method {
    /// Its name for `--quantization`.
    pub fn name(self) -> &'static str {
        match self {
            Method::Gptq { .. } => "gptq",
            Method::Awq { .. } => "awq",
            Method::Fp8 { .. } => "fp8",
            Method::CompressedTensors { .. } => "compressed-tensors",
            Method::BitsAndBytes => "bitsandbytes",
            Method::SqueezeLlm => "squeezellm",
        }
    }

    /// Whether `--quantization name` means it, under vLLM's names.
    pub fn is_named(self, name: &str) -> bool {
        let aliases: &[&str] = match self {
            Method::Gptq { .. } => &["gptq_marlin", "auto_gptq"],
            Method::Awq { .. } => &["awq_marlin", "auto_awq"],
            Method::Fp8 { .. } => &["fbgemm_fp8"],
            _ => &[],
        };
        name == self.name() || aliases.contains(&name)
    }

    /// The method of a model; none for plain weights.
    ///
    /// # Errors
    /// `Unsupported` for a method or a variant of one that is not read, by name.
    pub fn of(config: &ModelConfig) -> Result<Option<Method>> {
        let Some(q) = &config.quantization_config else { return Ok(None) };
        let text = |key: &str| q.get(key).and_then(Value::as_str);
        let method = text("quant_method").unwrap_or("compressed-tensors");
        let group = group_size(q)?;
        Ok(Some(match method {
            "gptq" => {
                let zeros = match text("checkpoint_format").unwrap_or("gptq") {
                    "gptq" => GptqZeros::LessOne,
                    "gptq_v2" => GptqZeros::Plain,
                    other => return Err(unread("checkpoint_format", other, "gptq and gptq_v2")),
                };
                Method::Gptq { group, zeros }
            }
            "awq" => {
                let packing = match text("version").unwrap_or("gemm").to_lowercase().as_str() {
                    "gemm" => AwqPacking::Gemm,
                    "gemv" => AwqPacking::Gemv,
                    other => return Err(unread("version", other, "gemm and gemv")),
                };
                Method::Awq { packing, group }
            }
            "fp8" | "fbgemm_fp8" => Method::Fp8 { block: block(q.get("weight_block_size"))? },
            "compressed-tensors" | "compressed_tensors" => compressed(q)?,
            "bitsandbytes" => Method::BitsAndBytes,
            "squeezellm" => Method::SqueezeLlm,
            other => {
                let known = "gptq, awq, fp8, fbgemm_fp8, compressed-tensors, bitsandbytes and squeezellm";
                return Err(unread("quant_method", other, known));
            }
        }))
    }
}

fn unread(key: &str, value: &str, known: &str) -> Error {
    Error::Unsupported(format!("config.json: quantization_config.{key} is {value:?}; {known} are read"))
}

fn group_size(q: &Value) -> Result<u32> {
    match q.get("group_size").or(q.get("q_group_size")).and_then(Value::as_i64) {
        None | Some(-1) => Ok(0),
        Some(n) if (1..=1 << 20).contains(&n) => Ok(n as u32),
        Some(n) => Err(unread("group_size", &n.to_string(), "-1 and whole numbers from 1")),
    }
}

fn block(value: Option<&Value>) -> Result<Option<ScaleBlock>> {
    let Some(value) = value.filter(|v| !v.is_null()) else { return Ok(None) };
    let side = |i: usize| value.get(i).and_then(Value::as_u64).filter(|n| (1..=1 << 20).contains(n));
    match (side(0), side(1)) {
        (Some(rows), Some(cols)) => Ok(Some(ScaleBlock { rows: rows as u32, cols: cols as u32 })),
        _ => Err(unread("weight_block_size", &value.to_string(), "pairs of whole numbers")),
    }
}

fn compressed(q: &Value) -> Result<Method> {
    let sparse = q.get("sparsity_config").and_then(|s| s.get("format")).and_then(Value::as_str);
    if let Some(format) = sparse.filter(|f| *f != "dense") {
        return Err(unread("sparsity_config.format", format, "dense checkpoints"));
    }
    let format = q.get("format").and_then(Value::as_str).unwrap_or("dense");
    let known = ["dense", "pack-quantized", "int-quantized", "float-quantized", "naive-quantized"];
    if !known.contains(&format) {
        return Err(unread("format", format, &known.join(", ")));
    }
    let groups = q.get("config_groups").and_then(Value::as_object).into_iter().flatten();
    let structures = groups.filter_map(|(_, g)| g.get("weights")?.get("block_structure"));
    let mut found = None;
    for structure in structures {
        found = block(Some(structure)).unwrap_or(None).or(found);
    }
    Ok(Method::CompressedTensors { block: found })
}

/// A checkpoint whose weights one method has quantized.
#[derive(Debug)]
pub struct QuantizedCheckpoint {
    checkpoint: Checkpoint,
    method: Method,
}

impl QuantizedCheckpoint {
    /// From an open checkpoint and its method.
    pub fn new(checkpoint: Checkpoint, method: Method) -> Self {
        QuantizedCheckpoint { checkpoint, method }
    }

    fn wrong(&self, name: &str, what: &str) -> Error {
        Error::Checkpoint(format!("{}: {name} {what}", self.checkpoint.file_of(name).display()))
    }

    /// A companion tensor of at most two dimensions; vectors are [n, 1] or [1, n] as `upright` says.
    fn aux(&self, name: &str, kind: AuxKind, upright: Upright) -> Result<HostAux> {
        let t = self.checkpoint.tensor(name)?;
        let shape = match (t.shape.as_slice(), upright) {
            ([], _) => [1, 1],
            ([n], Upright::Yes) => [*n, 1],
            ([n], Upright::No) => [1, *n],
            ([a, b], _) => [*a, *b],
            _ => return Err(self.wrong(name, &format!("has shape {:?}; a matrix is wanted", t.shape))),
        };
        let dtype = t.dtype.device();
        let dtype = dtype.ok_or_else(|| self.wrong(name, &format!("is stored as {}", t.dtype)))?;
        Ok(HostAux { kind, data: PartData::Mapped(t.bytes), dtype, shape })
    }

    fn optional(&self, name: &str, kind: AuxKind, upright: Upright) -> Result<Option<HostAux>> {
        match self.checkpoint.has(name) {
            true => self.aux(name, kind, upright).map(Some),
            false => Ok(None),
        }
    }

    fn packed_words(&self, module: &str, shape: [u64; 2]) -> Result<HostPart> {
        let name = format!("{module}.qweight");
        let t = self.words(&name)?;
        let (rows, [_, k]) = (t.shape[0], shape);
        let mut aux = Vec::new();
        let bits = || match rows.checked_mul(32).filter(|b| k > 0 && b % k == 0).map(|b| b / k) {
            Some(bits @ (2 | 3 | 4 | 8)) => Ok(bits as u8),
            _ => Err(self.wrong(&name, &format!("has {rows} rows for K = {k}; 2, 3, 4 or 8 bits are read"))),
        };
        let format = match self.method {
            Method::Gptq { group, zeros } => WeightFormat::Gptq { bits: bits()?, group, zeros },
            Method::Awq { packing, group } => WeightFormat::Awq { packing, group },
            Method::SqueezeLlm => WeightFormat::SqueezeLlm { bits: bits()? },
            other => return Err(self.wrong(&name, &format!("is no tensor of {}", other.name()))),
        };
        if self.method == Method::SqueezeLlm {
            if self.checkpoint.has(&format!("{module}.rows")) {
                let what = "has sparse outliers beside it; the dense form of the model is wanted";
                return Err(self.wrong(&name, what));
            }
            aux.push(self.aux(&format!("{module}.lookup_table"), AuxKind::Scales, Upright::No)?);
        } else {
            aux.push(self.aux(&format!("{module}.scales"), AuxKind::Scales, Upright::No)?);
            aux.push(self.aux(&format!("{module}.qzeros"), AuxKind::Zeros, Upright::No)?);
            aux.extend(self.optional(&format!("{module}.g_idx"), AuxKind::GroupIndex, Upright::No)?);
        }
        Ok(HostPart { name, data: PartData::Mapped(t.bytes), format, shape, aux })
    }

    fn words(&self, name: &str) -> Result<HostTensor> {
        let t = self.checkpoint.tensor(name)?;
        match (t.dtype, t.shape.len()) {
            (FileDType::I32 | FileDType::U32, 2) => Ok(t),
            _ => Err(self
                .wrong(name, &format!("is {} {:?}; a matrix of 32-bit words is wanted", t.dtype, t.shape))),
        }
    }

    fn pack_quantized(&self, module: &str, shape: [u64; 2]) -> Result<HostPart> {
        let name = format!("{module}.weight_packed");
        let t = self.words(&name)?;
        let (words, [_, k]) = (t.shape[1], shape);
        let bits = [2u64, 3, 4, 8].into_iter().find(|bits| k.div_ceil(32 / bits) == words);
        let bits = bits.ok_or_else(|| {
            self.wrong(&name, &format!("has {words} words a row for K = {k}; 2, 3, 4 or 8 bits are read"))
        })?;
        let scales = self.aux(&format!("{module}.weight_scale"), AuxKind::Scales, Upright::Yes)?;
        let group = self.group_of(&name, &scales, k)?;
        let mut aux = vec![scales];
        aux.extend(self.optional(&format!("{module}.weight_zero_point"), AuxKind::Zeros, Upright::Yes)?);
        aux.extend(self.optional(&format!("{module}.weight_g_idx"), AuxKind::GroupIndex, Upright::No)?);
        let format = WeightFormat::Packed { bits: bits as u8, group };
        Ok(HostPart { name, data: PartData::Mapped(t.bytes), format, shape, aux })
    }

    /// Numbers a scale, when there are `scales.shape[1]` of them over K.
    fn group_of(&self, name: &str, scales: &HostAux, k: u64) -> Result<u32> {
        match scales.shape[1] {
            1 => Ok(0),
            groups if groups > 0 && k.is_multiple_of(groups) => Ok((k / groups) as u32),
            groups => Err(self.wrong(name, &format!("has {groups} scales a row for K = {k}"))),
        }
    }

    /// int8 and fp8 weights as they are, with scales beside them.
    fn scaled(&self, module: &str, t: HostTensor, element: DType, shape: [u64; 2]) -> Result<HostPart> {
        let name = format!("{module}.weight");
        let [n, k] = shape;
        if t.shape != shape {
            return Err(
                self.wrong(&name, &format!("has shape {:?}; config.json makes it {shape:?}", t.shape))
            );
        }
        let scales = ["weight_scale_inv", "weight_scale", "SCB"]
            .map(|s| format!("{module}.{s}"))
            .into_iter()
            .find(|s| self.checkpoint.has(s));
        let scales = scales.ok_or_else(|| self.wrong(&name, "has no weight_scale beside it"))?;
        let mut aux = self.aux(&scales, AuxKind::Scales, Upright::Yes)?;
        if scales.ends_with(".SCB") {
            aux = divided_by_127(aux, n)?;
        }
        let configured = match self.method {
            Method::Fp8 { block } | Method::CompressedTensors { block } => block,
            _ => None,
        };
        let blocks = |b: ScaleBlock| [n.div_ceil(u64::from(b.rows)), k.div_ceil(u64::from(b.cols))];
        let block = match (aux.shape, configured) {
            ([1, 1], _) => ScaleBlock { rows: 0, cols: 0 },
            (shape, Some(block)) if shape == blocks(block) => block,
            ([rows, 1], _) if rows == n => ScaleBlock { rows: 1, cols: 0 },
            ([rows, _], _) if rows == n => ScaleBlock { rows: 1, cols: self.group_of(&name, &aux, k)? },
            (shape, _) => {
                return Err(self.wrong(&scales, &format!("has shape {shape:?} for a weight [{n}, {k}]")));
            }
        };
        let format = WeightFormat::Scaled { element, block };
        Ok(HostPart { name, data: PartData::Mapped(t.bytes), format, shape, aux: vec![aux] })
    }

    fn bnb4(&self, module: &str, t: HostTensor, shape: [u64; 2]) -> Result<HostPart> {
        let name = format!("{module}.weight");
        let at = |end: &str| format!("{name}.{end}");
        let kinds = [("nf4", Bnb4::Nf4), ("fp4", Bnb4::Fp4)];
        let state = |kind: &str| at(&format!("quant_state.bitsandbytes__{kind}"));
        let (kind, values) = kinds
            .into_iter()
            .find(|(kind, _)| self.checkpoint.has(&state(kind)))
            .ok_or_else(|| self.wrong(&name, "has no quant_state of bitsandbytes (nf4 or fp4) beside it"))?;
        let state_bytes = self.checkpoint.tensor(&state(kind))?.bytes;
        let json: Value = serde_json::from_slice(&state_bytes)
            .map_err(|e| self.wrong(&state(kind), &format!("is no JSON: {e}")))?;
        let whole = |key: &str| json.get(key).and_then(Value::as_u64).filter(|n| (1..=1 << 20).contains(n));
        let block = whole("blocksize").ok_or_else(|| self.wrong(&state(kind), "names no blocksize"))? as u32;
        let stored = json.get("shape").and_then(|s| Some([s.get(0)?.as_u64()?, s.get(1)?.as_u64()?]));
        if stored != Some(shape) {
            return Err(self.wrong(&name, &format!("has shape {stored:?}; config.json makes it {shape:?}")));
        }
        let absmax = self.checkpoint.tensor(&at("absmax"))?;
        let scales: Vec<f32> = match absmax.dtype {
            FileDType::F32 => {
                (0..absmax.len() as usize).map(|i| float_at(&absmax.bytes, DType::F32, i)).collect()
            }
            FileDType::U8 => {
                let (map, nested) =
                    (self.floats(&at("nested_quant_map"))?, self.floats(&at("nested_absmax"))?);
                let of = whole("nested_blocksize").unwrap_or(256) as usize;
                let offset = json.get("nested_offset").and_then(Value::as_f64).unwrap_or(0.0) as f32;
                if map.len() < 256 || nested.len() < absmax.bytes.len().div_ceil(of) {
                    return Err(self.wrong(&at("absmax"), "has too few nested scales"));
                }
                let one = |(i, code): (usize, &u8)| map[usize::from(*code)] * nested[i / of] + offset;
                absmax.bytes.iter().enumerate().map(one).collect()
            }
            other => return Err(self.wrong(&at("absmax"), &format!("is stored as {other}"))),
        };
        let map = self.floats(&at("quant_map"))?;
        if map.len() != 16 || map.iter().zip(values.values()).any(|(a, b)| (a - b).abs() > 1e-6) {
            return Err(self.wrong(&at("quant_map"), &format!("is not the table of {kind}")));
        }
        let format = WeightFormat::Bnb4 { kind: values, block };
        let aux = vec![floats_aux(scales)];
        Ok(HostPart { name, data: PartData::Mapped(t.bytes), format, shape, aux })
    }

    fn floats(&self, name: &str) -> Result<Vec<f32>> {
        let t = self.checkpoint.tensor(name)?;
        match t.dtype.device().filter(|d| d.is_float()) {
            Some(d) => Ok((0..t.len() as usize).map(|i| float_at(&t.bytes, d, i)).collect()),
            None => Err(self.wrong(name, &format!("is stored as {}", t.dtype))),
        }
    }
}

/// How a vector of scales stands.
#[derive(Clone, Copy)]
enum Upright {
    /// One number a row.
    Yes,
    No,
}

fn floats_aux(values: Vec<f32>) -> HostAux {
    let shape = [1, values.len() as u64];
    let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
    HostAux { kind: AuxKind::Scales, data: PartData::Mapped(bytes.into()), dtype: DType::F32, shape }
}

/// bitsandbytes states the largest magnitude of a row, of which a code is so many 127ths.
fn divided_by_127(aux: HostAux, rows: u64) -> Result<HostAux> {
    let bytes = super::host_bytes("SCB", &aux.data)?;
    let count = bytes.len() / aux.dtype.size_bytes();
    let values = (0..count).map(|i| float_at(&bytes, aux.dtype, i) / 127.0).collect();
    Ok(HostAux { shape: [rows.min(count as u64), 1], ..floats_aux(values) })
}

impl WeightSource for QuantizedCheckpoint {
    fn total_bytes(&self) -> u64 {
        self.checkpoint.total_bytes()
    }

    fn part(&self, name: &str, shape: [u64; 2]) -> Result<HostPart> {
        let Some(module) = name.strip_suffix(".weight") else { return self.checkpoint.part(name, shape) };
        if self.checkpoint.has(&format!("{module}.qweight")) {
            return self.packed_words(module, shape);
        }
        if self.checkpoint.has(&format!("{module}.weight_packed")) {
            return self.pack_quantized(module, shape);
        }
        match self.checkpoint.info(name).map(|i| i.0) {
            Some(FileDType::I8) => self.scaled(module, self.checkpoint.tensor(name)?, DType::I8, shape),
            Some(FileDType::F8E4m3) => {
                self.scaled(module, self.checkpoint.tensor(name)?, DType::F8E4m3, shape)
            }
            Some(FileDType::F8E5m2) => {
                self.scaled(module, self.checkpoint.tensor(name)?, DType::F8E5m2, shape)
            }
            Some(FileDType::U8) => self.bnb4(module, self.checkpoint.tensor(name)?, shape),
            _ => self.checkpoint.part(name, shape),
        }
    }
}

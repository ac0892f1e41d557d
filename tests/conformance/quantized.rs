//! QuantizedMatmul in every weight format: alone, with epilogues, fused parts of different formats.

use std::sync::Arc;

use backend_cpu::reference::ReferenceBackend;
use engine_core::backend::{
    Act, Activation, AuxKind, Backend, Epilogue, Fuse, HostAux, HostPart, Op, OpKind, PartData, Uses, Weight,
};
use engine_core::loader::HostBytes;
use engine_core::quant::{AwqPacking, Bnb4, GgmlType, GptqZeros, ScaleBlock, WeightFormat};
use engine_core::{DType, Error, Result};
use half::f16;

use super::check::{compare_all, outputs_of};
use super::data::{below, encode, normal, word_bytes};
use super::dense::{Follow, follows};
use super::rig::Access::Read;
use super::rig::Mode;
use super::tolerance::tolerance;
use super::{Case, Device, FLOATS, Rig};

/// Every quantized format a checkpoint can have.
pub fn formats() -> Vec<WeightFormat> {
    let mut all: Vec<WeightFormat> = GgmlType::ALL.into_iter().map(WeightFormat::Ggml).collect();
    let gptq = |bits, group, zeros| WeightFormat::Gptq { bits, group, zeros };
    all.extend([2, 3, 4, 8].map(|bits| gptq(bits, 64, GptqZeros::LessOne)));
    all.push(gptq(4, 0, GptqZeros::Plain));
    all.extend([AwqPacking::Gemm, AwqPacking::Gemv].map(|packing| WeightFormat::Awq { packing, group: 64 }));
    all.extend([(4, 32), (8, 0)].map(|(bits, group)| WeightFormat::Packed { bits, group }));
    for element in [DType::F8E4m3, DType::I8] {
        for (rows, cols) in [(0, 0), (1, 0), (1, 128), (128, 128)] {
            all.push(WeightFormat::Scaled { element, block: ScaleBlock { rows, cols } });
        }
    }
    all.extend([Bnb4::Nf4, Bnb4::Fp4].map(|kind| WeightFormat::Bnb4 { kind, block: 64 }));
    all.extend([3, 4].map(|bits| WeightFormat::SqueezeLlm { bits }));
    all
}

/// A part of random codes whose numbers are of about unit size over √K.
pub fn random_part(name: &str, format: WeightFormat, n: usize, k: usize) -> HostPart {
    match format {
        WeightFormat::Ggml(t) => ggml_part(name, t, n, k),
        WeightFormat::Dense(d) => panic!("no random {d} here"),
        _ => packed_part(name, format, n, k),
    }
}

/// Random words, and companions of the shapes that the format asks for.
fn packed_part(name: &str, format: WeightFormat, n: usize, k: usize) -> HostPart {
    let seed = format!("{name}{format}{n}x{k}");
    let codes = |count: usize| random_bytes(&format!("{seed}codes"), count);
    let count = |group: u32| k.div_ceil(if group == 0 { k } else { group as usize });
    let scale = 1.0 / (k as f32).sqrt();
    let scales = |[rows, cols]: [usize; 2], size: f32, dtype: DType| HostAux {
        kind: AuxKind::Scales,
        data: PartData::Mapped(encode(dtype, &normal(&seed, rows * cols, size * scale)).into()),
        dtype,
        shape: [rows as u64, cols as u64],
    };
    let zeros = |shape: [usize; 2]| zero_points(&seed, shape);
    let (mut bytes, aux) = match format {
        WeightFormat::Gptq { bits, group, .. } => {
            let (bits, groups) = (usize::from(bits), count(group));
            let size = 2.0 / (1 << bits) as f32;
            let mut aux =
                vec![scales([groups, n], size, DType::F16), zeros([groups, (n * bits).div_ceil(32)])];
            if bits == 4 && group != 0 {
                // desc_act: columns belong to groups in no order.
                let index: Vec<u32> = (0..k).map(|i| ((i * 11 % k) / group as usize) as u32).collect();
                let data = PartData::Mapped(word_bytes(&index).into());
                aux.push(HostAux {
                    kind: AuxKind::GroupIndex,
                    data,
                    dtype: DType::I32,
                    shape: [1, k as u64],
                });
            }
            (codes((k * bits).div_ceil(32) * n * 4), aux)
        }
        WeightFormat::Awq { packing: AwqPacking::Gemm, group } => {
            let groups = count(group);
            (codes(n * k / 2), vec![scales([groups, n], 0.12, DType::F16), zeros([groups, n / 8])])
        }
        WeightFormat::Awq { packing: AwqPacking::Gemv, group } => {
            let words = count(group).div_ceil(8);
            let aux = vec![scales([n, 8 * words], 0.12, DType::F16), zeros([n, words])];
            (codes(n * k / 2), aux)
        }
        WeightFormat::Packed { bits, group } => {
            let (per_word, groups) = (32 / usize::from(bits), count(group));
            let mut aux = vec![scales([n, groups], 2.0 / (1 << bits) as f32, DType::Bf16)];
            if bits == 4 {
                aux.push(zeros([n.div_ceil(per_word), groups]));
            }
            (codes(n * k.div_ceil(per_word) * 4), aux)
        }
        WeightFormat::Scaled { element, block } => {
            let rows = if block.rows == 0 { n } else { block.rows as usize };
            let size = if element == DType::I8 { 0.014 } else { 0.01 };
            (codes(n * k), vec![scales([n.div_ceil(rows), count(block.cols)], size, DType::F32)])
        }
        WeightFormat::Bnb4 { block, .. } => {
            (codes(n * k / 2), vec![scales([1, (n * k).div_ceil(block as usize)], 1.0, DType::F32)])
        }
        WeightFormat::SqueezeLlm { bits } => {
            let bits = usize::from(bits);
            (codes((k * bits).div_ceil(32) * n * 4), vec![scales([n, 1 << bits], 1.0, DType::F16)])
        }
        _ => panic!("no random {format}"),
    };
    if matches!(format, WeightFormat::Scaled { element: DType::F8E4m3, .. }) {
        // Neither NaN, nor numbers so large that one of them is the whole sum.
        bytes.iter_mut().for_each(|b| *b &= 0xDF);
    }
    let data = PartData::Mapped(HostBytes::from(bytes));
    HostPart { name: name.to_owned(), data, format, shape: [n as u64, k as u64], aux }
}

fn random_bytes(seed: &str, count: usize) -> Vec<u8> {
    below(seed, count, 256).iter().map(|b| *b as u8).collect()
}

fn zero_points(seed: &str, [rows, cols]: [usize; 2]) -> HostAux {
    HostAux {
        kind: AuxKind::Zeros,
        data: PartData::Mapped(random_bytes(&format!("{seed}zeros"), rows * cols * 4).into()),
        dtype: DType::I32,
        shape: [rows as u64, cols as u64],
    }
}

fn ggml_part(name: &str, t: GgmlType, n: usize, k: usize) -> HostPart {
    let blocks = n * k / t.block();
    let seed = format!("{name}{t}{n}x{k}");
    let codes = below(&seed, blocks * t.block_bytes(), 256);
    let mut bytes: Vec<u8> = codes.iter().map(|c| *c as u8).collect();
    let scales = normal(&seed, 2 * blocks, 1.0 / (k as f32).sqrt());
    // Where the f16 fields of a block are, and what makes their numbers about one.
    let (fields, factor): (&[usize], f32) = match t {
        GgmlType::Q4_0 | GgmlType::Q5_0 => (&[0], 0.15),
        GgmlType::Q4_1 | GgmlType::Q5_1 => (&[0, 2], 0.07),
        GgmlType::Q8_0 | GgmlType::Iq4Nl => (&[0], 0.02),
        GgmlType::Q2K => (&[80, 82], 0.1),
        GgmlType::Q3K => (&[108], 0.02),
        GgmlType::Q4K | GgmlType::Q5K => (&[0, 2], 0.002),
        GgmlType::Q6K => (&[208], 0.0005),
        GgmlType::Iq4Xs => (&[0], 0.001),
        GgmlType::Mxfp4 => (&[], 1.0),
    };
    for (b, block) in bytes.chunks_exact_mut(t.block_bytes()).enumerate() {
        for (i, at) in fields.iter().enumerate() {
            let x = f16::from_f32(scales[2 * b + i] * factor);
            block[*at..at + 2].copy_from_slice(&x.to_le_bytes());
        }
        if t == GgmlType::Mxfp4 {
            block[0] = 118 + block[0] % 5;
        }
    }
    let data = PartData::Mapped(HostBytes::from(bytes));
    let shape = [n as u64, k as u64];
    HostPart { name: name.to_owned(), data, format: WeightFormat::Ggml(t), shape, aux: Vec::new() }
}

/// The numbers of x.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Numbers {
    Normal,
    /// Multiples of 1/64 up to 127/64 either way, about half of them the largest: whoever rounds blocks of 32 or more
    /// to int8 by their largest magnitude loses nothing.
    Int8,
}

impl Numbers {
    fn make(self, seed: &str, count: usize) -> Vec<f32> {
        match self {
            Numbers::Normal => normal(seed, count, 1.0),
            Numbers::Int8 => {
                let codes = below(seed, count, 510);
                codes.iter().map(|c| (*c as f32 - 255.0).clamp(-127.0, 127.0) / 64.0).collect()
            }
        }
    }
}

/// One quantized product.
#[derive(Clone, Copy, Debug)]
pub struct QuantizedCase {
    pub format: WeightFormat,
    /// Of the second of two stacked parts, if there are two; or of the up part.
    pub second: Option<WeightFormat>,
    /// [T, N, K]
    pub size: [usize; 3],
    pub dtype: DType,
    pub numbers: Numbers,
    pub follow: Follow,
}

impl QuantizedCase {
    fn weight(&self, rig: &mut Rig) -> Result<Weight> {
        let [_, n, k] = self.size;
        if self.follow.act.halves() {
            let up = self.second.unwrap_or(self.format);
            let parts = vec![random_part("gate", self.format, n / 2, k), random_part("up", up, n / 2, k)];
            return rig.fused(parts, Fuse::GateUp, Uses::Linear, self.dtype);
        }
        match self.second {
            None => rig.fused(vec![random_part("w", self.format, n, k)], Fuse::One, Uses::Linear, self.dtype),
            Some(second) => {
                let first = n / 32 * 16;
                let parts = vec![
                    random_part("first", self.format, first, k),
                    random_part("second", second, n - first, k),
                ];
                rig.fused(parts, Fuse::Stack, Uses::Linear, self.dtype)
            }
        }
    }

    /// Runs rows `rows` of it and declares the output.
    pub fn run(&self, rig: &mut Rig, rows: std::ops::Range<usize>) -> Result<()> {
        let [t, n, k] = self.size;
        let width = if self.follow.act.halves() { n / 2 } else { n };
        let w = self.weight(rig)?;
        let count = rows.len() as u32;
        let x = &self.numbers.make(&format!("x{t}x{k}"), t * k)[rows.start * k..rows.end * k];
        let x = rig.floats("x", &[count, k as u32], self.dtype, x, Read)?;
        let bias = match self.follow.bias {
            true => {
                // Fused like the weight.
                let values = normal("bias", n, 0.5);
                let (a, b) = values.split_at(n / 2);
                let parts = vec![
                    super::data::part("a", 1, n / 2, DType::F32, a),
                    super::data::part("b", 1, n - n / 2, DType::F32, b),
                ];
                let fuse = if self.follow.act.halves() { Fuse::GateUp } else { Fuse::Stack };
                Some(rig.fused(parts, fuse, Uses::Vector, self.dtype)?)
            }
            false => None,
        };
        let residual = &normal("residual", t * width, 1.0)[rows.start * width..rows.end * width];
        let shape = [count, width as u32];
        let residual = match self.follow.residual {
            super::dense::Residual::None => None,
            _ => Some(rig.floats("residual", &shape, self.dtype, residual, Read)?),
        };
        let add = match self.follow.add {
            true => {
                let values = &normal("add", t * n, 1.0)[rows.start * n..rows.end * n];
                Some(rig.floats("add", &[count, n as u32], self.dtype, values, Read)?)
            }
            false => None,
        };
        let out = rig.blank("out", &shape, self.dtype)?;
        let e =
            Epilogue { bias: bias.as_ref(), add, act: self.follow.act, scale: self.follow.scale, residual };
        let dense = w.meta().format.is_dense();
        rig.step(|s| {
            let (x, out) = (Act::from(x), Act::from(out));
            match dense {
                true => s.op(&Op::Gemm { x, w: &w, e, out }),
                false => s.op(&Op::QuantizedMatmul { x, w: &w, e, out }),
            }
        })?;
        rig.output("out", out)
    }

    fn into_case(self) -> Case {
        let [t, n, k] = self.size;
        let second = self.second.map(|s| format!(" and {s}")).unwrap_or_default();
        let what = format!("{}{second} T {t} N {n} K {k} {:?}", self.format, self.follow);
        Case::new(OpKind::QuantizedMatmul, what, self.dtype, move |rig| self.run(rig, 0..t))
    }
}

/// Every format at a few sizes; every epilogue in one format; fused parts of one format and of two.
pub fn quantized_matmul() -> Vec<Case> {
    let mut cases = Vec::new();
    let none = Follow::default();
    let numbers = Numbers::Normal;
    // SqueezeLLM's tables are loaded as dense numbers: there is no product of codes to run.
    let coded = |f: &WeightFormat| !matches!(f, WeightFormat::SqueezeLlm { .. });
    for format in formats().into_iter().filter(coded) {
        for dtype in FLOATS {
            cases.extend(sizes(format).map(|size| QuantizedCase {
                format,
                second: None,
                size,
                dtype,
                numbers,
                follow: none,
            }));
            let act = Activation::SiluMul;
            let size = [3, 80, 256];
            cases.push(QuantizedCase {
                format,
                second: None,
                size,
                dtype,
                numbers,
                follow: Follow { act, ..none },
            });
        }
    }
    let (q4, q6, q8) = (GgmlType::Q4K, GgmlType::Q6K, GgmlType::Q8_0);
    let [q4, q6, q8] = [q4, q6, q8].map(WeightFormat::Ggml);
    for dtype in FLOATS {
        for (format, second) in [(q4, q6), (q8, q4)] {
            for (size, act) in [([1, 96, 512], Activation::Identity), ([14, 80, 256], Activation::SiluMul)] {
                let follow = Follow { act, ..none };
                cases.push(QuantizedCase { format, second: Some(second), size, dtype, numbers, follow });
            }
        }
        for size in [[1, 34, 64], [6, 66, 96]] {
            cases.extend(
                follows()
                    .into_iter()
                    .filter(|f| f.residual != super::dense::Residual::Alias)
                    .map(|follow| QuantizedCase { format: q8, second: None, size, dtype, numbers, follow }),
            );
        }
    }
    cases.into_iter().map(QuantizedCase::into_case).collect()
}

/// Rows that int8 holds: a device that rounds activations to bytes is as near to the reference as one that does not.
///
/// # Panics
/// Where it is not.
pub fn rows_that_int8_holds(device: &Device) {
    let reference: Arc<dyn Backend> = Arc::new(ReferenceBackend::new());
    for format in formats().into_iter().filter(|f| !matches!(f, WeightFormat::SqueezeLlm { .. })) {
        for dtype in [DType::F16, DType::Bf16] {
            for size in sizes(format) {
                let (numbers, follow) = (Numbers::Int8, Follow::default());
                let case = QuantizedCase { format, second: None, size, dtype, numbers, follow }.into_case();
                let got = match outputs_of(&device.backend, &case, Mode::Eager) {
                    Ok((outputs, _)) => outputs,
                    Err(Error::Unsupported(why)) => {
                        println!("{}: left out: {why}", device.name);
                        continue;
                    }
                    Err(e) => panic!("{}: {}: {e}", device.name, case.name),
                };
                let want = outputs_of(&reference, &case, Mode::Eager).unwrap().0;
                if let Err(how) = compare_all(&got, &want, |dtype| tolerance(OpKind::Gemm, dtype)) {
                    panic!("{}: {}: {how}", device.name, case.name);
                }
            }
        }
    }
}

/// One row, an odd number of outputs, K of several chunks with a short last one, more rows than one tile.
fn sizes(format: WeightFormat) -> [[usize; 3]; 4] {
    let block = match format {
        WeightFormat::Ggml(t) => t.block(),
        // AWQ packs eight outputs a word.
        _ => return [[1, 48, 64], [2, 40, 320], [5, 8, 128], [29, 72, 448]],
    };
    let small = block.max(64);
    [[1, 48, small], [2, 33, 256 + block.max(32)], [5, 7, small], [29, 70, 256 + block.max(32)]]
}

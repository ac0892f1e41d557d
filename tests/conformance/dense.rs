//! Gemm and its epilogues, Norm, LayerNorm, NormLinear, Elementwise, TopK.

use engine_core::backend::{Activation, Epilogue, EwOp, Fuse, Op, OpKind, Uses, Weight};
use engine_core::{DType, Result, Tensor};

use super::data::{normal, part};
use super::rig::Access::{Read, Write};
use super::{Case, FLOATS, Rig};

/// Sizes [T, N, K] of a product: nothing, odd, one off a tile, one row (the decode shape), many rows (prefill).
const SIZES: [[usize; 3]; 11] = [
    [1, 1, 1],
    [1, 7, 5],
    [1, 64, 96],
    [1, 259, 1024],
    [2, 33, 31],
    [3, 16, 32],
    [5, 65, 129],
    [8, 48, 64],
    [17, 96, 100],
    [33, 130, 257],
    [70, 31, 65],
];

/// What follows a product in a case.
#[derive(Clone, Copy, Debug, Default)]
pub struct Follow {
    pub bias: bool,
    pub add: bool,
    pub act: Activation,
    pub scale: Option<f32>,
    pub residual: Residual,
}

/// The residual of a product.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Residual {
    #[default]
    None,
    Own,
    /// It is the output's own tensor.
    Alias,
}

/// One product: sizes, types, what follows.
#[derive(Clone, Copy, Debug)]
pub struct GemmCase {
    pub size: [usize; 3],
    /// Of x, the weight, and the output.
    pub dtypes: [DType; 3],
    pub follow: Follow,
    /// x lies in columns of a wider tensor.
    pub strided: bool,
}

impl GemmCase {
    fn plain(size: [usize; 3], dtype: DType) -> Self {
        GemmCase { size, dtypes: [dtype; 3], follow: Follow::default(), strided: false }
    }

    /// The weight: one part, or gate and up for an activation that halves.
    pub fn weight(&self, rig: &mut Rig) -> Result<Weight> {
        let ([_, n, k], [act, dtype, _]) = (self.size, self.dtypes);
        // Scaled so that outputs are about 1.
        let values = normal(&format!("w{n}x{k}"), n * k, 1.0 / (k as f32).sqrt());
        if !self.follow.act.halves() {
            return rig.weight("w", [n, k], dtype, &values, Uses::Linear, act);
        }
        let (gate, up) = values.split_at(n / 2 * k);
        let parts = vec![part("gate", n / 2, k, dtype, gate), part("up", n / 2, k, dtype, up)];
        rig.fused(parts, Fuse::GateUp, Uses::Linear, act)
    }

    /// Its bias, fused like the weight.
    pub fn bias(&self, rig: &mut Rig) -> Result<Option<Weight>> {
        let ([_, n, _], [_, dtype, _]) = (self.size, self.dtypes);
        let values = normal("bias", n, 0.5);
        if !self.follow.bias {
            return Ok(None);
        }
        if !self.follow.act.halves() {
            return rig.vector("bias", dtype, &values).map(Some);
        }
        let (gate, up) = values.split_at(n / 2);
        let parts = vec![part("gate", 1, n / 2, dtype, gate), part("up", 1, n / 2, dtype, up)];
        rig.fused(parts, Fuse::GateUp, Uses::Vector, self.dtypes[0]).map(Some)
    }

    /// Rows `rows` of the case's x.
    pub fn x(&self, rig: &mut Rig, rows: std::ops::Range<usize>) -> Result<Tensor> {
        let [t, _, k] = self.size;
        let (pad, lead) = if self.strided { (6, 2) } else { (0, 0) };
        let all = normal(&format!("x{t}x{k}"), t * (k + pad), 1.0);
        let picked = &all[rows.start * (k + pad)..rows.end * (k + pad)];
        let x = rig.floats("x", &[rows.len() as u32, (k + pad) as u32], self.dtypes[0], picked, Read)?;
        Ok(if self.strided { x.cols_at(lead, k as u32) } else { x })
    }

    /// Runs rows `rows` of it and declares the output.
    pub fn run(&self, rig: &mut Rig, rows: std::ops::Range<usize>) -> Result<()> {
        let ([t, n, _], out_dtype) = (self.size, self.dtypes[2]);
        let width = if self.follow.act.halves() { n / 2 } else { n };
        let (w, bias, x) = (self.weight(rig)?, self.bias(rig)?, self.x(rig, rows.clone())?);
        let slice = |name: &str, width: usize| {
            normal(name, t * width, 1.0)[rows.start * width..rows.end * width].to_vec()
        };
        let count = rows.len() as u32;
        let add = match self.follow.add {
            true => Some(rig.floats("add", &[count, n as u32], out_dtype, &slice("add", n), Read)?),
            false => None,
        };
        let residual = slice("residual", width);
        let shape = [count, width as u32];
        let out = match self.follow.residual {
            Residual::Alias => rig.floats("out", &shape, out_dtype, &residual, Write)?,
            _ => rig.blank("out", &shape, out_dtype)?,
        };
        let residual = match self.follow.residual {
            Residual::None => None,
            Residual::Own => Some(rig.floats("residual", &shape, out_dtype, &residual, Read)?),
            Residual::Alias => Some(out),
        };
        let e =
            Epilogue { bias: bias.as_ref(), add, act: self.follow.act, scale: self.follow.scale, residual };
        rig.step(|s| s.op(&Op::Gemm { x: x.into(), w: &w, e, out: out.into() }))?;
        rig.output("out", out)
    }

    fn into_case(self) -> Case {
        let [t, n, k] = self.size;
        let what = format!(
            "T {t} N {n} K {k} weight {} out {} {:?}{}",
            self.dtypes[1],
            self.dtypes[2],
            self.follow,
            if self.strided { " strided" } else { "" }
        );
        Case::new(OpKind::Gemm, what, self.dtypes[0], move |rig| self.run(rig, 0..t))
    }
}

/// Every size plain; every epilogue at a few sizes; mixed types; a strided x.
pub fn gemm() -> Vec<Case> {
    let mut cases = Vec::new();
    for dtype in FLOATS {
        cases.extend(SIZES.map(|size| GemmCase::plain(size, dtype)));
        for size in [[1, 34, 65], [6, 66, 48], [19, 128, 96]] {
            let plain = GemmCase::plain(size, dtype);
            cases.extend(follows().into_iter().map(|follow| GemmCase { follow, ..plain }));
            cases.push(GemmCase { strided: true, ..plain });
            cases.push(GemmCase { dtypes: [dtype, dtype, DType::F32], ..plain });
            let other = if dtype == DType::F32 { DType::Bf16 } else { DType::F32 };
            cases.push(GemmCase { dtypes: [dtype, other, dtype], ..plain });
        }
    }
    cases.into_iter().map(GemmCase::into_case).collect()
}

pub fn follows() -> Vec<Follow> {
    use Activation::*;
    let none = Follow::default();
    let mut all: Vec<Follow> = [Silu, Gelu, GeluTanh, Relu, SiluMul, GeluTanhMul]
        .into_iter()
        .flat_map(|act| [Follow { act, ..none }, Follow { act, bias: true, ..none }])
        .collect();
    all.extend([
        Follow { bias: true, ..none },
        Follow { add: true, ..none },
        Follow { scale: Some(0.25), ..none },
        Follow { residual: Residual::Own, ..none },
        Follow { residual: Residual::Alias, ..none },
        Follow { bias: true, add: true, act: Silu, scale: Some(-1.5), residual: Residual::Own },
        Follow { bias: true, add: true, act: SiluMul, scale: Some(0.5), residual: Residual::Alias },
    ]);
    all
}

const NORM_SIZES: [[usize; 2]; 7] = [[1, 1], [1, 64], [3, 7], [2, 100], [5, 129], [17, 256], [4, 1030]];

#[derive(Clone, Copy, Debug, PartialEq)]
enum NormKind {
    Plain,
    /// The output is x.
    InPlace,
    Residual,
    /// Residual, and the output is x.
    ResidualInPlace,
}

const NORM_KINDS: [NormKind; 4] =
    [NormKind::Plain, NormKind::InPlace, NormKind::Residual, NormKind::ResidualInPlace];

pub fn norm() -> Vec<Case> {
    norm_cases(OpKind::Norm)
}

pub fn layer_norm() -> Vec<Case> {
    norm_cases(OpKind::LayerNorm)
}

fn norm_cases(op: OpKind) -> Vec<Case> {
    let mut cases = Vec::new();
    for dtype in FLOATS {
        for [t, h] in NORM_SIZES {
            for kind in NORM_KINDS {
                for w_dtype in if dtype == DType::F32 { vec![dtype] } else { vec![dtype, DType::F32] } {
                    let what = format!("{t}x{h} {kind:?} weight {w_dtype}");
                    cases.push(Case::new(op, what, dtype, move |rig| {
                        norm_case(rig, op, [t, h], kind, dtype, w_dtype)
                    }));
                }
            }
        }
    }
    cases
}

fn norm_case(
    rig: &mut Rig,
    op: OpKind,
    [t, h]: [usize; 2],
    kind: NormKind,
    dtype: DType,
    w_dtype: DType,
) -> Result<()> {
    let shape = [t as u32, h as u32];
    let in_place = matches!(kind, NormKind::InPlace | NormKind::ResidualInPlace);
    let access = if in_place { Write } else { Read };
    // Offset and scaled, so that a mean that is left out or a missing eps shows.
    let values: Vec<f32> = normal("norm x", t * h, 2.0).iter().map(|x| x + 0.5).collect();
    let x = rig.floats("x", &shape, dtype, &values, access)?;
    let residual = match kind {
        NormKind::Residual | NormKind::ResidualInPlace => {
            Some(rig.floats("residual", &shape, dtype, &normal("norm residual", t * h, 1.0), Write)?)
        }
        _ => None,
    };
    let w = rig.vector("w", w_dtype, &normal("norm w", h, 1.0))?;
    let bias = rig.vector("bias", w_dtype, &normal("norm bias", h, 1.0))?;
    let out = if in_place { x } else { rig.blank("out", &shape, dtype)? };
    let eps = 0.01;
    // The narrowest layer norm has no bias.
    let bias = (h > 1).then_some(&bias);
    rig.step(|s| match op {
        OpKind::Norm => s.op(&Op::Norm { x, residual, w: &w, eps, out: out.into() }),
        _ => s.op(&Op::LayerNorm { x, residual, w: &w, bias, eps, out: out.into() }),
    })?;
    rig.output("out", out)?;
    residual.map_or(Ok(()), |r| rig.output("residual", r))
}

/// Norm, then a product with and without a residual.
pub fn norm_linear() -> Vec<Case> {
    let mut cases = Vec::new();
    for dtype in FLOATS {
        for [t, n, k] in [[1, 64, 96], [3, 33, 65], [9, 128, 64]] {
            for with_residual in [false, true] {
                for act in [Activation::Identity, Activation::SiluMul] {
                    let what = format!("T {t} N {n} K {k} residual {with_residual} {act:?}");
                    cases.push(Case::new(OpKind::NormLinear, what, dtype, move |rig| {
                        let n = n / 2 * 2;
                        let case = GemmCase {
                            follow: Follow { act, ..Follow::default() },
                            ..GemmCase::plain([t, n, k], dtype)
                        };
                        let (w, x) = (case.weight(rig)?, case.x(rig, 0..t)?);
                        let norm = rig.vector("norm", dtype, &normal("norm w", k, 1.0))?;
                        let residual = match with_residual {
                            true => {
                                let values = normal("residual", t * k, 1.0);
                                Some(rig.floats("residual", &[t as u32, k as u32], dtype, &values, Write)?)
                            }
                            false => None,
                        };
                        let width = if act.halves() { n / 2 } else { n };
                        let out = rig.blank("out", &[t as u32, width as u32], dtype)?;
                        let e = Epilogue { act, ..Epilogue::default() };
                        let eps = 1e-5;
                        rig.step(|s| {
                            s.op(&Op::NormLinear { x, residual, norm: &norm, eps, w: &w, e, out: out.into() })
                        })?;
                        rig.output("out", out)?;
                        residual.map_or(Ok(()), |r| rig.output("residual", r))
                    }));
                }
            }
        }
    }
    cases
}

/// Every op at odd lengths; the output its own tensor, a, or b.
pub fn elementwise() -> Vec<Case> {
    let ops = [
        EwOp::Add,
        EwOp::Mul,
        EwOp::SiluMul,
        EwOp::GeluTanhMul,
        EwOp::Cast,
        EwOp::Scale(-1.25),
        EwOp::SoftCap(2.5),
    ];
    let mut cases = Vec::new();
    for dtype in FLOATS {
        for op in ops {
            for (rows, cols) in [(1, 1), (3, 31), (2, 64), (7, 130)] {
                for alias in [None, Some("a"), Some("b")] {
                    let one = matches!(op, EwOp::Cast | EwOp::Scale(_) | EwOp::SoftCap(_));
                    if one && alias == Some("b") {
                        continue;
                    }
                    let what = format!("{op:?} {rows}x{cols} out is {}", alias.unwrap_or("its own"));
                    cases.push(Case::new(OpKind::Elementwise, what, dtype, move |rig| {
                        let (shape, count) = ([rows, cols], (rows * cols) as usize);
                        let a_access = if alias == Some("a") { Write } else { Read };
                        let b_access = if alias == Some("b") { Write } else { Read };
                        let a = rig.floats("a", &shape, dtype, &normal("ew a", count, 3.0), a_access)?;
                        let b = match one {
                            true => None,
                            false => {
                                Some(rig.floats("b", &shape, dtype, &normal("ew b", count, 1.0), b_access)?)
                            }
                        };
                        let out = match alias {
                            None => rig.blank("out", &shape, dtype)?,
                            Some("a") => a,
                            Some(_) => b.unwrap(),
                        };
                        rig.step(|s| s.op(&Op::Elementwise { op, a, b, out }))?;
                        rig.output("out", out)
                    }));
                }
            }
        }
        for to in FLOATS.into_iter().filter(|to| *to != dtype) {
            cases.push(Case::new(OpKind::Elementwise, format!("Cast to {to}"), dtype, move |rig| {
                let a = rig.floats("a", &[3, 45], dtype, &normal("cast", 135, 3.0), Read)?;
                let out = rig.blank("out", &[3, 45], to)?;
                rig.step(|s| s.op(&Op::Elementwise { op: EwOp::Cast, a, b: None, out }))?;
                rig.output("out", out)
            }));
        }
    }
    cases
}

/// With many equal values: ties go to the smaller id.
pub fn top_k() -> Vec<Case> {
    let mut cases = Vec::new();
    for dtype in FLOATS {
        for (width, k) in [(1, 1), (8, 2), (60, 4), (128, 8), (33, 33)] {
            cases.push(Case::new(OpKind::TopK, format!("{k} of {width}"), dtype, move |rig| {
                let values: Vec<f32> = normal("topk", 6 * width, 2.0).iter().map(|x| x.round()).collect();
                let x = rig.floats("x", &[6, width as u32], dtype, &values, Read)?;
                let ids = rig.blank("ids", &[6, k], DType::I32)?;
                let vals = rig.blank("vals", &[6, k], dtype)?;
                rig.step(|s| s.op(&Op::TopK { x, ids, vals }))?;
                rig.output("ids", ids)?;
                rig.output("vals", vals)
            }));
        }
    }
    cases
}

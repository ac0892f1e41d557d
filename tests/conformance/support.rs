//! docs/support.md: the op × backend matrix, made of what ran.
//!
//! A cell is the worst of what happened on the code paths of this host: `native` when the device started the op
//! itself, `composed` when it ran other ops in its place, `no` when it refused, with the activation types in front of
//! each. It holds no fact about the host, so every machine that passes writes the same text. The column of a backend
//! that this build or host lacks (a GPU's) is kept as it was written where it ran.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;

use engine_core::DType;
use engine_core::backend::{Fuse, OpKind, Uses};
use engine_core::quant::WeightFormat;

use super::check::{Verdict, report};
use super::quantized::{formats, random_part};
use super::rig::{Mode, Rig};
use super::{Device, cases, devices};

const START: &str = "<!-- matrix: written by `cargo run -p tests --bin support-matrix -- --write` -->";
const END: &str = "<!-- end of matrix -->";
const FORMATS_START: &str = "<!-- formats: written by the same program -->";
const FORMATS_END: &str = "<!-- end of formats -->";

/// Compares the committed matrix with what runs here.
///
/// # Errors
/// The difference, as text.
pub fn verify() -> Result<(), String> {
    let committed = std::fs::read_to_string(path()).map_err(|e| format!("{}: {e}", path().display()))?;
    let wanted = replaced(&committed)?;
    if committed == wanted {
        return Ok(());
    }
    let lines = committed.lines().zip(wanted.lines()).find(|(a, b)| a != b);
    let (a, b) = lines.unwrap_or(("(its end)", "(more lines)"));
    Err(format!("docs/support.md is not what ran:\ncommitted: {a}\nran:       {b}"))
}

/// Writes the matrix of what runs here between its markers.
///
/// # Errors
/// When the file cannot be read or written, or has no markers.
pub fn write() -> Result<(), String> {
    let committed = std::fs::read_to_string(path()).map_err(|e| format!("{}: {e}", path().display()))?;
    std::fs::write(path(), replaced(&committed)?).map_err(|e| format!("{}: {e}", path().display()))
}

fn path() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs/support.md")
}

fn replaced(text: &str) -> Result<String, String> {
    let devices = devices();
    let text = between(text, START, END, &matrix(&devices))?;
    between(&text, FORMATS_START, FORMATS_END, &format_matrix(&devices))
}

fn between(text: &str, start: &str, end: &str, body: &str) -> Result<String, String> {
    let missing = || format!("docs/support.md needs the lines\n{start}\n{end}");
    let (before, rest) = text.split_once(start).ok_or_else(missing)?;
    let (committed, after) = rest.split_once(end).ok_or_else(missing)?;
    let body = with_kept_columns(body, committed);
    Ok(format!("{before}{start}\n\n{body}\n{end}{after}"))
}

/// Weight formats over these devices: what a product with a weight of the format did.
fn format_matrix(devices: &[Device]) -> String {
    let mut columns: Vec<&str> = devices.iter().map(|d| d.column).collect();
    columns.dedup();
    let mut text = format!("| Format | {} |\n|---|{}\n", columns.join(" | "), "---|".repeat(columns.len()));
    for format in formats() {
        let cell = |column: &&str| {
            let mut words: Vec<_> =
                devices.iter().filter(|d| d.column == *column).map(|d| how(d, format)).collect();
            words.sort_unstable();
            words.dedup();
            words.join(", ")
        };
        let cells: Vec<String> = columns.iter().map(cell).collect();
        writeln!(text, "| {format} | {} |", cells.join(" | ")).unwrap();
    }
    text
}

/// Whether a device keeps a format's codes, loads it as dense numbers, or refuses it.
fn how(device: &Device, format: WeightFormat) -> &'static str {
    let mut rig = Rig::new(device.backend.clone(), Mode::Eager).unwrap();
    let part = random_part("w", format, 64, 512);
    match rig.fused(vec![part], Fuse::One, Uses::Linear, DType::F32) {
        Ok(w) if w.meta().format.is_dense() => "as dense",
        Ok(_) => "native",
        Err(_) => "no",
    }
}

/// `made` with the columns of `committed` that it has not, behind its own.
fn with_kept_columns(made: &str, committed: &str) -> String {
    let rows = |text: &str| -> Vec<Vec<String>> {
        let cells = |line: &str| line.trim_matches('|').split('|').map(|c| c.trim().to_owned()).collect();
        text.lines().filter(|l| l.starts_with('|')).map(cells).collect()
    };
    let (mut table, old) = (rows(made), rows(committed));
    let Some((head, old_head)) = table.first().cloned().zip(old.first()) else { return made.to_owned() };
    for (column, name) in old_head.iter().enumerate().filter(|(_, name)| !head.contains(name)) {
        for row in &mut table {
            let kept = old.iter().find(|o| o[0] == row[0]).and_then(|o| o.get(column));
            row.push(kept.map_or_else(|| format!("not run since {name} was written"), Clone::clone));
        }
    }
    let line = |row: &Vec<String>| match row[0].starts_with("---") {
        true => format!("|---|{}\n", "---|".repeat(row.len() - 1)),
        false => format!("| {} |\n", row.join(" | ")),
    };
    table.iter().map(line).collect()
}

/// The table over these devices.
pub fn matrix(devices: &[Device]) -> String {
    let mut columns: Vec<&str> = devices.iter().map(|d| d.column).collect();
    columns.dedup();
    let mut text = format!("| Op | {} |\n|---|{}\n", columns.join(" | "), "---|".repeat(columns.len()));
    for op in OpKind::ALL {
        let cells = columns.iter().map(|column| cell(*op, devices.iter().filter(|d| d.column == *column)));
        let cells: Vec<String> = cells.collect();
        writeln!(text, "| {} | {} |", op.name(), cells.join(" | ")).unwrap();
    }
    text
}

/// What happened to an op on one backend's devices, over all activation types.
fn cell<'a>(op: OpKind, devices: impl Iterator<Item = &'a Device>) -> String {
    let cases = cases(op);
    if cases.is_empty() {
        return "not tested".into();
    }
    let mut by_type: BTreeMap<_, Vec<Verdict>> = BTreeMap::new();
    for device in devices {
        for (case, (_, verdict)) in cases.iter().zip(&report(device, op).verdicts) {
            by_type.entry(case.dtype).or_default().push(verdict.clone());
        }
    }
    let mut by_word: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (dtype, verdicts) in &by_type {
        by_word.entry(word(verdicts)).or_default().push(dtype.name());
    }
    let one = by_word.len() == 1;
    let texts = by_word.iter().map(|(word, types)| match one {
        true => (*word).to_owned(),
        false => format!("{word} ({})", types.join(", ")),
    });
    texts.collect::<Vec<_>>().join(", ")
}

/// The worst of some cases; a type of which part is refused is `partly`.
fn word(verdicts: &[Verdict]) -> &'static str {
    let any = |f: fn(&Verdict) -> bool| verdicts.iter().any(f);
    let refused = any(|v| matches!(v, Verdict::No(_)));
    if any(|v| matches!(v, Verdict::Wrong(_))) {
        "wrong"
    } else if refused && verdicts.iter().all(|v| matches!(v, Verdict::No(_))) {
        "no"
    } else if refused {
        "partly"
    } else if any(|v| *v == Verdict::Composed) {
        "composed"
    } else {
        "native"
    }
}

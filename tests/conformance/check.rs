//! Runs cases and compares.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use backend_cpu::reference::ReferenceBackend;
use engine_core::backend::{Backend, OpKind};
use engine_core::{Error, Result};

use super::rig::{Mode, Output};
use super::spy::Seen;
use super::tolerance::{EXACT, Tolerance, tolerance};
use super::{Case, Device, Rig, cases, devices};

/// How one case went on one device.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// It ran as one kernel of its own.
    Native,
    /// It ran as other ops.
    Composed,
    /// The device says that it cannot.
    No(String),
    /// It ran and was wrong.
    Wrong(String),
}

/// Verdicts by case.
pub struct Report {
    pub device: String,
    pub verdicts: Vec<(String, Verdict)>,
}

/// Runs all cases of an op on all devices, prints what was not run, and fails on a wrong one.
///
/// # Panics
/// Listing every case that was wrong.
pub fn run_all(op: OpKind) {
    assert!(!cases(op).is_empty(), "{} has no cases", op.name());
    let mut wrong = Vec::new();
    for device in devices() {
        let report = report(&device, op);
        let mut refusals: BTreeMap<&str, usize> = BTreeMap::new();
        for (name, verdict) in &report.verdicts {
            match verdict {
                Verdict::Wrong(how) => wrong.push(format!("{}: {name}: {how}", report.device)),
                Verdict::No(why) => *refusals.entry(why).or_default() += 1,
                Verdict::Native | Verdict::Composed => {}
            }
        }
        let ran = report.verdicts.len() - refusals.values().sum::<usize>();
        println!("{:>14} {:<16} {ran} cases ran", op.name(), report.device);
        for (why, count) in refusals {
            println!("{:>14} {:<16} {count} cases not supported: {why}", op.name(), report.device);
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), op.name(), wrong.join("\n"));
}

/// All cases of an op on a device; run once in a process.
pub fn report(device: &Device, op: OpKind) -> Arc<Report> {
    static DONE: Memo<(String, OpKind), Report> = Memo::new();
    DONE.get((device.name.clone(), op), || check(device, &cases(op)))
}

/// Runs cases on one device.
pub fn check(device: &Device, cases: &[Case]) -> Report {
    let verdicts = cases.iter().map(|case| (case.name.clone(), check_case(&device.backend, case))).collect();
    Report { device: device.name.clone(), verdicts }
}

/// Runs a case on a device in one mode and returns its outputs.
///
/// # Errors
/// From the device.
pub fn outputs_of(backend: &Arc<dyn Backend>, case: &Case, mode: Mode) -> Result<(Vec<Output>, Vec<Seen>)> {
    let mut rig = Rig::new(backend.clone(), mode)?;
    (case.run)(&mut rig)?;
    Ok(rig.into_outputs())
}

fn check_case(backend: &Arc<dyn Backend>, case: &Case) -> Verdict {
    catch_unwind(AssertUnwindSafe(|| try_case(backend, case))).unwrap_or_else(|payload| {
        let text = payload.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| payload.downcast_ref::<&str>().copied());
        Verdict::Wrong(format!("panicked: {}", text.unwrap_or("no message")))
    })
}

fn try_case(backend: &Arc<dyn Backend>, case: &Case) -> Verdict {
    let (eager, seen) = match outputs_of(backend, case, Mode::Eager) {
        Ok(done) => done,
        Err(Error::Unsupported(why)) => return Verdict::No(why),
        Err(e) => return Verdict::Wrong(e.to_string()),
    };
    let expected = match expected(case) {
        Ok(outputs) => outputs,
        Err(e) => return Verdict::Wrong(format!("the reference failed: {e}")),
    };
    if let Err(how) = compare_all(&eager, &expected, |dtype| tolerance(case.op, dtype)) {
        return Verdict::Wrong(how);
    }
    match outputs_of(backend, case, Mode::Captured) {
        Ok((captured, _)) => {
            if let Err(how) = compare_all(&captured, &eager, |_| EXACT) {
                return Verdict::Wrong(format!("captured differs from eager: {how}"));
            }
        }
        Err(e) => return Verdict::Wrong(format!("captured: {e}")),
    }
    match seen.iter().find(|s| s.kind == case.op) {
        Some(s) if s.ran_as_itself => Verdict::Native,
        Some(_) => Verdict::Composed,
        None => Verdict::Wrong("the case did not run its op".into()),
    }
}

/// What the reference gives; computed once in a process.
fn expected(case: &Case) -> Result<Vec<Output>> {
    static DONE: Memo<String, Result<Vec<Output>>> = Memo::new();
    let reference = || {
        let backend: Arc<dyn Backend> = Arc::new(ReferenceBackend::new());
        outputs_of(&backend, case, Mode::Eager).map(|(outputs, _)| outputs)
    };
    (*DONE.get(case.name.clone(), reference)).clone()
}

/// Values that several tests of one process need, each made once.
struct Memo<K, V>(Mutex<BTreeMap<K, Arc<OnceLock<Arc<V>>>>>);

impl<K: Ord, V> Memo<K, V> {
    const fn new() -> Self {
        Memo(Mutex::new(BTreeMap::new()))
    }

    fn get(&self, key: K, make: impl FnOnce() -> V) -> Arc<V> {
        let cell = self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(key).or_default().clone();
        cell.get_or_init(|| Arc::new(make())).clone()
    }
}

/// Compares outputs by name and order; the error says where the first one fails.
///
/// # Errors
/// What differs.
pub fn compare_all(
    got: &[Output],
    want: &[Output],
    tolerance: impl Fn(engine_core::DType) -> Tolerance,
) -> std::result::Result<(), String> {
    assert!(!want.is_empty(), "a case without outputs");
    assert_eq!(got.len(), want.len(), "outputs");
    for (got, want) in got.iter().zip(want) {
        assert_eq!((got.name, got.dtype), (want.name, want.dtype));
        compare(&got.values, &want.values, tolerance(want.dtype))
            .map_err(|e| format!("{}: {e}", got.name))?;
    }
    Ok(())
}

/// NaN equals NaN (both left it alone); infinities must be equal.
fn compare(got: &[f64], want: &[f64], t: Tolerance) -> std::result::Result<(), String> {
    assert_eq!(got.len(), want.len());
    let (mut worst, mut at, mut error, mut power) = (0.0, 0, 0.0, 0.0);
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        if g.to_bits() == w.to_bits() || g == w || (g.is_nan() && w.is_nan()) {
            power += if w.is_finite() { w * w } else { 0.0 };
            continue;
        }
        if !g.is_finite() || !w.is_finite() {
            return Err(format!("element {i} of {} is {g}, expected {w}", got.len()));
        }
        let scaled = (g - w).abs() / w.abs().max(1.0);
        if scaled > worst {
            (worst, at) = (scaled, i);
        }
        error += (g - w) * (g - w);
        power += w * w;
    }
    let nmse = if error == 0.0 { 0.0 } else { error / power.max(1e-30) };
    if worst <= t.max_error && nmse <= t.nmse {
        return Ok(());
    }
    Err(format!(
        "element {at} of {} is {}, expected {}; max error {worst:.2e} (at most {:.2e}), NMSE {nmse:.2e} (at most {:.2e})",
        got.len(),
        got[at],
        want[at],
        t.max_error,
        t.nmse
    ))
}

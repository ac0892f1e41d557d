//! Two queues of a device: pages that leave for the host and come back, order between queues by tickets, and what
//! another thread sees and may do through [`Control`](engine_core::backend::Control). What a stream may not join.

use std::time::{Duration, Instant};

use engine_core::backend::{AttnArgs, CommConfig, Group, Kv, Op, QueueKind, Stream};
use engine_core::{DType, Error, Result, Tensor};

use super::attention::{AttnCase, Setup};
use super::rig::Access::Read;
use super::rig::Mode;
use super::{Device, FLOATS, Rig};

/// No backend runs more than one rank yet: better to say so than to leave out the sum.
pub fn more_ranks_are_refused(device: &Device) {
    let caps = Rig::new(device.backend.clone(), Mode::Eager).unwrap().caps;
    let comm = CommConfig { group: Group::Tp, rank: 0, world: 2, rendezvous: b"here".to_vec() };
    match device.backend.stream(QueueKind::Compute, &caps, &[comm]) {
        Err(Error::Unsupported(why)) => assert!(why.contains("2 ranks"), "{}: {why}", device.name),
        Err(e) => panic!("{}: {e}", device.name),
        Ok(_) => panic!("{}: joined a group of 2 ranks", device.name),
    }
}

/// Pages go to the host on the transfer queue, are overwritten on the compute queue, and come back: attention then
/// gives the bits it gave before, and between the two it does not. No thread waits in between but by tickets.
pub fn pages_leave_and_return(device: &Device) {
    for dtype in FLOATS {
        match leave_and_return(device, dtype) {
            Ok(()) => {}
            Err(Error::Unsupported(why)) => println!("{}: left out: {why}", device.name),
            Err(e) => panic!("{}: {e}", device.name),
        }
    }
}

fn leave_and_return(device: &Device, dtype: DType) -> Result<()> {
    let mut rig = Rig::new(device.backend.clone(), Mode::Eager)?;
    let mut transfer = device.backend.stream(QueueKind::Transfer, &rig.caps, &[])?;
    let case = AttnCase::mixed(dtype);
    let setup = case.set_up(&mut rig)?;
    case.fill(&mut rig, &setup, |s| 0..s.kv_len)?;
    let q = case.fresh(&mut rig, "q", case.q_heads, Read)?;
    let before = attend(&mut rig, &case, &setup, q)?;

    let pages = pages_of(&case, &setup);
    let layers = &setup.pool.groups[0];
    let slot = device.backend.host_slot(pages.len() * setup.pool.page_bytes as usize)?;
    transfer.after(rig.stream.record()?)?;
    let out = transfer.pages_out(layers, &pages, slot)?;
    // What overwrites the pages comes after their copy.
    rig.stream.after(transfer.record()?)?;
    overwrite(&mut rig, &setup, &pages)?;
    let between = attend(&mut rig, &case, &setup, q)?;
    assert_ne!(before, between, "{} {dtype}: the pages were not overwritten", device.name);

    let slot = transfer.wait(out)?;
    transfer.after(rig.stream.record()?)?;
    let back = transfer.pages_in(layers, &pages, slot)?;
    rig.stream.after(transfer.record()?)?;
    let after = attend(&mut rig, &case, &setup, q)?;
    assert_eq!(before, after, "{} {dtype}: what came back is not what left", device.name);
    transfer.wait(back).map(drop)
}

/// Pages that hold a position of the batch.
fn pages_of(case: &AttnCase, setup: &Setup) -> Vec<u32> {
    let slots = setup.slots.iter().flatten();
    let mut pages: Vec<u32> = slots.map(|slot| *slot as u32 / case.page_tokens).collect();
    pages.sort_unstable();
    pages.dedup();
    pages
}

/// Copies a page that was never written onto each of `pages`.
fn overwrite(rig: &mut Rig, setup: &Setup, pages: &[u32]) -> Result<()> {
    let unused = (1..setup.pool.pages).find(|page| !pages.contains(page)).expect("an unused page") as i32;
    let pairs: Vec<i32> = pages.iter().flat_map(|page| [unused, *page as i32]).collect();
    let pairs = rig.ints("pairs", &[pages.len() as u32, 2], &pairs, Read)?;
    rig.prepare(|s| s.op(&Op::CopyPages { kv: &setup.pool.groups[0], pairs }))
}

/// Bits of attention over the cache as it is.
fn attend(rig: &mut Rig, case: &AttnCase, setup: &Setup, q: Tensor) -> Result<Vec<u64>> {
    let out = rig.blank("out", &[case.tokens(), case.q_heads * case.dim], case.dtype)?;
    let args = AttnArgs { scale: case.scale(), ..AttnArgs::default() };
    let kv = Kv::Paged(&setup.pool.groups[0][1]);
    rig.prepare(|s| {
        s.op(&setup.bind())?;
        s.op(&Op::PagedAttention { q, kv, plan: &setup.plan, args, out: out.into() })
    })?;
    Ok(rig.read(out)?.into_iter().map(f64::to_bits).collect())
}

/// Progress rises to what was recorded; after an abort the stream fails its waits, and another stream goes on.
pub fn control_sees_and_aborts(device: &Device) {
    let one = Rig::new(device.backend.clone(), Mode::Eager).unwrap();
    let mut other = Rig::new(device.backend.clone(), Mode::Eager).unwrap();
    let mut stream = one.stream.inner;
    let control = stream.control();
    let buffer = device.backend.buffer(&[4, 4], DType::F32, engine_core::backend::MemKind::Device).unwrap();
    stream.upload(&[1; 64], *buffer).unwrap();
    let ticket = stream.record().unwrap();
    let limit = Instant::now() + Duration::from_secs(60);
    while control.completed() < ticket.at {
        assert!(Instant::now() < limit, "{}: ticket {} never completes", device.name, ticket.at);
        std::thread::yield_now();
    }
    control.abort("the test says so");
    let slot = device.backend.host_slot(64).unwrap();
    let lost = stream.download(*buffer, slot).and_then(|pending| stream.wait(pending));
    let text = lost.err().map(|e| e.to_string()).unwrap_or_default();
    assert!(text.contains("the test says so"), "{}: after an abort: {text:?}", device.name);
    let x = other.floats("x", &[2, 2], DType::F32, &[1.0, 2.0, 3.0, 4.0], Read).unwrap();
    assert_eq!(other.read(x).unwrap(), [1.0, 2.0, 3.0, 4.0], "{}: the other stream", device.name);
}

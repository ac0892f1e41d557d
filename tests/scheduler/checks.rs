//! The invariants: of a plan, of the pages, of who is served.

use engine_core::engine::types::RequestId;
use engine_core::kv::{NULL_PAGE, Page};
use engine_core::scheduler::{ChunkedPrefill, Feed, Phase, PlanRow, StepPlan, TokenSource};

use crate::check;
use crate::world::{Live, Stage, Violation, World};

/// Budgets, order, chunks, preemption and admission of one plan.
pub fn plan(world: &World, plan: &StepPlan) -> Result<(), Violation> {
    let config = &world.setup.config;
    let tokens: u32 = plan.rows.iter().map(|r| r.q_len).sum();
    check!(tokens == plan.tokens, "{} tokens are said to be planned, {tokens} are", plan.tokens);
    check!(tokens <= config.max_num_batched_tokens, "{tokens} tokens exceed the budget");
    check!(plan.rows.len() <= config.max_num_seqs as usize, "{} rows exceed the slots", plan.rows.len());
    let (deltas, most) = (plan.table_deltas.len(), world.scheduler.most_table_deltas() as usize);
    check!(deltas <= most, "{deltas} table deltas, at most {most} are promised");
    let (generated, prompt) = plan.rows.split_at(plan.generated_rows as usize);
    check!(generated.iter().all(|r| r.phase == Phase::Generated), "a prompt row among the generated");
    check!(prompt.iter().all(|r| r.phase == Phase::Prompt), "a generated row among the prompts");
    for (i, row) in plan.rows.iter().enumerate() {
        let twice = plan.rows[i + 1..].iter().any(|r| r.id == row.id || r.slot == row.slot);
        check!(!twice && row.slot < config.max_num_seqs, "{row:?} shares its request or slot");
        let Some(live) = world.live.get(&row.id) else { return Err(format!("{row:?} has ended")) };
        chunk(world, live, row)?;
    }
    preemption(world, plan)?;
    admission(world, plan)
}

fn chunk(world: &World, live: &Live, row: &PlanRow) -> Result<(), Violation> {
    let (prompt, end) = (live.request.prompt.len() as u32, row.start + row.q_len);
    let wanted = live.known + live.placeholders;
    check!(row.q_len > 0 && end < live.target, "{row:?} is empty or goes past {}", live.target);
    check!(end - row.drafts <= wanted, "{row:?} goes past the {wanted} tokens there are");
    let (start, prompt_row) = (row.start, row.phase == Phase::Prompt);
    check!(
        prompt_row == (start < prompt) && (!prompt_row || end <= prompt),
        "{row:?} crosses the prompt's {prompt}"
    );
    check!(row.sample == (end - row.drafts == wanted), "{row:?} samples wrongly with {wanted} tokens");
    check!(row.sample_position == end - row.drafts, "{row:?} draws for the wrong position");
    let source = if start >= live.known { TokenSource::Device } else { TokenSource::Host };
    check!(row.tokens_from == source, "{row:?} has its tokens from the wrong side; {} are known", live.known);
    let waits = (live.feed == Feed::Host || live.drafts_in_flight) && live.placeholders > 0;
    check!(!waits, "{row:?} waits for the host");
    check!(row.drafts == 0 || live.feed == Feed::Host, "{row:?} has drafts");
    match world.setup.config.chunked_prefill {
        ChunkedPrefill::Off => check!(!prompt_row || end == prompt, "{row:?} is a part of a prompt"),
        ChunkedPrefill::On { long_prefill_token_threshold: Some(cap) } => {
            check!(row.q_len <= cap, "{row:?} exceeds the chunk of {cap}");
        }
        ChunkedPrefill::On { .. } => {}
    }
    match (live.stage, row.admitted) {
        (Stage::Running { slot, computed, .. }, None) => {
            check!(slot == row.slot && computed == start, "{row:?} should be slot {slot} from {computed}");
        }
        (Stage::Waiting, Some(admitted)) => {
            check!(
                admitted.cached_tokens == start && start < live.known,
                "{row:?} starts past its cached tokens"
            );
            check!(admitted.resumed == live.preempted, "{row:?} was preempted: {}", live.preempted);
            check!(live.in_flight == 0, "{row:?} is back before its results are");
            let no_reads = live.request.params.prompt_logprobs.is_some();
            check!(!no_reads || start == 0, "{row:?} wants prompt log-probabilities and reads the cache");
        }
        (stage, _) => return Err(format!("{row:?} is in stage {stage:?}")),
    }
    Ok(())
}

/// Only the last in the order of service go, and nobody enters in such a step.
fn preemption(world: &World, plan: &StepPlan) -> Result<(), Violation> {
    let admitted = plan.rows.iter().any(|r| r.admitted.is_some());
    check!(plan.preempted.is_empty() || !admitted, "admission in a step that preempts");
    let running = |id: &RequestId| world.live.get(id).is_some_and(|l| l.stage != Stage::Waiting);
    check!(plan.preempted.iter().all(running), "{:?} did not all run", plan.preempted);
    let key = |id: &RequestId| world.live.get(id).map(|live| world.key(live));
    let first_gone = plan.preempted.iter().filter_map(key).min();
    let stays = |l: &&Live| l.stage != Stage::Waiting && !plan.preempted.contains(&l.request.id);
    let last_staying = world.live.values().filter(stays).map(|l| world.key(l)).max();
    check!(first_gone.is_none() || last_staying < first_gone, "{first_gone:?} went before {last_staying:?}");
    Ok(())
}

/// Nobody enters before a request that is to be served earlier.
fn admission(world: &World, plan: &StepPlan) -> Result<(), Violation> {
    let entered = |l: &&Live| plan.rows.iter().any(|r| r.id == l.request.id);
    let waiting = || world.live.values().filter(|l| l.stage == Stage::Waiting);
    let last_in = waiting().filter(entered).map(|l| world.key(l)).max();
    let first_out = waiting().filter(|l| !entered(l)).map(|l| world.key(l)).min();
    let fair = last_in.is_none() || first_out.is_none() || last_in < first_out;
    check!(fair, "{last_in:?} entered before {first_out:?}");
    Ok(())
}

/// A running row with something to compute is planned at least every second step; one that waits for the host, once
/// in as many steps as are in flight.
pub fn not_starved(world: &World) -> Result<(), Violation> {
    for live in world.live.values() {
        let Stage::Running { last_planned, .. } = live.stage else { continue };
        let waits = live.known + live.placeholders >= live.target;
        let id = live.request.id;
        let may_wait = live.feed == Feed::Host || live.drafts_in_flight || world.setup.changing > 0;
        let gap = if may_wait { world.setup.depth.max(2) as u64 } else { 2 };
        check!(waits || last_planned + gap > world.step, "{id:?} was planned last at step {last_planned}");
    }
    Ok(())
}

/// Reference counts, free list and tables agree; nobody holds the null page, nothing leaks.
pub fn pages(world: &World) -> Result<(), Violation> {
    let kv = world.scheduler.kv();
    let mut holders = vec![0u32; world.setup.kv.pages as usize];
    let mut in_use = vec![false; world.setup.config.max_num_seqs as usize];
    for live in world.live.values() {
        let Stage::Running { slot, computed, .. } = live.stage else { continue };
        in_use[slot as usize] = true;
        row_tables(world, slot, computed, &mut holders)?;
    }
    for slot in (0..in_use.len()).filter(|slot| !in_use[*slot]) {
        check!(kv.held_pages(slot as u32) == 0, "slot {slot} is not in use and holds pages");
    }
    for page in 1..world.setup.kv.pages {
        let (counted, found) = (kv.pool().refs(page), holders[page as usize]);
        check!(counted == found, "page {page} has {found} holders and counts {counted}");
        holders[page as usize] += 1;
    }
    let mut free = 0;
    for page in kv.pool().free_list() {
        free += 1;
        check!(
            page != NULL_PAGE && holders[page as usize] == 1,
            "page {page} is free and in use, or free twice"
        );
        holders[page as usize] += 1;
    }
    let unused = holders[1..].iter().filter(|h| **h == 1).count();
    check!(unused == 0 && free == kv.pool().free(), "{unused} pages are neither free nor in use");
    Ok(())
}

/// A row holds exactly the pages of the positions computed and still read (speculation may hold a few more).
fn row_tables(world: &World, slot: u32, computed: u32, holders: &mut [u32]) -> Result<(), Violation> {
    for (g, group) in world.setup.kv.groups.iter().enumerate() {
        let table = world.scheduler.kv().tables().row(slot, g);
        let (entries, needed) = (table.pages().len() as u32, computed.div_ceil(group.page_tokens));
        let spare = 8u32.div_ceil(group.page_tokens);
        check!((needed..=needed + spare).contains(&entries), "slot {slot} has {entries} pages, not {needed}");
        for (index, page) in table.pages().iter().enumerate() {
            let fell_out = (index as u32) < table.first();
            check!((*page == NULL_PAGE) == fell_out, "slot {slot} entry {index} of group {g} is page {page}");
            if *page != NULL_PAGE {
                holders[*page as usize] += 1;
            }
        }
        let last_read = group.first_read(computed.max(1) - 1) / group.page_tokens;
        check!(table.first() <= last_read, "slot {slot} has lost pages it still reads");
    }
    Ok(())
}

/// Whatever a step writes belongs to one row alone and is not in the prefix cache.
pub fn written_pages(world: &World, plan: &StepPlan) -> Result<(), Violation> {
    let kv = world.scheduler.kv();
    for row in &plan.rows {
        for (g, group) in world.setup.kv.groups.iter().enumerate() {
            let first = row.start / group.page_tokens;
            let last = (row.start + row.q_len - 1) / group.page_tokens;
            let table = kv.tables().row(row.slot, g).pages();
            for page in &table[first as usize..=last as usize] {
                writable(kv.pool().refs(*page), kv.prefix().knows(*page), *page, row)?;
            }
        }
    }
    Ok(())
}

fn writable(refs: u32, cached: bool, page: Page, row: &PlanRow) -> Result<(), Violation> {
    check!(page != NULL_PAGE && refs == 1, "{row:?} writes page {page}, which {refs} rows hold");
    check!(!cached, "{row:?} writes page {page}, which the prefix cache knows");
    Ok(())
}

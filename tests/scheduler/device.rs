//! A device that computes nothing but digests: page tables, KV pages and last tokens as the real one has them, fed
//! by the plan alone. It runs steps in the order they are planned and knows nothing of the host's tables.

use engine_core::engine::types::TokenBatch;
use engine_core::kv::{GroupSpec, NULL_PAGE, Page, TableDelta};
use engine_core::scheduler::{Phase, PlanRow, RowResult, Scheduler, StepPlan, TokenSource};

use crate::check;
use crate::oracle::{draw, kv_root, kv_value};
use crate::world::Violation;
use tests::rng::mix;

/// The device's memory.
pub struct Device {
    groups: Vec<GroupSpec>,
    /// Page of (group, slot, entry); stale beyond a row's last entry.
    tables: Vec<Vec<Vec<Page>>>,
    /// Digest of (page, position within the page).
    kv: Vec<u64>,
    longest_page: u32,
    last_token: Vec<u32>,
    tagged: bool,
}

impl Device {
    /// Memory for `pages` pages and `slots` rows.
    pub fn new(groups: &[GroupSpec], pages: u32, slots: u32, tagged: bool) -> Self {
        let longest_page = groups.iter().map(|g| g.page_tokens).max().unwrap_or(1);
        Device {
            groups: groups.to_vec(),
            tables: vec![vec![Vec::new(); slots as usize]; groups.len()],
            kv: vec![0; (pages * longest_page) as usize],
            longest_page,
            last_token: vec![u32::MAX; slots as usize],
            tagged,
        }
    }

    /// Runs one step: applies the deltas, writes all KV, reads all KV, samples.
    pub fn run(&mut self, plan: &StepPlan, host: &Scheduler) -> Result<Vec<RowResult>, Violation> {
        self.apply(&plan.table_deltas)?;
        for row in &plan.rows {
            self.write(row, host)?;
        }
        let mut results = Vec::new();
        for (at, row) in plan.rows.iter().enumerate() {
            if row.sample {
                results.push(RowResult { row: at as u32, tokens: self.sample(row, host)? });
            }
        }
        Ok(results)
    }

    /// The digest a row's attention finds at `position`.
    pub fn read(&self, group: usize, slot: u32, position: u32) -> Result<u64, Violation> {
        Ok(self.kv[self.cell(group, slot, position)?] ^ layers(group))
    }

    fn apply(&mut self, deltas: &[TableDelta]) -> Result<(), Violation> {
        for (i, delta) in deltas.iter().enumerate() {
            let same = |d: &TableDelta| (d.group, d.slot, d.index) == (delta.group, delta.slot, delta.index);
            check!(!deltas[i + 1..].iter().any(same), "two deltas for one entry: {delta:?}");
            let table = &mut self.tables[delta.group as usize][delta.slot as usize];
            table.resize(table.len().max(delta.index as usize + 1), NULL_PAGE);
            table[delta.index as usize] = delta.page;
        }
        Ok(())
    }

    fn write(&mut self, row: &PlanRow, host: &Scheduler) -> Result<(), Violation> {
        let tokens = self.chunk_tokens(row, host)?;
        let salt = host.request_in(row.slot).and_then(|r| r.cache_salt.as_deref());
        let tag = u64::from(self.tagged && row.phase == Phase::Generated);
        for g in 0..self.groups.len() {
            let mut before = match row.start {
                0 => kv_root(salt),
                start => self.read(g, row.slot, start - 1)?,
            };
            for (position, token) in (row.start..).zip(&tokens) {
                before = kv_value(before, *token, tag);
                let cell = self.cell(g, row.slot, position)?;
                self.kv[cell] = before ^ layers(g);
            }
        }
        Ok(())
    }

    /// The chunk's token ids, from where the plan says they are.
    fn chunk_tokens(&self, row: &PlanRow, host: &Scheduler) -> Result<Vec<u32>, Violation> {
        if row.tokens_from == TokenSource::Device {
            check!(row.q_len == 1 && row.drafts == 0, "a device-fed row has one token: {row:?}");
            return Ok(vec![self.last_token[row.slot as usize]]);
        }
        let known = host.tokens_in(row.slot).unwrap_or_default();
        let (start, end) = (row.start as usize, (row.start + row.q_len - row.drafts) as usize);
        check!(end <= known.len(), "{row:?} reads tokens the host does not know: {} are", known.len());
        let drafts = host.drafts_in(row.slot).unwrap_or_default();
        Ok([&known[start..end], &drafts[..row.drafts as usize]].concat())
    }

    /// Draws a token at each sampled position and keeps those that follow accepted drafts.
    fn sample(&mut self, row: &PlanRow, host: &Scheduler) -> Result<TokenBatch, Violation> {
        let seed = host.request_in(row.slot).map_or(0, |r| r.params.seed);
        let drafts = host.drafts_in(row.slot).unwrap_or_default()[..row.drafts as usize].to_vec();
        let mut tokens = TokenBatch::default();
        for accepted in 0..=row.drafts {
            let position = row.sample_position + accepted;
            let token = draw(seed, position, self.read(0, row.slot, position - 1)?);
            tokens.push(token);
            self.last_token[row.slot as usize] = token;
            if drafts.get(accepted as usize) != Some(&token) {
                break;
            }
        }
        Ok(tokens)
    }

    fn cell(&self, group: usize, slot: u32, position: u32) -> Result<usize, Violation> {
        let page_tokens = self.groups[group].page_tokens;
        let entry = (position / page_tokens) as usize;
        let page = self.tables[group][slot as usize].get(entry).copied().unwrap_or(NULL_PAGE);
        check!(page != NULL_PAGE, "position {position} of slot {slot} has no page in group {group}");
        Ok((page * self.longest_page + position % page_tokens) as usize)
    }
}

/// A group's layers write KV of their own: a page of one group is worthless to another.
fn layers(group: usize) -> u64 {
    mix(group as u64 + 99)
}

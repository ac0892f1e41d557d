//! [`Runner`]: owns the model, the stream and every device buffer of one rank, and runs one step at a time.

use std::sync::Arc;

use super::graphs::Graphs;
use super::inputs::{Layout, StepShape, Views};
use super::outputs::{OutputShape, PromptPart, RowSample, StepResults, Words};
use super::slots::{RequestView, SlotState, write_record};
use crate::backend::{
    AttnPlan, Backend, BatchMeta, Buffer, CaptureLevel, HostSlot, KvPool, MemKind, NextInputs, Op, Pending,
    Phase, QueueKind, RowMeta, Sample, SampleRow, Sampler, SlotRecord, StepCaps, Stream, capture,
};
use crate::engine::types::TokenBatch;
use crate::error::Result;
use crate::layers::StepContext;
use crate::layers::decoder::Decoder;
use crate::limits::{
    LOGIT_ROWS_CHUNK, MAX_BAD_WORD_TOKENS, MAX_GRAPHS, MAX_STEPS_IN_FLIGHT, PACKED_RECORD_WORDS,
};
use crate::scheduler::{self, PlanRow, StepPlan, TokenSource, most_table_deltas};
use crate::tensor::{DType, Tensor};

/// What a runner is built for.
#[derive(Clone, Debug)]
pub struct RunnerConfig {
    pub caps: StepCaps,
    /// Type of activations.
    pub dtype: DType,
    pub kv_dtype: DType,
    pub page_tokens: u32,
    /// Pages of the pool, the null page included.
    pub kv_pages: u32,
    /// `--enforce-eager` sets `CaptureLevel::Never`.
    pub capture: CaptureLevel,
    /// `--cudagraph-capture-sizes`
    pub capture_sizes: Option<Vec<u32>>,
}

/// Device state of one rank.
pub struct Runner {
    stream: Box<dyn Stream>,
    parts: Parts,
    /// Of plain decode steps.
    graphs: Graphs,
    /// Of steps in which every row verifies as many drafts as there may be.
    verify_graphs: Graphs,
    slots: Vec<SlotState>,
    host_slots: Vec<HostSlot>,
    /// The upload under construction, in words.
    words: Vec<u32>,
    records: Vec<u32>,
    stops: Vec<u32>,
    metas: Vec<RowMeta>,
    /// First logits row and number of rows of each call of the sampler.
    chunks: Vec<(u32, u32)>,
    layout: Layout,
    /// Lists of finished steps, to be used again.
    spare_wanted: Vec<Wanted>,
    graph_rows_step: u32,
}

/// What a step reads and the stream does not own.
struct Parts {
    model: Arc<Decoder>,
    kv: KvPool,
    plans: Vec<AttnPlan>,
    sampler: Sampler,
    input: Buffer,
    output: Buffer,
    /// [G, R, pages] i32
    tables: Buffer,
    /// [R] i32
    last: Buffer,
    config: RunnerConfig,
}

/// Prompt positions of one row whose log-probabilities are wanted in this step.
#[derive(Clone, Copy, Debug)]
struct PromptJob {
    row: u32,
    /// Prompt index of the first predicted token.
    first: u32,
    count: u32,
    top: u32,
}

/// A plan row that samples: behind its last known token and behind each draft.
#[derive(Clone, Copy, Debug)]
struct SampledRow {
    row: u32,
    drafts: u32,
    /// Best ids wanted with each token.
    logprobs: Option<u32>,
}

/// What a step is to bring back.
#[derive(Default)]
struct Wanted {
    /// In logits order.
    sampled: Vec<SampledRow>,
    prompts: Vec<PromptJob>,
}

impl Wanted {
    fn logits(&self) -> u32 {
        self.sampled.iter().map(|s| 1 + s.drafts).sum()
    }
}

/// Which captured graph a step may use.
#[derive(Clone, Copy)]
struct Captured {
    bucket: usize,
    /// Rows of the bucket.
    rows: u32,
    /// Tokens of each row.
    q_len: u32,
}

/// A step on the device.
pub struct InFlight {
    pending: Pending,
    output: OutputShape,
    wanted: Wanted,
}

impl Runner {
    /// Allocates everything a step needs; nothing is allocated on the device afterwards.
    ///
    /// # Errors
    /// Too little memory, or what the device does not support.
    pub fn new(backend: &dyn Backend, model: Arc<Decoder>, config: RunnerConfig) -> Result<Self> {
        let caps = &config.caps;
        let specs = model.plan().attn_specs(config.dtype, config.kv_dtype, config.page_tokens);
        let plans = specs.iter().map(|s| backend.attn_plan(s, caps)).collect::<Result<Vec<_>>>()?;
        let kv =
            backend.kv_pool(&model.plan().kv_groups(config.kv_dtype, config.page_tokens), config.kv_pages)?;
        let input_words = Layout::new(&largest_shape(caps), &plans).words.max(largest_record(&config));
        let output_words = largest_output(caps).words();
        let device = |shape: &[u32], dtype| backend.buffer(shape, dtype, MemKind::Device);
        let parts = Parts {
            kv,
            plans,
            sampler: backend.sampler(caps)?,
            input: device(&[input_words], DType::U32)?,
            output: device(&[output_words], DType::U32)?,
            tables: device(&[caps.groups, caps.rows, caps.pages_per_row], DType::I32)?,
            last: device(&[caps.rows], DType::I32)?,
            model,
            config: config.clone(),
        };
        let host_slots = (0..=MAX_STEPS_IN_FLIGHT)
            .map(|_| backend.host_slot(output_words as usize * 4))
            .collect::<Result<Vec<_>>>()?;
        let graph_rows_step = backend.info().graph_row_step;
        let most_graphs = if caps.drafts > 0 { MAX_GRAPHS / 2 } else { MAX_GRAPHS };
        let graphs = || match config.capture {
            CaptureLevel::Never => Graphs::none(),
            _ => Graphs::new(caps.rows, graph_rows_step, config.capture_sizes.as_deref(), most_graphs),
        };
        Ok(Runner {
            stream: backend.stream(QueueKind::Compute, caps, &[])?,
            graphs: graphs(),
            verify_graphs: if caps.drafts > 0 { graphs() } else { Graphs::none() },
            slots: vec![SlotState::EMPTY; caps.rows as usize],
            host_slots,
            words: vec![0; input_words as usize],
            records: Vec::new(),
            stops: Vec::new(),
            metas: Vec::with_capacity(caps.rows as usize),
            chunks: Vec::with_capacity(caps.rows as usize),
            layout: Layout::default(),
            spare_wanted: Vec::with_capacity(MAX_STEPS_IN_FLIGHT + 1),
            graph_rows_step,
            parts,
        })
    }

    /// The stream's watchdog handle.
    pub fn control(&self) -> Arc<dyn crate::backend::Control> {
        self.stream.control()
    }

    /// How many decode graphs have been captured.
    pub fn graphs_captured(&self) -> usize {
        self.graphs.captured() + self.verify_graphs.captured()
    }

    /// Enqueues the ops of the largest step there can be, without inputs: on a `Trace`, this finds out the arena's
    /// height and whether the device has every op.
    ///
    /// # Errors
    /// `Unsupported` for an op that the device does not have.
    pub fn enqueue_largest(&mut self) -> Result<()> {
        let caps = &self.parts.config.caps;
        let (shape, output) = (largest_shape(caps), largest_output(caps));
        let layout = Layout::new(&shape, &self.parts.plans);
        let chunks: Vec<_> = chunks(output.logits).collect();
        run_eager(&self.parts, &mut *self.stream, &shape, &layout, &output, &chunks)
    }

    /// Enqueues one step. `view` answers for every row of the plan.
    ///
    /// # Errors
    /// From the device.
    ///
    /// # Panics
    /// If more than `limits::MAX_STEPS_IN_FLIGHT` steps are in flight, or the plan exceeds the capacities.
    pub fn launch<'v>(
        &mut self,
        plan: &StepPlan,
        view: &dyn Fn(&PlanRow) -> RequestView<'v>,
    ) -> Result<InFlight> {
        let mut wanted = self.spare_wanted.pop().unwrap_or_default();
        let top = self.admit(plan, view, &mut wanted)?;
        let top = top.filter(|_| !wanted.sampled.is_empty());
        let shape = self.shape(plan, &wanted);
        let graph = self.graph_bucket(plan, &shape, top);
        let shape = graph.map_or(shape, |g| self.graph_shape(g));
        let mut layout = std::mem::take(&mut self.layout);
        layout.set(&shape, &self.parts.plans);
        let output = OutputShape::new(&shape, top, wanted.prompts.iter().map(|j| j.top).max().unwrap_or(0));
        if let Some(missing) = graph.filter(|g| self.graphs_of(g.q_len).get(g.bucket).is_none()) {
            self.capture(missing, &shape, &layout)?;
        }
        self.pack(plan, view, &layout, &wanted)?;
        self.stream.upload(bytes_of(&self.words[..layout.words as usize]), self.parts.input.tensor())?;
        let graphs = graph.map(|g| if g.q_len == 1 { &self.graphs } else { &self.verify_graphs });
        match graph.zip(graphs).and_then(|(g, graphs)| graphs.get(g.bucket)) {
            Some(captured) => self.stream.replay(captured)?,
            None => {
                whole_rows(&mut self.chunks, wanted.sampled.iter().map(|s| 1 + s.drafts));
                run_eager(&self.parts, &mut *self.stream, &shape, &layout, &output, &self.chunks)?;
            }
        }
        let slot = self.host_slots.pop().unwrap_or_else(|| panic!("more steps in flight than host slots"));
        let pending = self.stream.download(self.parts.output.tensor().cols_at(0, output.words()), slot)?;
        self.layout = layout;
        Ok(InFlight { pending, output, wanted })
    }

    /// Waits for a step and reads its results into `results`.
    ///
    /// # Errors
    /// From the device.
    pub fn finish(&mut self, step: InFlight, results: &mut StepResults) -> Result<()> {
        let slot = self.stream.wait(step.pending)?;
        results.samples.clear();
        results.prompts.clear();
        let words = Words(slot.bytes());
        let mut first = 0;
        for s in &step.wanted.sampled {
            let mut sample = RowSample { row: s.row, tokens: TokenBatch::default(), logprobs: Vec::new() };
            // Behind the first draft that was wrong nothing is drawn.
            for i in (first..=first + s.drafts).take_while(|i| (words.get(*i) as i32) >= 0) {
                sample.tokens.push(words.get(i));
                sample.logprobs.extend(s.logprobs.and_then(|n| step.output.read_sampled(words, i, n)));
            }
            results.samples.push(sample);
            first += 1 + s.drafts;
        }
        let mut at = 0;
        for job in &step.wanted.prompts {
            let entries = (at..at + job.count).map(|i| step.output.read_prompt(words, i, job.top)).collect();
            results.prompts.push(PromptPart { row: job.row, first: job.first, entries });
            at += job.count;
        }
        self.host_slots.push(slot);
        self.spare_wanted.push(step.wanted);
        Ok(())
    }

    /// Sends sampler records that are too long for the packed upload ahead of the step: long prompts under a
    /// repetition penalty, large bias lists. Steady steps have none.
    fn flush_long_records(&mut self) -> Result<()> {
        let len = self.records.len();
        if len <= PACKED_RECORD_WORDS {
            return Ok(());
        }
        let input = self.parts.input.tensor();
        self.stream.upload(bytes_of(&self.records), input)?;
        let records = input.cols_at(0, len as u32);
        self.stream.op(&Op::UpdateSampler { sampler: &self.parts.sampler, records })?;
        self.records.clear();
        Ok(())
    }

    /// Resets the slots of newly admitted rows, collects what the step is to bring back, and says how many best ids
    /// its log-probabilities need.
    fn admit<'v>(
        &mut self,
        plan: &StepPlan,
        view: &dyn Fn(&PlanRow) -> RequestView<'v>,
        wanted: &mut Wanted,
    ) -> Result<Option<u32>> {
        self.records.clear();
        wanted.sampled.clear();
        wanted.prompts.clear();
        let mut top = None;
        for (i, row) in plan.rows.iter().enumerate() {
            if row.admitted.is_some() {
                let request = view(row);
                self.slots[row.slot as usize] = SlotState::new(row.slot, &request);
                write_record(row.slot, &request, &mut self.stops, &mut self.records);
                self.flush_long_records()?;
            }
            if row.sample {
                let logprobs = self.slots[row.slot as usize].logprobs;
                wanted.sampled.push(SampledRow { row: i as u32, drafts: row.drafts, logprobs });
                top = top.max(logprobs);
            }
            if row.phase == scheduler::Phase::Prompt {
                wanted.prompts.extend(prompt_job(i as u32, row, &view(row)));
            }
        }
        if !self.records.is_empty() {
            self.records.push(SlotRecord::END);
        }
        Ok(top)
    }

    fn shape(&self, plan: &StepPlan, wanted: &Wanted) -> StepShape {
        let logits = wanted.logits();
        StepShape {
            rows: plan.rows.len() as u32,
            tokens: plan.tokens,
            logits,
            deltas: plan.table_deltas.len() as u32,
            record_words: self.records.len() as u32,
            prompt_logits: wanted.prompts.iter().map(|j| j.count).sum(),
            drafts: if wanted.sampled.iter().any(|s| s.drafts > 0) { logits } else { 0 },
        }
    }

    /// The graph bucket of a plain decode step: every row one token, or one and as many drafts as there may be, all
    /// sampled, nobody new, no log-probabilities.
    fn graph_bucket(&self, plan: &StepPlan, shape: &StepShape, top: Option<u32>) -> Option<Captured> {
        let drafts = plan.rows.first().map_or(0, |r| r.drafts);
        let q_len = 1 + drafts;
        let plain = shape.tokens == shape.rows * q_len
            && shape.logits == shape.tokens
            && (drafts == 0 || drafts == self.parts.config.caps.drafts)
            && plan.rows.iter().all(|r| r.drafts == drafts && r.q_len == q_len)
            && shape.record_words == 0
            && shape.prompt_logits == 0
            && top.is_none()
            && plan.generated_rows == shape.rows;
        let (bucket, rows) = self.graphs_of(q_len).bucket(shape.rows).filter(|_| plain)?;
        let captured = Captured { bucket, rows, q_len };
        let largest = self.graph_shape(captured);
        let fits = largest.tokens <= self.parts.config.caps.tokens.max(self.parts.config.caps.rows);
        (fits && shape.deltas <= largest.deltas).then_some(captured)
    }

    fn graphs_of(&self, q_len: u32) -> &Graphs {
        if q_len == 1 { &self.graphs } else { &self.verify_graphs }
    }

    fn graph_shape(&self, g: Captured) -> StepShape {
        let config = &self.parts.config;
        StepShape::decode(g.rows, g.q_len, config.caps.groups, config.page_tokens)
    }

    /// Captures a decode bucket on padding only.
    fn capture(&mut self, which: Captured, shape: &StepShape, layout: &Layout) -> Result<()> {
        let nothing = Wanted::default();
        self.pack(&StepPlan::default(), &|_| unreachable!("an empty plan has no rows"), layout, &nothing)?;
        self.stream.upload(bytes_of(&self.words[..layout.words as usize]), self.parts.input.tensor())?;
        let output = OutputShape::new(shape, None, 0);
        whole_rows(&mut self.chunks, std::iter::repeat_n(which.q_len, which.rows as usize));
        let (parts, chunks) = (&self.parts, &self.chunks);
        let (graph, ()) =
            capture(&mut *self.stream, |s| run_eager(parts, s, shape, layout, &output, chunks))?;
        let graphs = if which.q_len == 1 { &mut self.graphs } else { &mut self.verify_graphs };
        match graph {
            Some(graph) => graphs.put(which.bucket, graph),
            None => graphs.disable(),
        }
        Ok(())
    }

    /// Writes the upload: real rows first, padding after.
    fn pack<'v>(
        &mut self,
        plan: &StepPlan,
        view: &dyn Fn(&PlanRow) -> RequestView<'v>,
        l: &Layout,
        wanted: &Wanted,
    ) -> Result<()> {
        let words = &mut self.words;
        words[l.staged.range()].fill(-1i32 as u32);
        words[l.src.range()].fill(-1i32 as u32);
        words[l.rows.range()].fill(-1i32 as u32);
        words[l.start.range()].fill(0);
        words[l.deltas.range()].fill(-1i32 as u32);
        words[l.logit_rows.range()].fill(-1i32 as u32);
        words[l.draft.range()].fill(-1i32 as u32);
        words[l.cu_q.range()].fill(plan.tokens);
        let mut t = 0;
        for (i, row) in plan.rows.iter().enumerate() {
            words[l.rows.range()][i] = row.slot;
            words[l.start.range()][i] = row.start;
            words[l.cu_q.range()][i] = t as u32;
            let tokens = t..t + row.q_len as usize;
            match row.tokens_from {
                TokenSource::Device => words[l.src.range()][t] = row.slot,
                TokenSource::Host => {
                    let (request, drafts) = (view(row), row.drafts as usize);
                    let known = row.start as usize..(row.start + row.q_len) as usize - drafts;
                    let (own, drafted) = words[l.staged.range()][tokens.clone()].split_at_mut(known.len());
                    own.copy_from_slice(&request.tokens[known]);
                    drafted.copy_from_slice(&request.drafts[..drafts]);
                }
            }
            t = tokens.end;
        }
        self.pack_samples(plan, view, l, &wanted.sampled);
        self.pack_prompt_jobs(plan, view, l, &wanted.prompts);
        self.pack_deltas(plan, l);
        self.words[l.records.range()].copy_from_slice(&self.records);
        self.pack_plans(plan, l)
    }

    fn pack_samples<'v>(
        &mut self,
        plan: &StepPlan,
        view: &dyn Fn(&PlanRow) -> RequestView<'v>,
        l: &Layout,
        sampled: &[SampledRow],
    ) {
        let words = &mut self.words;
        words[l.sample.range()].chunks_exact_mut(SampleRow::WORDS).for_each(|w| SampleRow::PADDING.write(w));
        let mut at = 0;
        for s in sampled {
            let row = &plan.rows[s.row as usize];
            let end = words[l.cu_q.range()][s.row as usize + 1];
            for i in 0..=s.drafts {
                words[l.logit_rows.range()][at] = end - 1 - s.drafts + i;
                let sample = self.slots[row.slot as usize].sample_row(row.sample_position + i);
                sample.write(&mut words[l.sample.range()][at * SampleRow::WORDS..][..SampleRow::WORDS]);
                if i < s.drafts {
                    words[l.draft.range()][at] = view(row).drafts[i as usize];
                }
                at += 1;
            }
        }
    }

    fn pack_prompt_jobs<'v>(
        &mut self,
        plan: &StepPlan,
        view: &dyn Fn(&PlanRow) -> RequestView<'v>,
        l: &Layout,
        jobs: &[PromptJob],
    ) {
        let mut at = 0;
        for job in jobs {
            let row = &plan.rows[job.row as usize];
            let first_token = self.words[l.cu_q.range()][job.row as usize];
            let tokens = view(row).tokens;
            for i in 0..job.count {
                let predicted = job.first + i;
                self.words[l.prompt_rows.range()][at] = first_token + (predicted - 1 - row.start);
                self.words[l.prompt_ids.range()][at] = tokens[predicted as usize];
                at += 1;
            }
        }
    }

    fn pack_deltas(&mut self, plan: &StepPlan, l: &Layout) {
        let caps = &self.parts.config.caps;
        let pairs = self.words[l.deltas.range()].as_chunks_mut::<2>().0;
        for (pair, d) in pairs.iter_mut().zip(&plan.table_deltas) {
            let index = (d.group * caps.rows + d.slot) * caps.pages_per_row + d.index;
            *pair = [index, d.page];
        }
    }

    fn pack_plans(&mut self, plan: &StepPlan, l: &Layout) -> Result<()> {
        self.metas.clear();
        self.metas.extend(plan.rows.iter().map(|r| RowMeta {
            q_len: r.q_len,
            kv_len_max: r.start + r.q_len,
            phase: match r.phase {
                scheduler::Phase::Prompt => Phase::Prompt,
                scheduler::Phase::Generated => Phase::Generated,
            },
        }));
        let batch = BatchMeta { rows: &self.metas, generated: plan.generated_rows as usize };
        for (p, section) in self.parts.plans.iter().zip(&l.plans) {
            let into = bytes_of_mut(&mut self.words[section.range()]);
            self.stream.plan(p, &batch, &mut into[..p.upload_bytes()])?;
        }
        Ok(())
    }

    /// Rows a captured bucket is a multiple of.
    pub fn graph_row_step(&self) -> u32 {
        self.graph_rows_step
    }
}

/// Prompt positions of this chunk that predict a prompt token.
fn prompt_job(index: u32, row: &PlanRow, request: &RequestView<'_>) -> Option<PromptJob> {
    let top = request.params.prompt_logprobs?;
    let end = (row.start + row.q_len).min(request.prompt_len - 1);
    let count = end.checked_sub(row.start).filter(|n| *n > 0)?;
    Some(PromptJob { row: index, first: row.start + 1, count, top })
}

fn largest_shape(caps: &StepCaps) -> StepShape {
    StepShape {
        rows: caps.rows,
        tokens: caps.tokens.max(caps.rows),
        logits: caps.rows * (1 + caps.drafts),
        deltas: most_table_deltas(
            caps.groups,
            caps.rows,
            caps.tokens,
            caps.pages_per_row,
            MAX_STEPS_IN_FLIGHT as u32,
        ),
        record_words: PACKED_RECORD_WORDS as u32,
        prompt_logits: caps.tokens,
        drafts: if caps.drafts > 0 { caps.rows * (1 + caps.drafts) } else { 0 },
    }
}

/// Words of the longest sampler record a request can need.
fn largest_record(config: &RunnerConfig) -> u32 {
    let tokens = config.caps.pages_per_row * config.page_tokens;
    2 * tokens
        + 4 * config.caps.vocab
        + MAX_BAD_WORD_TOKENS
        + 2 * SlotRecord::HEAD as u32
        + PACKED_RECORD_WORDS as u32
}

fn largest_output(caps: &StepCaps) -> OutputShape {
    OutputShape {
        logits: caps.rows * (1 + caps.drafts),
        prompt: caps.tokens,
        top: Some(caps.logprobs),
        prompt_top: caps.logprobs,
    }
}

/// All ops of one step. Also the body of a capture: no upload, plan, download or wait in here.
fn run_eager(
    p: &Parts,
    s: &mut dyn Stream,
    shape: &StepShape,
    layout: &Layout,
    output: &OutputShape,
    chunks: &[(u32, u32)],
) -> Result<()> {
    let v = Views::of(p.input.tensor(), layout);
    let mark = s.mark();
    if shape.deltas > 0 {
        s.op(&Op::UpdateTables { pairs: v.deltas, tables: p.tables.tensor() })?;
    }
    if shape.record_words > 0 {
        s.op(&Op::UpdateSampler { sampler: &p.sampler, records: v.records })?;
    }
    let next = next_inputs(p, s, shape, &v)?;
    for plan in &p.plans {
        let (kv_len, tables) = (next.kv_len, p.tables.tensor());
        s.op(&Op::PlanOnDevice { plan, rows: v.rows, kv_len, cu_q: v.cu_q, tables })?;
    }
    let ctx = StepContext {
        positions: next.positions,
        slots: next.slots,
        plans: &p.plans,
        kv: &p.kv,
        dtype: p.config.dtype,
    };
    let hidden = p.model.forward(s, &ctx, next.ids)?;
    sample(p, s, hidden, &v, output, chunks)?;
    prompt_logprobs(p, s, hidden, &v, output)?;
    s.release(mark);
    Ok(())
}

fn next_inputs(p: &Parts, s: &mut dyn Stream, shape: &StepShape, v: &Views) -> Result<NextInputs> {
    let mut ints = |shape: &[u32]| s.scratch(shape, DType::I32);
    let next = NextInputs {
        prev: p.last.tensor(),
        accepted: None,
        src: v.src,
        staged: v.staged,
        rows: v.rows,
        start: v.start,
        cu_q: v.cu_q,
        tables: p.tables.tensor(),
        page_tokens: p.config.page_tokens,
        ids: ints(&[shape.tokens]),
        positions: ints(&[shape.tokens]),
        slots: ints(&[p.config.caps.groups, shape.tokens]),
        kv_len: ints(&[shape.rows]),
    };
    s.op(&Op::NextInputs(next))?;
    Ok(next)
}

/// Logits and samples, in chunks of at most `LOGIT_ROWS_CHUNK` rows.
fn sample(
    p: &Parts,
    s: &mut dyn Stream,
    hidden: Tensor,
    v: &Views,
    output: &OutputShape,
    chunks: &[(u32, u32)],
) -> Result<()> {
    let buffer = p.output.tensor();
    for &(first, count) in chunks {
        let mark = s.mark();
        let logits = p.model.logits(s, hidden, v.logit_rows.cols_at(first, count))?;
        s.op(&Op::Sample(Sample {
            logits,
            sampler: &p.sampler,
            rows: v.sample.rows_at(first, count),
            draft: v.draft.map(|d| d.cols_at(first, count)),
            mask: None,
            ids: output.ids(buffer).cols_at(first, count),
            last: p.last.tensor(),
            accepted: None,
            logprobs: output.sampled(buffer, first, count),
        }))?;
        s.release(mark);
    }
    Ok(())
}

fn prompt_logprobs(
    p: &Parts,
    s: &mut dyn Stream,
    hidden: Tensor,
    v: &Views,
    output: &OutputShape,
) -> Result<()> {
    for (first, count) in chunks(output.prompt) {
        let mark = s.mark();
        let logits = p.model.logits(s, hidden, v.prompt_rows.cols_at(first, count))?;
        let out = output.prompt(p.output.tensor(), first, count);
        s.op(&Op::LogProbs { logits, ids: v.prompt_ids.cols_at(first, count), out })?;
        s.release(mark);
    }
    Ok(())
}

fn chunks(rows: u32) -> impl Iterator<Item = (u32, u32)> {
    (0..rows).step_by(LOGIT_ROWS_CHUNK as usize).map(move |at| (at, LOGIT_ROWS_CHUNK.min(rows - at)))
}

/// Cuts logits rows into chunks of at most `LOGIT_ROWS_CHUNK` without cutting what one plan row samples, `rows` of them
/// in order.
fn whole_rows(into: &mut Vec<(u32, u32)>, rows: impl Iterator<Item = u32>) {
    into.clear();
    let mut at = 0;
    for count in rows {
        match into.last_mut().filter(|(_, filled)| *filled + count <= LOGIT_ROWS_CHUNK) {
            Some((_, filled)) => *filled += count,
            None => into.push((at, count)),
        }
        at += count;
    }
}

fn bytes_of(words: &[u32]) -> &[u8] {
    bytemuck::cast_slice(words)
}

fn bytes_of_mut(words: &mut [u32]) -> &mut [u8] {
    bytemuck::cast_slice_mut(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sampler_never_sees_half_of_what_a_row_verifies() {
        let mut chunks = Vec::new();
        whole_rows(&mut chunks, std::iter::repeat_n(17, 31).chain([1, 5]));
        assert_eq!(chunks, [(0, 255), (255, 255), (510, 17 + 6)]);
        whole_rows(&mut chunks, std::iter::repeat_n(1, 300));
        assert_eq!(chunks, [(0, 256), (256, 44)]);
        whole_rows(&mut chunks, std::iter::empty());
        assert!(chunks.is_empty());
    }
}

//! A draft model beside the target: what must fit, its sizes, its start.

use std::sync::Arc;

use super::build::{EngineOptions, Sizes, group_spec, sizes, trace};
use crate::backend::{Backend, KvGroupSpec, StepCaps};
use crate::config::ModelConfig;
use crate::error::{Error, Result};
use crate::kv::{GroupKind, GroupSpec};
use crate::layers::decoder::{Decoder, DecoderPlan};
use crate::loader::source::WeightLoader;
use crate::models;
use crate::runner::{Runner, RunnerConfig};
use crate::speculate::DraftModel;
use crate::speculate::draft_model::ModelDrafter;

/// A draft model that fits its target; its weights are not read yet.
pub(super) struct DraftBuild<'a> {
    model: &'a DraftModel,
    plan: DecoderPlan,
    sizes: Sizes,
    caps: StepCaps,
    max_len: u32,
    tokens: u32,
    /// The target's KV group whose table each of the model's groups uses.
    groups: Vec<u32>,
    weight_bytes: u64,
    decoder: Option<Arc<Decoder>>,
}

impl<'a> DraftBuild<'a> {
    /// Checks that the model can draft for the target, and finds its sizes.
    ///
    /// # Errors
    /// What does not fit, by name.
    pub(super) fn new(
        backend: &Arc<dyn Backend>,
        model: &'a DraftModel,
        target: &ModelConfig,
        target_sizes: &Sizes,
        target_caps: &StepCaps,
        options: &EngineOptions,
        wanted_len: u32,
    ) -> Result<Self> {
        let config = &model.config;
        if config.vocab_size != target.vocab_size {
            return Err(refuse(
                model,
                &format!(
                    "has {} token ids and the model it drafts for {}; both must have the same vocabulary",
                    config.vocab_size, target.vocab_size
                ),
            ));
        }
        let plan = DecoderPlan::new(config, (models::find(config)?.spec)(config)?);
        let own = EngineOptions { block_size: Some(target_sizes.page_tokens), ..options.clone() };
        let sizes = sizes(&**backend, config, &plan, &own)?;
        let groups = group_tables(model, &sizes.groups, &target_sizes.groups)?;
        let max_len = config.max_model_len(model.max_len)?.min(wanted_len);
        // A chunk may begin one position before the target's.
        let mut caps = StepCaps {
            tokens: target_caps.tokens.max(target_caps.rows) + target_caps.rows,
            groups: sizes.groups.len() as u32,
            logprobs: 1,
            drafts: 0,
            arena_bytes: 0,
            ..target_caps.clone()
        };
        let traced = trace(backend, config, &plan, &sizes, &caps)?;
        caps.arena_bytes = traced.arena_bytes;
        let tokens = target_caps.drafts;
        let weight_bytes = if model.source.is_plain() { traced.weight_bytes } else { 0 };
        Ok(DraftBuild { model, plan, sizes, caps, max_len, tokens, groups, weight_bytes, decoder: None })
    }

    /// Bytes of its weights, as far as they follow from its shape.
    pub(super) fn traced_weight_bytes(&self) -> u64 {
        self.weight_bytes
    }

    /// Bytes its pool adds for each page of the target's.
    pub(super) fn page_bytes(&self) -> u64 {
        self.sizes.page_bytes()
    }

    /// Bytes of its arena.
    pub(super) fn arena_bytes(&self) -> u64 {
        self.caps.arena_bytes
    }

    /// The largest step it is asked for.
    pub(super) fn caps(&self) -> &StepCaps {
        &self.caps
    }

    /// Loads its weights and says how many bytes they have.
    ///
    /// # Errors
    /// Damaged weights, too little memory.
    pub(super) fn load(
        &mut self,
        backend: &dyn Backend,
        options: &EngineOptions,
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<u64> {
        let loader = WeightLoader {
            backend,
            source: &*self.model.source,
            act_dtype: self.sizes.dtype,
            threads: options.loader_threads,
            progress,
        };
        let decoder = Decoder::load(&loader, &self.model.config, &self.plan, self.max_len)?;
        let weight_bytes = decoder.weight_bytes();
        self.decoder = Some(Arc::new(decoder));
        Ok(weight_bytes)
    }

    /// Starts it beside a target that runs like this, once it is loaded.
    ///
    /// # Errors
    /// Too little memory.
    pub(super) fn start(self, backend: &dyn Backend, target: &RunnerConfig) -> Result<ModelDrafter> {
        let Some(decoder) = self.decoder else { unreachable!("a draft model is loaded before it starts") };
        let caps = StepCaps { pages_per_row: target.caps.pages_per_row, ..self.caps };
        let slots = caps.rows;
        let config =
            RunnerConfig { caps, dtype: self.sizes.dtype, kv_dtype: self.sizes.kv_dtype, ..target.clone() };
        let runner = Runner::new(backend, decoder, config)?;
        Ok(ModelDrafter::new(runner, slots, self.tokens, self.max_len, self.groups))
    }
}

/// A table of the target for each group of the draft model: one that keeps every page the group reads. No two groups
/// may have the same, for they would write the same pages.
fn group_tables(model: &DraftModel, own: &[KvGroupSpec], target: &[KvGroupSpec]) -> Result<Vec<u32>> {
    let (own, target): (Vec<GroupSpec>, Vec<GroupSpec>) =
        (own.iter().map(group_spec).collect(), target.iter().map(group_spec).collect());
    let mut taken = vec![false; target.len()];
    let mut find = |group: &GroupSpec| {
        let fits = |t: &usize| !taken[*t] && covers(target[*t].kind, group.kind);
        // An equal table first, so that one that covers more is left for who needs it.
        let found = (0..target.len())
            .filter(fits)
            .min_by_key(|t| target[*t].kind != group.kind)
            .ok_or_else(|| refuse(model, &format!(
                "keeps keys and values of {own:?}, and no table of the model it drafts for covers {group:?} ({target:?})"
            )))?;
        taken[found] = true;
        Ok(found as u32)
    };
    // Those that need most choose first.
    let mut order: Vec<usize> = (0..own.len()).collect();
    order.sort_by_key(|g| own[*g].kind != GroupKind::Full);
    let mut tables = vec![0; own.len()];
    for g in order {
        tables[g] = find(&own[g])?;
    }
    Ok(tables)
}

fn covers(table: GroupKind, reads: GroupKind) -> bool {
    match (table, reads) {
        (GroupKind::Full, _) => true,
        (GroupKind::Window { .. }, GroupKind::Full) => false,
        (GroupKind::Window { tokens }, GroupKind::Window { tokens: read }) => read <= tokens,
    }
}

fn refuse(model: &DraftModel, why: &str) -> Error {
    Error::Config(format!("--speculative-config: the draft model {} {why}", model.name))
}

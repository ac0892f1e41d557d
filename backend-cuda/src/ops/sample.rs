//! UpdateSampler, Sample, LogProbs.

use engine_core::backend::{LogprobsOut, Sample, Sampler};
use engine_core::{Result, Tensor};
use kernels::params;

use super::rows;
use crate::device::CudaSampler;
use crate::stream::{CudaStream, SAMPLE_SPLITS};

/// Ids one block looks at, at least, when a row is shared.
const IDS_PER_BLOCK: u32 = 8_192;
/// Blocks of `update_sampler`: each takes the records of its slots.
const UPDATE_BLOCKS: u32 = 64;

impl CudaStream {
    pub(super) fn update_sampler(&mut self, sampler: &Sampler, records: Tensor) -> Result<()> {
        self.hold(sampler.shared());
        let state = sampler.inner::<CudaSampler>().state;
        let params = params::Update { state, records: self.at(records), words: records.len() as u32, pad: 0 };
        self.launch("update_sampler", [UPDATE_BLOCKS.min(state.slots), 1, 1], 512, 0, &params)
    }

    pub(super) fn sample(&mut self, s: &Sample<'_>) -> Result<()> {
        self.hold(s.sampler.shared());
        let (count, vocab, logits_stride) = rows(s.logits);
        assert!(
            count <= self.sample_rows,
            "{count} rows sampled at once; this stream was made for {}",
            self.sample_rows
        );
        let fill = (4 * self.shared.gpu.units).div_ceil(count.max(1));
        let splits = fill.min(vocab.div_ceil(IDS_PER_BLOCK)).clamp(1, SAMPLE_SPLITS);
        let params = params::Sample {
            state: s.sampler.inner::<CudaSampler>().state,
            logits: self.at(s.logits),
            rows: self.at(s.rows),
            draft: self.at_or_null(s.draft),
            mask: self.at_or_null(s.mask),
            ids: self.at(s.ids),
            last: self.at(s.last),
            accepted: self.at_or_null(s.accepted),
            partial: self.sample_partial.address(),
            arrivals: self.sample_arrivals.address(),
            logits_stride,
            count,
            splits,
            mask_words: s.mask.map_or(0, |m| m.cols() as u32),
            pad: 0,
        };
        match s.draft {
            Some(_) => self.launch("sample_drafts", [1, count, 1], 1024, 0, &params)?,
            None => self.launch("sample_rows", [splits, count, 1], 1024, 0, &params)?,
        }
        s.logprobs.map_or(Ok(()), |out| self.log_probs(s.logits, s.ids, &out))
    }

    pub(super) fn log_probs(&mut self, logits: Tensor, ids: Tensor, out: &LogprobsOut) -> Result<()> {
        let (count, vocab, logits_stride) = rows(logits);
        let (_, columns, out_stride) = rows(out.ids);
        let params = params::LogProbs {
            logits: self.at(logits),
            given: self.at(ids),
            ids: self.at(out.ids),
            values: self.at(out.values),
            ranks: self.at(out.ranks),
            logits_stride,
            out_stride,
            vocab,
            top: columns - 1,
        };
        self.launch("log_probs", [count, 1, 1], 1024, 0, &params)
    }
}

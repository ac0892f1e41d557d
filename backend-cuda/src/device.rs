//! [`CudaBackend`]: the load-time surface.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};

use engine_core::backend::{
    AttnPlan, AttnSpec, Backend, Buffer, CaptureLevel, CommConfig, DeviceInfo, HostSlot, HostWeight,
    Invariance, KvGroupSpec, KvKind, KvLayer, KvPool, MemInfo, MemKind, OpSpec, QueueKind, Sampler, StepCaps,
    Stream, Support, Weight,
};
use engine_core::{DType, Error, Result, Tensor};
use kernels::params;

use super::Paths;
use super::blas::WORKSPACE_BYTES;
use super::caps;
use super::driver::Pinned;
use super::gpu::Gpu;
use super::mem::{Region, Registry, Slot};
use super::plan::CudaPlan;
use super::stream::{CudaControl, CudaStream};
use super::weights;

/// Words of bad-word sequences a slot holds, their lengths included.
const BAD_WORDS: u32 = engine_core::limits::MAX_BAD_WORD_TOKENS;

/// What streams and backend share.
pub struct Shared {
    pub gpu: Arc<Gpu>,
    pub registry: Registry,
    /// By stream, for streams that wait for each other's tickets.
    pub controls: Mutex<HashMap<u32, Weak<CudaControl>>>,
    pub paths: Paths,
    /// Bytes the widest gated product needs per token between product and gate.
    pub gated_bytes: AtomicU64,
}

impl Shared {
    /// What a stream or plan of these capacities must promise.
    pub fn invariance(&self, caps: &StepCaps) -> Invariance {
        match self.paths {
            Paths::AsAsked => caps.invariance,
            Paths::Fast => Invariance::None,
        }
    }
}

/// One NVIDIA GPU.
pub struct CudaBackend {
    info: DeviceInfo,
    shared: Arc<Shared>,
    streams: AtomicU32,
}

/// The KV pool on the device. Layer l of a group starts at l · layer_stride, its page p at p · page_stride from there;
/// in it the keys [Hkv, page_tokens, D] and then the values [Hkv, page_tokens, Dv].
pub struct CudaPool {
    pub region: Arc<Region>,
    pub layer_stride: u64,
    pub page_stride: u64,
    /// Stretches a page is made of (layers, or 1 where it is contiguous) and the bytes of each.
    pub stretches: (u32, u64),
    pub specs: Vec<KvGroupSpec>,
    pub bytes: u64,
    /// Tensor maps by head size.
    maps: Mutex<Vec<(u32, [u64; 16])>>,
}

impl CudaPool {
    /// Bytes of one page of one layer of a group.
    pub fn layer_bytes(spec: &KvGroupSpec) -> u64 {
        spec.page_bytes() / u64::from(spec.layers.max(1))
    }
    /// The tensor map of the pool as rows of `dim` 16-bit elements: what the prefill kernels of sm_90a copy boxes of.
    ///
    /// # Errors
    /// From the driver.
    ///
    /// # Panics
    /// If layers, pages or values do not start at whole rows: pools of one head size have no others.
    pub fn head_rows(&self, dim: u32) -> Result<[u64; 16]> {
        let row_bytes = u64::from(dim) * 2;
        assert!(
            self.layer_stride.is_multiple_of(row_bytes) && self.page_stride.is_multiple_of(row_bytes),
            "pages of {} bytes are no whole rows of {row_bytes}",
            self.page_stride
        );
        let mut maps = super::mem::lock(&self.maps);
        if let Some((_, map)) = maps.iter().find(|m| m.0 == dim) {
            return Ok(*map);
        }
        let rows = self.bytes / row_bytes;
        let map =
            super::driver::tensor_map(self.region.address(), [dim.into(), rows], [64, params::HOPPER_BOX])?;
        maps.push((dim, map));
        Ok(map)
    }
    /// Address of page 0 of a layer.
    pub fn layer(&self, kv: &KvLayer) -> u64 {
        self.region.address() + u64::from(kv.layer()) * self.layer_stride
    }
}

/// The sampler's slots on the device.
pub struct CudaSampler {
    pub state: params::SamplerState,
    pub _region: Arc<Region>,
}

impl CudaBackend {
    /// Opens a device.
    ///
    /// # Errors
    /// `Unsupported` in one sentence.
    pub fn open(index: u32, paths: Paths) -> Result<Self> {
        let gpu = Arc::new(Gpu::open(index)?);
        let (major, minor) = gpu.capability;
        let half = if major >= 8 { [DType::Bf16, DType::F16] } else { [DType::F16, DType::Bf16] };
        let dtypes = vec![half[0], half[1], DType::F32];
        let info = DeviceInfo {
            id: format!("cuda:{index}"),
            name: gpu.name.clone(),
            arch: format!("sm_{major}{minor}"),
            dtypes: dtypes.clone(),
            kv_dtypes: dtypes,
            page_tokens: vec![16, 32, 64, 128],
            capture: CaptureLevel::Uniform,
            graph_row_step: 8,
            default_batched_tokens: 8_192,
            default_num_seqs: 256,
            units: gpu.units,
        };
        let shared = Shared {
            gpu,
            registry: Registry::default(),
            controls: Mutex::default(),
            paths,
            gated_bytes: AtomicU64::new(0),
        };
        Ok(CudaBackend { info, shared: Arc::new(shared), streams: AtomicU32::new(0) })
    }
}

/// Bytes of the sampler's slots, and where each part starts.
fn sampler_layout(caps: &StepCaps) -> (u64, [u64; 7]) {
    let (rows, vocab) = (u64::from(caps.rows), u64::from(caps.vocab));
    let words = vocab.div_ceil(32) * 4;
    let sizes =
        [32, vocab * 2, vocab * 4, words, words, u64::from(params::HISTORY) * 4, u64::from(BAD_WORDS) * 4];
    let mut end = 0;
    let starts = sizes.map(|size| {
        let start = end;
        end += (rows * size).next_multiple_of(256);
        start
    });
    (end, starts)
}

impl Backend for CudaBackend {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }
    fn memory(&self) -> Result<MemInfo> {
        let (total_bytes, free_bytes) = self.shared.gpu.memory()?;
        Ok(MemInfo { total_bytes, free_bytes })
    }
    fn supports(&self, op: &OpSpec) -> Support {
        caps::supports(op)
    }
    fn overhead_bytes(&self, caps: &StepCaps) -> u64 {
        // Graphs (measured by vLLM at 1 GiB for 50 buckets), cuBLASLt, plans and the products before a gate.
        let gated = self.shared.gated_bytes.load(Ordering::Relaxed);
        (1 << 30) + WORKSPACE_BYTES + sampler_layout(caps).0 + gated * u64::from(caps.tokens.min(4_096))
    }
    fn buffer(&self, shape: &[u32], dtype: DType, kind: MemKind) -> Result<Buffer> {
        let bytes = Tensor::from_raw(0, 0, 0, shape, dtype).extent_bytes();
        let region = match kind {
            MemKind::Device => Region::new(&self.shared.gpu, bytes, "a buffer")?,
            MemKind::Pinned => Region::pinned(&self.shared.gpu, bytes)?,
        };
        let mem = self.shared.registry.add(&region);
        Ok(Buffer::new(Tensor::from_raw(mem, 0, 0, shape, dtype), region))
    }
    fn host_slot(&self, bytes: usize) -> Result<HostSlot> {
        self.shared.gpu.bind()?;
        Ok(HostSlot::new(Arc::new(Slot(Pinned::new(bytes)?))))
    }
    fn load_weight(&self, w: HostWeight) -> Result<Weight> {
        self.shared.gpu.bind()?;
        let loaded = weights::load(&self.shared.gpu, &w)?;
        if loaded.interleaved {
            let bytes = u64::from(loaded.rows) * loaded.dtype.size_bytes() as u64;
            self.shared.gated_bytes.fetch_max(bytes, Ordering::Relaxed);
        }
        Ok(Weight::new(w.meta(), Arc::new(loaded)))
    }
    fn kv_pool(&self, groups: &[KvGroupSpec], pages: u32) -> Result<KvPool> {
        if let Some(g) = groups.iter().find(|g| !matches!(g.kind, KvKind::Full | KvKind::Window { .. })) {
            return Err(Error::Unsupported(format!(
                "KV groups of kind {:?} have no CUDA kernels yet",
                g.kind
            )));
        }
        let page_bytes = groups.iter().map(KvGroupSpec::page_bytes).max().unwrap_or(0);
        let layers = groups.iter().map(|g| g.layers).max().unwrap_or(0);
        let layer_bytes = groups.iter().map(CudaPool::layer_bytes).max().unwrap_or(0);
        // Layer by layer where groups have layers of one size: a layer's pages then lie close together.
        let even = groups.iter().all(|g| CudaPool::layer_bytes(g) == layer_bytes);
        let (layer_stride, page_stride) =
            if even { (layer_bytes * u64::from(pages), layer_bytes) } else { (layer_bytes, page_bytes) };
        let region = Region::new(&self.shared.gpu, page_bytes * u64::from(pages), "the KV cache")?;
        let stretches = if even { (layers, layer_bytes) } else { (1, page_bytes) };
        let pool = Arc::new(CudaPool {
            region,
            layer_stride,
            page_stride,
            stretches,
            specs: groups.to_vec(),
            bytes: page_bytes * u64::from(pages),
            maps: Mutex::default(),
        });
        let layers_of = |(g, spec): (usize, &KvGroupSpec)| {
            (0..spec.layers).map(|layer| KvLayer::new(g as u32, layer, pool.clone())).collect()
        };
        let all = groups.iter().enumerate().map(layers_of).collect();
        Ok(KvPool { groups: all, specs: groups.to_vec(), pages, page_bytes, layout: 0xC0DA_0001 })
    }
    fn attn_plan(&self, spec: &AttnSpec, caps: &StepCaps) -> Result<AttnPlan> {
        self.shared.gpu.bind()?;
        let plan = CudaPlan::new(&self.shared.gpu, spec, caps, self.shared.invariance(caps))?;
        Ok(AttnPlan::new(*spec, 0, Arc::new(plan)))
    }
    fn sampler(&self, caps: &StepCaps) -> Result<Sampler> {
        let (bytes, at) = sampler_layout(caps);
        let region =
            Region::new(&self.shared.gpu, bytes, "sampling state (--max-num-seqs rows of the vocabulary)")?;
        let [header, counts, bias, allowed, stops, history, bad_words] = at.map(|a| region.address() + a);
        let state = params::SamplerState {
            header,
            counts,
            bias,
            allowed,
            stops,
            history,
            bad_words,
            vocab: caps.vocab,
            history_length: params::HISTORY,
            bad_words_length: BAD_WORDS,
            slots: caps.rows,
        };
        Ok(Sampler::new(Arc::new(CudaSampler { state, _region: region })))
    }
    fn stream(&self, kind: QueueKind, caps: &StepCaps, comms: &[CommConfig]) -> Result<Box<dyn Stream>> {
        if let Some(comm) = comms.iter().find(|c| c.world > 1) {
            return Err(Error::Unsupported(format!(
                "{} ranks: collectives are not built in yet",
                comm.world
            )));
        }
        let id = self.streams.fetch_add(1, Ordering::Relaxed);
        Ok(Box::new(CudaStream::new(self.shared.clone(), id, kind, caps)?))
    }
}

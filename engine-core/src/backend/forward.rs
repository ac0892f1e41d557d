//! Wrappers around backends and streams: a wrapper writes the methods it has itself, and names those it forwards.

/// `forward_backend!(inner: info memory ..);` inside an `impl Backend`: these methods are those of `self.inner`.
#[macro_export]
macro_rules! forward_backend {
    ($inner:ident: $($method:ident)*) => {
        $($crate::forward_backend!(@$method $inner);)*
    };
    (@info $inner:ident) => {
        fn info(&self) -> &$crate::backend::DeviceInfo {
            self.$inner.info()
        }
    };
    (@memory $inner:ident) => {
        fn memory(&self) -> $crate::Result<$crate::backend::MemInfo> {
            self.$inner.memory()
        }
    };
    (@supports $inner:ident) => {
        fn supports(&self, op: &$crate::backend::OpSpec) -> $crate::backend::Support {
            self.$inner.supports(op)
        }
    };
    (@overhead_bytes $inner:ident) => {
        fn overhead_bytes(&self, caps: &$crate::backend::StepCaps) -> u64 {
            self.$inner.overhead_bytes(caps)
        }
    };
    (@buffer $inner:ident) => {
        fn buffer(&self, shape: &[u32], dtype: $crate::DType, kind: $crate::backend::MemKind) -> $crate::Result<$crate::backend::Buffer> {
            self.$inner.buffer(shape, dtype, kind)
        }
    };
    (@host_slot $inner:ident) => {
        fn host_slot(&self, bytes: usize) -> $crate::Result<$crate::backend::HostSlot> {
            self.$inner.host_slot(bytes)
        }
    };
    (@load_weight $inner:ident) => {
        fn load_weight(&self, w: $crate::backend::HostWeight) -> $crate::Result<$crate::backend::Weight> {
            self.$inner.load_weight(w)
        }
    };
    (@kv_pool $inner:ident) => {
        fn kv_pool(&self, groups: &[$crate::backend::KvGroupSpec], pages: u32) -> $crate::Result<$crate::backend::KvPool> {
            self.$inner.kv_pool(groups, pages)
        }
    };
    (@attn_plan $inner:ident) => {
        fn attn_plan(&self, spec: &$crate::backend::AttnSpec, caps: &$crate::backend::StepCaps) -> $crate::Result<$crate::backend::AttnPlan> {
            self.$inner.attn_plan(spec, caps)
        }
    };
    (@sampler $inner:ident) => {
        fn sampler(&self, caps: &$crate::backend::StepCaps) -> $crate::Result<$crate::backend::Sampler> {
            self.$inner.sampler(caps)
        }
    };
    (@stream $inner:ident) => {
        fn stream(&self, kind: $crate::backend::QueueKind, caps: &$crate::backend::StepCaps, comms: &[$crate::backend::CommConfig]) -> $crate::Result<Box<dyn $crate::backend::Stream>> {
            self.$inner.stream(kind, caps, comms)
        }
    };
}

/// `forward_stream!(inner: wait record ..);` inside an `impl Stream`: these methods are those of `self.inner`.
#[macro_export]
macro_rules! forward_stream {
    ($inner:ident: $($method:ident)*) => {
        $($crate::forward_stream!(@$method $inner);)*
    };
    (@scratch $inner:ident) => {
        fn scratch(&mut self, shape: &[u32], dtype: $crate::DType) -> $crate::Tensor {
            self.$inner.scratch(shape, dtype)
        }
    };
    (@mark $inner:ident) => {
        fn mark(&mut self) -> $crate::backend::Mark {
            self.$inner.mark()
        }
    };
    (@release $inner:ident) => {
        fn release(&mut self, m: $crate::backend::Mark) {
            self.$inner.release(m);
        }
    };
    (@upload $inner:ident) => {
        fn upload(&mut self, src: &[u8], dst: $crate::Tensor) -> $crate::Result<()> {
            self.$inner.upload(src, dst)
        }
    };
    (@download $inner:ident) => {
        fn download(&mut self, src: $crate::Tensor, into: $crate::backend::HostSlot) -> $crate::Result<$crate::backend::Pending> {
            self.$inner.download(src, into)
        }
    };
    (@wait $inner:ident) => {
        fn wait(&mut self, p: $crate::backend::Pending) -> $crate::Result<$crate::backend::HostSlot> {
            self.$inner.wait(p)
        }
    };
    (@record $inner:ident) => {
        fn record(&mut self) -> $crate::Result<$crate::backend::Ticket> {
            self.$inner.record()
        }
    };
    (@after $inner:ident) => {
        fn after(&mut self, t: $crate::backend::Ticket) -> $crate::Result<()> {
            self.$inner.after(t)
        }
    };
    (@control $inner:ident) => {
        fn control(&self) -> std::sync::Arc<dyn $crate::backend::Control> {
            self.$inner.control()
        }
    };
    (@plan $inner:ident) => {
        fn plan(&mut self, p: &$crate::backend::AttnPlan, b: &$crate::backend::BatchMeta<'_>, into: &mut [u8]) -> $crate::Result<()> {
            self.$inner.plan(p, b, into)
        }
    };
    (@write_weight $inner:ident) => {
        fn write_weight(&mut self, w: &$crate::backend::Weight, slot: u32, src: &$crate::backend::HostWeight) -> $crate::Result<()> {
            self.$inner.write_weight(w, slot, src)
        }
    };
    (@pages_out $inner:ident) => {
        fn pages_out(&mut self, kv: &[$crate::backend::KvLayer], pages: &[u32], into: $crate::backend::HostSlot) -> $crate::Result<$crate::backend::Pending> {
            self.$inner.pages_out(kv, pages, into)
        }
    };
    (@pages_in $inner:ident) => {
        fn pages_in(&mut self, kv: &[$crate::backend::KvLayer], pages: &[u32], from: $crate::backend::HostSlot) -> $crate::Result<$crate::backend::Pending> {
            self.$inner.pages_in(kv, pages, from)
        }
    };
    (@op $inner:ident) => {
        fn op(&mut self, op: &$crate::backend::Op<'_>) -> $crate::Result<()> {
            self.$inner.op(op)
        }
    };
    (@capture_begin $inner:ident) => {
        fn capture_begin(&mut self) -> $crate::Result<$crate::backend::CaptureLevel> {
            self.$inner.capture_begin()
        }
    };
    (@capture_end $inner:ident) => {
        fn capture_end(&mut self) -> $crate::Result<$crate::backend::Graph> {
            self.$inner.capture_end()
        }
    };
    (@capture_abort $inner:ident) => {
        fn capture_abort(&mut self) {
            self.$inner.capture_abort();
        }
    };
    (@replay $inner:ident) => {
        fn replay(&mut self, g: &$crate::backend::Graph) -> $crate::Result<()> {
            self.$inner.replay(g)
        }
    };
}

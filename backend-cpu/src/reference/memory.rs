//! Device memory of the reference: byte vectors, found by a tensor's memory number.

use std::any::Any;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use engine_core::backend::HostMemory;
use engine_core::{DType, Tensor};

use super::dtype::{decode, encode};

/// One allocation.
pub struct Region {
    bytes: Mutex<Vec<u8>>,
}

/// Every allocation of a backend, by number. Numbers are not used twice.
#[derive(Default)]
pub struct Registry {
    regions: Mutex<Vec<Weak<Region>>>,
}

impl Registry {
    /// A zeroed allocation and its number.
    pub fn allocate(&self, bytes: u64) -> (u32, Arc<Region>) {
        let region = Arc::new(Region { bytes: Mutex::new(vec![0; bytes as usize]) });
        let mut regions = lock(&self.regions);
        regions.push(Arc::downgrade(&region));
        (regions.len() as u32 - 1, region)
    }

    /// The memory a tensor lies in.
    ///
    /// # Panics
    /// If it is gone, or the tensor reaches past its end.
    pub fn view(&self, tensor: Tensor) -> View {
        let region = lock(&self.regions).get(tensor.mem() as usize).and_then(Weak::upgrade);
        let region = region.unwrap_or_else(|| panic!("stale tensor of memory {}", tensor.mem()));
        let (end, size) = (tensor.at_bytes() + tensor.extent_bytes(), lock(&region.bytes).len() as u64);
        assert!(end <= size, "tensor ends at byte {end} of a memory of {size}");
        View { region, tensor }
    }
}

/// A tensor with its memory held.
pub struct View {
    region: Arc<Region>,
    tensor: Tensor,
}

impl View {
    /// Its shape, strides and type.
    pub fn tensor(&self) -> Tensor {
        self.tensor
    }

    /// Elements of a floating-point tensor in row-major order.
    pub fn floats(&self) -> Vec<f32> {
        decode(self.tensor.dtype(), &self.read())
    }

    /// Elements of an i32 (or u32) tensor.
    pub fn ints(&self) -> Vec<i32> {
        self.words().into_iter().map(|w| w as i32).collect()
    }

    /// Elements of a u32 (or i32) tensor.
    pub fn words(&self) -> Vec<u32> {
        assert!(
            matches!(self.tensor.dtype(), DType::I32 | DType::U32),
            "{} is no index",
            self.tensor.dtype()
        );
        self.read().chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
    }

    /// Elements of an [n, 2] i32 tensor.
    pub fn pairs(&self) -> Vec<[i32; 2]> {
        self.ints().chunks_exact(2).map(|p| [p[0], p[1]]).collect()
    }

    /// Writes all elements, rounded to the tensor's type.
    pub fn set_floats(&self, values: &[f32]) {
        self.write(&encode(self.tensor.dtype(), values));
    }

    /// Writes all elements of an i32 tensor.
    pub fn set_ints(&self, values: &[i32]) {
        assert!(
            matches!(self.tensor.dtype(), DType::I32 | DType::U32),
            "{} is no index",
            self.tensor.dtype()
        );
        self.write(&values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>());
    }

    /// Packed bytes of all elements.
    pub fn read(&self) -> Vec<u8> {
        let (bytes, row) = (lock(&self.region.bytes), self.row_bytes());
        self.row_starts().flat_map(|at| bytes[at..at + row].to_vec()).collect()
    }

    /// Overwrites the first `packed.len()` bytes of the elements, row by row.
    pub fn write(&self, packed: &[u8]) {
        assert!(
            packed.len() <= self.tensor.len() * self.tensor.dtype().size_bytes(),
            "write past the tensor"
        );
        let mut bytes = lock(&self.region.bytes);
        for (at, row) in self.row_starts().zip(packed.chunks(self.row_bytes().max(1))) {
            bytes[at..at + row.len()].copy_from_slice(row);
        }
    }

    fn row_bytes(&self) -> usize {
        self.tensor.cols() * self.tensor.dtype().size_bytes()
    }

    fn row_starts(&self) -> impl Iterator<Item = usize> + use<> {
        let (t, [s0, s1, s2]) = (self.tensor, self.tensor.strides().map(|s| s as usize));
        let [d0, d1, d2, _] = t.shape().map(|d| d as usize);
        let rows =
            move |i: usize| (i / (d1 * d2) * s0 + i / d2 % d1 * s1 + i % d2 * s2) * t.dtype().size_bytes();
        (0..d0 * d1 * d2).map(move |i| t.at_bytes() as usize + rows(i))
    }
}

/// Host memory for downloads.
pub struct HostVec(pub Vec<u8>);

impl HostMemory for HostVec {
    fn bytes(&self) -> &[u8] {
        &self.0
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// Locks; a poisoned lock is one whose holder met a bug, and the data is plain bytes.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

//! Inputs of a step: written into pinned host memory, sent with one copy, read by kernels at the addresses given out.

use cudarc::driver::CudaContext;
use cudarc::driver::sys::CUdeviceptr;

use super::device::{Buffer, Device};
use super::{CudaError, Doing};

/// Sections begin at multiples of this many words: 32 bytes, the strictest alignment a kernel asks for.
const ALIGN_WORDS: usize = 8;

/// The words of one step. The device side is shared between steps, since the stream orders copies and kernels; the
/// host side is not, since the copy of one step may be under way while the next is written.
pub(super) struct Staging {
    words: Pinned<u32>,
    used: usize,
    device: CUdeviceptr,
}

impl Staging {
    /// For steps of at most `device.len()` words.
    pub(super) fn new(gpu: &Device, device: &Buffer<u32>) -> Result<Self, CudaError> {
        Ok(Self { words: Pinned::new(gpu, device.len())?, used: 0, device: device.address() })
    }

    /// Begins a new step. The copy of what was here has been waited for.
    pub(super) fn clear(&mut self) {
        self.used = 0;
    }

    /// Appends a section and returns its address on the device.
    pub(super) fn push(&mut self, values: impl IntoIterator<Item = u32>) -> Result<CUdeviceptr, CudaError> {
        let start = self.used;
        let words = self.words.as_mut_slice();
        for value in values {
            let Some(word) = words.get_mut(self.used) else {
                return Err(CudaError {
                    doing: "staging a step".to_owned(),
                    cause: format!("it has more than {} words of input", words.len()),
                });
            };
            *word = value;
            self.used += 1;
        }
        self.used = self.used.next_multiple_of(ALIGN_WORDS).min(words.len());
        Ok(self.device + (start * size_of::<u32>()) as u64)
    }

    /// Appends plain structures, word by word as they lie in memory.
    pub(super) fn push_structs<T: Copy>(&mut self, values: &[T]) -> Result<CUdeviceptr, CudaError> {
        const { assert!(size_of::<T>().is_multiple_of(4)) };
        // SAFETY: the structures are `repr(C)` of 4- and 8-byte numbers without padding between them.
        let words = unsafe {
            std::slice::from_raw_parts(values.as_ptr().cast::<u32>(), size_of_val(values) / size_of::<u32>())
        };
        self.push(words.iter().copied())
    }

    /// Sends everything with one copy.
    pub(super) fn send(&self, gpu: &Device) -> Result<(), CudaError> {
        // SAFETY: `used` words were written; they stay until the event behind this step has been waited for.
        unsafe {
            cudarc::driver::result::memcpy_htod_async(
                self.device,
                &self.words.as_slice()[..self.used],
                gpu.stream.cu_stream(),
            )
        }
        .doing("sending a step's inputs")
    }
}

/// Page-locked host memory, cached (the host reads it too).
pub(super) struct Pinned<T> {
    pointer: *mut T,
    len: usize,
}

// SAFETY: it owns plain memory.
unsafe impl<T: Send> Send for Pinned<T> {}

impl<T: Copy + Default> Pinned<T> {
    pub(super) fn new(gpu: &Device, len: usize) -> Result<Self, CudaError> {
        Self::within(&gpu.context, len)
    }

    pub(super) fn within(context: &CudaContext, len: usize) -> Result<Self, CudaError> {
        context.bind_to_thread().doing("using the GPU")?;
        // SAFETY: filled below, freed once on drop.
        let pointer = unsafe { cudarc::driver::result::malloc_host(len.max(1) * size_of::<T>(), 0) }
            .doing("allocating pinned memory")?
            .cast::<T>();
        for i in 0..len {
            // SAFETY: within the allocation.
            unsafe { pointer.add(i).write(T::default()) };
        }
        Ok(Self { pointer, len })
    }

    /// Its address as the device sees it: the same, since host and device share one address space.
    pub(super) fn address(&self) -> CUdeviceptr {
        self.pointer as CUdeviceptr
    }

    pub(super) fn as_slice(&self) -> &[T] {
        // SAFETY: `len` initialised elements.
        unsafe { std::slice::from_raw_parts(self.pointer, self.len) }
    }

    pub(super) fn as_mut_slice(&mut self) -> &mut [T] {
        // SAFETY: `len` initialised elements; `self` is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.pointer, self.len) }
    }
}

impl<T> Drop for Pinned<T> {
    fn drop(&mut self) {
        // SAFETY: allocated by `malloc_host`, freed once.
        let _ = unsafe { cudarc::driver::result::free_host(self.pointer.cast()) };
    }
}

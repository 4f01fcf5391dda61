//! Weights from their files to the GPU, at the speed of the bus.
//!
//! Several threads share the work. Each has two pieces of pinned memory and a stream of its own: while the GPU copies from
//! one piece, the thread reads the next bytes of a file into the other. Tensors land where they are used, fused matrices
//! part by part; what is stored in another format than the model is computed in goes through a buffer on the device and is
//! rounded there. Host memory in use is [`THREADS`] × [`SLOTS`] × [`SLOT_BYTES`], however large the model.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use cudarc::driver::result::memcpy_htod_async;
use cudarc::driver::sys::{CUdeviceptr, CUevent_flags};
use cudarc::driver::{CudaEvent, CudaModule, CudaStream};

use super::device::{Arg, Buffer, Device, Kernel};
use super::format::Format;
use super::staging::Pinned;
use super::weights::unreadable;
use super::{CudaError, Doing};
use crate::model::{TensorSource, WeightFormat};

/// Threads that read. One copies some 5 GB/s out of the page cache; the bus takes ten times that.
const THREADS: usize = 12;
/// Pieces of pinned memory of each thread.
const SLOTS: usize = 2;
/// Bytes of one; a multiple of every element's size.
const SLOT_BYTES: usize = 8 << 20;

/// A tensor, and where its elements go.
pub(super) struct Piece {
    /// As its source knows it.
    pub(super) name: String,
    /// What it is stored in.
    pub(super) format: WeightFormat,
    /// Of its first element, on the device.
    pub(super) address: CUdeviceptr,
    /// How many.
    pub(super) elements: usize,
}

impl Piece {
    fn bytes(&self) -> usize {
        self.elements * self.format.bytes()
    }
}

/// A part of a tensor that fits into a slot.
#[derive(Clone, Copy)]
struct Part<'a> {
    piece: &'a Piece,
    /// Bytes, from the tensor's beginning.
    offset: usize,
    bytes: usize,
}

/// Brings pieces from their source to a GPU.
pub(super) struct Upload<'a> {
    device: &'a Device,
    source: &'a dyn TensorSource,
    format: Format,
    from_f32: Kernel,
    from_16: Kernel,
}

impl<'a> Upload<'a> {
    /// `module` is [`super::compile::INIT`], compiled for `format`.
    pub(super) fn new(
        device: &'a Device,
        module: &Arc<CudaModule>,
        format: Format,
        source: &'a dyn TensorSource,
    ) -> Result<Self, CudaError> {
        Ok(Self {
            device,
            source,
            format,
            from_f32: Kernel::new(module, "convert_f32", 0)?,
            from_16: Kernel::new(module, "convert_16", 0)?,
        })
    }

    /// Brings all of `pieces`, whose memory has been allocated; they are complete when this returns. The first error
    /// ends it.
    pub(super) fn run(&self, pieces: &[Piece]) -> Result<(), CudaError> {
        let begun = Instant::now();
        let parts = parts(pieces);
        let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
        let converts = pieces.iter().any(|piece| !self.format.stores(piece.format));
        let read = || {
            let result = Reader::new(self, converts).and_then(|mut reader| {
                while !failed.load(Ordering::Relaxed)
                    && let Some(&part) = parts.get(next.fetch_add(1, Ordering::Relaxed))
                {
                    reader.bring(part)?;
                }
                reader.wait()
            });
            if result.is_err() {
                failed.store(true, Ordering::Relaxed);
            }
            result
        };
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..THREADS.min(parts.len())).map(|_| scope.spawn(read)).collect();
            let results = threads.into_iter().map(|thread| {
                thread.join().unwrap_or_else(|_| {
                    let doing = "reading weights".to_owned();
                    Err(CudaError { doing, cause: "a thread that reads has panicked".to_owned() })
                })
            });
            // All have to end before the first error is told: they write to the device.
            results.fold(Ok(()), Result::and)
        })?;
        let bytes: usize = pieces.iter().map(Piece::bytes).sum();
        let seconds = begun.elapsed().as_secs_f64();
        let (gb, rate) = (bytes as f64 / 1e9, bytes as f64 / 1e9 / seconds.max(1e-9));
        tracing::info!("{gb:.1} GB of weights are on the GPU, read in {seconds:.1} s ({rate:.1} GB/s)");
        Ok(())
    }
}

/// All pieces in their order, cut at multiples of [`SLOT_BYTES`].
fn parts(pieces: &[Piece]) -> Vec<Part<'_>> {
    let cut = |piece| {
        let all = Piece::bytes(piece);
        (0..all).step_by(SLOT_BYTES).map(move |offset| Part {
            piece,
            offset,
            bytes: SLOT_BYTES.min(all - offset),
        })
    };
    pieces.iter().flat_map(cut).collect()
}

/// What one thread works with.
struct Reader<'a> {
    upload: &'a Upload<'a>,
    stream: Arc<CudaStream>,
    slots: [Slot; SLOTS],
    /// Used last.
    slot: usize,
}

/// Pinned memory, with what comes behind it.
struct Slot {
    bytes: Pinned<u8>,
    /// On the device, for what has to be rounded.
    raw: Option<Buffer<u8>>,
    /// The end of the copy out of it.
    copied: Option<CudaEvent>,
}

impl<'a> Reader<'a> {
    fn new(upload: &'a Upload<'a>, converts: bool) -> Result<Self, CudaError> {
        let context = &upload.device.context;
        context.bind_to_thread().doing("using the GPU")?;
        let stream = context.new_stream().doing("making a stream")?;
        let slot = || {
            let raw = if converts { Some(Buffer::on(&stream, SLOT_BYTES)?) } else { None };
            Ok(Slot { bytes: Pinned::within(context, SLOT_BYTES)?, raw, copied: None })
        };
        Ok(Self { slots: [slot()?, slot()?], upload, stream, slot: 0 })
    }

    /// Reads a part and issues its way to the device.
    fn bring(&mut self, part: Part<'_>) -> Result<(), CudaError> {
        let Upload { device, source, format, from_f32, from_16 } = self.upload;
        self.slot = (self.slot + 1) % SLOTS;
        let slot = &mut self.slots[self.slot];
        if let Some(copied) = slot.copied.take() {
            copied.synchronize().doing("waiting for weights to be copied")?;
        }
        let Part { piece, offset, bytes } = part;
        let pinned = &mut slot.bytes.as_mut_slice()[..bytes];
        source.read(&piece.name, offset, pinned).map_err(|error| unreadable(&piece.name, &error))?;

        let first = offset / piece.format.bytes();
        let place = piece.address + (first * size_of::<super::format::Bits>()) as u64;
        let to = slot.raw.as_ref().filter(|_| !format.stores(piece.format)).map_or(place, Buffer::address);
        // SAFETY: there is room for the part at its place, and for any in `raw`; the pinned memory is written again only
        // after the event behind this copy.
        unsafe { memcpy_htod_async(to, pinned, self.stream.cu_stream()) }
            .doing(format!("copying {} to the GPU", piece.name))?;
        if to != place {
            let kernel = if piece.format == WeightFormat::F32 { from_f32 } else { from_16 };
            let elements = (bytes / piece.format.bytes()) as u64;
            let args = [Arg::Address(place), Arg::Address(to), Arg::Long(elements)];
            // SAFETY: `elements` numbers of the piece's format lie at `to`, and there is room for them at `place`;
            // arguments as the kernels take them. The next copy into `raw` is behind this on the same stream.
            unsafe { kernel.launch_on(&self.stream, (device.multiprocessors * 2, 1), 256, &args)? };
        }
        let flags = CUevent_flags::CU_EVENT_DISABLE_TIMING;
        let copied = self.stream.record_event(Some(flags)).doing("recording the end of a copy")?;
        slot.copied = Some(copied);
        Ok(())
    }

    /// Waits for all that was issued.
    fn wait(&self) -> Result<(), CudaError> {
        self.stream.synchronize().doing("waiting for weights to be copied")
    }
}

impl Drop for Reader<'_> {
    fn drop(&mut self) {
        // After an error copies may still be on their way out of memory that ends here. A second error is not news.
        let _ = self.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_cover_every_piece_once() {
        let piece = |format, elements| Piece { name: String::new(), format, address: 0, elements };
        let pieces = [
            piece(WeightFormat::Bf16, SLOT_BYTES / 2),
            piece(WeightFormat::F32, SLOT_BYTES / 2 + 1),
            piece(WeightFormat::F16, 7),
        ];
        let cut: Vec<_> = parts(&pieces).iter().map(|part| (part.offset, part.bytes)).collect();
        let second = [(0, SLOT_BYTES), (SLOT_BYTES, SLOT_BYTES), (2 * SLOT_BYTES, 4)];
        assert_eq!(cut, [&[(0, SLOT_BYTES)][..], &second, &[(0, 14)]].concat());
    }
}

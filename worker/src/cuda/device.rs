//! One GPU: context, stream, kernels, buffers.

use std::sync::Arc;

use cudarc::driver::result::memcpy_htod_async;
use cudarc::driver::sys::{self, CUdeviceptr};
use cudarc::driver::{CudaContext, CudaFunction, CudaModule, CudaSlice, CudaStream, DeviceRepr};
use cudarc::nvrtc::Ptx;

use super::budget::GpuMemory;
use super::compile::{self, Source, Target};
use super::format::Format;
use super::{CudaError, Doing, support};

/// A GPU with its compute stream. All work of one backend is issued on it, in order.
pub struct Device {
    /// Context.
    pub context: Arc<CudaContext>,
    /// The one stream.
    pub stream: Arc<CudaStream>,
    /// Compute capability.
    pub capability: (i32, i32),
    /// Streaming multiprocessors.
    pub multiprocessors: u32,
    /// Bytes that were free when it was opened.
    free_at_first: u64,
}

impl Device {
    /// Opens GPU `ordinal`.
    pub fn open(ordinal: usize) -> Result<Self, CudaError> {
        let context = CudaContext::new(ordinal).doing(format!("opening GPU {ordinal}"))?;
        let capability = context.compute_capability().doing("asking the compute capability")?;
        let mut driver = 0;
        // SAFETY: writes one number.
        unsafe { sys::cuDriverGetVersion(&raw mut driver) }.result().doing("asking the driver's version")?;
        support::kernels_for(capability, (driver / 1000, driver % 1000 / 10), compile::compiler_version()?)
            .map_err(|cause| CudaError { doing: format!("opening GPU {ordinal}"), cause })?;
        // SAFETY: one stream orders everything, so cudarc's events between streams are not needed; inside a graph
        // capture they would be errors.
        unsafe { context.disable_event_tracking() };
        let stream = context.new_stream().doing("making a stream")?;
        let multiprocessors = context
            .attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)
            .doing("asking the number of multiprocessors")? as u32;
        let (free_at_first, _total) = context.mem_get_info().doing("asking for free memory")?;
        Ok(Self { context, stream, capability, multiprocessors, free_at_first: free_at_first as u64 })
    }

    /// Its memory now.
    pub(super) fn memory(&self) -> Result<GpuMemory, CudaError> {
        let (free, total) = self.context.mem_get_info().doing("asking for free memory")?;
        let (total, free) = (total as u64, free as u64);
        Ok(GpuMemory { total, free, free_at_first: self.free_at_first })
    }

    /// Loads one source's kernels, compiling them if need be.
    pub fn load(&self, source: Source, target: &Target) -> Result<Arc<CudaModule>, CudaError> {
        let cubin = compile::cubin(source, target)?;
        self.context.load_module(Ptx::from_binary(cubin)).doing(format!("loading {}", source.name))
    }

    /// `elements` of uninitialised device memory.
    pub fn buffer<T: DeviceRepr>(&self, elements: usize) -> Result<Buffer<T>, CudaError> {
        Buffer::on(&self.stream, elements)
    }

    /// New device memory that holds `values`; `what` they are, for errors.
    pub fn upload<T: DeviceRepr>(&self, what: &str, values: &[T]) -> Result<Buffer<T>, CudaError> {
        let buffer = self.buffer(values.len())?;
        // SAFETY: the buffer is that long.
        unsafe { self.copy_to(what, buffer.address(), values)? };
        Ok(buffer)
    }

    /// Copies `values` to the device's memory, and waits for that. On the stream, since what is copied on none ("sync")
    /// may still be on its way to the GPU when the call returns, and no kernel waits for it.
    ///
    /// # Safety
    ///
    /// There is room for `values` at `address`.
    pub unsafe fn copy_to<T: DeviceRepr>(
        &self,
        what: &str,
        address: CUdeviceptr,
        values: &[T],
    ) -> Result<(), CudaError> {
        // SAFETY: as asked of the caller; `values` live until the copy is complete.
        unsafe { memcpy_htod_async(address, values, self.stream.cu_stream()) }
            .doing(format!("copying {what} to the GPU"))?;
        self.synchronize()
    }

    /// Waits for everything issued so far.
    pub fn synchronize(&self) -> Result<(), CudaError> {
        self.stream.synchronize().doing("waiting for the GPU")
    }
}

/// Device memory with its address at hand; kernels take addresses.
pub struct Buffer<T> {
    slice: CudaSlice<T>,
    address: CUdeviceptr,
}

impl<T: DeviceRepr> Buffer<T> {
    /// `elements` of uninitialised device memory, there once `stream` has come so far.
    pub(super) fn on(stream: &Arc<CudaStream>, elements: usize) -> Result<Self, CudaError> {
        // SAFETY: the memory is written by a kernel or a copy before anything reads it; that is each caller's task.
        let slice = unsafe { stream.alloc::<T>(elements.max(1)) }
            .doing(format!("allocating {} bytes on the GPU", elements * size_of::<T>()))?;
        Ok(Self::new(slice))
    }
}

impl<T> Buffer<T> {
    fn new(slice: CudaSlice<T>) -> Self {
        use cudarc::driver::DevicePtr;
        let address = {
            let stream = slice.stream().clone();
            let (address, _sync) = slice.device_ptr(&stream);
            address
        };
        Self { slice, address }
    }

    /// Address of the first element.
    pub fn address(&self) -> CUdeviceptr {
        self.address
    }

    /// Address of element `index`.
    pub fn at(&self, index: usize) -> CUdeviceptr {
        debug_assert!(index <= self.slice.len());
        self.address + (index * size_of::<T>()) as u64
    }

    /// Elements.
    pub fn len(&self) -> usize {
        self.slice.len()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.slice.is_empty()
    }
}

/// A kernel and how much dynamic shared memory it takes.
pub struct Kernel {
    function: CudaFunction,
    shared_bytes: u32,
    name: &'static str,
}

impl Kernel {
    /// Looks the kernel up.
    pub fn new(module: &Arc<CudaModule>, name: &'static str, shared_bytes: u32) -> Result<Self, CudaError> {
        let function = module.load_function(name).doing(format!("looking up kernel {name}"))?;
        // Static shared memory counts towards the 48 KiB that need no asking.
        if shared_bytes > 0 {
            function
                .set_attribute(
                    sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                    shared_bytes as i32,
                )
                .doing(format!("giving kernel {name} {shared_bytes} bytes of shared memory"))?;
        }
        Ok(Self { function, shared_bytes, name })
    }

    /// Launches with arguments as the kernel's header lists them.
    ///
    /// # Safety
    /// Number, types and order of `args` must be the kernel's, and addresses among them must be of live buffers that
    /// are as large as the kernel's header asks.
    pub unsafe fn launch(
        &self,
        device: &Device,
        grid: (u32, u32),
        block: u32,
        args: &[Arg],
    ) -> Result<(), CudaError> {
        // SAFETY: passed on to the caller.
        unsafe { self.issue(&device.stream, grid, block, args, false) }
    }

    /// [`Self::launch`], but the kernel may start while the one issued before it still runs ("programmatic dependent
    /// launch"); `wait_for_previous` of `common.cuh` says what it may do until that one has ended.
    ///
    /// # Safety
    /// As for [`Self::launch`]; and the kernel keeps to the rules of `wait_for_previous`.
    pub unsafe fn launch_dependent(
        &self,
        device: &Device,
        grid: (u32, u32),
        block: u32,
        args: &[Arg],
    ) -> Result<(), CudaError> {
        // SAFETY: passed on to the caller.
        unsafe { self.issue(&device.stream, grid, block, args, true) }
    }

    /// [`Self::launch`] on another stream than the device's own.
    ///
    /// # Safety
    /// As for [`Self::launch`].
    pub unsafe fn launch_on(
        &self,
        stream: &CudaStream,
        grid: (u32, u32),
        block: u32,
        args: &[Arg],
    ) -> Result<(), CudaError> {
        // SAFETY: passed on to the caller.
        unsafe { self.issue(stream, grid, block, args, false) }
    }

    unsafe fn issue(
        &self,
        stream: &CudaStream,
        grid: (u32, u32),
        block: u32,
        args: &[Arg],
        dependent: bool,
    ) -> Result<(), CudaError> {
        if grid.0 == 0 || grid.1 == 0 {
            return Ok(());
        }
        // SAFETY: plain data; a zeroed value is valid, and the one field that counts is set.
        let mut attribute: sys::CUlaunchAttribute = unsafe { std::mem::zeroed() };
        attribute.id = sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
        attribute.value.programmaticStreamSerializationAllowed = 1;
        let config = sys::CUlaunchConfig {
            gridDimX: grid.0,
            gridDimY: grid.1,
            gridDimZ: 1,
            blockDimX: block,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: self.shared_bytes,
            hStream: stream.cu_stream(),
            attrs: &raw mut attribute,
            numAttrs: u32::from(dependent),
        };
        let mut pointers: Vec<_> = args.iter().map(Arg::pointer).collect();
        // SAFETY: arguments, configuration and attribute live through the call, which copies them; the rest is the
        // caller's promise.
        unsafe {
            sys::cuLaunchKernelEx(
                &raw const config,
                self.function.cu_function(),
                pointers.as_mut_ptr(),
                std::ptr::null_mut(),
            )
        }
        .result()
        .doing(format!("launching {}", self.name))
    }
}

/// One kernel argument.
#[derive(Clone, Copy)]
pub enum Arg {
    /// A pointer; 0 is null.
    Address(CUdeviceptr),
    /// `int`.
    Int(i32),
    /// `u32`.
    Uint(u32),
    /// `u64`.
    Long(u64),
    /// `float`.
    Float(f32),
    /// A tensor map by value.
    Map(TensorMap),
}

impl Arg {
    /// The address of a buffer that some models lack; null where it lacks.
    pub fn optional<T>(buffer: &Option<Buffer<T>>) -> Self {
        Self::Address(buffer.as_ref().map_or(0, Buffer::address))
    }
}

impl Arg {
    /// Where the value lies.
    fn pointer(&self) -> *mut std::ffi::c_void {
        match self {
            Self::Address(value) | Self::Long(value) => std::ptr::from_ref(value).cast_mut().cast(),
            Self::Int(value) => std::ptr::from_ref(value).cast_mut().cast(),
            Self::Uint(value) => std::ptr::from_ref(value).cast_mut().cast(),
            Self::Float(value) => std::ptr::from_ref(value).cast_mut().cast(),
            Self::Map(value) => std::ptr::from_ref(value).cast_mut().cast(),
        }
    }
}

/// What TMA needs to know of an array: rows of numbers, copied in boxes of some rows × 64 with 128-byte swizzle.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
pub struct TensorMap(sys::CUtensorMap);

// SAFETY: CUDA defines the structure as a kernel parameter passed by value.
unsafe impl DeviceRepr for TensorMap {}

impl TensorMap {
    /// `rows` rows of `columns` elements, each row `stride` elements after the one before; copied `box_rows` at a time.
    pub fn new(
        format: Format,
        address: CUdeviceptr,
        rows: u64,
        columns: u64,
        stride: u64,
        box_rows: u32,
    ) -> Result<Self, CudaError> {
        // SAFETY: plain data, filled in below.
        let mut map = Self(unsafe { std::mem::zeroed() });
        // SAFETY: the arrays live through the call and have `rank` (strides: one less) elements.
        unsafe {
            sys::cuTensorMapEncodeTiled(
                &raw mut map.0,
                format.tensor_map(),
                2,
                address as *mut _,
                [columns, rows].as_ptr(),
                [stride * 2].as_ptr(),
                [64, box_rows].as_ptr(),
                [1, 1].as_ptr(),
                sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
                sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        }
        .result()
        .doing("describing an array for TMA")?;
        Ok(map)
    }
}

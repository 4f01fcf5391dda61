//! Matrix products through cublasLt: `out[M, N] = x[M, K] · weight[N, K]ᵀ`, 16 bits with float accumulation.
//!
//! cublasLt's first choice of algorithm is often not the fastest. For each shape that recurs (full prefill steps, the
//! batch sizes of the decode graphs) the candidates of its heuristic are timed once, with an empty L2 cache, and the
//! winner is kept, on disk too. Other shapes take the first choice.

use std::collections::HashMap;

use cudarc::cublaslt::sys;
use cudarc::driver::sys::{CUdeviceptr, CUevent_flags};

use super::device::{Buffer, Device};
use super::format::Format;
use super::tuned::{Algorithm, Tuned};
use super::{CudaError, Doing};

/// What cublasLt may use for split-K and the like.
const WORKSPACE_BYTES: usize = 64 << 20;
/// Candidates that are timed.
const CANDIDATES: usize = 24;
/// Runs of each candidate; the fastest counts, since noise only ever adds.
const RUNS: usize = 5;
/// A candidate this much slower than the best so far in its first run gets no other.
const HOPELESS: f32 = 1.5;

/// One product's sizes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Shape {
    /// Tokens.
    pub m: u32,
    /// Output features.
    pub n: u32,
    /// Input features.
    pub k: u32,
    /// A bias `[n]` is added.
    pub bias: bool,
    /// The result is float instead of 16 bits.
    pub float_out: bool,
    /// The result is added to what is there.
    pub accumulate: bool,
}

/// Descriptors and the chosen algorithm of one shape.
struct Plan {
    operation: sys::cublasLtMatmulDesc_t,
    weight: sys::cublasLtMatrixLayout_t,
    input: sys::cublasLtMatrixLayout_t,
    output: sys::cublasLtMatrixLayout_t,
    accumulate: bool,
    algorithm: sys::cublasLtMatmulAlgo_t,
}

/// cublasLt with the plans made so far.
pub struct Blas {
    handle: sys::cublasLtHandle_t,
    format: Format,
    workspace: Buffer<u8>,
    plans: HashMap<Shape, Plan>,
    tuned: Tuned,
}

// SAFETY: cublasLt handles and descriptors may be used from any one thread at a time; `Blas` is not `Sync`.
unsafe impl Send for Blas {}

impl Blas {
    /// Opens cublasLt.
    pub fn new(device: &Device, format: Format) -> Result<Self, CudaError> {
        let handle = cudarc::cublaslt::result::create_handle().doing("opening cublasLt")?;
        let mut driver = 0;
        // SAFETY: one asks for a number, the other writes one.
        let library = unsafe {
            cudarc::driver::sys::cuDriverGetVersion(&raw mut driver)
                .result()
                .doing("asking the driver's version")?;
            sys::cublasLtGetVersion()
        };
        let gpu = device.context.name().doing("asking the GPU's name")?;
        let tuned = Tuned::load(&format!("{gpu}, driver {driver}, cublasLt {library}, {format:?}"));
        Ok(Self { handle, format, workspace: device.buffer(WORKSPACE_BYTES)?, plans: HashMap::new(), tuned })
    }

    /// What timing has found out so far.
    pub(super) fn tuned(&mut self) -> &mut Tuned {
        &mut self.tuned
    }

    /// Keeps what was timed for the next start.
    pub fn save(&mut self) {
        self.tuned.save();
    }

    /// Times the candidates for `shape` on the given weight and keeps the fastest, unless an earlier start did.
    /// `flush` is written between runs to push the weight out of the L2 cache, as the layers between two uses do. Not
    /// while a graph is captured.
    #[allow(clippy::too_many_arguments, reason = "the operands of one product")]
    pub fn tune(
        &mut self,
        device: &Device,
        shape: Shape,
        weight: CUdeviceptr,
        bias: CUdeviceptr,
        x: CUdeviceptr,
        out: CUdeviceptr,
        flush: &Buffer<u8>,
    ) -> Result<(), CudaError> {
        let mut plan = Plan::new(shape, self.format)?;
        if let Some(data) = self.tuned.get(&shape) {
            plan.algorithm = sys::cublasLtMatmulAlgo_t { data };
            if self.usable(&plan) {
                self.plans.insert(shape, plan);
                return Ok(());
            }
        }
        let candidates = self.candidates(&plan, shape)?;
        let mut best = f32::INFINITY;
        for candidate in candidates {
            let mut fastest = f32::INFINITY;
            for run in 0..=RUNS {
                // SAFETY: the buffer is as long as is written.
                unsafe {
                    cudarc::driver::result::memset_d8_async(
                        flush.address(),
                        0,
                        flush.len(),
                        device.stream.cu_stream(),
                    )
                }
                .doing("emptying the cache")?;
                let start = device
                    .stream
                    .record_event(Some(CUevent_flags::CU_EVENT_DEFAULT))
                    .doing("recording an event")?;
                if self.run(device, &plan, &candidate.algo, weight, x, out, bias).is_err() {
                    fastest = f32::INFINITY;
                    break;
                }
                let end = device
                    .stream
                    .record_event(Some(CUevent_flags::CU_EVENT_DEFAULT))
                    .doing("recording an event")?;
                let elapsed = start.elapsed_ms(&end).doing("timing a product")?;
                if run > 0 {
                    fastest = fastest.min(elapsed);
                } else if elapsed > HOPELESS * best {
                    break;
                }
            }
            if fastest < best {
                best = fastest;
                plan.algorithm = candidate.algo;
            }
        }
        let data: Algorithm = plan.algorithm.data;
        self.tuned.put(shape, data);
        self.plans.insert(shape, plan);
        Ok(())
    }

    /// Whether the library takes the plan's algorithm for the plan's shape within the workspace.
    fn usable(&self, plan: &Plan) -> bool {
        // SAFETY: plain data, written by the call; descriptors are alive.
        unsafe {
            let mut result: sys::cublasLtMatmulHeuristicResult_t = std::mem::zeroed();
            sys::cublasLtMatmulAlgoCheck(
                self.handle,
                plan.operation,
                plan.weight,
                plan.input,
                plan.output,
                plan.output,
                &raw const plan.algorithm,
                &raw mut result,
            )
            .result()
            .is_ok()
                && result.workspaceSize <= WORKSPACE_BYTES
        }
    }

    /// `out[m, n] (+)= x[m, k] · weight[n, k]ᵀ (+ bias)`, on the device's stream.
    pub fn multiply(
        &mut self,
        device: &Device,
        shape: Shape,
        weight: CUdeviceptr,
        bias: CUdeviceptr,
        x: CUdeviceptr,
        out: CUdeviceptr,
    ) -> Result<(), CudaError> {
        self.prepare(shape)?;
        let plan = &self.plans[&shape];
        self.run(device, plan, &plan.algorithm, weight, x, out, bias)
    }

    /// Takes the library's first choice for a shape that was not timed.
    pub fn prepare(&mut self, shape: Shape) -> Result<(), CudaError> {
        if !self.plans.contains_key(&shape) {
            let mut plan = Plan::new(shape, self.format)?;
            plan.algorithm = self.candidates(&plan, shape)?[0].algo;
            self.plans.insert(shape, plan);
        }
        Ok(())
    }

    /// [`Self::multiply`] for a shape that [`Self::tune`] or [`Self::prepare`] has seen, without a bias.
    pub fn multiply_prepared(
        &self,
        device: &Device,
        shape: Shape,
        weight: CUdeviceptr,
        x: CUdeviceptr,
        out: CUdeviceptr,
    ) -> Result<(), CudaError> {
        let plan = self.plans.get(&shape).ok_or_else(|| CudaError {
            doing: "multiplying".to_owned(),
            cause: format!("{shape:?} was not prepared"),
        })?;
        self.run(device, plan, &plan.algorithm, weight, x, out, 0)
    }

    fn candidates(
        &self,
        plan: &Plan,
        shape: Shape,
    ) -> Result<Vec<sys::cublasLtMatmulHeuristicResult_t>, CudaError> {
        use cudarc::cublaslt::result;
        let doing = || format!("choosing an algorithm for {shape:?}");
        let preference = result::create_matmul_pref().doing(doing())?;
        let (mut found, workspace) = (0, WORKSPACE_BYTES);
        // SAFETY: plain data, overwritten up to `found`; a zero state is CUBLAS_STATUS_SUCCESS.
        let mut results: [sys::cublasLtMatmulHeuristicResult_t; CANDIDATES] = unsafe { std::mem::zeroed() };
        // SAFETY: descriptors are alive; the array has CANDIDATES entries.
        let status = unsafe {
            result::set_matmul_pref_attribute(
                preference,
                sys::cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                (&raw const workspace).cast(),
                size_of::<usize>(),
            )
            .doing(doing())?;
            let status = sys::cublasLtMatmulAlgoGetHeuristic(
                self.handle,
                plan.operation,
                plan.weight,
                plan.input,
                plan.output,
                plan.output,
                preference,
                CANDIDATES as i32,
                results.as_mut_ptr(),
                &raw mut found,
            );
            let _ = result::destroy_matmul_pref(preference);
            status
        };
        status.result().doing(doing())?;
        let usable: Vec<_> = results[..found as usize]
            .iter()
            .filter(|result| result.state == sys::cublasStatus_t::CUBLAS_STATUS_SUCCESS)
            .copied()
            .collect();
        if usable.is_empty() {
            return Err(CudaError { doing: doing(), cause: "cublasLt has none".to_owned() });
        }
        Ok(usable)
    }

    #[allow(clippy::too_many_arguments, reason = "the operands of one product")]
    fn run(
        &self,
        device: &Device,
        plan: &Plan,
        algorithm: &sys::cublasLtMatmulAlgo_t,
        weight: CUdeviceptr,
        x: CUdeviceptr,
        out: CUdeviceptr,
        bias: CUdeviceptr,
    ) -> Result<(), CudaError> {
        let (one, before) = (1.0_f32, if plan.accumulate { 1.0_f32 } else { 0.0 });
        // SAFETY: the plan's descriptors fit the operands, which the caller keeps alive until the stream is done.
        unsafe {
            if bias != 0 {
                cudarc::cublaslt::result::set_matmul_desc_attribute(
                    plan.operation,
                    sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_BIAS_POINTER,
                    (&raw const bias).cast(),
                    size_of::<CUdeviceptr>(),
                )
                .doing("setting a bias")?;
            }
            cudarc::cublaslt::result::matmul(
                self.handle,
                plan.operation,
                (&raw const one).cast(),
                (&raw const before).cast(),
                weight as *const _,
                plan.weight,
                x as *const _,
                plan.input,
                out as *const _,
                plan.output,
                out as *mut _,
                plan.output,
                algorithm,
                self.workspace.address() as *mut _,
                WORKSPACE_BYTES,
                device.stream.cu_stream().cast(),
            )
        }
        .doing("multiplying")
    }
}

impl Plan {
    /// cublasLt counts columns first: `outᵀ[N, M] = weight · xᵀ`, with `weight` read transposed.
    fn new(shape: Shape, format: Format) -> Result<Self, CudaError> {
        use cudarc::cublaslt::result;
        let stored = format.blas();
        let doing = || format!("describing {shape:?}");
        let (m, n, k) = (u64::from(shape.m), u64::from(shape.n), u64::from(shape.k));
        let operation = result::create_matmul_desc(
            sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
            sys::cudaDataType_t::CUDA_R_32F,
        )
        .doing(doing())?;
        let set = |attribute, value: i32| {
            // SAFETY: the descriptor was just made; the value lives through the call.
            unsafe {
                result::set_matmul_desc_attribute(
                    operation,
                    attribute,
                    (&raw const value).cast(),
                    size_of::<i32>(),
                )
            }
            .doing(doing())
        };
        set(sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSA, 1)?;
        if shape.bias {
            set(
                sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_EPILOGUE,
                sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS as i32,
            )?;
        }
        Ok(Self {
            operation,
            weight: result::create_matrix_layout(stored, k, n, k as i64).doing(doing())?,
            input: result::create_matrix_layout(stored, k, m, k as i64).doing(doing())?,
            output: result::create_matrix_layout(
                if shape.float_out { sys::cudaDataType_t::CUDA_R_32F } else { stored },
                n,
                m,
                n as i64,
            )
            .doing(doing())?,
            accumulate: shape.accumulate,
            // SAFETY: plain data, replaced before use.
            algorithm: unsafe { std::mem::zeroed() },
        })
    }
}

impl Drop for Plan {
    fn drop(&mut self) {
        use cudarc::cublaslt::result;
        // SAFETY: each was made once, by `new`, and is destroyed once. There is nothing to do about a refusal.
        unsafe {
            let _ = result::destroy_matmul_desc(self.operation);
            let _ = result::destroy_matrix_layout(self.weight);
            let _ = result::destroy_matrix_layout(self.input);
            let _ = result::destroy_matrix_layout(self.output);
        }
    }
}

impl Drop for Blas {
    fn drop(&mut self) {
        self.plans.clear();
        // SAFETY: made by `new`, destroyed once.
        unsafe {
            let _ = cudarc::cublaslt::result::destroy_handle(self.handle);
        }
    }
}

//! CUDA sources to cubins with NVRTC. Sources are in the binary; cubins are cached on disk by a hash of everything
//! that goes into them, so that only the first start on a machine compiles.

use std::ffi::{CStr, CString};
use std::path::PathBuf;

use cudarc::nvrtc::sys;
use disagg_process::file;
use xxhash_rust::xxh3::{xxh3_64, xxh3_128};

use super::format::Format;
use super::{CudaError, Doing};

/// Headers that sources include, by name.
const HEADERS: [(&str, &str); 4] = [
    ("common.cuh", include_str!("kernels/common.cuh")),
    ("elementwise.cuh", include_str!("kernels/elementwise.cuh")),
    ("hopper.cuh", include_str!("kernels/hopper.cuh")),
    ("split.cuh", include_str!("kernels/split.cuh")),
];

/// Of a cached kernel; they are some hundred kilobytes.
const CUBIN_BYTES_MAX: u64 = 64 << 20;

/// One CUDA source file.
#[derive(Clone, Copy, Debug)]
pub struct Source {
    /// File name, for messages.
    pub name: &'static str,
    text: &'static str,
}

/// Embedding, norms, RoPE with the KV append, activation.
pub const ELEMENTWISE: Source =
    Source { name: "elementwise.cu", text: include_str!("kernels/elementwise.cu") };
/// Attention of one query token per sequence.
pub const ATTENTION_DECODE: Source =
    Source { name: "attention_decode.cu", text: include_str!("kernels/attention_decode.cu") };
/// Attention of prompts, any GPU from compute capability 8.0 on.
pub const ATTENTION_PREFILL: Source =
    Source { name: "attention_prefill.cu", text: include_str!("kernels/attention_prefill.cu") };
/// Attention of prompts on Hopper, head size 128.
pub const ATTENTION_PREFILL_SM90: Source =
    Source { name: "attention_prefill_sm90.cu", text: include_str!("kernels/attention_prefill_sm90.cu") };
/// Matrix products of decode steps on Hopper.
pub const MATMUL_DECODE: Source =
    Source { name: "matmul_decode.cu", text: include_str!("kernels/matmul_decode.cu") };
/// Norms, RoPE and activation behind [`MATMUL_DECODE`].
pub const ELEMENTWISE_DECODE: Source =
    Source { name: "elementwise_decode.cu", text: include_str!("kernels/elementwise_decode.cu") };
/// KV blocks to host memory and back.
pub const COPY_BLOCKS: Source =
    Source { name: "copy_blocks.cu", text: include_str!("kernels/copy_blocks.cu") };
/// Choice of tokens.
pub const SAMPLE: Source = Source { name: "sample.cu", text: include_str!("kernels/sample.cu") };
/// Dummy weights.
pub const INIT: Source = Source { name: "init.cu", text: include_str!("kernels/init.cu") };

/// All of them.
pub const ALL: [Source; 9] = [
    ELEMENTWISE,
    ATTENTION_DECODE,
    ATTENTION_PREFILL,
    ATTENTION_PREFILL_SM90,
    MATMUL_DECODE,
    ELEMENTWISE_DECODE,
    COPY_BLOCKS,
    SAMPLE,
    INIT,
];

impl Source {
    /// Whether there is code in it for `target`.
    pub fn is_for(&self, target: &Target) -> bool {
        match self.name {
            "attention_prefill_sm90.cu" => target.hopper() && target.head_dim == 128,
            "matmul_decode.cu" | "elementwise_decode.cu" => target.hopper(),
            _ => true,
        }
    }
}

/// What the sources are compiled for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Target {
    /// Compute capability, for example (9, 0).
    pub capability: (i32, i32),
    /// Elements of a head.
    pub head_dim: u32,
    /// Tokens in a KV block.
    pub block_size: u32,
    /// Of weights, activations and KV.
    pub format: Format,
}

impl Target {
    /// Compute capability 9.0, whose own instructions some sources use.
    pub fn hopper(&self) -> bool {
        self.capability == (9, 0)
    }

    /// `sm_90a` has the instructions that are Hopper's own.
    fn architecture(&self) -> String {
        let (major, minor) = self.capability;
        format!("sm_{major}{minor}{}", if self.hopper() { "a" } else { "" })
    }

    fn options(&self) -> Vec<String> {
        let mut options = vec![
            format!("--gpu-architecture={}", self.architecture()),
            "--std=c++17".to_owned(),
            "-default-device".to_owned(),
            format!("-DHEAD_DIM={}", self.head_dim),
            format!("-DBLOCK_SIZE={}", self.block_size),
        ];
        if self.format == Format::F16 {
            options.push("-DF16".to_owned());
        }
        options
    }
}

/// The cubin of `source`: from the cache, or compiled and put there. A cache that cannot be written is no error.
pub fn cubin(source: Source, target: &Target) -> Result<Vec<u8>, CudaError> {
    let options = target.options();
    let version = compiler_version()?;
    let key = xxh3_128(format!("{version:?}\0{options:?}\0{HEADERS:?}\0{}", source.text).as_bytes());
    let path = cache_folder().map(|folder| folder.join("cubin").join(format!("{key:032x}.cubin")));
    if let Some(cached) = path.as_ref().and_then(|path| file::read(path, CUBIN_BYTES_MAX).ok()) {
        return Ok(cached);
    }
    let cubin = compile(source, &options)?;
    if let Some(path) = path {
        // In one step, so that a worker starting beside this one never reads half a file.
        if let Err(error) = file::write(&path, &cubin) {
            tracing::debug!(%error, "compiled kernel not cached");
        }
    }
    Ok(cubin)
}

/// Of all sources: what was timed with other kernels than these may not hold.
pub(super) fn sources_hash() -> u64 {
    xxh3_64(format!("{HEADERS:?}\0{ALL:?}").as_bytes())
}

/// CUDA version of NVRTC.
pub(super) fn compiler_version() -> Result<(i32, i32), CudaError> {
    let mut version = (0, 0);
    // SAFETY: two out-parameters that live through the call.
    unsafe { sys::nvrtcVersion(&raw mut version.0, &raw mut version.1) }
        .result()
        .doing("asking NVRTC's version")?;
    Ok(version)
}

/// Compiles what is not in the cache, on as many threads as there are sources, so that loading finds it there.
/// Errors come up again, with the source's name, when it is loaded.
pub fn compile_ahead(target: &Target) {
    std::thread::scope(|scope| {
        for source in ALL.iter().filter(|source| source.is_for(target)) {
            scope.spawn(|| cubin(*source, target));
        }
    });
}

/// Where compiled kernels and timed choices are kept: `$XDG_CACHE_HOME/disagg` or `~/.cache/disagg`.
pub(super) fn cache_folder() -> Option<PathBuf> {
    let base = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")))?;
    Some(base.join("disagg"))
}

/// Compiles without looking at the cache. Needs NVRTC, but no GPU.
pub fn compile(source: Source, options: &[String]) -> Result<Vec<u8>, CudaError> {
    let c = |text: &str| CString::new(text).doing("passing a string to NVRTC");
    let (text, name) = (c(source.text)?, c(source.name)?);
    let headers = HEADERS.iter().map(|(_, text)| c(text)).collect::<Result<Vec<_>, _>>()?;
    let header_names = HEADERS.iter().map(|(name, _)| c(name)).collect::<Result<Vec<_>, _>>()?;
    let pointers_of = |strings: &[CString]| strings.iter().map(|s| s.as_ptr()).collect::<Vec<_>>();
    let options = options.iter().map(|option| c(option)).collect::<Result<Vec<_>, _>>()?;
    let pointers = pointers_of(&options);
    let doing = || format!("compiling {}", source.name);
    let mut program = std::ptr::null_mut();
    // SAFETY: all strings outlive the calls; sizes are asked for before buffers are filled; the program is destroyed
    // once, at the end.
    unsafe {
        sys::nvrtcCreateProgram(
            &raw mut program,
            text.as_ptr(),
            name.as_ptr(),
            HEADERS.len() as i32,
            pointers_of(&headers).as_ptr(),
            pointers_of(&header_names).as_ptr(),
        )
        .result()
        .doing(doing())?;
        let compiled = sys::nvrtcCompileProgram(program, pointers.len() as i32, pointers.as_ptr()).result();
        let outcome = if compiled.is_ok() {
            let mut size = 0;
            sys::nvrtcGetCUBINSize(program, &raw mut size).result().doing(doing()).and_then(|()| {
                let mut cubin = vec![0_u8; size];
                sys::nvrtcGetCUBIN(program, cubin.as_mut_ptr().cast()).result().doing(doing())?;
                Ok(cubin)
            })
        } else {
            let mut size = 0;
            let _ = sys::nvrtcGetProgramLogSize(program, &raw mut size);
            let mut log = vec![0_u8; size.max(1)];
            let _ = sys::nvrtcGetProgramLog(program, log.as_mut_ptr().cast());
            let cause = CStr::from_bytes_until_nul(&log).map(CStr::to_string_lossy).unwrap_or_default();
            Err(CudaError { doing: doing(), cause: cause.into_owned() })
        };
        let _ = sys::nvrtcDestroyProgram(&raw mut program);
        outcome
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// NVRTC needs no GPU, so every kernel is compiled for every target wherever NVRTC is installed.
    #[test]
    fn every_kernel_compiles_for_every_target() {
        // SAFETY: only tries to open the library.
        if !unsafe { sys::is_culib_present() } {
            assert!(std::env::var_os("DISAGG_REQUIRE_NVRTC").is_none(), "NVRTC is not on this machine");
            println!("not run: NVRTC is not on this machine");
            return;
        }
        for capability in [(8, 0), (8, 9), (9, 0), (10, 0)] {
            for (head_dim, format) in
                [(64, Format::Bf16), (128, Format::Bf16), (64, Format::F16), (128, Format::F16)]
            {
                let target = Target { capability, head_dim, block_size: 64, format };
                for source in ALL {
                    if !source.is_for(&target) {
                        continue;
                    }
                    let cubin =
                        compile(source, &target.options()).unwrap_or_else(|e| panic!("{target:?}: {e}"));
                    assert!(cubin.starts_with(b"\x7fELF"), "{} gave no cubin", source.name);
                }
            }
        }
    }
}

//! What the checks share: random bf16 numbers, memory on the device, distances.

use std::sync::Arc;

use cudarc::driver::CudaModule;
use cudarc::driver::result::{memcpy_dtoh_sync, memset_d8_async};
use disagg_worker::cuda::backend::BLOCK_SIZE;
use disagg_worker::cuda::compile::{Source, Target};
use disagg_worker::cuda::device::{Arg, Buffer, Device, Kernel};
use disagg_worker::cuda::format::Format;

pub struct Gpu {
    pub device: Device,
    pub target: Target,
    pub head_dim: usize,
    /// Small shapes only.
    pub small: bool,
    pub random: Random,
    pub failed: usize,
}

impl Gpu {
    pub fn open(head_dim: u32, format: Format, small: bool) -> Self {
        let device = Device::open(0).unwrap();
        let target = Target { capability: device.capability, head_dim, block_size: BLOCK_SIZE, format };
        Self {
            device,
            target,
            head_dim: head_dim as usize,
            small,
            random: Random { state: head_dim.into(), format },
            failed: 0,
        }
    }

    /// Overwrites memory with numbers, which have its format.
    pub fn write_stored(&self, buffer: &Buffer<u16>, values: &[f32]) {
        let bits: Vec<u16> = values.iter().map(|&value| self.target.format.encode(value)).collect();
        unsafe { self.device.copy_to("numbers", buffer.address(), &bits) }.unwrap();
    }

    pub fn module(&self, source: Source) -> Arc<CudaModule> {
        self.device.load(source, &self.target).unwrap()
    }

    fn name(&self) -> String {
        format!("head_dim {} {:?}", self.head_dim, self.target.format)
    }

    /// Launches and waits, so that a failure is this kernel's.
    pub fn run(&self, kernel: &Kernel, grid: (u32, u32), block: u32, args: &[Arg]) {
        unsafe { kernel.launch(&self.device, grid, block, args) }.unwrap();
        self.device.synchronize().unwrap();
    }

    /// Relative error in the 2-norm that storing results allows.
    pub fn bound(&self) -> f64 {
        match self.target.format {
            Format::Bf16 => 6e-3,
            Format::F16 => 1e-3,
        }
    }

    /// Rounded to the format of storage and back.
    pub fn rounded(&self, value: f64) -> f64 {
        rounded(self.target.format, value)
    }

    /// Random numbers of the format of storage: on the device, and as what they stand for.
    pub fn normal(&mut self, n: usize) -> (Buffer<u16>, Vec<f32>) {
        let values = self.random.stored(n);
        (self.upload_stored(&values), values)
    }

    pub fn upload_stored(&self, values: &[f32]) -> Buffer<u16> {
        self.upload(&values.iter().map(|&value| self.target.format.encode(value)).collect::<Vec<_>>())
    }

    pub fn upload<T: Copy + cudarc::driver::DeviceRepr>(&self, values: &[T]) -> Buffer<T> {
        self.device.upload("numbers", values).unwrap()
    }

    /// Memory that reads as NaN in every format.
    pub fn poisoned<T: cudarc::driver::DeviceRepr>(&self, n: usize) -> Buffer<T> {
        let buffer = self.device.buffer::<T>(n).unwrap();
        self.poison(&buffer);
        buffer
    }

    pub fn poison<T>(&self, buffer: &Buffer<T>) {
        self.fill(buffer, 0xff);
    }

    pub fn zeroed<T: cudarc::driver::DeviceRepr>(&self, n: usize) -> Buffer<T> {
        let buffer = self.device.buffer::<T>(n).unwrap();
        self.fill(&buffer, 0);
        buffer
    }

    /// In order with the kernels.
    fn fill<T>(&self, buffer: &Buffer<T>, byte: u8) {
        let bytes = buffer.len() * size_of::<T>();
        unsafe { memset_d8_async(buffer.address(), byte, bytes, self.device.stream.cu_stream()) }.unwrap();
        self.device.synchronize().unwrap();
    }

    pub fn download<T: Copy + Default>(&self, buffer: &Buffer<T>) -> Vec<T> {
        self.device.synchronize().unwrap();
        let mut values = vec![T::default(); buffer.len()];
        unsafe { memcpy_dtoh_sync(&mut values, buffer.address()) }.unwrap();
        values
    }

    pub fn download_stored(&self, buffer: &Buffer<u16>) -> Vec<f32> {
        self.download(buffer).into_iter().map(|bits| self.target.format.decode(bits)).collect()
    }

    /// Notes whether `got` is as near to `want` as `bound` asks; a NaN never is.
    pub fn expect(&mut self, what: &str, got: &[f32], want: &[f64], bound: f64) {
        assert_eq!(got.len(), want.len(), "{what}");
        let (mut error, mut norm) = (0.0, 0.0);
        for (&got, &want) in got.iter().zip(want) {
            error += (f64::from(got) - want).powi(2);
            norm += want * want;
        }
        let relative = (error / norm.max(f64::MIN_POSITIVE)).sqrt();
        let good = relative <= bound;
        println!("{} {}: {what}: {relative:.1e}", if good { "ok  " } else { "FAIL" }, self.name());
        self.failed += usize::from(!good);
    }

    pub fn expect_true(&mut self, what: &str, good: bool) {
        println!("{} {}: {what}", if good { "ok  " } else { "FAIL" }, self.name());
        self.failed += usize::from(!good);
    }
}

pub fn address<T>(buffer: &Buffer<T>) -> Arg {
    Arg::Address(buffer.address())
}

pub fn int(value: usize) -> Arg {
    Arg::Int(value as i32)
}

pub fn doubles(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&value| f64::from(value)).collect()
}

fn rounded(format: Format, value: f64) -> f64 {
    f64::from(format.decode(format.encode(value as f32)))
}

/// splitmix64, as a stream.
pub struct Random {
    state: u64,
    format: Format,
}

impl Random {
    pub fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    /// About normal.
    pub fn normal(&mut self) -> f32 {
        (0..4).map(|_| (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0).sum::<f32>() * 0.866
    }

    /// About normal, as storage has them.
    pub fn stored(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| rounded(self.format, f64::from(self.normal())) as f32).collect()
    }

    /// The numbers below `n` in random order.
    pub fn order(&mut self, n: usize) -> Vec<u32> {
        let mut order: Vec<u32> = (0..n as u32).collect();
        for i in (1..n).rev() {
            order.swap(i, self.below(i + 1));
        }
        order
    }
}

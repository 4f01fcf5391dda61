//! Which worker computes on what. Pure: the list of GPUs is an argument.
//!
//! Each worker gets a GPU of its own and sees no other, so that all of them use their first one and none takes
//! another's memory.

use disagg_worker::args::Device;
use disagg_worker::cuda::gpus::Gpu;

/// The workers cannot have what they need.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub(super) enum GpuError {
    #[error(
        "{workers} workers need a GPU each, and this machine has {gpus}; start fewer with --prefill and --decode, or \
         compute on the CPU with --device cpu"
    )]
    TooFew { workers: usize, gpus: usize },
    #[error("--device {device}: {why}")]
    Missing { device: Device, why: String },
    #[error("--device {device}: there is no GPU {ordinal}; this machine has {gpus}, counted from 0")]
    NoSuch { device: Device, ordinal: usize, gpus: usize },
    #[error(
        "--device {device} is one GPU, and more than one worker asks for it; --device cuda gives each its own, and \
         CUDA_VISIBLE_DEVICES says which there are to give"
    )]
    Taken { device: Device },
}

/// The GPU of each worker, by the workers' devices; `None` for those that compute on something else. `cuda` and
/// `cuda:0` mean any GPU, higher numbers that very one. `can_use_gpus` is false for a model that the CUDA kernels do
/// not take.
pub(super) fn deal(
    devices: &[Device],
    can_use_gpus: bool,
    gpus: Result<Vec<Gpu>, String>,
) -> Result<Vec<Option<Gpu>>, GpuError> {
    let gpus = match (gpus, devices.iter().find(|device| matches!(device, Device::Cuda(_)))) {
        (Ok(gpus), _) => gpus,
        (Err(why), Some(&device)) => return Err(GpuError::Missing { device, why }),
        // As a worker does it by itself: the CPU, and no complaint.
        (Err(_), None) => return Ok(vec![None; devices.len()]),
    };
    let count = gpus.len();
    let mut left: Vec<Option<Gpu>> = gpus.into_iter().map(Some).collect();
    let mut dealt = vec![None; devices.len()];
    // Those that name one first, so that nobody else gets it.
    for (&device, dealt) in devices.iter().zip(&mut dealt) {
        if let Device::Cuda(ordinal @ 1..) = device {
            let gpu = left.get_mut(ordinal).ok_or(GpuError::NoSuch { device, ordinal, gpus: count })?;
            *dealt = Some(gpu.take().ok_or(GpuError::Taken { device })?);
        }
    }
    let needs_any = |device: &Device| match device {
        Device::Auto => can_use_gpus,
        Device::Cuda(ordinal) => *ordinal == 0,
        Device::Cpu | Device::Sim(_) => false,
    };
    let mut left = left.into_iter().flatten();
    for (device, dealt) in devices.iter().zip(&mut dealt) {
        if needs_any(device) {
            let of_gpus = |device: &&Device| needs_any(device) || matches!(device, Device::Cuda(_));
            let workers = devices.iter().filter(of_gpus).count();
            *dealt = Some(left.next().ok_or(GpuError::TooFew { workers, gpus: count })?);
        }
    }
    Ok(dealt)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gpus(count: usize) -> Vec<Gpu> {
        let gpu = |number| Gpu { uuid: format!("GPU-{number}"), name: "H100".to_owned() };
        (0..count).map(gpu).collect()
    }

    fn none() -> Result<Vec<Gpu>, String> {
        Err("the NVIDIA driver (libcuda.so.1) is not on this machine".to_owned())
    }

    /// UUIDs; `-` for none.
    fn dealt(devices: &[Device], gpus: Result<Vec<Gpu>, String>) -> Result<Vec<String>, String> {
        let dealt = deal(devices, true, gpus).map_err(|error| error.to_string())?;
        Ok(dealt.into_iter().map(|gpu| gpu.map_or("-".to_owned(), |gpu| gpu.uuid)).collect())
    }

    #[test]
    fn every_worker_gets_a_gpu_of_its_own() {
        for device in [Device::Auto, Device::Cuda(0)] {
            assert_eq!(dealt(&[device; 2], Ok(gpus(2))).unwrap(), ["GPU-0", "GPU-1"]);
            assert_eq!(dealt(&[device; 2], Ok(gpus(8))).unwrap(), ["GPU-0", "GPU-1"]);
            let error = dealt(&[device; 5], Ok(gpus(4))).unwrap_err();
            assert!(error.starts_with("5 workers need a GPU each, and this machine has 4;"), "{error}");
            assert!(error.contains("--device cpu"), "{error}");
        }
        let devices = [Device::Auto, Device::Cpu, Device::Cuda(1), Device::Cuda(0)];
        assert_eq!(dealt(&devices, Ok(gpus(3))).unwrap(), ["GPU-0", "-", "GPU-1", "GPU-2"]);
        assert!(
            dealt(&devices, Ok(gpus(2)))
                .unwrap_err()
                .starts_with("3 workers need a GPU each, and this machine has 2")
        );
    }

    #[test]
    fn the_cpu_and_the_simulation_need_none() {
        for device in [Device::Cpu, "sim".parse().unwrap()] {
            assert_eq!(dealt(&[device; 3], Ok(gpus(1))).unwrap(), ["-"; 3]);
        }
        assert_eq!(dealt(&[Device::Auto; 2], none()).unwrap(), ["-"; 2]);
        // A model that the kernels do not take runs on the CPU, however many GPUs there are.
        assert_eq!(deal(&[Device::Auto; 2], false, Ok(gpus(1))), Ok(vec![None; 2]));
    }

    #[test]
    fn gpus_that_are_asked_for_and_missing_are_told() {
        let error = dealt(&[Device::Auto, Device::Cuda(0)], none()).unwrap_err();
        assert_eq!(error, "--device cuda:0: the NVIDIA driver (libcuda.so.1) is not on this machine");
        let error = dealt(&[Device::Cuda(4)], Ok(gpus(4))).unwrap_err();
        assert_eq!(error, "--device cuda:4: there is no GPU 4; this machine has 4, counted from 0");
        let error = dealt(&[Device::Cuda(1); 2], Ok(gpus(4))).unwrap_err();
        assert!(
            error.starts_with("--device cuda:1 is one GPU, and more than one worker asks for it;"),
            "{error}"
        );
    }
}

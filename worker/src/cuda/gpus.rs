//! Which GPUs there are, by name and UUID, without opening any: whoever starts workers deals them out.

use std::fmt::Write as _;

use cudarc::driver::result::{self, device};

use super::available;

/// A GPU that this process sees.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Gpu {
    /// As `CUDA_VISIBLE_DEVICES` takes it, for example `GPU-8932f937-d72c-4106-c12f-20bd9faed9f6`.
    pub uuid: String,
    /// For people, for example `NVIDIA H100 80GB HBM3`.
    pub name: String,
}

/// The GPUs of this process, in CUDA's order; if there is none, why not, in one sentence. Takes no memory on any.
pub fn list() -> Result<Vec<Gpu>, String> {
    let count = available()?;
    let failed =
        |error: result::DriverError| format!("the NVIDIA driver does not tell of its GPUs: {error:?}");
    result::init().map_err(failed)?;
    let gpu = |ordinal: usize| -> Result<Gpu, result::DriverError> {
        let device = device::get(ordinal as i32)?;
        Ok(Gpu { uuid: uuid_text(device::get_uuid(device)?.bytes), name: device::get_name(device)? })
    };
    (0..count).map(gpu).collect::<Result<_, _>>().map_err(failed)
}

/// As nvidia-smi writes it.
fn uuid_text<Byte: Copy>(bytes: [Byte; 16]) -> String
where
    i32: From<Byte>,
{
    let hex = bytes.iter().fold(String::new(), |mut hex, &byte| {
        // Writing to a string cannot fail.
        let _ = write!(hex, "{:02x}", i32::from(byte) & 0xff);
        hex
    });
    format!("GPU-{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uuids_are_written_as_nvidia_smi_writes_them() {
        // The driver's bytes are signed on some machines and not on others.
        let bytes: [i8; 16] = [-119, 50, -7, 55, -41, 44, 65, 6, -63, 47, 32, -67, -97, -82, -39, -10];
        assert_eq!(uuid_text(bytes), "GPU-8932f937-d72c-4106-c12f-20bd9faed9f6");
        assert_eq!(uuid_text(bytes.map(|byte| byte as u8)), "GPU-8932f937-d72c-4106-c12f-20bd9faed9f6");
    }

    #[test]
    fn every_gpu_is_listed_once_or_it_is_said_why_there_is_none() {
        match (list(), available()) {
            (Ok(gpus), Ok(count)) => {
                assert_eq!(gpus.len(), count);
                let mut uuids: Vec<&str> = gpus.iter().map(|gpu| gpu.uuid.as_str()).collect();
                uuids.sort_unstable();
                uuids.dedup();
                assert_eq!(uuids.len(), count);
            }
            (list, available) => assert_eq!(list.unwrap_err(), available.unwrap_err()),
        }
    }
}

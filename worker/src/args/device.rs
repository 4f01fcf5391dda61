//! The flag `--device`.

use std::fmt;
use std::str::FromStr;

use crate::backend::sim::{BadSpeed, Speed};

/// What computes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Device {
    /// The first GPU if there is one, otherwise the CPU.
    #[default]
    Auto,
    /// The CPU backend.
    Cpu,
    /// This GPU, as CUDA numbers those that it is shown.
    Cuda(usize),
    /// Nothing: the simulation takes time and keeps KV, and its tokens are a hash of the KV.
    Sim(Speed),
}

/// Text that names no device.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BadDevice {
    /// None of the kinds.
    #[error(
        "{0:?} is no device: write auto, cpu, cuda or cuda:N, for example cuda:0, or sim for a simulated one"
    )]
    Unknown(String),
    /// A simulation of no such speed.
    #[error(transparent)]
    Speed(#[from] BadSpeed),
}

impl FromStr for Device {
    type Err = BadDevice;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || BadDevice::Unknown(text.to_owned());
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            "sim" => Ok(Self::Sim(Speed::default())),
            _ => {
                if let Some(speed) = text.strip_prefix("sim:") {
                    return Ok(Self::Sim(speed.parse()?));
                }
                let ordinal = text.strip_prefix("cuda:").ok_or_else(bad)?;
                ordinal.parse().map(Self::Cuda).map_err(|_| bad())
            }
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(ordinal) => write!(f, "cuda:{ordinal}"),
            Self::Sim(speed) => write!(f, "sim:{speed}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn devices_are_read_as_they_are_written() {
        for (text, device) in [
            ("auto", Device::Auto),
            ("cpu", Device::Cpu),
            ("cuda", Device::Cuda(0)),
            ("cuda:3", Device::Cuda(3)),
            ("sim", Device::Sim(Speed::default())),
        ] {
            assert_eq!(text.parse(), Ok(device));
            assert_eq!(device.to_string().parse(), Ok(device));
        }
        assert_eq!(Device::Cuda(3).to_string(), "cuda:3");
        let slow = Speed { decode_step: Duration::from_micros(2500), ..Speed::default() };
        assert_eq!("sim:decode-step-ms=2.5".parse(), Ok(Device::Sim(slow)));
        assert_eq!(Device::Sim(slow).to_string(), "sim:prefill-tokens-per-second=20000,decode-step-ms=2.5");
    }

    #[test]
    fn bad_devices_say_what_is_allowed() {
        for (text, named) in [
            ("gpu", "write auto, cpu"),
            ("cuda:x", "cuda:0"),
            ("sim:", "prefill-tokens-per-second"),
            ("sim:speed=3", "decode-step-ms"),
            ("sim:decode-step-ms=NaN", "decode-step-ms"),
            ("sim:decode-step-ms=60001", "60000"),
            ("sim:prefill-tokens-per-second=0", "1 to 1000000000"),
        ] {
            let error = text.parse::<Device>().expect_err(text).to_string();
            assert!(error.contains(named), "{text}: {error}");
        }
    }
}

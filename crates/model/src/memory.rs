//! Whether a model fits into the machine's memory, asked before its weights are read.

use std::path::Path;

use crate::config::CONFIG_FILE;
use crate::error::ModelError;
use crate::spec::ModelSpec;
use crate::weights::TensorSource;

const GIB: f64 = (1_u64 << 30) as f64;

/// Bytes of memory that this process may still take, by the kernel's account and by the limits of its control group;
/// `None` where neither is told.
pub fn available() -> Option<u64> {
    let machine = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| mem_available(&text));
    let group = std::fs::read_to_string("/proc/self/cgroup").ok().and_then(|text| {
        let own = text.lines().find_map(|line| line.strip_prefix("0::/"))?.to_owned();
        // A limit of any parent counts too.
        Path::new(&own)
            .ancestors()
            .filter_map(|group| left_in(&Path::new("/sys/fs/cgroup").join(group)))
            .min()
    });
    machine.into_iter().chain(group).min()
}

fn mem_available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kib << 10)
}

/// What a control group has left; file pages that can be dropped count as free.
fn left_in(group: &Path) -> Option<u64> {
    let read = |name: &str| std::fs::read_to_string(group.join(name)).ok();
    let limit: u64 = read("memory.max")?.trim().parse().ok()?;
    let used: u64 = read("memory.current")?.trim().parse().ok()?;
    let stat = read("memory.stat").unwrap_or_default();
    let pages = stat.lines().find_map(|line| line.strip_prefix("inactive_file ")?.parse::<u64>().ok());
    Some(limit.saturating_sub(used.saturating_sub(pages.unwrap_or(0))))
}

/// Bytes of the weights as the CPU backend keeps them: matrices in the format of `source`, vectors as f32.
fn weights_bytes(spec: &ModelSpec, source: &dyn TensorSource) -> Result<u64, ModelError> {
    spec.tensors().try_fold(0_u64, |sum, tensor| {
        let element = if tensor.is_matrix() {
            source.format(&tensor.name, &tensor.shape)?.bytes()
        } else {
            size_of::<f32>()
        };
        Ok(sum.saturating_add((tensor.elements() as u64).saturating_mul(element as u64)))
    })
}

/// Refuses a model whose weights, as the CPU backend keeps them, and KV pool are more than `available` bytes.
pub fn check_fits(
    spec: &ModelSpec,
    source: &dyn TensorSource,
    folder: &Path,
    kv_bytes: u64,
    available: Option<u64>,
) -> Result<(), ModelError> {
    let parameters = spec.parameters();
    let weights = weights_bytes(spec, source)?;
    let Some(available) = available.filter(|&available| weights.saturating_add(kv_bytes) > available) else {
        return Ok(());
    };
    let gib = |bytes: u64| bytes as f64 / GIB;
    Err(ModelError::Config {
        path: folder.join(CONFIG_FILE),
        key: "num_hidden_layers, hidden_size, intermediate_size and vocab_size".to_owned(),
        message: format!(
            "{:.1} billion parameters take {:.1} GiB, and the KV pool {:.1} GiB, but {:.1} GiB of \
             memory are available; use a smaller model, a GPU, or a smaller --kv-cache-bytes",
            parameters as f64 / 1e9,
            gib(weights),
            gib(kv_bytes),
            gib(available)
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::WeightFormat;

    /// Files whose tensors all have one format.
    struct Of(WeightFormat);

    impl TensorSource for Of {
        fn format(&self, _: &str, _: &[usize]) -> Result<WeightFormat, ModelError> {
            Ok(self.0)
        }

        fn read(&self, _: &str, _: usize, _: &mut [u8]) -> Result<(), ModelError> {
            unreachable!("nothing is read before it fits")
        }
    }

    #[test]
    fn the_kernels_account_is_read() {
        assert_eq!(mem_available("MemTotal:  9 kB\nMemAvailable:    1024 kB\n"), Some(1 << 20));
        assert_eq!(mem_available("MemTotal: 9 kB\n"), None);
        assert!(available().is_none_or(|bytes| bytes > 1 << 20), "we run");
    }

    #[test]
    fn a_control_group_has_its_limit_less_what_cannot_be_dropped() {
        let group = tempfile::tempdir().expect("a folder");
        let write = |name: &str, text: &str| std::fs::write(group.path().join(name), text).expect("written");
        assert_eq!(left_in(group.path()), None);
        write("memory.max", "1000\n");
        write("memory.current", "700\n");
        assert_eq!(left_in(group.path()), Some(300));
        write("memory.stat", "active_file 5\ninactive_file 200\n");
        assert_eq!(left_in(group.path()), Some(500));
        write("memory.max", "max\n");
        assert_eq!(left_in(group.path()), None);
    }

    #[test]
    fn a_model_fits_up_to_the_last_byte() {
        let text = br#"{"architectures": ["LlamaForCausalLM"], "vocab_size": 10, "hidden_size": 8,
            "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
            "max_position_embeddings": 64}"#;
        let folder = Path::new("/m");
        let spec = ModelSpec::parse(folder, text).expect("valid");
        // Embedding and output 160; q and o 128, k and v 64, MLP 384, three norms 24.
        assert_eq!(spec.parameters(), 160 + 128 + 64 + 384 + 24);
        // Norms are kept as f32 whatever the files have.
        for (format, bytes) in [(WeightFormat::F32, 760 * 4), (WeightFormat::Bf16, 736 * 2 + 24 * 4)] {
            let check = |available| check_fits(&spec, &Of(format), folder, 100, available);
            check(Some(bytes + 100)).expect("it fits");
            check(None).expect("nobody knows");
            let error = check(Some(bytes + 99)).expect_err("a byte short").to_string();
            assert!(error.starts_with("/m/config.json: num_hidden_layers, hidden_size"), "{error}");
        }
    }
}

//! The command line of a worker, made from what a deployment says. `disagg up` and the operator both start workers, and
//! what the one passes on the other does too.

use disagg_core::{Dtype, LoadFormat};

use super::workers::EngineSpec;

/// What one worker is told. A field that is `None` leaves the worker its own default.
#[derive(Clone, Debug)]
pub struct WorkerFlags<'a> {
    /// Its stable name.
    pub name: &'a str,
    /// What it does: `prefill` or `decode`.
    pub role: &'a str,
    /// HOST:PORT of its gRPC server.
    pub listen: &'a str,
    /// HOST:PORT under which other workers reach it.
    pub advertise: Option<&'a str>,
    /// HOST:PORT of its metrics and probes.
    pub metrics_listen: &'a str,
    /// Where its model is, as the worker's flag `--model` has it.
    pub model: &'a str,
    /// The name that clients send as `model`.
    pub served_name: &'a str,
    /// Where its weights come from.
    pub load_format: LoadFormat,
    /// The number format to compute in.
    pub dtype: Option<Dtype>,
    /// The number format of keys and values.
    pub kv_cache_dtype: Option<Dtype>,
    /// The most tokens that prompt and output have together.
    pub max_length: Option<i32>,
    /// Tokens in one KV block.
    pub block_size: Option<i32>,
    /// What computes, here: whoever starts a worker knows which GPUs it sees. [`EngineSpec::device`] is what was asked for.
    pub device: Option<&'a str>,
    /// Bounds and switches of its engine.
    pub engine: &'a EngineSpec,
    /// The time that its requests get to end, in seconds.
    pub drain_seconds: u32,
    /// Whether it ends when its standard input closes.
    pub exit_with_stdin: bool,
}

/// One flag of a command line.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Flag {
    /// Without the dashes.
    pub name: &'static str,
    /// `None` for a switch.
    pub value: Option<String>,
}

impl Flag {
    /// The flag as one word, since a value may begin with a dash.
    pub fn word(&self) -> String {
        match &self.value {
            Some(value) => format!("--{}={value}", self.name),
            None => format!("--{}", self.name),
        }
    }
}

impl WorkerFlags<'_> {
    /// The flags, in an order that depends on nothing: a cluster would replace pods for another one.
    pub fn flags(&self) -> Vec<Flag> {
        // Destructured without `..`, so that a new field has to be thought of here.
        let Self {
            name,
            role,
            listen,
            advertise,
            metrics_listen,
            model,
            served_name,
            load_format,
            dtype,
            kv_cache_dtype,
            max_length,
            block_size,
            device,
            engine,
            drain_seconds,
            exit_with_stdin,
        } = self;
        let EngineSpec {
            device: _,
            max_num_batched_tokens,
            max_num_seqs,
            kv_cache_bytes,
            num_blocks,
            gpu_memory_utilization_percent,
            enable_chunked_prefill,
            enable_prefix_caching,
        } = engine;
        let share = gpu_memory_utilization_percent.map(|percent| f64::from(percent) / 100.0);
        let mut flags = vec![
            flag("name", Some(name)),
            flag("role", Some(role)),
            flag("listen", Some(listen)),
            flag("advertise", advertise.as_ref()),
            flag("metrics-listen", Some(metrics_listen)),
            flag("model", Some(model)),
            flag("served-model-name", Some(served_name)),
            flag("load-format", Some(load_format)),
            flag("drain-seconds", Some(drain_seconds)),
            flag("device", device.as_ref()),
            flag("dtype", dtype.as_ref()),
            flag("max-model-len", max_length.as_ref()),
            flag("block-size", block_size.as_ref()),
            flag("kv-cache-dtype", kv_cache_dtype.as_ref()),
            flag("max-num-batched-tokens", max_num_batched_tokens.as_ref()),
            flag("max-num-seqs", max_num_seqs.as_ref()),
            flag("kv-cache-bytes", kv_cache_bytes.as_ref()),
            flag("num-blocks", num_blocks.as_ref()),
            flag("gpu-memory-utilization", share.as_ref()),
            flag("enable-chunked-prefill", enable_chunked_prefill.as_ref()),
            flag("enable-prefix-caching", enable_prefix_caching.as_ref()),
        ];
        // A flag without a value stands for one that was left out; only this one is a switch.
        flags.retain(|flag| flag.value.is_some());
        if *exit_with_stdin {
            flags.push(Flag { name: "exit-with-stdin", value: None });
        }
        flags
    }
}

fn flag(name: &'static str, value: Option<impl ToString>) -> Flag {
    Flag { name, value: value.map(|value| value.to_string()) }
}

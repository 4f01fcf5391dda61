//! Flags of `disagg up` for the engine of every worker. They override what the file says for either role.

use clap::Args;
use clap::builder::BoolishValueParser;
use disagg_api::crd::{EngineSpec, limits};
use disagg_worker::args::ByteSize;

use super::args::at_most;

#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Engine of every worker")]
pub(crate) struct EngineArgs {
    /// Most tokens that one step of a worker computes
    #[arg(long, value_name = "TOKENS", value_parser = at_most(limits::MAX_NUM_BATCHED_TOKENS, 1))]
    pub(crate) max_num_batched_tokens: Option<u32>,

    /// Most sequences in one step
    #[arg(long, value_name = "N", value_parser = at_most(limits::MAX_NUM_SEQS, 1))]
    pub(crate) max_num_seqs: Option<u32>,

    /// KV blocks of each worker; instead of --kv-cache-bytes
    #[arg(long, value_name = "N", value_parser = at_most(limits::NUM_BLOCKS, 1), conflicts_with = "kv_cache_bytes")]
    pub(crate) num_blocks: Option<u32>,

    /// Memory for the KV of each worker, for example 4GiB
    #[arg(long, value_name = "SIZE")]
    pub(crate) kv_cache_bytes: Option<ByteSize>,

    /// Share of its GPU's memory that a worker may take, in whole percents, for example 0.9
    #[arg(long, value_name = "SHARE", value_parser = percents)]
    pub(crate) gpu_memory_utilization: Option<Percents>,

    /// Split long prompts over steps, so that decoding goes on meanwhile
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", value_parser = BoolishValueParser::new())]
    pub(crate) enable_chunked_prefill: Option<bool>,

    /// Reuse the KV of earlier prompts that begin alike
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", value_parser = BoolishValueParser::new())]
    pub(crate) enable_prefix_caching: Option<bool>,
}

/// Of a GPU's memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Percents(pub(crate) i32);

impl EngineArgs {
    /// Writes the flags over what the file says.
    pub(super) fn apply(&self, engine: &mut EngineSpec) {
        // Destructured without `..`, so that a new flag has to be thought of here.
        let Self {
            max_num_batched_tokens,
            max_num_seqs,
            num_blocks,
            kv_cache_bytes,
            gpu_memory_utilization,
            enable_chunked_prefill,
            enable_prefix_caching,
        } = self;
        if num_blocks.is_some() || kv_cache_bytes.is_some() {
            // They say the same thing: the file's one must not stand beside the flag's other.
            (engine.num_blocks, engine.kv_cache_bytes) = (None, None);
        }
        // The command line has checked that these fit.
        let number = |flag: Option<u32>| flag.and_then(|value| i32::try_from(value).ok());
        let set = |field: &mut Option<i32>, flag: Option<i32>| *field = flag.or(*field);
        set(&mut engine.max_num_batched_tokens, number(*max_num_batched_tokens));
        set(&mut engine.max_num_seqs, number(*max_num_seqs));
        set(&mut engine.num_blocks, number(*num_blocks));
        set(&mut engine.gpu_memory_utilization_percent, gpu_memory_utilization.map(|share| share.0));
        // What is too large for the field is too large for any machine, and is refused as that.
        let bytes = kv_cache_bytes.map(|ByteSize(bytes)| i64::try_from(bytes).unwrap_or(i64::MAX));
        engine.kv_cache_bytes = bytes.or(engine.kv_cache_bytes);
        engine.enable_chunked_prefill = enable_chunked_prefill.or(engine.enable_chunked_prefill);
        engine.enable_prefix_caching = enable_prefix_caching.or(engine.enable_prefix_caching);
    }
}

fn percents(text: &str) -> Result<Percents, String> {
    let percents = text.parse::<f64>().map(|share| share * 100.0);
    match percents {
        Ok(percents) if (percents - percents.round()).abs() < 1e-6 && (1.0..=100.0).contains(&percents) => {
            Ok(Percents(percents.round() as i32))
        }
        _ => Err("must be a share from 0.01 to 1 in whole percents, for example 0.9".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        engine: EngineArgs,
    }

    fn applied(words: &[&str], mut engine: EngineSpec) -> Result<EngineSpec, String> {
        let line =
            Line::try_parse_from(std::iter::once(&"up").chain(words)).map_err(|error| error.to_string())?;
        line.engine.apply(&mut engine);
        Ok(engine)
    }

    #[test]
    fn flags_go_over_the_file_and_the_rest_of_it_stays() {
        let file = EngineSpec { max_num_seqs: Some(7), num_blocks: Some(100), ..EngineSpec::default() };
        let words = [
            "--kv-cache-bytes",
            "4MiB",
            "--gpu-memory-utilization",
            "0.85",
            "--enable-chunked-prefill",
            "False",
        ];
        let wanted = EngineSpec {
            max_num_seqs: Some(7),
            kv_cache_bytes: Some(4 << 20),
            gpu_memory_utilization_percent: Some(85),
            enable_chunked_prefill: Some(false),
            ..EngineSpec::default()
        };
        assert_eq!(applied(&words, file.clone()), Ok(wanted));
        assert_eq!(applied(&[], file.clone()), Ok(file));
        let on = applied(&["--enable-prefix-caching"], EngineSpec::default()).unwrap();
        assert_eq!(on.enable_prefix_caching, Some(true));
    }

    #[test]
    fn what_cannot_be_is_refused() {
        for words in [
            &["--gpu-memory-utilization", "0"][..],
            &["--gpu-memory-utilization", "1.01"],
            &["--gpu-memory-utilization", "0.855"],
            &["--num-blocks", "0"],
            &["--num-blocks", "1", "--kv-cache-bytes", "1GiB"],
            &["--max-num-seqs", "4097"],
            &["--enable-chunked-prefill", "perhaps"],
        ] {
            assert!(applied(words, EngineSpec::default()).is_err(), "{words:?}");
        }
    }
}

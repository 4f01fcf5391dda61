//! A complete small model made on the spot: a random Llama with a tokenizer of its own, in a Hugging Face folder.
//!
//! Its answers are noise, but noise that depends on every token before it, so that a wrong or missing KV block
//! changes them. Serving it exercises all that serving a real model does.

mod tokenizer;

use std::collections::BTreeMap;
use std::path::Path;

use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};

use crate::config::CONFIG_FILE;
use crate::error::ModelError;
use crate::spec::{ModelSpec, Slot};
use crate::weights::{DummyWeights, SINGLE_FILE, TensorSource};

pub use tokenizer::VOCAB_SIZE;

/// Large enough that attention is far from uniform and logits differ clearly.
const STANDARD_DEVIATION: f32 = 0.12;

/// Writes the folder's files into `dir`, which is made if it is not there. Equal seeds give equal files.
///
/// Not atomic: whoever shares the folder writes into a temporary one and renames it.
pub fn write(dir: &Path, seed: u64) -> Result<(), ModelError> {
    write_files(dir, &files(seed)?)
}

/// Names and contents of the folder's files.
pub(crate) fn files(seed: u64) -> Result<Vec<(&'static str, Vec<u8>)>, ModelError> {
    let config = config_json();
    let mut files = vec![(CONFIG_FILE, pretty(&config).into_bytes())];
    files.extend(tokenizer_files().map(|(name, content)| (name, content.into_bytes())));
    let spec = ModelSpec::parse(Path::new(CONFIG_FILE), config.to_string().as_bytes())?;
    files.push((SINGLE_FILE, weights(&spec, seed)?));
    Ok(files)
}

/// Writes these files into `dir`, which is made if it is not there.
pub(crate) fn write_files(dir: &Path, files: &[(&str, impl AsRef<[u8]>)]) -> Result<(), ModelError> {
    std::fs::create_dir_all(dir).map_err(ModelError::io(dir))?;
    for (name, content) in files {
        let path = dir.join(name);
        std::fs::write(&path, content).map_err(ModelError::io(&path))?;
    }
    Ok(())
}

/// The tokenizer and generation files by name, equal for every seed.
pub fn tokenizer_files() -> [(&'static str, String); 4] {
    [
        ("tokenizer.json", pretty(&tokenizer::tokenizer_json())),
        ("tokenizer_config.json", pretty(&tokenizer::tokenizer_config_json())),
        ("special_tokens_map.json", pretty(&tokenizer::special_tokens_map_json())),
        ("generation_config.json", pretty(&tokenizer::generation_config_json())),
    ]
}

fn config_json() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 16,
        "max_position_embeddings": 8192,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": false,
        "attention_bias": false,
        "mlp_bias": false,
        "eos_token_id": tokenizer::IM_END,
        "torch_dtype": "float32",
    })
}

fn pretty(value: &Value) -> String {
    format!("{value:#}\n")
}

/// The bytes of `model.safetensors`.
fn weights(spec: &ModelSpec, seed: u64) -> Result<Vec<u8>, ModelError> {
    let source = DummyWeights::new(seed).with_standard_deviation(STANDARD_DEVIATION);
    let mut tensors = BTreeMap::new();
    for tensor in spec.tensors() {
        let mut bytes = vec![0; tensor.elements() * size_of::<f32>()];
        source.read(&tensor.name, 0, &mut bytes)?;
        if tensor.slot == Slot::Head {
            // A row of zeros gives the logit 0, which is never the largest of this many and rarely drawn: the text is
            // words, and its length is what the request asks for, since the end-of-sequence tokens have such rows too.
            let spoken = tokenizer::spoken();
            for (token, row) in bytes.chunks_exact_mut(spec.hidden_size * size_of::<f32>()).enumerate() {
                if !spoken.contains(&token) {
                    row.fill(0);
                }
            }
        }
        tensors.insert(&tensor.name, (&tensor.shape, bytes));
    }
    let views = tensors
        .iter()
        .map(|(name, (shape, bytes))| Ok((name, TensorView::new(Dtype::F32, (*shape).clone(), bytes)?)))
        .collect::<Result<Vec<_>, safetensors::SafeTensorError>>();
    let file = views.and_then(|views| safetensors::serialize(views, None));
    file.map_err(|error| ModelError::WeightsFile { path: SINGLE_FILE.into(), message: error.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::card::ModelCard;
    use crate::open::{ModelSource, OpenModel, WeightsChoice};

    fn load(dir: &Path, weights: WeightsChoice) -> Result<ModelCard, ModelError> {
        OpenModel::open(&ModelSource { weights, ..ModelSource::of(dir) })?.card.finish()
    }

    #[test]
    fn the_folder_loads_and_equal_seeds_give_equal_models() {
        let dirs: Vec<_> = (0..3).map(|_| tempfile::tempdir().expect("a folder")).collect();
        for (dir, seed) in dirs.iter().zip([1, 1, 2]) {
            write(dir.path(), seed).expect("written");
        }
        let cards: Vec<_> =
            dirs.iter().map(|dir| load(dir.path(), WeightsChoice::Files).expect("loads")).collect();
        assert_eq!(cards[0].fingerprint, cards[1].fingerprint);
        // Equal headers, other numbers.
        assert_ne!(cards[0].fingerprint, cards[2].fingerprint);
        // Two fine-tunes that differ in a bit, not at the beginning, the middle or the end of a tensor.
        let weights = dirs[1].path().join("model.safetensors");
        let mut bytes = std::fs::read(&weights).expect("there");
        let (header, metadata) = safetensors::SafeTensors::read_metadata(&bytes).expect("safetensors");
        let length =
            |name: &String| metadata.info(name).map(|info| info.data_offsets.1 - info.data_offsets.0);
        let largest = metadata.offset_keys().into_iter().max_by_key(length).expect("there are tensors");
        let (start, end) = metadata.info(&largest).expect("it is there").data_offsets;
        assert!(end - start > 100_000);
        bytes[8 + header + start + (end - start) / 4] ^= 1;
        std::fs::write(&weights, bytes).expect("written");
        let changed = load(dirs[1].path(), WeightsChoice::Files).expect("loads").fingerprint;
        assert_ne!(cards[0].fingerprint, changed);
        assert_eq!(cards[0].vocab_size as usize, VOCAB_SIZE);
        assert_eq!(cards[0].max_model_len, 8192);
        assert!(cards[0].file("tokenizer.json").is_some());
        let dummy = load(dirs[0].path(), WeightsChoice::Dummy { seed: 7 }).expect("loads");
        assert_ne!(dummy.fingerprint, cards[0].fingerprint);
    }

    #[test]
    fn damaged_folders_are_refused_by_name() {
        let dir = tempfile::tempdir().expect("a folder");
        let error = || load(dir.path(), WeightsChoice::Files).expect_err("refused").to_string();
        assert!(error().contains("config.json"), "{}", error());
        write(dir.path(), 1).expect("written");

        let weights = dir.path().join("model.safetensors");
        let bytes = std::fs::read(&weights).expect("there");
        std::fs::write(&weights, &bytes[..bytes.len() - 4]).expect("written");
        assert!(error().contains("model.safetensors: ") && error().contains("cut short"), "{}", error());
        std::fs::write(&weights, [0xff; 64]).expect("written");
        assert!(error().contains("does not fit"), "{}", error());
        std::fs::remove_file(&weights).expect("there");
        assert!(error().contains("neither model.safetensors nor"), "{}", error());
        std::fs::write(&weights, bytes).expect("written");

        let config = dir.path().join(CONFIG_FILE);
        let text = std::fs::read_to_string(&config).expect("there");
        std::fs::write(&config, text.replace("\"intermediate_size\": 256", "\"intermediate_size\": 192"))
            .expect("written");
        let message = error();
        assert!(message.contains("model.safetensors: tensor model.layers."), "{message}");
        assert!(message.contains("has shape [128, 256]; config.json asks for [128, 192]"), "{message}");
        std::fs::write(&config, text.replace("\"num_hidden_layers\": 4", "\"num_hidden_layers\": 5"))
            .expect("written");
        assert!(error().contains("tensor model.layers.4."), "{}", error());
        std::fs::write(&config, text).expect("written");

        std::fs::remove_file(dir.path().join("tokenizer.json")).expect("there");
        assert!(error().contains("tokenizer.json is not there"), "{}", error());
    }
}

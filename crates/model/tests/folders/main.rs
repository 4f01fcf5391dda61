//! Model folders that cannot be served: each gives one error, before any weight is read, that names the file, the key
//! or tensor, and what is supported. Every case begins from a folder that is good.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::path::Path;

use disagg_model::{ModelSource, OpenModel, WeightsChoice, memory, tiny};
use serde_json::{Value, json};

const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// What is done to a good folder.
enum Break {
    /// Set this key of a JSON file; `null` removes it.
    Set(&'static str, &'static str, Value),
    /// Write this file.
    Write(&'static str, &'static [u8]),
    Remove(&'static str),
    /// Change the header of the safetensors file.
    Header(fn(&mut Value)),
    /// Replace the bytes of the safetensors file.
    Weights(fn(Vec<u8>) -> Vec<u8>),
}
use Break::{Header, Remove, Set, Weights, Write};

const CONFIG: &str = "config.json";

struct Case {
    name: &'static str,
    broken: Break,
    /// Parts of the one message that must be there.
    wanted: &'static [&'static str],
}

fn cases() -> Vec<Case> {
    vec![
        case("no config", Remove(CONFIG), &["config.json: ", "No such file"]),
        case("config is no JSON", Write(CONFIG, b"{\"vocab_size\": "), &["config.json: ", "EOF"]),
        case("config is a list", Write(CONFIG, b"[]"), &["config.json: "]),
        case(
            "config is empty",
            Write(CONFIG, b"{}"),
            &["config.json: architectures: missing, and so is model_type"],
        ),
        case(
            "an unknown family",
            Set(CONFIG, "architectures", json!(["MixtralForCausalLM"])),
            &[
                "config.json: architectures: \"MixtralForCausalLM\" is not supported; LlamaForCausalLM,",
                "Qwen3ForCausalLM",
            ],
        ),
        case(
            "a size is missing",
            Set(CONFIG, "hidden_size", Value::Null),
            &["config.json: hidden_size: missing"],
        ),
        case(
            "a size is zero",
            Set(CONFIG, "num_hidden_layers", json!(0)),
            &["config.json: num_hidden_layers: 0 is not in 1..="],
        ),
        case("a size is text", Set(CONFIG, "vocab_size", json!("many")), &["config.json: ", "expected u64"]),
        case(
            "a size is absurd",
            Set(CONFIG, "hidden_size", json!(1_u64 << 40)),
            &["config.json: hidden_size: 1099511627776 is not in"],
        ),
        case(
            "heads do not divide",
            Set(CONFIG, "num_key_value_heads", json!(3)),
            &["config.json: num_key_value_heads: 3 does not divide num_attention_heads, 8"],
        ),
        case("odd heads", Set(CONFIG, "head_dim", json!(15)), &["config.json: head_dim: 15 is odd"]),
        case(
            "rope of another kind",
            Set(CONFIG, "rope_scaling", json!({"rope_type": "yarn", "factor": 4.0})),
            &[
                "config.json: rope_scaling.rope_type: \"yarn\" is not supported; default, linear and llama3 are",
            ],
        ),
        case(
            "rope lacks a number",
            Set(CONFIG, "rope_scaling", json!({"rope_type": "llama3", "factor": 8.0})),
            &["config.json: rope_scaling.low_freq_factor: missing"],
        ),
        case(
            "a negative base",
            Set(CONFIG, "rope_theta", json!(-1.0)),
            &["config.json: rope_theta: -1 is not a number over 0"],
        ),
        case(
            "another activation",
            Set(CONFIG, "hidden_act", json!("gelu")),
            &["config.json: hidden_act: \"gelu\" is not supported; silu is"],
        ),
        case(
            "quantized",
            Set(CONFIG, "quantization_config", json!({"quant_method": "awq"})),
            &["config.json: quantization_config: quantized weights are not supported; use"],
        ),
        case(
            "no longest context",
            Set(CONFIG, "max_position_embeddings", Value::Null),
            &["config.json: max_position_embeddings: missing"],
        ),
        case(
            "no weights",
            Remove(WEIGHTS),
            &["neither model.safetensors nor model.safetensors.index.json is there"],
        ),
        case("weights are empty", Weights(|_| Vec::new()), &["model.safetensors: 0 bytes are too few"]),
        case(
            "weights are cut short",
            Weights(|mut bytes| {
                bytes.truncate(bytes.len() - 1);
                bytes
            }),
            &["model.safetensors: ", "was it cut short?"],
        ),
        case(
            "weights are a web page",
            Weights(|_| b"<!DOCTYPE html><html>404</html>".to_vec()),
            &["model.safetensors: a header of ", "the file is damaged"],
        ),
        case(
            "the header is no JSON",
            Weights(|mut bytes| {
                bytes[8] = b'?';
                bytes
            }),
            &["model.safetensors: ", "expected value"],
        ),
        case(
            "a tensor is missing",
            Header(|header| rename(header, "model.norm.weight", "model.normal.weight")),
            &["tensor model.norm.weight: missing in all safetensors files"],
        ),
        case(
            "a tensor has another shape",
            Header(|header| header["model.norm.weight"]["shape"] = json!([64, 2])),
            &["model.safetensors: tensor model.norm.weight: has shape [64, 2]; config.json asks for [128]"],
        ),
        case(
            "a tensor has another dtype",
            Header(|header| {
                header["model.norm.weight"]["dtype"] = json!("I32");
            }),
            &[
                "model.safetensors: tensor model.norm.weight: dtype I32 is not supported; F32, BF16 and F16 are",
            ],
        ),
        case(
            "a norm is missing",
            Header(|header| {
                rename(
                    header,
                    "model.layers.0.input_layernorm.weight",
                    "model.layers.0.self_attn.q_proj.bias",
                );
            }),
            &["tensor model.layers.0.input_layernorm.weight: missing"],
        ),
        case(
            "fewer layers than tensors",
            Set(CONFIG, "num_hidden_layers", json!(3)),
            &["model.safetensors: tensor model.layers.3.", "config.json does not ask for it (3 layers"],
        ),
        case(
            "more layers than tensors",
            Set(CONFIG, "num_hidden_layers", json!(5)),
            &["tensor model.layers.4.input_layernorm.weight: missing in all safetensors files"],
        ),
        case(
            "biases by the config, none in the files",
            Set(CONFIG, "architectures", json!(["Qwen2ForCausalLM"])),
            &["tensor model.layers.0.self_attn.k_proj.bias: missing"],
        ),
        case(
            "norms of heads by the config, none in the files",
            Set(CONFIG, "architectures", json!(["Qwen3ForCausalLM"])),
            &["tensor model.layers.0.self_attn.k_norm.weight: missing"],
        ),
        case(
            "another vocabulary",
            Set(CONFIG, "vocab_size", json!(1000)),
            &["tensor lm_head.weight: has shape [", "config.json asks for [1000, 128]"],
        ),
        case(
            "no tokenizer",
            Remove("tokenizer.json"),
            &["tokenizer.json is not there; other tokenizer formats have to be converted"],
        ),
        case(
            "the tokenizer is no JSON",
            Write("tokenizer.json", b"sentencepiece"),
            &["tokenizer.json: is no tokenizer that we know: expected value"],
        ),
        case(
            "the tokenizer is of a new kind",
            Write("tokenizer.json", b"{\"model\": {\"type\": \"Oracle\"}}"),
            &["tokenizer.json: is no tokenizer that we know"],
        ),
        case(
            "the tokenizer's config is a list",
            Write("tokenizer_config.json", b"[]"),
            &["tokenizer_config.json: invalid type"],
        ),
        case(
            "two kinds of rope",
            Set(CONFIG, "rope_scaling", json!({"type": "linear", "rope_type": "llama3", "factor": 2.0})),
            &[
                "config.json: rope_scaling.type: \"linear\" contradicts rope_type, \"llama3\"; keep one of them",
            ],
        ),
        case(
            "two bases of rope",
            Set(CONFIG, "rope_parameters", json!({"rope_theta": 77.0})),
            &[
                "config.json: rope_parameters.rope_theta: 77 contradicts the rope_theta beside rope_parameters",
            ],
        ),
        case(
            "an added token with an id that it cannot have",
            Set("tokenizer_config.json", "added_tokens_decoder", json!({"600": {"content": "<tool>"}})),
            &[
                "tokenizer_config.json: added_tokens_decoder.600: token \"<tool>\" is declared with id 600, but gets id \
                 512",
            ],
        ),
        case(
            "an older added token with an id that it cannot have",
            Write("added_tokens.json", b"{\"<tool>\": 5}"),
            &["added_tokens.json: <tool>: token \"<tool>\" is declared with id 5, but gets id 512"],
        ),
        case(
            "added tokens are a list",
            Write("added_tokens.json", b"[\"<tool>\"]"),
            &["added_tokens.json: invalid type"],
        ),
        case(
            "a special token is a number",
            Set("tokenizer_config.json", "eos_token", json!(2)),
            &["tokenizer_config.json: eos_token: 2 is not a token: a string, or an object with content"],
        ),
        case(
            "the generation config is cut",
            Write("generation_config.json", b"{\"eos"),
            &["generation_config.json: EOF"],
        ),
        case(
            "no end of sequence",
            Set("generation_config.json", "eos_token_id", json!([2, 4_000_000])),
            &[
                "generation_config.json: eos_token_id: [2,4000000] is no token or list of tokens below vocab_size",
            ],
        ),
        case(
            "a template that is no text",
            Write("chat_template.jinja", b"\xff\xfe{"),
            &["chat_template.jinja: is not UTF-8"],
        ),
    ]
}

fn case(name: &'static str, broken: Break, wanted: &'static [&'static str]) -> Case {
    Case { name, broken, wanted }
}

fn rename(header: &mut Value, from: &str, to: &str) {
    let tensors = header.as_object_mut().unwrap();
    let tensor = tensors.remove(from).unwrap();
    tensors.insert(to.to_owned(), tensor);
}

impl Break {
    fn apply(self, folder: &Path) {
        match self {
            Set(file, key, value) => {
                let path = folder.join(file);
                let mut content: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
                let fields = content.as_object_mut().unwrap();
                if value.is_null() {
                    fields.remove(key)
                } else {
                    fields.insert(key.to_owned(), value)
                };
                fs::write(path, content.to_string()).unwrap();
            }
            Write(file, bytes) => fs::write(folder.join(file), bytes).unwrap(),
            Remove(file) => fs::remove_file(folder.join(file)).unwrap(),
            Header(change) => {
                let bytes = fs::read(folder.join(WEIGHTS)).unwrap();
                let data = 8 + bytes_of_header(&bytes);
                let mut header: Value = serde_json::from_slice(&bytes[8..data]).unwrap();
                change(&mut header);
                let header = header.to_string();
                let length = (header.len() as u64).to_le_bytes();
                let new = [&length[..], header.as_bytes(), &bytes[data..]].concat();
                fs::write(folder.join(WEIGHTS), new).unwrap();
            }
            Weights(change) => {
                let path = folder.join(WEIGHTS);
                let bytes = fs::read(&path).unwrap();
                fs::write(path, change(bytes)).unwrap();
            }
        }
    }
}

fn bytes_of_header(file: &[u8]) -> usize {
    usize::try_from(u64::from_le_bytes(file[..8].try_into().unwrap())).unwrap()
}

fn source(folder: &Path) -> ModelSource {
    ModelSource::of(folder)
}

fn copy_of(good: &Path) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(good).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
    }
    folder
}

#[test]
fn a_broken_folder_is_refused_in_one_sentence_that_names_file_and_key() {
    let good = tempfile::tempdir().unwrap();
    tiny::write(good.path(), 0).unwrap();
    OpenModel::open(&source(good.path())).expect("the folder that all cases begin from is good");
    let cases = cases();
    assert!(cases.len() >= 25);
    let mut wrong = Vec::new();
    for Case { name, broken, wanted } in cases {
        let folder = copy_of(good.path());
        broken.apply(folder.path());
        let error = match OpenModel::open(&source(folder.path())) {
            Ok(_) => "it opens".to_owned(),
            Err(error) => error.to_string(),
        };
        let path = folder.path().display().to_string();
        if !(error.starts_with(&path)
            && wanted.iter().all(|part| error.contains(part))
            && !error.contains('\n'))
        {
            wrong.push(format!("{name}: {error}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn shards_are_looked_for_where_the_index_says() {
    let good = tempfile::tempdir().unwrap();
    tiny::write(good.path(), 0).unwrap();
    let sharded = |index: &Value| {
        let folder = copy_of(good.path());
        fs::rename(folder.path().join(WEIGHTS), folder.path().join("a.safetensors")).unwrap();
        fs::write(folder.path().join(INDEX), index.to_string()).unwrap();
        OpenModel::open(&source(folder.path())).map(|_| ()).map_err(|error| error.to_string())
    };
    sharded(&json!({"weight_map": {"x": "a.safetensors"}})).expect("one shard with all is good");
    for (index, wanted) in [
        (json!({"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}), "b.safetensors: No such file"),
        (json!({"weight_map": {}}), "model.safetensors.index.json: names 0 files; 1 to 4096 are accepted"),
        (
            json!({"weight_map": {"x": "../a.safetensors"}}),
            "index.json: \"../a.safetensors\" is not a file name",
        ),
        (json!({"weights": {}}), "index.json: missing field `weight_map`"),
    ] {
        let error = sharded(&index).unwrap_err();
        assert!(error.contains(wanted), "{error}");
    }
}

#[test]
fn the_card_has_every_file_that_declares_tokens() {
    let folder = tempfile::tempdir().unwrap();
    tiny::write(folder.path(), 0).unwrap();
    let card = || OpenModel::open(&source(folder.path())).unwrap().card.finish().unwrap();
    let before = card().fingerprint;
    Write("added_tokens.json", b"{\"<tool>\": 512}").apply(folder.path());
    for file in ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"] {
        assert!(card().file(file).is_some(), "{file}");
    }
    assert_ne!(card().fingerprint, before, "other tokens, another model");
}

/// Adds a tensor of zeros to the safetensors file of `folder`.
fn add_tensor(folder: &Path, name: &str) {
    let path = folder.join(WEIGHTS);
    let mut bytes = fs::read(&path).unwrap();
    let length = bytes_of_header(&bytes);
    let mut header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let end = bytes.len() - 8 - length;
    header[name] = json!({"dtype": "F32", "shape": [128], "data_offsets": [end, end + 512]});
    let header = header.to_string();
    bytes.extend([0; 512]);
    let new = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &bytes[8 + length..]].concat();
    fs::write(path, new).unwrap();
}

#[test]
fn a_tensor_too_many_is_refused_if_answers_could_depend_on_it() {
    let good = tempfile::tempdir().unwrap();
    tiny::write(good.path(), 0).unwrap();
    for (tensor, refused) in [
        ("model.layers.0.self_attn.q_proj.bias", true),
        ("model.norm.bias", true),
        ("lm_head.bias", true),
        // The head of a classifier, and what old files have computed in advance.
        ("score.weight", false),
        ("model.layers.0.self_attn.rotary_emb.inv_freq", false),
    ] {
        let folder = copy_of(good.path());
        add_tensor(folder.path(), tensor);
        match OpenModel::open(&source(folder.path())) {
            Ok(_) => assert!(!refused, "{tensor} is passed over"),
            Err(error) => {
                let wanted = format!("model.safetensors: tensor {tensor}: config.json does not ask for it");
                assert!(refused && error.to_string().contains(&wanted), "{error}");
            }
        }
    }
}

/// The small model's own head differs from its embedding.
#[test]
fn a_head_that_differs_from_the_embedding_unties_them() {
    let folder = tempfile::tempdir().unwrap();
    tiny::write(folder.path(), 0).unwrap();
    let tied = |folder: &Path| OpenModel::open(&source(folder)).unwrap().spec.head.is_none();
    assert!(!tied(folder.path()));
    Set(CONFIG, "tie_word_embeddings", json!(true)).apply(folder.path());
    assert!(!tied(folder.path()), "the file has a head of its own");

    Weights(|mut bytes| {
        let data = 8 + bytes_of_header(&bytes);
        let header: Value = serde_json::from_slice(&bytes[8..data]).unwrap();
        let range = |name: &str| {
            let offset = |at: usize| header[name]["data_offsets"][at].as_u64().unwrap() as usize;
            data + offset(0)..data + offset(1)
        };
        bytes.copy_within(range("model.embed_tokens.weight"), range("lm_head.weight").start);
        bytes
    })
    .apply(folder.path());
    assert!(tied(folder.path()), "a copy of the embedding is no head of its own");
}

#[test]
fn a_model_too_large_for_this_machine_is_refused_before_it_is_loaded() {
    let Some(available) = memory::available() else {
        eprintln!("skipped: this system does not tell how much memory is available");
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    tiny::write(folder.path(), 0).unwrap();
    for (key, value) in [("hidden_size", 65_536), ("intermediate_size", 262_144), ("num_hidden_layers", 1024)]
    {
        Set(CONFIG, key, json!(value)).apply(folder.path());
    }
    // With dummy weights nothing but the machine is in the way.
    let source = ModelSource { weights: WeightsChoice::Dummy { seed: 0 }, ..source(folder.path()) };
    let model = OpenModel::open(&source).unwrap();
    let fits = memory::check_fits(&model.spec, model.weights.tensors(), folder.path(), 0, Some(available));
    let error = fits.unwrap_err().to_string();
    assert!(
        error.contains("config.json: num_hidden_layers, hidden_size")
            && error.contains("billion parameters take"),
        "{error}"
    );
}

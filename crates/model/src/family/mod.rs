//! The families: one file each, with the one table of its tensors.

mod llama;
mod mistral;
mod qwen2;
mod qwen3;
mod qwen3_moe;
mod table;
mod window;

use crate::config::Config;
use crate::error::ModelError;
use crate::spec::LayerSpec;

/// Model families: one decoder architecture with small differences.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Family {
    /// Llama 2, 3 and all that copy it.
    Llama,
    /// Llama without biases, in some models with a sliding window.
    Mistral,
    /// Llama with biases on q, k and v.
    Qwen2,
    /// Llama with a norm on each head of q and k, and a head size of its own.
    Qwen3,
    /// Qwen3 with experts in place of the MLP.
    Qwen3Moe,
}

/// What a family's file says.
pub(crate) struct Definition {
    /// As `architectures` names it.
    pub(crate) architecture: &'static str,
    /// As `model_type` names it.
    pub(crate) model_type: &'static str,
    /// `head_dim` if the file has none; `None`: `hidden_size / num_attention_heads`.
    pub(crate) head_dim: Option<u64>,
    /// The layer of this index.
    pub(crate) layer: fn(&Config<'_>, usize) -> Result<LayerSpec, ModelError>,
}

impl Family {
    /// All of them.
    pub(crate) const ALL: [Self; 5] = [Self::Llama, Self::Mistral, Self::Qwen2, Self::Qwen3, Self::Qwen3Moe];

    /// What its file says.
    pub(crate) fn definition(self) -> &'static Definition {
        match self {
            Self::Llama => &llama::LLAMA,
            Self::Mistral => &mistral::MISTRAL,
            Self::Qwen2 => &qwen2::QWEN2,
            Self::Qwen3 => &qwen3::QWEN3,
            Self::Qwen3Moe => &qwen3_moe::QWEN3_MOE,
        }
    }

    /// The family that `architectures` or `model_type` calls by this name.
    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|family| {
            let Definition { architecture, model_type, .. } = family.definition();
            [*architecture, *model_type].contains(&name)
        })
    }

    /// The architectures that are supported, as a sentence lists them.
    pub(crate) fn supported() -> String {
        let names = Self::ALL.map(|family| family.definition().architecture);
        let (last, others) = names.split_last().map_or(("", &[][..]), |(last, others)| (*last, others));
        format!("{} and {last}", others.join(", "))
    }
}

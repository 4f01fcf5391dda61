//! A model as data: constants, and a table of tensors for each layer.

use disagg_engine::{KvDtype, KvLayout};

use crate::family::Family;
use crate::rope::Rope;
use crate::weights::WeightFormat;

/// A decoder-only transformer. Every value has been checked.
///
/// The KV pool has one shape, so all layers have the same heads; everything else may differ from layer to layer.
#[derive(Clone, PartialEq, Debug)]
pub struct ModelSpec {
    /// Which family it is of.
    pub family: Family,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Query heads.
    pub num_heads: usize,
    /// Key and value heads; divides `num_heads`.
    pub num_kv_heads: usize,
    /// Elements of a head; even. `num_heads * head_dim` need not be `hidden_size`.
    pub head_dim: usize,
    /// Added under the root of RMS norms.
    pub rms_norm_eps: f32,
    /// Rotary embedding of queries and keys.
    pub rope: Rope,
    /// Longest sequence in tokens, `max_position_embeddings`.
    pub max_model_len: u32,
    /// What it is published in.
    pub weight_format: WeightFormat,
    /// `[vocab, hidden]`.
    pub embedding: TensorSpec,
    /// From the one behind the embedding to the one before the last norm.
    pub layers: Vec<LayerSpec>,
    /// `[hidden]`, after the last layer.
    pub norm: TensorSpec,
    /// The output matrix, `[vocab, hidden]`; `None`: the embedding (tied).
    pub head: Option<TensorSpec>,
}

/// One decoder layer.
#[derive(Clone, PartialEq, Debug)]
pub struct LayerSpec {
    /// Tokens that a query sees, its own included; shorter than the longest sequence. `None`: all before it.
    pub window: Option<u32>,
    /// What comes behind the attention.
    pub mlp: MlpSpec,
    /// Everything that is loaded for this layer, in the order of the computation.
    pub tensors: Vec<TensorSpec>,
}

/// Shape of a layer's MLP.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MlpSpec {
    /// One gated MLP for all tokens.
    Dense {
        /// Elements between its two halves.
        width: usize,
    },
    /// Several gated MLPs, of which a router chooses a few for each token.
    Experts(ExpertsSpec),
}

/// Shape of a mixture of experts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ExpertsSpec {
    /// Elements between the two halves of one expert.
    pub width: usize,
    /// How many there are.
    pub count: usize,
    /// How many a token goes through.
    pub per_token: usize,
    /// Weights of the chosen experts are scaled to sum to one.
    pub normalized: bool,
}

/// A tensor as a folder must have it, and where it goes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TensorSpec {
    /// Name in the safetensors files.
    pub name: String,
    /// `[out, in]` of a matrix, `[out]` of a bias or a norm.
    pub shape: Vec<usize>,
    /// What it is used as. Matrices of one slot read the same input and are fused into one product: their rows one
    /// below the other, in the order of the table. The same holds for their biases.
    pub slot: Slot,
}

/// What a tensor is used as.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Slot {
    /// Rows for tokens, before the first layer.
    Embedding,
    /// Norm before attention.
    InputNorm,
    /// Projections to queries, keys and values.
    Qkv,
    /// Norm of each head of the queries.
    QNorm,
    /// Norm of each head of the keys.
    KNorm,
    /// From the heads back to the residual stream.
    AttentionOutput,
    /// Norm before the MLP.
    MlpNorm,
    /// The first half of a dense MLP: what is activated, and what it is multiplied with.
    GateUp,
    /// The second half of a dense MLP, back to the residual stream.
    Down,
    /// Scores of the experts.
    Router,
    /// [`Slot::GateUp`] of an expert.
    ExpertGateUp(u32),
    /// [`Slot::Down`] of an expert.
    ExpertDown(u32),
    /// Norm after the last layer.
    Norm,
    /// From the residual stream to the vocabulary.
    Head,
}

impl TensorSpec {
    /// Numbers in it.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether it has rows and columns; otherwise it is a vector.
    pub fn is_matrix(&self) -> bool {
        self.shape.len() == 2
    }
}

impl LayerSpec {
    /// The tensors of one slot, in order.
    pub fn slot(&self, slot: Slot) -> impl Iterator<Item = &TensorSpec> {
        self.tensors.iter().filter(move |tensor| tensor.slot == slot)
    }
}

impl ModelSpec {
    /// Every tensor that a folder of this model must have.
    pub fn tensors(&self) -> impl Iterator<Item = &TensorSpec> {
        let layers = self.layers.iter().flat_map(|layer| &layer.tensors);
        std::iter::once(&self.embedding).chain(layers).chain([&self.norm]).chain(&self.head)
    }

    /// Numbers that the model consists of.
    pub fn parameters(&self) -> u64 {
        // Far below 2^64: every size is bounded when the configuration is read.
        self.tensors().map(|tensor| tensor.elements() as u64).sum()
    }

    /// Rows of the query projection.
    pub fn q_size(&self) -> usize {
        self.num_heads * self.head_dim
    }

    /// Rows of the key (or value) projection.
    pub fn kv_size(&self) -> usize {
        self.num_kv_heads * self.head_dim
    }

    /// Width of the widest MLP, or of the widest expert.
    pub fn mlp_width(&self) -> usize {
        let width = |layer: &LayerSpec| match layer.mlp {
            MlpSpec::Dense { width } | MlpSpec::Experts(ExpertsSpec { width, .. }) => width,
        };
        self.layers.iter().map(width).max().unwrap_or(0)
    }

    /// The shortest window of any layer.
    pub fn shortest_window(&self) -> Option<u32> {
        self.layers.iter().filter_map(|layer| layer.window).min()
    }

    /// Whether any tensor has biases in this slot.
    pub fn has_bias(&self, slot: Slot) -> bool {
        self.layers.iter().any(|layer| layer.slot(slot).any(|tensor| !tensor.is_matrix()))
    }

    /// Shape of a KV pool for this model.
    pub fn kv_layout(&self, block_size: u32, dtype: KvDtype) -> KvLayout {
        KvLayout {
            layers: self.layers.len() as u32,
            kv_heads: self.num_kv_heads as u32,
            head_dim: self.head_dim as u32,
            block_size,
            dtype,
        }
    }
}

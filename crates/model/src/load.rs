//! From the table to a backend: one walk over the tensors, and a sink that says what becomes of each.

use crate::spec::{ExpertsSpec, LayerSpec, MlpSpec, ModelSpec, Slot, TensorSpec};

/// What a backend keeps weights as.
pub trait Storage {
    /// A product's matrix `[out, in]`, and perhaps a bias `[out]`.
    type Linear;
    /// Weights of a norm.
    type Vector;
    /// The embedding, `[vocab, hidden]`, of which rows are taken.
    type Table;
    /// The output matrix, `[vocab, hidden]`, which may be the embedding.
    type Head;
    /// The MLP of a layer with experts.
    type Experts;
}

/// Takes tensors into a backend's memory.
pub trait Sink: Sync {
    /// What becomes of them.
    type Storage: Storage;
    /// Why a tensor cannot be taken.
    type Error;

    /// Takes a fused product.
    fn linear(&self, product: &Product<'_>) -> Result<Linear<Self>, Self::Error>;

    /// Takes a norm's weights.
    fn vector(&self, tensor: &TensorSpec) -> Result<Vector<Self>, Self::Error>;

    /// Takes the embedding.
    fn table(&self, tensor: &TensorSpec) -> Result<Table<Self>, Self::Error>;

    /// Takes the output matrix; without a tensor of its own it is the embedding.
    fn head(&self, tensor: Option<&TensorSpec>, embedding: &Table<Self>) -> Result<Head<Self>, Self::Error>;

    /// Takes the MLP of a layer with experts; [`Experts::load`] walks over its tensors.
    fn experts(&self, layer: &LayerSpec, shape: ExpertsSpec) -> Result<ExpertsOf<Self>, Self::Error>;

    /// Calls `load` for every layer and gives what it gives, in order. A sink may do so on several threads.
    fn layers<T: Send>(
        &self,
        layers: &[LayerSpec],
        load: impl Fn(&LayerSpec) -> Result<T, Self::Error> + Sync + Send,
    ) -> Result<Vec<T>, Self::Error> {
        layers.iter().map(load).collect()
    }
}

type Linear<S> = <<S as Sink>::Storage as Storage>::Linear;
type Vector<S> = <<S as Sink>::Storage as Storage>::Vector;
type Table<S> = <<S as Sink>::Storage as Storage>::Table;
type Head<S> = <<S as Sink>::Storage as Storage>::Head;
type ExpertsOf<S> = <<S as Sink>::Storage as Storage>::Experts;

/// Matrices that read the same input, fused into one: rows below rows.
#[derive(Clone, Debug)]
pub struct Product<'a> {
    /// `[out, in]` each, with the same `in`; at least one.
    pub weights: Vec<&'a TensorSpec>,
    /// `[out]` each: none, or one for each matrix.
    pub biases: Vec<&'a TensorSpec>,
}

impl Product<'_> {
    /// Output features: rows of all parts.
    pub fn outputs(&self) -> usize {
        self.weights.iter().map(|tensor| tensor.shape[0]).sum()
    }

    /// Input features.
    pub fn inputs(&self) -> usize {
        self.weights.first().map_or(0, |tensor| tensor.shape[1])
    }
}

/// All weights of a model in a backend's memory.
pub struct Weights<S: Storage> {
    /// Rows for tokens.
    pub embedding: S::Table,
    /// From the one behind the embedding to the one before the last norm.
    pub layers: Vec<Layer<S>>,
    /// `[hidden]`, after the last layer.
    pub norm: S::Vector,
    /// From the residual stream to the vocabulary.
    pub head: S::Head,
}

/// One decoder layer.
pub struct Layer<S: Storage> {
    /// `[hidden]`, before attention.
    pub input_norm: S::Vector,
    /// Rows of q, then k, then v.
    pub qkv: S::Linear,
    /// `[head_dim]`, for every head of q.
    pub q_norm: Option<S::Vector>,
    /// `[head_dim]`, for every head of k.
    pub k_norm: Option<S::Vector>,
    /// From the heads back to the residual stream.
    pub attention_output: S::Linear,
    /// `[hidden]`, before the MLP.
    pub mlp_norm: S::Vector,
    /// Behind the attention.
    pub mlp: Mlp<S>,
}

/// A layer's MLP.
pub enum Mlp<S: Storage> {
    /// One for all tokens.
    Dense(Dense<S>),
    /// Several, and a router.
    Experts(S::Experts),
}

/// A gated MLP.
pub struct Dense<S: Storage> {
    /// Rows of gate, then up.
    pub gate_up: S::Linear,
    /// Back to the residual stream.
    pub down: S::Linear,
}

impl<S: Storage> Weights<S> {
    /// Hands every tensor of `spec` to `sink`.
    pub fn load<K: Sink<Storage = S>>(spec: &ModelSpec, sink: &K) -> Result<Self, K::Error>
    where
        Layer<S>: Send,
    {
        let embedding = sink.table(&spec.embedding)?;
        let head = sink.head(spec.head.as_ref(), &embedding)?;
        let layers = sink.layers(&spec.layers, |layer| Layer::load(layer, sink))?;
        Ok(Self { embedding, layers, norm: sink.vector(&spec.norm)?, head })
    }
}

impl<S: Storage> Layer<S> {
    fn load<K: Sink<Storage = S>>(layer: &LayerSpec, sink: &K) -> Result<Self, K::Error> {
        // Of every family: a table without one of these is a bug, which the tests of the families find.
        let norm = |slot| sink.vector(layer.slot(slot).next().expect("every family has this norm"));
        let head_norm = |slot| layer.slot(slot).next().map(|tensor| sink.vector(tensor)).transpose();
        Ok(Self {
            input_norm: norm(Slot::InputNorm)?,
            qkv: sink.linear(&layer.product(Slot::Qkv))?,
            q_norm: head_norm(Slot::QNorm)?,
            k_norm: head_norm(Slot::KNorm)?,
            attention_output: sink.linear(&layer.product(Slot::AttentionOutput))?,
            mlp_norm: norm(Slot::MlpNorm)?,
            mlp: match layer.mlp {
                MlpSpec::Dense { .. } => Mlp::Dense(Dense::load(layer, sink, Slot::GateUp, Slot::Down)?),
                MlpSpec::Experts(shape) => Mlp::Experts(sink.experts(layer, shape)?),
            },
        })
    }
}

impl<S: Storage> Dense<S> {
    fn load<K: Sink<Storage = S>>(
        layer: &LayerSpec,
        sink: &K,
        gate_up: Slot,
        down: Slot,
    ) -> Result<Self, K::Error> {
        Ok(Self { gate_up: sink.linear(&layer.product(gate_up))?, down: sink.linear(&layer.product(down))? })
    }
}

/// A router and its experts.
pub struct Experts<S: Storage> {
    /// How many there are, and how many of them a token goes through.
    pub shape: ExpertsSpec,
    /// From the residual stream to a score for each expert.
    pub router: S::Linear,
    /// By their index among the router's scores.
    pub experts: Vec<Dense<S>>,
}

impl<S: Storage> Experts<S> {
    /// Hands the router and every expert of a layer to `sink`.
    pub fn load<K: Sink<Storage = S>>(
        layer: &LayerSpec,
        shape: ExpertsSpec,
        sink: &K,
    ) -> Result<Self, K::Error> {
        let expert = |index| Dense::load(layer, sink, Slot::ExpertGateUp(index), Slot::ExpertDown(index));
        Ok(Self {
            shape,
            router: sink.linear(&layer.product(Slot::Router))?,
            experts: (0..shape.count as u32).map(expert).collect::<Result<_, _>>()?,
        })
    }
}

impl LayerSpec {
    /// The fused product of a slot.
    pub fn product(&self, slot: Slot) -> Product<'_> {
        let (weights, biases) = self.slot(slot).partition(|tensor| tensor.is_matrix());
        Product { weights, biases }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use parking_lot::Mutex;
    use serde_json::{Value, json};

    use super::*;
    use crate::error::ModelError;

    /// Keeps nothing but the fused shapes.
    #[derive(Clone, Debug)]
    struct Shapes;

    impl Storage for Shapes {
        type Linear = (usize, usize, bool);
        type Vector = usize;
        type Table = Vec<usize>;
        type Head = Option<usize>;
        type Experts = Experts<Shapes>;
    }

    /// Notes what it is handed.
    #[derive(Default)]
    struct Notes(Mutex<Vec<TensorSpec>>);

    impl Notes {
        fn note<'a>(&self, tensors: impl IntoIterator<Item = &'a TensorSpec>) {
            self.0.lock().extend(tensors.into_iter().cloned());
        }
    }

    impl Sink for Notes {
        type Storage = Shapes;
        type Error = ModelError;

        fn linear(&self, product: &Product<'_>) -> Result<(usize, usize, bool), ModelError> {
            self.note(product.weights.iter().chain(&product.biases).copied());
            assert!(product.weights.iter().all(|part| part.shape[1] == product.inputs()), "{product:?}");
            let biases: Vec<usize> = product.biases.iter().map(|bias| bias.shape[0]).collect();
            let rows: Vec<usize> = product.weights.iter().map(|part| part.shape[0]).collect();
            assert!(biases.is_empty() || biases == rows, "{product:?}");
            Ok((product.outputs(), product.inputs(), !biases.is_empty()))
        }

        fn vector(&self, tensor: &TensorSpec) -> Result<usize, ModelError> {
            self.note([tensor]);
            Ok(tensor.elements())
        }

        fn table(&self, tensor: &TensorSpec) -> Result<Vec<usize>, ModelError> {
            self.note([tensor]);
            Ok(tensor.shape.clone())
        }

        fn head(&self, tensor: Option<&TensorSpec>, _: &Vec<usize>) -> Result<Option<usize>, ModelError> {
            self.note(tensor);
            Ok(tensor.map(TensorSpec::elements))
        }

        fn experts(&self, layer: &LayerSpec, shape: ExpertsSpec) -> Result<Experts<Shapes>, ModelError> {
            Experts::load(layer, shape, self)
        }
    }

    fn spec(changes: &Value) -> ModelSpec {
        let mut config = json!({
            "vocab_size": 12, "hidden_size": 8, "intermediate_size": 10, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
        });
        let fields = config.as_object_mut().expect("an object");
        fields.extend(changes.as_object().expect("an object").clone());
        ModelSpec::parse(Path::new("c"), config.to_string().as_bytes()).expect("valid")
    }

    /// Fused shapes as the papers have them, and parameters by hand.
    #[test]
    fn every_tensor_of_a_table_is_handed_over_once() {
        for (changes, qkv, bias, head_norms, own_head, parameters) in [
            (json!({"architectures": ["LlamaForCausalLM"]}), (16, 8, false), [false; 2], false, true, 1096),
            (
                json!({"architectures": ["LlamaForCausalLM"], "attention_bias": true, "mlp_bias": true}),
                (16, 8, true),
                [true, true],
                false,
                true,
                1096 + 2 * (16 + 8 + 20 + 8),
            ),
            (json!({"architectures": ["MistralForCausalLM"]}), (16, 8, false), [false; 2], false, true, 1096),
            (
                json!({"architectures": ["Qwen2ForCausalLM"], "tie_word_embeddings": true}),
                (16, 8, true),
                [false; 2],
                false,
                false,
                1096 + 2 * 16 - 96,
            ),
            (
                json!({"architectures": ["Qwen3ForCausalLM"], "head_dim": 4}),
                (32, 8, false),
                [false; 2],
                true,
                true,
                // Twice as many rows of q, k, v and columns of o, and two norms of heads.
                1096 + 2 * (16 * 8 + 8 * 8 + 2 * 4),
            ),
        ] {
            let spec = spec(&changes);
            let notes = Notes::default();
            let weights = Weights::load(&spec, &notes).expect("notes");
            let q = spec.q_size();
            let wanted = (q, [bias[0], bias[1]]);
            assert_eq!(weights.layers.len(), 2);
            for layer in &weights.layers {
                assert_eq!(layer.qkv, qkv, "{changes}");
                assert_eq!(layer.attention_output, (8, q, wanted.1[0]), "{changes}");
                assert_eq!((layer.input_norm, layer.mlp_norm), (8, 8));
                assert_eq!((layer.q_norm.is_some(), layer.k_norm.is_some()), (head_norms, head_norms));
                let Mlp::Dense(dense) = &layer.mlp else { unreachable!("dense") };
                assert_eq!((dense.gate_up, dense.down), ((20, 8, bias[1]), (8, 10, bias[1])), "{changes}");
            }
            assert_eq!((weights.embedding, weights.norm), (vec![12, 8], 8));
            assert_eq!(weights.head, own_head.then_some(96));

            assert_all_handed_over(&spec, notes);
            assert_eq!(spec.parameters(), parameters, "{changes}");
        }
    }

    fn assert_all_handed_over(spec: &ModelSpec, notes: Notes) {
        let sorted = |mut tensors: Vec<TensorSpec>| {
            tensors.sort_by(|a, b| a.name.cmp(&b.name));
            tensors
        };
        let handed = sorted(notes.0.into_inner());
        assert_eq!(handed, sorted(spec.tensors().cloned().collect()), "{:?}", spec.family);
        assert!(handed.windows(2).all(|pair| pair[0].name != pair[1].name), "a name twice");
    }

    #[test]
    fn experts_are_handed_over_one_by_one() {
        let spec = spec(&json!({
            "architectures": ["Qwen3MoeForCausalLM"], "num_hidden_layers": 3, "mlp_only_layers": [1],
            "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 6,
        }));
        let notes = Notes::default();
        let weights = Weights::load(&spec, &notes).expect("notes");
        let is_dense = |layer: &Layer<Shapes>| matches!(layer.mlp, Mlp::Dense(_));
        assert_eq!(weights.layers.iter().map(is_dense).collect::<Vec<_>>(), [false, true, false]);
        let Mlp::Experts(experts) = &weights.layers[2].mlp else { unreachable!("experts") };
        assert_eq!((experts.router, experts.experts.len()), ((4, 8, false), 4));
        for expert in &experts.experts {
            assert_eq!((expert.gate_up, expert.down), ((12, 8, false), (8, 6, false)));
        }
        assert_all_handed_over(&spec, notes);
        // Two embeddings and a norm; attention with norms of heads; norms, dense MLP, routers and experts.
        let attention = 3 * (64 + 32 + 32 + 64 + 2 * 2);
        assert_eq!(spec.parameters(), 2 * 96 + 8 + attention + 3 * 16 + 240 + 2 * (32 + 4 * 3 * 48));
    }
}

//! Rotary position embedding in `config.json`, which spells it in more than one way.
//!
//! Before transformers 5 it was `rope_theta` and, for long contexts, `rope_scaling`; since then it is `rope_parameters`,
//! which holds both. The kind of scaling was `type` and is `rope_type`. Files that are made for old and new programs
//! have several of these side by side. They must agree: versions of transformers differ in which they believe.

use serde::Deserialize;

use crate::config::Checker;
use crate::error::ModelError;

const THETA_DEFAULT: f64 = 10_000.0;

/// How rotary frequencies are stretched for long contexts.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// Every frequency divided by `factor`.
    Linear {
        /// Over 0.
        factor: f32,
    },
    /// Low frequencies divided by `factor`, high ones kept, those between interpolated (Llama 3.1).
    Llama3 {
        /// Over 0.
        factor: f32,
        /// Wavelengths over `original_max_position / low_freq_factor` are divided.
        low_freq_factor: f32,
        /// Wavelengths under `original_max_position / high_freq_factor` are kept.
        high_freq_factor: f32,
        /// Context length before stretching, in tokens.
        original_max_position: u32,
    },
}

/// Rotary position embedding: which angle each pair of a head's elements turns by, for each position.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Rope {
    /// Base of the frequencies.
    pub theta: f32,
    /// How they are stretched.
    pub scaling: RopeScaling,
}

impl Rope {
    /// Frequencies of the pairs of a head, `[head_dim / 2]`, in radians per position.
    pub fn frequencies(&self, head_dim: usize) -> Vec<f64> {
        let theta = f64::from(self.theta);
        let plain = (0..head_dim / 2).map(|i| theta.powf(-2.0 * i as f64 / head_dim as f64));
        match self.scaling {
            RopeScaling::None => plain.collect(),
            RopeScaling::Linear { factor } => plain.map(|frequency| frequency / f64::from(factor)).collect(),
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position } => {
                let (low, high) = (f64::from(low_freq_factor), f64::from(high_freq_factor));
                plain
                    .map(|frequency| {
                        // Turns that the pair makes within the original context.
                        let turns = f64::from(original_max_position) * frequency / std::f64::consts::TAU;
                        let keep = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                        (1.0 - keep) * frequency / f64::from(factor) + keep * frequency
                    })
                    .collect()
            }
        }
    }
}

/// `rope_scaling` or `rope_parameters`.
#[derive(Deserialize)]
pub(crate) struct RawRope {
    rope_type: Option<String>,
    /// The former name of `rope_type`.
    r#type: Option<String>,
    rope_theta: Option<f64>,
    factor: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    original_max_position_embeddings: Option<u64>,
    partial_rotary_factor: Option<f64>,
}

/// Base and scaling of the rotary frequencies. `theta` is the key `rope_theta` of the file itself, `ropes` are the
/// objects that may tell more, with their keys.
pub(crate) fn read(
    checker: &Checker<'_>,
    theta: Option<f64>,
    ropes: [(&str, &Option<RawRope>); 2],
) -> Result<Rope, ModelError> {
    let mut found: Option<(&str, Rope)> = None;
    for (key, rope) in ropes {
        let Some(rope) = rope else { continue };
        let read = Rope { theta: rope.theta(checker, key, theta)?, scaling: rope.scaling(checker, key)? };
        if let Some((other, earlier)) = found
            && earlier != read
        {
            let message = format!("contradicts {other}; keep one of them");
            return Err(checker.refuse(key, message));
        }
        found = Some((key, read));
    }
    if let Some((_, read)) = found {
        return Ok(read);
    }
    let theta = checker.positive("rope_theta", theta.or(Some(THETA_DEFAULT)))?;
    Ok(Rope { theta, scaling: RopeScaling::None })
}

impl RawRope {
    fn theta(&self, checker: &Checker<'_>, key: &str, outer: Option<f64>) -> Result<f32, ModelError> {
        let own = self.rope_theta.map(|own| checker.positive(&format!("{key}.rope_theta"), Some(own)));
        let outer = outer.map(|outer| checker.positive("rope_theta", Some(outer)));
        match (own.transpose()?, outer.transpose()?) {
            (Some(own), Some(outer)) if own.to_bits() != outer.to_bits() => {
                let message =
                    format!("{own} contradicts the rope_theta beside {key}, {outer}; keep one of them");
                Err(checker.refuse(&format!("{key}.rope_theta"), message))
            }
            (own, outer) => Ok(own.or(outer).unwrap_or(THETA_DEFAULT as f32)),
        }
    }

    fn kind(&self, checker: &Checker<'_>, key: &str) -> Result<&str, ModelError> {
        match (self.rope_type.as_deref(), self.r#type.as_deref()) {
            (Some(new), Some(old)) if new != old => {
                let message = format!("{old:?} contradicts rope_type, {new:?}; keep one of them");
                Err(checker.refuse(&format!("{key}.type"), message))
            }
            (new, old) => Ok(new.or(old).unwrap_or("default")),
        }
    }

    fn scaling(&self, checker: &Checker<'_>, key: &str) -> Result<RopeScaling, ModelError> {
        if self.partial_rotary_factor.is_some_and(|factor| (factor - 1.0).abs() > f64::EPSILON) {
            return Err(checker.refuse(&format!("{key}.partial_rotary_factor"), "only 1 is supported"));
        }
        let number = |name: &str, value| checker.positive(&format!("{key}.{name}"), value);
        match self.kind(checker, key)? {
            "default" => Ok(RopeScaling::None),
            "linear" => Ok(RopeScaling::Linear { factor: number("factor", self.factor)? }),
            "llama3" => {
                let low_freq_factor = number("low_freq_factor", self.low_freq_factor)?;
                let high_freq_factor = number("high_freq_factor", self.high_freq_factor)?;
                if high_freq_factor <= low_freq_factor {
                    return Err(checker.refuse(
                        &format!("{key}.high_freq_factor"),
                        format!("{high_freq_factor} is not over low_freq_factor, {low_freq_factor}"),
                    ));
                }
                Ok(RopeScaling::Llama3 {
                    factor: number("factor", self.factor)?,
                    low_freq_factor,
                    high_freq_factor,
                    original_max_position: checker.size(
                        &format!("{key}.original_max_position_embeddings"),
                        self.original_max_position_embeddings,
                        1 << 24,
                    )? as u32,
                })
            }
            other => Err(checker.refuse(
                &format!("{key}.rope_type"),
                format!("{other:?} is not supported; default, linear and llama3 are"),
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::{Value, json};

    use super::*;
    use crate::spec::ModelSpec;

    /// Base and scaling of a model whose configuration has these keys.
    fn read(rope: &Value) -> Result<(f32, RopeScaling), String> {
        let mut config = json!({
            "architectures": ["LlamaForCausalLM"], "vocab_size": 512, "hidden_size": 64,
            "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
            "max_position_embeddings": 2048,
        });
        config.as_object_mut().expect("an object").extend(rope.as_object().expect("an object").clone());
        let spec = ModelSpec::parse(Path::new("m/config.json"), config.to_string().as_bytes());
        spec.map(|spec| (spec.rope.theta, spec.rope.scaling)).map_err(|error| error.to_string())
    }

    #[test]
    fn it_is_read_in_every_spelling_and_in_several_at_once() {
        let linear = (7.0, RopeScaling::Linear { factor: 2.0 });
        for rope in [
            json!({"rope_theta": 7.0, "rope_scaling": {"type": "linear", "factor": 2.0}}),
            json!({"rope_theta": 7.0, "rope_scaling": {"rope_type": "linear", "factor": 2.0}}),
            json!({"rope_theta": 7.0, "rope_scaling": {"type": "linear", "rope_type": "linear", "factor": 2.0}}),
            json!({"rope_parameters": {"rope_theta": 7.0, "rope_type": "linear", "factor": 2.0}}),
            json!({"rope_theta": 7.0, "rope_parameters": {"rope_theta": 7.0, "type": "linear", "factor": 2.0}}),
            json!({"rope_theta": 7.0, "rope_scaling": {"type": "linear", "factor": 2.0},
                "rope_parameters": {"rope_theta": 7.0, "rope_type": "linear", "factor": 2.0}}),
        ] {
            assert_eq!(read(&rope), Ok(linear), "{rope}");
        }
        assert_eq!(read(&json!({"rope_scaling": null})), Ok((10_000.0, RopeScaling::None)));
        let llama3 = json!({"rope_scaling": {
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 256,
        }});
        let (_, scaling) = read(&llama3).expect("valid");
        assert!(matches!(scaling, RopeScaling::Llama3 { original_max_position: 256, .. }));
    }

    #[test]
    fn spellings_that_contradict_each_other_are_refused() {
        for (rope, error) in [
            (
                json!({"rope_scaling": {"type": "linear", "rope_type": "llama3", "factor": 2.0}}),
                "rope_scaling.type: \"linear\" contradicts rope_type, \"llama3\"; keep one of them",
            ),
            (
                json!({"rope_theta": 7.0, "rope_parameters": {"rope_theta": 5.0}}),
                "rope_parameters.rope_theta: 5 contradicts the rope_theta beside rope_parameters, 7; keep one of them",
            ),
            (
                json!({"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": {"rope_type": "default"}}),
                "rope_parameters: contradicts rope_scaling; keep one of them",
            ),
        ] {
            assert_eq!(read(&rope), Err(format!("m/config.json: {error}")), "{rope}");
        }
    }
}

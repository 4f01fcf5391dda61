//! Which layers of the Qwen families look at no more than a sliding window.

use crate::config::Config;
use crate::error::ModelError;

/// The default of transformers' configuration classes for `max_window_layers`, the first layer that has a window.
const WINDOW_LAYERS_FROM_DEFAULT: u64 = 28;

/// The window of a layer: `use_sliding_window` turns windows on, and `layer_types` or else `max_window_layers` says
/// where.
pub(super) fn of_layer(config: &Config<'_>, layer: usize) -> Result<Option<u32>, ModelError> {
    let raw = &config.raw;
    if !raw.use_sliding_window.unwrap_or(false) {
        return Ok(None);
    }
    let slides = match &raw.layer_types {
        None => layer as u64 >= raw.max_window_layers.unwrap_or(WINDOW_LAYERS_FROM_DEFAULT),
        Some(types) if types.len() != config.num_layers => {
            let message =
                format!("has {} entries, but num_hidden_layers is {}", types.len(), config.num_layers);
            return Err(config.refuse("layer_types", message));
        }
        Some(types) => match types[layer].as_str() {
            "sliding_attention" => true,
            "full_attention" => false,
            other => {
                let message = format!("{other:?} is not supported; full_attention and sliding_attention are");
                return Err(config.refuse("layer_types", message));
            }
        },
    };
    if slides { config.sliding_window() } else { Ok(None) }
}

//! What the router counted, from its `/metrics`.

use std::collections::BTreeMap;

/// Since the router started.
#[derive(Clone, PartialEq, Debug, Default)]
pub(super) struct Counters {
    /// By placement and reason.
    placements: BTreeMap<(String, String), u64>,
    prompt_tokens: u64,
    cached_tokens: u64,
    index_blocks: u64,
    index_blocks_max: u64,
}

impl Counters {
    /// Of an OpenMetrics text. What is not there counts as zero.
    pub(super) fn parse(text: &str) -> Self {
        let mut counters = Self::default();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let Some((series, value)) = line.rsplit_once(' ') else { continue };
            // Counts are whole numbers, but may be written as others.
            let value = value.parse::<f64>().unwrap_or(0.0) as u64;
            let (name, labels) = series.split_once('{').unwrap_or((series, ""));
            match name {
                "disagg_router_placements_total" => {
                    let key = (label(labels, "placement"), label(labels, "reason"));
                    counters.placements.insert(key, value);
                }
                "disagg_router_prompt_tokens_total" => counters.prompt_tokens = value,
                "disagg_router_cached_prompt_tokens_total" => counters.cached_tokens = value,
                "disagg_router_prefix_index_blocks" => counters.index_blocks = value,
                "disagg_router_prefix_index_max_blocks" => counters.index_blocks_max = value,
                _ => {}
            }
        }
        counters
    }

    /// For people, with a line end after each line.
    pub(super) fn lines(&self) -> String {
        let placements: Vec<String> = self
            .placements
            .iter()
            .map(|((placement, reason), count)| format!("{placement} ({reason}) {count}"))
            .collect();
        let placements = if placements.is_empty() { "none yet".to_owned() } else { placements.join(", ") };
        let (cached, all) = (self.cached_tokens, self.prompt_tokens);
        let share = if all == 0 { 0.0 } else { 100.0 * cached as f64 / all as f64 };
        format!(
            "placements: {placements}\n\
             prefix cache: {cached} of {all} prompt tokens were cached ({share:.1} %); the index knows {} blocks and \
             has room for {}\n",
            self.index_blocks, self.index_blocks_max
        )
    }
}

/// The value of a label. Those that are read here need no escapes.
fn label(labels: &str, name: &str) -> String {
    let values = labels.trim_end_matches('}').split(',').filter_map(|pair| pair.split_once('='));
    let value = values.into_iter().find(|(key, _)| *key == name).map_or("", |(_, value)| value);
    value.trim_matches('"').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_read_and_shown() {
        let text = "\
# TYPE disagg_router_placements counter
disagg_router_placements_total{placement=\"remote\",reason=\"above-threshold\"} 3
disagg_router_placements_total{placement=\"local\",reason=\"below-threshold\"} 12
disagg_router_prompt_tokens_total 2000
disagg_router_cached_prompt_tokens_total 128
disagg_router_prefix_index_blocks 20
disagg_router_prefix_index_max_blocks 1048576
# EOF
";
        let wanted = "\
placements: local (below-threshold) 12, remote (above-threshold) 3
prefix cache: 128 of 2000 prompt tokens were cached (6.4 %); the index knows 20 blocks and has room for 1048576
";
        assert_eq!(Counters::parse(text).lines(), wanted);
    }

    #[test]
    fn nothing_counted_yet_and_nonsense() {
        for text in ["", "x", "disagg_router_prompt_tokens_total much"] {
            assert!(Counters::parse(text).lines().starts_with("placements: none yet\nprefix cache: 0 of 0"));
        }
    }
}

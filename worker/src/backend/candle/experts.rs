//! Mixture of experts: a router chooses a few MLPs for each token, and weighs what they give.
//!
//! Shazeer et al., "Outrageously Large Neural Networks" (2017), with the softmax in front of the choice as in Qwen 3. A
//! token's experts are summed in ascending order, so its bits do not depend on the tokens beside it.

use super::kernels::exp;
use super::weights::Cpu;
use crate::backend::pool::Rows;
use crate::model::ExpertsSpec;
use crate::model::load::{Dense, Experts};

/// An expert that a token goes through.
#[derive(Clone, Copy, PartialEq, Debug)]
struct Choice {
    expert: usize,
    weight: f32,
}

/// Applies the experts to `x`, `[tokens, hidden]`, into `out` of the same shape. `scores`, `[tokens, experts]`, is what the
/// router says, and `mlp` applies one expert to some rows.
pub(super) fn apply(
    experts: &Experts<Cpu>,
    x: Rows<'_>,
    scores: &[f32],
    out: &mut [f32],
    mut mlp: impl FnMut(&Dense<Cpu>, Rows<'_>, &mut [f32]),
) {
    let ExpertsSpec { count, per_token, normalized, .. } = experts.shape;
    let mut tokens_of: Vec<Vec<(usize, f32)>> = vec![Vec::new(); count];
    for (token, scores) in scores.chunks_exact(count).enumerate() {
        for Choice { expert, weight } in route(scores, per_token, normalized) {
            tokens_of[expert].push((token, weight));
        }
    }
    out.fill(0.0);
    for (expert, chosen) in experts.experts.iter().zip(&tokens_of).filter(|(_, chosen)| !chosen.is_empty()) {
        let rows: Vec<f32> = chosen.iter().flat_map(|&(token, _)| x.row(token)).copied().collect();
        let mut given = vec![0.0; rows.len()];
        mlp(expert, Rows::dense(&rows, x.width), &mut given);
        for (given, &(token, weight)) in given.chunks_exact(x.width).zip(chosen) {
            for (out, value) in out[token * x.width..].iter_mut().zip(given) {
                *out += weight * value;
            }
        }
    }
}

/// The `per_token` experts of the largest probabilities, which are the weights; scaled to sum to one if `normalized`. Of
/// equal ones the first.
fn route(scores: &[f32], per_token: usize, normalized: bool) -> Vec<Choice> {
    let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let powers: Vec<f32> = scores.iter().map(|score| exp(score - max)).collect();
    let sum: f32 = powers.iter().sum();
    let mut choices: Vec<Choice> =
        powers.iter().enumerate().map(|(expert, power)| Choice { expert, weight: power / sum }).collect();
    // Stable.
    choices.sort_by(|a, b| b.weight.total_cmp(&a.weight));
    choices.truncate(per_token);
    if normalized {
        let sum: f32 = choices.iter().map(|choice| choice.weight).sum();
        for choice in &mut choices {
            choice.weight /= sum;
        }
    }
    choices
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_likeliest_experts_are_weighed_by_their_probabilities() {
        // Probabilities 1/10, 4/10, 2/10, 3/10.
        let scores = [1_f32, 4.0, 2.0, 3.0].map(f32::ln);
        for (per_token, normalized, wanted) in [
            (2, false, vec![(1, 0.4), (3, 0.3)]),
            (2, true, vec![(1, 4.0 / 7.0), (3, 3.0 / 7.0)]),
            (4, true, vec![(1, 0.4), (3, 0.3), (2, 0.2), (0, 0.1)]),
        ] {
            let routed = route(&scores, per_token, normalized);
            assert_eq!(routed.len(), wanted.len());
            for (choice, (expert, weight)) in routed.iter().zip(wanted) {
                assert_eq!(choice.expert, expert);
                assert!((choice.weight - weight).abs() < 1e-6, "{choice:?}");
            }
        }
        // Equal scores, and scores far from zero.
        let chosen: Vec<usize> = route(&[700.0; 5], 3, true).iter().map(|choice| choice.expert).collect();
        assert_eq!(chosen, [0, 1, 2]);
    }
}

//! Synthetic prompts of an exact number of tokens.
//!
//! A prompt is a fixed first word and then random words of a short list, each with a space before it. Tokenizers cut at
//! spaces, so the tokens of a prompt are a constant (first word, chat template, BOS) plus a constant for each word; a few
//! requests tell these constants, whatever the tokenizer.

use super::random::Random;

/// Common words, each one token to nearly every tokenizer.
pub(super) const WORDS: [&str; 32] = [
    "the", "and", "in", "of", "to", "was", "for", "on", "with", "his", "that", "he", "they", "not", "her",
    "she", "him", "from", "when", "all", "time", "one", "said", "could", "down", "had", "who", "then",
    "long", "good", "them", "no",
];

/// First word of every prompt. It has no space before it, which some tokenizers count in their own way.
const FIRST: &str = "Once";

/// Sums of costs up to here are looked up. Beyond, adding a word changes nothing about what can be made.
const TABLE: usize = 512;

/// What text costs in tokens, to one server.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Costs {
    /// Of a prompt without words: chat template, BOS, the first word.
    pub(super) fixed: u32,
    /// Of each of [`WORDS`], with the space before it. At least 1.
    pub(super) words: Vec<u32>,
}

/// The shape of all prompts of a run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub(super) tokens: u32,
    pub(super) shared_prefix_tokens: u32,
    pub(super) prefix_groups: u32,
    pub(super) seed: u64,
}

/// What a prompt is for. The same number gives another prompt for another purpose.
#[derive(Clone, Copy, Debug)]
pub(super) enum Purpose {
    Warmup = 1,
    Measured = 2,
}

const PREFIX: u64 = 3;

/// Makes the prompts of a run.
#[derive(Debug)]
pub(super) struct Prompts {
    costs: Costs,
    shape: Shape,
    /// Whether a prompt of this many tokens can be made of words.
    reachable: Vec<bool>,
}

/// These words, as a prompt.
pub(super) fn text<'a>(words: impl IntoIterator<Item = &'a str>) -> String {
    words.into_iter().fold(FIRST.to_owned(), |mut text, word| {
        text.push(' ');
        text.push_str(word);
        text
    })
}

impl Prompts {
    /// Fails when prompts are too short for the shape.
    pub(super) fn new(costs: Costs, shape: Shape) -> anyhow::Result<Self> {
        let least = costs.fixed.saturating_add(shape.shared_prefix_tokens);
        anyhow::ensure!(
            shape.tokens > least,
            "a prompt of {} tokens (--isl) is too short: the chat template and the first word take {}, the shared \
             prefix {}, and something has to follow",
            shape.tokens,
            costs.fixed,
            shape.shared_prefix_tokens
        );
        let mut reachable = vec![false; TABLE];
        reachable[0] = true;
        for tokens in 1..TABLE {
            reachable[tokens] = costs
                .words
                .iter()
                .any(|&cost| tokens.checked_sub(cost as usize).is_some_and(|rest| reachable[rest]));
        }
        Ok(Self { costs, shape, reachable })
    }

    /// Prompt number `number`.
    pub(super) fn prompt(&self, purpose: Purpose, number: u32) -> String {
        let Shape { tokens, shared_prefix_tokens, prefix_groups, seed } = self.shape;
        let group = u64::from(number % prefix_groups);
        let (mut words, made) = self.fill(&mut Random::new(seed, PREFIX, group), shared_prefix_tokens);
        let rest = tokens - self.costs.fixed - made;
        words.extend(self.fill(&mut Random::new(seed, purpose as u64, number.into()), rest).0);
        text(words)
    }

    /// Random words that are this many tokens together, and their number of tokens, which is less when it cannot be met
    /// exactly.
    fn fill(&self, random: &mut Random, tokens: u32) -> (Vec<&'static str>, u32) {
        let tokens = (0..=tokens).rev().find(|&tokens| self.can_make(tokens)).unwrap_or(0);
        let mut words = Vec::with_capacity(tokens as usize);
        let mut left = tokens;
        while left > 0 {
            let word = random.below(WORDS.len());
            // Some word fits, since what is left can be made: the loop ends.
            if let Some(rest) = left.checked_sub(self.costs.words[word]).filter(|&rest| self.can_make(rest)) {
                words.push(WORDS[word]);
                left = rest;
            }
        }
        (words, tokens)
    }

    fn can_make(&self, tokens: u32) -> bool {
        let (tokens, step) = (tokens as usize, self.costs.words[0] as usize);
        let steps_beyond = (tokens + 1).saturating_sub(TABLE).div_ceil(step);
        self.reachable[tokens - steps_beyond * step]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn costs(of: impl Fn(usize) -> u32) -> Costs {
        Costs { fixed: 17, words: (0..WORDS.len()).map(of).collect() }
    }

    fn count(costs: &Costs, prompt: &str) -> u32 {
        let words = prompt.split(' ').skip(1);
        let cost = |word| costs.words[WORDS.iter().position(|known| *known == word).unwrap()];
        costs.fixed + words.map(cost).sum::<u32>()
    }

    fn shape(tokens: u32) -> Shape {
        Shape { tokens, shared_prefix_tokens: 0, prefix_groups: 1, seed: 123 }
    }

    #[test]
    fn prompts_have_exactly_their_tokens() {
        for costs in [costs(|_| 1), costs(|at| 1 + at as u32 % 4), costs(|_| 2)] {
            for tokens in [19, 20, 64, 65, 3000, 3001] {
                let prompts = Prompts::new(costs.clone(), shape(tokens)).unwrap();
                for number in 0..20 {
                    let made = count(&costs, &prompts.prompt(Purpose::Measured, number));
                    let odd = costs.words[0] == 2 && (tokens - costs.fixed) % 2 == 1;
                    assert_eq!(made, tokens - u32::from(odd), "{costs:?}");
                }
            }
        }
    }

    #[test]
    fn prompts_differ_from_their_first_block_on_and_repeat() {
        let prompts = Prompts::new(costs(|_| 1), shape(3000)).unwrap();
        let start = |purpose, number| {
            let prompt = prompts.prompt(purpose, number);
            prompt.split(' ').take(16).collect::<Vec<_>>().join(" ")
        };
        let mut starts: Vec<String> = (0..300).map(|number| start(Purpose::Measured, number)).collect();
        starts.extend((0..300).map(|number| start(Purpose::Warmup, number)));
        assert_eq!(starts[7], start(Purpose::Measured, 7));
        starts.sort();
        starts.dedup();
        assert_eq!(starts.len(), 600);
    }

    #[test]
    fn groups_share_their_prefix_and_nothing_more() {
        let shape = Shape { shared_prefix_tokens: 100, prefix_groups: 3, ..shape(200) };
        let costs = costs(|_| 1);
        let prompts = Prompts::new(costs.clone(), shape).unwrap();
        let words = |number| -> Vec<String> {
            let prompt = prompts.prompt(Purpose::Measured, number);
            assert_eq!(count(&costs, &prompt), 200);
            prompt.split(' ').map(str::to_owned).collect()
        };
        let same = |a: u32, b: u32| words(a).iter().zip(words(b)).take_while(|(a, b)| *a == b).count();
        for (a, b) in [(0, 3), (1, 4), (2, 302)] {
            let shared = same(a, b);
            assert!((101..115).contains(&shared), "{a} and {b}: {shared} words, the first one included");
        }
        assert!(same(0, 1) < 15 && same(1, 2) < 15);
    }

    #[test]
    fn a_prompt_too_short_for_its_shape_is_refused() {
        assert!(Prompts::new(costs(|_| 1), shape(17)).is_err());
        assert!(Prompts::new(costs(|_| 1), shape(18)).is_ok());
        let shape = Shape { shared_prefix_tokens: 40, ..shape(57) };
        let error = Prompts::new(costs(|_| 1), shape).unwrap_err().to_string();
        assert!(error.contains("57 tokens (--isl)") && error.contains("prefix 40"), "{error}");
    }
}

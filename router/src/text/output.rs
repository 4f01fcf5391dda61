//! The text of one choice as it grows: detokenizer, stop strings and logprobs together.

use std::collections::VecDeque;

use super::stop::Matched;
use super::{Detokenizer, StopMatcher};
use crate::generation::GeneratedToken;
use crate::model::TextTokenizer;

/// How tokens become the text that a client sees.
#[derive(Clone, Debug)]
pub(crate) struct TextRules {
    /// Leave special tokens out.
    pub skip_special: bool,
    /// Text that ends the output.
    pub stops: Vec<String>,
    /// Give out the stop string or stop token too.
    pub include_stop: bool,
    /// Tokens that end the output; none of their text is shown.
    pub end_tokens: Vec<u32>,
    /// Stop strings do not count among the first so many tokens.
    pub min_tokens: u32,
}

/// One token as logprobs show it.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct TokenText {
    /// Tokens of equal text differ in it.
    pub id: u32,
    /// Its text alone; bytes that are no character are replaced.
    pub text: String,
    /// Its bytes, exactly.
    pub bytes: Vec<u8>,
    /// Natural logarithm of its probability.
    pub logprob: f32,
    /// The most likely tokens at this place, in the same form and without alternatives of their own.
    pub top: Vec<TokenText>,
    /// Characters of output before it.
    pub offset: usize,
}

/// What can be given out now.
#[derive(PartialEq, Debug, Default)]
pub(crate) struct Delta {
    pub text: String,
    pub logprobs: Vec<TokenText>,
    /// A stop string is complete: nothing follows, and the worker need not go on.
    pub stopped: bool,
}

impl Delta {
    /// Adds what comes after.
    pub(crate) fn append(&mut self, next: Self) {
        self.text.push_str(&next.text);
        self.logprobs.extend(next.logprobs);
        self.stopped |= next.stopped;
    }

    /// Nothing to show.
    pub(crate) fn is_empty(&self) -> bool {
        self.text.is_empty() && self.logprobs.is_empty()
    }
}

/// A logprob entry whose text is not given out yet. Positions are bytes of the whole output.
struct Pending {
    start: usize,
    end: usize,
    entry: TokenText,
}

/// The text of one choice. See [`TextRules`] for what it shows.
pub(crate) struct OutputText {
    rules: TextRules,
    detokenizer: Detokenizer,
    stops: StopMatcher,
    tokens: u32,
    /// Bytes detokenized, and of them bytes given out.
    decoded: usize,
    released: usize,
    /// Characters detokenized.
    decoded_chars: usize,
    pending: VecDeque<Pending>,
}

impl OutputText {
    /// The output that follows `prompt`.
    pub(crate) fn new(rules: TextRules, tokenizer: &TextTokenizer, prompt: &[u32]) -> Self {
        Self {
            detokenizer: Detokenizer::new(tokenizer, prompt, rules.skip_special),
            stops: StopMatcher::new(&rules.stops),
            rules,
            tokens: 0,
            decoded: 0,
            released: 0,
            decoded_chars: 0,
            pending: VecDeque::new(),
        }
    }

    /// Tokens taken so far, those that end the output included.
    pub(crate) fn tokens(&self) -> u32 {
        self.tokens
    }

    /// Takes the next token. After a delta with `stopped` no more are taken.
    pub(crate) fn push(&mut self, tokenizer: &TextTokenizer, token: &GeneratedToken) -> Delta {
        self.tokens += 1;
        let ends = self.rules.end_tokens.contains(&token.id) && !self.rules.include_stop;
        let piece = if ends { String::new() } else { self.detokenizer.push(tokenizer, token.id) };
        let hidden = tokenizer.special(token.id).filter(|_| ends || self.rules.skip_special);
        if let Some(logprob) = token.logprob {
            let entry = TokenText {
                top: token.top.iter().map(|(id, logprob)| token_text(tokenizer, *id, *logprob, 0)).collect(),
                ..token_text(tokenizer, token.id, logprob, self.decoded_chars)
            };
            self.pending.push_back(Pending { start: self.decoded, end: self.decoded + piece.len(), entry });
        }
        self.take(piece, hidden)
    }

    /// What was held back, once the last token has come.
    pub(crate) fn finish(&mut self, tokenizer: &TextTokenizer) -> Delta {
        let piece = self.detokenizer.finish(tokenizer);
        let mut delta = self.take(piece, None);
        if !delta.stopped {
            delta.text.push_str(&self.stops.finish());
            self.released = self.decoded;
            delta.logprobs.extend(self.pending.drain(..).map(|pending| pending.entry));
        }
        delta
    }

    /// Takes in text, and behind it what spells a special token that is not shown: a stop string may be just that.
    fn take(&mut self, piece: String, hidden: Option<&str>) -> Delta {
        self.decoded += piece.len();
        self.decoded_chars += piece.chars().count();
        let matched = if self.tokens < self.rules.min_tokens {
            Matched::Text(piece)
        } else {
            self.stops.push(&piece, hidden.unwrap_or_default())
        };
        match matched {
            Matched::Text(text) => {
                self.released += text.len();
                Delta { text, logprobs: self.release(), stopped: false }
            }
            Matched::Stop { before, stop } => {
                self.released += before.len();
                let end = self.released;
                let text = if self.rules.include_stop { before + &stop } else { before };
                let kept = self.pending.drain(..).filter(|p| self.rules.include_stop || p.start < end);
                Delta { text, logprobs: kept.map(|pending| pending.entry).collect(), stopped: true }
            }
        }
    }

    fn release(&mut self) -> Vec<TokenText> {
        let ready = self.pending.iter().take_while(|pending| pending.end <= self.released).count();
        self.pending.drain(..ready).map(|pending| pending.entry).collect()
    }
}

fn token_text(tokenizer: &TextTokenizer, id: u32, logprob: f32, offset: usize) -> TokenText {
    let bytes = tokenizer.token_bytes(id);
    let text = String::from_utf8_lossy(&bytes).into_owned();
    TokenText { id, text, bytes, logprob, top: Vec::new(), offset }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::test_tokenizer::{byte_level, byte_token};

    fn rules() -> TextRules {
        TextRules {
            skip_special: true,
            stops: Vec::new(),
            include_stop: false,
            end_tokens: Vec::new(),
            min_tokens: 0,
        }
    }

    fn run(rules: TextRules, ids: &[u32]) -> Vec<Delta> {
        let tokenizer = byte_level();
        let mut output = OutputText::new(rules, &tokenizer, &[]);
        let mut deltas = Vec::new();
        for id in ids {
            let token = GeneratedToken { id: *id, logprob: Some(-0.5), top: vec![(*id, -0.5)] };
            deltas.push(output.push(&tokenizer, &token));
            if deltas.last().unwrap().stopped {
                return deltas;
            }
        }
        deltas.push(output.finish(&tokenizer));
        deltas
    }

    fn ids(text: &str) -> Vec<u32> {
        text.bytes().map(byte_token).collect()
    }

    fn text(deltas: &[Delta]) -> String {
        deltas.iter().map(|delta| delta.text.as_str()).collect()
    }

    fn logprob_text(deltas: &[Delta]) -> String {
        deltas.iter().flat_map(|delta| &delta.logprobs).map(|entry| entry.text.as_str()).collect()
    }

    #[test]
    fn logprobs_come_with_their_text_and_stop_with_it() {
        let stopping = TextRules { stops: vec!["END".to_owned()], ..rules() };
        let deltas = run(stopping, &ids("one ENTER END two"));
        assert_eq!(text(&deltas), "one ENTER ");
        assert_eq!(logprob_text(&deltas), "one ENTER ");
        assert!(deltas.last().unwrap().stopped);
        let held = &deltas[5];
        assert_eq!(held.text, "", "E may begin END");
        assert!(held.logprobs.is_empty(), "a logprob must not tell of text that is held back");
    }

    #[test]
    fn offsets_count_characters() {
        let deltas = run(rules(), &ids("é€x"));
        let offsets: Vec<usize> = deltas.iter().flat_map(|d| &d.logprobs).map(|entry| entry.offset).collect();
        assert_eq!(offsets, [0, 0, 1, 1, 1, 2]);
    }

    #[test]
    fn an_end_token_counts_but_has_no_text() {
        let ending = TextRules { end_tokens: vec![byte_token(b'!')], ..rules() };
        assert_eq!(text(&run(ending.clone(), &ids("ok!"))), "ok");
        assert_eq!(text(&run(TextRules { include_stop: true, ..ending }, &ids("ok!"))), "ok!");
    }

    #[test]
    fn a_stop_string_may_spell_a_special_token_that_is_not_shown() {
        let (turn, end) = (byte_level().id("<|turn|>").unwrap(), byte_level().id("<|end|>").unwrap());
        let stopping = |stop: &str| TextRules { stops: vec![stop.to_owned()], ..rules() };
        let output = [ids("a"), vec![turn], ids("b"), vec![end], ids("c")].concat();
        for (stop, shown) in
            [("<|turn|>", "a"), ("b<|end|>", "a"), ("a<|turn|>b", ""), ("<|end|>c", "ab"), ("abc", "")]
        {
            let deltas = run(stopping(stop), &output);
            assert_eq!(text(&deltas), shown, "{stop}");
            assert!(deltas.last().unwrap().stopped, "{stop}");
        }
        assert_eq!(text(&run(stopping("<|"), &ids("x<|y"))), "x", "text that looks like one is text");
        assert_eq!(text(&run(TextRules { skip_special: false, ..stopping("n|>b") }, &output)), "a<|tur");
        // What ends an answer is written too.
        let ending = TextRules { end_tokens: vec![end], ..stopping("b<|end|>") };
        let deltas = run(ending, &output[..4]);
        assert_eq!((text(&deltas).as_str(), logprob_text(&deltas).as_str()), ("a", "a<|turn|>"));
    }

    #[test]
    fn stop_strings_wait_for_min_tokens() {
        let stopping = TextRules { stops: vec!["a".to_owned()], min_tokens: 3, ..rules() };
        assert_eq!(text(&run(stopping, &ids("aaaaa"))), "aa");
        let including = TextRules { stops: vec!["b".to_owned()], include_stop: true, ..rules() };
        assert_eq!(text(&run(including, &ids("abc"))), "ab");
    }
}

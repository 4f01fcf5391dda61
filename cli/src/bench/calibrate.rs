//! What has to be known of the server before the load: which fields it takes, and what words cost in tokens.

use anyhow::{Context as _, bail};

use super::client::{Failure, Server};
use super::prompts::{Costs, WORDS, text};

/// Times that a word is repeated to learn its cost.
const REPEATS: u32 = 4;

/// Finds out which fields the server takes, by leaving out (or renaming) each that it refuses by name. Gives what there
/// is to say about it.
pub(super) async fn learn_dialect(server: &mut Server) -> anyhow::Result<Vec<String>> {
    let mut notes = Vec::new();
    loop {
        let Err(failure) = server.stream(&text(WORDS), 1).await else { return Ok(notes) };
        // An answer of one token may well have no text; the fields were taken.
        if failure.kind == "empty answer" {
            return Ok(notes);
        }
        let dialect = &mut server.dialect;
        let refuses =
            |name: &str| matches!(failure.status, Some(400 | 422)) && failure.message.contains(name);
        let note = if dialect.ignore_eos && refuses("ignore_eos") {
            dialect.ignore_eos = false;
            "the server does not take ignore_eos: answers may be shorter than --osl"
        } else if dialect.min_tokens && refuses("min_tokens") {
            dialect.min_tokens = false;
            "the server does not take min_tokens: answers may be shorter than --osl"
        } else if dialect.stream_usage && (refuses("stream_options") || refuses("include_usage")) {
            dialect.stream_usage = false;
            "the server does not count tokens in streams: output tokens are counted as chunks, which is an estimate"
        } else if dialect.limit == "max_tokens" && refuses("max_completion_tokens") {
            dialect.limit = "max_completion_tokens";
            "the limit of tokens is sent as max_completion_tokens"
        } else {
            return Err(failure).context("a first small request failed");
        };
        notes.push(note.to_owned());
    }
}

/// Learns what text costs. Two requests are enough where every word is one token, as it is with most models; where not,
/// each word is asked for by itself.
pub(super) async fn learn_costs(server: &Server) -> anyhow::Result<Costs> {
    costs(async |words: Vec<&str>| server.count(&text(words)).await).await
}

async fn costs(count: impl AsyncFn(Vec<&'static str>) -> Result<u64, Failure>) -> anyhow::Result<Costs> {
    let count = async |words| -> anyhow::Result<u32> {
        let tokens = count(words).await.context("a request to learn what prompts cost failed")?;
        u32::try_from(tokens).context("the server counts more tokens than there can be")
    };
    let once = count(WORDS.to_vec()).await?;
    let twice = count(WORDS.repeat(2)).await?;
    let all = twice.saturating_sub(once);
    if all < WORDS.len() as u32 || once < all {
        bail!(
            "the server counts {once} prompt tokens for {} words and {twice} for twice as many; prompts of a known \
             size can not be made for it",
            WORDS.len()
        );
    }
    let fixed = once - all;
    if all == WORDS.len() as u32 {
        return Ok(Costs { fixed, words: vec![1; WORDS.len()] });
    }
    let mut words = Vec::with_capacity(WORDS.len());
    for word in WORDS {
        let tokens = count(vec![word; REPEATS as usize]).await?.saturating_sub(fixed);
        words.push((tokens / REPEATS).max(1));
    }
    Ok(Costs { fixed, words })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    async fn learn(cost: impl Fn(&str) -> u64) -> (anyhow::Result<Costs>, u32) {
        let asked = Cell::new(0);
        let costs = costs(async |words: Vec<&str>| {
            asked.set(asked.get() + 1);
            Ok(9 + words.into_iter().map(&cost).sum::<u64>())
        })
        .await;
        (costs, asked.get())
    }

    #[tokio::test]
    async fn one_token_a_word_takes_two_requests() {
        let (costs, asked) = learn(|_| 1).await;
        assert_eq!((costs.unwrap(), asked), (Costs { fixed: 9, words: vec![1; WORDS.len()] }, 2));
    }

    #[tokio::test]
    async fn other_tokenizers_are_learned_word_by_word() {
        let (costs, _) = learn(|word| word.len() as u64).await;
        let costs = costs.unwrap();
        assert_eq!(costs.fixed, 9);
        assert_eq!(costs.words, WORDS.map(|word| word.len() as u32));
    }

    #[tokio::test]
    async fn a_server_that_does_not_count_is_refused() {
        let error = learn(|_| 0).await.0.unwrap_err().to_string();
        assert!(error.contains("counts 9 prompt tokens"), "{error}");
    }
}

//! The `.proto` files state the bounds of this crate.

use super::*;

const FILES: [&str; 4] = [
    include_str!("../proto/disagg/v1/common.proto"),
    include_str!("../proto/disagg/v1/worker.proto"),
    include_str!("../proto/disagg/v1/prefill.proto"),
    include_str!("../proto/disagg/v1/transfer.proto"),
];

/// The comment above a field of a message.
fn comment(message: &str, field: &str) -> String {
    let begin = format!("message {message} {{\n");
    let body = FILES.iter().find_map(|file| file.split_once(&begin)).expect(message).1;
    let declares = format!(" {field} = ");
    let mut comment = String::new();
    for line in body.lines().map(str::trim) {
        match line.strip_prefix("//") {
            Some(text) => comment.push_str(text),
            None if line.contains(&declares) => return comment,
            None => comment.clear(),
        }
    }
    panic!("{message} has no field {field}")
}

/// Whether the number is a word of the text.
fn states(text: &str, number: &impl ToString) -> bool {
    let number = number.to_string();
    let mut words = text.split(|char: char| !char.is_ascii_alphanumeric() && char != '.');
    words.any(|word| word.trim_end_matches('.') == number)
}

#[test]
fn every_bound_is_stated_where_its_field_is_declared() {
    for (message, field, max) in REPEATED {
        let comment = comment(message, field);
        assert!(states(&comment, &max), "{message}.{field} has at most {max} entries, and it says:{comment}");
    }
    let (lease_min, lease_max) = LEASE_MS.into_inner();
    let bounds: &[(&str, &str, u64)] = &[
        ("WorkerRef", "name", WORKER_NAME_BYTES_MAX as u64),
        ("Landing", "address", ADDRESS_BYTES_MAX as u64),
        ("Landing", "token", LANDING_TOKEN_BYTES as u64),
        ("PrefillCandidate", "address", ADDRESS_BYTES_MAX as u64),
        ("Prompt", "request_id", REQUEST_ID_BYTES_MAX as u64),
        ("Prompt", "cache_salt", CACHE_SALT_BYTES_MAX as u64),
        ("Prompt", "choices", CHOICES_MAX.into()),
        ("Sampling", "temperature", TEMPERATURE_MAX as u64),
        ("Sampling", "presence_penalty", PENALTY_MAX as u64),
        ("Sampling", "frequency_penalty", PENALTY_MAX as u64),
        ("Sampling", "top_logprobs", TOP_LOGPROBS_MAX.into()),
        ("LogitBias", "bias", BIAS_MAX as u64),
        ("PrefillStart", "lease_ms", lease_min.into()),
        ("PrefillStart", "lease_ms", lease_max.into()),
        ("ModelCardHeader", "served_model_name", SERVED_MODEL_NAME_BYTES_MAX as u64),
        ("ModelCardFile", "name", CARD_FILE_NAME_BYTES_MAX as u64),
        ("ModelCardHeader", "files", CARD_BYTES_MAX >> 20),
    ];
    for (message, field, bound) in bounds {
        let comment = comment(message, field);
        assert!(states(&comment, bound), "{message}.{field} is bounded by {bound}, and it says:{comment}");
    }
    assert!(states(FILES[3], &PUSH_MESSAGE_BYTES_MAX));
    for file in [FILES[1], FILES[3]] {
        assert!(file.contains(&format!("{} MiB", CHUNK_BYTES_MAX >> 20)));
    }
}

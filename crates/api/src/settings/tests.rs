//! Reading settings from pairs, ConfigMaps and files.

use proptest::prelude::*;

use super::*;

fn error_of(text: &str) -> String {
    RouterSettings::from_yaml(text).unwrap_err().to_string()
}

#[test]
fn absent_keys_have_the_documented_defaults() {
    let defaults = RouterSettings::default();
    assert_eq!(defaults.max_local_prefill_length, 512);
    assert_eq!(defaults.max_prefill_queue_depth, 2);
    assert_eq!(defaults.fallback_policy, FallbackPolicy::Local);
    assert_eq!(defaults.overlap_weight_percent, 100);
    for text in ["", "\n# nothing set\n", "---\n", "{}"] {
        assert_eq!(RouterSettings::from_yaml(text).unwrap(), defaults, "{text:?}");
    }
}

#[test]
fn a_key_that_a_config_map_lacks_is_last_good_then_the_resources_and_no_default() {
    let pairs = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    };
    let data = pairs(&[(FALLBACK_POLICY, "Fail")]);
    let last_good = pairs(&[(MAX_LOCAL_PREFILL_LENGTH, "64"), (MAX_PREFILL_QUEUE_DEPTH, "bad")]);
    let asked = pairs(&[(MAX_LOCAL_PREFILL_LENGTH, "128"), (MAX_PREFILL_QUEUE_DEPTH, "7")]);
    let read = RouterSettings::from_config_map(&data, [], &[&last_good, &asked]).unwrap();
    let expected = RouterSettings {
        max_local_prefill_length: 64,
        max_prefill_queue_depth: 7,
        fallback_policy: FallbackPolicy::Fail,
        ..RouterSettings::default()
    };
    assert_eq!(read, expected);
    let hidden = RouterSettings::from_config_map(&data, [MAX_LOCAL_PREFILL_LENGTH], &[&last_good]);
    assert_eq!(
        hidden.unwrap_err().to_string(),
        "maxLocalPrefillLength: is in binaryData; settings are text, in data"
    );
}

#[test]
fn values_may_be_quoted_or_not() {
    let expected = RouterSettings { max_local_prefill_length: 128, ..RouterSettings::default() };
    for text in [
        "maxLocalPrefillLength: 128",
        "maxLocalPrefillLength: \"128\"",
        "maxLocalPrefillLength: |\n  128\n",
        "maxLocalPrefillLength: 0128",
    ] {
        assert_eq!(RouterSettings::from_yaml(text).unwrap(), expected, "{text:?}");
    }
}

#[test]
fn the_ends_of_the_ranges_are_allowed_and_nothing_beyond() {
    let with = |key: &'static str, value: &'static str| RouterSettings::from_pairs([(key, value)]);
    for good in ["0", "16777216"] {
        assert!(with(MAX_LOCAL_PREFILL_LENGTH, good).is_ok(), "{good}");
    }
    for bad in ["-1", "16777217", "99999999999999999999", "", "+5", "1e3", "0x10", "5.0", "many"] {
        assert!(with(MAX_LOCAL_PREFILL_LENGTH, bad).is_err(), "{bad}");
    }
    for good in ["1", "1024"] {
        assert!(with(MAX_PREFILL_QUEUE_DEPTH, good).is_ok(), "{good}");
    }
    for bad in ["0", "1025"] {
        assert!(with(MAX_PREFILL_QUEUE_DEPTH, bad).is_err(), "{bad}");
    }
    for good in ["0", "10000"] {
        assert!(with(OVERLAP_WEIGHT_PERCENT, good).is_ok(), "{good}");
    }
    for bad in ["10001", "50%", "0.5"] {
        assert!(with(OVERLAP_WEIGHT_PERCENT, bad).is_err(), "{bad}");
    }
    assert!(with(FALLBACK_POLICY, "Fail").is_ok());
    assert!(with(FALLBACK_POLICY, "fail").is_err());
}

#[test]
fn an_error_names_key_value_and_rule() {
    assert_eq!(
        error_of("maxLocalPrefillLength: lots"),
        "maxLocalPrefillLength: \"lots\" is not allowed; it must be a whole number of tokens from 0 to 16777216"
    );
    assert_eq!(
        error_of("fallbackPolicy: Never"),
        "fallbackPolicy: \"Never\" is not allowed; it must be Local or Fail"
    );
    assert_eq!(
        error_of("maxLocalPrefilLength: 5"),
        "maxLocalPrefilLength: unknown key; known are maxLocalPrefillLength, maxPrefillQueueDepth, fallbackPolicy, overlapWeightPercent"
    );
}

#[test]
fn every_problem_is_reported_at_once() {
    let errors = RouterSettings::from_pairs([
        ("speed", "fast"),
        (MAX_PREFILL_QUEUE_DEPTH, "0"),
        (MAX_LOCAL_PREFILL_LENGTH, "512"),
        (FALLBACK_POLICY, "x"),
    ])
    .unwrap_err();
    assert_eq!(errors.0.len(), 3, "{errors}");
}

#[test]
fn what_is_no_flat_mapping_is_refused() {
    for text in [
        "- 1\n- 2\n",
        "512",
        "maxLocalPrefillLength: {a: 1}",
        "a: [1]",
        "maxLocalPrefillLength: 1\nmaxLocalPrefillLength: 2\n",
        "{",
    ] {
        assert!(
            matches!(RouterSettings::from_yaml(text).unwrap_err().0[..], [SettingsError::Syntax(_)]),
            "{text:?}"
        );
    }
    assert!(error_of("maxLocalPrefillLength:").contains("\"\" is not allowed"));
}

/// A log, an Event and a column of kubectl have one line for it.
#[test]
fn a_problem_takes_one_line() {
    for text in [
        "a: 1\n{\n",
        "maxLocalPrefillLength: 1\nmaxLocalPrefillLength: 2\n",
        "maxLocalPrefillLength:\n  a: 1\n",
        "- 1\n- 2\n",
        "\"a\\nb\\u001b[31m\": 1\nspeed: 1",
        "maxLocalPrefillLength: \"1\\n2\"",
    ] {
        let error = error_of(text);
        assert!(!error.contains(char::is_control), "{error:?}");
    }
    // It still says where.
    assert!(error_of("fallbackPolicy: Local\nmaxLocalPrefillLength: [1]\n").contains("line 2"));
}

#[test]
fn long_values_are_cut_in_errors() {
    let value = "9".repeat(100_000);
    let error = RouterSettings::from_pairs([(MAX_LOCAL_PREFILL_LENGTH, value.as_str())]).unwrap_err();
    assert!(error.to_string().len() < 300);
    let error = RouterSettings::from_pairs([(value.as_str(), "1")]).unwrap_err();
    assert!(error.to_string().len() < 300);
}

#[test]
fn a_bad_value_changes_nothing() {
    let mut settings = RouterSettings::default();
    settings.set(MAX_LOCAL_PREFILL_LENGTH, "7").unwrap();
    let before = settings.clone();
    settings.set(MAX_LOCAL_PREFILL_LENGTH, "x").unwrap_err();
    settings.set(FALLBACK_POLICY, "x").unwrap_err();
    settings.set("x", "x").unwrap_err();
    assert_eq!(settings, before);
}

proptest! {
    #[test]
    fn pairs_and_yaml_round_trip(
        length in MAX_LOCAL_PREFILL_LENGTH_RANGE,
        depth in MAX_PREFILL_QUEUE_DEPTH_RANGE,
        fail: bool,
        weight in OVERLAP_WEIGHT_PERCENT_RANGE,
    ) {
        let settings = RouterSettings {
            max_local_prefill_length: length,
            max_prefill_queue_depth: depth,
            fallback_policy: if fail { FallbackPolicy::Fail } else { FallbackPolicy::Local },
            overlap_weight_percent: weight,
        };
        let pairs = settings.to_pairs();
        let read = RouterSettings::from_pairs(pairs.iter().map(|(key, value)| (*key, value.as_str())));
        prop_assert_eq!(read.unwrap(), settings.clone());
        prop_assert_eq!(RouterSettings::from_yaml(&settings.to_yaml()).unwrap(), settings);
    }

    #[test]
    fn no_text_panics(text in "(?s).{0,200}") {
        let _ = RouterSettings::from_yaml(&text);
    }
}

//! The rules against a naive model that replays who wrote last.

use disagg_api::settings::{
    FALLBACK_POLICY, MAX_LOCAL_PREFILL_LENGTH, MAX_PREFILL_QUEUE_DEPTH, OVERLAP_WEIGHT_PERCENT,
};
use proptest::prelude::*;

use super::*;

fn pairs(length: u32, depth: u32, policy: &str) -> Pairs {
    [
        (MAX_LOCAL_PREFILL_LENGTH.to_owned(), length.to_string()),
        (MAX_PREFILL_QUEUE_DEPTH.to_owned(), depth.to_string()),
        (FALLBACK_POLICY.to_owned(), policy.to_owned()),
        (OVERLAP_WEIGHT_PERCENT.to_owned(), "100".to_owned()),
    ]
    .into()
}

/// What a ConfigMap has after the operator looked at it once.
fn settle(held: &Held, wanted: &Pairs) -> Held {
    let next = decide(held, wanted).next;
    assert_eq!(decide(&next, wanted).next, next, "a second look changes nothing");
    next
}

#[test]
fn the_resource_seeds_every_key() {
    let wanted = pairs(128, 2, "Local");
    let held = settle(&Held::default(), &wanted);
    assert_eq!(held.data, wanted);
    assert_eq!(held.seeded, wanted);
    assert_eq!(held.last_good, Some(wanted));
}

#[test]
fn a_direct_edit_stands_until_the_resource_changes_that_key() {
    let wanted = pairs(128, 2, "Local");
    let mut held = settle(&Held::default(), &wanted);
    held.data.insert(MAX_LOCAL_PREFILL_LENGTH.to_owned(), "64".to_owned());
    let held = settle(&held, &wanted);
    assert_eq!(held.data[MAX_LOCAL_PREFILL_LENGTH], "64", "the same resource again");
    let held = settle(&held, &pairs(128, 4, "Local"));
    assert_eq!(held.data[MAX_LOCAL_PREFILL_LENGTH], "64", "another key of the resource");
    assert_eq!(held.data[MAX_PREFILL_QUEUE_DEPTH], "4");
    let held = settle(&held, &pairs(256, 4, "Local"));
    assert_eq!(held.data[MAX_LOCAL_PREFILL_LENGTH], "256", "this key of the resource");
}

#[test]
fn a_bad_value_stays_in_the_data_and_changes_nothing_else() {
    let wanted = pairs(128, 2, "Local");
    let mut held = settle(&Held::default(), &wanted);
    held.data.insert(MAX_LOCAL_PREFILL_LENGTH.to_owned(), "lots".to_owned());
    let decision = decide(&held, &wanted);
    assert_eq!(decision.next, held, "it is the user's to put right");
    assert!(decision.verdict.unwrap_err().to_string().contains("maxLocalPrefillLength: \"lots\""));
    held.data.insert("speed".to_owned(), "1".to_owned());
    assert!(decide(&held, &wanted).verdict.unwrap_err().to_string().contains("speed: unknown key"));
    assert_eq!(held.last_good, Some(wanted));
}

#[test]
fn what_is_deleted_comes_back_as_it_was_last_good() {
    let wanted = pairs(128, 2, "Local");
    let mut held = settle(&Held::default(), &wanted);
    held.data.insert(MAX_LOCAL_PREFILL_LENGTH.to_owned(), "64".to_owned());
    let held = settle(&held, &wanted);
    let mut one_key = held.clone();
    one_key.data.remove(MAX_LOCAL_PREFILL_LENGTH);
    assert_eq!(settle(&one_key, &wanted), held);
    assert_eq!(settle(&held.clone().restored(), &wanted), held, "the whole ConfigMap");
}

#[test]
fn a_key_in_binary_data_is_named_and_nothing_is_written_over_it() {
    let wanted = pairs(128, 2, "Local");
    let mut held = settle(&Held::default(), &wanted);
    held.data.remove(MAX_LOCAL_PREFILL_LENGTH);
    held.binary.insert(MAX_LOCAL_PREFILL_LENGTH.to_owned());
    let decision = decide(&held, &pairs(256, 4, "Local"));
    assert!(!decision.next.data.contains_key(MAX_LOCAL_PREFILL_LENGTH), "the API server would refuse it");
    assert_eq!(decision.next.data[MAX_PREFILL_QUEUE_DEPTH], "4", "the others follow");
    assert!(decision.verdict.unwrap_err().to_string().starts_with("maxLocalPrefillLength: is in binaryData"));
    assert_eq!(decision.next.last_good, Some(wanted), "they stay in force");
    let mut put_right = decision.next;
    put_right.binary.clear();
    assert_eq!(settle(&put_right, &pairs(256, 4, "Local")).data[MAX_LOCAL_PREFILL_LENGTH], "256");
}

#[test]
fn the_patch_holds_what_changes_and_is_bound_to_a_version() {
    let wanted = pairs(128, 2, "Local");
    let held = settle(&Held::default(), &wanted);
    assert_eq!(patch(&held, &held, "7"), None);
    let next = settle(&held, &pairs(64, 2, "Local"));
    let patch = patch(&held, &next, "7").unwrap();
    assert_eq!(patch["metadata"]["resourceVersion"], "7");
    assert_eq!(patch["data"], json!({ "maxLocalPrefillLength": "64" }));
    let seeded = patch["metadata"]["annotations"][ANNOTATION_SEEDED].as_str().unwrap();
    assert_eq!(serde_json::from_str::<Pairs>(seeded).unwrap(), pairs(64, 2, "Local"));
}

/// What can happen to a deployment's settings.
#[derive(Clone, Debug)]
enum Step {
    /// The resource's value of a key.
    Resource(usize, u8),
    /// A person writes a key.
    Edit(usize, u8),
    /// A person removes a key.
    Remove(usize),
    /// A person adds a key that does not exist, or removes it again.
    Unknown(bool),
    /// The whole ConfigMap is deleted.
    Delete,
    /// The operator looks.
    Reconcile,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (0..KEYS.len(), 0..4u8).prop_map(|(key, value)| Step::Resource(key, value)),
        3 => (0..KEYS.len(), 0..6u8).prop_map(|(key, value)| Step::Edit(key, value)),
        1 => (0..KEYS.len()).prop_map(Step::Remove),
        1 => any::<bool>().prop_map(Step::Unknown),
        1 => Just(Step::Delete),
        4 => Just(Step::Reconcile),
    ]
}

/// A value of the key; from 4 on a bad one.
fn value(key: usize, number: u8) -> String {
    match (KEYS[key], number) {
        (_, 4..) => format!("bad{number}"),
        (FALLBACK_POLICY, number) => if number % 2 == 0 { "Local" } else { "Fail" }.to_owned(),
        (_, number) => (u32::from(number) + 1).to_string(),
    }
}

/// The rules as a person would tell them, by replaying history.
struct Naive {
    /// The resource's values as the operator last saw them.
    seen: [String; KEYS.len()],
    data: BTreeMap<String, String>,
    good: Pairs,
}

impl Naive {
    fn reconcile(&mut self, resource: &[String; KEYS.len()]) {
        for (index, key) in KEYS.iter().enumerate() {
            if self.seen[index] != resource[index] {
                self.data.insert((*key).to_owned(), resource[index].clone());
            } else if !self.data.contains_key(*key) {
                self.data.insert((*key).to_owned(), self.good[*key].clone());
            }
        }
        self.seen.clone_from(resource);
        let all_good =
            self.data.iter().all(|(key, value)| KEYS.contains(&key.as_str()) && !value.starts_with("bad"));
        if all_good {
            self.good.clone_from(&self.data);
        }
    }
}

proptest! {
    #[test]
    fn any_history_ends_as_the_naive_model_says(steps in proptest::collection::vec(step(), 1..40)) {
        let mut resource: [String; KEYS.len()] = std::array::from_fn(|key| value(key, 0));
        let as_pairs = |values: &[String; KEYS.len()]| -> Pairs {
            KEYS.iter().zip(values).map(|(key, value)| ((*key).to_owned(), value.clone())).collect()
        };
        let mut held = settle(&Held::default(), &as_pairs(&resource));
        let mut naive =
            Naive { seen: resource.clone(), data: as_pairs(&resource), good: as_pairs(&resource) };
        for step in steps {
            match step {
                Step::Resource(key, number) => resource[key] = value(key, number),
                Step::Edit(key, number) => {
                    for data in [&mut held.data, &mut naive.data] {
                        data.insert(KEYS[key].to_owned(), value(key, number));
                    }
                }
                Step::Remove(key) => {
                    held.data.remove(KEYS[key]);
                    naive.data.remove(KEYS[key]);
                }
                Step::Unknown(there) => {
                    for data in [&mut held.data, &mut naive.data] {
                        if there { data.insert("unknown".to_owned(), "1".to_owned()); } else { data.remove("unknown"); }
                    }
                }
                Step::Delete => {
                    held = held.restored();
                    naive.data.clear();
                }
                Step::Reconcile => {
                    held = settle(&held, &as_pairs(&resource));
                    naive.reconcile(&resource);
                    prop_assert_eq!(&held.data, &naive.data);
                    prop_assert_eq!(held.last_good.as_ref(), Some(&naive.good));
                    let verdict = decide(&held, &as_pairs(&resource)).verdict;
                    let bad = naive.data.iter().any(|(key, value)| key == "unknown" || value.starts_with("bad"));
                    prop_assert_eq!(verdict.is_err(), bad);
                }
            }
        }
    }
}

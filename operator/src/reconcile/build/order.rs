//! One order for lists in which users may write the same in several: pods are replaced when their template differs, and
//! one that means the same must not.

use std::collections::BTreeSet;

use disagg_api::crd::EnvVar;
use serde::Serialize;

/// `variables` by name, but for those of which one refers to the other: these stay as they are, since `$(NAME)` is only
/// expanded where NAME stands before it.
pub(super) fn environment(variables: &[EnvVar]) -> Vec<EnvVar> {
    let references: Vec<BTreeSet<&str>> = variables
        .iter()
        .map(|variable| variable.value.as_deref().map(references).into_iter().flatten().collect())
        .collect();
    let name = |at: usize| variables[at].name.as_str();
    let related = |a: usize, b: usize| references[a].contains(name(b)) || references[b].contains(name(a));
    // Always in the users' order, so what comes before an entry and is related to it has to go first.
    let mut left: Vec<usize> = (0..variables.len()).collect();
    let mut ordered = Vec::with_capacity(variables.len());
    while !left.is_empty() {
        let may_go = |&at: &usize| left[..at].iter().all(|&before| !related(before, left[at]));
        let next = (0..left.len()).filter(may_go).min_by_key(|&at| name(left[at]));
        // The first one may always go.
        ordered.push(variables[left.remove(next.unwrap_or(0))].clone());
    }
    ordered
}

/// The variables that a value refers to, as the kubelet reads it: `$(NAME)` is a reference, `$$` a dollar.
fn references(value: &str) -> impl Iterator<Item = &str> {
    let mut rest = value;
    std::iter::from_fn(move || {
        loop {
            rest = rest.split_once('$')?.1;
            if let Some(after) = rest.strip_prefix('$') {
                rest = after;
            } else if let Some((name, after)) = rest.strip_prefix('(').and_then(|it| it.split_once(')')) {
                rest = after;
                return Some(name);
            }
        }
    })
}

/// Entries whose order means nothing, by what they say.
pub(super) fn by_content<T: Serialize>(mut entries: Vec<T>) -> Vec<T> {
    // They are plain fields, which always become JSON.
    entries.sort_by_cached_key(|entry| serde_json::to_string(entry).unwrap_or_default());
    entries
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn variable(name: &str, value: &str) -> EnvVar {
        EnvVar { name: name.to_owned(), value: Some(value.to_owned()), value_from: None }
    }

    fn names(variables: &[EnvVar]) -> Vec<&str> {
        variables.iter().map(|variable| variable.name.as_str()).collect()
    }

    #[test]
    fn references_are_read_as_the_kubelet_reads_them() {
        for (value, expected) in [
            ("", &[][..]),
            ("$(A)-$(B)", &["A", "B"]),
            ("$$(A)", &[]),
            ("$$$(A)", &["A"]),
            ("$A $ $(A", &[]),
            ("$x$(A)$", &["A"]),
        ] {
            assert_eq!(references(value).collect::<Vec<_>>(), expected, "{value:?}");
        }
    }

    #[test]
    fn what_refers_to_another_keeps_its_side_of_it() {
        // ROOT is known where PATHS is expanded, and not where EARLY is.
        let written = [
            variable("Z", "1"),
            variable("EARLY", "$(ROOT)/a"),
            variable("ROOT", "/r"),
            variable("PATHS", "$(ROOT)/b"),
            variable("A", "2"),
        ];
        assert_eq!(names(&environment(&written)), ["A", "EARLY", "ROOT", "PATHS", "Z"]);
    }

    /// What processes see of the list: values expanded by what stands before them.
    fn expanded(variables: &[EnvVar]) -> BTreeMap<String, String> {
        let mut known: BTreeMap<String, String> = BTreeMap::new();
        for variable in variables {
            let mut text = String::new();
            let mut rest = variable.value.as_deref().unwrap_or_default();
            while let Some((before, after)) = rest.split_once('$') {
                text.push_str(before);
                let reference = after.strip_prefix('(').and_then(|it| it.split_once(')'));
                rest = match (after.strip_prefix('$'), reference) {
                    (Some(after), _) => {
                        text.push('$');
                        after
                    }
                    (None, Some((name, after))) => {
                        let unknown = format!("$({name})");
                        text.push_str(known.get(name).unwrap_or(&unknown));
                        after
                    }
                    (None, None) => {
                        text.push('$');
                        after
                    }
                };
            }
            text.push_str(rest);
            known.insert(variable.name.clone(), text);
        }
        known
    }

    fn lists() -> impl Strategy<Value = Vec<EnvVar>> {
        let value = proptest::collection::vec(
            prop_oneof![
                "[A-E]".prop_map(|name| format!("$({name})")),
                Just("$$".to_owned()),
                Just("x".to_owned())
            ],
            0..3,
        );
        let named = proptest::collection::btree_map("[A-E]", value.prop_map(|parts| parts.concat()), 0..6);
        named
            .prop_map(|map| map.iter().map(|(name, value)| variable(name, value)).collect::<Vec<_>>())
            .prop_shuffle()
    }

    proptest! {
        #[test]
        fn the_order_changes_no_value(list in lists()) {
            let ordered = environment(&list);
            prop_assert_eq!(expanded(&ordered), expanded(&list));
            prop_assert_eq!(environment(&ordered), ordered);
        }

        #[test]
        fn lists_that_mean_the_same_have_one_order(list in lists(), swaps in proptest::collection::vec(0..5_usize, 0..9)) {
            let mut other = list.clone();
            for at in swaps {
                let Some([one, next]) = other.get(at..at + 2) else { continue };
                let names = |a: &EnvVar, b: &EnvVar| {
                    a.value.as_deref().is_some_and(|value| references(value).any(|name| name == b.name))
                };
                if !names(one, next) && !names(next, one) {
                    other.swap(at, at + 1);
                }
            }
            prop_assert_eq!(environment(&other), environment(&list));
        }
    }
}

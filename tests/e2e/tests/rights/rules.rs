//! Which of the rights that rules grant were used.

use k8s_openapi::api::rbac::v1::PolicyRule;

use crate::audit::Request;

/// (verb, group, resource, names); the path twice where it is not of a resource.
type Right<'a> = (&'a String, &'a String, &'a String, &'a [String]);

fn rights(rules: &[PolicyRule]) -> Vec<Right<'_>> {
    let mut rights: Vec<Right<'_>> = Vec::new();
    for rule in rules {
        for verb in &rule.verbs {
            for group in rule.api_groups.iter().flatten() {
                for resource in rule.resources.iter().flatten() {
                    rights.push((verb, group, resource, rule.resource_names.as_deref().unwrap_or_default()));
                }
            }
            for path in rule.non_resource_urls.iter().flatten() {
                rights.push((verb, path, path, &[]));
            }
        }
    }
    rights
}

/// Each single right of the rules that was not used, in words: neither by one of the requests, nor by granting it, since
/// nobody can grant what they do not have. One `*` in a rule is a right that nothing can be said about, so it counts as
/// unused.
pub(crate) fn unused(rules: &[PolicyRule], requests: &[&Request], granted: &[PolicyRule]) -> Vec<String> {
    let granted = rights(granted);
    let passed_on = |&(verb, group, resource, names): &Right<'_>| {
        let same = |other: &Right<'_>| (other.0, other.1, other.2) == (verb, group, resource);
        names.is_empty() && granted.iter().any(same)
    };
    let used = |&(verb, group, resource, names): &Right<'_>| {
        requests.iter().any(|request| {
            // A patch by server-side apply of what is not there takes both rights, and is one request.
            let creates = verb == "create" && request.verb == "patch" && request.code == 201;
            let same = (request.verb == *verb || creates) && request.resource == *resource;
            let named = names.is_empty() || names.contains(&request.name);
            same && named && (request.group == *group || group == resource)
        })
    };
    let told =
        |(verb, group, resource, names): Right<'_>| format!("{verb} {resource} of {group:?} {names:?}");
    let all = rights(rules).into_iter();
    all.filter(|right| !used(right) && !passed_on(right)).map(told).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(verb: &str, group: &str, resource: &str, name: &str) -> Request {
        let text = |text: &str| text.to_owned();
        Request {
            account: text("a"),
            verb: text(verb),
            group: text(group),
            resource: text(resource),
            name: text(name),
            code: 200,
            refused: false,
            at: String::new(),
        }
    }

    fn rule(verbs: &[&str], group: &str, resource: &str, names: &[&str]) -> PolicyRule {
        let texts = |all: &[&str]| all.iter().map(|&text| text.to_owned()).collect::<Vec<_>>();
        PolicyRule {
            verbs: texts(verbs),
            api_groups: Some(texts(&[group])),
            resources: Some(texts(&[resource])),
            resource_names: (!names.is_empty()).then(|| texts(names)),
            ..PolicyRule::default()
        }
    }

    #[test]
    fn a_right_is_used_by_its_own_verb_group_resource_and_name() {
        let rules = [
            rule(&["get", "list"], "apps", "deployments", &[]),
            rule(&["patch"], "", "configmaps", &["mine"]),
            rule(&["*"], "", "pods", &[]),
        ];
        let requests = [
            request("get", "apps", "deployments", "x"),
            request("list", "", "deployments", ""),
            request("patch", "", "configmaps", "other"),
            request("get", "", "pods", "x"),
        ];
        let left = unused(&rules, &requests.iter().collect::<Vec<_>>(), &[]);
        assert_eq!(
            left,
            [r#"list deployments of "apps" []"#, r#"patch configmaps of "" ["mine"]"#, r#"* pods of "" []"#]
        );
        let more = request("patch", "", "configmaps", "mine");
        assert!(unused(&rules[1..2], &[&more], &[]).is_empty());
    }

    #[test]
    fn a_right_is_used_by_creating_with_a_patch_and_by_granting_it() {
        let rules = [rule(&["create"], "", "configmaps", &[]), rule(&["list"], "", "slices", &[])];
        let mut patch = request("patch", "", "configmaps", "x");
        assert_eq!(unused(&rules[..1], &[&patch], &[]).len(), 1);
        patch.code = 201;
        assert!(unused(&rules[..1], &[&patch], &[]).is_empty());
        assert_eq!(unused(&rules[1..], &[], &[rule(&["watch"], "", "slices", &[])]).len(), 1);
        assert!(unused(&rules[1..], &[], &[rule(&["list", "watch"], "", "slices", &[])]).is_empty());
    }
}

//! Rules of resources, images and pod templates.

use std::collections::{BTreeMap, BTreeSet};

use super::Problems;
use crate::crd::{Amount, EnvVar, Images, ObjectName, PodOverrides, Resources, VolumeMount, limits};

impl Problems {
    pub(super) fn resources(&mut self, path: &str, resources: &Resources) {
        let Resources { requests, limits } = resources;
        for (map, amounts) in [("requests", requests), ("limits", limits)] {
            let path = format!("{path}.{map}");
            self.entries(&path, amounts.len(), limits::RESOURCES_LENGTH);
            for (name, amount) in amounts {
                if !is_amount(amount) {
                    self.add(
                        format!("{path}[{name}]"),
                        format!("must be a quantity such as 2, 500m or 16Gi, not {amount}"),
                    );
                }
            }
        }
    }

    pub(super) fn images(&mut self, images: &Images) {
        let Images { worker, router, pull_policy: _, pull_secrets } = images;
        self.image("spec.images.worker", worker.as_deref());
        self.image("spec.images.router", router.as_deref());
        self.entries("spec.images.pullSecrets", pull_secrets.len(), limits::PULL_SECRETS);
        for (index, ObjectName { name }) in pull_secrets.iter().enumerate() {
            self.object_name(&format!("spec.images.pullSecrets[{index}].name"), Some(name));
        }
        self.unique(
            "spec.images.pullSecrets",
            "name",
            pull_secrets.iter().map(|secret| secret.name.as_str()),
        );
    }

    pub(super) fn image(&mut self, path: &str, image: Option<&str>) {
        self.length(path, image, limits::IMAGE_LENGTH);
        if image.is_some_and(|image| image.chars().any(char::is_whitespace)) {
            self.add(path, "must be an image reference, without white space");
        }
    }

    pub(super) fn pod(&mut self, path: &str, pod: &PodOverrides) {
        // Destructured without `..`, so that a new field has to be thought of here.
        let PodOverrides {
            labels,
            annotations,
            node_selector,
            tolerations,
            affinity: _,
            topology_spread_constraints,
            priority_class_name,
            runtime_class_name,
            env,
            volumes,
            volume_mounts,
        } = pod;
        self.text_map(&format!("{path}.labels"), labels, limits::LABEL_LENGTH);
        self.text_map(&format!("{path}.annotations"), annotations, limits::VALUE_LENGTH);
        self.text_map(&format!("{path}.nodeSelector"), node_selector, limits::LABEL_LENGTH);
        self.no_label_of_ours(path, labels);
        if annotations.keys().any(|key| key.starts_with("disagg.dev/")) {
            self.add(path, "annotations below disagg.dev/ are set by the operator");
        }
        self.entries(&format!("{path}.tolerations"), tolerations.len(), limits::LIST_LENGTH);
        self.entries(
            &format!("{path}.topologySpreadConstraints"),
            topology_spread_constraints.len(),
            limits::LIST_LENGTH,
        );
        self.object_name(&format!("{path}.priorityClassName"), priority_class_name.as_deref());
        self.object_name(&format!("{path}.runtimeClassName"), runtime_class_name.as_deref());
        self.env(path, env);
        self.entries(&format!("{path}.volumes"), volumes.len(), limits::LIST_LENGTH);
        for (index, volume) in volumes.iter().enumerate() {
            if volume.name.chars().count() as u64 > limits::VOLUME_NAME_LENGTH {
                let limit = limits::VOLUME_NAME_LENGTH;
                self.add(
                    format!("{path}.volumes[{index}].name"),
                    format!("must have at most {limit} characters"),
                );
            }
        }
        self.unique(&format!("{path}.volumes"), "name", volumes.iter().map(|volume| volume.name.as_str()));
        if volumes.iter().any(|volume| ["model", "cache", "tmp"].contains(&volume.name.as_str())) {
            self.add(path, "volumes must not be named model, cache or tmp: the operator has those");
        }
        self.mounts(path, volume_mounts);
        let named = |mount: &VolumeMount| volumes.iter().any(|volume| volume.name == mount.name);
        if !volume_mounts.iter().all(named) {
            self.add(path, "volumeMounts must name volumes of this podTemplate");
        }
    }

    pub(super) fn no_label_of_ours(&mut self, path: &str, labels: &BTreeMap<String, String>) {
        if labels.keys().any(|key| key.starts_with("disagg.dev/") || key.starts_with("app.kubernetes.io/")) {
            self.add(path, "labels below disagg.dev/ and app.kubernetes.io/ are set by the operator");
        }
    }

    fn env(&mut self, path: &str, env: &[EnvVar]) {
        let reserved = |name: &str| {
            name.starts_with("DISAGG_")
                || ["HF_HOME", "HF_TOKEN", "XDG_CACHE_HOME", "POD_NAME", "POD_IP"].contains(&name)
        };
        if env.iter().any(|entry| reserved(&entry.name)) {
            self.add(
                path,
                "env must not hold DISAGG_*, HF_HOME, HF_TOKEN, XDG_CACHE_HOME, POD_NAME or POD_IP: the operator sets those",
            );
        }
        let path = format!("{path}.env");
        self.entries(&path, env.len(), limits::LIST_LENGTH);
        self.unique(&path, "name", env.iter().map(|entry| entry.name.as_str()));
        for (index, EnvVar { name, value, value_from }) in env.iter().enumerate() {
            let path = format!("{path}[{index}]");
            self.length(&format!("{path}.name"), Some(name), limits::ENV_NAME_LENGTH);
            let good = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
            if !name.bytes().all(good) || name.bytes().next().is_some_and(|byte| byte.is_ascii_digit()) {
                self.add(
                    format!("{path}.name"),
                    "must hold letters, digits and '_' and not begin with a digit",
                );
            }
            self.at_most(&format!("{path}.value"), value.as_deref(), limits::VALUE_LENGTH);
            if value.is_some() && value_from.is_some() {
                self.add(path, "value and valueFrom both give the value; set one of them");
            }
        }
    }

    fn mounts(&mut self, path: &str, mounts: &[VolumeMount]) {
        if mounts.iter().any(|mount| ["/", "/tmp", "/cache", "/model"].contains(&mount.mount_path.as_str())) {
            self.add(
                path,
                "volumeMounts must not be at /, /tmp, /cache or /model: the operator mounts those",
            );
        }
        let path = format!("{path}.volumeMounts");
        self.entries(&path, mounts.len(), limits::LIST_LENGTH);
        self.unique(&path, "mountPath", mounts.iter().map(|mount| mount.mount_path.as_str()));
        for (index, VolumeMount { name, mount_path, sub_path, read_only: _ }) in mounts.iter().enumerate() {
            let path = format!("{path}[{index}]");
            self.length(&format!("{path}.name"), Some(name), limits::VOLUME_NAME_LENGTH);
            if !is_dns_label(name, b"-") {
                self.add(format!("{path}.name"), "must hold a-z, 0-9 and '-', and begin and end without '-'");
            }
            self.length(&format!("{path}.mountPath"), Some(mount_path), limits::PATH_LENGTH);
            let below_root = mount_path.strip_prefix('/');
            if !below_root.is_some_and(|rest| rest.is_empty() || is_canonical(rest, &['/', ':', '\n'])) {
                self.add(
                    format!("{path}.mountPath"),
                    "must be an absolute path without ':', '.' or '..', and not end in '/'",
                );
            }
            self.length(&format!("{path}.subPath"), sub_path.as_deref(), limits::PATH_LENGTH);
            if sub_path.as_ref().is_some_and(|sub_path| !is_canonical(sub_path, &['/', '\n'])) {
                self.add(
                    format!("{path}.subPath"),
                    "must be a path below the volume's root, without '.' or '..', that neither begins nor ends with '/'",
                );
            }
        }
    }

    pub(super) fn text_map(&mut self, path: &str, map: &BTreeMap<String, String>, limit: u64) {
        self.entries(path, map.len(), limits::MAP_LENGTH);
        for (key, value) in map {
            self.at_most(&format!("{path}[{key}]"), Some(value), limit);
        }
    }

    pub(super) fn object_name(&mut self, path: &str, name: Option<&str>) {
        self.length(path, name, limits::OBJECT_NAME_LENGTH);
        if name.is_some_and(|name| !is_dns_label(name, b"-.")) {
            self.add(path, "must hold a-z, 0-9, '-' and '.', and begin and end with a letter or digit");
        }
    }

    fn entries(&mut self, path: &str, length: usize, limit: u64) {
        if length as u64 > limit {
            self.add(path, format!("must have at most {limit} entries, not {length}"));
        }
    }

    fn at_most(&mut self, path: &str, value: Option<&str>, limit: u64) {
        if value.is_some_and(|value| value.chars().count() as u64 > limit) {
            self.add(path, format!("must have at most {limit} characters"));
        }
    }

    fn unique<'a>(&mut self, path: &str, key: &str, values: impl Iterator<Item = &'a str>) {
        let mut seen = BTreeSet::new();
        for value in values {
            if !seen.insert(value) {
                return self.add(path, format!("must not have two entries with the {key} {value:?}"));
            }
        }
    }
}

/// Parts with one `/` between them, each with something other than dots and none with a character of `forbidden`. As the
/// schema's patterns have it.
fn is_canonical(path: &str, forbidden: &[char]) -> bool {
    path.split('/').all(|part| part.contains(|c| c != '.') && !part.contains(forbidden))
}

/// Of a-z, 0-9 and `inner`, which stands neither first nor last. Empty is left to the rule of the length.
fn is_dns_label(name: &str, inner: &[u8]) -> bool {
    let outer = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = name.as_bytes();
    bytes.iter().all(|byte| outer(byte) || inner.contains(byte))
        && bytes.first().is_none_or(outer)
        && bytes.last().is_none_or(outer)
}

/// As the schema's pattern has it.
fn is_amount(amount: &Amount) -> bool {
    let text = match amount {
        Amount::Number(number) => return *number >= 0,
        Amount::Text(text) if text.chars().count() as u64 > limits::AMOUNT_LENGTH => return false,
        Amount::Text(text) => text,
    };
    let number_end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(number_end);
    let number_is_good = number.matches('.').count() <= 1 && number.bytes().any(|byte| byte.is_ascii_digit());
    let suffix_is_good = match suffix.as_bytes() {
        []
        | [b'n' | b'u' | b'm' | b'k' | b'M' | b'G' | b'T' | b'P' | b'E']
        | [b'K' | b'M' | b'G' | b'T' | b'P' | b'E', b'i'] => true,
        [b'e' | b'E', exponent @ ..] => {
            let digits = exponent.strip_prefix(b"-").or(exponent.strip_prefix(b"+")).unwrap_or(exponent);
            !digits.is_empty() && digits.iter().all(u8::is_ascii_digit)
        }
        _ => false,
    };
    number_is_good && suffix_is_good
}

"""charts/disagg: rendered with `helm template`, compared with the snapshots beside this file, and linted.

`make manifests` writes the snapshots and everything else that is generated from the chart and the definition.

helm is built from its pinned sources once (tests/cluster/helm). No cluster is needed.
"""

import os
import pathlib
import re
import subprocess
import sys
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "cluster"))

from testcluster import binaries  # noqa: E402

CHART = ROOT / "charts" / "disagg"
SNAPSHOTS = pathlib.Path(__file__).resolve().parent / "snapshots"
DEFINITION = "disaggdeployments.disagg.dev.yaml"
UPDATE = bool(os.environ.get("UPDATE_SNAPSHOTS"))

# Name of the snapshot → values, in the form of --set. The definition is long and has its own tests.
CASES = {
    "default": ("crds.enabled=false",),
    "namespaced": ("crds.enabled=false", "scope.namespaced=true", "scope.watchNamespace=models"),
    "one-operator-no-lease": ("crds.enabled=false", "leaderElection.enabled=false"),
    "everything": (
        "crds.enabled=false", "images.registry=registry.example.com/llm", "images.tag=1.2.3", "images.pullSecrets={regcred}",
        "replicas=2", "logLevel=debug", "concurrency=8", "metrics.service.port=9100", "metrics.service.annotations.a=b",
        "metrics.serviceMonitor.enabled=true", "metrics.serviceMonitor.labels.release=prometheus", "serviceAccount.name=op",
        "serviceAccount.annotations.role=x", "podAnnotations.c=d", "podLabels.team=llm", "nodeSelector.disk=ssd",
        "tolerations[0].key=dedicated", "tolerations[0].operator=Exists", "priorityClassName=high", "fullnameOverride=llm-operator",
    ),
    "bring-your-own-account": (
        "crds.enabled=false", "admissionPolicy.enabled=false", "serviceAccount.create=false", "serviceAccount.name=given", "rbac.create=false", "metrics.service.enabled=false",
    ),
}

# Values that are refused, and words of the message.
REFUSED = {
    "replica=2": "replica",
    "replicas=-1": "replicas",
    "replicas=two": "replicas",
    "images.pullPolicy=Sometimes": "pullPolicy",
    "images.registry=": "registry",
    "images.tag=a b": "tag",
    "images.pullSecrets={Bad_Name}": "pullSecrets",
    "scope.watchNamespace=models": "namespaced",
    "scope.namespaced=yes please": "namespaced",
    "concurrency=0": "concurrency",
    "metrics.service.port=70000": "port",
    "metrics.serviceMonitor.interval=soon": "interval",
    "crds.install=true": "install",
    "leaderElection.enabled=false,replicas=2": "replicas",
    "serviceAccount.create=false": "serviceAccount.name must be set",
    "metrics.service.enabled=false,metrics.serviceMonitor.enabled=true": "needs metrics.service.enabled",
}


def setUpModule():
    try:
        binaries.helm()
    except binaries.ClusterError as error:
        print(f"tests of the chart are not run: {error}", file=sys.stderr)
        raise unittest.SkipTest(str(error))


def helm(*arguments):
    return subprocess.run([binaries.helm(), *arguments], capture_output=True, text=True, timeout=120)


def with_values(values):
    return [word for value in values for word in ("--set", value)]


def render(*values, namespace="disagg-system", more=()):
    return helm("template", "disagg", str(CHART), "--namespace", namespace, *with_values(values), *more)


class Chart(unittest.TestCase):
    maxDiff = None

    def rendered(self, *values, **options):
        done = render(*values, **options)
        self.assertEqual(done.returncode, 0, done.stderr)
        return done.stdout

    def test_it_lints(self):
        for name, values in CASES.items():
            with self.subTest(name):
                done = helm("lint", "--strict", str(CHART), *with_values(values))
                self.assertEqual(done.returncode, 0, done.stdout + done.stderr)

    def test_snapshots(self):
        for name, values in CASES.items():
            with self.subTest(name):
                self.same_as_file(SNAPSHOTS / f"{name}.yaml", self.rendered(*values))
        if not UPDATE:
            self.assertEqual({path.stem for path in SNAPSHOTS.iterdir()}, set(CASES), "a snapshot without a case")

    def test_bad_values_are_refused_by_name(self):
        for value, named in REFUSED.items():
            with self.subTest(value):
                done = render(value)
                self.assertNotEqual(done.returncode, 0, "it was accepted")
                self.assertIn(named, done.stderr)

    def test_the_definition_is_the_generated_one(self):
        for copy in (CHART / "files", ROOT / "deploy" / "kustomize"):
            self.same_as_file(copy / DEFINITION, (ROOT / "crds" / DEFINITION).read_text())

    def test_the_definition_is_installed_and_kept(self):
        generated = (ROOT / "crds" / DEFINITION).read_text()
        body = generated.split("\n", 1)[1]
        only = ("--show-only", "templates/crds.yaml")
        plain = self.rendered("crds.keep=false", more=only)
        self.assertIn(body.strip(), plain)
        kept = self.rendered(more=only)
        annotation = "  annotations:\n    helm.sh/resource-policy: keep\n"
        self.assertEqual(kept.replace(annotation, ""), plain)
        self.assertRegex(kept, r"(?m)^metadata:\n  annotations:\n    helm\.sh/resource-policy: keep\n  name: ")
        self.assertNotIn("CustomResourceDefinition", self.rendered("crds.enabled=false"))

    def test_rights_are_spelt_out(self):
        for values in CASES.values():
            text = self.rendered(*values)
            for line in re.findall(r"(?m)^ +(?:verbs|resources|apiGroups): .*$", text):
                self.assertNotIn("*", line)
            for verb in ("escalate", "bind", "impersonate", "deletecollection"):
                self.assertNotRegex(text, rf"verbs: .*\b{verb}\b")

    def test_a_namespaced_operator_has_no_rights_in_the_cluster(self):
        self.assertNotIn("ClusterRole", self.rendered(*CASES["namespaced"]))

    def test_what_the_operator_may_write_is_what_its_admission_policy_judges(self):
        """Resources by API group: those that the rights to create or delete name, and those that the policy names."""

        def resources(text, wanted):
            rule = r"apiGroups: \[(.*)\]\n(?: +apiVersions: .*\n)?(?: +operations: .*\n)? +resources: \[(.*)\]\n(?: +verbs: \[(.*)\]\n)?"
            found = re.findall(rule, text)
            return {(group, name) for group, names, verbs in found if wanted(verbs) for name in names.split(", ")}

        rights = self.rendered("crds.enabled=false", more=("--show-only", "templates/rbac.yaml"))
        policy = self.rendered("crds.enabled=false", more=("--show-only", "templates/admission.yaml"))
        makes = resources(rights, lambda verbs: {"create", "delete"} & set(verbs.split(", ")))
        # Events and the Lease are not children; RBAC limits the Lease to its name.
        makes -= {("events.k8s.io", "events"), ("coordination.k8s.io", "leases")}
        self.assertEqual(resources(policy, lambda _: True), makes)

    def test_the_admission_policy_can_be_left_out(self):
        self.assertIn("ValidatingAdmissionPolicyBinding", self.rendered())
        self.assertNotIn("ValidatingAdmissionPolicy", self.rendered("admissionPolicy.enabled=false"))

    def test_version_is_that_of_the_workspace(self):
        [version] = re.findall(r'(?m)^version = "(.*)"$', (ROOT / "Cargo.toml").read_text())
        self.assertIn(f"appVersion: {version}\n", (CHART / "Chart.yaml").read_text())

    def test_every_value_is_in_the_schema_and_used(self):
        values = (CHART / "values.yaml").read_text()
        templates = "".join(path.read_text() for path in (CHART / "templates").iterdir())
        schema = (CHART / "values.schema.json").read_text()
        for key in re.findall(r"(?m)^([A-Za-z]+):", values):
            self.assertIn(f".Values.{key}", templates, key)
            self.assertIn(f'"{key}"', schema, key)

    def test_the_notes_show_the_demo(self):
        done = helm("install", "disagg", str(CHART), "--namespace", "disagg-system", "--dry-run=client")
        self.assertEqual(done.returncode, 0, done.stderr)
        notes = done.stdout.split("\nNOTES:\n", 1)[1]
        demo = (ROOT / "deploy" / "samples" / "demo.yaml").read_text()
        lines = [line for line in demo.splitlines() if not line.lstrip().startswith("#")]
        self.assertIn("\n".join(f"  {line}" for line in lines), notes)

    def test_the_kustomize_base_is_current(self):
        manifest = self.rendered("crds.enabled=false")
        head = "# Generated from charts/disagg with its default values. Do not edit: make manifests writes it.\n"
        self.same_as_file(ROOT / "deploy" / "kustomize" / "operator.yaml", head + manifest)

    def same_as_file(self, path, text):
        if UPDATE:
            path.write_text(text)
        self.assertEqual(path.read_text() if path.exists() else "", text, f"{path} is not current: make manifests writes it")


if __name__ == "__main__":
    unittest.main()

"""ARCHITECTURE.md states which crate depends on which, and what the pure crates do without. This holds it to that."""

import json
import pathlib
import re
import subprocess
import unittest

ROOT = pathlib.Path(__file__).resolve().parent.parent

# Crates that decide and do no I/O, each with what its sources must not use. Time and seeds are arguments.
NO_EFFECTS = ["std::fs", "std::net", "std::env", "std::process", "std::thread::spawn", "Instant::now", "SystemTime", "async fn"]
PURE = {"disagg-core": NO_EFFECTS, "disagg-engine": NO_EFFECTS, "disagg-tokenizer": ["std::fs", "std::net", "std::env", "async fn"]}
# What none of them may have anywhere in its tree: runtimes, networks, clusters, tensors, randomness of their own.
EFFECTS = re.compile(r"(tokio|tonic|hyper|axum|reqwest|rustls|kube|k8s-openapi|candle|cudarc|rand|getrandom|chrono|disagg-proto)(-.*)?")
# Of a pure crate, a dependency that is allowed although the expression above names it, with the reason.
ALLOWED = {
    # The crate `tokenizers` draws for BPE dropout, which is for training: nothing of ours turns it on.
    "disagg-tokenizer": {"getrandom", "rand"},
}
# Trees that must not have a crate, with the reason.
WITHOUT = {
    "disagg-worker": (r"kube.*|k8s-openapi", "a worker knows no cluster"),
    "disagg-operator": (r"disagg-(router|worker|engine|proto)|tonic|candle.*|cudarc", "the operator agrees with router and worker through disagg-api"),
    "disagg-proto": (r"disagg-.*", "the contract knows none of its users"),
    "disagg-files": (r"disagg-.*|tokio|tonic|hyper", "a file is a file, whoever reads it"),
    "disagg-model": (r"disagg-(proto|process|api)|tokio|tonic|hyper|reqwest|kube.*|candle.*|cudarc", "it knows no backend, no network and no async runtime"),
    "disagg-process": (r"disagg-(?!files).*|tonic|kube.*", "it knows nothing of what the processes do"),
}
# Where the types of the wire contract may be named: where messages are made and read. The rest has types of its own.
WIRE = {
    "worker/src": ["convert/", "service/", "handoff/", "server.rs", "transport/landing.rs", "transport/tcp/"],
    "router/src": [
        "wire.rs", "generation.rs", "upstream.rs", "prepare.rs", "model/card.rs", "workers/connection.rs", "workers/worker.rs",
        # A test that plays the worker.
        "parity.rs",
    ],
    "cli/src": [],
    "operator/src": [],
}  # fmt: skip


def metadata() -> dict:
    command = ["cargo", "metadata", "--locked", "--format-version", "1"]
    return json.loads(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout)


class Crates:
    """The workspace's crates and what they depend on, without what only tests or build scripts need."""

    def __init__(self, found: dict):
        self.names = {package["id"]: package["name"] for package in found["packages"]}
        self.own = {self.names[member]: member for member in found["workspace_members"]}
        self.folders = {
            package["name"]: pathlib.Path(package["manifest_path"]).parent.relative_to(ROOT)
            for package in found["packages"]
            if package["id"] in self.own.values()
        }
        needed = lambda dep: any(kind["kind"] is None for kind in dep["dep_kinds"])  # noqa: E731
        self.deps = {
            node["id"]: {dep["pkg"] for dep in node["deps"] if needed(dep)} for node in found["resolve"]["nodes"]
        }

    def direct(self, crate: str) -> set[str]:
        """Crates of the workspace that it names."""
        return {self.names[dep] for dep in self.deps[self.own[crate]]} & set(self.own)

    def tree(self, crate: str) -> set[str]:
        """Every crate that is compiled for it."""
        found, left = set(), [self.own[crate]]
        while left:
            for dep in self.deps[left.pop()] - found:
                found.add(dep)
                left.append(dep)
        return {self.names[dep] for dep in found}


def code_map(text: str) -> dict[str, tuple[str, set[str]]]:
    """The table of ARCHITECTURE.md: crate -> (folder, crates it depends on)."""
    rows = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if line.startswith("| `") and len(cells) == 4 and re.fullmatch(r"`disagg[a-z0-9-]*`", cells[1]):
            names = [name.strip() for name in cells[3].split(",") if name.strip()]
            rows[cells[1].strip("`")] = (cells[0].strip("`").rstrip("/"), {f"disagg-{name}" for name in names})
    return rows


def sources(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted((ROOT / folder).rglob("*.rs"))


def is_of_tests(path: pathlib.Path) -> bool:
    return "tests" in path.parts or path.name in ("tests.rs", "faults.rs") or path.name.endswith("_tests.rs")


class Architecture(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.crates = Crates(metadata())
        cls.text = (ROOT / "ARCHITECTURE.md").read_text()

    def test_the_code_map_names_every_crate_and_what_it_depends_on(self):
        stated = code_map(self.text)
        self.assertEqual(set(stated), set(self.crates.own), "crates of the workspace and rows of the code map")
        for crate, (folder, depends_on) in stated.items():
            with self.subTest(crate=crate):
                self.assertEqual(folder, str(self.crates.folders[crate]))
                self.assertEqual(depends_on, self.crates.direct(crate))

    def test_pure_crates_have_no_runtime_no_network_and_no_randomness_below_them(self):
        for crate in PURE:
            effects = {name for name in self.crates.tree(crate) if EFFECTS.fullmatch(name)}
            self.assertEqual(effects - ALLOWED.get(crate, set()), set(), f"in the tree of {crate}")

    def test_pure_crates_use_no_clock_and_do_no_io(self):
        for crate, words in PURE.items():
            for path in sources(self.crates.folders[crate] / "src"):
                if is_of_tests(path):
                    continue
                code = path.read_text().split("#[cfg(test)]\nmod tests {")[0]
                used = [word for word in words if word in code]
                self.assertEqual(used, [], path.relative_to(ROOT))

    def test_trees_are_free_of_what_they_must_not_know(self):
        for crate, (names, why) in WITHOUT.items():
            found = {name for name in self.crates.tree(crate) if re.fullmatch(names, name)}
            self.assertEqual(found, set(), f"{crate}: {why}")

    def test_wire_types_stay_where_messages_are_made_and_read(self):
        names_them = re.compile(r"disagg_proto::(v1\b|\{[^}]*\bv1\b)")
        for folder, allowed in WIRE.items():
            paths = {str(path.relative_to(ROOT / folder)): path for path in sources(pathlib.Path(folder))}
            found = [name for name, path in paths.items() if names_them.search(path.read_text())]
            beyond = [name for name in found if not name.startswith(tuple(allowed))]
            self.assertEqual(beyond, [], f"{folder}: wire types beyond {allowed}")
            unused = [place for place in allowed if not any(name.startswith(place) for name in found)]
            self.assertEqual(unused, [], f"{folder}: listed, and naming no wire types")


class CodeMap(unittest.TestCase):
    def test_rows_of_crates_are_read(self):
        text = "\n".join(
            [
                "| path | crate | what it is | depends on |",
                "| `a/` | `disagg-a` | one | |",
                "| `crates/b/` | `disagg-b` | two | a, process |",
                "| `tests/c2/` | `disagg-c2` | three | a, b |",
                "| `charts/` | | the chart | |",
            ]
        )
        c2 = ("tests/c2", {"disagg-a", "disagg-b"})
        b = ("crates/b", {"disagg-a", "disagg-process"})
        self.assertEqual(code_map(text), {"disagg-a": ("a", set()), "disagg-b": b, "disagg-c2": c2})


if __name__ == "__main__":
    unittest.main()

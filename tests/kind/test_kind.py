"""deploy/kind.sh with fake tools: what it calls, with which arguments, in which order, and its messages when it fails.

No image is built and no cluster is created here. .github/workflows/kind.yaml runs the script with the real tools.
"""

import json
import pathlib
import shutil
import subprocess
import sys
import tempfile
import unittest

import fakes

SCRIPT = fakes.ROOT / "deploy" / "kind.sh"
IMAGES = [f"localhost/disagg-{target}:dev" for target in ("operator", "router", "worker")]
# What the script uses besides the faked tools.
SYSTEM = ("bash", "cat", "dirname", "grep", "mktemp", "rm")


class KindTest(unittest.TestCase):
    def setUp(self):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="disagg-kind-"))
        self.addCleanup(shutil.rmtree, self.folder)
        # This is the whole PATH, so that real tools of this machine are never found.
        self.bin, self.state, self.scratch = (self.folder / name for name in ("bin", "state", "tmp"))
        for folder in (self.bin, self.state, self.scratch):
            folder.mkdir()
        for tool in SYSTEM:
            (self.bin / tool).symlink_to(shutil.which(tool))
        for tool in fakes.TOOLS:
            script = self.bin / tool
            script.write_text(f'#!/bin/sh\nexec {sys.executable} {fakes.__file__} {tool} "$@"\n')
            script.chmod(0o755)

    def script(self, *arguments, **variables):
        environment = {"PATH": str(self.bin), "FAKES": str(self.state), "TMPDIR": str(self.scratch), **variables}
        return subprocess.run(
            [shutil.which("bash"), SCRIPT, *arguments],
            env=environment, cwd=self.folder, capture_output=True, text=True, timeout=120,
        )

    def passes(self, *arguments, **variables):
        done = self.script(*arguments, **variables)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        return done.stdout

    def refuses(self, message, *arguments, **variables):
        done = self.script(*arguments, **variables)
        self.assertEqual(done.returncode, 1, done.stdout + done.stderr)
        self.assertIn(message, done.stderr)

    def calls(self, tool=None):
        path = self.state / "calls"
        calls = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return [call for call in calls if tool in (None, call[0])]

    def loaded(self, cluster="disagg"):
        return json.loads((self.state / "clusters" / cluster).read_text())

    def archives(self):
        """A folder with a ready archive of each image."""
        folder = self.folder / "archives"
        folder.mkdir()
        for image in IMAGES:
            name = image.removeprefix("localhost/").removesuffix(":dev")
            fakes.write_archive(folder / f"{name}.tar", [image])
        return folder

    def test_up_builds_loads_and_installs(self):
        out = self.passes("up")
        self.assertIn("port-forward service/demo-router 8181", out)
        self.assertEqual(self.loaded(), IMAGES)
        steps = [" ".join(call[:3]) for call in self.calls()]
        self.assertEqual(
            steps,
            [
                "kind get clusters", "kind create cluster",
                "docker build --file", "docker build --file", "docker build --file", "docker save --output",
                "kind load image-archive", "helm upgrade --install",
                "kubectl --context kind-disagg", "kubectl --context kind-disagg",
            ],
        )
        self.assertEqual(list(self.scratch.iterdir()), [], "the archive is not left behind")

    def test_what_is_installed_is_what_was_loaded(self):
        self.passes("up", TAG="t1", KIND_CLUSTER="other")
        loaded = self.loaded("other")
        self.assertEqual(loaded, [image.replace(":dev", ":t1") for image in IMAGES])
        [helm] = self.calls("helm")
        self.assertIn("kind-other", helm)
        given = dict(
            helm[at + 1].split("=", 1) for at, word in enumerate(helm) if word in ("--set", "--set-string")
        )
        self.assertEqual(given, {"images.registry": "localhost", "images.tag": "t1", "images.pullPolicy": "Never"})
        for image in loaded:
            self.assertTrue(image.startswith(given["images.registry"] + "/") and image.endswith(":" + given["images.tag"]))
        for call in self.calls("kubectl"):
            self.assertEqual(call[1:3], ["--context", "kind-other"])

    def test_a_second_up_keeps_the_cluster(self):
        self.passes("up")
        self.passes("up")
        created = [call for call in self.calls("kind") if call[1] == "create"]
        self.assertEqual(len(created), 1)

    def test_ready_archives_are_loaded_without_docker(self):
        folder = self.archives()
        (self.bin / "docker").unlink()
        self.passes("up", ARCHIVES=str(folder))
        self.assertEqual(self.loaded(), IMAGES)

    def test_load_and_down(self):
        self.refuses('there is no kind cluster "disagg"', "load")
        self.passes("up")
        self.passes("load")
        self.passes("down")
        self.assertEqual(list((self.state / "clusters").iterdir()), [])

    def test_what_is_missing_is_named_before_anything_is_done(self):
        (self.bin / "kind").unlink()
        (self.bin / "helm").unlink()
        self.refuses("not on the PATH: kind helm", "up")
        self.assertEqual(self.calls(), [])

    def test_bad_requests(self):
        self.refuses("usage: deploy/kind.sh up|load|down")
        self.refuses("usage: deploy/kind.sh up|load|down", "up", "now")
        self.refuses("usage: deploy/kind.sh up|load|down", "upp")
        self.refuses("no-such.yaml is not there", "up", SAMPLE="no-such.yaml")
        folder = self.archives()
        (folder / "disagg-worker.tar").unlink()
        self.refuses("disagg-worker.tar is not there", "up", ARCHIVES=str(folder))

    def test_a_step_that_fails_ends_it(self):
        (self.bin / "helm").write_text("#!/bin/sh\necho no such chart >&2\nexit 1\n")
        self.refuses("no such chart", "up")
        self.assertEqual(self.calls("kubectl"), [])


if __name__ == "__main__":
    unittest.main()

"""Tests of the parts that need no running cluster."""

import io
import json
import pathlib
import re
import sys
import tarfile
import tempfile
import unittest
from unittest import mock

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from testcluster import binaries, config, host, images, machine, packages, pki, product  # noqa: E402
from testcluster.errors import ClusterError  # noqa: E402
from testcluster.machine import Machine  # noqa: E402

V1 = Machine(cgroup_roots=(pathlib.Path("/sys/fs/cgroup/cpu"),), cgroup_v1=True, may_lower_oom_score=False, snapshotter="overlayfs")


class Temporary(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)

    def write(self, name, text="x"):
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path


class Images(Temporary):
    def archive(self, **more):
        executable = self.write("program", "#!/bin/sh\n")
        out = self.folder / "image.tar"
        images.write(images.Image("localhost/program:1", (executable,), ("/usr/local/bin/program",), **more), out)
        return out

    def test_an_archive_holds_what_docker_load_expects(self):
        with tarfile.open(self.archive(arguments=("serve",))) as archive:
            (manifest,) = json.load(archive.extractfile("manifest.json"))
            image = json.load(archive.extractfile(manifest["Config"]))
            layers = [tarfile.open(fileobj=io.BytesIO(archive.extractfile(name).read())) for name in manifest["Layers"]]
        self.assertEqual(manifest["RepoTags"], ["localhost/program:1"])
        self.assertEqual(len(image["rootfs"]["diff_ids"]), len(layers))
        self.assertEqual(image["config"]["User"], "65532:65532")
        self.assertEqual((image["config"]["Entrypoint"], image["config"]["Cmd"]), (["/usr/local/bin/program"], ["serve"]))
        names = [name for layer in layers for name in layer.getnames()]
        self.assertIn("usr/local/bin/program", names)
        self.assertEqual(layers[0].getmember("tmp").mode, 0o1777)
        # A folder comes before its contents.
        self.assertLess(names.index("usr/local"), names.index("usr/local/bin"))

    def test_the_same_executable_makes_the_same_bytes(self):
        self.assertEqual(self.archive().read_bytes(), self.archive().read_bytes())

    def test_shared_libraries_come_with_their_loader(self):
        libraries = dict(images.shared_libraries([pathlib.Path(sys.executable).resolve()]))
        self.assertTrue(any("libc.so" in name for name in libraries), libraries)
        self.assertTrue(any("/ld-linux" in name for name in libraries), libraries)

    def test_an_executable_that_is_not_built_is_named(self):
        image = images.Image("a:1", (self.folder / "missing",), ("/missing",))
        with self.assertRaisesRegex(ClusterError, "missing is not there; build it first"):
            images.write(image, self.folder / "image.tar")

    def test_the_products_images_are_those_that_the_chart_asks_for(self):
        chart = product.ROOT / "charts" / "disagg"
        [version] = re.findall(r"(?m)^appVersion: (.*)$", (chart / "Chart.yaml").read_text())
        [registry] = re.findall(r"(?m)^  registry: (.*)$", (chart / "values.yaml").read_text())
        names = re.findall(r"(?m)^  (?:operator|worker|router): (.*)$", (chart / "values.yaml").read_text())
        self.assertEqual(len(names), 3)
        with mock.patch.dict("os.environ", DISAGG_E2E_TAG=""):
            ours = [product.product_image(executable).name for executable in product.EXECUTABLES]
        for name in names:
            self.assertIn(f"{registry}/{name}:{version}", ours)
        with mock.patch.dict("os.environ", DISAGG_E2E_TAG="mine"):
            self.assertEqual(product.product_image("disagg-router").name, "localhost/disagg-router:mine")


class Binaries(Temporary):
    def digest(self):
        return binaries.digest(self.folder, "./...", "", {})

    def test_a_build_is_named_by_its_sources_and_nothing_else(self):
        self.write("go.mod")
        self.write("main.go")
        first = self.digest()
        self.write("notes.md")
        self.write("other/go.mod")
        self.write("other/main.go")
        self.assertEqual(self.digest(), first)
        self.write("sub/more.go")
        self.assertNotEqual(self.digest(), first)

    def test_versions_are_those_of_the_modules(self):
        self.assertRegex(binaries.kubernetes_version(), r"^v1\.36\.\d+$")
        go_mod = self.write("go.mod", "require (\n\ta.b/c v1.2.3 // indirect\n)\n")
        self.assertEqual(binaries.pinned_version(go_mod, "a.b/c"), "v1.2.3")
        with self.assertRaisesRegex(ClusterError, "does not require a.b/d"):
            binaries.pinned_version(go_mod, "a.b/d")

    def test_without_go_it_says_what_to_install(self):
        with mock.patch("shutil.which", return_value=None), mock.patch.object(binaries, "CACHE", self.folder):
            with self.assertRaisesRegex(ClusterError, r"Install Go 1\.\d+"):
                binaries.cluster()


class MachineChecks(unittest.TestCase):
    def test_without_root_it_says_what_to_do(self):
        with mock.patch("os.geteuid", return_value=1000):
            with self.assertRaisesRegex(ClusterError, "needs root.*CLUSTER=kind"):
                host.up()

    def test_without_namespaces_it_says_so(self):
        refused = mock.Mock(returncode=1, stderr="unshare failed: Operation not permitted\n")
        with mock.patch.object(machine, "run", return_value=refused):
            with self.assertRaisesRegex(ClusterError, "no namespaces.*Operation not permitted"):
                machine.try_namespaces()

    def mounts(self, text):
        return mock.patch.object(pathlib.Path, "read_text", lambda path: text if path.name == "mounts" else "cpu memory")

    def test_a_missing_cgroup_controller_is_named(self):
        with self.mounts("cgroup /sys/fs/cgroup/cpu cgroup rw 0 0\n"):
            with self.assertRaisesRegex(ClusterError, "cpuset, memory, pids"):
                machine.cgroups()
        with self.mounts("cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n"):
            with self.assertRaisesRegex(ClusterError, "cpuset, pids"):
                machine.cgroups()

    def test_missing_packages_are_installed_or_named(self):
        with mock.patch.object(packages, "missing", return_value=["runc"]), mock.patch("shutil.which", return_value=None):
            with self.assertRaisesRegex(ClusterError, "needs these packages.*runc"):
                packages.ensure()


class Config(unittest.TestCase):
    def test_the_oom_score_is_left_alone_only_where_it_must_be(self):
        self.assertIn("restrict_oom_score_adj = true", config.containerd(V1))
        able = Machine(V1.cgroup_roots, True, True, "native")
        self.assertIn("restrict_oom_score_adj = false", config.containerd(able))
        self.assertIn('snapshotter = "native"', config.containerd(able))

    def test_only_service_accounts_of_tests_are_audited(self):
        levels = [(rule["level"], rule.get("userGroups")) for rule in config.audit_policy()["rules"]]
        self.assertEqual(
            levels,
            [("None", ["system:serviceaccounts:kube-system"]), ("Metadata", ["system:serviceaccounts"]), ("None", None)],
        )


class Host(Temporary):
    def test_a_reused_process_id_is_not_taken_for_the_node(self):
        with mock.patch.object(host, "NODE_PID", self.write("node.pid", "1")):
            self.assertIsNone(host.node_pid())
        with mock.patch.object(host, "NODE_PID", self.folder / "none"):
            self.assertIsNone(host.node_pid())

    def test_a_lock_is_waited_for_and_then_told_of(self):
        lock = self.folder / "lock"
        with host.locked(lock, "nobody"):
            with self.assertRaisesRegex(ClusterError, "waited 0 s for another"):
                with host.locked(lock, "another", deadline_s=0):
                    pass
        with host.locked(lock, "nobody", deadline_s=0):
            pass

    def test_certificates_are_signed_by_the_authority(self):
        pki.make(self.folder / "pki", self.folder)
        for name in ("apiserver", "kubelet", "admin"):
            pki.openssl("verify", "-CAfile", self.folder / "pki/ca.crt", self.folder / f"pki/{name}.crt")
        config = json.loads((self.folder / "admin.kubeconfig").read_text())
        self.assertEqual(config["clusters"][0]["cluster"]["server"], "https://10.89.0.1:6443")


if __name__ == "__main__":
    unittest.main()

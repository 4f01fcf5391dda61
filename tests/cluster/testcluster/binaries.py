"""Builds the cluster's executables from pinned Go modules, and keeps them in the cache.

A build's folder is named by a hash of its sources, so it is built once, and again only when they change.
"""

import hashlib
import os
import pathlib
import re
import shutil
import subprocess
import sys

from .errors import ClusterError
from .layout import CACHE, SOURCES

# Each is a name of the multi-call executable.
PARTS = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "kubectl", "etcd", "dns")


def kubernetes_version():
    """The pinned version, for example `v1.36.3`."""
    return pinned_version(SOURCES / "go.mod", "k8s.io/kubernetes")


def pinned_version(go_mod, module):
    found = re.search(rf"^\s*{re.escape(module)} (v\S+)", go_mod.read_text(), re.MULTILINE)
    if not found:
        raise ClusterError(f"{go_mod} does not require {module}")
    return found.group(1)


def cluster():
    """The folder with the cluster's executables: `pod`, and a link for each of `PARTS`. Builds it if need be."""
    version = kubernetes_version()
    major, minor, _ = version.removeprefix("v").split(".", 2)
    package = "k8s.io/component-base/version"
    stamps = {"gitVersion": version, "gitMajor": major, "gitMinor": minor}
    flags = " ".join(f"-X {package}.{name}={value}" for name, value in stamps.items())
    return built("cluster", SOURCES, "./...", flags, links={part: "cluster" for part in PARTS})


def helm():
    """Path of the `helm` executable. Builds it if need be."""
    module = SOURCES / "helm"
    version = pinned_version(module / "go.mod", "helm.sh/helm/v4")
    flags = f"-X helm.sh/helm/v4/internal/version.version={version}"
    return built("helm", module, "helm.sh/helm/v4/cmd/helm", flags, links={}) / "helm"


def built(name, module, packages, flags, links):
    """The folder with the executables of these packages, built in a Go module, and these links to them."""
    final = CACHE / name / digest(module, packages, flags, links)
    if final.is_dir():
        return final
    if not shutil.which("go"):
        raise ClusterError(
            f"`go` is not on the PATH. Install Go {pinned_go(module)} or newer: the test cluster is built from source"
        )
    print(f"building {name} from {module.relative_to(SOURCES.parents[1])} into {final} (once)", file=sys.stderr, flush=True)
    new = final.with_name(f"{final.name}.{os.getpid()}")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    environment = os.environ | {"CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly"}
    command = ["go", "build", "-trimpath", "-ldflags", f"-s -w {flags}", "-o", f"{new}/", packages]
    status = subprocess.run(command, cwd=module, env=environment).returncode
    if status != 0:
        shutil.rmtree(new, ignore_errors=True)
        raise ClusterError(f"`go build` of {module} failed with {status}; its output is above")
    for link, target in links.items():
        (new / link).symlink_to(target)
    try:
        new.rename(final)
    except OSError:
        # Another process was faster; its folder is complete.
        shutil.rmtree(new, ignore_errors=True)
    return final


def pinned_go(module):
    return re.search(r"^go (\S+)", (module / "go.mod").read_text(), re.MULTILINE).group(1)


def digest(module, packages, flags, links):
    """A hash of everything that the executables depend on, except the Go toolchain."""
    hashed = hashlib.sha256(repr((packages, flags, sorted(links.items()))).encode())
    for path in sorted(sources(module)):
        hashed.update(f"{path.relative_to(module)}\0{path.stat().st_size}\0".encode())
        hashed.update(path.read_bytes())
    return hashed.hexdigest()[:16]


def sources(module):
    """Files of the module; a folder with a go.mod of its own is another module."""
    for folder, names, files in os.walk(module):
        here = pathlib.Path(folder)
        names[:] = [name for name in names if not (here / name / "go.mod").exists()]
        yield from (here / file for file in files if file.endswith(".go") or file in ("go.mod", "go.sum"))

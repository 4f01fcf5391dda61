"""What this machine can do, checked before anything is started, so that one line says what is missing."""

import os
import pathlib
import subprocess
import tempfile
from dataclasses import dataclass

from .errors import ClusterError
from .layout import CGROUP, STATE

CAP_SYS_RESOURCE = 24
# Controllers that the kubelet requires.
CONTROLLERS = ("cpu", "cpuset", "memory", "pids")
# One flag for each namespace that the node has to itself.
NAMESPACES = ("--net", "--mount", "--pid", "--ipc", "--uts")


@dataclass(frozen=True)
class Machine:
    # Folders in which to create a cgroup: one for each v1 hierarchy, or the one of v2.
    cgroup_roots: tuple
    cgroup_v1: bool
    # Whether a process may lower an oom_score_adj; in many containers root may not.
    may_lower_oom_score: bool
    # containerd's snapshotter.
    snapshotter: str


def look():
    """Returns a `Machine`, or raises a `ClusterError` that says what is missing."""
    try_namespaces()
    roots, v1 = cgroups()
    return Machine(roots, v1, has_capability(CAP_SYS_RESOURCE), snapshotter())


def require_root():
    if os.geteuid() != 0:
        raise ClusterError(
            "the test cluster needs root: it makes namespaces, mounts and cgroups. Run it as root, "
            "or use another cluster: make e2e CLUSTER=kind, or CLUSTER=external with KUBECONFIG set"
        )


def try_namespaces():
    done = run("unshare", *NAMESPACES, "--fork", "--propagation", "private", "mount", "-t", "proc", "proc", "/proc")
    if done.returncode != 0:
        raise ClusterError(
            f"this machine lets root make no namespaces of its own ({done.stderr.strip()}); a container has to be "
            "privileged for it"
        )


def cgroups():
    """(cgroup roots, whether they are v1)."""
    mounts = [line.split() for line in pathlib.Path("/proc/mounts").read_text().splitlines()]
    v1 = [pathlib.Path(mount[1]) for mount in mounts if mount[2] == "cgroup"]
    v2 = [pathlib.Path(mount[1]) for mount in mounts if mount[2] == "cgroup2"]
    if v1:
        have = {name for path in v1 for name in path.name.split(",")}
    elif v2:
        have = set((v2[0] / "cgroup.controllers").read_text().split())
    else:
        raise ClusterError("no cgroup file system is mounted at /sys/fs/cgroup")
    if lacking := [name for name in CONTROLLERS if name not in have]:
        raise ClusterError(f"the kubelet needs the cgroup controllers {', '.join(lacking)}, which this machine lacks")
    # Beside v1 a v2 hierarchy may be mounted, in which runc also creates cgroups.
    roots = tuple(v1 + v2) if v1 else (v2[0],)
    probe = roots[0] / f"{CGROUP}-probe"
    try:
        probe.mkdir(exist_ok=True)
        probe.rmdir()
    except OSError as error:
        raise ClusterError(f"no cgroup can be made in {roots[0]}: {error.strerror}") from error
    return roots, bool(v1)


def has_capability(number):
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> number & 1)
    return False


def snapshotter():
    """`overlayfs` where the state folder can hold the layers of an overlay, otherwise `native`, which copies."""
    STATE.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=STATE.parent, prefix="disagg-overlay-") as folder:
        for name in ("lower", "upper", "work", "merged"):
            os.mkdir(os.path.join(folder, name))
        options = ",".join(f"{name}dir={folder}/{name}" for name in ("lower", "upper", "work"))
        done = run("unshare", "--mount", "mount", "-t", "overlay", "overlay", "-o", options, f"{folder}/merged")
    return "overlayfs" if done.returncode == 0 else "native"


def run(*command):
    return subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

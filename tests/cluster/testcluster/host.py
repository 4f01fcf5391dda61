"""The host's side of the node: starts it, waits until pods run on it, and removes all of it."""

import contextlib
import fcntl
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

from . import binaries, config, images, machine, node, packages, pki, product
from .errors import ClusterError
from .layout import (
    CGROUP, CHANGE_LOCK, CONTAINERD_SOCKET, HOST_IP, HOST_LINK, KUBECONFIG, NODE, NODE_IP, NODE_LINK, POD_IMAGE,
    POD_RANGE, SERVICE_RANGE, SOURCES, STATE, USE_LOCK,
)  # fmt: skip

NODE_PID = STATE / "node.pid"
READY = STATE / "ready"
START_DEADLINE_S = 150
STOP_DEADLINE_S = 60
# When the node's first process started, so that a reused process id is not mistaken for it.
NODE_MARK = "testcluster.node"

FIRST_POD = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "first", "namespace": "kube-system"},
    "spec": {
        "terminationGracePeriodSeconds": 1,
        "containers": [
            {
                "name": "pod",
                "image": POD_IMAGE,
                "imagePullPolicy": "Never",
                "args": ["serve"],
                "readinessProbe": {"httpGet": {"port": 8080}, "periodSeconds": 1},
            }
        ],
    },
}


def up(end_with_us=False):
    """Starts the cluster unless it runs. With `end_with_us` it ends when we do, and `stdin` of the node is returned."""
    machine.require_root()
    with locked(CHANGE_LOCK, "the start or end of the cluster by another process"):
        if is_up():
            return None
        capabilities = machine.look()
        packages.ensure()
        folder = binaries.cluster()
        remove_all(capabilities.cgroup_roots)
        begin = time.monotonic()
        STATE.mkdir(parents=True)
        try:
            stdin = start(capabilities, folder, end_with_us)
            wait_until_ready(folder)
        except ClusterError as error:
            report = failure_report()
            remove_all(capabilities.cgroup_roots)
            raise ClusterError(f"{error}{report}") from error
        except BaseException:
            remove_all(capabilities.cgroup_roots)
            raise
        READY.touch()
        print(f"cluster up in {time.monotonic() - begin:.1f} s", file=sys.stderr, flush=True)
        return stdin


def down():
    machine.require_root()
    with locked(CHANGE_LOCK, "the start or end of the cluster by another process"):
        remove_all(machine.cgroups()[0])


def is_up():
    return READY.exists() and node_pid() is not None


def require_up():
    if not is_up():
        raise ClusterError("the cluster is not up; `make cluster-up` starts it")


def start(capabilities, folder, end_with_us):
    config.write_all(capabilities, folder)
    pki.make(config.PKI, STATE)
    make_cgroups(capabilities)
    archive = STATE / "pod.tar"
    images.write(product.pod_image(), archive)
    stdin = launch(end_with_us)
    link_node()
    wait("the components to start", lambda: node.STARTED.exists())
    load(archive)
    return stdin


def launch(end_with_us):
    """Starts the node's first process and records its id; returns the other end of its standard input."""
    command = ["unshare", *machine.NAMESPACES, "--fork", "--kill-child", "--propagation", "private"]
    command += [sys.executable, "-m", NODE_MARK] + (["--with-stdin"] if end_with_us else [])
    # Components get a minimal environment; above all, it names no proxy.
    environment = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    with open(STATE / "log" / "node.log", "wb") as log:
        unshare = subprocess.Popen(
            command, cwd=SOURCES, env=environment | {"PYTHONDONTWRITEBYTECODE": "1"}, start_new_session=True,
            stdin=subprocess.PIPE if end_with_us else subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip
    children = pathlib.Path(f"/proc/{unshare.pid}/task/{unshare.pid}/children")

    def first_child():
        if unshare.poll() is not None:
            raise ClusterError(f"unshare ended with {unshare.returncode}")
        return children.read_text().split()

    NODE_PID.write_text(wait("the node's first process", first_child)[0])
    return unshare.stdin


def link_node():
    """A link between host and node, and routes to its pods and Services: tests and people reach them directly."""
    run("ip", "link", "add", HOST_LINK, "type", "veth", "peer", "name", NODE_LINK, "netns", NODE_PID.read_text())
    run("ip", "address", "add", f"{HOST_IP}/24", "dev", HOST_LINK)
    run("ip", "link", "set", HOST_LINK, "up")
    for addresses in (POD_RANGE, SERVICE_RANGE):
        run("ip", "route", "add", addresses, "via", NODE_IP)


def make_cgroups(capabilities):
    if not capabilities.cgroup_v1:
        (root,) = capabilities.cgroup_roots
        wanted = " ".join(f"+{name}" for name in machine.CONTROLLERS)
        (root / "cgroup.subtree_control").write_text(wanted)
    for root in capabilities.cgroup_roots:
        own = root / CGROUP
        own.mkdir(exist_ok=True)
        if capabilities.cgroup_v1 and (own / "cpuset.cpus").exists():
            for name in ("cpuset.cpus", "cpuset.mems"):
                (own / name).write_text((root / name).read_text())


def wait_until_ready(folder):
    """Waits until a pod has become Ready: a node that is Ready may still be unable to start pods."""
    kubectl = [str(folder / "kubectl"), "--kubeconfig", str(KUBECONFIG)]

    def ask(*arguments, stdin=None):
        done = subprocess.run([*kubectl, *arguments], input=stdin, capture_output=True, text=True)
        return done.stdout if done.returncode == 0 else ""

    wait("the node to register", lambda: ask("get", "node", NODE, "--output=name"))
    wait("the default ServiceAccount", lambda: ask("get", "serviceaccount", "default", "-n", "kube-system", "-o", "name"))
    wait("a pod to be accepted", lambda: ask("apply", "--filename=-", stdin=json.dumps(FIRST_POD)))
    ready = ("wait", "pod/first", "--namespace=kube-system", "--for=condition=Ready", "--timeout=10s")
    wait("the first pod to be Ready", lambda: ask(*ready))
    ask("delete", "pod/first", "--namespace=kube-system", "--wait=false")


def load(archive):
    """Loads an image archive into the node."""
    run("ctr", "--address", str(CONTAINERD_SOCKET), "--namespace", "k8s.io", "images", "import", str(archive))


def enter(command):
    """The command that runs `command` on the node."""
    pid = node_pid()
    if pid is None:
        raise ClusterError("the cluster is not up; `make cluster-up` starts it")
    return ["nsenter", "--target", str(pid), "--net", "--mount", "--pid", "--uts", "--ipc", *command]


def node_pid():
    """Process id of the node's first process if it lives."""
    try:
        pid = int(NODE_PID.read_text())
        command = pathlib.Path(f"/proc/{pid}/cmdline").read_bytes()
    except (OSError, ValueError):
        return None
    return pid if NODE_MARK.encode() in command else None


def remove_all(cgroup_roots):
    """Ends the node if it lives, and removes whatever it, or one that crashed, has left."""
    if pid := node_pid():
        os.kill(pid, signal.SIGKILL)
        wait("the node to end", lambda: not os.path.exists(f"/proc/{pid}") or node_pid() is None, STOP_DEADLINE_S)
    if os.path.exists(f"/sys/class/net/{HOST_LINK}"):
        run("ip", "link", "delete", HOST_LINK)
    for root in cgroup_roots:
        remove_cgroup(root / CGROUP)
    if STATE.exists():
        shutil.rmtree(STATE)


def remove_cgroup(folder):
    """Removes a cgroup; the kernel allows that only a moment after its last process has ended."""

    def removed():
        for path, _, _ in os.walk(folder, topdown=False):
            try:
                os.rmdir(path)
            except OSError:
                continue
        return not folder.exists()

    wait(f"{folder} to be empty", removed, STOP_DEADLINE_S)


def failure_report():
    """The last lines of the logs of a cluster that did not start."""
    lines = []
    if node.ENDED.exists():
        lines.append(f"\nthe node ended: {node.ENDED.read_text()}")
    for log in sorted((STATE / "log").glob("*.log")):
        if tail := log.read_text(errors="replace").splitlines()[-8:]:
            lines += [f"\n---- {log.name}", *tail]
    return "\n".join(lines)


def wait(what, look, deadline_s=START_DEADLINE_S):
    """Calls a function until it returns something, and returns that."""
    end = time.monotonic() + deadline_s
    while not (found := look()):
        if time.monotonic() > end:
            raise ClusterError(f"waited {deadline_s} s for {what}")
        if node.ENDED.exists():
            raise ClusterError(f"waited for {what}")
        time.sleep(0.1)
    return found


@contextlib.contextmanager
def locked(path, by_whom, deadline_s=600):
    """Holds a lock of this machine."""
    with open(path, "a") as file:
        end, told = time.monotonic() + deadline_s, False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not told:
                    print(f"waiting for {by_whom}", file=sys.stderr, flush=True)
                    told = True
                if time.monotonic() > end:
                    raise ClusterError(f"waited {deadline_s} s for {by_whom}") from None
                time.sleep(0.5)
        yield


@contextlib.contextmanager
def used():
    """The cluster, for one user at a time; started if it is down, and then stopped afterwards."""
    with locked(USE_LOCK, "another run of tests on the cluster of this machine", deadline_s=3600):
        stdin = up(end_with_us=True)
        try:
            yield
        finally:
            if stdin is not None:
                down()


def run(*command):
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode != 0:
        raise ClusterError(f"`{' '.join(command)}`: {done.stderr.strip()}")

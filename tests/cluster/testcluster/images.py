"""Makes container images without a daemon: archives in the format of `docker save`, which containerd, kind and Docker
import.

An image here consists of executables, the shared libraries they need, CA certificates, and a user who is not root.
"""

import hashlib
import io
import json
import os
import pathlib
import platform
import re
import subprocess
import tarfile
from dataclasses import dataclass

from .errors import ClusterError

USER_ID = 65532
CERTIFICATES = pathlib.Path("/etc/ssl/certs/ca-certificates.crt")
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


@dataclass(frozen=True)
class Image:
    # `repository:tag`
    name: str
    executables: tuple
    entrypoint: tuple
    # Arguments of the entrypoint, unless a container gives its own.
    arguments: tuple = ()


def write(image, archive):
    """Writes the image's archive atomically: a concurrent reader sees the old archive or the new one."""
    executables = [pathlib.Path(path) for path in image.executables]
    if lacking := [str(path) for path in executables if not path.is_file()]:
        raise ClusterError(f"{', '.join(lacking)} is not there; build it first (make build)")
    # Two layers: libraries rarely change, and images with the same libraries share that layer.
    layers = [base_layer(shared_libraries(executables)), executables_layer(executables)]
    new = archive.with_name(f"{archive.name}.{os.getpid()}")
    archive.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(new, "w") as out:
        for name, content in archive_files(image, layers):
            add_file(out, name, content, 0o644)
    new.replace(archive)


def archive_files(image, layers):
    """Names and contents in a `docker save` archive."""
    digests = [hashlib.sha256(layer).hexdigest() for layer in layers]
    config = {
        "architecture": ARCHITECTURES[platform.machine()],
        "os": "linux",
        "config": {
            "Entrypoint": list(image.entrypoint),
            "Cmd": list(image.arguments),
            "User": f"{USER_ID}:{USER_ID}",
            "WorkingDir": "/",
            "Env": ["PATH=/usr/local/bin:/usr/bin:/bin", "HOME=/tmp"],
        },
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}" for digest in digests]},
        "history": [{"created_by": "libraries"}, {"created_by": "executables"}],
    }
    config_json = json.dumps(config).encode()
    config_name = hashlib.sha256(config_json).hexdigest() + ".json"
    names = [f"{digest}/layer.tar" for digest in digests]
    manifest = [{"Config": config_name, "RepoTags": [image.name], "Layers": names}]
    yield config_name, config_json
    yield from zip(names, layers)
    yield "manifest.json", json.dumps(manifest).encode()


def shared_libraries(executables):
    """What the dynamic loader needs for them, including the loader: (path in the image, file) for each."""
    found = {}
    for executable in executables:
        done = subprocess.run(["ldd", executable], capture_output=True, text=True)
        if "not a dynamic executable" in done.stdout + done.stderr or "statically linked" in done.stdout:
            continue
        if done.returncode != 0 or "not found" in done.stdout:
            raise ClusterError(f"ldd {executable}: {done.stdout}{done.stderr}")
        # `libm.so.6 => /lib/x86_64-linux-gnu/libm.so.6 (0x…)` and `/lib64/ld-linux-x86-64.so.2 (0x…)`
        for path in re.findall(r"(/\S+) \(0x", done.stdout):
            found[path] = pathlib.Path(path).resolve()
    return sorted(found.items())


def base_layer(libraries):
    layer = Layer()
    layer.folder("tmp", 0o1777)
    layer.file("etc/passwd", f"root:x:0:0::/:/none\ndisagg:x:{USER_ID}:{USER_ID}::/tmp:/none\n".encode(), 0o644)
    layer.file("etc/group", f"root:x:0:\ndisagg:x:{USER_ID}:\n".encode(), 0o644)
    layer.file("etc/nsswitch.conf", b"hosts: files dns\n", 0o644)
    if CERTIFICATES.is_file():
        layer.file(str(CERTIFICATES).lstrip("/"), CERTIFICATES.read_bytes(), 0o644)
    for path, file in libraries:
        layer.file(path.lstrip("/"), file.read_bytes(), 0o755)
    return layer.bytes()


def executables_layer(executables):
    layer = Layer()
    for executable in executables:
        layer.file(f"usr/local/bin/{executable.name}", executable.read_bytes(), 0o755)
    return layer.bytes()


class Layer:
    """A tar whose bytes depend only on names, modes and contents."""

    def __init__(self):
        self.buffer = io.BytesIO()
        self.tar = tarfile.open(fileobj=self.buffer, mode="w")
        self.folders = set()

    def folder(self, name, mode=0o755):
        if name in self.folders:
            return
        if parent := os.path.dirname(name):
            self.folder(parent)
        self.folders.add(name)
        info = tarfile.TarInfo(name)
        info.type, info.mode = tarfile.DIRTYPE, mode
        self.tar.addfile(info)

    def file(self, name, content, mode):
        self.folder(os.path.dirname(name))
        add_file(self.tar, name, content, mode)

    def bytes(self):
        self.tar.close()
        return self.buffer.getvalue()


def add_file(tar, name, content, mode):
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(content), mode
    tar.addfile(info, io.BytesIO(content))

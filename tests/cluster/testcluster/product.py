"""Archives of all images that the tests use: the product's, from the executables that cargo built in profile `ci`, and
the small one with which the start of the cluster is checked."""

import os
import re

from . import binaries
from .images import Image, write
from .layout import POD_IMAGE, ROOT

TARGET = ROOT / "target" / "ci"
# Where the archives go. Nothing else is there.
ARCHIVES = ROOT / "target" / "images"

# The chart's defaults, so that `helm install` without any value finds the images on the node. The end-to-end tests also
# read the variable.
REGISTRY = "localhost"


def tag():
    """The version of the workspace, unless `DISAGG_E2E_TAG` says otherwise."""
    [version] = re.findall(r'(?m)^version = "(.*)"$', (ROOT / "Cargo.toml").read_text())
    return os.environ.get("DISAGG_E2E_TAG") or version


# Each is the name of an executable and of its image.
EXECUTABLES = ("disagg-worker", "disagg-router", "disagg-operator", "disagg-load")


def pod_image():
    return Image(POD_IMAGE, (binaries.cluster() / "pod",), ("/usr/local/bin/pod",), ("pause",))


def product_image(executable):
    return Image(f"{REGISTRY}/{executable}:{tag()}", (TARGET / executable,), (f"/usr/local/bin/{executable}",))


def write_images():
    """Paths of the archives."""
    made = {"pod": pod_image()} | {executable: product_image(executable) for executable in EXECUTABLES}
    archives = []
    for name, image in made.items():
        archives.append(ARCHIVES / f"{name}.tar")
        write(image, archives[-1])
    return archives

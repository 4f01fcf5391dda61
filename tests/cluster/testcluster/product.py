"""Archives of all images that the tests use: the product's, from the executables that cargo built in profile `ci`, and
the small one that the cluster is tried out with."""

import os

from . import binaries
from .images import Image, write
from .layout import POD_IMAGE, ROOT

TARGET = ROOT / "target" / "ci"
# Where the archives go. Nothing else is there.
ARCHIVES = ROOT / "target" / "images"

REGISTRY = "localhost"
TAG = os.environ.get("DISAGG_IMAGE_TAG", "e2e")
# Each is the name of an executable and of its image.
EXECUTABLES = ("disagg-worker", "disagg-router", "disagg-operator", "disagg-load")


def pod_image():
    return Image(POD_IMAGE, (binaries.cluster() / "pod",), ("/usr/local/bin/pod",), ("pause",))


def product_image(executable):
    return Image(f"{REGISTRY}/{executable}:{TAG}", (TARGET / executable,), (f"/usr/local/bin/{executable}",))


def write_images():
    """Paths of the archives."""
    made = {"pod": pod_image()} | {executable: product_image(executable) for executable in EXECUTABLES}
    archives = []
    for name, image in made.items():
        archives.append(ARCHIVES / f"{name}.tar")
        write(image, archives[-1])
    return archives

"""An image that stands for the one in the Dockerfiles' FROM, made here: from no registry.

It imitates python:3.12-slim in what counts for them: Debian; `python` in /usr/local/bin; pip there, too, by pip,
so that pip can take it away; a standard library that is not compiled.
"""

from __future__ import annotations

import ast
import platform
import re
import subprocess
import sys
from pathlib import Path

from tests.images.buildah import Buildah

_INCLUDED = "ca-certificates,python3,python3-pip-whl"
_LIKE_PYTHON_SLIM = """
set -eu
rm -f /usr/lib/python3*/EXTERNALLY-MANAGED
for wheel in /usr/share/python-wheels/pip-*.whl; do
    PYTHONPATH=$wheel python3 -m pip install --quiet --no-index --no-cache-dir --root-user-action=ignore "$wheel"
done
ln -s /usr/bin/python3 /usr/local/bin/python3
ln -s /usr/bin/python3 /usr/local/bin/python
rm -rf /usr/share/python-wheels /var/cache/apt/* /var/lib/apt/lists/*
find / -xdev -name '*.pyc' -delete
"""
_OF_THIS_MACHINE = {"cert", "client-cert", "cache-dir", "constraint", "find-links", "log"}
"""Options of pip that name files here."""
_CERTIFICATES = "/etc/pip-certificates.pem"


def make_base(buildah: Buildah, folder: Path, dockerfile: Path) -> str:
    """Makes it and gives it the name that the Dockerfile begins from. By this machine's own Debian mirror."""
    found = re.search(r"^ARG BASE_IMAGE=(\S+)$", dockerfile.read_text(), re.MULTILINE)
    assert found is not None
    release = platform.freedesktop_os_release()["VERSION_CODENAME"]
    listed = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(CODENAME) $(SITE)", "Created-By: Packages"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    mirror = next(
        site for name, _, site in (line.partition(" ") for line in listed.splitlines()) if name == release
    )
    root = folder / "base"
    subprocess.run(
        ["debootstrap", "--variant=minbase", f"--include={_INCLUDED}", release, str(root), mirror], check=True
    )
    subprocess.run(["chroot", str(root), "sh", "-c", _LIKE_PYTHON_SLIM], check=True)
    container = buildah.say("from", "scratch")
    buildah.do("add", "--quiet", container, str(root), "/")
    buildah.do("config", "--env", "PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin", container)
    buildah.do("commit", "--quiet", "--rm", container, found[1])
    return found[1]


def pip_mounts(folder: Path) -> list[str]:
    """Volumes for a build, with which pip finds what it finds on this machine: mirror, proxy, certificates."""
    lines = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], check=True, capture_output=True, text=True
    ).stdout.splitlines()
    told = {name.rpartition(".")[2]: ast.literal_eval(text) for name, _, text in (x.partition("=") for x in lines)}
    known = {name: text for name, text in told.items() if name not in _OF_THIS_MACHINE and "file:" not in text}
    mounts = []
    if certificates := told.get("cert"):
        known["cert"] = _CERTIFICATES
        mounts.append(f"{certificates}:{_CERTIFICATES}:ro")
    configuration = folder / "pip.conf"
    configuration.write_text("[global]\n" + "".join(f"{name} = {text}\n" for name, text in known.items()))
    return [*mounts, f"{configuration}:/etc/pip.conf:ro"]

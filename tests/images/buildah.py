"""buildah with a store of its own, and commands run in an image as a kubelet runs them: the root file system can't
be written, no capabilities, no new privileges. Processes and network are this machine's."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[2]
_ENTER = """
set -eu
root=$1; shift
mount --bind "$root" "$root"
mount -o remount,bind,ro "$root"
for system in /dev /proc; do mount --rbind "$system" "$root$system"; done
while [ "$1" != -- ]; do mount --bind "$1" "$root$2"; shift 2; done
shift
exec chroot "$root" setpriv --no-new-privs --bounding-set=-all --inh-caps=-all --ambient-caps=-all \\
    --clear-groups "$@"
"""


class Buildah:
    """The command. Its images and containers live in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.command = ["buildah", "--root", f"{folder}/storage", "--runroot", f"{folder}/run"]

    def do(self, *arguments: str) -> None:
        """Runs a subcommand."""
        subprocess.run([*self.command, *arguments], check=True, stdout=subprocess.DEVNULL)

    def say(self, *arguments: str) -> str:
        """Runs a subcommand and gives what it prints."""
        done = subprocess.run([*self.command, *arguments], check=True, stdout=subprocess.PIPE, text=True)
        return done.stdout.strip()


class Image:
    """One that is built, its files mounted at `root`."""

    def __init__(self, buildah: Buildah, name: str) -> None:
        inspected = json.loads(buildah.say("inspect", "--type", "image", name))
        self.config: Mapping[str, Any] = inspected["OCIv1"]["config"]
        self.layers = len(inspected["OCIv1"]["rootfs"]["diff_ids"])
        self.root = Path(buildah.say("mount", buildah.say("from", "--pull-never", name)))

    def command(
        self,
        *arguments: str,
        user: str | None = None,
        mounts: Mapping[Path, str] | None = None,
        environment: Mapping[str, str] | None = None,
        entrypoint: tuple[str, ...] | None = None,
    ) -> list[str]:
        """How to run it: `arguments` in place of its CMD, as `user` (uid:gid) in place of its USER. What is at the
        keys of `mounts` is seen at their values. The process keeps its id, so that it can be sent signals."""
        uid, gid = (user or self.config["User"]).split(":")
        binds = []
        for source, target in (mounts or {}).items():
            place = self.root / target.removeprefix("/")
            if source.is_dir():
                place.mkdir(parents=True, exist_ok=True)
            elif not place.exists():
                place.parent.mkdir(parents=True, exist_ok=True)
                place.touch()
            binds += [str(source), target]
        variables = [*self.config["Env"], *(f"{name}={text}" for name, text in (environment or {}).items())]
        program = [*(entrypoint or self.config["Entrypoint"]), *(arguments or self.config["Cmd"])]
        return [
            *("unshare", "--mount", "sh", "-c", _ENTER, "sh", str(self.root), *binds, "--"),
            *("--reuid", uid, "--regid", gid, "env", "-i", *variables, *program),
        ]

    def run(self, *arguments: str, **how: Any) -> subprocess.CompletedProcess[str]:
        """Runs it to its end; see `command`."""
        return subprocess.run(
            self.command(*arguments, **how), check=False, capture_output=True, text=True, timeout=60
        )

    def python(self, source: str, **how: Any) -> str:
        """What a Python program prints in it; its failure fails the test."""
        done = self.run(source, entrypoint=("python", "-c"), **how)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def size(self, path: str = "") -> int:
        """Bytes in its files, or in those below a path."""
        return sum(
            file.lstat().st_size for file in (self.root / path).rglob("*") if file.is_symlink() or file.is_file()
        )


@contextmanager
def running(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    """A program that is asked to stop at the end, and must do so in order."""
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
            process.send_signal(signal.SIGTERM)
            _, log = process.communicate(timeout=30)
            assert process.returncode == 0, log
            assert "Traceback" not in log
        finally:
            process.kill()

#!/bin/sh
# packages.sh EXTRAS [CLASS...]: makes /opt/gpumon, a virtual environment that has the packages of
# `gpumon[EXTRAS]` in the versions of constraints.txt, and not yet gpumon itself, without what the program
# never imports. The CLASSes are what it takes from kubernetes.client.
set -eu

extras=$1
shift
venv=/opt/gpumon
python -m venv --without-pip "$venv"
pip="python -m pip --python $venv/bin/python"

# By a gpumon of nothing but its name: so this layer changes with the packages only, not with the program.
mkdir -p /nothing/src/gpumon
cp pyproject.toml /nothing/
echo '__version__ = "0"' > /nothing/src/gpumon/__init__.py
touch /nothing/README.md
$pip install --no-compile -c constraints.txt "/nothing[$extras]"
$pip uninstall --yes gpumon

# The kubernetes package is 75 MB: a file for each of 900 classes, loaded when the class is asked for, and all
# of it once more for asyncio. What credentials, connections and the CLASSes load is kept.
"$venv/bin/python" -B - "$@" <<'END'
import sys
from pathlib import Path

import kubernetes.client.rest
import kubernetes.config

for name in sys.argv[1:]:
    getattr(kubernetes.client, name)
loaded = {getattr(module, "__file__", None) for module in sys.modules.values()}
for file in Path(kubernetes.__file__).parent.rglob("*.py"):
    if str(file) not in loaded:
        file.unlink()
END
site=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
find "$site/kubernetes" -depth -type d -empty -delete

# Needed by its asyncio part alone, but for multidict, which a simulated kubelet plugin needs, too.
$pip uninstall --yes aiohttp aiohttp-retry aiohappyeyeballs aiosignal attrs frozenlist propcache yarl
[ -d "$site/grpclib" ] || $pip uninstall --yes multidict

# Tests, commands of the packages, and what only compilers and type checkers read.
find "$site" -type d -name tests -prune -exec rm -r {} +
find "$site" -type f \( -name '*.pyi' -o -name '*.pyx' -o -name '*.pxd' \) -delete
find "$venv/bin" -type f -delete

# The image may run read-only, so that Python can't do this later. The files are compared with nothing at
# the start: no builder's time stamps can make them stale.
"$venv/bin/python" -m compileall -q --invalidation-mode unchecked-hash "$site"

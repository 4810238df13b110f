"""Both images as a cluster runs them: read-only, without capabilities. Opt-in: GPUMON_TEST_IMAGES=1."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from gpumon import __version__
from tests.agent.kubeapi import KubeApi
from tests.images.buildah import REPOSITORY, Image, running
from tests.processes import free_port, until
from tests.samples import sample
from tests.server.reviewapi import Known, ReviewApi, jwt

_TOOLS = ("buildah", "debootstrap", "make", "setpriv", "unshare")
_MISSING = [tool for tool in _TOOLS if shutil.which(tool) is None]
pytestmark = [
    pytest.mark.images,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(
        os.environ.get("GPUMON_TEST_IMAGES") != "1", reason="set GPUMON_TEST_IMAGES=1 to build images"
    ),
    pytest.mark.skipif(bool(_MISSING), reason=f"not installed: {', '.join(_MISSING)}"),
    pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="images are built as root"),
]

CHART_AGENT_USER = "0:0"
SCENARIO = """
[[node]]
match = "gpu-node-a"
[[node.gpus]]
model = "h100-sxm"
count = 2
"""
UNCOMPILED = """
import importlib, os, pkgutil, sys, gpumon
for module in pkgutil.walk_packages(gpumon.__path__, "gpumon."):
    if not module.name.startswith("gpumon.{other}") and module.name not in ("gpumon.__main__", "gpumon.demo"):
        importlib.import_module(module.name)
import kubernetes.client.rest, kubernetes.config
for module in list(sys.modules.values()):
    if getattr(module, "__file__", None) and (compiled := getattr(module, "__cached__", None)):
        if not os.path.exists(compiled):
            print(module.__name__)
"""


def answer(url: str) -> httpx.Response | None:
    """None while nobody listens."""
    try:
        return httpx.get(url, timeout=5, trust_env=False)
    except httpx.TransportError:
        return None


def ready(url: str) -> bool:
    """Whether it answers 200."""
    got = answer(url)
    return got is not None and got.status_code == 200


@contextmanager
def running_server(
    server: Image, folder: Path, mounts: Mapping[Path, str] | None = None, **more: str
) -> Iterator[str]:
    """Its address. Data in `folder`, which is its own user's."""
    os.chown(folder, 10001, 10001)
    port = free_port()
    environment = {"GPUMON_SERVER__SERVER__PORT": str(port)} | more
    with running(server.command(mounts={folder: "/data", **(mounts or {})}, environment=environment)):
        url = f"http://127.0.0.1:{port}"
        until(lambda: ready(f"{url}/ready"))
        yield url


def agent_environment(server_port: int, status_port: int) -> dict[str, str]:
    return {
        "NODE_NAME": "gpu-node-a",
        "GPUMON_FAKE_NVML": "/etc/gpumon-mock/scenario.toml",
        "GPUMON_AGENT__SERVER__SERVER_HOST": "http://127.0.0.1",
        "GPUMON_AGENT__SERVER__SERVER_PORT": str(server_port),
        "GPUMON_AGENT__MONITORING__INTERVAL_SECONDS": "0.5",
        "GPUMON_AGENT__NETWORK__BATCH_INTERVAL": "0.5",
        "GPUMON_AGENT__STATUS__PORT": str(status_port),
    }


@pytest.fixture
def scenario(tmp_path: Path) -> Path:
    folder = tmp_path / "mock"
    folder.mkdir(mode=0o755)
    (folder / "scenario.toml").write_text(SCENARIO)
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    return folder


def test_an_image_tells_its_version_and_its_commands_without_a_cluster(image: Image) -> None:
    assert image.run("--version").stdout == f"gpumon, version {__version__}\n"
    assert image.config["Labels"]["org.opencontainers.image.version"] == __version__
    for arguments in ("--help",), ("fields",), ("config", "agent"), ("config", "server"):
        assert image.run(*arguments).returncode == 0


def test_an_image_runs_as_a_user_with_a_number_and_no_rights(image: Image) -> None:
    assert image.config["User"] == "10001:10001"
    assert image.python("import os; print(os.getuid(), os.getgid(), os.getgroups())") == "10001 10001 []\n"


def test_nothing_is_left_in_an_image_to_install_or_compile_with(image: Image) -> None:
    tools = ("pip", "pip3", "gcc", "cc", "c++", "make", "ld", "git", "curl")
    missing = image.python(f"import shutil; print([t for t in {tools} if shutil.which(t)])")
    assert missing == "[]\n"
    for name in "pip", "setuptools", "wheel", "pkg_resources", "ensurepip", "aiohttp":
        found = image.python(f"import importlib.util; print(importlib.util.find_spec({name!r}))")
        assert found == "None\n", name
    for left in "root/.cache", "build", "nothing", "program":
        assert not (image.root / left).exists()


@pytest.mark.parametrize(("part", "other"), [("agent", "server"), ("server", "agent")])
def test_all_that_an_image_may_import_is_there_and_compiled(
    images: Mapping[str, Image], part: str, other: str
) -> None:
    assert images[part].python(UNCOMPILED.replace("{other}", other)) == ""


@pytest.mark.parametrize(("part", "folder"), [("agent", "/var/spool/gpumon"), ("server", "/data")])
def test_an_image_has_its_own_settings_where_it_looks_for_them_and_a_folder_of_its_own_user(
    images: Mapping[str, Image], part: str, folder: str
) -> None:
    image = images[part]
    named = next(
        text for name, _, text in (x.partition("=") for x in image.config["Env"]) if name == "GPUMON_CONFIG"
    )
    own = next((REPOSITORY / "images" / part).glob("*.ini"))
    assert (image.root / named.removeprefix("/")).read_bytes() == own.read_bytes()
    status = (image.root / folder.removeprefix("/")).stat()
    assert (status.st_uid, status.st_gid, status.st_mode & 0o7777) == (10001, 0, 0o770)


@pytest.mark.parametrize("user", [CHART_AGENT_USER, None])
def test_an_agent_delivers_simulated_gpus_to_a_server_from_read_only_images(
    agent: Image, server: Image, scenario: Path, data: Path, tmp_path: Path, user: str | None
) -> None:
    spool = tmp_path / "spool"
    spool.mkdir(mode=0o777)
    spool.chmod(0o777)  # as an emptyDir
    status_port = free_port()
    with running_server(server, data) as url:
        command = agent.command(
            user=user,
            mounts={scenario: "/etc/gpumon-mock", spool: "/var/spool/gpumon"},
            environment=agent_environment(int(url.rpartition(":")[2]), status_port),
        )
        with running(command):
            until(lambda: ready(f"http://127.0.0.1:{status_port}/readyz"))
            gpus = until(lambda: httpx.get(f"{url}/api/gpus", trust_env=False).json()["data"])
        assert [gpu["node"] for gpu in gpus] == ["gpu-node-a"] * 2
    assert list(data.glob("gpu_metrics_*.csv"))


def test_an_agent_without_a_spool_to_write_to_starts_all_the_same(agent: Image, scenario: Path) -> None:
    status_port = free_port()
    command = agent.command(
        user=CHART_AGENT_USER,
        mounts={scenario: "/etc/gpumon-mock"},
        environment=agent_environment(free_port(), status_port),
    )
    with running(command):
        until(lambda: answer(f"http://127.0.0.1:{status_port}/healthz"))


def test_a_file_mounted_over_the_images_own_settings_takes_their_place(server: Image, tmp_path: Path) -> None:
    folder, data = tmp_path / "config", tmp_path / "elsewhere"
    folder.mkdir()
    data.mkdir()
    os.chown(data, 10001, 10001)
    port = free_port()
    (folder / "server_config.ini").write_text(
        f"[SERVER]\nport = {port}\n[STORAGE]\noutput_directory = /mnt\n[LOGGING]\nlog_file =\n"
    )
    with running(server.command(mounts={folder: "/etc/gpumon", data: "/mnt"})):
        until(lambda: ready(f"http://127.0.0.1:{port}/ready"))
        assert any(data.iterdir())


def test_the_documentation_is_shown_without_the_internet(server: Image, data: Path) -> None:
    with running_server(server, data) as url:
        page = httpx.get(f"{url}/docs", trust_env=False).text
        script = page.partition('<script src="')[2].partition('"')[0]
        assert httpx.get(f"{url}{script}", trust_env=False).status_code == 200


def test_the_agents_doctor_reaches_the_kubernetes_api_by_what_is_left_of_the_package(
    agent: Image, scenario: Path, tmp_path: Path
) -> None:
    with KubeApi() as api:
        api.nodes = {"gpu-node-a": api.nodes["node-1"]}
        kubeconfig = Path(api.kubeconfig(tmp_path / "kubeconfig", token="one"))
        kubeconfig.chmod(0o644)
        done = agent.run(
            *("doctor", "--json"),
            mounts={scenario: "/etc/gpumon-mock", kubeconfig: "/mnt/kubeconfig"},
            environment=agent_environment(free_port(), 0)
            | {"GPUMON_AGENT__KUBERNETES__KUBECONFIG": "/mnt/kubeconfig"},
        )
        findings = {finding["name"]: finding for finding in json.loads(done.stdout)["findings"]}
        assert findings["pod-api"]["status"] == "ok", findings["pod-api"]


def test_the_server_has_kubernetes_review_tokens_by_what_is_left_of_the_package(
    server: Image, data: Path, tmp_path: Path
) -> None:
    with ReviewApi() as api:
        api.tokens[jwt("agent")] = Known()
        kubeconfig = Path(api.kubeconfig(tmp_path / "kubeconfig"))
        kubeconfig.chmod(0o644)
        settings = {
            "GPUMON_SERVER__AUTH__MODE": "serviceAccount",
            "GPUMON_SERVER__AUTH__KUBECONFIG": "/mnt/kubeconfig",
            "GPUMON_SERVER__AUTH__SERVICE_ACCOUNTS": "monitoring/gpumon-agent",
        }
        with running_server(server, data, {kubeconfig: "/mnt/kubeconfig"}, **settings) as url:
            for token, status in (jwt("agent"), 200), (jwt("stranger"), 401):
                headers = {"Authorization": f"Bearer {token}"}
                got = httpx.post(f"{url}/api/receive-data", json=[sample()], headers=headers, trust_env=False)
                assert got.status_code == status, got.text


def test_sizes(images: Mapping[str, Image], capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        for name, image in images.items():
            whole, own = image.size(), image.size("opt/gpumon")
            print(f"\ngpumon-{name}: {whole / 1e6:.0f} MB, of which gpumon and its packages {own / 1e6:.0f} MB")
            assert own < {"agent": 45e6, "server": 130e6}[name]

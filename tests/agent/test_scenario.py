"""What a scenario may say, and what is said about one that is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpumon.agent.fakenvml import CALLS
from gpumon.agent.fakenvml.loadcurve import Bursts, Load, Steady, Wave
from gpumon.agent.fakenvml.scenario import Scenario
from gpumon.agent.fakenvml.scenario_file import load, models, parse
from gpumon.errors import SettingsError

PACKAGED = Path(__file__).parents[2] / "src" / "gpumon" / "agent" / "fakenvml"
NODE = '[[node]]\nmatch = "*"\n'
T4 = f'{NODE}[[node.gpus]]\nmodel = "t4"\n'
A100 = f'{NODE}[[node.gpus]]\nmodel = "a100-sxm"\n'
FAULT = f'{T4}[[node.faults]]\ncall = "nvmlDeviceGetName"\n'

WRONG = [
    ("", "the file: .*`node`.*Keys: node"),
    ("node = ", "not valid TOML"),
    ("[[node]]", r"node\[0\]: .*`match`.*Keys: match \(glob of node names\)"),
    (f"{NODE}colour = 1", r"node\[0\]: .*`colour`.*Keys: .*init_error \(what nvmlInit"),
    (f"{NODE}gpus = 3", r"node\[0\]\.gpus: .*Wanted: the GPUs"),
    (f'{NODE}[[node.gpus]]\nmodel = "h100"', r"gpus\[0\]\.model: .*did you mean 'h100-sxm'.*vgpu-a40-8q"),
    (f'{T4}count = "two"', r"gpus\[0\]\.count: .*`int`, got `str`.*how many"),
    (f"{T4}count = 0", r"gpus\[0\]\.count: .*>= 1"),
    (f"{T4}utilization = 120", r"gpus\[0\]\.utilization: .*<= 100.*number in %"),
    (f'{T4}utilization = {{ shape = "saw" }}', r"utilization\.shape: .*'saw'.*bursts"),
    (f'{T4}utilization = {{ shape = "wave", mean = 3, amp = 2 }}', "`amp`.*Shape 'wave': Keys: mean .*swing"),
    (f'{T4}utilization = {{ shape = "wave", mean = 80, swing = 50 }}', "mean - swing must be at least 0"),
    (f"{T4}utilization = {{ mean = 80 }}", "`shape`.*Shape 'bursts': Keys: busy"),
    (f"{T4}lost = {{ from = 1, until = 3 }}", r"lost: .*`until`.*Keys: from .*to"),
    (f"{T4}lost = 2026-01-01T00:00:00Z", r"lost: .*Wanted: true, or \{ from, to \}"),
    (f"{T4}lost = {{ from = 2026-01-01T00:00:00 }}", r"lost\.from: has no zone; write it with Z"),
    (f'{T4}mig = ["1g.5gb"]', r"gpus\[0\]\.mig: t4 can't be split"),
    (f'{A100}mig = ["1g.10gb"]', r"mig\[0\]: '1g.10gb' is not known; .*3g\.20gb"),
    (f'{A100}mig = ["4g.20gb", "4g.20gb"]', r"mig: needs 8 compute slices; a100-sxm has 7"),
    (f"{T4}memory_used_mib = 99999", r"memory_used_mib: is more than the 14926 MiB"),
    (f"{T4}[[node.processes]]", r"processes\[0\]: write either pid or cmdline"),
    (f'{T4}[[node.processes]]\npid = 1\ncmdline = "x"', r"processes\[0\]: write either pid or cmdline"),
    (f"{T4}[[node.processes]]\npid = -1", r"processes\[0\]\.pid: .*>= 1"),
    (f'{T4}[[node.processes]]\ncmdline = "("', r"cmdline: is no regular expression"),
    (f'{T4}[[node.processes]]\ncmdline = "({{uuid}}"', r"processes\[0\]\.cmdline: is no regular expression"),
    (
        f'{T4}[[node.processes]]\npid = 1\ngpu = "each"',
        r"processes\[0\]\.gpu: can't be each of one pid; .*cmdline",
    ),
    (f'{T4}[[node.processes]]\ncmdline = "x"\ngpu = "all"', r"gpu: .*'all'.*Wanted: index of the GPU.*\"each\""),
    (f'{NODE}[[node.processes]]\ncmdline = "x"\ngpu = "each"', r"processes\[0\]\.gpu: this node has no GPUs"),
    (
        f'{A100}mig = ["1g.5gb"]\n[[node.processes]]\ncmdline = "x"\ngpu = "each"',
        r"processes\[0\]\.gpu: finds no GPU: none of this node is whole; write mig, or change",
    ),
    (
        f'{A100}mig = ["", "1g.5gb"]\n[[node.processes]]\ncmdline = "x"\ngpu = "each"\nmig = 0',
        r"processes\[0\]\.gpu: finds no GPU: none of this node has an instance 0; write another mig",
    ),
    (f"{T4}[[node.processes]]\npid = 1\ngpu = 3", r"processes\[0\]\.gpu: 3 is no GPU.*index below 1"),
    (
        f"{T4}[[node.processes]]\npid = 1\nutilization = 120",
        r"processes\[0\]\.utilization: .*<= 100.*its own load",
    ),
    (
        f'{T4}[[node.processes]]\npid = 1\nutilization = {{ shape = "saw" }}',
        r"utilization\.shape: .*'saw'.*bursts",
    ),
    (f"{T4}[[node.processes]]\npid = 1\nfrom = 2026-01-01T00:00:00", r"processes\[0\]\.from: has no zone"),
    (f"{T4}[[node.processes]]\npid = 1\nto = true", r"processes\[0\]\.to: .*Wanted: seconds after the start"),
    (f"{T4}[[node.processes]]\npid = 1\nfrom = 5\nto = 5", r"processes\[0\]: ends before it begins"),
    (f"{T4}[[node.processes]]\npid = 1\nmig = 0", r"processes\[0\]\.mig: names no instance"),
    (f'{T4}[[node.processes]]\npid = 1\nkind = "vulkan"', r"processes\[0\]\.kind: .*'vulkan'"),
    (f'{A100}mig = ["1g.5gb"]\n[[node.processes]]\npid = 1', r"processes\[0\]: has no mig"),
    (f"{T4}[[node.events]]\nxid = 31", r"events\[0\]: .*`at`.*Keys: gpu"),
    (f'{T4}[[node.events]]\nxid = 31\nat = "noon"', r"events\[0\]\.at: .*Wanted: seconds after the start"),
    (f"{T4}[[node.events]]\nxid = 31\nat = 2026-01-01T00:00:00", r"events\[0\]\.at: has no zone"),
    (f"{NODE}[[node.events]]\nxid = 31\nat = 1", r"events\[0\]\.gpu: this node has no GPUs"),
    (f'{NODE}[[node.faults]]\ncall = "nvmlGetPower"', r"call: 'nvmlGetPower' matches no .*PowerUsage"),
    (FAULT, r"faults\[0\]: does nothing; write error, delay_seconds"),
    (f'{FAULT}error = "GPUisLost"', r"faults\[0\]\.error: .*did you mean 'GpuIsLost'"),
    (f'{FAULT}error = "Unknown"\ngpu = 7', r"faults\[0\]\.gpu: 7 is no GPU"),
    (f'{FAULT}error = "Unknown"\nto = 2026-01-01T00:00:00', r"faults\[0\]\.to: has no zone"),
    (f'{FAULT}error = "Unknown"\nevery = 0', r"faults\[0\]\.every: .*>= 1.*every n-th"),
    (f'{NODE}init_error = "Nope"', r"init_error: 'Nope' is not known; .*DriverNotLoaded"),
    (f'{NODE}missing_calls = ["nvmlFoo"]', r"missing_calls\[0\]: 'nvmlFoo' matches no function"),
    (f"{NODE}driver_loaded_at = 2026-01-01T00:00:00", "driver_loaded_at: has no zone"),
]


def read(text: str) -> Scenario:
    return parse(text, "fleet.toml", CALLS)


@pytest.mark.parametrize(("text", "message"), WRONG)
def test_a_wrong_scenario_is_told_by_file_key_and_remedy(text: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message) as caught:
        read(text)
    assert str(caught.value).startswith("fleet.toml")


def test_the_first_entry_that_matches_a_node_counts() -> None:
    scenario = read(
        '[[node]]\nmatch = "gpu-a"\n[[node.gpus]]\nmodel = "t4"\n'
        '[[node]]\nmatch = "gpu-*"\n[[node.gpus]]\nmodel = "l4"\n'
    )
    models = {
        name: entry.gpus[0].model if (entry := scenario.entry(name)) is not None else None
        for name in ("gpu-a", "gpu-b", "cpu-a")
    }
    assert models == {"gpu-a": "t4", "gpu-b": "l4", "cpu-a": None}


def test_a_file_that_is_not_text_is_told(tmp_path: Path) -> None:
    path = tmp_path / "fleet.toml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SettingsError, match=r"fleet\.toml: it is not UTF-8"):
        load(path, CALLS)


def test_every_model_can_be_simulated() -> None:
    assert set(models()) == {file.stem for file in (PACKAGED / "models").glob("*.toml")}
    assert set(models()) >= {"h100-sxm", "a100-sxm", "t4", "l4", "rtx-4090", "gb10", "vgpu-a40-8q"}
    for name, model in models().items():
        read(f'{NODE}[[node.gpus]]\nmodel = "{name}"')
        assert model.memory_idle_mib + model.memory_reserved_mib < model.memory_mib
        assert model.idle_watts <= model.limit_watts


def test_the_demo_is_a_fleet_of_unlike_nodes_with_uneven_load() -> None:
    demo = load(PACKAGED / "demo.toml", CALLS)
    entries = [demo.entry(f"gpu-node-{letter}") for letter in "abcdef"]
    assert all(entry is not None and entry.gpus for entry in entries)
    names = [tuple(gpu.model for gpu in entry.gpus) for entry in entries[:5] if entry is not None]
    assert len(set(names)) == 5
    assert demo.entry("gpumon-control-plane") is None


LOADS = [
    Steady(percent=37),
    Wave(mean=50, swing=50, period_seconds=60),
    Wave(mean=20, swing=5, period_seconds=7),
    Bursts(busy=90, idle=10, period_seconds=50, duty=0.3),
]


@pytest.mark.parametrize("load", LOADS, ids=repr)
@pytest.mark.parametrize("phase", [0.0, 0.4321])
def test_a_load_stays_in_its_bounds_and_its_integral_is_the_sum_of_it(load: Load, phase: float) -> None:
    start, step, steps = 1_770_000_000.0, 0.01, 20_000
    middles = [load.at(start + (i + 0.5) * step, phase) for i in range(steps)]
    assert 0 <= min(middles) <= max(middles) <= load.peak + 1e-9
    assert max(middles) >= load.peak - 0.1
    whole = load.integral(start, start + steps * step, phase)
    assert whole == pytest.approx(sum(middles) * step, rel=1e-3)
    parts = load.integral(start, start + 33.3, phase) + load.integral(start + 33.3, start + 200, phase)
    assert parts == pytest.approx(whole, rel=1e-6)

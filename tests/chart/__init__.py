from pathlib import Path

CHART = Path(__file__).parents[2] / "charts" / "gpumon"

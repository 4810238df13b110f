"""What `helm test` runs: samples of GPUs have arrived, are recent, and a query answers from them."""

import http.client
import json
import os
import ssl
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

URL = os.environ["GPUMON_URL"]
WAIT_SECONDS = float(os.environ.get("GPUMON_WAIT_SECONDS", "180"))
PAUSE_SECONDS = 2.0


def ask(path):
    """The data of an answer. Raises OSError, and ValueError where it is no answer of gpumon."""
    request = urllib.request.Request(URL + path)
    if token_file := os.environ.get("GPUMON_READ_TOKEN_FILE"):
        request.add_header("Authorization", "Bearer " + Path(token_file).read_text().split()[0])
    context = None
    if URL.startswith("https:"):
        context = ssl.create_default_context(cafile=os.environ.get("GPUMON_CA_FILE"))
    with urllib.request.urlopen(request, timeout=20, context=context) as response:
        answer = json.load(response)
    if answer.get("success") is not True:
        raise ValueError(f"{path} answers {answer}")
    return answer["data"]


def arrived():
    """What has arrived, as sentences; raises ValueError with what is missing."""
    gpus = [gpu for gpu in ask("/api/gpus") if not gpu["stale"]]
    if not gpus:
        raise ValueError(
            "the server answers, but no GPU has sent a sample: are there agents (kubectl get daemonset)? "
            "What do their logs and `gpumon doctor` in them say?"
        )
    usage = ask("/api/usage?group_by=node&last=15m")["groups"]
    measured = sorted({group["group"]["node"] for group in usage if (group["coverage"] or 0) > 0})
    if not measured:
        raise ValueError(f"{len(gpus)} GPUs have sent samples, but /api/usage has none of them yet")
    pods = [pod for pod in ask("/api/pods") if not pod["stale"]]
    yield f"{len(gpus)} GPUs of {len({gpu['node'] for gpu in gpus})} nodes have sent samples"
    yield f"/api/usage answers for {', '.join(measured)}"
    yield f"{len(pods)} pods hold or use GPUs now"


def main():
    """0 once all of it is there, 1 with the last reason when it does not come in time."""
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            print("\n".join(arrived()))
            return 0
        except (OSError, ValueError, http.client.HTTPException) as error:  # HTTPError and URLError are OSErrors
            if time.monotonic() > deadline:
                print(f"{URL}: {error}", file=sys.stderr)
                return 1
        time.sleep(PAUSE_SECONDS)


if __name__ == "__main__":
    sys.exit(main())

"""How right is it? Scenes whose truth is known, played to real agents and a real server.

    python -m bench.attribution [--seconds 60] [--only NAME] [--markdown] [--write-readme]

What is simulated lies behind the doors: the NVML library under the real binding, a kubelet that speaks gRPC on a
unix socket, a Kubernetes API over HTTP, a /proc in a folder. Agents and server are processes as users run them.
What is compared with the truth are the server's own answers to `/api/usage` and `/api/ledger`.

    scene, scenes   what is: pods, processes, loads over time; in `sharing` and `mishaps`
    node            a scene made real, with its agent
    play            all nodes at once against one server, then its answers
    truth           what is right, and what other ways to divide would have said
    score, table    the comparison, for people
"""

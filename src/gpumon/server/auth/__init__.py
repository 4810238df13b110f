"""Who may send and who may read: `rights` decides, by tokens from a file or by what Kubernetes says of a token.

Nothing here knows HTTP: `gpumon.server.api.gate` asks, and turns a refusal into an answer. No token is ever kept,
logged or repeated, only its SHA-256.
"""

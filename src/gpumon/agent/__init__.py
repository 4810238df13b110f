"""The agent: reads the GPUs of one node and delivers samples to the server."""

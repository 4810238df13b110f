"""What agent and server agree on: the field catalogue and the wire format."""

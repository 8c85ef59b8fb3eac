"""A client's connection to one worker, from the handshake to the reply."""

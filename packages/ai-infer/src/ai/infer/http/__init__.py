"""The server: Open Inference Protocol v2 and plain HTTP in front of inferencers; needs the extra `http`."""

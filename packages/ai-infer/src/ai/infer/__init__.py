"""A worker that batches inference requests from many processes, and a server."""

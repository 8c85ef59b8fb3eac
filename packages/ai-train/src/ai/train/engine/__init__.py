"""One run: what it holds, one update of it, one evaluation."""

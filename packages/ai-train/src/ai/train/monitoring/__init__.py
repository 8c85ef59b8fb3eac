"""What a hook watches a run with: when, until when, how far."""

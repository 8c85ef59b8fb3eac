"""What both sides share: how messages and weights lie in memory and travel."""

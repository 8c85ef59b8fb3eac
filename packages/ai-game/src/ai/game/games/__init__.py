"""Games and environments, and the test kit for a new one."""

"""Workers on the machines of a Ray cluster: a second way to start one."""

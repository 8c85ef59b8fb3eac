"""A search for hyper-parameters: trials asked for, run in one process or several, told."""

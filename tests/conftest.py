"""One torch thread for every test process: two that wait for each other on busy cores are many times slower."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported; fresh processes of the tests inherit it

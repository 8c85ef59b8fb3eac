"""`python -m ai.lab`: the same as `ai-lab`."""

import sys

from ai.lab.cli import main

sys.exit(main())

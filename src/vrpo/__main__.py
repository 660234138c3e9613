"""`python -m vrpo` and `accelerate launch -m vrpo`."""

import sys

from vrpo.cli import main

sys.exit(main())

"""`python -m spatl`: the command line, where `spatl` is on no path."""

import sys

from spatl.console.main import main

sys.exit(main())

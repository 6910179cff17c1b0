"""`python -m spatl`: the command line, where `spatl` is on no path."""

from spatl.console.entry import script

script()

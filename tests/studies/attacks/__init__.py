"""Clients that cheat, against each rule of aggregation: `python -m tests.studies.attacks --help`."""

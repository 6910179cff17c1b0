"""The test files that take longest, most of it in waiting for processes: a run of the suite begins with them."""

LONGEST = (
    "tests/server/deployment/test_restarts.py",
    "tests/server/simulation/test_kills.py",
    "tests/server/simulation/test_cluster.py",
    "tests/test_your_own_work.py",
    "tests/server/deployment/test_command.py",
    "tests/server/deployment/test_cut_networks.py",
    "tests/server/deployment/test_changing.py",
    "tests/server/deployment/test_socket.py",
    "tests/server/test_resume.py",
    "tests/server/test_engines.py",
    "tests/server/deployment/test_own_task.py",
    "tests/spatl/bench/test_jobs.py",
    "tests/server/test_memory.py",
)
"""Longest first: the suite ends when its last file does, and a file is one worker's."""

"""Pools of processes that share the lab's work."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor

from spatl.deployment.processes import end_with_parent


def process_pool(workers: int) -> ProcessPoolExecutor:
    """Return a pool of so many processes, which end with this one, however it ends: nobody else would stop them."""
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers, mp_context=context, initializer=end_with_parent)

"""Clocks that are wrong: a library that a process loads first, and that sets its date off and nothing else.

What waits goes by the monotonic clock, which stays right, as where a machine's date was set by hand. (Under libfaketime
0.9.10 `time.sleep` of Python 3.11 fails, so that a process ends at once in the place of living in another hour.)
"""

import shutil
import subprocess
from pathlib import Path

_COMPILER = "cc"
_SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>

static long off(void) {
    const char *text = getenv("CLOCK_OFF_SECONDS");
    return text ? atol(text) : 0;
}

int clock_gettime(clockid_t id, struct timespec *at) {
    int (*real)(clockid_t, struct timespec *);
    *(void **)&real = dlsym(RTLD_NEXT, "clock_gettime");
    int status = real(id, at);
    if (status == 0 && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE)) at->tv_sec += off();
    return status;
}

int gettimeofday(struct timeval *restrict at, void *restrict zone) {
    struct timespec now;
    int status = clock_gettime(CLOCK_REALTIME, &now);
    at->tv_sec = now.tv_sec;
    at->tv_usec = now.tv_nsec / 1000;
    return status;
}

time_t time(time_t *at) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (at) *at = now.tv_sec;
    return now.tv_sec;
}
"""


def can_be_wrong() -> bool:
    """Return whether this machine can make such a library."""
    return shutil.which(_COMPILER) is not None


def wrong_clock(directory: Path, seconds: int) -> dict[str, str]:
    """Return the variables under which a process, and all that it starts, has a date that is so many seconds late.

    Args:
        directory: Where the library is put.
        seconds: How far the date is off; below zero it is behind.
    """
    library = directory / "clock.so"
    if not library.exists():
        source = directory / "clock.c"
        source.write_text(_SOURCE)
        subprocess.run([_COMPILER, "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"], check=True)
    return {"LD_PRELOAD": str(library), "CLOCK_OFF_SECONDS": str(seconds)}

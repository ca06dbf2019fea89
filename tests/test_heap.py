"""What the allocator is told, seen in a process of its own."""

import subprocess
import sys

import pytest

from worldmodel.heap import limit_arenas

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux") or not limit_arenas(), reason="the C library is not glibc")


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_what_a_world_leaves_in_pieces_goes_back_to_the_system():
    given_back = run("""
import os
from worldmodel.heap import trim_heap
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
pieces = [bytes(60_000) for _ in range(2_000)]  # too small to be mapped one by one
kept = pieces[::50]  # so that the heap cannot shrink from its end
pieces = None
before = resident()
assert trim_heap()
print(before - resident())
""")
    assert int(given_back) > 50 * 2**20


@pytest.mark.parametrize("limited", [True, False])
def test_threads_share_few_heaps(limited):
    """`malloc_info` tells of one <heap> for each."""
    heaps = run(f"""
import ctypes, tempfile, threading
from worldmodel.heap import limit_arenas
if {limited}:
    limit_arenas()
gate = threading.Barrier(7)
def work():
    kept = [bytes(5_000) for _ in range(200)]
    gate.wait()
threads = [threading.Thread(target=work) for _ in range(6)]
[t.start() for t in threads]
gate.wait()
[t.join() for t in threads]
c = ctypes.CDLL(None)
c.fopen.restype = ctypes.c_void_p
with tempfile.NamedTemporaryFile() as f:
    out = ctypes.c_void_p(c.fopen(f.name.encode(), b"w"))
    c.malloc_info(0, out)
    c.fclose(out)
    print(open(f.name).read().count("<heap "))
""")
    assert int(heaps) <= 2 if limited else int(heaps) > 2

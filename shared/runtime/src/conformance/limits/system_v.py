# Creates objects of System V IPC: "all" that the kernel gives and then waits, or "one" of each kind.
import ctypes
import errno
import signal
import sys

MOST = {"all": 100_000, "one": 1}[sys.argv[1]]
libc = ctypes.CDLL(None, use_errno=True)
kinds = {
    "shared memory": lambda: libc.shmget(0, 4096, 0o600),
    "semaphores": lambda: libc.semget(0, 1, 0o600),
    "message queue": lambda: libc.msgget(0, 0o600),
}
for kind, create in kinds.items():
    created = 0
    while created < MOST and create() >= 0:
        created += 1
    if created < MOST and MOST == 1:
        sys.exit(f"{kind}: {errno.errorcode[ctypes.get_errno()]}")
    if created == MOST and MOST > 1:
        sys.exit(f"{kind}: no limit")
print("done", flush=True)
if MOST > 1:
    signal.pause()

# Takes objects that the kernel counts for a user or for the machine: "all", which is more than a machine's default limit, and
# then waits; or "some" of each kind.
import ctypes
import errno
import fcntl
import os
import resource
import signal
import sys

SET_PIPE_SIZE = 1031
IO_SETUP = {"x86_64": 206, "aarch64": 0}[os.uname().machine]
ALL = sys.argv[1] == "all"

files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGRTMIN])
libc = ctypes.CDLL(None, use_errno=True)
process = os.getpid()


def check(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), "refused")


def instance(_):
    check(libc.inotify_init())


def pending_signal(_):
    check(libc.sigqueue(process, int(signal.SIGRTMIN), None))


def asynchronous_io(_):
    events = 32_768 if ALL else 1_000
    check(libc.syscall(IO_SETUP, events, ctypes.byref(ctypes.c_ulong(0))))


def queue(number):
    check(libc.mq_open(b"/queue%d" % number, os.O_CREAT | os.O_RDWR, 0o600, None))


def pipe(_):
    fcntl.fcntl(os.pipe()[0], SET_PIPE_SIZE, 1 << 20)


# Each kind: how to take one, how many are all, and some.
KINDS = {
    "inotify instances": (instance, 1_000, 128),
    "asynchronous I/O": (asynchronous_io, 8, 1),
    "signals": (pending_signal, 200_000, 1_000),
    "message queues": (queue, 200, 5),
    "pipes": (pipe, 200, 1),
}
# Whoever starts containerd without CAP_SYS_RESOURCE, as on a nested machine, cannot raise these.
LIMITS = {
    "signals": resource.RLIMIT_SIGPENDING,
    "message queues": resource.RLIMIT_MSGQUEUE,
}
for kind in sys.argv[2:]:
    if kind in LIMITS and resource.getrlimit(LIMITS[kind])[0] != resource.RLIM_INFINITY:
        print(f"{kind}: not tried")
        continue
    take, everything, some = KINDS[kind]
    taken = 0
    try:
        while taken < (everything if ALL else some):
            take(taken)
            taken += 1
    except OSError as error:
        if not ALL:
            print(f"{kind}: {taken}, then {errno.errorcode[error.errno]}")
            sys.exit(1)
print("done", flush=True)
if ALL:
    signal.pause()

# The common start of the hostile scripts: runs attempts, and prints their outcomes.
import ctypes, errno, os, sys

libc = ctypes.CDLL(None, use_errno=True)


class Refused(Exception):
    pass


def call(number, *arguments):
    """A system call by its number; raises OSError when the kernel refuses."""
    numbers = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    answer = libc.syscall(ctypes.c_long(number), *numbers)
    if answer < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return answer


def attempt(name, action):
    """Prints one line: the name, and ALLOWED or the reason of the refusal."""
    try:
        got = action()
    except OSError as error:
        print(f"{name}: {errno.errorcode.get(error.errno, error.errno)}", flush=True)
    except Refused as error:
        print(f"{name}: {error}", flush=True)
    else:
        print(f"{name}: ALLOWED {got!r:.80}", flush=True)


def in_child(action):
    """Runs the action in a child process, so that its changes do not affect later attempts."""
    def run():
        child = os.fork()
        if child == 0:
            try:
                action()
            except OSError as error:
                os._exit(error.errno or 255)
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status < 0:
            raise Refused(f"killed by {-status}")
        if status:
            raise OSError(status, os.strerror(status))
    return run


def write(path):
    """Opens the file for writing, and writes nothing: an allowed write would harm the machine."""
    return lambda: os.close(os.open(path, os.O_WRONLY))


# The control: a write that must succeed. Otherwise a broken script would count as refusals.
with open("/proc/self/comm", "r+b", buffering=0) as control:
    control.write(b"hostile")

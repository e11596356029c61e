# Uses of system calls that no box needs. What must work is used without `attempt`.
import resource, socket, struct

# Limits: those of boxd can be read only, in every way to name it. Each attempt sets the present limits.
PRLIMIT64 = 302 if os.uname().machine == "x86_64" else 261
for name in ["NOFILE", "CPU", "AS", "NPROC"]:
    limit = getattr(resource, f"RLIMIT_{name}")
    present = resource.prlimit(1, limit)
    packed = ctypes.create_string_buffer(struct.pack("QQ", *(n & 0xffffffffffffffff for n in present)))
    attempt(f"limit {name} of boxd", lambda: resource.prlimit(1, limit, present))
    attempt(f"limit {name} of boxd, by a number of 64 bits",
            lambda: call(PRLIMIT64, (1 << 32) + 1, limit, packed, None))
own = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (16, own[1]))
resource.prlimit(0, resource.RLIMIT_NOFILE, own)
assert resource.prlimit(os.getpid(), resource.RLIMIT_NOFILE) == own

for name, protocol in [("SOCK_DIAG", 4), ("XFRM", 6), ("AUDIT", 9), ("CONNECTOR", 11), ("NETFILTER", 12),
                       ("KOBJECT_UEVENT", 15), ("GENERIC", 16), ("CRYPTO", 21)]:
    for kind in [socket.SOCK_RAW, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC]:
        attempt(f"netlink {name}", lambda: socket.socket(socket.AF_NETLINK, kind, protocol))
# Programs continue without audit only at this error.
try:
    socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 9)
except OSError as error:
    assert error.errno == errno.EPROTONOSUPPORT, error
assert "lo" in [name for _, name in socket.if_nameindex()]
with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0) as route:
    route.bind((0, 0))
print("done", flush=True)

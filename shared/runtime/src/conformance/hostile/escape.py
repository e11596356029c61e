# Ways out of a container, attempted by root in it.
import glob, signal, stat, struct, time

NEWNS, NEWUSER, NEWNET, NEWPID, NEWCGROUP = 0x20000, 0x10000000, 0x40000000, 0x20000000, 0x2000000
machine = os.uname().machine
# (x86_64, aarch64)
NR = {
    "ptrace": (101, 117), "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41),
    "unshare": (272, 97), "setns": (308, 268), "keyctl": (250, 219), "add_key": (248, 217),
    "bpf": (321, 280), "perf_event_open": (298, 241), "open_by_handle_at": (304, 265),
    "name_to_handle_at": (303, 264), "init_module": (175, 105), "finit_module": (313, 273),
    "kexec_load": (246, 104), "reboot": (169, 142), "swapon": (167, 224), "acct": (163, 89),
    "syslog": (103, 116), "clock_settime": (227, 112), "sethostname": (170, 161),
    "userfaultfd": (323, 282), "process_vm_readv": (310, 270), "kcmp": (312, 272),
    "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430),
    "mount_setattr": (442, 442), "pidfd_getfd": (438, 438), "quotactl": (179, 60),
    "lookup_dcookie": (212, 18), "fanotify_init": (300, 262), "iopl": (172, None),
}


def nr(name):
    number = NR[name][0 if machine == "x86_64" else 1]
    if number is None:
        raise Refused("not on this machine")
    return number


def system(name, *arguments):
    return lambda: call(nr(name), *arguments)


def text(value):
    return ctypes.c_char_p(value)


# Files that change the kernel.
for path in [
    "/proc/sysrq-trigger", "/proc/sys/kernel/core_pattern", "/proc/sys/kernel/modprobe",
    "/proc/sys/kernel/hostname", "/proc/sys/vm/panic_on_oom", "/proc/sys/kernel/panic",
    "/proc/sys/net/ipv4/ip_forward", "/proc/sys/kernel/core_uses_pid",
    "/proc/sys/fs/binfmt_misc/register", "/proc/irq/0/smp_affinity",
    "/sys/kernel/uevent_helper", "/sys/kernel/profiling", "/sys/power/state",
    "/sys/module/kernel/parameters/panic", "/sys/kernel/mm/ksm/run", "/sys/class/net/lo/mtu",
    "/sys/bus/pci/rescan",
]:
    attempt(f"write {path}", write(path))


def lower_oom_score():
    with open("/proc/self/oom_score_adj", "r+") as file:
        file.write("-999")


attempt("lower the OOM score", in_child(lower_oom_score))


def read(path):
    def run():
        with open(path, "rb", buffering=0) as file:
            got = file.read(64)
        if not got:
            raise Refused("empty")
        return got
    return run


for path in ["/proc/kcore", "/proc/kmsg", "/proc/keys", "/proc/timer_list", "/proc/sched_debug",
             "/dev/mem", "/dev/kmsg", "/dev/sda", "/dev/vda", "/dev/fuse", "/dev/kvm",
             "/dev/net/tun", "/dev/loop-control", "/sys/firmware/dmi/tables/DMI",
             "/sys/kernel/debug/tracing/trace", "/sys/kernel/tracing/trace", "/proc/1/environ",
             "/proc/1/mem", "/proc/1/root/etc/shadow", "/proc/1/maps"]:
    attempt(f"read {path}", read(path))


def any_of(paths, action):
    """Succeeds when the action succeeds for one of the paths."""
    def run():
        refusal = Refused("none there")
        for path in paths:
            try:
                action(path)
                return path
            except OSError as error:
                refusal = error
        raise refusal
    return run


# With cgroup v1 the directory above the hierarchies is the container's own tmpfs.
groups = [entry for entry in glob.glob("/sys/fs/cgroup/**/", recursive=True)
          if os.path.exists(entry + "cgroup.procs")]
assert groups
for name in ["release_agent", "notify_on_release", "devices.allow", "memory.limit_in_bytes",
             "memory.max", "pids.max", "cpu.cfs_quota_us", "cpu.max", "cgroup.procs"]:
    files = [group + name for group in groups if os.path.exists(group + name)]
    attempt(f"cgroup {name}", any_of(files, lambda path: write(path)()))
attempt("cgroup mkdir", any_of(groups, lambda path: os.mkdir(path + "hostile")))

# Mounts and namespaces.
attempt("mount tmpfs", in_child(system("mount", text(b"x"), text(b"/mnt"), text(b"tmpfs"), 0, 0)))
attempt("mount proc", in_child(system("mount", text(b"proc"), text(b"/mnt"), text(b"proc"), 0, 0)))
attempt("mount cgroup", in_child(system("mount", text(b"x"), text(b"/mnt"), text(b"cgroup"), 0, text(b"memory"))))
attempt("remount sys", in_child(system("mount", text(b""), text(b"/sys"), text(b""), 32, 0)))
attempt("remount proc/sys", in_child(system("mount", text(b""), text(b"/proc/sys"), text(b""), 32 | 4096, 0)))
attempt("umount proc/sys", in_child(system("umount2", text(b"/proc/sys"), 2)))
attempt("umount proc/kcore", in_child(system("umount2", text(b"/proc/kcore"), 2)))
attempt("pivot_root", in_child(system("pivot_root", text(b"/"), text(b"/mnt"))))
attempt("chroot", in_child(lambda: os.chroot("/mnt")))
attempt("open_tree", in_child(system("open_tree", -100, text(b"/"), 1)))
attempt("move_mount", in_child(system("move_mount", -100, text(b"/"), -100, text(b"/mnt"), 0)))
attempt("fsopen", in_child(system("fsopen", text(b"tmpfs"), 0)))
attempt("mount_setattr", in_child(system("mount_setattr", -100, text(b"/sys"), 0, 0, 0)))
for name, flag in [("user", NEWUSER), ("user+mount", NEWUSER | NEWNS), ("mount", NEWNS),
                   ("net", NEWNET), ("pid", NEWPID), ("cgroup", NEWCGROUP)]:
    attempt(f"unshare {name}", in_child(system("unshare", flag)))
attempt("setns pid 1", in_child(lambda: call(nr("setns"), os.open("/proc/1/ns/mnt", os.O_RDONLY), 0)))

# Access to another process: boxd, which is PID 1.
attempt("ptrace pid 1", in_child(system("ptrace", 16, 1, 0, 0)))
buffer = ctypes.create_string_buffer(64)
vector = struct.pack("PN", ctypes.addressof(buffer), 64)
remote = struct.pack("PN", 0x400000, 64)
attempt("process_vm_readv pid 1", system("process_vm_readv", 1, text(vector), 1, text(remote), 1, 0))
attempt("pidfd_getfd pid 1", lambda: call(nr("pidfd_getfd"), os.pidfd_open(1), 3, 0))
attempt("kcmp pid 1", system("kcmp", 1, os.getpid(), 0, 0, 0))
attempt("fds of pid 1", any_of([f"/proc/1/fd/{n}" for n in range(20)], os.readlink))
attempt("write boxd", write("/proc/1/exe"))
for path in glob.glob("/.agentbox/boxd*") + glob.glob("/.agentbox/bin/boxd*"):
    attempt("boxd's mount", lambda path=path: os.chmod(path, 0o777))
# The kernel does not deliver these signals to init from inside its PID namespace.
os.kill(1, signal.SIGKILL)
os.kill(1, signal.SIGSTOP)

# Devices.
for name, kind, device in [("block 8:0", stat.S_IFBLK, os.makedev(8, 0)),
                           ("block 254:0", stat.S_IFBLK, os.makedev(254, 0)),
                           ("mem 1:1", stat.S_IFCHR, os.makedev(1, 1)),
                           ("null 1:3", stat.S_IFCHR, os.makedev(1, 3)),
                           ("tun 10:200", stat.S_IFCHR, os.makedev(10, 200))]:
    attempt(f"mknod {name}", lambda kind=kind, device=device: os.mknod("/hostile", kind | 0o600, device))
harmless = {"core", "fd", "full", "mqueue", "null", "ptmx", "pts", "random", "shm", "stderr",
            "stdin", "stdout", "tty", "urandom", "zero", "console", "termination-log"}


def devices():
    more = set(os.listdir("/dev")) - harmless
    if not more:
        raise Refused("none")
    return more


attempt("more devices", devices)

# System calls of the kernel's subsystems.
attempt("keyctl", system("keyctl", 0, -3, 0, 0, 0))
attempt("add_key", system("add_key", text(b"user"), text(b"x"), text(b"x"), 1, -3))
attempt("bpf", system("bpf", 0, text(struct.pack("IIII", 2, 4, 8, 1) + bytes(112)), 128))
attempt("perf_event_open", system("perf_event_open", text(struct.pack("II", 1, 112) + bytes(104)), 0, -1, -1, 0))
handle = ctypes.create_string_buffer(struct.pack("Ii", 8, 1) + struct.pack("II", 2, 0) + bytes(120))
attempt("open_by_handle_at", lambda: call(nr("open_by_handle_at"), os.open("/etc", os.O_RDONLY), handle, 0))
attempt("init_module", system("init_module", text(bytes(64)), 64, text(b"")))
attempt("finit_module", system("finit_module", 0, text(b""), 0))
attempt("kexec_load", system("kexec_load", 0, 0, 0, 0))
attempt("reboot", system("reboot", 0xfee1dead - (1 << 32), 672274793, 0, 0))
attempt("swapon", system("swapon", text(b"/x"), 0))
attempt("acct", system("acct", text(b"/x")))
attempt("quotactl", system("quotactl", 0x800007 << 8, text(b"/dev/vda"), 0, 0))
attempt("syslog", system("syslog", 3, text(bytes(64)), 64))
attempt("clock_settime", system("clock_settime", 0, text(struct.pack("qq", int(time.time()), 0))))
attempt("sethostname", system("sethostname", text(b"x"), 1))
attempt("userfaultfd", system("userfaultfd", 0))
attempt("fanotify_init", system("fanotify_init", 0, 0))
attempt("lookup_dcookie", system("lookup_dcookie", 0, text(bytes(64)), 64))
attempt("iopl", system("iopl", 3))
attempt("nice -20", in_child(lambda: os.nice(-20)))
print("done", flush=True)

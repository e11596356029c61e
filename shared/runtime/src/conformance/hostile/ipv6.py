# Addresses that could answer over IPv6: on the link, and beyond it.
import socket, time

targets = ["ff02::1", "ff02::2", "fe80::1", "fd00::1", "2001:db8::1", "3fff::1",
           "fd00:ec2::254", "64:ff9b::a9fe:a9fe", "2002:a9fe:a9fe::1", "::ffff:169.254.169.254"]
targets += os.environ.get("TARGETS", "").split()
scope = socket.if_nametoindex("eth0")


def answered(kind, target, port):
    def run():
        with socket.socket(socket.AF_INET6, kind) as s:
            s.settimeout(1)
            s.connect((target, port, 0, scope if target.startswith(("fe80", "ff02")) else 0))
            if kind == socket.SOCK_DGRAM:
                s.send(b"hostile")
                return s.recv(100)
    return run


for target in targets:
    attempt(f"{target} TCP", answered(socket.SOCK_STREAM, target, 8080))
    attempt(f"{target} UDP", answered(socket.SOCK_DGRAM, target, 53))
print("done", flush=True)

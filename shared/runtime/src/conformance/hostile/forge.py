# Sockets that could send from a foreign address, or bypass the box's network.
import socket

AF_VSOCK, AF_PACKET, AF_XDP, AF_TIPC, AF_RXRPC, AF_KEY, AF_CAN = 40, 17, 44, 30, 33, 15, 29


def opened(family, kind, protocol=0):
    return lambda: libc_socket(family, kind, protocol)


def libc_socket(family, kind, protocol):
    descriptor = libc.socket(family, kind, protocol)
    if descriptor < 0:
        raise OSError(ctypes.get_errno(), "socket")
    return descriptor


attempt("AF_PACKET raw", opened(AF_PACKET, socket.SOCK_RAW, 0x0300))
attempt("AF_PACKET datagram", opened(AF_PACKET, socket.SOCK_DGRAM, 0x0300))
for name, protocol in [("ICMP", 1), ("TCP", 6), ("UDP", 17), ("IP", 255), ("GRE", 47), ("IPIP", 4)]:
    attempt(f"raw {name}", opened(socket.AF_INET, socket.SOCK_RAW, protocol))
attempt("raw ICMPv6", opened(socket.AF_INET6, socket.SOCK_RAW, 58))
# A socket to the host of a virtual machine, which network namespaces do not restrict.
attempt("AF_VSOCK", opened(AF_VSOCK, socket.SOCK_STREAM))
attempt("AF_XDP", opened(AF_XDP, socket.SOCK_RAW))
attempt("AF_KEY", opened(AF_KEY, socket.SOCK_RAW, 2))


def bind_foreign_address():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.setsockopt(socket.IPPROTO_IP, 19, 1)  # IP_TRANSPARENT
        s.bind(("203.0.113.9", 0))


attempt("bind to a foreign address", bind_foreign_address)


def add_address():
    import struct
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as s:
        address = socket.inet_aton("203.0.113.9")
        body = struct.pack("=BBBBI", 2, 24, 0, 0, 2)
        body += struct.pack("=HH", 8, 2) + address + struct.pack("=HH", 8, 1) + address
        # RTM_NEWADDR, NLM_F_REQUEST | ACK | CREATE.
        s.send(struct.pack("=IHHII", 16 + len(body), 20, 0x405, 1, 0) + body)
        answer = struct.unpack("=i", s.recv(4096)[16:20])[0]
        if answer < 0:
            raise OSError(-answer, "netlink")


attempt("add an address", add_address)
print("done", flush=True)

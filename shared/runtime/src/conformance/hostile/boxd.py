# Requests a command from the box's own boxd without TLS, as any client that reaches its port can. It
# is refused whatever the token is: none, a wrong, an empty or the right one.
import socket, struct, time

ports = set()
for table in ["/proc/net/tcp", "/proc/net/tcp6"]:
    with open(table) as lines:
        words = [line.split() for line in lines][1:]
        ports |= {int(word[1].rsplit(":", 1)[1], 16) for word in words if word[3] == "0A"}


def frame(kind, flags, stream, body):
    return struct.pack(">I", len(body))[1:] + struct.pack(">BBI", kind, flags, stream) + body


def header(name, value):
    # HPACK: a literal without indexing, name and value not Huffman coded.
    return bytes([0, len(name)]) + name.encode() + bytes([len(value)]) + value.encode()


def field(number, body):
    return bytes([number << 3 | 2, len(body)]) + body


def request(port, authorization, path):
    command = b"".join(field(2, word) for word in [b"touch", path.encode()])
    message = field(1, field(1, path.encode().replace(b"/", b"-")) + command)
    headers = [(":method", "POST"), (":scheme", "http"), (":path", "/agentbox.boxd.v1.Boxd/Run"),
               (":authority", "boxd"), ("content-type", "application/grpc"), ("te", "trailers")]
    if authorization:
        headers.append(("authorization", authorization))
    with socket.create_connection(("127.0.0.1", port), 2) as s:
        s.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, b"")
                  + frame(1, 4, 1, b"".join(header(n, v) for n, v in headers))
                  + frame(0, 1, 1, b"\0" + struct.pack(">I", len(message)) + message))
        end = time.monotonic() + 3
        while time.monotonic() < end and not os.path.exists(path):
            time.sleep(0.01)
    if not os.path.exists(path):
        raise Refused("none")


token = os.environ["NEKOT"][::-1]
for port in sorted(ports):
    for kind, authorization in [("no", ""), ("wrong", "Bearer wrong"), ("empty", "Bearer "),
                               ("right", f"Bearer {token}")]:
        attempt(f"{kind} token", lambda: request(port, authorization, f"/tmp/{kind}-{port}"))
print("done", flush=True)

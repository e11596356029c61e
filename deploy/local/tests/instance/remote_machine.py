"""A machine outside the network of the boxes: a name server, and a web server with an index of packages.

remote_machine.py ADDRESS DIRECTORY

Resolves one name to its address, and no other name. Serves a page and the index, over HTTP and, with a
certificate that it makes, over HTTPS. Prints a line when it listens, and ends with its standard input.
"""
import functools
import http.server
import pathlib
import socket
import socketserver
import ssl
import struct
import subprocess
import sys
import threading

import packages

NAME = "remote.example"
ADDRESS_RECORD = b"\0\1"


def answer(query, address):
    """The answer to a DNS query (RFC 1035): an address, none of another type, or that there is no such name."""
    labels, end = [], 12
    while query[end]:
        labels.append(query[end + 1:end + 1 + query[end]])
        end += 1 + query[end]
    is_known = b".".join(labels).decode().lower() == NAME
    has_address = is_known and query[end + 1:end + 3] == ADDRESS_RECORD
    flags = 0x8580 if is_known else 0x8583
    reply = query[:2] + struct.pack(">5H", flags, 1, has_address, 0, 0) + query[12:end + 5]
    if has_address:
        reply += b"\xc0\x0c" + struct.pack(">HHIH", 1, 1, 60, 4) + socket.inet_aton(address)
    return reply


class Names(socketserver.BaseRequestHandler):
    def handle(self):
        query, server = self.request
        server.sendto(answer(query, self.server.server_address[0]), self.client_address)


class Files(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def make_certificate(directory):
    """Makes a key, and a certificate of the name that it signs itself."""
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
         "-keyout", "key.pem", "-out", "certificate.pem", "-days", "2", "-subj", f"/CN={NAME}",
         "-addext", f"subjectAltName=DNS:{NAME}"],
        cwd=directory, check=True, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def main(address, directory):
    files = pathlib.Path(directory, "files")
    packages.write_index(files)
    files.joinpath("page").write_text("found there\n")
    make_certificate(directory)
    handler = functools.partial(Files, directory=files)
    plain, encrypted = (http.server.ThreadingHTTPServer((address, port), handler) for port in (80, 443))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(f"{directory}/certificate.pem", f"{directory}/key.pem")
    encrypted.socket = context.wrap_socket(encrypted.socket, server_side=True)
    for server in (plain, encrypted, socketserver.UDPServer((address, 53), Names)):
        threading.Thread(target=server.serve_forever, daemon=True).start()
    print("listens", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main(*sys.argv[1:])

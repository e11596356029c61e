"""A server of a box: a page that reloads itself when its file changes, and what the tests ask of it.

GET /                the page
GET /received        the paths of all requests so far, one a line
GET /headers         the head of the request
GET /events          server-sent events: one at once, and one for each change of the page's file
GET /live            a WebSocket with a message for each change of the page's file
GET /together?N      the answer when N of these requests are open
GET /content?PIECES  so many pieces of content
PUT /content         the sum of the body
OPTIONS /...         `options`, with a CORS header of the server's own
"""
import base64
import contextlib
import hashlib
import http.server
import os
import select
import socket
import struct
import threading

PAGE = "/tmp/site/index.html"
PIECE = 1 << 16
DEADLINE = 60
# The requests that are read and answered at once, each by a thread. On Kubernetes a box may have 128.
THREADS = 64
received = []
meeting = threading.Lock()
# The open connections of the requests that wait for others.
waiting = []
# These, and those that waited before.
of_meetings = set()


def modified():
    return os.stat(PAGE).st_mtime_ns


class Site(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, body, content_type="text/plain", status=200):
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        received.append(self.path)
        path, _, query = self.path.partition("?")
        if path == "/":
            with open(PAGE, "rb") as page:
                self.answer(page.read(), "text/html")
        elif path == "/received":
            self.answer("\n".join(received).encode())
        elif path == "/headers":
            self.answer(f"{self.requestline}\n{self.headers}".encode())
        elif path == "/events":
            self.events()
        elif path == "/live":
            self.live()
        elif path == "/together":
            self.together(int(query))
        elif path == "/content":
            self.content(int(query))
        elif path == "/own-cookie":
            self.send_response(204)
            self.send_header("Set-Cookie", "own=1; Domain=localhost; Path=/")
            self.end_headers()
        elif path == "/framed":
            self.answer(b"<script>parent.postMessage('shown', '*')</script>", "text/html")
        elif path == "/script.js":
            self.answer(b"self.loaded = true;", "text/javascript")
        elif path == "/picture.svg":
            self.answer(b'<svg xmlns="http://www.w3.org/2000/svg" width="1" height="1"/>', "image/svg+xml")
        else:
            self.answer(b"not found", status=404)

    def do_POST(self):
        received.append(self.path)
        self.rfile.read(int(self.headers["Content-Length"] or 0))
        self.answer(b"done")

    def do_OPTIONS(self):
        received.append(self.path)
        self.send_response(200)
        self.send_header("Access-Control-Allow-Origin", "https://of-the-box.example")
        self.send_header("Content-Length", "7")
        self.end_headers()
        self.wfile.write(b"options")

    def do_PUT(self):
        left = int(self.headers["Content-Length"])
        content = hashlib.sha256()
        while left:
            part = self.rfile.read(min(left, PIECE))
            if not part:
                return
            content.update(part)
            left -= len(part)
        self.answer(content.hexdigest().encode())

    def content(self, pieces):
        self.send_response(200)
        self.send_header("Content-Length", str(pieces * PIECE))
        self.end_headers()
        for number in range(pieces):
            self.wfile.write(struct.pack("<Q", number) * (PIECE // 8))

    def together(self, count):
        """Leaves the request open without a thread. The last one answers all."""
        self.close_connection = True
        with meeting:
            waiting.append(self.connection)
            of_meetings.add(self.connection)
            if len(waiting) == 1:
                alone = threading.Timer(DEADLINE, answer_waiting, [b"alone"])
                alone.daemon = True
                alone.start()
            has_met = len(waiting) == count
        if has_met:
            answer_waiting(b"met")

    def changes(self, seen):
        """Yields at each change of the page after `seen`, until the client is gone."""
        while True:
            if select.select([self.connection], [], [], 0.05)[0] and not self.connection.recv(4096):
                return
            now = modified()
            if now != seen:
                seen = now
                yield

    def events(self):
        seen = modified()
        self.close_connection = True
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        self.wfile.write(b"data: begun\n\n")
        for _ in self.changes(seen):
            self.wfile.write(b"data: changed\n\n")

    def live(self):
        seen = modified()
        self.close_connection = True
        key = self.headers["Sec-WebSocket-Key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        accept = base64.b64encode(hashlib.sha1(key.encode()).digest()).decode()
        self.send_response(101)
        self.send_header("Connection", "Upgrade")
        self.send_header("Upgrade", "websocket")
        self.send_header("Sec-WebSocket-Accept", accept)
        self.end_headers()
        for _ in self.changes(seen):
            self.wfile.write(b"\x81\x06reload")


def answer_waiting(body):
    with meeting:
        open_connections, waiting[:] = waiting[:], []
    head = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body)
    for connection in open_connections:
        with contextlib.suppress(OSError), connection:
            connection.sendall(head + body)
            connection.shutdown(socket.SHUT_WR)


class Server(http.server.ThreadingHTTPServer):
    # Connections above the number of threads wait here.
    request_queue_size = 256
    threads = threading.Semaphore(THREADS)

    def process_request(self, request, client_address):
        self.threads.acquire()
        super().process_request(request, client_address)

    def process_request_thread(self, request, client_address):
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.threads.release()

    def shutdown_request(self, request):
        # A request that meets others is answered and closed with them.
        if request not in of_meetings:
            super().shutdown_request(request)


Server(("127.0.0.1", 8000), Site).serve_forever()

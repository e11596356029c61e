"""Uses NATS with the credential of an event consumer, in a Pod that has no NATS client.

Fails if the consumer cannot read the event of ENVIRONMENT durably, or can do anything else.
"""

import json
import os
import socket
import ssl
import time

HOST, USER = os.environ["NATS_HOST"], os.environ["NATS_USER"]
ENVIRONMENT = os.environ["ENVIRONMENT"]
STREAM = "ABX_EVENTS"
INBOX = f"_INBOX_{USER}.1"
API = "$JS.API"
# Of a message, and of the event.
WAIT_S, DEADLINE_S = 20, 60


class Connection:
    def __init__(self):
        plain = socket.create_connection((HOST, 4222), timeout=WAIT_S)
        greeting = b""
        while not greeting.endswith(b"\r\n"):
            byte = plain.recv(1)
            assert byte, f"NATS closed the connection: {greeting}"
            greeting += byte
        # The certificate has the name of the Service.
        context = ssl.create_default_context(cadata=os.environ["NATS_CA"])
        self.socket = context.wrap_socket(plain, server_hostname=HOST)
        self.lines = self.socket.makefile("rb")
        login = {
            "user": USER, "pass": os.environ["NATS_PASSWORD"],
            "verbose": False, "pedantic": False, "headers": True, "no_responders": True,
            "lang": "python", "version": "1", "protocol": 1,
        }
        self.send(f"CONNECT {json.dumps(login)}\r\nSUB {INBOX} 1\r\nPING\r\n".encode())
        answer = self.lines.readline()
        while not answer.startswith(b"PONG"):
            assert answer and not answer.startswith(b"-ERR"), f"no login: {answer}"
            answer = self.lines.readline()

    def send(self, data):
        self.socket.sendall(data)

    def publish(self, subject, payload, reply=""):
        self.send(f"PUB {subject} {reply} {len(payload)}\r\n".encode() + payload + b"\r\n")

    def read(self):
        """The next message (subject, reply, payload), or the next error (None, None, text)."""
        while True:
            line = self.lines.readline()
            assert line, "NATS closed the connection"
            words = line.decode().split()
            if words[0] == "PING":
                self.send(b"PONG\r\n")
            elif words[0] == "-ERR":
                return None, None, line
            elif words[0] in ("MSG", "HMSG"):
                size = int(words[-1])
                headers = int(words[-2]) if words[0] == "HMSG" else 0
                others = words[1:-2] if words[0] == "HMSG" else words[1:-1]
                body = self.lines.read(size + 2)[:size]
                return others[0], others[2] if len(others) > 2 else None, body[headers:]

    def request(self, subject, body=None):
        self.publish(f"{API}.{subject}", json.dumps(body or {}).encode(), INBOX)
        answer = self.read()[2]
        decoded = None if answer.startswith(b"-ERR") else json.loads(answer)
        assert decoded and "error" not in decoded, f"{subject}: {answer}"
        return decoded

    def next(self):
        """The next event with its number in the stream, acknowledged; `None` when there is none."""
        pull = {"batch": 1, "expires": 2_000_000_000}
        self.publish(f"{API}.CONSUMER.MSG.NEXT.{STREAM}.{USER}", json.dumps(pull).encode(), INBOX)
        subject, reply, payload = self.read()
        assert subject, payload
        # The end of the pull has a status in its headers, and no payload.
        if not payload:
            return None
        self.publish(reply, b"+ACK", INBOX)
        assert self.read()[0] == INBOX, "NATS confirms the acknowledgement"
        return int(reply.split(".")[-4]), subject, json.loads(payload)

    def is_refused(self, subject):
        self.publish(subject, b"{}", INBOX)
        _, _, error = self.read()
        return f'Permissions Violation for Publish to "{subject}"'.lower() in error.decode().lower()


first = Connection()
config = {
    "durable_name": USER, "filter_subject": "abx.v1.evt.env.>", "deliver_policy": "all",
    "ack_policy": "explicit", "ack_wait": 30_000_000_000,
}
first.request(f"CONSUMER.CREATE.{STREAM}.{USER}", {"stream_name": STREAM, "config": config})
deadline = time.monotonic() + DEADLINE_S
while True:
    assert time.monotonic() < deadline, "the event of the environment was not read"
    received = first.next()
    if received:
        number, subject, event = received
        if event["environment_id"] == ENVIRONMENT and event["kind"] == "running":
            break
assert subject == f"abx.v1.evt.env.{event['owner']}.{ENVIRONMENT}.running", subject
print(f"read event {number} as {subject}")

# The position is on the server: another connection begins after it.
second = Connection()
info = second.request(f"CONSUMER.INFO.{STREAM}.{USER}")
assert info["config"]["durable_name"] == USER, info
assert info["ack_floor"]["stream_seq"] == number, info
later = second.next()
assert later is None or later[0] > number, later

for refused in [
    subject,
    "abx.v1.cmd.env.local.reconcile.x",
    "abx.v1.rpc.auth.login",
    f"{API}.STREAM.DELETE.{STREAM}",
    f"{API}.STREAM.PURGE.{STREAM}",
    f"{API}.CONSUMER.CREATE.{STREAM}.other",
]:
    assert second.is_refused(refused), f"{refused} is not refused"
stream = second.request(f"STREAM.INFO.{STREAM}")
assert stream["state"]["first_seq"] <= number <= stream["state"]["last_seq"], stream
print("refused what is not a consumer's")

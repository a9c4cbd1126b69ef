"""As much of AMQP 0-9-1 as it takes to make trouble at a broker.

Messages are kept as the frames they came in, so that what is published again
is what was published, whatever it says.
"""

import socket
import struct


def shortstr(text):
    data = text.encode()
    return bytes([len(data)]) + data


def table(arguments):
    """Of numbers and texts."""
    data = b""
    for key, value in arguments.items():
        data += shortstr(key)
        if isinstance(value, int):
            data += b"I" + struct.pack(">i", value)
        else:
            data += b"S" + struct.pack(">I", len(value)) + value.encode()
    return struct.pack(">I", len(data)) + data


def message_id(header):
    """The property of that name in a content header, or None."""
    (flags,) = struct.unpack(">H", header[12:14])
    at = 14
    for bit in range(15, 6, -1):
        if not flags & 1 << bit:
            continue
        if bit == 13:                   # headers
            at += 4 + struct.unpack(">I", header[at : at + 4])[0]
        elif bit in (12, 11):           # delivery_mode, priority
            at += 1
        else:
            size = header[at]
            if bit == 7:
                return header[at + 1 : at + 1 + size].decode()
            at += 1 + size
    return None


class Error(Exception):
    pass


class Connection:
    """One connection with one channel."""

    def __init__(self, port, user="guest", password="guest", timeout=5):
        self.sock = socket.create_connection(("127.0.0.1", port), timeout)
        self.file = self.sock.makefile("rb")
        try:
            self.sock.sendall(b"AMQP\0\0\11\1")
            self.expect(0, 10, 10)
            plain = f"\0{user}\0{password}".encode()
            self.method(
                0, 10, 11,
                struct.pack(">I", 0)
                + shortstr("PLAIN")
                + struct.pack(">I", len(plain)) + plain
                + shortstr("en_US"),
            )
            self.expect(0, 10, 30)
            self.method(0, 10, 31, struct.pack(">HIH", 10, 131072, 0))
            self.method(0, 10, 40, shortstr("/") + b"\0\0")
            self.expect(0, 10, 41)
            self.method(1, 20, 10, b"\0")
            self.expect(1, 20, 11)
        except BaseException:
            self.close()
            raise

    def close(self):
        self.file.close()
        self.sock.close()

    def frame(self, kind, channel, payload):
        return (
            struct.pack(">BHI", kind, channel, len(payload)) + payload + b"\xce"
        )

    def method(self, channel, class_id, method_id, arguments):
        self.sock.sendall(
            self.frame(
                1, channel,
                struct.pack(">HH", class_id, method_id) + arguments,
            )
        )

    def read(self):
        head = self.file.read(7)
        if len(head) < 7:
            raise Error("connection closed")
        kind, _, size = struct.unpack(">BHI", head)
        payload = self.file.read(size)
        if len(payload) < size or self.file.read(1) != b"\xce":
            raise Error("connection closed")
        return kind, payload

    def expect(self, channel, class_id, *method_ids):
        while True:
            kind, payload = self.read()
            if kind != 1:
                continue
            got = struct.unpack(">HH", payload[:4])
            if got[0] == class_id and got[1] in method_ids:
                return got[1], payload[4:]
            if got in ((10, 50), (20, 40)):
                raise Error(payload[4:].decode(errors="replace"))

    def declare_queue(self, name, arguments=None):
        self.method(1, 50, 10, b"\0\0" + shortstr(name) + b"\2"
                    + table(arguments or {}))
        self.expect(1, 50, 11)

    def count(self, queue):
        """How many messages it has to deliver; an error if it is not there."""
        self.method(1, 50, 10, b"\0\0" + shortstr(queue) + b"\1" + table({}))
        _, answer = self.expect(1, 50, 11)
        at = 1 + answer[0]
        return struct.unpack(">I", answer[at : at + 4])[0]

    def declare_exchange(self, name, kind, arguments=None):
        self.method(1, 40, 10, b"\0\0" + shortstr(name) + shortstr(kind)
                    + b"\2" + table(arguments or {}))
        self.expect(1, 40, 11)

    def bind_queue(self, queue, exchange):
        self.method(1, 50, 20, b"\0\0" + shortstr(queue) + shortstr(exchange)
                    + shortstr("") + b"\0" + table({}))
        self.expect(1, 50, 21)

    def delete_queue(self, name):
        self.method(1, 50, 40, b"\0\0" + shortstr(name) + b"\0")
        self.expect(1, 50, 41)

    def purge_queue(self, name):
        self.method(1, 50, 30, b"\0\0" + shortstr(name) + b"\0")
        self.expect(1, 50, 31)

    def tap(self, exchange, keys):
        """A queue of our own that gets a copy of what goes to those keys.

        It goes with the connection."""
        # exclusive, auto-delete; the broker makes up the name
        self.method(1, 50, 10, b"\0\0" + shortstr("") + b"\x0c" + b"\0\0\0\0")
        _, answer = self.expect(1, 50, 11)
        name = answer[1 : 1 + answer[0]].decode()
        for key in keys:
            self.method(
                1, 50, 20,
                b"\0\0" + shortstr(name) + shortstr(exchange)
                + shortstr(key) + b"\0" + b"\0\0\0\0",
            )
            self.expect(1, 50, 21)
        return name

    def get(self, queue, keep=False):
        """(routing key, header, body frames) or None; keep: it goes back when
        the connection ends, unless take_all() comes first."""
        self.method(1, 60, 70, b"\0\0" + shortstr(queue)
                    + (b"\0" if keep else b"\1"))
        method, answer = self.expect(1, 60, 71, 72)
        if method == 72:
            return None
        at = 9
        at += 1 + answer[at]
        key = answer[at + 1 : at + 1 + answer[at]].decode()
        kind, header = self.read()
        if kind != 2:
            raise Error("no header where one was expected")
        (size,) = struct.unpack(">Q", header[4:12])
        bodies = []
        while size > 0:
            kind, body = self.read()
            if kind != 3:
                raise Error("no body where one was expected")
            bodies.append(body)
            size -= len(body)
        return key, header, bodies

    def publish(self, exchange, message):
        key, header, bodies = message
        self.method(
            1, 60, 40, b"\0\0" + shortstr(exchange) + shortstr(key) + b"\0"
        )
        self.sock.sendall(
            self.frame(2, 1, header)
            + b"".join(self.frame(3, 1, body) for body in bodies)
        )

    def take_all(self):
        """What get() has kept is gone from its queues when sync() returns."""
        self.method(1, 60, 80, struct.pack(">QB", 0, 1))

    def publish_safely(self, messages):
        """To the queues that their keys name; whether those have them all."""
        self.method(1, 85, 10, b"\0")
        self.expect(1, 85, 11)
        for key, header, bodies in messages:
            self.method(1, 60, 40, b"\0\0" + shortstr("") + shortstr(key)
                        + b"\1")
            self.sock.sendall(
                self.frame(2, 1, header)
                + b"".join(self.frame(3, 1, body) for body in bodies)
            )
        safe = True
        left = set(range(1, len(messages) + 1))
        while left:
            # ack, nack, return
            method, answer = self.expect(1, 60, 80, 120, 50)
            if method != 80:
                safe = False
            if method != 50:
                tag, more = struct.unpack(">QB", answer[:9])
                left = {n for n in left if n > tag} if more & 1 else left - {tag}
        return safe

    def sync(self):
        """All that was published has been taken by the broker."""
        self.method(1, 50, 10, b"\0\0" + shortstr("") + b"\x0c" + b"\0\0\0\0")
        self.expect(1, 50, 11)

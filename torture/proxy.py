"""Between each node's messenger and the broker: a network that can fail.

    proxy.py BROKER_PORT NODE…

Prints one line {"node": port, …}, then takes orders, one JSON object a line:

    {"node": "a", "do": "pass"}
    {"node": "a", "do": "delay", "seconds": 0.2}    each way
    {"node": "a", "do": "hold", "way": "up"}        up, down or both: nothing
                                passes until "pass", when it all arrives
    {"node": "a", "do": "refuse"}                   cut, and no new ones
    {"node": "a", "do": "cut"}                      reset what there is
    {"node": "a", "do": "cut", "after": 300}        when so many more bytes
                                have passed, in the middle of a frame perhaps
    {"do": "shut"}              cut and refuse all nodes, whatever else is
    {"do": "open"}              ordered, until this
Ends when its input does.
"""

import asyncio
import json
import sys


class Line:
    """One node's way to the broker."""

    def __init__(self):
        self.delay = 0.0
        self.held = set()
        self.refusing = False
        self.budget = None
        self.free = asyncio.Event()
        self.free.set()
        self.writers = set()
        self.shut = False

    def cut(self):
        for writer in list(self.writers):
            writer.transport.abort()
        self.budget = None

    def order(self, order):
        do = order["do"]
        if do == "pass":
            self.delay = 0.0
            self.held = set()
            self.refusing = False
            self.budget = None
        elif do == "delay":
            self.delay = order["seconds"]
        elif do == "hold":
            way = order.get("way", "both")
            self.held = {"up", "down"} if way == "both" else {way}
        elif do == "refuse":
            self.refusing = True
            self.cut()
        elif do in ("shut", "open"):
            self.shut = do == "shut"
            if self.shut:
                self.cut()
        elif do == "cut":
            if "after" in order:
                self.budget = order["after"]
            else:
                self.cut()
        # Whoever waits looks again at what it waits for.
        free, self.free = self.free, asyncio.Event()
        free.set()

    async def pump(self, reader, writer, way):
        try:
            while True:
                data = await reader.read(65536)
                if not data:
                    break
                while way in self.held:
                    await self.free.wait()
                if self.delay:
                    await asyncio.sleep(self.delay)
                if self.budget is not None:
                    if len(data) >= self.budget:
                        writer.write(data[: self.budget])
                        await writer.drain()
                        self.cut()
                        break
                    self.budget -= len(data)
                writer.write(data)
                await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.transport.abort()

    async def connect(self, reader, writer, broker_port):
        if self.refusing or self.shut:
            writer.transport.abort()
            return
        try:
            up_reader, up_writer = await asyncio.open_connection(
                "127.0.0.1", broker_port
            )
        except OSError:
            writer.transport.abort()
            return
        both = {writer, up_writer}
        self.writers |= both
        try:
            await asyncio.gather(
                self.pump(reader, up_writer, "up"),
                self.pump(up_reader, writer, "down"),
            )
        finally:
            self.writers -= both
            for one in both:
                one.transport.abort()


async def main():
    broker_port = int(sys.argv[1])
    lines = {}
    ports = {}
    servers = []
    for node in sys.argv[2:]:
        line = lines[node] = Line()
        server = await asyncio.start_server(
            lambda r, w, line=line: line.connect(r, w, broker_port),
            "127.0.0.1",
            0,
        )
        servers.append(server)
        ports[node] = server.sockets[0].getsockname()[1]
    print(json.dumps(ports), flush=True)

    orders = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(orders), sys.stdin
    )
    while True:
        order = await orders.readline()
        if not order:
            break
        order = json.loads(order)
        for node in [order["node"]] if "node" in order else lines:
            lines[node].order(order)


if __name__ == "__main__":
    asyncio.run(main())

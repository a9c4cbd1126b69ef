#!/usr/bin/env python3
"""What a message costs the broker: its CPU time, by shape of the message.

broker.py PORT PID: publish and consume small messages such as the protocol's,
some dozens under way at a time, and see what the broker's process spent.
CPU time, so it can be measured on a machine that has other things to do.
"""

import os
import sys

import pika

MESSAGES = 6000
UNDER_WAY = 32
BODY = b"x" * 120
TICK_US = 1e6 / os.sysconf("SC_CLK_TCK")

HEADERS = {"v": 1, "floor": "0123456789abcdef0123456789abcdef"}
FULL = dict(delivery_mode=1, type="prepare", reply_to="tpc_amqp.a.vote",
            correlation_id="a/0123456789abcdef0123456789abcdef",
            app_id="a", user_id="guest", headers=HEADERS)


def cpu_us(pid):
    with open(f"/proc/{pid}/stat") as f:
        fields = f.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) * TICK_US


def measure(port, pid, properties, batch=1, acks="each"):
    """CPU time per message of the protocol; batch of them travel as one."""
    parameters = pika.ConnectionParameters("127.0.0.1", port)
    publisher = pika.BlockingConnection(parameters)
    consumer = pika.BlockingConnection(parameters)
    out = publisher.channel()
    channel = consumer.channel()
    channel.exchange_declare("bench", "direct", durable=True)
    channel.queue_declare("bench", durable=True)
    channel.queue_purge("bench")
    channel.queue_bind("bench", "bench", "bench")
    channel.basic_qos(prefetch_count=64)
    received = 0

    def take(channel, method, properties, body):
        nonlocal received
        received += 1
        if acks == "each":
            channel.basic_ack(method.delivery_tag)
        elif acks == "multiple" and received % 8 == 0:
            channel.basic_ack(method.delivery_tag, multiple=True)

    channel.basic_consume("bench", take, auto_ack=acks == "none")
    begin = cpu_us(pid)
    total = MESSAGES // batch
    sent = 0
    while received < total:
        while sent < total and sent - received < max(1, UNDER_WAY // batch):
            out.basic_publish("bench", "bench", BODY * batch,
                              pika.BasicProperties(**properties))
            sent += 1
        consumer.process_data_events(time_limit=0.01)
    spent = cpu_us(pid) - begin
    channel.queue_delete("bench")
    publisher.close()
    consumer.close()
    return spent / MESSAGES


def main():
    port, pid = int(sys.argv[1]), int(sys.argv[2])
    expiring = dict(FULL, expiration="10000")
    shapes = (
        ("as a prepare: properties, expiration, acked one by one",
         dict(properties=expiring)),
        ("without expiration", dict(properties=FULL)),
        ("eight deliveries acknowledged at a time",
         dict(properties=FULL, acks="multiple")),
        ("no acknowledgement", dict(properties=FULL, acks="none")),
        ("no acknowledgement, no properties",
         dict(properties={"delivery_mode": 1}, acks="none")),
        ("four in one message", dict(properties=expiring, batch=4)),
        ("eight in one message", dict(properties=expiring, batch=8)),
    )
    measure(port, pid, FULL)    # warm up
    print("message\tcpu_us")
    rounds = [[measure(port, pid, **how) for _, how in shapes]
              for _ in range(2)]
    for i, (name, _) in enumerate(shapes):
        print(f"{name}\t{sum(r[i] for r in rounds) / len(rounds):.1f}")


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""The write-up's way, made to work: Python, pika, psycopg2, three queues.

A request updates a row of its own database (a) and has a row of another (b)
updated by that one's service, over RabbitMQ:

  request                                  service of b
  -------                                  ------------
  BEGIN; UPDATE
  publish prepare        -- prepare -->    BEGIN; UPDATE; PREPARE TRANSACTION
  wait for the agreement <-- reply --      agree
  INSERT INTO outcome; COMMIT
  publish commit         -- commit  -->    COMMIT PREPARED
  wait until applied     <-- reply --      done

In the write-up the commit handler opens a new session, so that what was
prepared is never committed; PREPARE TRANSACTION and the row in table outcome
(the decision) are what it takes to make it work at all.  Recovery after a
crash, time-outs and repeated messages are not handled, which makes it faster
than a complete one would be.

Variants: "shared" has one trio of queues for all transactions;
"per-transaction" makes queues txn_<uuid>_prepare, _commit and _rollback for
each, announces them to the service, and deletes them at the end.  Queues are
durable and messages persistent, as the write-up wants them.

Prints one line as bench/xa does.
"""

import argparse
import json
import multiprocessing
import os
import random
import time
import uuid

import pika
import psycopg2

SHARED = ("prepare_queue", "commit_queue", "rollback_queue")
ANNOUNCE = "new_transactions"


def connect_broker(port):
    connection = pika.BlockingConnection(
        pika.ConnectionParameters("127.0.0.1", port, heartbeat=0))
    return connection, connection.channel()


def transaction_queues(transaction):
    return [f"txn_{transaction}_{kind}"
            for kind in ("prepare", "commit", "rollback")]


class Service:
    """A worker of b's service."""

    def __init__(self, arguments):
        self.database = psycopg2.connect(arguments.b)
        self.database.autocommit = True
        self.cursor = self.database.cursor()
        _, self.channel = connect_broker(arguments.port)
        self.shared = arguments.variant == "shared"
        self.tags = {}

    def reply(self, properties, kind):
        self.channel.basic_publish(
            "", properties.reply_to, json.dumps({"kind": kind}),
            pika.BasicProperties(correlation_id=properties.correlation_id))

    def prepare(self, channel, method, properties, body):
        row = json.loads(body)["id"]
        self.cursor.execute("BEGIN")
        self.cursor.execute(
            "UPDATE account SET balance = balance + 1 WHERE id = %s", (row,))
        self.cursor.execute("PREPARE TRANSACTION %s",
                            (properties.correlation_id,))
        self.reply(properties, "agree")
        channel.basic_ack(method.delivery_tag)

    def commit(self, channel, method, properties, body):
        self.cursor.execute("COMMIT PREPARED %s",
                            (properties.correlation_id,))
        channel.basic_ack(method.delivery_tag)
        self.forget(properties.correlation_id)
        self.reply(properties, "done")

    def rollback(self, channel, method, properties, body):
        self.cursor.execute("ROLLBACK PREPARED %s",
                            (properties.correlation_id,))
        channel.basic_ack(method.delivery_tag)
        self.forget(properties.correlation_id)
        self.reply(properties, "done")

    def forget(self, transaction):
        for tag in self.tags.pop(transaction, ()):
            self.channel.basic_cancel(tag)

    def announced(self, channel, method, properties, body):
        """Listen to the queues of a new transaction."""
        transaction = json.loads(body)["transaction"]
        channel.basic_ack(method.delivery_tag)
        self.tags[transaction] = [
            channel.basic_consume(queue, callback)
            for queue, callback in zip(
                transaction_queues(transaction),
                (self.prepare, self.commit, self.rollback))]

    def run(self):
        self.channel.basic_qos(prefetch_count=1 if self.shared else 10)
        if self.shared:
            for queue, callback in zip(
                    SHARED, (self.prepare, self.commit, self.rollback)):
                self.channel.basic_consume(queue, callback)
        else:
            self.channel.basic_consume(ANNOUNCE, self.announced)
        self.channel.start_consuming()


class Request:
    """A client of a, which does one transaction after the other."""

    def __init__(self, arguments, number):
        self.arguments = arguments
        self.number = number
        self.random = random.Random(number)
        self.database = psycopg2.connect(arguments.a)
        self.cursor = self.database.cursor()
        self.connection, self.channel = connect_broker(arguments.port)
        self.shared = arguments.variant == "shared"
        self.replies = self.channel.queue_declare(
            "", exclusive=True).method.queue
        self.channel.basic_consume(self.replies, self.replied, auto_ack=True)
        self.got = None

    def replied(self, channel, method, properties, body):
        self.got = (properties.correlation_id, json.loads(body)["kind"])

    def wait_for(self, transaction, kind):
        while self.got != (transaction, kind):
            self.connection.process_data_events(time_limit=10)

    def publish(self, queue, transaction, body):
        self.channel.basic_publish(
            "", queue, json.dumps(body),
            pika.BasicProperties(delivery_mode=2, reply_to=self.replies,
                                 correlation_id=transaction))

    def transaction(self):
        size = max(1, self.arguments.rows // self.arguments.clients)
        row = self.number * size + self.random.randrange(size) + 1
        transaction = str(uuid.uuid4())
        if self.shared:
            queues = SHARED
        else:
            queues = transaction_queues(transaction)
            for queue in queues:
                self.channel.queue_declare(queue, durable=True)
            self.publish(ANNOUNCE, transaction, {"transaction": transaction})
        self.cursor.execute(
            "UPDATE account SET balance = balance + 1 WHERE id = %s", (row,))
        self.publish(queues[0], transaction, {"id": row})
        self.wait_for(transaction, "agree")
        self.cursor.execute("INSERT INTO outcome VALUES (%s)", (transaction,))
        self.database.commit()
        self.publish(queues[1], transaction, {})
        self.wait_for(transaction, "done")
        if not self.shared:
            for queue in queues:
                self.channel.queue_delete(queue)

    def run(self, barrier, results):
        self.transaction()
        barrier.wait()
        begin = time.monotonic() + self.arguments.warmup
        end = begin + self.arguments.seconds
        latencies = []
        while True:
            start = time.monotonic()
            if start >= end:
                break
            self.transaction()
            now = time.monotonic()
            if start >= begin and now <= end:
                latencies.append(int((now - start) * 1e6))
        results.put(latencies)


def run_service(arguments):
    Service(arguments).run()


def run_request(arguments, number, barrier, results):
    Request(arguments, number).run(barrier, results)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--variant", choices=("shared", "per-transaction"))
    parser.add_argument("--clients", type=int)
    parser.add_argument("--warmup", type=float)
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--rows", type=int)
    parser.add_argument("--port", type=int)
    parser.add_argument("a")
    parser.add_argument("b")
    arguments = parser.parse_args()

    connection, channel = connect_broker(arguments.port)
    for queue in SHARED + (ANNOUNCE,):
        channel.queue_declare(queue, durable=True)
    connection.close()

    barrier = multiprocessing.Barrier(arguments.clients)
    results = multiprocessing.Queue()
    services = [multiprocessing.Process(target=run_service, daemon=True,
                                        args=(arguments,))
                for _ in range(min(8, arguments.clients))]
    requests = [multiprocessing.Process(
        target=run_request, daemon=True,
        args=(arguments, number, barrier, results))
        for number in range(arguments.clients)]
    for process in services + requests:
        process.start()
    latencies = sorted(
        us for _ in requests
        for us in results.get(timeout=arguments.warmup +
                              arguments.seconds + 60))
    for process in requests:
        process.join()
    for process in services:
        process.terminate()

    def percentile(p):
        return latencies[int(p * (len(latencies) - 1) + 0.5)]

    n = len(latencies)
    print("\t".join(str(x) for x in (
        "writeup-" + arguments.variant, arguments.clients, arguments.seconds,
        n, 0, round(n / arguments.seconds, 1), sum(latencies) // n,
        percentile(0.5), percentile(0.95), percentile(0.99), percentile(1),
        0, "")))


if __name__ == "__main__":
    os.environ.setdefault("LC_ALL", "C.UTF-8")
    main()

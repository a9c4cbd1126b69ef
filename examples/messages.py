"""Queues and messages of a node that takes part, by sections 1 to 4 of doc/protocol.md.

A participant has take(message), which returns what to answer, (type, body) or None;
and in_doubt(connected), which returns gtids to inquire about, and is asked again and
again: with connected true first, and after each loss of the connection.
"""

import functools
import json
import logging
import re
import sqlite3
import time
from collections import namedtuple

import pika

EXCHANGE = "tpc_amqp"
QUEUES = {"prepare": ["prepare"], "decision": ["commit", "rollback", "unknown"]}
NODE = "[A-Za-z0-9_.-]{1,63}"
UUID = "[0-9a-f]{8}-[0-9a-f]{4}-8[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"

# user: who sent it, by the broker's word.  deadline: of a prepare, time.monotonic().
Message = namedtuple("Message", "type gtid user deadline body")


def need(condition, what):
    """What is bad is a ValueError."""
    if not condition:
        raise ValueError(f"bad {what}")


def field(value, name, kind, *default):
    """A field of a JSON object, which has to be there unless there is a default."""
    need(type(value) is dict, "object")
    if value.get(name) is None and default:
        return default[0]
    need(type(value.get(name)) is kind, name)
    return value[name]


def take_part(participant, node, url, uuid=None):
    """Be that node, for ever; or take part in one transaction, by its own queues."""
    parameters = pika.URLParameters(url)
    parameters.blocked_connection_timeout = 30
    purge = False
    while True:
        began = time.monotonic()
        try:
            if uuid is None:
                serve(participant, node, parameters, purge)
            elif serve_one(participant, node, parameters, uuid):
                return
            purge = False
        except (pika.exceptions.AMQPError, OSError, sqlite3.Error) as error:
            logging.warning("trying again: %r", error)
            # A message that pika cannot read ends each connection.  Queues may always
            # be emptied: what counts is sent again.
            soon = time.monotonic() - began < 1
            purge = soon and isinstance(error, pika.exceptions.StreamLostError)
        time.sleep(1)


def serve(participant, node, parameters, purge):
    with pika.BlockingConnection(parameters) as connection:
        channel = connection.channel()
        user = parameters.credentials.username
        send = functools.partial(answer, channel, user, node, None)
        channel.exchange_declare(EXCHANGE, "direct", durable=True)
        channel.basic_qos(prefetch_count=1)  # no row of prepares before a decision
        for name, types in QUEUES.items():
            queue = f"tpc_amqp.{node}.{name}"
            classic = {"x-queue-type": "classic"}
            channel.queue_declare(queue, durable=True, arguments=classic)
            channel.queue_bind(queue, EXCHANGE, queue)
            if purge:
                channel.queue_purge(queue)
            take = functools.partial(receive, participant, send, types)
            channel.basic_consume(queue, take, exclusive=True)
        connected = True
        while channel.is_open and len(channel.consumer_tags) == len(QUEUES):
            for gtid in participant.in_doubt(connected):
                send(gtid, "inquiry", {})
            connected = False
            connection.process_data_events(time_limit=0.5)


def serve_one(participant, node, parameters, uuid):
    """The same in the queues of one transaction.  True if it is over here."""
    over = []

    def in_doubt(connected=False):
        asked = participant.in_doubt(connected)
        return [gtid for gtid in asked if gtid.endswith(f"/{uuid}")]

    def send(gtid, kind, body):
        answer(channel, user, node, uuid, gtid, kind, body)
        if kind == "ack" or body.get("vote") in ("no", "read-only"):
            over.append(kind)

    def take(types, *delivery):
        receive(participant, send, types, *delivery)
        if "rollback" in types and not in_doubt(True):
            over.append("rollback")

    with pika.BlockingConnection(parameters) as connection:
        user = parameters.credentials.username
        kinds = ["prepare", "commit", "rollback"]
        there = [k for k in kinds if is_there(connection, f"txn_{uuid}_{k}")]
        channel = connection.channel()
        if there != kinds:  # it has ended, and perhaps we do not know how
            if not in_doubt(True):
                return True
            for kind in {"commit", "rollback"}.difference(there):
                queue, expires = f"txn_{uuid}_{kind}", {"x-expires": 60000}
                channel.queue_declare(
                    queue, durable=True, auto_delete=True, arguments=expires
                )
                channel.queue_bind(queue, EXCHANGE, queue)
                there.append(kind)
        for kind in there:
            callback = functools.partial(take, [kind])
            channel.basic_consume(f"txn_{uuid}_{kind}", callback, exclusive=True)
        connected = True
        while not over and len(channel.consumer_tags) == len(there):
            for gtid in in_doubt(connected):
                send(gtid, "inquiry", {})
            connected = False
            connection.process_data_events(time_limit=0.2)
        return bool(over) or not in_doubt(True)


def is_there(connection, queue):
    try:
        connection.channel().queue_declare(queue, passive=True)
    except pika.exceptions.ChannelClosedByBroker as error:
        if error.reply_code != 404:
            raise
        return False
    return True


def answer(channel, user, node, uuid, gtid, kind, body):
    """Send this to the coordinator; the answer comes to the queues with the uuid."""
    properties = pika.BasicProperties(
        type=kind,
        correlation_id=gtid,
        app_id="tpc_amqp",
        user_id=user,
        content_type="application/json",
        reply_to=f"txn_{uuid}_vote" if uuid else f"tpc_amqp.{node}.vote",
        headers={"tpc-version": 1, "tpc-from": node},
    )
    queue = f"tpc_amqp.{gtid.split('/')[0]}.vote"
    channel.basic_publish(EXCHANGE, queue, json.dumps(body), properties, mandatory=True)


def receive(participant, send, types, channel, method, properties, body):
    for message in read(properties, body, types):
        said = participant.take(message)
        if said:
            send(message.gtid, *said)
    channel.basic_ack(method.delivery_tag)


def read(properties, body, types):
    """Yield the messages of these types in one of AMQP's.  Bad ones are dropped."""
    try:
        items = unpack(properties, body)
    except (ValueError, RecursionError) as error:
        logging.warning("dropped: %s", error)
        return
    for item in items:
        try:
            message = check(properties, types, *item)
        except (ValueError, RecursionError) as error:
            logging.warning("dropped: %s", error)
        else:
            yield message


def unpack(properties, body):
    """A list of (type, gtid, timeout, body): one, or those of a batch."""
    p = properties
    if p.type != "batch":
        return [(p.type, p.correlation_id, p.expiration, body)]
    batch = parse(body)
    need(type(batch) is list and 0 < len(batch) <= 64 and len(body) <= 65536, "batch")
    items = []
    for item in batch:
        kind, gtid = field(item, "type", str), field(item, "gtid", str)
        timeout = field(item, "timeout", int) if kind == "prepare" else None
        items.append((kind, gtid, timeout, field(item, "body", dict, {})))
    return items


def check(properties, types, kind, gtid, timeout, body):
    headers = properties.headers or {}
    version, floor = headers.get("tpc-version"), headers.get("tpc-floor")
    need(properties.app_id == "tpc_amqp", "app_id")
    need(type(version) is int and version == 1, "tpc-version")
    need(floor is None or re.fullmatch(UUID, str(floor)), "tpc-floor")
    name = re.fullmatch(f"({NODE})/{UUID}", str(gtid))
    need(name and name[1] == headers.get("tpc-from"), "gtid or tpc-from")
    need(kind in types, "type")
    deadline = None
    if kind == "prepare":
        need(re.fullmatch("[0-9]{1,10}", str(timeout)), "expiration")
        need(0 < int(timeout) < 2**30, "expiration")
        deadline = time.monotonic() + int(timeout) / 1000
    if type(body) is bytes:
        body = parse(body)
    need(type(body) is dict, "body")
    if kind in ("rollback", "unknown"):
        field(body, "reason", str, None)
        field(body, "forgotten", bool, None)
    return Message(kind, gtid, properties.user_id or "", deadline, body)


def parse(body):
    def once(pairs):
        need(len(dict(pairs)) == len(pairs), "object: a field is there twice")
        return dict(pairs)

    text = body.decode() or "{}"
    need(not re.search(r"(?<!\\)(\\\\)*\\u0000", text), "string")
    value = json.loads(text, object_pairs_hook=once, parse_constant=int)
    json.dumps(value, ensure_ascii=False).encode()  # no unpaired surrogates
    return value

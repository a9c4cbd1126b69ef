#!/usr/bin/env python3
"""The participant of examples/, which stops itself (SIGSTOP) at a step, once.

    AMQP_URL=… stopping.py STEP NODE DATABASE [UUID]

STEP is prepare, prepared, voted, decision, decided or acknowledged; the last three
of a branch that this process has prepared.
"""

import os
import runpy
import signal
import sys

EXAMPLES = os.path.join(os.path.dirname(os.path.realpath(__file__)), "../../examples")
sys.path.insert(0, EXAMPLES)

import messages  # noqa: E402

step = sys.argv.pop(1)
prepared = set()


def at(name, gtid):
    global step
    if name in ("prepare", "prepared", "voted"):
        prepared.add(gtid)
    if step and name == step and gtid in prepared:
        step = None
        os.kill(os.getpid(), signal.SIGSTOP)


def take_part(participant, node, url, *uuid):
    take = participant.take

    def stopping_take(message):
        prepare = message.type == "prepare"
        at("prepare" if prepare else "decision", message.gtid)
        said = take(message)
        at("prepared" if prepare else "decided", message.gtid)
        return said

    participant.take = stopping_take
    original_take_part(participant, node, url, *uuid)


def answer(channel, user, node, uuid, gtid, kind, body):
    original_answer(channel, user, node, uuid, gtid, kind, body)
    at({"vote": "voted", "ack": "acknowledged"}.get(kind), gtid)


original_take_part, messages.take_part = messages.take_part, take_part
original_answer, messages.answer = messages.answer, answer
runpy.run_path(os.path.join(EXAMPLES, "participant.py"), run_name="__main__")

#!/usr/bin/python3
"""A ledger that takes part in transactions of PostgreSQL nodes.

    AMQP_URL=amqp://ledger:secret@localhost/%2F participant.py ledger ledger.db [UUID]

It is node "ledger", as doc/protocol.md tells how to be one, and has its bookings in
an SQLite database.  Those of a prepared branch are there and do not count yet, but
what they take is set aside: so they can be kept or undone, whichever is decided.
Branch records are kept for ever, as ledgers are, so that floors can be ignored.

With the uuid of a transaction that has queues of its own, it takes part in that one.
"""

import logging
import os
import random
import sqlite3
import sys
import time

from messages import field, need, take_part

SCHEMA = """
PRAGMA journal_mode = WAL;
PRAGMA synchronous = FULL;              -- what is committed is on disk
CREATE TABLE IF NOT EXISTS branch (gtid TEXT PRIMARY KEY, user TEXT NOT NULL,
    state TEXT NOT NULL, reason TEXT);  -- prepared or committed; why in doubt
CREATE TABLE IF NOT EXISTS booking (gtid TEXT, account TEXT, amount INTEGER);
"""
# What an account has, whatever becomes of branches that are prepared: what they take
# counts, what they bring does not, but for the one that asks.
LEFT = """
SELECT coalesce(sum(amount), 0) FROM booking LEFT JOIN branch USING (gtid)
WHERE account = ? AND (state = 'committed' OR amount < 0 OR gtid = ?)
"""


class Refused(Exception):
    """A no vote: SQLSTATE and message."""


class Ledger:
    def __init__(self, path):
        self.db = sqlite3.connect(path, isolation_level=None)
        self.db.executescript(SCHEMA)
        self.asked = {}  # gtid: when to inquire again, and the pause after that

    # The work.  A handler raises Refused, or returns a text for people to read (of
    # which the first hundred are sent; a vote has to be short).

    def book(self, gtid, arg):
        """{"account": "ann", "amount": -30} takes 30 from her."""
        account, amount = field(arg, "account", str), field(arg, "amount", int)
        need(abs(amount) < 2**31, "amount")
        self.db.execute("INSERT INTO booking VALUES (?, ?, ?)", (gtid, account, amount))
        (left,) = self.db.execute(LEFT, (account, gtid)).fetchone()
        if amount < 0 and left < 0:
            raise Refused("LD001", f"{account[:99]} has only {left - amount}")

    def left(self, gtid, arg):
        """{"account": "ann"}: what she has left."""
        account = field(arg, "account", str)
        return str(self.db.execute(LEFT, (account, gtid)).fetchone()[0])

    handlers = {"book": book, "left": left}

    # The protocol, section 6.  Both kinds of message are one transaction of the
    # database, in which nobody else writes, and return what to answer.  No branch
    # waits for another one, so that one process does for prepares and decisions.

    def take(self, m):
        if m.type == "prepare":
            vote = self.prepare(m)
            return vote and ("vote", vote)
        return self.decide(m)

    def find(self, m):
        find = "SELECT state, user FROM branch WHERE gtid = ?"
        return self.db.execute(find, (m.gtid,)).fetchone() or (None, m.user)

    def prepare(self, m):
        try:
            with self.db:
                self.db.execute("BEGIN IMMEDIATE")
                state, user = self.find(m)
                if state:
                    again = state == "prepared" and user == m.user
                    return {"vote": "yes"} if again else None
                results = [self.call(m.gtid, c) for c in field(m.body, "calls", list)]
                wrote = "SELECT 1 FROM booking WHERE gtid = ?"
                wrote = self.db.execute(wrote, (m.gtid,)).fetchone()
                if not wrote and not field(m.body, "must_prepare", bool, False):
                    return {"vote": "read-only", "results": results[:100]}
                if time.monotonic() > m.deadline:
                    raise Refused("57014", "nobody waits for this any more")
                row = (m.gtid, m.user, "prepared", None)
                self.db.execute("INSERT INTO branch VALUES (?, ?, ?, ?)", row)
            self.asked[m.gtid] = (time.monotonic() + 1, 1)
            return {"vote": "yes", "results": results[:100]}  # now that it is durable
        except (Refused, ValueError) as no:
            sqlstate, text = no.args if type(no) is Refused else ("22023", str(no))
            return {"vote": "no", "error": {"sqlstate": sqlstate, "message": text}}

    def call(self, gtid, call):
        name = field(call, "handler", str)
        need("arg" in call, "call")
        if name not in self.handlers:
            raise Refused("42883", f'handler "{name[:63]}" does not exist')
        return self.handlers[name](self, gtid, call["arg"])

    def decide(self, m):
        with self.db:
            self.db.execute("BEGIN IMMEDIATE")
            state, user = self.find(m)
            if user != m.user:
                logging.warning("dropped: %s of %s by '%s'", m.type, m.gtid, m.user)
                return None
            if m.type == "commit":
                commit = "UPDATE branch SET state = 'committed' WHERE gtid = ?"
                self.db.execute(commit, (m.gtid,))
            elif m.type == "unknown":
                note = "UPDATE branch SET reason = ? WHERE gtid = ?"
                self.db.execute(note, (str(m.body.get("reason")), m.gtid))
            elif state == "prepared":
                self.db.execute("DELETE FROM booking WHERE gtid = ?", (m.gtid,))
                self.db.execute("DELETE FROM branch WHERE gtid = ?", (m.gtid,))
            elif state and not m.body.get("forgotten"):
                logging.error("%s is committed here, and rolled back there", m.gtid)
        if m.type == "commit":
            if not state:
                logging.error("%s is committed there, and lost here", m.gtid)
            return "ack", {"outcome": "committed" if state else "lost"}

    def in_doubt(self, connected):
        """What to inquire about, with growing pauses, but never to be given up."""
        if connected:
            self.asked = {}
        prepared = "SELECT gtid, reason FROM branch WHERE state = 'prepared'"
        for gtid, reason in self.db.execute(prepared).fetchall():
            due, pause = self.asked.get(gtid, (0, 1))
            if due <= time.monotonic():
                pause = 60 if reason else min(pause * random.uniform(1.5, 2.5), 60)
                self.asked[gtid] = (time.monotonic() + pause, pause)
                yield gtid


if __name__ == "__main__":
    logging.basicConfig(format="%(asctime)s %(message)s")
    logging.getLogger("pika").setLevel(logging.CRITICAL)
    take_part(Ledger(sys.argv[2]), sys.argv[1], os.environ["AMQP_URL"], *sys.argv[3:])

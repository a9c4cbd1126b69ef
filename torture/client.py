"""One client of the bank.  It makes transfers and writes down, before and
after each step that counts, what it wants and what it was told.

    client.py '{"id": "a0.1", "seed": 1, "home": "a", "nodes": {…}, …}'

Its notes are lines of JSON, written at once, so that they are there if the
process is killed; torture.py compares them with what the databases have:

    plan       the legs that are to be there if it commits, and those that
               must never be (of savepoints that roll back)
    took       messages that it has taken by hand, if it commits
    gtid       its global transaction's id
    deciding   from here on it may commit; before, it must not
    end        what the client was told: ok, no (not committed, for certain),
               unknown
    wrong      what no client may see
"""

import json
import os
import random
import signal
import sys
import threading
import time

import psycopg2

LOST_STATES = ("FATAL", "PANIC")


class Lost(Exception):
    """The connection is gone, and the answer with it."""


class Refused(Exception):
    """The server's answer is no."""

    def __init__(self, error):
        super().__init__(str(error).split("\n", maxsplit=1)[0])
        self.sqlstate = error.pgcode or ""


class Client:
    def __init__(self, config):
        self.id = config["id"]
        self.slot = self.id.split(".", maxsplit=1)[0]
        self.home = config["home"]
        self.dsn = config["nodes"]
        self.accounts = config["accounts"]
        self.pause = config["pause"]
        self.paused = config["paused"]
        self.rng = random.Random(config["seed"])
        self.notes = open(config["notes"], "a", buffering=1)
        self.think = config["think"]
        self.named = config["named"]
        # Not where commits wait for a standby: they go on without it then.
        self.may_cancel = config["may_cancel"]
        self.connections = {}
        self.count = 0
        self.transfer = None

    # ----------------------------------------------------------------------
    # Notes

    def note(self, what, **more):
        self.notes.write(
            json.dumps({"at": round(time.time(), 3), "x": self.transfer,
                        "ev": what, **more}) + "\n"
        )

    def wrong(self, text):
        self.note("wrong", text=text)

    # ----------------------------------------------------------------------
    # Connections

    def connection(self, node, other=False):
        key = (node, other)
        connection = self.connections.get(key)
        if connection is not None and not connection.closed:
            return connection
        try:
            connection = psycopg2.connect(self.dsn[node], connect_timeout=5)
            connection.autocommit = True
        except psycopg2.Error as error:
            raise Lost(str(error).split("\n", maxsplit=1)[0]) from error
        self.connections[key] = connection
        return connection

    def drop(self, node, other=False):
        connection = self.connections.pop((node, other), None)
        if connection is not None:
            try:
                connection.close()
            except psycopg2.Error:
                pass

    def sql(self, node, text, args=None, other=False):
        """Returns (tag, first row or None)."""
        connection = self.connection(node, other)
        start = time.monotonic()
        try:
            with connection.cursor() as cursor:
                cursor.execute(text, args)
                row = cursor.fetchone() if cursor.description else None
                return cursor.statusmessage, row
        except (psycopg2.OperationalError, psycopg2.InterfaceError,
                psycopg2.DatabaseError) as error:
            severity = getattr(error, "diag", None)
            severity = severity and severity.severity_nonlocalized
            if connection.closed or severity in LOST_STATES or not error.pgcode:
                self.drop(node, other)
                raise Lost(str(error).split("\n", maxsplit=1)[0]) from error
            raise Refused(error) from error
        finally:
            took = time.monotonic() - start
            if took > 8:
                self.note("slow", node=node, text=text[:60],
                          seconds=round(took, 1))

    def rollback(self, *nodes):
        for node in nodes:
            if (node, False) in self.connections:
                try:
                    self.sql(node, "ROLLBACK")
                except (Lost, Refused):
                    self.drop(node)

    def warnings(self, node, other=False):
        connection = self.connections.get((node, other))
        return [
            n for n in (connection.notices if connection else [])
            if n.startswith("WARNING")
            and "there is no transaction in progress" not in n
            and "there is already a transaction" not in n
        ]

    # ----------------------------------------------------------------------
    # Parts of transfers

    def leg(self, node, amount, say=0.35):
        self.legs += 1
        leg = {
            "node": node,
            "transfer": self.transfer,
            "leg": self.legs,
            "account": self.rng.randint(1, self.accounts),
            "amount": amount,
        }
        if self.rng.random() < say:
            leg["part"] = f"{self.transfer}/{self.legs}"
            leg["say"] = [self.message(n + 1) for n in range(
                self.rng.choice((1, 1, 2, 3, 5)))]
        return leg

    def message(self, n, fate=None):
        """One to be published: where to, and what is to happen there."""
        rng = self.rng
        node = rng.choice(list(self.dsn))
        fate = fate or rng.choices(
            ("plain", "call", "forward", "flaky", "poison", "slow"),
            (70, 8, 6, 6, 4, 2))[0]
        exchange, key = rng.choices(
            (("news", ""), ("", f"inbox.{node}"), ("", f"hand.{node}")),
            (3, 4, 2))[0]
        message = {
            "n": n, "exchange": exchange, "key": key, "fate": fate,
            # Where only that is left of one that is dropped.
            "id": key in self.named,
            "pad": rng.choice((0,) * 18 + (5000, 100000)),
        }
        if fate == "call":
            message["node"] = rng.choice(list(self.dsn))
        elif fate == "forward":
            message["next"] = [self.message(i + 1, "plain")
                               for i in range(rng.choice((1, 2)))]
        return message

    def plan(self, way, coordinator, nodes, never=(), say=0.35):
        """A leg on each node, which together make zero."""
        self.count += 1
        self.transfer = f"{self.id}.{self.count}"
        self.legs = 0
        amount = self.rng.randint(1, 20) * len(nodes[1:])
        if self.rng.random() < 0.5:
            amount = -amount
        legs = [self.leg(nodes[0], -amount, say)]
        legs += [
            self.leg(node, amount // len(nodes[1:])) for node in nodes[1:]
        ]
        never = [self.leg(node, 1) for node in never]
        self.note("plan", way=way, on=coordinator,
                  legs=[[g["node"], g["leg"], g["account"], g["amount"]]
                        for g in legs])
        return legs, never

    @staticmethod
    def arg(leg, **more):
        return json.dumps({**{k: v for k, v in leg.items() if k != "node"},
                           **more})

    def move(self, leg):
        self.sql(leg["node"], "SELECT bank.move(%s)", (self.arg(leg),))

    def call(self, at, node, handler, arg):
        self.sql(at, "SELECT tpc_amqp.call(%s, %s, %s)", (node, handler, arg))

    def call_leg(self, at, leg):
        more = {}
        if self.rng.random() < 0.03:
            more["sleep"] = self.rng.choice((0.05, 0.3, 1, 2.5))
        if self.rng.random() < 0.03:
            # In several frames; the last is refused.
            more["pad"] = "x" * self.rng.choice((5000, 150000, 150000, 900000,
                                                 1100000))
        self.call(at, leg["node"], "move", self.arg(leg, **more))

    def learn_gtid(self, node):
        gtid = self.sql(node, "SELECT tpc_amqp.gtid()")[1][0]
        if gtid is not None:
            self.note("gtid", gtid=gtid, node=node)
        return gtid

    def begin(self, node):
        isolation = self.rng.choice(
            ("READ COMMITTED",) * 6 + ("REPEATABLE READ", "SERIALIZABLE"))
        self.sql(node, "BEGIN ISOLATION LEVEL " + isolation)
        # Too short now and then, so that the answer comes when it is given up.
        if node == self.home and self.rng.random() < 0.15:
            self.sql(node, "SET LOCAL tpc_amqp.prepare_timeout ="
                     f" {self.rng.choice((5, 10, 20, 50, 200))}")
        if node == self.home and self.rng.random() < 0.1:
            self.sql(node, "SET LOCAL tpc_amqp.apply_timeout ="
                     f" {self.rng.choice((1, 5, 20))}")

    def end(self, result, gtid=None, node=None, legs=(), check=False,
            error=None):
        told = {}
        if error is not None:
            told = {"error": str(error)[:200],
                    "sqlstate": getattr(error, "sqlstate", "lost")}
        self.note("end", result=result, **told)
        if check and result == "ok" and self.rng.random() < 0.3:
            self.see(legs)
        if gtid and (result == "unknown" or self.rng.random() < 0.2):
            self.ask(gtid, node, result)
        if gtid and self.rng.random() < 0.1:
            self.ask_others(gtid, node)

    def see(self, legs):
        """COMMIT has returned without a warning: it is there, everywhere."""
        for leg in legs:
            try:
                row = self.sql(
                    leg["node"],
                    "SELECT count(*) FROM bank.journal"
                    " WHERE transfer = %s AND leg = %s",
                    (self.transfer, leg["leg"]), other=True)[1]
            except (Lost, Refused):
                continue
            if row[0] != 1:
                self.wrong(f"COMMIT returned without a warning, and leg"
                           f" {leg['leg']} is there {row[0]} times"
                           f" on {leg['node']}")

    def ask(self, gtid, node, result):
        """outcome(), until it is one, but not for ever."""
        deadline = time.monotonic() + (8 if result == "unknown" else 2)
        outcome = None
        while time.monotonic() < deadline:
            try:
                outcome = self.sql(node, "SELECT tpc_amqp.outcome(%s)",
                                   (gtid,), other=True)[1][0]
            except (Lost, Refused):
                outcome = None
            if outcome not in (None, "pending"):
                break
            time.sleep(0.1)
        self.note("outcome", outcome=outcome, gtid=gtid)

    def ask_others(self, gtid, node):
        """At another node, it is about the branch there."""
        other = self.rng.choice([n for n in self.dsn if n != node])
        try:
            outcome = self.sql(other, "SELECT tpc_amqp.outcome(%s)", (gtid,),
                               other=True)[1][0]
        except (Lost, Refused):
            return
        self.note("outcome", outcome=outcome, gtid=gtid, node=other)
        if outcome == "aborted":
            self.wrong(f"node {other} knows that it was rolled back")

    def finish(self, node, verb, gid, other=False):
        """COMMIT or ROLLBACK PREPARED: done, no (it stays as it is),
        committed, aborted (it has been decided otherwise), gone, lost."""
        try:
            tag = self.sql(node, f"{verb} PREPARED '{gid}'", other=other)[0]
            if tag != f"{verb} PREPARED":
                self.wrong(f"{verb} PREPARED returned {tag}")
            return "done", None
        except Lost as error:
            return "lost", error
        except Refused as error:
            if error.sqlstate == "42704":
                return "gone", error
            if error.sqlstate == "40000" and "rolled back" in str(error):
                return "aborted", error
            if error.sqlstate == "55000" and "has been committed" in str(error):
                return "committed", error
            return "no", error

    def gid(self, kind):
        """Now and then one that this client has used before."""
        if self.rng.random() < 0.3:
            return f"{kind} {self.slot}"
        return f"{kind} {self.transfer}"

    def others(self, count):
        return self.rng.sample([n for n in self.dsn if n != self.home], count)

    def maybe_die(self, chance=0.02):
        if self.rng.random() < chance:
            self.note("died")
            os.kill(os.getpid(), signal.SIGKILL)

    # ----------------------------------------------------------------------
    # COMMIT with calls

    def commit(self, way, legs, never=(), before=None, must_fail=False,
               gtid=None):
        """The work of one transaction at home is in before()."""
        home = self.home
        wait = self.rng.choice(("applied",) * 4 + ("decided",))
        try:
            self.begin(home)
            if self.rng.random() < 0.1 and self.may_cancel:
                self.sql(home, "SET LOCAL statement_timeout = '1500ms'")
            self.sql(home, f"SET LOCAL tpc_amqp.commit_wait = '{wait}'")
            before()
            gtid = self.learn_gtid(home)
            self.maybe_die(0.003)
        except (Lost, Refused) as error:
            self.rollback(home)
            return self.end("no", error=error)
        self.note("deciding")
        connection = self.connections[(home, False)]
        del connection.notices[:]
        try:
            tag = self.sql(home, "COMMIT")[0]
        except Lost as error:
            return self.end("unknown", gtid, home, error=error)
        except Refused as error:
            if must_fail and error.sqlstate in must_fail:
                self.note("refused-as-expected")
            return self.end("no", gtid, home, error=error)
        if tag != "COMMIT":
            return self.end("no", gtid, home)
        if must_fail:
            self.wrong("a COMMIT that must fail did not")
        return self.end("ok", gtid, home, legs,
                        wait == "applied" and not self.warnings(home))

    def way_call(self):
        legs, _ = self.plan("call", self.home,
                            [self.home] + self.others(self.rng.choice((1, 2))))

        def work():
            self.move(legs[0])
            for leg in legs[1:]:
                self.call_leg(self.home, leg)
        self.commit("call", legs, before=work)

    def way_call_only(self):
        """The session itself writes nothing; a node may call itself."""
        nodes = self.rng.sample(list(self.dsn), 2)
        legs, _ = self.plan("call-only", self.home, nodes)

        def work():
            for leg in legs:
                self.call_leg(self.home, leg)
        self.commit("call-only", legs, before=work)

    def way_tree(self):
        nodes = [self.home] + self.others(self.rng.choice((2, 2, 3)))
        if self.rng.random() < 0.1:
            nodes[2] = self.home
        legs, _ = self.plan("tree", self.home, nodes)

        def relay(left):
            arg = json.loads(self.arg(left[0]))
            if left[1:]:
                arg["next"] = [{"node": left[1]["node"],
                                "handler": "relay" if left[2:] else "move",
                                "arg": relay(left[1:])}]
            return arg

        def work():
            self.move(legs[0])
            self.call(self.home, nodes[1], "relay", json.dumps(relay(legs[1:])))
        self.commit("tree", legs, before=work)

    def way_readonly(self):
        nodes = self.others(self.rng.choice((1, 2)))
        writing = self.rng.random() < 0.5
        if writing:
            legs, _ = self.plan("read-only", self.home,
                                [self.home, nodes[0]])
        else:
            legs = []
            self.count += 1
            self.transfer = f"{self.id}.{self.count}"
            self.note("plan", way="read-only", on=self.home, legs=[])

        def work():
            if writing:
                self.move(legs[0])
                self.call_leg(self.home, legs[1])
            for node in nodes[1:] if writing else nodes:
                self.call(self.home, node, "look", "{}")
        self.commit("read-only", legs, before=work)

    def way_savepoint(self):
        nodes = [self.home] + self.others(2)
        legs, never = self.plan("savepoint", self.home, nodes,
                                never=self.others(2))
        never_here = never[1]

        def work():
            home = self.home
            self.move(legs[0])
            self.sql(home, "SAVEPOINT one")
            self.call_leg(home, legs[1])
            self.sql(home, "RELEASE SAVEPOINT one")
            self.sql(home, "SAVEPOINT two")
            self.call_leg(home, never[0])
            self.sql(home, "SAVEPOINT three")
            self.call_leg(home, never_here)
            if self.rng.random() < 0.5:
                self.sql(home, "RELEASE SAVEPOINT three")
            self.sql(home, "ROLLBACK TO SAVEPOINT two")
            self.call_leg(home, legs[2])
        self.commit("savepoint", legs, never, before=work)

    def way_refused(self):
        """Something in it must be refused."""
        nodes = [self.home] + self.others(2)
        kind = self.rng.choice(("handler", "node", "raise", "late", "here",
                                "prepared", "constraint", "relay"))
        legs, _ = self.plan("refused", self.home, nodes)
        last = legs[2]

        def work():
            home = self.home
            self.move(legs[0])
            self.call_leg(home, legs[1])
            if kind == "handler":
                self.call(home, last["node"], "nobody", self.arg(last))
            elif kind == "node":
                self.call(home, "nowhere", "move", self.arg(last))
            elif kind == "raise":
                self.call(home, last["node"], "refuse", self.arg(last))
            elif kind == "late":
                self.call(home, last["node"], "refuse_late", self.arg(last))
            elif kind == "here":
                self.call_leg(home, last)
                self.sql(home, "INSERT INTO bank.late VALUES (-1)")
            elif kind == "constraint":
                self.call(home, last["node"], "move", self.arg(
                    {**last, "account": 1, "amount": -1000000}))
            elif kind == "relay":
                self.call(home, last["node"], "relay", self.arg(last, next=[
                    {"node": legs[1]["node"], "handler": "refuse",
                     "arg": json.loads(self.arg(legs[1]))}]))
            else:
                # What cannot be prepared.
                self.call(home, last["node"], "move", self.arg(last))
                self.call(home, last["node"], "move", self.arg(
                    {**last, "account": 100000}))
        self.commit("refused", legs, before=work, must_fail=(
            "42883", "42704", "P0001", "P0002", "23514"))

    # ----------------------------------------------------------------------
    # Messages

    def way_say(self):
        """Only publish: nobody is called."""
        legs, _ = self.plan("say", self.home, [self.home], say=1)
        self.commit("say", legs, before=lambda: self.move(legs[0]))

    def way_say_prepared(self):
        """The server's own two-phase commit, which is not ours to finish."""
        home = self.home
        legs, _ = self.plan("say-prepared", home, [home], say=1)
        gid = f"m {self.transfer}"
        # Whatever nobody finishes, torture.py does, either way.
        self.note("deciding")
        verb = self.rng.choice(("COMMIT", "COMMIT", "ROLLBACK", None))
        try:
            self.begin(home)
            self.move(legs[0])
            if self.sql(home, f"PREPARE TRANSACTION '{gid}'")[0] != (
                    "PREPARE TRANSACTION"):
                return self.end("no")
        except Lost as error:
            return self.end("unknown", error=error)
        except Refused as error:
            self.rollback(home)
            return self.end("no", error=error)
        self.maybe_die()
        if verb is None:
            return self.end("unknown")
        if self.rng.random() < 0.3:
            time.sleep(self.rng.choice((0.02, 0.3, 1)))
        answer, error = self.finish(home, verb, gid, self.rng.random() < 0.3)
        if answer == "done":
            return self.end("ok" if verb == "COMMIT" else "no")
        return self.end("unknown", error=error)

    def way_get(self):
        """Take messages; with or without a call, that is one act."""
        home = self.home
        queue = self.rng.choice((f"hand.{home}",) * 3 + (f"inbox.{home}",))
        nodes = [home]
        if self.rng.random() < 0.5:
            nodes += self.others(1)
        style = self.rng.choices(
            ("commit", "savepoint", "rollback", "prepare", "die"),
            (12, 6, 3, 1, 1))[0]
        legs, _ = self.plan("get" if len(nodes) == 1 else "get-call", home,
                            nodes, say=0.2)
        took = []

        def take():
            m = self.sql(home, "SELECT bank.take_one(%s, %s)",
                         (queue, self.transfer))[1][0]
            return [] if m is None else [m]

        def work():
            for _ in range(self.rng.choice((1, 1, 2, 4))):
                if style == "savepoint" and self.rng.random() < 0.6:
                    self.sql(home, "SAVEPOINT one")
                    more = take()
                    if self.rng.random() < 0.3:
                        self.sql(home, "SAVEPOINT two")
                        more += take()
                        self.sql(home, "RELEASE SAVEPOINT two")
                    if self.rng.random() < 0.6:
                        self.sql(home, "ROLLBACK TO SAVEPOINT one")
                        more = []
                    else:
                        self.sql(home, "RELEASE SAVEPOINT one")
                    took.extend(more)
                else:
                    took.extend(take())
            self.move(legs[0])
            for leg in legs[1:]:
                self.call_leg(home, leg)
            if took:
                self.note("took", queue=queue, ms=took)
            if style == "die":
                self.maybe_die(1)
            if style == "rollback":
                raise Lost("as was intended")
            if style == "prepare" and took:
                try:
                    self.sql(home, f"PREPARE TRANSACTION 'g {self.transfer}'")
                except Refused as error:
                    if error.sqlstate not in ("0A000", "08006", "57014"):
                        self.note("prepare-of-get", error=str(error))
                    raise
                self.wrong("a transaction that has taken messages is prepared")
        self.commit("get", legs, before=work)

    # ----------------------------------------------------------------------
    # PREPARE TRANSACTION, and a decision

    def way_prepared(self):
        home = self.home
        tree = self.rng.random() < 0.15
        nodes = [home] + self.others(2 if tree else self.rng.choice((1, 2)))
        legs, _ = self.plan("prepared", home, nodes)
        gid = self.gid("p")
        gtid = None
        try:
            self.begin(home)
            if self.rng.random() < 0.5:
                self.sql(home, "SET LOCAL tpc_amqp.prepare_wait = off")
            self.move(legs[0])
            if tree:
                self.call(home, nodes[1], "relay", self.arg(legs[1], next=[
                    {"node": nodes[2], "handler": "move",
                     "arg": json.loads(self.arg(legs[2]))}]))
            else:
                for leg in legs[1:]:
                    if self.rng.random() < 0.05:
                        self.call(home, leg["node"], "refuse", self.arg(leg))
                    else:
                        self.call_leg(home, leg)
            gtid = self.learn_gtid(home)
            tag = self.sql(home, f"PREPARE TRANSACTION '{gid}'")[0]
            if tag != "PREPARE TRANSACTION":
                return self.end("no", gtid, home)
        except (Lost, Refused) as error:
            self.rollback(home)
            return self.end("no", gtid, home, error=error)
        self.maybe_die()
        choice = self.rng.random()
        if choice < 0.08:
            return self.end("no", gtid, home)     # nobody ever decides
        if self.rng.random() < 0.3:
            time.sleep(self.rng.choice((0.02, 0.3, 1, 3)))
        other = self.rng.random() < 0.3
        if choice < 0.25:
            return self.give_up(home, gid, gtid, other, False)
        if choice < 0.35:
            return self.duel(gid, gtid)
        asked = False
        for _ in range(4):
            self.note("deciding")
            try:
                connection = self.connection(home, other)
                del connection.notices[:]
            except Lost:
                time.sleep(0.3)
                continue
            answer, error = self.finish(home, "COMMIT", gid, other)
            if answer == "done":
                return self.end("ok", gtid, home, legs,
                                not self.warnings(home, other)
                                and not self.finished_before(home, other))
            if answer == "aborted":
                return self.end("no", gtid, home, error=error)
            if answer == "gone":
                return self.end("unknown" if asked else "no", gtid, home,
                                error=error)
            if answer == "lost":
                asked = True
                time.sleep(0.3)
            elif self.rng.random() < 0.5:
                break
        return self.give_up(home, gid, gtid, other, asked)

    def duel(self, gid, gtid):
        """Two sessions decide at the same time, one this way, one that."""
        home = self.home
        self.note("deciding")
        answers = {}

        def rollback():
            answers["ROLLBACK"] = self.finish(home, "ROLLBACK", gid, True)[0]
        late = self.rng.random() * 0.01
        thread = threading.Thread(target=rollback)
        thread.start()
        time.sleep(late)
        answers["COMMIT"], error = self.finish(home, "COMMIT", gid)
        thread.join()
        told = set()
        for verb, answer in answers.items():
            if answer == "done":
                told.add("ok" if verb == "COMMIT" else "no")
            elif answer in ("committed", "aborted"):
                told.add("ok" if answer == "committed" else "no")
        if len(told) > 1:
            self.wrong(f"two sessions were told different things: {answers}")
        if told:
            return self.end(told.pop(), gtid, home, error=error)
        return self.give_up(home, gid, gtid, False,
                            answers["COMMIT"] in ("lost", "gone"))

    def finished_before(self, node, other=False):
        connection = self.connections.get((node, other))
        return connection is None or any(
            n.startswith("NOTICE") for n in connection.notices)

    def give_up(self, node, gid, gtid, other, asked):
        """ROLLBACK PREPARED; asked: a commit may have been carried out."""
        error = None
        for _ in range(4):
            answer, error = self.finish(node, "ROLLBACK", gid, other)
            if answer == "done":
                return self.end("no", gtid, node)
            if answer == "committed":
                if not asked:
                    self.wrong("committed without anybody asking for it")
                return self.end("ok", gtid, node, error=error)
            if answer == "gone":
                break
            time.sleep(0.3)
        # It rolls back after prepared_timeout.
        return self.end("unknown" if asked else "no", gtid, node, error=error)

    # ----------------------------------------------------------------------
    # The application has connections to all

    def way_application(self):
        home = self.home
        nodes = [home] + self.others(self.rng.choice((1, 2)))
        style = self.rng.choice(
            ("plain", "plain", "two-phase", "two-phase", "two-phase",
             "rollback", "take-back", "no-vote"))
        called = None
        if len(nodes) == 3 and self.rng.random() < 0.3:
            called = nodes[2]
        branches = [n for n in nodes[1:] if n != called]
        # Or a branch calls.
        by_branch = called is not None and self.rng.random() < 0.4
        legs, _ = self.plan("app-" + style, home, nodes)
        leg = {g["node"]: g for g in legs}
        gid = self.gid("x")
        gid = {n: f"{gid} {n}" for n in nodes}
        prepared = []
        gtid = None
        two_phase = style == "two-phase"
        no_wait = two_phase and self.rng.random() < 0.5
        try:
            self.begin(home)
            if no_wait:
                self.sql(home, "SET LOCAL tpc_amqp.prepare_wait = off")
            if self.rng.random() < 0.5:
                self.move(leg[home])
                moved = True
            else:
                moved = False
            for node in branches:
                gtid = self.sql(home, "SELECT tpc_amqp.enlist(%s)",
                                (node,))[1][0]
            self.note("gtid", gtid=gtid, node=home)
            if called and not by_branch:
                self.call_leg(home, leg[called])
            for node in branches:
                self.maybe_die()
                self.begin(node)
                self.sql(node, "SELECT tpc_amqp.join(%s)", (gtid,))
                self.move(leg[node])
                if by_branch:
                    self.call_leg(node, leg[called])
                    by_branch = False
            if not moved:
                self.move(leg[home])
            if style == "no-vote":
                self.sql(branches[-1], "ROLLBACK")
                rest = branches[:-1]
            else:
                rest = branches
            order = list(rest)
            if two_phase:
                order.append(home)
                if no_wait:
                    self.rng.shuffle(order)
            for node in order:
                self.maybe_die()
                tag = self.sql(
                    node, f"PREPARE TRANSACTION '{gid[node]}'")[0]
                prepared.append(node)
                if tag != "PREPARE TRANSACTION":
                    raise Lost("not prepared")
            self.maybe_die()
        except (Lost, Refused) as error:
            self.rollback(*nodes)
            self.end("no", gtid, home, error=error)
            if self.rng.random() < 0.7:
                for node in prepared:
                    self.finish(node, "ROLLBACK", gid[node])
            return

        if two_phase:
            self.decide_application(gtid, gid, prepared, legs)
            return
        if style == "rollback":
            self.rollback(home)
            self.end("no", gtid, home)
            for node in prepared:
                verb = self.rng.choice(("COMMIT", "ROLLBACK"))
                answer, _ = self.finish(node, verb, gid[node])
                if verb == "COMMIT" and answer == "done":
                    self.wrong(f"COMMIT PREPARED on {node} after ROLLBACK"
                               " at the coordinator")
            return
        taken_back = False
        if style == "take-back":
            answer, _ = self.finish(prepared[0], "ROLLBACK",
                                    gid[prepared[0]])
            taken_back = answer == "done"
            if not taken_back:
                self.note("not-taken-back", answer=answer)
        self.note("deciding")
        error = None
        try:
            connection = self.connection(home)
            del connection.notices[:]
            tag = self.sql(home, "COMMIT")[0]
            result = "ok" if tag == "COMMIT" else "no"
            if tag not in ("COMMIT", "ROLLBACK"):
                self.wrong(f"COMMIT returned {tag}")
        except Lost as lost:
            result, error = "unknown", lost
        except Refused as refused:
            result, error = "no", refused
        # A session that was replaced has no transaction to commit.
        if result == "ok" and any("no transaction in progress" in n
                                  for n in connection.notices):
            result = "no"
        if result == "ok" and (taken_back or style == "no-vote"):
            self.wrong("committed although a branch was rolled back")
        self.end(result, gtid, home, legs, not self.warnings(home),
                 error=error)
        self.maybe_die()
        if self.rng.random() < 0.7:
            for node in prepared:
                if taken_back and node == prepared[0]:
                    continue
                verb = "ROLLBACK" if self.rng.random() < 0.2 else "COMMIT"
                answer, error = self.finish(node, verb, gid[node])
                if (answer, verb, result) in (
                        ("done", "COMMIT", "no"), ("done", "ROLLBACK", "ok"),
                        ("aborted", verb, "ok"), ("committed", verb, "no")):
                    self.wrong(f"{verb} PREPARED on {node} says {answer}"
                               f" ({error}) and COMMIT said {result}")

    def decide_application(self, gtid, gid, prepared, legs):
        """All are prepared; tell them, in any order."""
        home = self.home
        order = list(prepared)
        self.rng.shuffle(order)
        choice = self.rng.random()
        if choice < 0.1:
            return self.end("no", gtid, home)     # nobody ever decides
        verb = "COMMIT" if choice < 0.8 else "ROLLBACK"
        if verb == "COMMIT":
            self.note("deciding")
        told = set()
        last = None
        for node in order:
            self.maybe_die()
            for _ in range(3):
                answer, error = self.finish(node, verb, gid[node],
                                            self.rng.random() < 0.2)
                if answer == "done":
                    told.add("ok" if verb == "COMMIT" else "no")
                elif answer == "aborted":
                    told.add("no")
                elif answer == "committed":
                    told.add("ok")
                else:
                    last = error
                    if answer in ("lost", "no"):
                        time.sleep(0.2)
                        continue
                break
        if len(told) > 1 or (verb == "ROLLBACK" and "ok" in told):
            self.wrong(f"{verb} PREPARED in all databases: {sorted(told)}")
        if told:
            result = told.pop()
        else:
            result = "unknown" if verb == "COMMIT" else "no"
        return self.end(result, gtid, home, legs, False, error=last)

    # ----------------------------------------------------------------------

    WAYS = (
        (way_call, 24), (way_call_only, 5), (way_tree, 9), (way_readonly, 6),
        (way_savepoint, 7), (way_refused, 7), (way_prepared, 20),
        (way_application, 24), (way_say, 8), (way_say_prepared, 4),
        (way_get, 16),
    )

    def run(self):
        ways = [w for w, _ in self.WAYS]
        weights = [n for _, n in self.WAYS]
        while os.getppid() != 1:
            if os.path.exists(self.pause):
                with open(self.paused, "w"):
                    pass
                while os.path.exists(self.pause) and os.getppid() != 1:
                    time.sleep(0.05)
                try:
                    os.unlink(self.paused)
                except FileNotFoundError:
                    pass
                continue
            self.transfer = None
            self.rng.choices(ways, weights)[0](self)
            time.sleep(self.rng.expovariate(1 / self.think))
            # Nothing of the last one may be left in a session.
            for key, connection in list(self.connections.items()):
                if connection.closed or connection.info.transaction_status:
                    self.drop(*key)


if __name__ == "__main__":
    Client(json.loads(sys.argv[1])).run()

"""Messages: who consumes them, faults that concern them, and the checks.

Every message has a name of its own, "m", in its body and in the tables of
messages.sql: sent is written by the transaction that publishes it, taken by
the one that consumes it.  What the broker loses because we take it away there
is written down by name before it is gone; all else must be somewhere.
"""

import collections
import contextlib
import json
import random
import threading
import time

import psycopg2

import amqp

# queue -> the node that consumes it.  Only one does, for that a message takes
# effect once is known by node.
SUBSCRIBED = {
    "inbox.a": "a", "inbox.b": "b", "inbox.c": "c", "inbox.d": "d",
    "news.a": "a", "news.c": "c",
    "dead": "d",
}
BY_HAND = {"hand.a": "a", "hand.b": "b", "hand.c": "c", "hand.d": "d"}
CONSUMER = {**SUBSCRIBED, **BY_HAND}
NEWS = ("news.a", "news.c")
TAP = "tap"                     # a third queue of what NEWS get; nobody's
DEAD = "dead"
RETRIES = 3
ON_ERROR = {"retries": RETRIES, "backoff": "100 ms", "backoff_max": "1 s"}
THEN = {
    "inbox.b": {"then": "dead-letter", "exchange": "dead", "routing_key": ""},
    "inbox.c": {"then": "drop"},
}
# What may be dropped is known by its message_id afterwards.
NAMED = ("inbox.a", "inbox.c", "inbox.d")
# Full, and rejecting, from time to time.
SMALL = {"inbox.d": {"x-max-length": 10, "x-overflow": "reject-publish"}}
# One consumer at a time, in whose database the order can be seen.
ORDERED = "news.a"

Sent = collections.namedtuple("Sent", "m part n exchange key fate at node")
Taken = collections.namedtuple(
    "Taken", "seq queue message_id m fate by echo redelivered runs at node")


def queues_of(sent):
    return NEWS if sent.exchange == "news" else (sent.key,)


def name_of(message):
    """m and message_id of one that amqp.py has got."""
    _, header, bodies = message
    return json.loads(b"".join(bodies))["m"], amqp.message_id(header)


class Look:
    """What all nodes have."""

    def __init__(self, nodes, sql):
        self.sent = {}
        self.sent_twice = []
        self.taken = collections.defaultdict(list)      # (queue, m)
        self.echoes = collections.Counter()             # (queue, m, node)
        self.failed = {}                                # (queue, m): row
        self.dropped = {}                               # (queue, message_id)
        self.unknown = []                               # of table consumed
        for node in nodes:
            for row in sql(node, "SELECT m, part, n, exchange, routing_key,"
                           " fate, extract(epoch FROM at)::float8"
                           " FROM bank.sent", 60000):
                one = Sent(*row, node)
                if one.m in self.sent:
                    self.sent_twice.append(one)
                self.sent[one.m] = one
            for row in sql(node, "SELECT seq, queue, message_id, m, fate, by,"
                           " echo, redelivered, runs,"
                           " extract(epoch FROM at)::float8"
                           " FROM bank.taken", 60000):
                one = Taken(*row, node)
                self.taken[(one.queue, one.m)].append(one)
            for queue, m in sql(node, "SELECT queue, m FROM bank.echo", 60000):
                self.echoes[(queue, m, node)] += 1
            for queue, message_id, state, attempts, error, body in sql(
                    node, "SELECT queue, message_id, state, attempts, error,"
                    " convert_from(body, 'UTF8')"
                    " FROM tpc_amqp.failed_message", 60000):
                if body is None or state == "dropped":
                    self.dropped[(queue, message_id)] = (attempts, error)
                else:
                    self.failed[(queue, json.loads(body)["m"])] = (
                        state, message_id, attempts, error)
            for row in sql(node, """
                    SELECT queue, coalesce(t.message_id, c.message_id), t.m,
                           c.message_id IS NULL
                    FROM bank.taken t
                    FULL JOIN tpc_amqp.consumed c USING (queue, message_id)
                    WHERE t.m IS NULL OR c.message_id IS NULL""", 60000):
                self.unknown.append((node, *row))


class Messages:
    def __init__(self, torture, nodes):
        self.torture = torture
        self.nodes = nodes
        self.lock = threading.Lock()
        # (queue, m): what has taken it from the broker for good
        self.gone = collections.defaultdict(set)
        self.held = collections.Counter()       # by that: how many it held
        self.moved = set()                      # m whose order we have spoilt
        self.tapped = []                        # (m, message_id), as they came
        self.hoard = []                         # to be published again
        self.events = 0
        self.calms = 0
        self.republished = 0
        self.last = None                        # the last Look
        self.pairs = collections.Counter()      # whose order was compared

    # ----------------------------------------------------------------------
    # The stage

    def declare(self):
        """All queues and exchanges; those that are there stay.

        The exchanges come last and at one stroke: nothing is to go to some of
        their queues and not to others."""
        connection = self.torture.amqp()
        try:
            for queue in (*CONSUMER, TAP):
                connection.declare_queue(queue, SMALL.get(queue))
            for exchange, queues in (("news", (*NEWS, TAP)), ("dead", (DEAD,))):
                connection.declare_exchange(exchange + ".all", "fanout")
                for queue in queues:
                    connection.bind_queue(queue, exchange + ".all")
                connection.declare_exchange(
                    exchange, "direct",
                    {"alternate-exchange": exchange + ".all"})
        finally:
            connection.close()

    def subscribe(self):
        for queue, node in SUBSCRIBED.items():
            on_error = json.dumps({**ON_ERROR, **THEN.get(queue, {})})
            self.torture.sql(node, f"SELECT tpc_amqp.subscribe('{queue}',"
                             f" 'take', on_error => '{on_error}')")

    # ----------------------------------------------------------------------
    # Faults

    def note_gone(self, queue, messages, why):
        with self.lock:
            self.held[why.split()[0]] += len(messages)
            for message in messages:
                m, message_id = name_of(message)
                self.gone[(queue, m)].add(why)
                if queue == TAP:
                    self.tapped.append((m, message_id))

    def event(self, why):
        with self.lock:
            self.events += 1
            return f"{why} {self.events}"

    def drain_all(self, why):
        """Of a broker that nobody else is connected to."""
        why = self.event(why)
        connection = self.torture.amqp()
        count = 0
        try:
            for queue in (*CONSUMER, TAP):
                try:
                    connection.count(queue)
                except amqp.Error:
                    # It has been deleted.
                    connection.close()
                    connection = self.torture.amqp()
                    continue
                messages = []
                while True:
                    message = connection.get(queue)
                    if message is None:
                        break
                    messages.append(message)
                self.note_gone(queue, messages, why)
                count += len(messages)
        finally:
            connection.close()
        return count

    def steal(self, queue, most, why):
        """Take messages from it, and write them down before they are gone."""
        messages = []
        connection = self.torture.amqp()
        try:
            while len(messages) < most:
                message = connection.get(queue, keep=True)
                if message is None:
                    break
                messages.append(message)
            self.note_gone(queue, messages, why)
            if messages:
                connection.take_all()
                connection.sync()
        finally:
            connection.close()
        return messages

    def fault_replay(self, rng):
        """Take some, and bring them back: late, in another order, often."""
        queue = self.fullest(rng)
        why = self.event("stolen")
        caught = self.steal(queue, rng.choice((3, 30, 200)), why)
        names = {name_of(message)[0] for message in caught}
        again = [m for m in caught for _ in range(rng.choice((1, 1, 2, 3)))]
        # The key is the queue's now, not what it was.
        again = [(queue, *message[1:]) for message in again]
        with self.lock:
            old = rng.sample(self.hoard, min(len(self.hoard), 40))
            self.moved |= names
            self.hoard = (self.hoard + [(queue, *m[1:]) for m in caught])[-400:]
        rng.shuffle(again)
        self.torture.log(f"  {len(caught)} from {queue}, {len(again)} back,"
                         f" {len(old)} of long ago")
        self.torture.wait(rng.choice((0, 0.2, 2)))
        for _ in range(5):
            if not again:
                break
            try:
                safe = self.publish_again(again)
            except (OSError, amqp.Error) as error:
                self.torture.log(f"  not brought back: {error}")
                safe = False
            if safe:
                with self.lock:
                    for m in names:
                        self.gone[(queue, m)].discard(why)
                break
            self.torture.wait(1)
        if old:
            self.publish_again(old)

    def fullest(self, rng):
        """The one that has most, of some; they are empty most of the time."""
        queues = rng.sample(sorted(CONSUMER), 6)
        connection = self.torture.amqp()
        try:
            deadline = time.monotonic() + 1.5
            while True:
                counts = {queue: connection.count(queue) for queue in queues}
                fullest = max(queues, key=lambda queue: counts[queue])
                if counts[fullest] > 2 or time.monotonic() > deadline:
                    return fullest
        finally:
            connection.close()

    def publish_again(self, messages):
        with self.lock:
            self.moved |= {name_of(message)[0] for message in messages}
        connection = self.torture.amqp()
        try:
            return connection.publish_safely(messages)
        finally:
            connection.close()

    def fault_deleted(self, rng):
        """Purge a queue, or delete it and declare it some time later."""
        queue = rng.choice(sorted(CONSUMER))
        if queue in NEWS or queue == DEAD or rng.random() < 0.3:
            count = len(self.steal(queue, 100000, self.event("purged")))
            self.torture.log(f"  purge {queue}: {count}")
            return
        # What is on its way to the consumer goes, too, and is not to be seen:
        # all there may be.
        why = self.event("deleted")
        node = CONSUMER[queue]
        before = {r[0] for r in self.torture.sql(
            node, f"SELECT m FROM bank.taken WHERE queue = '{queue}'", 60000)}
        connection = self.torture.amqp()
        try:
            connection.delete_queue(queue)
        finally:
            connection.close()
        after = set()
        for one in self.nodes:
            for _ in range(20):
                try:
                    after |= {r[0] for r in self.torture.sql(
                        one, "SELECT m FROM bank.sent"
                        f" WHERE routing_key = '{queue}'", 60000)}
                    break
                except psycopg2.Error:
                    time.sleep(0.5)
        with self.lock:
            self.held["deleted"] += len(after - before)
            for m in after - before:
                self.gone[(queue, m)].add(why)
        self.torture.log(f"  delete {queue}: {len(after - before)}")
        self.torture.wait(rng.choice((0, 0.3, 2, 5)))
        self.declare()

    def fault_person(self, rng):
        """Somebody looks after what has failed or come back."""
        node = rng.choice(self.nodes)
        if not self.attend(node):
            self.look_after(node, rng)

    def attend(self, node):
        """Publish again what came back; how many."""
        ms = self.torture.sql(node, """
            SELECT convert_from(body, 'UTF8'), id, reason
            FROM tpc_amqp.returned_messages""")
        if not ms:
            return 0
        with self.lock:
            self.moved |= {json.loads(body)["m"] for body, _, _ in ms}
            self.republished += len(ms)
        reasons = collections.Counter(reason for _, _, reason in ms)
        self.torture.log(f"  {node} republishes: {dict(reasons)}")
        ids = ", ".join(str(i) for _, i, _ in ms)
        self.torture.sql(node, "SELECT tpc_amqp.republish(id) FROM"
                         f" unnest('{{{ids}}}'::bigint[]) id ORDER BY id")
        return len(ms)

    def look_after(self, node, rng):
        """What is kept, although it is good, is run again; of the rest, some
        are dropped."""
        for i, queue, body, message_id in self.torture.sql(node, """
                SELECT id, queue, convert_from(body, 'UTF8'), message_id
                FROM tpc_amqp.failed_message
                WHERE state = 'kept' ORDER BY id"""):
            body = json.loads(body)
            if body["fate"] != "poison" or queue == DEAD:
                with self.lock:
                    self.moved.add(body["m"])
                self.torture.sql(node, f"SELECT tpc_amqp.retry_message({i})")
            elif queue in NAMED and message_id == body["m"] \
                    and rng.random() < 0.3:
                # Either we are told that it is gone, or it is still there.
                with self.lock:
                    self.gone[(queue, body["m"])].add("discarded")
                    self.held["discarded"] += 1
                self.torture.sql(node, f"SELECT tpc_amqp.drop_message({i})")

    # ----------------------------------------------------------------------
    # When nothing fails

    def calm(self, rng):
        """Several sessions publish at a time, and commit in another order
        than they have begun in.  Nothing is to be repeated."""
        self.calms += 1
        threads = [
            threading.Thread(target=self.calm_session, args=(
                node, f"calm.{self.calms}.{node}{i}",
                random.Random(rng.getrandbits(64))))
            for node in rng.sample(self.nodes, 2) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def calm_session(self, node, name, rng):
        try:
            connection = self.torture.connect(node)
            with contextlib.closing(connection), connection.cursor() as cursor:
                for i in range(10):
                    say = [{"n": n, "exchange": "news", "key": "", "pad": 0,
                            "fate": "plain", "id": False}
                           for n in range(1, rng.choice((2, 3, 5)))]
                    cursor.execute("BEGIN")
                    cursor.execute("SELECT bank.say(%s)", (json.dumps(
                        {"part": f"{name}.{i}", "say": say}),))
                    time.sleep(rng.expovariate(200))
                    cursor.execute("COMMIT")
        except psycopg2.Error as error:
            self.torture.violation("setup", f"{name}: {error}")

    def check_calm(self):
        copies = collections.Counter(
            (m, message_id) for m, message_id in self.tapped
            if m.startswith(f"calm.{self.calms}."))
        for (m, _), n in copies.items():
            if n > 1:
                self.torture.violation(
                    "repeated", f"{m} was published {n} times")

    # ----------------------------------------------------------------------
    # Checks

    UNFINISHED = """
            SELECT 'to be published: ' || count(*) || ', ' || min(state)
            FROM tpc_amqp.publications HAVING count(*) > 0
            UNION ALL
            SELECT 'returned: ' || count(*) FROM tpc_amqp.returned_messages
            HAVING count(*) > 0
            UNION ALL
            SELECT 'subscription ' || queue || ' ' || state || ' ' || waiting
                   || ' ' || running || ' ' || coalesce(last_error, '')
            FROM tpc_amqp.subscriptions
            WHERE state <> 'active' OR waiting > 0 OR running > 0
            UNION ALL
            SELECT 'to be run again: ' || count(*) || ' of ' || queue
            FROM tpc_amqp.failed_messages WHERE state = 'retry' GROUP BY queue
        """

    def heal(self):
        """The queues are there again, and what came back is sent again."""
        try:
            self.declare()
        except (OSError, amqp.Error) as error:
            self.torture.violation("setup", f"queues: {error}")

    def resolve_prepared(self, node):
        """What clients have prepared without us, one way or the other."""
        for gid, in self.torture.sql(node, r"""
                SELECT gid FROM pg_prepared_xacts
                WHERE gid LIKE 'm %' AND database = current_database()"""):
            verb = random.choice(("COMMIT", "ROLLBACK"))
            self.torture.log(f"  {verb} PREPARED '{gid}' on {node}")
            self.torture.sql(node, f"{verb} PREPARED '{gid}'")

    def finish(self):
        """While waiting for everything to finish."""
        for node in self.nodes:
            try:
                self.resolve_prepared(node)
                self.attend(node)
            except psycopg2.Error as error:
                self.torture.log(f"  {node}: {str(error).strip()}")
        for queue, node in BY_HAND.items():
            try:
                while self.torture.sql(
                        node, f"SELECT bank.take_one('{queue}', NULL)")[0][0]:
                    pass
            except psycopg2.Error as error:
                self.torture.log(f"  {queue}: {str(error).strip()}")

    def look(self):
        self.last = Look(self.nodes, self.torture.sql)
        return self.last

    def read_tap(self):
        connection = self.torture.amqp()
        try:
            while True:
                message = connection.get(TAP)
                if message is None:
                    return
                self.tapped.append(name_of(message))
                if random.random() < 0.1:
                    # For one that has it already.
                    with self.lock:
                        self.hoard = self.hoard[-399:]
                        self.hoard.append((random.choice(NEWS), *message[1:]))
        finally:
            connection.close()

    def is_somewhere(self, look, queue, m):
        key = (queue, m)
        return (look.taken.get(key) or key in look.failed
                or key in look.dropped or self.gone.get(key)
                or queue == "inbox.b" and self.is_somewhere(look, DEAD, m))

    def missing(self):
        """Messages that are nowhere (yet)."""
        look = self.look()
        return [f"{m} in {queue}, of {one.node}"
                for m, one in look.sent.items() for queue in queues_of(one)
                if not self.is_somewhere(look, queue, m)]

    def check(self, complete, transfers):
        """complete: nothing is under way."""
        try:
            look = self.look() if complete else None
        except psycopg2.Error as error:
            self.torture.violation("finish", f"cannot look: {error}")
            return
        if not complete:
            return
        violation = self.torture.violation
        for one in look.sent_twice:
            violation("phantom", f"published twice by one transaction: {one}")
        for (queue, m), rows in look.taken.items():
            if len(rows) > 1:
                violation("once", f"{m} took effect {len(rows)} times in"
                          f" {queue}: {rows}")
            if m not in look.sent:
                violation("phantom", f"{m} took effect in {queue}, and nobody"
                          f" has published it: {rows}")
            elif queue != DEAD and queue not in queues_of(look.sent[m]):
                violation("phantom", f"{m} took effect in {queue}")
        for m in {m for m, _ in self.tapped} - set(look.sent):
            violation("phantom", f"{m} is in {TAP}, and nobody has published it")
        for one in look.unknown:
            violation("once", "table consumed and what took effect differ"
                      f" (node, queue, id, m, taken only): {one}")
        for (queue, _), (attempts, error) in look.dropped.items():
            self.check_runs(queue, attempts, error)
        for (queue, m), (state, _, attempts, error) in look.failed.items():
            self.check_runs(queue, attempts, error)
            if m not in look.sent:
                violation("phantom", f"{m} failed in {queue} ({state}), and"
                          " nobody has published it")
        for text in self.missing():
            violation("lost", text)
        self.check_echoes(look)
        self.check_ids(look)
        self.check_order(look)
        self.check_told(look, transfers)

    def check_runs(self, queue, attempts, error):
        if attempts > RETRIES + 2:
            self.torture.violation("once", f"a message of {queue} was run"
                                   f" {attempts} times: {error}")

    def check_echoes(self, look):
        """Who consumes and calls does both."""
        wanted = collections.Counter(
            (one.queue, one.m, one.echo) for rows in look.taken.values()
            for one in rows if one.echo)
        for key in (wanted - look.echoes) + (look.echoes - wanted):
            self.torture.violation(
                "together", f"{key}: consumed {wanted[key]} times, called"
                f" {look.echoes[key]} times")

    def check_ids(self, look):
        """What is repeated has the same message_id."""
        ids = collections.defaultdict(set)
        for rows in look.taken.values():
            for one in rows:
                ids[one.m].add(one.message_id)
        for (_, m), (_, message_id, _, _) in look.failed.items():
            ids[m].add(message_id)
        for m, message_id in self.tapped:
            ids[m].add(message_id)
        for m, found in ids.items():
            if len(found) > 1 or None in found:
                self.torture.violation("once", f"{m} has ids {found}")

    def check_order(self, look):
        """Messages of one transaction come in their order."""
        first = {}
        copies = collections.Counter(m for m, _ in self.tapped)
        for i, (m, _) in enumerate(self.tapped):
            first.setdefault(m, i)
        parts = collections.defaultdict(list)
        for one in look.sent.values():
            if one.exchange == "news" and one.m not in self.moved:
                parts[one.part].append(one)
        pairs = collections.Counter()
        for part, ones in parts.items():
            ones.sort(key=lambda one: one.n)
            ends = [min((t.at for q in NEWS for t in look.taken.get(
                (q, one.m), ())), default=None) for one in ones]
            if None in ends or self.torture.broker_died(
                    min(one.at for one in ones), max(ends)):
                continue                # it may have lost what we compare with
            found = [first[one.m] for one in ones if one.m in first]
            pairs["published"] += max(0, len(found) - 1)
            if found != sorted(found):
                self.torture.violation(
                    "order", f"{part}: {[one.m for one in ones]} were published"
                    f" in the order {found}")
            # Of those that came once and were run once.
            clean = [look.taken[(ORDERED, one.m)][0] for one in ones
                     if copies[one.m] == 1 and look.taken.get((ORDERED, one.m))]
            clean = [t for t in clean if not t.redelivered and t.runs == 1]
            pairs["taken"] += max(0, len(clean) - 1)
            if clean != sorted(clean):
                self.torture.violation(
                    "order", f"{part}: {[(t.m, t.seq) for t in clean]} took"
                    f" effect in another order in {ORDERED}")
        self.pairs.update({k: pairs[k] - self.pairs[k] for k in pairs})

    def check_told(self, look, transfers):
        """Who takes by hand has it if and only if his transaction has
        committed, of which the journal tells."""
        by = collections.defaultdict(set)
        for rows in look.taken.values():
            for one in rows:
                if one.by:
                    by[one.by].add(one.m)
        for transfer, one in transfers.items():
            took = set(one.get("took", ()))
            if by[transfer] != (took if one.get("there") else set()):
                self.torture.violation(
                    "together", f"{transfer} (told {one.get('result')},"
                    f" {'' if one.get('there') else 'not '}there) took"
                    f" {sorted(took)}; found {sorted(by[transfer])}")

    # ----------------------------------------------------------------------

    def log_counters(self):
        for node in self.nodes:
            names = ("published", "republished", "confirmed", "rejected",
                     "returned", "refused")
            rows = self.torture.sql(
                node, f"SELECT {', '.join(names)} FROM tpc_amqp.stat")
            self.torture.log(f"counters of {node} since its start: " + ", ".join(
                f"{n} {name}" for name, n in zip(names, rows[0] if rows else ())))

    def report(self):
        look = self.last
        if look is None:
            return
        print("\nMessages:")
        targets = collections.Counter(
            "news" if one.exchange else one.key for one in look.sent.values())
        taken = collections.Counter(queue for queue, _ in look.taken)
        states = collections.defaultdict(collections.Counter)
        for (queue, _), row in look.failed.items():
            states[queue][row[0]] += 1
        for queue, _ in look.dropped:
            states[queue]["dropped"] += 1
        used = collections.Counter()
        for m, one in look.sent.items():
            for queue in queues_of(one):
                key = (queue, m)
                if self.gone.get(key) and not look.taken.get(key) \
                        and key not in look.failed and key not in look.dropped:
                    for why in {w.split()[0] for w in self.gone[key]}:
                        used[(queue, why)] += 1
        for queue in CONSUMER:
            sent = targets["news" if queue in NEWS else queue]
            rest = [f"{n} {state}" for state, n in
                    sorted(states[queue].items())]
            rest += [f"{n} {why}" for (q, why), n in sorted(used.items())
                     if q == queue]
            print(f"  {queue:10}{sent if queue != DEAD else '':>7} published"
                  f"{taken[queue]:7} took effect  " + ", ".join(rest))
        rows = [t for ts in look.taken.values() for t in ts]
        print(f"  {len(rows)} in all: {sum(1 for t in rows if t.by)} by hand,"
              f" {sum(1 for t in rows if t.echo)} with a call,"
              f" {sum(1 for t in rows if t.redelivered)} delivered again,"
              f" {sum(1 for t in rows if t.runs > 1)} after a failure")
        copies = collections.Counter(m for m, _ in self.tapped)
        for m, n in copies.items():
            if n > 1:
                self.torture.log(f"published {n} times: {look.sent.get(m)}")
        print(f"  published more than once: "
              f"{sum(1 for n in copies.values() if n > 1)} of {len(copies)}"
              f" in {TAP}; came back and republished: {self.republished}")
        print("  gone with the broker's queues, of those that did not take"
              " effect: " + (", ".join(
                  f"{sum(n for (_, w), n in used.items() if w == why)} of"
                  f" {held} {why}" for why, held in
                  sorted(self.held.items())) or "none"))
        print("  pairs whose order was compared: " + ", ".join(
            f"{n} {k}" for k, n in sorted(self.pairs.items())))

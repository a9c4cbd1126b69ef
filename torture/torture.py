"""A bank spread over databases; clients that move money in every way there is;
a nemesis; and the checks.  "run" builds and stages, README.md explains.
"""

import argparse
import collections
import contextlib
import glob
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

import psycopg2

import amqp
import messages

HERE = os.path.dirname(os.path.abspath(__file__))

# node (and its database) -> cluster
NODES = {"a": "a", "b": "b", "c": "c", "d": "c"}
CLUSTERS = sorted(set(NODES.values()))
ACCOUNTS = 40
BALANCE = 1000

QUIET_EVERY = 30                # seconds of trouble between two quiet points
FINISH_BOUND = 30               # to finish everything once all is healed
PREPARE_WORKERS = 3
RESOLVE_WORKERS = 2
# One where the order of messages is looked at.
CONSUME_WORKERS = {"a": 1, "b": 2, "c": 2}

CONF = """
listen_addresses = ''
port = 5432
# Nobody cuts the power here: processes die, the machine stays.
fsync = off
shared_buffers = 16MB
max_connections = 100
max_prepared_transactions = 80
max_worker_processes = 40
max_parallel_workers = 0
restart_after_crash = on
authentication_timeout = 5s
deadlock_timeout = 200ms
dynamic_shared_memory_type = mmap
shared_preload_libraries = 'tpc_amqp'
log_line_prefix = '%m [%p] %b %q%a '
log_min_messages = warning
log_min_error_statement = error
tpc_amqp.prepare_workers = {prepare}
tpc_amqp.resolve_workers = {resolve}
tpc_amqp.prepare_timeout = 2s
tpc_amqp.apply_timeout = 2s
tpc_amqp.lock_timeout = 1s
tpc_amqp.resolve_interval = 200ms
tpc_amqp.prepared_timeout = 3s
tpc_amqp.forget_after = 1s
tpc_amqp.consume_timeout = 5s
""".replace("{prepare}", str(PREPARE_WORKERS)).replace(
    "{resolve}", str(RESOLVE_WORKERS))

# One cluster in which places run out.
SMALL = "b"
SMALL_CONF = """
max_prepared_transactions = 10
tpc_amqp.max_transactions = 12
tpc_amqp.max_memory = 16MB
"""

# One with a standby, which has every commit before it counts as one.
REPLICATED = "a"
REPLICATED_CONF = """
synchronous_standby_names = 'standby'
tpc_amqp.failover_presumes_abort = on
wal_retrieve_retry_interval = 100ms
"""
STANDBY_BOUND = 60              # for a new standby to stream and catch up

start_time = time.time()


def since_start():
    return time.time() - start_time


class Log:
    """What happened when; faults and findings also go to the screen."""

    def __init__(self, path):
        self.file = open(path, "a", buffering=1)
        self.lock = threading.Lock()

    def __call__(self, text, show=False):
        text = "".join(c if c.isprintable() or c == "\n" else "?"
                       for c in text)
        line = f"{since_start():8.2f}  {time.strftime('%H:%M:%S')}  {text}"
        with self.lock:
            self.file.write(line + "\n")
            if show:
                print(text, flush=True)


def parent_of(pid):
    with open(f"/proc/{pid}/stat") as stat:
        return int(stat.read().rsplit(")", 1)[1].split()[1])


def title_of(pid):
    with open(f"/proc/{pid}/cmdline", "rb") as file:
        return file.read().replace(b"\0", b" ").decode(errors="replace").strip()


class Server:
    """A data directory and what runs in it; primary or standby."""

    def __init__(self, directory, bindir, killed):
        self.dir = directory            # its socket is here, too
        self.data = os.path.join(directory, "data")
        self.logfile = os.path.join(directory, "log")
        self.bindir = bindir
        self.killed = killed
        os.mkdir(directory)

    def run(self, *command, timeout=60, check=True):
        with open(os.path.join(self.dir, "commands.log"), "a") as out:
            result = subprocess.run(
                [os.path.join(self.bindir, command[0]), *command[1:]],
                stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                timeout=timeout, check=False)
        if check and result.returncode != 0:
            raise RuntimeError(f"{self.dir}: {command} failed")
        return result.returncode

    def configure(self, conf):
        with open(os.path.join(self.data, "postgresql.conf"), "a") as file:
            file.write(conf
                       + f"\nunix_socket_directories = '{self.dir}'\n")

    def start(self):
        self.run("pg_ctl", "-D", self.data, "-l", self.logfile, "-w", "-t",
                 "60", "-s", "start", timeout=90)

    def stop(self, mode):
        return self.run("pg_ctl", "-D", self.data, "-m", mode, "-w", "-t",
                        "20", "-s", "stop", timeout=60, check=False) == 0

    def postmaster(self):
        try:
            with open(os.path.join(self.data, "postmaster.pid")) as file:
                pid = int(file.readline())
            return pid if self.is_ours(pid) else None
        except (OSError, ValueError):
            return None

    def is_ours(self, pid):
        """A process of this cluster's; servers work in their data directory."""
        try:
            return os.readlink(f"/proc/{pid}/cwd") == self.data
        except OSError:
            return False

    def children(self, pattern=""):
        """{pid: title} of the server's processes whose title matches."""
        postmaster = self.postmaster()
        found = {}
        for entry in os.listdir("/proc") if postmaster else ():
            if not entry.isdigit():
                continue
            try:
                if parent_of(entry) == postmaster and self.is_ours(entry):
                    title = title_of(entry)
                    if re.search(pattern, title):
                        found[int(entry)] = title
            except OSError:
                continue
        return found

    def everything(self):
        return [int(e) for e in os.listdir("/proc")
                if e.isdigit() and self.is_ours(e)]

    def signal(self, pid, number):
        if not self.is_ours(pid):
            return False
        if number == signal.SIGKILL:
            self.killed.add(pid)
        try:
            os.kill(pid, number)
            return True
        except ProcessLookupError:
            return False

    def kill9(self):
        """The whole server at once, as loss of power does to processes."""
        postmaster = self.postmaster()
        deadline = time.monotonic() + 20
        if postmaster:
            self.signal(postmaster, signal.SIGKILL)
        while time.monotonic() < deadline:
            pids = self.everything()
            if not pids:
                break
            for pid in pids:
                self.signal(pid, signal.SIGKILL)
            time.sleep(0.02)
        # As long as there is such a process, be it a zombie that nobody
        # collects, its lock files count.
        while postmaster and os.path.exists(f"/proc/{postmaster}"):
            if time.monotonic() > deadline:
                break
            with open(f"/proc/{postmaster}/stat") as stat:
                if stat.read().rsplit(")", 1)[1].split()[0] == "Z":
                    break
            time.sleep(0.02)
        for name in (os.path.join(self.data, "postmaster.pid"),
                     os.path.join(self.dir, ".s.PGSQL.5432.lock")):
            if os.path.exists(name):
                os.unlink(name)

    def follow(self, primary):
        """Begin anew, as a standby of that one."""
        deadline = time.monotonic() + STANDBY_BOUND
        while True:
            shutil.rmtree(self.data, ignore_errors=True)
            if self.run("pg_basebackup", "-h", primary.dir, "-p", "5432",
                        "-U", "postgres", "-D", self.data, "-c", "fast",
                        "-X", "stream", "-N", timeout=120, check=False) == 0:
                break
            # Another fault has restarted the primary.
            if time.monotonic() > deadline:
                raise RuntimeError(f"{self.dir}: no base backup")
            time.sleep(0.1)
        self.configure(f"primary_conninfo = 'host={primary.dir} port=5432"
                       " user=postgres application_name=standby'")
        with open(os.path.join(self.data, "standby.signal"), "w"):
            pass
        self.start()

    def promote(self):
        self.run("pg_ctl", "-D", self.data, "-w", "-t", "60", "-s", "promote",
                 timeout=90)


class Cluster:
    """What its nodes' clients know as one server, which may be another one
    after a failover: "at" is a link to the primary's directory."""

    def __init__(self, name, stage, bindir):
        self.name = name
        self.dir = os.path.join(stage, name)
        self.at = os.path.join(self.dir, "at")
        # Who holds it may start and stop servers.
        self.life = threading.Lock()
        # Who holds it may interrupt what waits for the standby, or keep the
        # standby from answering, but not both at a time.
        self.replication = threading.Lock()
        self.killed = set()             # pids we have sent SIGKILL
        self.disturbed = []             # (from, to): frozen, or down
        self.failovers = 0
        self.nodes = [n for n, c in NODES.items() if c == name]
        os.mkdir(self.dir)
        self.servers = [
            Server(os.path.join(self.dir, str(i)), bindir, self.killed)
            for i in range(2 if name == REPLICATED else 1)]
        self.primary = self.servers[0]
        self.standby = self.servers[1] if name == REPLICATED else None

    def create(self):
        self.primary.run("initdb", "-D", self.primary.data, "-U", "postgres",
                         "-A", "trust", "-N")
        self.primary.configure(
            CONF + (SMALL_CONF if self.name == SMALL else "")
            + (REPLICATED_CONF if self.standby else "")
            + f"\ntpc_amqp.consume_workers = {CONSUME_WORKERS[self.name]}\n")
        self.primary.start()
        self.point()
        if self.standby:
            self.standby.follow(self.primary)
            self.await_standby()

    def point(self):
        """Clients find the primary from now on."""
        os.symlink(os.path.basename(self.primary.dir), self.at + ".new")
        os.rename(self.at + ".new", self.at)

    def change_roles(self):
        """The standby is the primary; the other one is nothing any more."""
        self.standby.promote()
        self.primary, self.standby = self.standby, self.primary
        self.failovers += 1
        self.point()

    def await_standby(self):
        """Until it has all there is now, and commits wait for it."""
        deadline = time.monotonic() + STANDBY_BOUND
        lsn = None
        while True:
            try:
                with contextlib.closing(self.connect("postgres")) as one, \
                        one.cursor() as cursor:
                    if lsn is None:
                        cursor.execute("SELECT pg_current_wal_insert_lsn()")
                        lsn = cursor.fetchone()[0]
                    cursor.execute(
                        "SELECT count(*) FROM pg_stat_replication WHERE"
                        " sync_state = 'sync' AND flush_lsn >= %s", (lsn,))
                    if cursor.fetchone()[0]:
                        return
                lost = "it does not stream"
            except psycopg2.Error as error:
                lost = str(error).strip()
            if time.monotonic() > deadline:
                raise RuntimeError(f"standby of {self.name}: {lost}")
            time.sleep(0.02)

    def lines_logged(self):
        for server in self.servers:
            with open(server.logfile, errors="replace") as file:
                yield from file

    def dsn(self, database, user="teller"):
        return (f"host={self.at} port=5432 user={user} dbname={database}"
                f" application_name=torture")

    def connect(self, database, timeout_ms=10000):
        connection = psycopg2.connect(
            self.dsn(database, "postgres"), connect_timeout=5,
            options=f"-c statement_timeout={timeout_ms}")
        connection.autocommit = True
        return connection


class Torture:
    def __init__(self, args):
        self.args = args
        self.stage = args.stage
        self.out = args.out
        self.log = Log(os.path.join(args.out, "torture.log"))
        self.rng = random.Random(args.seed)
        self.clusters = {
            c: Cluster(c, args.stage, args.bindir) for c in CLUSTERS
        }
        self.broker_dir = os.path.join(args.stage, "broker")
        self.broker_life = threading.Lock()
        self.proxy = None
        self.proxy_lock = threading.Lock()
        self.clients = {}               # slot -> Popen
        self.generation = collections.Counter()
        self.notes_dir = os.path.join(args.out, "clients")
        self.pause_file = os.path.join(args.stage, "pause")
        self.paused_dir = os.path.join(args.stage, "paused")
        self.faults = []                # (when, kind)
        self.frozen = {}                # pid -> cluster or None
        self.frozen_lock = threading.Lock()
        self.hoard = []                 # messages to be published again
        self.violations = collections.defaultdict(list)
        self.quiet_points = []
        self.busy = []                  # (from, to) of trouble
        self.memory = {}                # (node, pid) -> [(when, kB)]
        self.shared = collections.defaultdict(list)
        self.stopping = False
        self.slow = []
        self.told = set()               # what clients found wrong
        self.last_transfers = {}
        self.broker_deaths = []         # when it lost what was not on disk
        self.messages = messages.Messages(self, list(NODES))

    # ----------------------------------------------------------------------
    # The stage

    def broker(self, *command, check=True, timeout=200):
        with open(os.path.join(self.out, "broker-commands.log"), "a") as out:
            result = subprocess.run(
                [os.path.join(HERE, "..", "scripts", "broker"), command[0],
                 self.broker_dir, *command[1:]],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=out,
                timeout=timeout, text=True, check=False)
        if check and result.returncode != 0:
            raise RuntimeError(f"broker {command} failed")
        return result.stdout.strip()

    def amqp(self):
        return amqp.Connection(self.broker_port)

    def order(self, node, do, **more):
        with self.proxy_lock:
            self.proxy.stdin.write(
                json.dumps({**({"node": node} if node else {}), "do": do,
                            **more}) + "\n")
            self.proxy.stdin.flush()

    def broker_died(self, start, end):
        return any(start < at < end for at in self.broker_deaths)

    def connect(self, node, timeout_ms=10000):
        return self.clusters[NODES[node]].connect(node, timeout_ms)

    def sql(self, node, text, timeout_ms=10000):
        connection = self.connect(node, timeout_ms)
        try:
            with connection.cursor() as cursor:
                cursor.execute(text)
                return cursor.fetchall() if cursor.description else None
        finally:
            connection.close()

    def set_up(self):
        self.broker("start")
        self.broker_port = int(self.broker("port"))
        self.proxy = subprocess.Popen(
            [sys.executable, os.path.join(HERE, "proxy.py"),
             str(self.broker_port), *NODES],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=open(os.path.join(self.out, "proxy.log"), "w"),
            text=True, cwd=self.stage)
        ports = json.loads(self.proxy.stdout.readline())
        with open(os.path.join(HERE, "bank.sql")) as file:
            bank = file.read()
        with open(os.path.join(HERE, "messages.sql")) as file:
            bank += file.read()
        self.messages.declare()
        for cluster in self.clusters.values():
            cluster.create()
            # Superusers may finish what they find prepared in a database that
            # is detached; applications must not.
            cluster.primary.run("createuser", "-h", cluster.at, "-U", "postgres",
                        "teller")
            for node in cluster.nodes:
                cluster.primary.run("createdb", "-h", cluster.at, "-U", "postgres",
                            node)
                self.sql(node, "CREATE EXTENSION tpc_amqp")
                self.sql(node, f"""
                    CREATE SERVER rabbit FOREIGN DATA WRAPPER tpc_amqp OPTIONS
                        (host '127.0.0.1', port '{ports[node]}', vhost '/',
                         heartbeat '2', connect_timeout '3');
                    CREATE USER MAPPING FOR PUBLIC SERVER rabbit
                        OPTIONS ("user" 'guest', password 'guest');""")
                self.sql(node, bank)
                self.sql(node, "INSERT INTO bank.account SELECT i, "
                         f"{BALANCE} FROM generate_series(1, {ACCOUNTS}) i")
                self.sql(node, f"SELECT tpc_amqp.attach('rabbit', '{node}')")
        self.messages.subscribe()
        os.mkdir(self.notes_dir)
        os.mkdir(self.paused_dir)

    def tear_down(self):
        self.stopping = True
        self.thaw_all()
        for process in self.clients.values():
            process.kill()
            process.wait()
        for cluster in self.clusters.values():
            with cluster.life:
                for server in cluster.servers:
                    if server.postmaster():
                        server.stop("immediate")
        if self.proxy:
            self.proxy.stdin.close()
            self.proxy.wait(10)
        self.broker("stop", check=False)

    # ----------------------------------------------------------------------
    # Clients

    def start_client(self, slot):
        home = slot.rstrip("0123456789")
        self.generation[slot] += 1
        name = f"{slot}.{self.generation[slot]}"
        config = {
            "id": name,
            "seed": f"{self.args.seed} {name}",
            "home": home,
            "nodes": {n: self.clusters[c].dsn(n) + " options='-c "
                      "lock_timeout=1500'" for n, c in NODES.items()},
            "accounts": ACCOUNTS,
            "may_cancel": NODES[home] != REPLICATED,
            "notes": os.path.join(self.notes_dir, name),
            "pause": self.pause_file,
            "paused": os.path.join(self.paused_dir, slot),
            "think": 0.1,
            "named": messages.NAMED,
        }
        self.clients[slot] = subprocess.Popen(
            [sys.executable, os.path.join(HERE, "client.py"),
             json.dumps(config)],
            stdin=subprocess.DEVNULL, cwd=self.stage,
            stderr=open(os.path.join(self.out, "clients.err"), "a"))

    def keep_clients(self):
        """Those that died start again."""
        for slot, process in list(self.clients.items()):
            code = process.poll()
            if code is None:
                continue
            if code != -signal.SIGKILL:
                self.violation("client", f"client {slot} ended: {code}")
            self.start_client(slot)

    def pause_clients(self):
        with open(self.pause_file, "w"):
            pass

    def clients_running(self):
        paused = set(os.listdir(self.paused_dir))
        return [s for s in self.clients if s not in paused]

    def resume_clients(self):
        os.unlink(self.pause_file)

    # ----------------------------------------------------------------------
    # Faults.  Each is f(rng): does harm and takes it back.  What remains
    # if it fails half-way, heal() puts right.

    def fault_backend_killed(self, rng):
        """kill -9 of a session: its server restarts all processes."""
        self.hit(rng, r"postgres: teller \w+ \[local\]", signal.SIGKILL)

    def fault_worker_killed(self, rng):
        """kill -9 of one of ours."""
        self.hit(rng, r"tpc_amqp", signal.SIGKILL)

    def fault_worker_terminated(self, rng):
        self.hit(rng, r"tpc_amqp", signal.SIGTERM)

    def fault_backends_terminated(self, rng):
        for _ in range(rng.choice((1, 3, 8))):
            self.hit(rng, r"postgres: teller \w+ \[local\]", signal.SIGTERM)
            time.sleep(rng.random() * 0.2)

    def fault_backends_cancelled(self, rng):
        for _ in range(rng.choice((3, 10, 30))):
            self.hit(rng, r"postgres: teller \w+ \[local\]", signal.SIGINT)
            time.sleep(rng.random() * 0.1)

    def fault_client_killed(self, rng):
        """kill -9 of applications."""
        for slot in rng.sample(sorted(self.clients),
                               rng.choice((1, 1, len(self.clients)))):
            self.clients[slot].kill()

    def hit(self, rng, pattern, number):
        cluster = self.clusters[rng.choice(CLUSTERS)]
        with self.interrupting(
                cluster, number != signal.SIGKILL and "teller" in pattern):
            self.hit_one(rng, cluster, pattern, number)

    @contextlib.contextmanager
    def interrupting(self, cluster, really=True):
        """A session that is interrupted may have waited for the standby, and
        goes on without it.  So the standby gets that before it takes over."""
        if not (really and cluster.standby):
            yield
            return
        with cluster.replication:
            yield
            self.wait(0.2)
            cluster.await_standby()

    def hit_one(self, rng, cluster, pattern, number):
        # In an order that does not depend on pids.
        pids = sorted(cluster.primary.children(pattern).items(),
                      key=lambda item: item[1])
        pick = rng.random()
        if pids:
            pid, title = pids[int(pick * len(pids))]
            # One that is frozen would heed it at some later time.
            late = cluster.standby and pid in self.frozen
            if not late and cluster.primary.signal(pid, number):
                self.log(f"  {signal.Signals(number).name} to {pid} of"
                         f" {cluster.name}: {title}")

    def fault_frozen_workers(self, rng):
        """SIGSTOP of some kind of process."""
        cluster = self.clusters[rng.choice(CLUSTERS)]
        pattern = rng.choice(("messenger", "messenger", "prepare worker",
                              "resolve worker", "resolve worker 1$",
                              "relay", "consume worker", "launcher", "walwriter|checkpointer"))
        pids = list(cluster.primary.children(pattern))
        self.freeze_for(rng, cluster, pids, pattern)

    def fault_frozen_backends(self, rng):
        cluster = self.clusters[rng.choice(CLUSTERS)]
        pids = list(cluster.primary.children(r"postgres: teller \w+ \[local\]"))
        rng.shuffle(pids)
        self.freeze_for(rng, cluster, pids[:rng.choice((1, 4))], "sessions")

    def fault_frozen_cluster(self, rng):
        cluster = self.clusters[rng.choice(CLUSTERS)]
        with cluster.life:
            self.freeze_for(rng, cluster, cluster.primary.everything(), "all")

    def freeze_for(self, rng, cluster, pids, what):
        seconds = rng.choice((0.3, 1, 2.5, 4, 7))
        self.log(f"  SIGSTOP of {what} of {cluster.name} for {seconds} s:"
                 f" {pids}")
        start = time.time()
        with self.frozen_lock:
            for pid in pids:
                if cluster.primary.signal(pid, signal.SIGSTOP):
                    self.frozen[pid] = cluster
        self.wait(seconds)
        self.thaw(pids)
        cluster.disturbed.append((start, time.time()))

    def thaw(self, pids):
        with self.frozen_lock:
            for pid in pids:
                cluster = self.frozen.pop(pid, None)
                if cluster:
                    cluster.primary.signal(pid, signal.SIGCONT)

    def thaw_all(self):
        self.thaw(list(self.frozen))

    def fault_cluster_immediate(self, rng):
        cluster = self.clusters[rng.choice(CLUSTERS)]
        self.down(cluster, rng, lambda: cluster.primary.stop("immediate"))

    def fault_cluster_fast(self, rng):
        cluster = self.clusters[rng.choice(CLUSTERS)]
        with self.interrupting(cluster):
            self.down(cluster, rng, lambda: cluster.primary.stop("fast"))

    def fault_cluster_killed(self, rng):
        """kill -9 of a whole server."""
        cluster = self.clusters[rng.choice(CLUSTERS)]
        self.down(cluster, rng, lambda: cluster.primary.kill9())

    def fault_all_killed(self, rng):
        """kill -9 of all servers."""
        for cluster in self.clusters.values():
            with cluster.life:
                cluster.primary.kill9()
        self.wait(rng.choice((0, 1)))
        for cluster in self.clusters.values():
            with cluster.life:
                if not cluster.primary.postmaster():
                    cluster.primary.start()

    def down(self, cluster, rng, stop):
        seconds = rng.choice((0, 0, 1, 4))
        start = time.time()
        with cluster.life:
            self.log(f"  cluster {cluster.name}, down for {seconds} s")
            stop()
            if cluster.primary.postmaster():
                # It waits for somebody who is frozen, say.
                self.thaw_all()
                self.log(f"  cluster {cluster.name} did not stop: kill -9")
                cluster.primary.kill9()
            self.wait(seconds)
            cluster.primary.start()
            if rng.random() < 0.2:
                # Before it has recovered from the first.
                self.wait(rng.random() * 0.5)
                cluster.primary.kill9()
                cluster.primary.start()
        cluster.disturbed.append((start, time.time()))

    def fault_standby(self, rng):
        """Gone for a while: what commits waits for it."""
        cluster = self.clusters[REPLICATED]
        seconds = rng.choice((0.3, 1, 2.5))
        start = time.time()
        with cluster.replication, cluster.life:
            self.log(f"  for {seconds} s")
            if rng.random() < 0.5:
                pids = cluster.standby.everything()
                for pid in pids:
                    cluster.standby.signal(pid, signal.SIGSTOP)
                self.wait(seconds)
                for pid in pids:
                    cluster.standby.signal(pid, signal.SIGCONT)
            else:
                cluster.standby.kill9()
                self.wait(seconds)
                cluster.standby.start()
            cluster.await_standby()
        cluster.disturbed.append((start, time.time()))

    def fault_fail_over(self, rng):
        """The primary is gone, and the standby takes its place.  What has
        not reached it is lost; the other one becomes its standby."""
        cluster = self.clusters[REPLICATED]
        # Long enough for more than what one commit leaves behind.
        behind = rng.choice((0, 0, 0.02, 0.4, 1, 2))
        start = time.time()
        with cluster.replication, cluster.life:
            self.log(f"  standby {behind} s behind")
            self.heal_standby(cluster)
            pids = cluster.standby.everything() if behind else []
            for pid in pids:
                cluster.standby.signal(pid, signal.SIGSTOP)
            self.wait(behind)
            if pids and rng.random() < 0.3:
                # It comes back with what has not reached the standby, and
                # has some time to say so.
                self.log("  the primary starts again first")
                cluster.primary.kill9()
                cluster.primary.start()
                self.wait(rng.choice((0.5, 1.5)))
            if rng.random() < 0.5:
                cluster.primary.stop("immediate")
            cluster.primary.kill9()
            if pids:
                # Thawed, it would read what waits in its socket.
                cluster.standby.kill9()
                cluster.standby.start()
            cluster.change_roles()
            self.log("  promoted")
            cluster.standby.follow(cluster.primary)
            cluster.await_standby()
            self.on_no_standby(cluster)
        cluster.disturbed.append((start, time.time()))

    def on_no_standby(self, cluster):
        """Nodes work on primaries only."""
        for pid, title in cluster.standby.children("tpc_amqp").items():
            self.violation("standby", f"{pid}: {title}")

    def fault_broker_frozen(self, rng):
        with self.broker_life:
            self.broker("freeze")
            self.wait(rng.choice((0.5, 2, 5, 8)))
            self.broker("thaw")

    def fault_broker_killed(self, rng):
        with self.broker_life:
            self.broker_deaths.append(time.time())
            self.broker("kill")
            self.wait(rng.choice((0, 2)))
            self.broker("start")

    def fault_broker_wiped(self, rng):
        """It comes back having lost all its data.

        In between it is there, with nobody connected: to see which messages
        it has, of those that it has confirmed."""
        with self.broker_life:
            self.broker_deaths.append(time.time())
            self.broker(rng.choice(("kill", "stop")))
            self.order(None, "shut")
            try:
                self.broker("start")
                count = self.messages.drain_all("wiped")
                self.log(f"  {count} messages are lost")
                self.broker("kill")
                self.broker("wipe")
                self.broker("start")
                if rng.random() < 0.5:
                    self.messages.declare()
            finally:
                self.order(None, "open")
            # Or there are no queues for a while.
            self.wait(rng.choice((0, 2, 6)))
            self.messages.declare()

    def fault_queues_deleted(self, rng):
        connection = self.amqp()
        try:
            for _ in range(rng.choice((1, 2, 6))):
                queue = (f"tpc_amqp.{rng.choice(list(NODES))}."
                         + rng.choice(("prepare", "decision", "vote")))
                what = rng.choice(("delete", "delete", "purge"))
                self.log(f"  {what} {queue}")
                if what == "delete":
                    connection.delete_queue(queue)
                else:
                    connection.purge_queue(queue)
        finally:
            connection.close()

    def fault_messages_gone(self, rng):
        self.messages.fault_deleted(rng)

    def fault_messages_again(self, rng):
        self.messages.fault_replay(rng)

    def fault_person(self, rng):
        self.messages.fault_person(rng)

    def fault_link(self, rng):
        """One node's connection to the broker, or several."""
        nodes = rng.sample(list(NODES), rng.choice((1, 1, 1, 2, 4)))
        do = rng.choice(("cut", "cut-inside", "hold", "hold", "hold-cut",
                         "delay", "refuse", "flap"))
        seconds = rng.choice((0.3, 1, 3, 6))
        way = rng.choice(("up", "down", "both"))
        delay = rng.choice((0.02, 0.2, 0.8))
        after = rng.randint(1, 3000)
        self.log(f"  {do} {nodes} {seconds} s, {way}, {delay} s, {after} bytes")
        for _ in range(8 if do == "flap" else 1):
            for node in nodes:
                if do in ("cut", "flap"):
                    self.order(node, "cut")
                elif do == "cut-inside":
                    self.order(node, "cut", after=after)
                elif do in ("hold", "hold-cut"):
                    self.order(node, "hold", way=way)
                elif do == "delay":
                    self.order(node, "delay", seconds=delay)
                else:
                    self.order(node, "refuse")
            self.wait(seconds / 4 if do == "flap" else seconds)
        for node in nodes:
            if do == "hold-cut":
                self.order(node, "cut")
            self.order(node, "pass")

    def fault_detached(self, rng):
        """detach(), and attach() some time later."""
        node = rng.choice(list(NODES))
        seconds = rng.choice((0, 0.5, 3))
        self.log(f"  node {node}, for {seconds} s")
        self.sql(node, "SELECT tpc_amqp.detach()")
        self.wait(seconds)
        for _ in range(10):
            try:
                self.attach(node)
                break
            except psycopg2.Error as error:
                self.log(f"  attach {node}: " + str(error).split("\n")[0])
                self.wait(0.3)

    def attach(self, node):
        self.sql(node, f"SELECT tpc_amqp.attach('rabbit', '{node}')", 20000)

    def fault_resolve(self, rng):
        for _ in range(5):
            self.sql(rng.choice(list(NODES)), "SELECT tpc_amqp.resolve()")

    def fault_replay(self, rng):
        """Messages come again, late and in another order."""
        keys = [f"tpc_amqp.{n}.{q}" for n in rng.sample(list(NODES), 2)
                for q in ("prepare", "decision", "vote")]
        connection = self.amqp()
        try:
            tap = connection.tap("tpc_amqp", keys)
            self.wait(rng.choice((0.5, 2)))
            caught = []
            while len(caught) < 400:
                message = connection.get(tap)
                if message is None:
                    break
                caught.append(message)
        finally:
            connection.close()
        with self.frozen_lock:
            # Some are kept for much later.
            old = rng.sample(self.hoard, min(len(self.hoard), 100))
            self.hoard = (self.hoard + rng.sample(
                caught, min(len(caught), 150)))[-1500:]
        rng.shuffle(caught)
        again = caught[:200] + old
        self.wait(rng.choice((0, 0.2, 3)))
        self.publish_again(again)
        self.log(f"  {len(again)} messages once more, {len(old)} of them old")

    def fault_tables_rewritten(self, rng):
        """Rows move to other places, and indexes with them."""
        node = rng.choice(list(NODES))
        connection = self.clusters[NODES[node]].connect(node)
        try:
            with connection.cursor() as cursor:
                cursor.execute("SET lock_timeout = '500ms'")
                for table in rng.sample((
                        "branch", "decision", "floor", "handler", "incarnation",
                        "publication", "returned", "consumed",
                        "failed_message", "subscription"), 3):
                    command = rng.choice(("VACUUM FULL", "REINDEX TABLE",
                                          "VACUUM"))
                    try:
                        cursor.execute(f"{command} tpc_amqp.{table}")
                        self.log(f"  {command} {table} on {node}")
                    except psycopg2.errors.LockNotAvailable:
                        pass
                cursor.execute("SELECT tpc_amqp.register_handler('move',"
                               " 'bank.move(jsonb)', 'teller')")
        finally:
            connection.close()

    def fault_worker_numbers(self, rng):
        """More or fewer workers."""
        cluster = self.clusters[rng.choice(CLUSTERS)]
        numbers = (rng.choice((1, 2, 6)), rng.choice((1, 3)),
                   1 if cluster.name == "a" else rng.choice((1, 4)))
        self.log(f"  {cluster.name}: {numbers}")
        self.set_workers(cluster, *numbers)
        self.wait(rng.choice((0.5, 3)))
        self.set_workers(cluster, PREPARE_WORKERS, RESOLVE_WORKERS,
                         CONSUME_WORKERS[cluster.name])

    def set_workers(self, cluster, prepare, resolve, consume):
        node = cluster.nodes[0]
        self.sql(node, f"ALTER SYSTEM SET tpc_amqp.prepare_workers = {prepare}")
        self.sql(node, f"ALTER SYSTEM SET tpc_amqp.resolve_workers = {resolve}")
        self.sql(node, f"ALTER SYSTEM SET tpc_amqp.consume_workers = {consume}")
        self.sql(node, "SELECT pg_reload_conf()")

    def fault_checkpoint(self, rng):
        """What is prepared goes from WAL to files."""
        self.sql(rng.choice(list(NODES)), "CHECKPOINT")

    def fault_broker_blocked(self, rng):
        """Its memory alarm goes off: it reads from no publisher."""
        with self.broker_life:
            self.broker("ctl", "-q", "set_vm_memory_high_watermark", "0")
            self.wait(rng.choice((1, 4)))
            self.broker("ctl", "-q", "set_vm_memory_high_watermark", "0.4")

    def publish_again(self, messages):
        connection = self.amqp()
        try:
            for message in messages:
                connection.publish("tpc_amqp", message)
            connection.sync()
        finally:
            connection.close()

    FAULTS = {
        "backend_killed": 6,
        "worker_killed": 8,
        "worker_terminated": 5,
        "backends_terminated": 7,
        "backends_cancelled": 8,
        "client_killed": 6,
        "frozen_workers": 12,
        "frozen_backends": 5,
        "frozen_cluster": 6,
        "cluster_immediate": 4,
        "cluster_fast": 4,
        "cluster_killed": 4,
        "all_killed": 1,
        "standby": 4,
        "fail_over": 10,
        "broker_frozen": 4,
        "broker_killed": 2,
        "broker_blocked": 2,
        "broker_wiped": 2,
        "queues_deleted": 6,
        "messages_gone": 6,
        "messages_again": 8,
        "person": 4,
        "link": 18,
        "detached": 5,
        "resolve": 3,
        "replay": 9,
        "checkpoint": 5,
        "tables_rewritten": 4,
        "worker_numbers": 3,
    }

    def wait(self, seconds):
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and not self.stopping:
            time.sleep(min(0.1, max(0, deadline - time.monotonic())))

    def one_fault(self, kind, seed):
        try:
            getattr(self, "fault_" + kind)(random.Random(seed))
            self.log(f"end of {kind}")
        except Exception as error:      # other faults are in its way
            self.log(f"end of {kind}: {type(error).__name__} "
                     + str(error).strip().split("\n")[0])

    def trouble(self, seconds):
        """Faults, now and then several at a time, for so long."""
        kinds = self.args.faults.split() or list(self.FAULTS)
        weights = [self.FAULTS[k] for k in kinds]
        threads = []
        start = time.time()
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            pause = self.rng.expovariate(1 / self.args.pace)
            kind = self.rng.choices(kinds, weights)[0]
            seed = self.rng.getrandbits(64)
            until = min(deadline, time.monotonic() + pause)
            while time.monotonic() < until:
                self.keep_clients()
                time.sleep(0.05)
            threads = [t for t in threads if t.is_alive()]
            if len(threads) >= 3 or time.monotonic() >= deadline:
                continue
            self.log(f"fault {kind}")
            self.faults.append((time.time(), kind))
            thread = threading.Thread(target=self.one_fault, args=(kind, seed))
            thread.start()
            threads.append(thread)
        for thread in threads:
            while thread.is_alive():
                thread.join(0.2)
                self.keep_clients()
        self.busy.append((start, time.time()))

    def heal(self):
        self.thaw_all()
        self.order(None, "open")
        for node in NODES:
            self.order(node, "pass")
        with self.broker_life:
            try:
                self.broker("thaw", check=False)
                self.broker("start")
                self.broker("ctl", "-q", "set_vm_memory_high_watermark", "0.4")
            except Exception as error:
                self.violation("setup", f"the broker: {error}")
        self.messages.heal()
        for cluster in self.clusters.values():
            with cluster.life:
                if not cluster.primary.postmaster():
                    cluster.primary.start()
                if cluster.standby:
                    try:
                        self.heal_standby(cluster)
                    except Exception as error:
                        self.violation("setup", f"the standby: {error}")
        for cluster in self.clusters.values():
            try:
                self.set_workers(cluster, PREPARE_WORKERS, RESOLVE_WORKERS,
                                 CONSUME_WORKERS[cluster.name])
            except psycopg2.Error as error:
                self.log(f"  setting workers: {error}")
        for node in NODES:
            deadline = time.monotonic() + 30
            while True:
                try:
                    if self.sql(node, "SELECT count(*) FROM"
                                " tpc_amqp.local_node")[0][0]:
                        break
                    self.attach(node)
                except psycopg2.Error as error:
                    if time.monotonic() > deadline:
                        self.violation(
                            "finish", f"{node} cannot be attached: {error}")
                        break
                    time.sleep(0.3)

    def heal_standby(self, cluster):
        for pid in cluster.standby.everything():
            cluster.standby.signal(pid, signal.SIGCONT)
        if not cluster.standby.postmaster():
            cluster.standby.follow(cluster.primary)
        cluster.await_standby()
        self.on_no_standby(cluster)

    # ----------------------------------------------------------------------
    # Checks

    def violation(self, check, text):
        found = self.violations[check]
        found.append(text)
        self.log(f"VIOLATION ({check}): {text}", show=len(found) <= 5)

    def unfinished(self, node):
        """What keeps this node from being quiet, or an empty list."""
        rows = self.sql(node, """
            SELECT 'prepared ' || gid FROM pg_prepared_xacts
            UNION ALL
            SELECT 'branch ' || gtid || ' ' || state || ' '
                   || coalesce(waiting, '') FROM tpc_amqp.branches
            UNION ALL
            SELECT 'transaction ' || gtid || ' ' || state || ' missing '
                   || missing::text FROM tpc_amqp.transactions
            UNION ALL
            SELECT 'decision ' || gtid::text FROM tpc_amqp.decision
            UNION ALL
            SELECT 'session ' || pid || ' ' || query FROM pg_stat_activity
            WHERE usename = 'teller' AND state <> 'idle'
            UNION ALL
            SELECT 'node ' || coalesce(state, 'missing') || ' '
                   || coalesce(last_error, '')
            FROM (SELECT) one LEFT JOIN tpc_amqp.node ON true
            WHERE state IS DISTINCT FROM 'connected'
               OR messenger_pid IS NULL
               OR cardinality(prepare_pids) <> %d
               OR cardinality(resolve_pids) <> %d
               OR 0 = ANY (prepare_pids || resolve_pids)
            UNION ALL """ % (PREPARE_WORKERS, RESOLVE_WORKERS)
            + self.messages.UNFINISHED)
        return [r[0] for r in rows]

    def quiet(self, last=False):
        """Pause, heal, wait until all is finished, look."""
        self.log("quiet point: pausing clients, healing")
        self.pause_clients()
        self.heal()
        took, complete = self.await_quiet()
        self.quiet_points.append(took)
        self.log(f"quiet after {took:.1f} s")
        self.check_all(complete)
        if complete:
            self.messages.calm(self.rng)
            took, complete = self.await_quiet()
            self.check_all(complete)
            self.messages.check_calm()
        if complete and (self.hoard or self.messages.hoard):
            # What was said before says nothing new.
            old = self.hoard if last else self.rng.sample(
                self.hoard, min(200, len(self.hoard)))
            self.publish_again(self.rng.sample(old, len(old)))
            self.messages.publish_again(self.messages.hoard)
            for node in NODES:
                self.messages.look_after(node, self.rng)
            time.sleep(0.5)
            took, complete = self.await_quiet()
            self.log(f"{len(old)} + {len(self.messages.hoard)} old messages;"
                     f" quiet after {took:.1f} s")
            self.check_all(complete)
        self.check_memory()
        self.check_tables()
        if complete and not last:
            self.resume_clients()
        return complete

    def await_quiet(self):
        """(seconds it took, whether it came to an end)"""
        healed = time.monotonic()
        while True:
            self.keep_clients()
            left = {}
            running = self.clients_running()
            if running:
                left["clients"] = running
            for node in NODES:
                try:
                    unfinished = self.unfinished(node)
                except psycopg2.Error as error:
                    unfinished = [str(error)]
                if unfinished:
                    left[node] = unfinished
            self.messages.finish()
            if not left:
                try:
                    missing = self.messages.missing()
                except psycopg2.Error as error:
                    missing = [str(error)]
                if missing:
                    left["messages"] = [len(missing)] + missing[:20]
            took = time.monotonic() - healed
            if not left:
                return took, True
            if took > FINISH_BOUND and list(left) == ["messages"]:
                # That is for the check.
                return took, True
            if took > FINISH_BOUND:
                self.violation("finish", f"not finished {FINISH_BOUND} s after"
                               f" healing: {json.dumps(left)[:3000]}")
                self.dump(left)
                return took, False
            time.sleep(0.1)

    def dump(self, left):
        """Where everybody is, for whoever has to find out why."""
        for node in NODES:
            try:
                for row in self.sql(node, """
                        SELECT pid, backend_type, state, wait_event_type,
                               wait_event, now() - query_start, query
                        FROM pg_stat_activity WHERE datname = current_database()
                        """):
                    self.log(f"  activity {node} {row}")
                for view in ("node", "stat", "participants", "decision",
                             "branch", "floor", "incidents", "subscriptions",
                             "failed_messages", "requests"):
                    for row in self.sql(node,
                                        f"SELECT * FROM tpc_amqp.{view}"):
                        self.log(f"  {view} {node} {row}")
            except psycopg2.Error as error:
                self.log(f"  {node}: {error}")

    def transfers(self):
        """What clients have written down, by transfer."""
        transfers = {}
        for path in glob.glob(os.path.join(self.notes_dir, "*")):
            with open(path) as file:
                for line in file:
                    try:
                        note = json.loads(line)
                    except ValueError:
                        continue        # it died writing
                    one = transfers.setdefault(note["x"], {"wrong": [],
                                                           "outcomes": []})
                    what = note["ev"]
                    if what == "plan":
                        one.update(way=note["way"], on=note["on"],
                                   legs=note["legs"], began=note["at"])
                    elif what == "end":
                        one.update(result=note["result"], ended=note["at"],
                                   error=note.get("error"),
                                   sqlstate=note.get("sqlstate"))
                    elif what == "deciding":
                        one["deciding"] = True
                    elif what == "gtid":
                        one["gtid"] = note["gtid"]
                    elif what == "took":
                        one["took"] = note["ms"]
                    elif what == "outcome":
                        one["outcomes"].append(note["outcome"])
                    elif what == "wrong":
                        one["wrong"].append(note["text"])
                    elif what == "slow":
                        one.setdefault("slow", []).append(note)
        transfers.pop(None, None)
        return transfers

    def check_all(self, complete):
        self.check_money(complete)
        if complete:
            self.messages.read_tap()
        self.messages.check(complete, self.last_transfers)

    def check_money(self, complete):
        """complete: nothing is under way, so nothing may be half done."""
        journal = collections.defaultdict(list)
        total = 0
        try:
            for node in NODES:
                for transfer, leg, account, amount in self.sql(
                        node, "SELECT * FROM bank.journal", 60000):
                    journal[transfer].append([node, leg, account, amount])
                total += self.sql(
                    node, "SELECT sum(balance) FROM bank.account")[0][0]
                for row in self.sql(node, f"""
                        SELECT a.id, a.balance, coalesce(sum(j.amount), 0)
                        FROM bank.account a
                        LEFT JOIN bank.journal j ON j.account = a.id
                        GROUP BY a.id
                        HAVING a.balance <> {BALANCE} + coalesce(sum(j.amount), 0)
                        """):
                    self.violation("money", f"account {row[0]} of {node} has"
                                   f" {row[1]}, its journal says {row[2]}")
                for gtid, kind, about, _, _, detail in self.sql(
                        node, "SELECT * FROM tpc_amqp.incidents"):
                    self.violation("incidents",
                                   f"{kind} {gtid} on {node}, about {about}:"
                                   f" {detail}")
        except psycopg2.Error as error:
            self.violation("finish", f"cannot look: {error}")
            return
        if complete and total != len(NODES) * ACCOUNTS * BALANCE:
            self.violation("money", f"the total is {total}, not"
                           f" {len(NODES) * ACCOUNTS * BALANCE}")
        transfers = self.transfers()
        for transfer, rows in journal.items():
            if transfer not in transfers:
                self.violation("atomic", f"{transfer} is nobody's: {rows}")
        for transfer, one in transfers.items():
            if "legs" not in one:
                continue
            rows = sorted(journal.get(transfer, []))
            legs = sorted(one["legs"])
            about = (f"{transfer} ({one['way']}, {one.get('gtid')}, told"
                     f" {one.get('result')} {one.get('sqlstate')}"
                     f" {one.get('error')}): wanted {legs}, found {rows}")
            for text in one["wrong"]:
                if (transfer, text) not in self.told:
                    self.told.add((transfer, text))
                    self.violation("answers", f"{text}; {about}")
            if legs and rows not in ([], legs):
                self.violation("atomic" if complete else "half", about)
                continue
            for slow in one.pop("slow", ()):
                self.check_hang(transfer, slow)
            if not legs:
                continue
            there = one["there"] = bool(rows)
            result = one.get("result")
            if result is None:
                result = "unknown" if one.get("deciding") else "no"
            if result == "ok" and not there:
                self.violation("answers", "told committed, and lost: " + about)
            if result == "no" and there:
                self.violation("answers", "told not committed: " + about)
            for outcome in one["outcomes"]:
                if (outcome == "committed" and not there) or (
                        outcome == "aborted" and there):
                    self.violation("outcome", f"outcome() said {outcome}: "
                                   + about)
        self.last_transfers = transfers

    def check_hang(self, transfer, slow):
        """A wait has a bound, unless somebody stopped who waits."""
        cluster = self.clusters[NODES[slow["node"]]]
        end = slow["at"]
        start = end - slow["seconds"]
        if not any(a < end and start < b + 1 for a, b in cluster.disturbed) \
                and slow not in self.slow:
            self.violation("hangs", f"{transfer}: {slow}")
        if slow not in self.slow:
            self.slow.append(slow)

    def check_tables(self):
        for node in NODES:
            try:
                branch, heuristic, floor, decision = self.sql(node, """
                    SELECT (SELECT count(*) FROM tpc_amqp.branch),
                           (SELECT count(*) FROM tpc_amqp.heuristic),
                           (SELECT count(*) FROM tpc_amqp.floor),
                           (SELECT count(*) FROM tpc_amqp.decision)""")[0]
            except psycopg2.Error as error:
                self.violation("tables", f"cannot look: {error}")
                continue
            self.log(f"tables of {node}: branch {branch}, heuristic"
                     f" {heuristic}, floor {floor}, decision {decision}")
            # Rows go with the floor, which comes with the next message.
            if branch > 2000:
                self.violation("tables", f"branch of {node}: {branch} rows")
            if heuristic > 0 or floor > 2 * len(NODES):
                self.violation("tables", f"{node}: heuristic {heuristic},"
                               f" floor {floor} rows")

    def check_memory(self):
        for cluster in self.clusters.values():
            for pid, title in cluster.primary.children("tpc_amqp").items():
                try:
                    with open(f"/proc/{pid}/status") as file:
                        kb = int(re.search(r"RssAnon:\s+(\d+)",
                                           file.read())[1])
                except (OSError, TypeError):
                    continue
                self.memory.setdefault((title, pid), []).append(
                    (since_start(), kb))
            size = sum(os.path.getsize(f) for f in glob.glob(
                os.path.join(cluster.primary.data, "pg_dynshmem", "mmap.*")))
            self.shared[cluster.name].append(size // 1024)
            self.log(f"dynamic shared memory of {cluster.name}:"
                     f" {size // 1024} kB")

    def judge_memory(self):
        for (title, pid), points in self.memory.items():
            values = [kb for _, kb in points]
            if len(values) >= 3 and values[-1] > values[1] + 4096:
                self.violation("memory", f"{title} ({pid}): {values} kB")
        for name, values in self.shared.items():
            if len(values) >= 4 and min(values[-2:]) > 2 * max(values[:2]) \
                    + 8192:
                self.violation("memory", f"dynamic shared memory of {name}:"
                               f" {values} kB")

    # Errors of workers that are somebody's answer, or that faults explain.
    EXPECTED = re.compile("|".join((
        r"terminating background worker",
        r"terminating connection due to administrator command",
        r"terminating connection because of crash",
    )))

    def check_logs(self):
        kinds = collections.Counter()
        for cluster in self.clusters.values():
            for line in cluster.lines_logged():
                died = re.search(
                    r"\(PID (\d+)\) was terminated by signal (\d+)", line)
                if died:
                    if int(died[2]) != signal.SIGKILL or \
                            int(died[1]) not in cluster.killed:
                        self.violation("crashes", line.strip())
                    continue
                if "interrupted while in recovery" in line or \
                        "startup HINT:  If this has occurred more" in line:
                    continue            # a standby that was killed
                if re.search(
                        r"PANIC|TRAP:|segfault|smashing|double free|"
                        r"corrupt|could not read block|cache lookup|"
                        r"snapshot reference leak|still referenced|"
                        r"exited with exit code [^01]", line):
                    self.violation("crashes", line.strip())
                    continue
                ours = re.match(r".*\] tpc_amqp (\w+ ?\w*?) "
                                r".*?(ERROR|FATAL|WARNING):  (.*)", line)
                if ours:
                    text = re.sub(r"\w+/[0-9a-f-]{36}", "G", ours[3])
                    text = re.sub(r"\d+", "N", text)
                    text = re.sub(r'"[^"]*"', '"…"', text)
                    kinds[(ours[1], ours[2], text)] += 1
                    # What handlers raise, those who run them log.
                    if ours[2] != "WARNING" and \
                            ours[1] not in ("prepare worker",
                                            "consume worker") and \
                            not self.EXPECTED.search(line):
                        self.violation("crashes", line.strip())
        for (who, level, text), count in kinds.most_common():
            self.log(f"logged by {who}: {count} times {level}: {text}")

    # ----------------------------------------------------------------------

    CHECKS = {
        "money": "the total is conserved, balances agree with journals",
        "atomic": "every transfer is on all its nodes or on none",
        "answers": "what clients were told is what is stored, everywhere",
        "lost": "every message published is consumed or accounted for",
        "phantom": "no message of a transaction that did not commit",
        "once": "every message took effect once, under one id",
        "repeated": "no message is published twice when nothing fails",
        "order": "messages of a transaction come in their order",
        "together": "what is taken, and what is done with it, is one act",
        "outcome": "outcome() agrees with what is stored",
        "incidents": "no incidents",
        "finish": f"all finished within {FINISH_BOUND} s after healing",
        "hangs": "no statement took longer than its time-outs allow",
        "crashes": "no crash or error of a worker that no fault caused",
        "memory": "memory of workers and shared memory steady",
        "tables": "tables bounded",
        "standby": "no worker on a standby",
        "half": "(with unfinished transactions) transfers half there",
        "client": "clients work",
        "setup": "the stage holds",
    }

    def report(self):
        transfers = [t for t in self.last_transfers.values() if "way" in t]
        table = collections.defaultdict(collections.Counter)
        for one in transfers:
            table[one["way"]][one.get("result", "died")] += 1
        print("\nTransactions by way, and what the client was told:")
        results = ("ok", "no", "unknown", "died")
        print(f"  {'':16}" + "".join(f"{r:>9}" for r in results))
        for way in sorted(table):
            print(f"  {way:16}" + "".join(
                f"{table[way][r]:9}" for r in results))
        print(f"  {'all':16}" + "".join(
            f"{sum(t[r] for t in table.values()):9}" for r in results)
            + f"{len(transfers):9} in all")
        states = collections.Counter(
            t["sqlstate"] or "-" for t in transfers if t.get("error"))
        print("  SQLSTATEs: " + ", ".join(
            f"{s} {n}" for s, n in states.most_common(16)))
        if self.slow:
            worst = max(self.slow, key=lambda s: s["seconds"])
            print(f"  longest statement: {worst['seconds']} s"
                  f" ({worst['text']} on {worst['node']})")

        kinds = collections.Counter(k for _, k in self.faults)
        print(f"\nFaults: {len(self.faults)}")
        for kind in sorted(kinds):
            print(f"  {kind:22}{kinds[kind]:5}")

        print(f"  failovers completed: {self.clusters[REPLICATED].failovers}")

        print("\nSeconds without a successful transaction of that coordinator:")
        for node in NODES:
            good = {int(t["ended"]) for t in transfers
                    if t["on"] == node and t.get("result") == "ok"}
            seconds = [s for start, end in self.busy
                       for s in range(int(start) + 1, int(end))]
            without = sum(1 for s in seconds if s not in good)
            print(f"  {node}: {without} of {len(seconds)}")
        print("\nTime to finish after healing: longest"
              f" {max(self.quiet_points):.1f} s of {len(self.quiet_points)}")
        print("Dynamic shared memory, kB, first and last quiet point: "
              + ", ".join(f"{c} {v[0]} {v[-1]}"
                          for c, v in sorted(self.shared.items())))
        biggest = max(kb for points in self.memory.values()
                      for _, kb in points)
        print(f"RssAnon of workers: at most {biggest} kB")

        self.messages.report()
        print("\nChecks:")
        for check, text in self.CHECKS.items():
            found = self.violations.get(check)
            if found is None and check in ("half", "client", "setup"):
                continue
            print(f"  {'FAILED' if found else 'passed'}  {text}"
                  + (f": {len(found)}" if found else ""))
        print(f"\nseed {self.args.seed}, {self.args.seconds} s")
        return not self.violations

    def main(self):
        self.set_up()
        self.log(f"seed {self.args.seed}", show=True)
        global start_time
        start_time = time.time()
        for node in NODES:
            for i in range(self.args.clients):
                self.start_client(f"{node}{i}")
        time.sleep(1)
        deadline = time.monotonic() + self.args.seconds
        while True:
            left = deadline - time.monotonic()
            if left > 0:
                self.trouble(min(left, QUIET_EVERY))
            last = deadline - time.monotonic() < QUIET_EVERY / 4
            complete = self.quiet(last)
            if last or not complete:
                break
        if complete:
            # Once more, when everything has been quiet for a while.
            time.sleep(2)
            self.check_all(True)
        self.messages.log_counters()
        self.judge_memory()
        self.check_logs()
        return self.report()

    def keep_logs(self):
        for cluster in self.clusters.values():
            for i, server in enumerate(cluster.servers):
                name = cluster.name + (f"-{i}" if cluster.standby else "")
                for kind in ("log", "commands.log"):
                    path = os.path.join(server.dir, kind)
                    if os.path.exists(path):
                        shutil.copy(path, os.path.join(
                            self.out, f"{name}.{kind}"))
        for path in glob.glob(os.path.join(self.broker_dir, "log", "*")):
            shutil.copy(path, os.path.join(
                self.out, "rabbitmq-" + os.path.basename(path)))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--stage", required=True)
    parser.add_argument("--bindir", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--clients", type=int, default=2)
    parser.add_argument("--pace", type=float, default=1.6)
    parser.add_argument("--faults", default="")
    args = parser.parse_args()
    args.stage = os.path.realpath(args.stage)

    def stop(*_):
        sys.exit(1)
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    torture = Torture(args)
    good = False
    try:
        good = torture.main()
    finally:
        try:
            torture.tear_down()
        finally:
            torture.keep_logs()
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()

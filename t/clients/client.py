"""What an application does with a Python driver, scenario by scenario.

    client.py DRIVER BLOG REVIEWS SCENARIO…

DRIVER is psycopg2, psycopg, sqlalchemy or session (SQLAlchemy's Session);
BLOG and REVIEWS are connection strings.  A SCENARIO is ID:WHAT:PREPARE:
FINISH:DIE.  ID is that of the rows; PREPARE and FINISH are the orders of the
two in which it does that, "br" or "rb"; it kills itself after statement DIE,
if that is not 0.  WHAT is

    commit      both
    plain       commit, where the blog's transaction is an ordinary one
    rollback    before anything is prepared
    undo        rollback of what is prepared
    fail        a constraint of the reviews is in the way
    ignore      ... which the application does not care about
    recover     commit by other connections, which find what is prepared

Each runs in a process of its own and says what it has done, a line each:

    ID step N NAME
    ID listed b|r COUNT     of what recovery finds there
    ID decided              COMMIT or COMMIT PREPARED has returned at one
    ID committed            ... at both
    ID rolled back
    ID error SQLSTATE STEP
"""

import os
import signal
import sys
import uuid

LONG = "x" * 200  # a note that breaks the constraint


class Psycopg:
    """A branch by tpc_* of psycopg2 or psycopg 3."""

    def __init__(self, driver, dsn, name, qualifier, plain):
        self.plain = plain
        self.connection = driver.connect(dsn)
        self.xid = self.connection.xid(7, name, qualifier)
        if not plain:
            self.connection.tpc_begin(self.xid)

    def execute(self, sql):
        with self.connection.cursor() as cursor:
            cursor.execute(sql)
            return cursor.fetchone()[0] if cursor.description else None

    def prepare(self):
        self.connection.tpc_prepare()

    def commit(self):
        if self.plain:
            self.connection.commit()
        else:
            self.connection.tpc_commit()

    def rollback(self):
        if self.plain:
            self.connection.rollback()
        else:
            self.connection.tpc_rollback()

    def close(self):
        self.connection.close()

    def lose(self):
        """The connection, with what is prepared left to others."""
        self.connection.close()

    def gid(self):
        return str(self.xid)

    @staticmethod
    def recover(driver, dsn, gid):
        """How many there are, and a function that commits that one."""
        connection = driver.connect(dsn)
        found = connection.tpc_recover()
        (ours,) = [xid for xid in found if str(xid) == gid]
        assert connection.info.transaction_status == 0, "in a transaction"

        def commit():
            connection.tpc_commit(ours)
            connection.close()

        return len(found), commit

    @staticmethod
    def sqlstate(error):
        return getattr(error, "sqlstate", None) or getattr(
            error, "pgcode", None
        )


class Alchemy:
    """A branch by begin_twophase() of SQLAlchemy."""

    def __init__(self, driver, dsn, name, qualifier, plain):
        self.plain = plain
        self.connection = alchemy_engine(dsn).connect()
        if plain:
            self.transaction = self.connection.begin()
        else:
            self.transaction = self.connection.begin_twophase()

    def execute(self, sql):
        result = self.connection.exec_driver_sql(sql)
        return result.scalar() if result.returns_rows else None

    def prepare(self):
        self.transaction.prepare()

    def commit(self):
        self.transaction.commit()

    def rollback(self):
        failed = not self.transaction.is_active
        self.transaction.rollback()
        # After a commit that failed, that has rolled back nothing.
        if failed and not self.plain:
            self.connection.rollback_prepared(self.gid(), recover=True)

    def close(self):
        self.connection.close()

    def lose(self):
        # close() would roll back.
        self.connection.invalidate()

    def gid(self):
        return self.transaction.xid

    @staticmethod
    def recover(driver, dsn, gid):
        connection = alchemy_engine(dsn).connect()
        found = connection.recover_twophase()
        assert gid in found

        def commit():
            connection.commit_prepared(gid, recover=True)
            connection.close()

        return len(found), commit

    @staticmethod
    def sqlstate(error):
        return Psycopg.sqlstate(getattr(error, "orig", error))


def alchemy_engine(dsn):
    import psycopg2
    import sqlalchemy

    return sqlalchemy.create_engine(
        "postgresql+psycopg2://",
        creator=lambda: psycopg2.connect(dsn),
        poolclass=sqlalchemy.pool.NullPool,
    )


class Report:
    """Says what is done, and dies where it is told to."""

    def __init__(self, row, die):
        self.row = row
        self.die = die
        self.count = 0
        self.name = "start"

    def say(self, *words):
        print(self.row, *words, flush=True)

    def step(self, name):
        """Before each: what fails now is this one."""
        self.name = name

    def done(self, *words):
        """After each."""
        self.count += 1
        self.say("step", self.count, self.name)
        if words:
            self.say(*words)
        if self.count == self.die:
            os.kill(os.getpid(), signal.SIGKILL)

    def error(self, error, branch):
        self.say("error", branch.sqlstate(error), self.name)
        print(self.row, repr(error), file=sys.stderr, flush=True)


def run(kind, driver, dsns, row, what, prepare_order, finish_order, die):
    """One scenario, with a branch object for each database."""
    report = Report(row, die)
    name = str(uuid.uuid4())
    plain = {"b": what == "plain", "r": False}
    branch = {
        "b": kind(driver, dsns["b"], name, "blog", plain["b"]),
        "r": kind(driver, dsns["r"], name, "reviews", plain["r"]),
    }

    try:
        if prepare_order == "br":
            branch["b"].execute("SET LOCAL tpc_amqp.prepare_wait = off")
        report.step("insert b")
        branch["b"].execute(f"INSERT INTO blogs VALUES ({row})")
        report.done()
        report.step("enlist")
        gtid = branch["b"].execute("SELECT tpc_amqp.enlist('reviews')")
        report.done()
        report.step("join")
        branch["r"].execute(f"SELECT tpc_amqp.join('{gtid}')")
        report.done()
        report.step("insert r")
        note = LONG if what in ("fail", "ignore") else "short"
        try:
            branch["r"].execute(
                f"INSERT INTO reviews (id, note) VALUES ({row}, '{note}')"
            )
            report.done()
        except Exception as error:
            if what != "ignore":
                raise
            report.error(error, kind)

        if what != "rollback":
            for which in prepare_order:
                if not plain[which]:
                    report.step(f"prepare {which}")
                    branch[which].prepare()
                    report.done()

        if what == "recover":
            gids = {which: branch[which].gid() for which in "br"}
            for which in "br":
                branch[which].lose()
            commit = {}
            for which in "br":
                report.step(f"recover {which}")
                count, commit[which] = kind.recover(
                    driver, dsns[which], gids[which]
                )
                report.say("listed", which, count)
                report.done()
            for which in finish_order:
                report.step(f"commit {which}")
                commit[which]()
                report.done("decided")
            report.say("committed")
        elif what in ("rollback", "undo"):
            for which in finish_order:
                report.step(f"rollback {which}")
                branch[which].rollback()
                report.done()
            report.say("rolled back")
        else:
            for which in finish_order:
                report.step(f"commit {which}")
                branch[which].commit()
                report.done("decided")
            report.say("committed")
    except Exception as error:
        report.error(error, kind)
        for which in "rb":
            try:
                branch[which].rollback()
            except Exception as again:
                report.error(again, kind)
        report.say("rolled back")
    finally:
        for which in "rb":
            branch[which].close()


def run_session(dsns, row, what, die):
    """One scenario with a Session, which has an order of its own.  Its
    statements are counted as they pass."""
    import sqlalchemy
    from sqlalchemy.orm import Session

    report = Report(row, die)
    engines = {which: alchemy_engine(dsns[which]) for which in "br"}
    session = Session(twophase=True)

    def execute(which, sql):
        return session.execute(
            sqlalchemy.text(sql), bind_arguments={"bind": engines[which]}
        )

    def watch(which):
        @sqlalchemy.event.listens_for(
            engines[which], "before_cursor_execute"
        )
        def before(connection, cursor, statement, *rest):
            report.step(f"{statement.split('(')[0]} {which}")

        @sqlalchemy.event.listens_for(engines[which], "after_cursor_execute")
        def after(connection, cursor, statement, *rest):
            if statement.startswith("COMMIT PREPARED"):
                report.done("decided")
            else:
                report.done()

    watch("b")
    watch("r")
    try:
        with session:
            execute("b", "SET LOCAL tpc_amqp.prepare_wait = off")
            execute("b", f"INSERT INTO blogs VALUES ({row})")
            gtid = execute("b", "SELECT tpc_amqp.enlist('reviews')").scalar()
            execute("r", f"SELECT tpc_amqp.join('{gtid}')")
            note = LONG if what == "fail" else "short"
            execute(
                "r", f"INSERT INTO reviews (id, note) VALUES ({row}, '{note}')"
            )
            if what in ("undo", "rollback"):
                if what == "undo":
                    session.prepare()
                session.rollback()
                report.say("rolled back")
            else:
                session.commit()
                report.say("committed")
    except Exception as error:
        report.error(error, Alchemy)
        report.say("rolled back")


def main():
    kind_name, blog, reviews, *scenarios = sys.argv[1:]
    dsns = {"b": blog, "r": reviews}
    if kind_name in ("psycopg2", "psycopg"):
        kind, driver = Psycopg, __import__(kind_name)
    else:
        kind, driver = Alchemy, __import__("sqlalchemy")

    for scenario in scenarios:
        row, what, prepare_order, finish_order, die = scenario.split(":")
        pid = os.fork()
        if pid == 0:
            if kind_name == "session":
                run_session(dsns, int(row), what, int(die))
            else:
                run(kind, driver, dsns, int(row), what, prepare_order,
                    finish_order, int(die))
            sys.stdout.flush()
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        if os.WIFSIGNALED(status):
            print(row, "killed", os.WTERMSIG(status), flush=True)
        elif status:
            print(row, "failed", flush=True)


if __name__ == "__main__":
    main()

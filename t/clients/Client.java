import java.nio.charset.StandardCharsets;
import java.sql.Connection;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.sql.Statement;
import java.util.Arrays;
import java.util.HashMap;
import java.util.Map;
import java.util.UUID;
import javax.sql.XAConnection;
import javax.transaction.xa.XAException;
import javax.transaction.xa.XAResource;
import javax.transaction.xa.Xid;
import org.postgresql.xa.PGXADataSource;

/**
 * What an application does with JDBC's XA interface: as client.py, which says what scenarios are
 * and what is printed. All run in this process; one that dies is the last.
 *
 * <pre>java Client BLOG REVIEWS SCENARIO…</pre>
 */
public class Client {
    static final String LONG = "x".repeat(200);
    static final Map<String, String> urls = new HashMap<>();

    record Name(byte[] name, String qualifier) implements Xid {
        public int getFormatId() { return 7; }
        public byte[] getGlobalTransactionId() { return name; }
        public byte[] getBranchQualifier() {
            return qualifier.getBytes(StandardCharsets.US_ASCII);
        }
    }

    static XAConnection connect(String which) throws SQLException {
        PGXADataSource source = new PGXADataSource();
        source.setUrl(urls.get(which));
        return source.getXAConnection();
    }

    static class Branch {
        final XAConnection xa;
        final Connection connection;
        final XAResource resource;
        final Xid xid;
        final boolean plain;
        boolean ended;
        Xid recovered;

        Branch(String which, byte[] name, boolean plain) throws SQLException, XAException {
            this.plain = plain;
            xa = connect(which);
            connection = xa.getConnection();
            resource = xa.getXAResource();
            xid = new Name(name, which);
            if (plain) {
                connection.setAutoCommit(false);
            } else {
                resource.start(xid, XAResource.TMNOFLAGS);
            }
        }

        String execute(String sql) throws SQLException {
            try (Statement statement = connection.createStatement()) {
                if (!statement.execute(sql)) {
                    return null;
                }
                ResultSet row = statement.getResultSet();
                row.next();
                return row.getString(1);
            }
        }

        void end() throws XAException {
            if (!plain && !ended) {
                ended = true;
                resource.end(xid, XAResource.TMSUCCESS);
            }
        }

        void prepare() throws XAException {
            end();
            resource.prepare(xid);
        }

        void commit() throws SQLException, XAException {
            if (plain) {
                connection.commit();
            } else {
                resource.commit(xid, false);
            }
        }

        void rollback() throws SQLException, XAException {
            if (plain) {
                connection.rollback();
            } else {
                end();
                resource.rollback(xid);
            }
        }
    }

    /** Says what is done, and dies where it is told to. */
    static class Report {
        final String row;
        final int die;
        int count;
        String name = "start";

        Report(String row, int die) {
            this.row = row;
            this.die = die;
        }

        void say(String words) {
            System.out.println(row + " " + words);
            System.out.flush();
        }

        void done() throws Exception {
            count++;
            say("step " + count + " " + name);
        }

        void mayDie() throws Exception {
            if (count == die) {
                long pid = ProcessHandle.current().pid();
                new ProcessBuilder("kill", "-KILL", Long.toString(pid)).start().waitFor();
            }
        }

        void error(Exception e) {
            String state = null;
            for (Throwable t = e; t != null && state == null; t = t.getCause()) {
                state = t instanceof SQLException s ? s.getSQLState() : null;
            }
            say("error " + state + " " + name);
            System.err.println(row + " " + e + " " + e.getCause());
        }
    }

    static void run(String row, String what, String[] prepare, String[] finish, int die)
            throws Exception {
        Report report = new Report(row, die);
        byte[] name = UUID.randomUUID().toString().getBytes(StandardCharsets.US_ASCII);
        Map<String, Branch> branches = new HashMap<>();
        branches.put("b", new Branch("b", name, what.equals("plain")));
        branches.put("r", new Branch("r", name, false));
        Branch blog = branches.get("b");
        Branch reviews = branches.get("r");

        try {
            if (prepare[0].equals("b")) {
                blog.execute("SET LOCAL tpc_amqp.prepare_wait = off");
            }
            report.name = "insert b";
            blog.execute("INSERT INTO blogs VALUES (" + row + ")");
            report.done();
            report.mayDie();
            report.name = "enlist";
            String gtid = blog.execute("SELECT tpc_amqp.enlist('reviews')");
            report.done();
            report.mayDie();
            report.name = "join";
            reviews.execute("SELECT tpc_amqp.join('" + gtid + "')");
            report.done();
            report.mayDie();
            report.name = "insert r";
            String note = what.equals("fail") || what.equals("ignore") ? LONG : "short";
            try {
                reviews.execute(
                        "INSERT INTO reviews (id, note) VALUES (" + row + ", '" + note + "')");
                report.done();
                report.mayDie();
            } catch (SQLException e) {
                if (!what.equals("ignore")) {
                    throw e;
                }
                report.error(e);
            }

            if (!what.equals("rollback")) {
                for (String which : prepare) {
                    if (!branches.get(which).plain) {
                        report.name = "prepare " + which;
                        branches.get(which).prepare();
                        report.done();
                        report.mayDie();
                    }
                }
            }

            if (what.equals("recover")) {
                blog.xa.close();
                reviews.xa.close();
                Map<String, XAConnection> found = new HashMap<>();
                for (String which : new String[] {"b", "r"}) {
                    report.name = "recover " + which;
                    found.put(which, connect(which));
                    Xid[] xids =
                            found.get(which)
                                    .getXAResource()
                                    .recover(XAResource.TMSTARTRSCAN | XAResource.TMENDRSCAN);
                    report.say("listed " + which + " " + xids.length);
                    branches.get(which).recovered =
                            Arrays.stream(xids)
                                    .filter(x -> Arrays.equals(x.getGlobalTransactionId(), name))
                                    .findFirst()
                                    .orElseThrow();
                    report.done();
                }
                for (String which : finish) {
                    report.name = "commit " + which;
                    found.get(which)
                            .getXAResource()
                            .commit(branches.get(which).recovered, false);
                    found.get(which).close();
                    report.done();
                    report.say("decided");
                }
                report.say("committed");
            } else if (what.equals("rollback") || what.equals("undo")) {
                for (String which : finish) {
                    report.name = "rollback " + which;
                    branches.get(which).rollback();
                    report.done();
                    report.mayDie();
                }
                report.say("rolled back");
            } else {
                for (String which : finish) {
                    report.name = "commit " + which;
                    branches.get(which).commit();
                    report.done();
                    report.say("decided");
                    report.mayDie();
                }
                report.say("committed");
            }
        } catch (Exception e) {
            report.error(e);
            for (String which : new String[] {"r", "b"}) {
                try {
                    branches.get(which).rollback();
                } catch (Exception again) {
                    report.error(again);
                }
            }
            report.say("rolled back");
        } finally {
            reviews.xa.close();
            blog.xa.close();
        }
    }

    public static void main(String[] args) throws Exception {
        urls.put("b", args[0]);
        urls.put("r", args[1]);
        for (int i = 2; i < args.length; i++) {
            String[] part = args[i].split(":");
            run(part[0], part[1], part[2].split(""), part[3].split(""),
                    Integer.parseInt(part[4]));
        }
    }
}

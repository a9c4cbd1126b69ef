import java.sql.Connection;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.sql.Statement;
import java.util.UUID;
import javax.sql.XAConnection;
import javax.transaction.xa.XAException;
import javax.transaction.xa.XAResource;
import javax.transaction.xa.Xid;
import org.postgresql.xa.PGXADataSource;

/**
 * A blog post in one database and its first review in the other: JDBC.
 *
 * <pre>
 * java -cp /usr/share/java/postgresql.jar TransactionXA.java BLOG REVIEWS ID RATING
 *     BLOG, REVIEWS: jdbc:postgresql://localhost/blog?user=…
 * </pre>
 *
 * The post is there if and only if the review is. A rating of 6 breaks a constraint of the
 * reviews.
 */
public class TransactionXA {

    /** A name of the transaction and a qualifier of the branch. */
    record Branch(byte[] name, String qualifier) implements Xid {
        public int getFormatId() { return 0; }
        public byte[] getGlobalTransactionId() { return name; }
        public byte[] getBranchQualifier() { return qualifier.getBytes(); }
    }

    /** Inserts both, or throws what is in the way. Returns the transaction's id. */
    static String publish(XAConnection blogXa, XAConnection reviewsXa, int id, int rating)
            throws SQLException, XAException {
        XAResource blog = blogXa.getXAResource();
        XAResource reviews = reviewsXa.getXAResource();
        byte[] name = UUID.randomUUID().toString().getBytes();
        Xid blogXid = new Branch(name, "blog");
        Xid reviewsXid = new Branch(name, "reviews");
        String gtid;

        blog.start(blogXid, XAResource.TMNOFLAGS);
        reviews.start(reviewsXid, XAResource.TMNOFLAGS);
        try {
            try (Connection connection = blogXa.getConnection();
                    PreparedStatement insert =
                            connection.prepareStatement("INSERT INTO blogs VALUES (?, ?)");
                    Statement enlist = connection.createStatement()) {
                insert.setInt(1, id);
                insert.setString(2, "Two generals");
                insert.executeUpdate();
                // Expect a branch there, which the vote comes from.
                try (ResultSet row = enlist.executeQuery("SELECT tpc_amqp.enlist('reviews')")) {
                    row.next();
                    gtid = row.getString(1);
                }
            }
            try (Connection connection = reviewsXa.getConnection();
                    PreparedStatement join =
                            connection.prepareStatement("SELECT tpc_amqp.join(?)");
                    PreparedStatement insert =
                            connection.prepareStatement(
                                    "INSERT INTO app.reviews VALUES (?, ?, ?)")) {
                // This is that branch. First, before anything is written.
                join.setString(1, gtid);
                join.execute();
                insert.setInt(1, id);
                insert.setInt(2, rating);
                insert.setString(3, "At last");
                insert.executeUpdate();
            }
            blog.end(blogXid, XAResource.TMSUCCESS);
            reviews.end(reviewsXid, XAResource.TMSUCCESS);
            reviews.prepare(reviewsXid); // votes yes
            blog.prepare(blogXid); // returns once all have
        } catch (SQLException | XAException | RuntimeException e) {
            rollback(reviews, reviewsXid);
            rollback(blog, blogXid);
            throw e;
        }

        // An error from here on does not tell what has become of the transaction.
        // tpc_amqp.outcome(gtid) does, asked in the blog's database.
        blog.commit(blogXid, false);
        reviews.commit(reviewsXid, false);
        return gtid;
    }

    /** Whatever state the branch is in. Closing the connection does what is left undone here. */
    static void rollback(XAResource resource, Xid xid) {
        try {
            resource.end(xid, XAResource.TMFAIL);
        } catch (XAException e) {
            // It has been ended before.
        }
        try {
            resource.rollback(xid);
        } catch (XAException e) {
            // It was not prepared, or is rolled back already.
        }
    }

    static XAConnection connect(String url) throws SQLException {
        PGXADataSource source = new PGXADataSource();
        source.setUrl(url);
        return source.getXAConnection();
    }

    public static void main(String[] args) throws SQLException {
        XAConnection blog = connect(args[0]);
        XAConnection reviews = connect(args[1]);
        try {
            int id = Integer.parseInt(args[2]);
            int rating = Integer.parseInt(args[3]);
            System.out.println("committed " + publish(blog, reviews, id, rating));
        } catch (SQLException | XAException e) {
            // XAException has the driver's SQLException as its cause.
            System.err.println(e.getCause() == null ? e : e.getCause());
            System.exit(1);
        } finally {
            blog.close();
            reviews.close();
        }
    }
}

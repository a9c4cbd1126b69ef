#!/usr/bin/env python3
"""A blog post in one database and its first review in the other: psycopg2.

    transaction_psycopg2.py BLOG REVIEWS ID RATING
    transaction_psycopg2.py 'dbname=blog' 'dbname=reviews' 1 5

The post is there if and only if the review is.  A rating of 6 breaks a
constraint of the reviews.
"""

import sys
import uuid

import psycopg2


def publish(blog, reviews, post_id, rating):
    """Insert both, or raise what is in the way.  Returns the transaction's id."""
    # One transaction, two branches: the same name, different qualifiers.
    name = str(uuid.uuid4())
    blog.tpc_begin(blog.xid(0, name, "blog"))
    reviews.tpc_begin(reviews.xid(0, name, "reviews"))
    try:
        with blog.cursor() as cursor:
            cursor.execute(
                "INSERT INTO blogs VALUES (%s, %s)", (post_id, "Two generals")
            )
            # Expect a branch there, which the vote comes from.
            cursor.execute("SELECT tpc_amqp.enlist('reviews')")
            (gtid,) = cursor.fetchone()

        with reviews.cursor() as cursor:
            # This is that branch.  First, before anything is written.
            cursor.execute("SELECT tpc_amqp.join(%s)", (gtid,))
            cursor.execute(
                "INSERT INTO app.reviews VALUES (%s, %s, %s)",
                (post_id, rating, "At last"),
            )

        reviews.tpc_prepare()  # votes yes
        blog.tpc_prepare()  # returns once all have
    except BaseException:
        for connection in (reviews, blog):
            try:
                connection.tpc_rollback()
            except psycopg2.Error:
                connection.close()  # which comes to the same
        raise

    # An error from here on does not tell what has become of the transaction.
    # tpc_amqp.outcome(gtid) does, asked in the blog's database.
    blog.tpc_commit()
    reviews.tpc_commit()
    return gtid


def main():
    blog_dsn, reviews_dsn, post_id, rating = sys.argv[1:]
    blog = psycopg2.connect(blog_dsn)
    reviews = psycopg2.connect(reviews_dsn)
    try:
        print("committed", publish(blog, reviews, int(post_id), int(rating)))
    except psycopg2.Error as error:
        sys.exit(f"{error.pgcode}: {error}")
    finally:
        blog.close()
        reviews.close()


if __name__ == "__main__":
    main()

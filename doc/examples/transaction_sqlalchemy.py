#!/usr/bin/env python3
"""A blog post in one database and its first review in the other: SQLAlchemy.

    transaction_sqlalchemy.py BLOG REVIEWS ID RATING
    transaction_sqlalchemy.py postgresql:///blog postgresql:///reviews 1 5

The post is there if and only if the review is.  A rating of 6 breaks a
constraint of the reviews.
"""

import sys

from sqlalchemy import Column, Integer, Text, create_engine, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import declarative_base, sessionmaker

Base = declarative_base()


class Blog(Base):
    __tablename__ = "blogs"
    id = Column(Integer, primary_key=True)
    title = Column(Text, nullable=False)


class Review(Base):
    __tablename__ = "reviews"
    __table_args__ = {"schema": "app"}
    # The table has no key; the mapper wants to be told of one.
    blog_id = Column(Integer, primary_key=True, autoincrement=False)
    rating = Column(Integer, nullable=False)
    body = Column(Text, nullable=False)


def begin(session):
    """Make the session's transaction one of both databases."""
    on_blog = {"mapper": Blog}
    on_reviews = {"mapper": Review}

    # The session prepares its branches in no certain order.  The blog's, if it
    # is the first, shall not wait for the vote of the other.
    session.execute(
        text("SET LOCAL tpc_amqp.prepare_wait = off"), bind_arguments=on_blog
    )
    gtid = session.execute(
        text("SELECT tpc_amqp.enlist('reviews')"), bind_arguments=on_blog
    ).scalar()
    session.execute(
        text("SELECT tpc_amqp.join(:gtid)"),
        {"gtid": gtid},
        bind_arguments=on_reviews,
    )
    return gtid


def main():
    blog_url, reviews_url, post_id, rating = sys.argv[1:]
    make_session = sessionmaker(
        twophase=True,
        binds={
            Blog: create_engine(blog_url),
            Review: create_engine(reviews_url),
        },
    )

    # What leaves this block by an exception is rolled back in both.
    try:
        with make_session() as session:
            gtid = begin(session)
            session.add(Blog(id=int(post_id), title="Two generals"))
            session.add(
                Review(blog_id=int(post_id), rating=int(rating), body="At last")
            )
            session.commit()
    except SQLAlchemyError as error:
        sys.exit(str(error))
    print("committed", gtid)


if __name__ == "__main__":
    main()

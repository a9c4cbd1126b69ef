# COMMIT without a warning means that it is there, everywhere.

use strict;
use warnings;

use Test::More;
use TpcTest;
use TpcPair;

my ($blog, $reviews) = TpcPair::new_pair(
	conf => <<'EOC',
tpc_amqp.resolve_interval = 100ms
EOC
);
my $stock = TpcTest->new_node(
	$reviews->cluster, 'stock', 'stock',
	setup => $TpcPair::REVIEWS_SETUP);
my ($err, $rc, @pids);

$reviews->sql(<<'EOS');
CREATE FUNCTION public.pass_on(arg jsonb) RETURNS void LANGUAGE sql AS
	$$SELECT public.add_review(arg);
	  SELECT tpc_amqp.call('stock', 'add_review', arg)$$;
SELECT tpc_amqp.register_handler('pass_on', 'public.pass_on(jsonb)');
EOS
TpcPair::connected($blog, $reviews, $stock);

# ---------------------------------------------------------------------------
# A node that is called by a node that is called.  The commit is sent again
# meanwhile; that the branch in between is committed is no answer to that.

(undef, $err, $rc) = $blog->try(TpcPair::transaction(1,
		handler => 'pass_on', set => { apply_timeout => '60s' }));
is("$rc $err", '0 ', 'a handler calls another node');
is(TpcPair::reviews_has($stock, 1), 1, '... which has it when COMMIT returns');

@pids = split /\n/,
  $stock->sql('SELECT unnest(resolve_pids) FROM tpc_amqp.node');
TpcTest->freeze(@pids);
(undef, $err, $rc) = $blog->try(TpcPair::transaction(2,
		handler => 'pass_on', set => { apply_timeout => '3s' }));
is($rc, 0, 'the node that it calls does not commit');
like(
	$err,
	qr/WARNING:  node "reviews" has not applied the transaction within 3000 ms/,
	'... and COMMIT says so');
is(TpcPair::reviews_has($reviews, 2) . TpcPair::reviews_has($stock, 2),
	'10', '... when one has committed, and one has not');
TpcTest->thaw(@pids);
$stock->poll('SELECT count(*) FROM public.reviews WHERE id = 2', 1);
$blog->poll('SELECT count(*) FROM tpc_amqp.decision', 0);
pass('it does later, and all is acknowledged');

# ---------------------------------------------------------------------------
# A transaction that is prepared, in a database that is detached

$blog->sql(<<'EOS');
BEGIN;
INSERT INTO public.blogs VALUES (3);
SELECT tpc_amqp.call('reviews', 'add_review', '{"id": 3}');
PREPARE TRANSACTION 'detached';
SELECT tpc_amqp.detach();
EOS
(undef, $err, $rc) = $blog->try("COMMIT PREPARED 'detached'");
is($rc, 0, 'COMMIT PREPARED in a database that is detached');
like($err,
	qr/WARNING:  this database is not attached, so the nodes that prepared transaction "detached" has called are told later/,
	'... says that others have yet to be told');
is(TpcPair::reviews_has($reviews, 3), 0, '... which they are');
$blog->attach;
$reviews->poll('SELECT count(*) FROM public.reviews WHERE id = 3', 1);
pass('it is there when it is attached again');

# ... of which votes are missing.  A session that has called something keeps the
# node from going altogether.

my $session = $blog->session;
$session->query_safe("BEGIN; SELECT tpc_amqp.call('reviews', 'look', '{}')");
@pids = split /\n/,
  $reviews->sql('SELECT unnest(prepare_pids) FROM tpc_amqp.node');
TpcTest->freeze(@pids);
$blog->sql(<<'EOS');
BEGIN;
SET LOCAL tpc_amqp.prepare_wait = off;
INSERT INTO public.blogs VALUES (5);
SELECT tpc_amqp.call('reviews', 'add_review', '{"id": 5}');
PREPARE TRANSACTION 'votes';
SELECT tpc_amqp.detach();
EOS
$blog->poll(q{SELECT count(*) FROM pg_catalog.pg_stat_activity
	WHERE datname = current_database() AND backend_type LIKE 'tpc_amqp %'}, 0);
# Each look of the launcher finds the node stopping.
for (1 .. 5)
{
	like($blog->fails("COMMIT PREPARED 'votes'"),
		qr/ERROR:  55000: prepared transaction "votes" is part of a global/,
		'COMMIT PREPARED without all votes, while the node goes');
}
$session->query_safe('ROLLBACK');
like($blog->fails("COMMIT PREPARED 'votes'"),
	qr/ERROR:  55000: /, '... and when it is gone');
$blog->sql("ROLLBACK PREPARED 'votes'");
TpcTest->thaw(@pids);
$blog->attach;
ok(TpcPair::settled(30, $blog, $reviews), 'ROLLBACK PREPARED is possible');
is(TpcPair::blog_has($blog, 5) . TpcPair::reviews_has($reviews, 5),
	'00', '... and counts for both');
$session->quit;

# A branch that a superuser finishes himself in a database that is detached

$session = $blog->session;
$session->query_safe('BEGIN; INSERT INTO public.blogs VALUES (4)');
my $gtid = $session->query_safe("SELECT tpc_amqp.enlist('reviews')");
$reviews->sql("BEGIN; SELECT tpc_amqp.join('$gtid');
	INSERT INTO public.reviews (id) VALUES (4); PREPARE TRANSACTION 'branch'");
$reviews->sql('SELECT tpc_amqp.detach()');
(undef, $err, $rc) = $reviews->try("COMMIT PREPARED 'branch'");
is($rc, 0, 'COMMIT PREPARED of a branch by a superuser, in one');
like($err,
	qr/WARNING:  prepared transaction "branch" is finished without node "blog", which decides over it/,
	'... says what that means');
$session->query_safe('SET LOCAL tpc_amqp.apply_timeout = 0; COMMIT');
$session->quit;
$reviews->attach;
$blog->poll('SELECT count(*) FROM tpc_amqp.decision', 0);
pass('the coordinator hears of it when it is attached again');

# ---------------------------------------------------------------------------

TpcTest->no_prepared($blog->cluster, $reviews->cluster);
done_testing();

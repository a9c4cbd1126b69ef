# What once went wrong with prepared transactions and branches of applications,
# each under the name of what was mended.

use strict;
use warnings;

use Test::More;
use TpcTest;
use TpcPair;

my ($blog, $reviews) = TpcPair::new_pair(conf => <<'EOC');
tpc_amqp.resolve_interval = '500ms'
max_prepared_transactions = 20
EOC
TpcPair::connected($blog, $reviews);
my ($session, $gtid);

# begin ID: a transaction of blog with a row, and reviews enlisted.
sub begin
{
	my ($id, %opts) = @_;

	$session = $blog->session;
	$session->query_safe('BEGIN');
	$session->query_safe('SAVEPOINT a') if $opts{savepoint};
	$gtid = $session->query_safe(q{SELECT tpc_amqp.enlist('reviews')});
	$session->query_safe("INSERT INTO public.blogs VALUES ($id)");
	return;
}

# join_and_prepare GID, ID: the branch of it.
sub join_and_prepare
{
	my ($gid, $id) = @_;

	$reviews->sql("BEGIN;
		SELECT tpc_amqp.join('$gtid');
		INSERT INTO public.reviews (id) VALUES ($id);
		PREPARE TRANSACTION '$gid';");
	return;
}

# prepare_slow GID, ID, SECONDS: without waiting for the vote.
sub prepare_slow
{
	my ($gid, $id, $seconds) = @_;

	$blog->sql(qq{SET tpc_amqp.prepare_wait = off;
		BEGIN;
		INSERT INTO public.blogs VALUES ($id);
		SELECT tpc_amqp.call('reviews', 'slow', '{"id": $id, "seconds": $seconds}');
		PREPARE TRANSACTION '$gid';});
	return;
}

sub voted
{
	my ($vote) = @_;

	$blog->poll("SELECT string_agg(vote, ',')
		FROM tpc_amqp.participants WHERE gtid = '$gtid'", $vote);
	return;
}

sub finished
{
	TpcTest->no_prepared($blog->cluster, $reviews->cluster);
	return;
}

sub crash
{
	my ($node) = @_;

	TpcTest->kill9_server($node->cluster);
	$node->cluster->start;
	TpcPair::connected($blog, $reviews);
	return;
}

# ---------------------------------------------------------------------------
# What was enlisted in a savepoint that rolled back was committed

begin(1, savepoint => 1);
join_and_prepare('dropped 1', 1);
voted('yes');
$session->query_safe('ROLLBACK TO a');
$session->query_safe('COMMIT');
finished();
is(TpcPair::reviews_has($reviews, 1),
	0, 'enlisted in a savepoint that rolled back: rolled back, though it voted');

begin(2, savepoint => 1);
join_and_prepare('dropped 2', 2);
$session->query_safe('ROLLBACK TO a');
$session->query(
	q{SELECT tpc_amqp.call('reviews', 'add_review', '{"id": 2}')});
like(
	$session->{stderr},
	qr/was enlisted in a savepoint that has been rolled back/,
	'... and the node cannot take part again');
$session->{stderr} = '';
$session->query('ROLLBACK');
finished();
is(TpcPair::reviews_has($reviews, 2), 0, '... not even so');

# ---------------------------------------------------------------------------
# COMMIT PREPARED did not wait for votes while the database was detached

prepare_slow('detached', 3, 3);
$blog->detach;
like($blog->fails("COMMIT PREPARED 'detached'"),
	qr/not running/, 'without votes, a detached coordinator does not commit');
$blog->attach;
TpcPair::connected($blog, $reviews);
$blog->sql("COMMIT PREPARED 'detached'");
is(TpcPair::reviews_has($reviews, 3), 1, '... but once it has them');

# ---------------------------------------------------------------------------
# Acknowledgements of votes that came after PREPARE did not count after a crash

prepare_slow('late vote', 4, 0.5);
$gtid = $blog->sql("SELECT gtid FROM tpc_amqp.participants
	WHERE gid = 'late vote'");
voted('yes');
$reviews->detach;
$blog->sql("SET tpc_amqp.commit_wait = decided;
	COMMIT PREPARED 'late vote'");
TpcTest->kill9_server($blog->cluster);
$blog->cluster->start;
$reviews->attach;
TpcPair::connected($blog, $reviews);
finished();
is(TpcPair::reviews_has($reviews, 4), 1, 'a vote that came after PREPARE');
$blog->poll("SELECT count(*) FROM tpc_amqp.transactions
	WHERE state = 'committed'", 0);

# ---------------------------------------------------------------------------
# A no that came before PREPARE counted as a yes after a restart

begin(5);
$reviews->sql("BEGIN; SELECT tpc_amqp.join('$gtid'); ROLLBACK");
voted('no');
$session->query_safe('SET LOCAL tpc_amqp.prepare_wait = off');
$session->query("PREPARE TRANSACTION 'no before'");
like(
	$session->{stderr},
	qr/the application rolled its branch back/,
	'PREPARE that does not wait sees a no that is there');
$session->{stderr} = '';

# ---------------------------------------------------------------------------
# A second branch of one transaction waited for the first, without a bound

begin(6);
join_and_prepare('first', 6);
like(
	$reviews->fails("BEGIN; SELECT tpc_amqp.join('$gtid');
		PREPARE TRANSACTION 'second'"),
	qr/has a branch here already/,
	'a second branch is refused at once');
$session->query_safe("PREPARE TRANSACTION 'coordinator'");
$reviews->sql("COMMIT PREPARED 'first'");
is(TpcPair::reviews_has($reviews, 6), 1, '... and the first one commits');
$blog->sql("COMMIT PREPARED 'coordinator'");
is(TpcPair::blog_has($blog, 6), 1, '... on both');
finished();
TpcTest->no_incidents('there were no incidents', $blog, $reviews);

# ---------------------------------------------------------------------------
# A branch committed by force never heard of a coordinator that was silent

begin(7);
join_and_prepare('forced', 7);
voted('yes');
$reviews->sql("SELECT tpc_amqp.force('$gtid', 'commit')");
$reviews->poll('SELECT count(*) FROM public.reviews WHERE id = 7', 1);
crash($blog);
$blog->sql(TpcPair::transaction(100));
$reviews->poll(
	"SELECT string_agg(kind, ',' ORDER BY kind) FROM tpc_amqp.incidents",
	'forced,mismatch');
$blog->poll(
	"SELECT string_agg(kind, ',' ORDER BY kind) FROM tpc_amqp.incidents",
	'mismatch');
is($reviews->sql('SELECT answered FROM tpc_amqp.heuristic'),
	't', 'a branch committed by force asks until it has heard');

# ---------------------------------------------------------------------------
# What somebody committed against a person's decision to roll back was reported
# as committed by force

for my $id (8, 9)
{
	begin($id);
	join_and_prepare("by force $id", $id);
	voted('yes');
	$reviews->sql("SELECT tpc_amqp.force('$gtid', 'commit')");
	$reviews->poll("SELECT count(*) FROM public.reviews WHERE id = $id", 1);
	$reviews->sql('UPDATE tpc_amqp.heuristic SET commit = false
		WHERE NOT answered') if $id == 8;
	$session->query_safe('ROLLBACK');
	$reviews->poll(
		"SELECT string_agg(kind, ',' ORDER BY kind) FROM tpc_amqp.incidents
		WHERE gtid = '$gtid'", 'forced,mismatch');
}
$blog->poll("SELECT string_agg(kind, ',') FROM tpc_amqp.incidents
	WHERE gtid = '$gtid'", 'mismatch');
is($blog->sql('SELECT count(*) FROM tpc_amqp.incidents'),
	2, 'only what a person has committed is said to be');

done_testing();

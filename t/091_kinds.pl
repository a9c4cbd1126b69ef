# Kinds of handlers have a queue and workers of their own: a slow kind does
# not hold up a quick one.

use strict;
use warnings;

use PostgreSQL::Test::Utils;
use Test::More;
use TpcTest;
use TpcPair;

my ($blog, $reviews) = TpcPair::new_pair(
	conf => <<'EOC',
tpc_amqp.prepare_workers = 1
tpc_amqp.lock_timeout = 0
tpc_amqp.resolve_interval = 500ms
EOC
	reviews_setup => <<'EOS',
-- waits until the test lets go
CREATE FUNCTION public.wait(arg jsonb) RETURNS void LANGUAGE sql AS
	$$SELECT pg_advisory_xact_lock_shared(1);
	  INSERT INTO public.reviews (id, note)
	  VALUES ((arg->>'id')::int, 'waited')$$;
SELECT tpc_amqp.register_handler('wait', 'public.wait(jsonb)');
SELECT tpc_amqp.register_handler('report', 'public.wait(jsonb)',
	kind => 'slow');
EOS
);
my $broker = $blog->broker;
my $queue = 'tpc_amqp.reviews.prepare:slow';
my $id = 0;

TpcPair::connected($blog, $reviews);

sub on_both
{
	my ($id, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	return is(TpcPair::blog_has($blog, $id)
		  . TpcPair::reviews_has($reviews, $id),
		'11', $name);
}

# The same with a kind.
sub of_kind
{
	my ($id, $kind, %opts) = @_;
	my $sql = TpcPair::transaction($id, %opts);

	$sql =~ s/(tpc_amqp\.call\([^)]*)\)/$1, kind => '$kind')/;
	return $sql;
}

sub workers_are
{
	my ($n, $name) = @_;

	return ok(
		$reviews->poll(
			'SELECT cardinality(prepare_pids) FROM tpc_amqp.node', $n),
		$name);
}

sub consumed
{
	my ($name) = @_;
	my %seen;

	TpcTest::poll_until(
		sub { %seen = $broker->queues; ($seen{$queue}{consumers} // 0) == 1 },
		"a consumer of $queue");
	return pass($name);
}

sub queued
{
	my ($n) = @_;
	return $reviews->poll(
		"SELECT count(*) FROM tpc_amqp.branches WHERE state = 'queued'", $n);
}

workers_are(2, 'a kind has a worker of its own');
consumed('and a queue');
$blog->sql(of_kind(++$id, 'slow', handler => 'report'));
on_both($id, 'a call of the kind');

# ---------------------------------------------------------------------------
# A slow kind

my $lock = $reviews->session;
$lock->query_safe('SELECT pg_advisory_lock(1)');
my @slow = map {
	$blog->start(of_kind(++$id, 'slow', handler => 'report',
			set => { prepare_timeout => '60s' }))
} 1 .. 3;
my @slow_ids = ($id - 2 .. $id);
queued(2);
$blog->sql(TpcPair::transaction(++$id));
on_both($id,
	'a quick call is done while slow ones wait');
is($reviews->sql('SELECT count(*) FROM public.reviews WHERE id = '
			. $slow_ids[0]),
	0, 'which none of them has been');

# What this test would look like without: the same work, of no kind.
my $general = $blog->start(
	TpcPair::transaction(++$id, handler => 'wait',
		set => { prepare_timeout => '60s' }));
my $general_id = $id;
$reviews->poll(
	"SELECT count(*) FROM tpc_amqp.branches WHERE state = 'running'", 2);
like(
	$blog->fails(
		TpcPair::transaction(++$id, set => { prepare_timeout => '300ms' })),
	qr/did not vote|vote/i,
	'a slow call of no kind holds up a quick one');
$lock->query_safe('SELECT pg_advisory_unlock(1)');
for my $run (@slow, $general)
{
	my ($out, $err, $rc) = $run->finish;
	is($rc, 0, 'what waited is done') or diag $err;
}
on_both($_, "transaction $_")
  for @slow_ids, $general_id;

# ---------------------------------------------------------------------------
# Called wrongly

like(
	$blog->fails(TpcPair::transaction(++$id, handler => 'report')),
	qr/55000: .*handler "report" is of kind "slow".*no kind.*Pass its kind/s,
	'a handler of a kind cannot be called as one of none');
like(
	$blog->fails(of_kind(++$id, 'other', handler => 'report')),
	qr/42704: .*no queue of node "reviews" for calls of kind "other"/s,
	'a kind that is not there');
like($blog->fails(of_kind(++$id, 'a.b')),
	qr/42602: .*invalid name of a kind/, 'a kind that cannot be');
$blog->sql(of_kind(++$id, 'slow'));
on_both($id,
	'a handler of no kind can be called as one of any');
like(
	$blog->fails("BEGIN; SELECT tpc_amqp.call('reviews', 'add_review');
		SELECT tpc_amqp.call('reviews', 'report', kind => 'slow'); COMMIT"),
	qr/0A000: .*are of one kind/,
	'two kinds of one node in one transaction');

# ---------------------------------------------------------------------------
# What may happen to it

$reviews->sql("SELECT tpc_amqp.register_handler('report', 'public.wait(jsonb)',
	kind => 'slow', workers => 3)");
workers_are(4, 'a kind can have several workers');
$lock->query_safe('SELECT pg_advisory_lock(1)');
@slow = map {
	$blog->start(of_kind(++$id, 'slow', handler => 'report',
			set => { prepare_timeout => '60s' }))
} 1 .. 3;
$reviews->poll(
	"SELECT count(*) FROM tpc_amqp.branches WHERE state = 'running'", 3);
pass('they work at a time');
my $refused = $blog->counter('votes_no');
my $pid = $reviews->sql(
	"SELECT pid FROM tpc_amqp.branches WHERE state = 'running' LIMIT 1");
$reviews->sql("SELECT pg_terminate_backend($pid)");
$blog->poll('SELECT votes_no FROM tpc_amqp.stat', $refused + 1);
$lock->query_safe('SELECT pg_advisory_unlock(1)');
my @failed = grep { $_->[2] } map { [ $_->finish ] } @slow;
is(scalar @failed, 1, 'a worker that is terminated votes no')
  or diag map { $_->[1] } @failed;
workers_are(4, 'and is started again');

$broker->close_connections;
TpcPair::connected($blog, $reviews);
consumed('the queue is consumed again after a reconnect');
$blog->sql(of_kind(++$id, 'slow', handler => 'report'));
on_both($id, 'after a reconnect');

$reviews->cluster->restart;
TpcPair::connected($blog, $reviews);
workers_are(4, 'a restart changes nothing');
consumed('nor as to the queue');
$blog->sql(of_kind(++$id, 'slow', handler => 'report'));
on_both($id, 'after a restart');

# What is queued when its kind ends does not wait for ever.
$lock = $reviews->session;
$lock->query_safe('SELECT pg_advisory_lock(1)');
$reviews->sql("SELECT tpc_amqp.register_handler('report', 'public.wait(jsonb)',
	kind => 'slow')");
workers_are(2, 'workers can be fewer');
my $running = $blog->start(of_kind(++$id, 'slow', handler => 'report',
		set => { prepare_timeout => '60s' }));
$reviews->poll(
	"SELECT count(*) FROM tpc_amqp.branches WHERE state = 'running'", 1);
my $left = $blog->start(of_kind(++$id, 'slow', handler => 'report',
		set => { prepare_timeout => '60s' }));
queued(1);
$reviews->sql("SELECT tpc_amqp.unregister_handler('report')");
my ($out, $err, $rc) = $left->finish;
like($err, qr/handler "report" does not exist/,
	'what was queued of a kind that has ended is answered');
$lock->query_safe('SELECT pg_advisory_unlock(1)');
($out, $err, $rc) = $running->finish;
is($rc, 0, 'what ran is finished') or diag $err;
on_both($id - 1, 'and committed');
workers_are(1, 'a kind that has ended has no workers');
TpcTest::poll_until(
	sub { my %q = $broker->queues; !exists $q{$queue} },
	'the queue to go');
like($blog->fails(of_kind(++$id, 'slow', handler => 'report')),
	qr/42704: .*no queue of node/, 'nor a queue');

# One that, while there is no connection, ends and comes back in another's place.
my $register = sub {
	$reviews->sql("SELECT tpc_amqp.register_handler('$_[0]',
		'public.wait(jsonb)', kind => '$_[1]')");
};
$register->('first', 'first');
workers_are(2, 'a kind');
$register->('report', 'slow');
workers_are(3, 'and another one');
consumed('which is consumed');
$reviews->sql("ALTER SERVER rabbit OPTIONS (SET port '1')");
$broker->close_connections;
$reviews->poll("SELECT state <> 'connected' FROM tpc_amqp.node");
$reviews->sql("SELECT tpc_amqp.unregister_handler('report')");
workers_are(2, 'it ends');
$reviews->sql("SELECT tpc_amqp.unregister_handler('first')");
workers_are(1, 'so does the one before it');
$register->('report', 'slow');
workers_are(2, 'it comes back');
$reviews->sql('ALTER SERVER rabbit OPTIONS (SET port \''
	  . $broker->port . '\')');
TpcPair::connected($blog, $reviews);
consumed('and is consumed again');
$blog->sql(of_kind(++$id, 'slow', handler => 'report'));
on_both($id, 'and called');

$lock->quit;
TpcTest->no_prepared($blog->cluster, $reviews->cluster);
TpcPair::in_agreement($blog, $reviews);

done_testing();

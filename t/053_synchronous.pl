# Synchronous replication: what a node says, its standby has.  A standby that
# is away keeps back votes, inquiries and acknowledgements alike, whoever
# comes to send them; when it is back, all goes on.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use TpcAmqp;
use TpcTest;
use TpcPair;

my ($blog, $reviews) = TpcPair::new_pair(
	init => { allows_streaming => 1 },
	conf => <<'EOC',
wal_keep_size = 1GB
tpc_amqp.prepare_timeout = 60s
tpc_amqp.apply_timeout = 60s
tpc_amqp.resolve_interval = 100ms
tpc_amqp.prepare_workers = 1
EOC
	# Promises do not go by it.
	reviews_conf => "synchronous_commit = local\n");
my $primary = $reviews->cluster;
my $standby = PostgreSQL::Test::Cluster->new('standby');
my $id = 0;

TpcPair::connected($blog, $reviews);
$primary->backup('standby');
$standby->init_from_backup($primary, 'standby', has_streaming => 1);
$standby->start;
$primary->append_conf('postgresql.conf',
	"synchronous_standby_names = 'standby'\n");
$primary->reload;
$reviews->poll("SELECT count(*) = 1 FROM pg_catalog.pg_stat_replication
	WHERE sync_state = 'sync'");

# waits WHAT, PIDS…: the worker of that kind that waits for the standby, and
# is none of those.
sub waits
{
	my ($what, @before) = @_;
	my $pids = join ',', 0, @before;

	return TpcTest::poll_until(
		sub {
			return $reviews->sql("SELECT pid FROM pg_catalog.pg_stat_activity
				WHERE backend_type ~ '$what'
				AND wait_event = 'SyncRep' AND pid NOT IN ($pids)");
		},
		"a $what that waits for the standby");
}

sub terminate
{
	my ($pid) = @_;

	$reviews->sql("SELECT pg_catalog.pg_terminate_backend($pid)");
	$reviews->poll("SELECT count(*) = 0 FROM pg_catalog.pg_stat_activity
		WHERE pid = $pid");
	return;
}

# What the only transaction of blog's still waits for.
sub missing
{
	return $blog->sql("SELECT state, missing FROM tpc_amqp.transactions
		WHERE state <> 'finished'");
}

sub commits
{
	my ($run, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my (undef, $err, $rc) = $run->finish;

	is("$rc $err", '0 ', $name);
	is(TpcPair::reviews_has($reviews, $id), 1, '... on both nodes');
	$blog->poll("SELECT count(*) = 0 FROM tpc_amqp.transactions
		WHERE state <> 'finished'");
	return;
}

# A branch that the standby does not have is not promised: not by a vote, and
# not by an inquiry of the lead, who sees it prepared.

$standby->stop('immediate');
my ($out, $err) = $blog->try(
	TpcPair::transaction(++$id, set => { prepare_timeout => '2s' }));
like($err, qr/no vote from node "reviews" within 2000 ms/,
	'a branch that the standby does not have is not promised');
$standby->start;
ok(TpcPair::settled(30, $reviews), '... and is rolled back') or diag $@;

$standby->stop('immediate');
my $run = $blog->start(TpcPair::transaction(++$id));
my $worker = waits('prepare worker');
my $lead = waits('resolve worker');
terminate($worker);
is(missing(), 'preparing|{reviews}',
	'... nor by a prepare worker that is terminated');
terminate($lead);
waits('resolve worker', $lead);
is(missing(), 'preparing|{reviews}', '... nor a lead that is');
$standby->start;
commits($run, '... and is once the standby is back');

# A commit that the standby does not have is not acknowledged.

my $resolver = $reviews->sql('SELECT resolve_pids[1] FROM tpc_amqp.node');
TpcTest->freeze($resolver);
$run = $blog->start(TpcPair::transaction(++$id));
TpcPair::waiting($blog, 'committed');
$standby->stop('immediate');
TpcTest->thaw($resolver);
waits('resolve worker');
is(missing(), 'committed|{reviews}',
	'a commit that the standby does not have is not acknowledged');
terminate($resolver);
waits('resolve worker', $resolver);
is(missing(), 'committed|{reviews}',
	'... nor by a worker that is terminated, or finds it done');
$standby->start;
commits($run, '... and is once the standby is back');

# Nor is that a prepared transaction was rolled back.

$blog->sql('CREATE FUNCTION public.note(arg jsonb) RETURNS void LANGUAGE sql AS
	$$INSERT INTO public.blogs VALUES ((arg->>\'id\')::int, \'handled\')$$;
	SELECT tpc_amqp.register_handler(\'note\', \'public.note(jsonb)\')');
$reviews->sql(q{BEGIN;
	SELECT tpc_amqp.call('blog', 'note', '{"id": 100}');
	PREPARE TRANSACTION 'g'});
$standby->stop('immediate');
$run = $reviews->start("ROLLBACK PREPARED 'g'");
waits('client');
$blog->sql('SELECT tpc_amqp.resolve()');
is($blog->sql('SELECT state FROM tpc_amqp.branches'),
	'prepared', 'a rollback that the standby does not have is not told');
$standby->start;
is(($run->finish)[2], 0, '... and is once the standby is back');
ok(TpcPair::settled(30, $blog, $reviews), '... to all') or diag $@;

# What a crash has left there first has to reach the standby.

$resolver = $reviews->sql('SELECT resolve_pids[1] FROM tpc_amqp.node');
TpcTest->freeze($resolver);
$run = $blog->start(TpcPair::transaction(++$id));
TpcPair::waiting($blog, 'committed');
$standby->stop('immediate');
TpcTest->thaw($resolver);
waits('resolve worker');
TpcTest->kill9_server($primary);
$primary->start;
my $messenger = waits('messenger');
is(missing(), 'committed|{reviews}', '... nor after a crash');
terminate($messenger);
waits('messenger', $messenger);
is(missing(), 'committed|{reviews}', '... however often it starts');
$standby->start;
commits($run, '... and is once the standby is back');

ok(TpcPair::settled(30, $blog, $reviews), 'nothing is left prepared')
  or diag $@;
TpcPair::in_agreement($blog, $reviews);
TpcTest->no_crash('no crash', $blog, $reviews);

# Nor is a client told of what a failover could take back.

$reviews->sql(q{BEGIN; INSERT INTO reviews (id) VALUES (101);
	SELECT tpc_amqp.call('blog', 'note', '{"id": 101}');
	PREPARE TRANSACTION 'g'});
my $gtid = $reviews->sql('SELECT gtid FROM tpc_amqp.transactions');
$standby->stop('immediate');
$run = $reviews->start("COMMIT PREPARED 'g'");
waits('client');
TpcTest->kill9_server($primary);
$run->finish;
$primary->start;
my @asking = map { $reviews->start($_) } "COMMIT PREPARED 'g'",
  "SELECT tpc_amqp.outcome('$gtid')";
waits('client');
is($reviews->sql("SELECT count(*) FROM pg_catalog.pg_stat_activity
	WHERE backend_type = 'client backend' AND state = 'active'"),
	3, 'who asks after a crash what became of it waits for the standby');
$standby->start;
is(join(' ', map { ($_->finish)[2] } @asking), '0 0',
	'... and is told once it is back');
ok(TpcPair::settled(30, $blog, $reviews), '... as are all') or diag $@;

# A message is not sent of a commit that the standby does not have, be it one
# that did not wait for it.

my $amqp = TpcAmqp->new($reviews->broker);
$amqp->declare('q');
$reviews->sql(q{BEGIN; SELECT tpc_amqp.publish('', 'q', 'x');
	PREPARE TRANSACTION 'm'});
$standby->stop('immediate');
$reviews->sql(q{COMMIT PREPARED 'm'});
waits('relay');
is($amqp->count('q'), 0,
	'a message of what the standby does not have is not sent');
$standby->start;
is($amqp->get('q')->{body}, 'x', '... and is once the standby is back');

# Nor is a message acknowledged that the standby does not have, be the worker
# that took it terminated, or be it found in a table.

$reviews->sql(q{CREATE TABLE public.consumed (arg jsonb);
	CREATE FUNCTION public.consume(arg jsonb) RETURNS void LANGUAGE sql AS
		$$INSERT INTO public.consumed VALUES ($1)$$;
	SELECT tpc_amqp.register_handler('consume', 'public.consume(jsonb)');
	SELECT tpc_amqp.subscribe('q', 'consume')});
$reviews->poll("SELECT state = 'active' FROM tpc_amqp.subscriptions");

# Messages of the queue that are not acknowledged.
sub left
{
	my %queues = $reviews->broker->queues;
	return $queues{q}{messages};
}

$standby->stop('immediate');
$amqp->send('', 'q', TpcAmqp->user('x', message_id => 'x'));
my @workers = waits('consume worker');
terminate($workers[0]);
push @workers, waits('consume worker', @workers);
is(left(), 1, '... nor is a message that took effect acknowledged');
terminate($workers[1]);
waits('consume worker', @workers);
is(left(), 1, '... nor one that is found in a table');
$standby->start;
TpcTest::poll_until(sub { left() == 0 }, 'an acknowledgement');
$reviews->poll('SELECT NOT EXISTS (SELECT FROM tpc_amqp.failed_messages)');
is($reviews->sql('SELECT count(*) FROM public.consumed'),
	1, '... and is once the standby is back');

done_testing();

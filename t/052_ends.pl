# What is told to end while a node works: workers, sessions that wait for other
# nodes, servers.

use strict;
use warnings;

use PostgreSQL::Test::Utils;
use Test::More;
use TpcTest;
use TpcPair;

# Bound on what shall not take long, in seconds.
my $QUICK = 10;

my ($blog, $reviews) = TpcPair::new_pair(
	conf => <<'EOC',
tpc_amqp.resolve_interval = 500ms
tpc_amqp.lock_timeout = 60s
EOC
);
my $stock = TpcTest->new_node(
	$reviews->cluster, 'stock', 'stock',
	setup => $TpcPair::REVIEWS_SETUP);
my $id = 0;
my ($lock, $run, $pid, $err, $rc);

TpcPair::connected($blog, $reviews, $stock);

# commits NAME: a test that a transaction does.
sub commits
{
	my ($name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	$id++;
	TpcPair::connected($blog, $reviews);
	my (undef, $err, $rc) = $blog->try(TpcPair::transaction($id));
	is("$rc $err", '0 ', "$name: a transaction commits");
	return is(
		TpcPair::blog_has($blog, $id) . TpcPair::reviews_has($reviews, $id),
		'11', '... on both nodes');
}

my @take = (handler => 'take', arg => '{"item": "apple", "amount": 1}');
my %patient = (prepare_timeout => '60s', apply_timeout => '60s');

# ---------------------------------------------------------------------------
# Workers that are told to end come back

for my $node ($blog, $reviews)
{
	my $pids = $node->sql('SELECT messenger_pid || prepare_pids || resolve_pids
		FROM tpc_amqp.node');
	$node->sql("SELECT pg_terminate_backend(p) FROM unnest('$pids'::int[]) p");
	$node->poll("SELECT count(*) = 0 FROM pg_stat_activity
		WHERE pid = ANY ('$pids')");
}
TpcPair::connected($blog, $reviews);
pass('workers that were terminated come back');
commits('with new workers');
my $launcher = $blog->sql("SELECT pid FROM pg_stat_activity
	WHERE backend_type = 'tpc_amqp launcher'");
$blog->sql("SELECT pg_terminate_backend($launcher)");
$blog->poll("SELECT count(*) = 1 FROM pg_stat_activity
	WHERE backend_type = 'tpc_amqp launcher' AND pid <> $launcher");
pass('the launcher, too');
commits('with a new launcher');

# ---------------------------------------------------------------------------
# The number of workers follows the settings

sub set_workers
{
	my ($prepare, $resolve) = @_;
	$reviews->cluster->append_conf('postgresql.conf', <<"EOC");
tpc_amqp.prepare_workers = $prepare
tpc_amqp.resolve_workers = $resolve
EOC
	$reviews->cluster->reload;
	$reviews->poll("SELECT cardinality(prepare_pids) = $prepare
		AND cardinality(resolve_pids) = $resolve FROM tpc_amqp.node");
	TpcTest::poll_until(
		sub {
			return TpcTest->workers($reviews->cluster, 'reviews') ==
			  1 + $prepare + $resolve;
		},
		'the number of workers');
	return;
}

set_workers(5, 3);
pass('a reload starts more workers');
commits('with more workers');
set_workers(1, 1);
pass('a reload ends workers');
commits('with fewer workers');
set_workers(2, 1);

# ---------------------------------------------------------------------------
# Sessions that wait are told to stop

# until NODE, EVENT: the pid of a session that waits for it.
sub waits_for
{
	my ($node, $event) = @_;
	return TpcPair::backend($node,
		"wait_event = '$event' OR (wait_event = 'Extension'
		AND query LIKE 'COMMIT%')");
}

# applied_wait SETTINGS: a transaction that is decided and not applied: the run
# and what holds it up.
sub applied_wait
{
	my (%set) = @_;
	my $resolver = $reviews->sql('SELECT resolve_pids[1] FROM tpc_amqp.node');

	TpcTest->freeze($resolver);
	$id++;
	my $waiter = $blog->start(
		TpcPair::transaction($id, set => { %patient, %set }));
	TpcPair::waiting($blog, 'committed');
	return ($waiter, $resolver);
}

# The vote wait
$lock = TpcPair::lock_stock($reviews);
$run = $blog->start(
	TpcPair::transaction(
		++$id, @take,
		set => \%patient,
		before => "SET LOCAL statement_timeout = '500ms';\n"));
TpcTest->within($QUICK, sub { (undef, $err, $rc) = $run->finish },
	'statement_timeout ends the wait for votes');
like($err, qr/57014: canceling statement due to statement timeout/,
	'... as that');
is(TpcPair::blog_has($blog, $id), 0, '... and rolls back');

$run = $blog->start(TpcPair::transaction(++$id, @take, set => \%patient));
TpcPair::waiting($blog, 'preparing');
$blog->sql('SELECT pg_cancel_backend('
	  . waits_for($blog, 'TpcAmqpVotes') . ')');
TpcTest->within($QUICK, sub { (undef, $err, $rc) = $run->finish },
	'a cancel ends the wait for votes');
like($err, qr/57014: canceling statement due to user request/, '... as that');
is(TpcPair::blog_has($blog, $id), 0, '... and rolls back');

$run = $blog->start(TpcPair::transaction(++$id, @take, set => \%patient));
TpcPair::waiting($blog, 'preparing');
$blog->sql('SELECT pg_terminate_backend('
	  . waits_for($blog, 'TpcAmqpVotes') . ')');
TpcTest->within($QUICK, sub { (undef, $err, $rc) = $run->finish },
	'pg_terminate_backend ends the wait for votes');
like($err, qr/57P01/, '... as that');
is(TpcPair::blog_has($blog, $id), 0, '... and rolls back');

$reviews->poll("SELECT count(*) = 0 FROM tpc_amqp.branches");
pass('the participant gave up on all of them, though still waiting');
$lock->quit;
is($reviews->sql("SELECT amount FROM public.stock WHERE item = 'apple'"),
	100, '... so that nothing of them took effect');
TpcTest->no_prepared($reviews->cluster);

# The applied wait
($run, my $resolver) = applied_wait();
$pid = waits_for($blog, 'TpcAmqpApplied');
$blog->sql("SELECT pg_cancel_backend($pid)");
TpcTest->within($QUICK, sub { (undef, $err, $rc) = $run->finish },
	'a cancel ends the wait for participants');
is($rc, 0, '... which is no error');
like($err, qr/WARNING: .*canceling\ wait\ for\ participants\ due\ to\ user\ request\n
	.*already\ committed.*"reviews"\ might\ not\ have\ applied/x,
	'... but a warning');
is(TpcPair::blog_has($blog, $id) . TpcPair::reviews_has($reviews, $id),
	'10', 'the transaction is committed, and not applied');
TpcTest->thaw($resolver);
$reviews->poll("SELECT count(*) = 1 FROM public.reviews WHERE id = $id");
pass('it is applied later');

($run, $resolver) = applied_wait(apply_timeout => '300ms');
TpcTest->within($QUICK, sub { (undef, $err, $rc) = $run->finish },
	'apply_timeout ends the wait for participants');
like($err, qr/WARNING: .*node "reviews" has not applied the transaction within 300 ms/,
	'... with a warning that names the node');
is($rc, 0, '... which is no error');
TpcTest->thaw($resolver);
$reviews->poll("SELECT count(*) = 1 FROM public.reviews WHERE id = $id");
pass('it is applied later');

($run, $resolver) = applied_wait();
$pid = waits_for($blog, 'TpcAmqpApplied');
$blog->sql("SELECT pg_terminate_backend($pid)");
TpcTest->within($QUICK, sub { (undef, $err, $rc) = $run->finish },
	'pg_terminate_backend ends the wait for participants');
like($err, qr/WARNING: .*canceling\ the\ wait\ for\ participants\ and\ terminating
	.*already\ committed.*"reviews"/sx, '... with a warning');
is(TpcPair::blog_has($blog, $id), 1, 'the transaction is committed');
TpcTest->thaw($resolver);
$reviews->poll("SELECT count(*) = 1 FROM public.reviews WHERE id = $id");
pass('it is applied later');
commits('after sessions that did not wait');

# ---------------------------------------------------------------------------
# The messenger ends while transactions wait

sub end_messengers
{
	for my $node (@_)
	{
		my $old = $node->sql('SELECT messenger_pid FROM tpc_amqp.node');
		$node->sql("SELECT pg_terminate_backend($old)");
		$node->poll("SELECT messenger_pid <> $old AND state = 'connected'
			FROM tpc_amqp.node");
	}
	return;
}

for my $which ([$blog], [$reviews], [ $blog, $reviews ])
{
	my $whose = join ' and ', map { $_->name } @$which;

	$lock = TpcPair::lock_stock($stock);
	$run = $blog->start(
		TpcPair::transaction(
			++$id,
			set => \%patient,
			after => "SELECT tpc_amqp.call('stock', 'take',
				'{\"item\": \"apple\", \"amount\": 1}');"));
	TpcPair::branch_is($reviews, 'prepared');
	end_messengers(@$which);
	$lock->quit;
	(undef, $err, $rc) = TpcTest->within($QUICK,
		sub { return $run->finish }, "messenger of $whose ends before the votes are in");
	is("$rc $err", '0 ', '... and the transaction commits');
	is( TpcPair::blog_has($blog, $id) . TpcPair::reviews_has($reviews, $id),
		'11', '... on both');

	($run, $resolver) = applied_wait();
	waits_for($blog, 'TpcAmqpApplied');
	end_messengers(@$which);
	TpcTest->thaw($resolver);
	(undef, $err, $rc) = TpcTest->within($QUICK,
		sub { return $run->finish },
		"messenger of $whose ends before the acknowledgement is in");
	is("$rc $err", '0 ', '... and COMMIT returns, without a warning');
	is( TpcPair::blog_has($blog, $id) . TpcPair::reviews_has($reviews, $id),
		'11', '... on both');
}

# The vote is on its way when its addressee goes.
my $messenger = $blog->sql('SELECT messenger_pid FROM tpc_amqp.node');
$lock = TpcPair::lock_stock($reviews);
$run = $blog->start(TpcPair::transaction(++$id, @take, set => \%patient));
TpcPair::branch_is($reviews, 'running');
TpcTest->freeze($messenger);
$lock->quit;
TpcPair::branch_is($reviews, 'prepared');
$blog->sql("SELECT pg_terminate_backend($messenger)");
TpcTest->thaw($messenger);
(undef, $err, $rc) = TpcTest->within($QUICK, sub { return $run->finish },
	'a messenger ends while a vote is on its way');
is("$rc $err", '0 ', '... and the transaction commits');
TpcTest->no_prepared($blog->cluster, $reviews->cluster);
commits('after messengers ended');

# ---------------------------------------------------------------------------
# Shutdown does not wait for anybody

$lock = TpcPair::lock_stock($reviews);
my $voting_id = ++$id;
my $voting =
  $blog->start(TpcPair::transaction($voting_id, @take, set => \%patient));
TpcPair::waiting($blog, 'preparing');
(my $applying, $resolver) = applied_wait();
TpcTest::poll_until(
	sub {
		return $blog->sql("SELECT count(*) = 2 FROM pg_stat_activity
			WHERE query LIKE 'COMMIT%' AND wait_event_type = 'Extension'") eq 't';
	},
	'two sessions that wait');
TpcTest->within($QUICK, sub { $blog->cluster->stop('fast') },
	'a fast shutdown with sessions that wait');
(undef, $err, $rc) = $voting->finish;
like($err, qr/57P01: terminating connection due to administrator command/,
	'the wait for votes ends');
(undef, $err, $rc) = $applying->finish;
like($err, qr/WARNING: .*canceling\ the\ wait\ for\ participants\ and\ terminating
	\ connection\ due\ to\ administrator\ command.*The\ transaction\ has\ already
	\ committed\ on\ all\ nodes,\ but\ "reviews"\ might\ not\ have\ applied/sx,
	'the wait for participants ends with a warning');
TpcTest->thaw($resolver);
$lock->quit;
$blog->cluster->start;
TpcPair::connected($blog, $reviews);
$reviews->poll("SELECT count(*) = 1 FROM public.reviews WHERE id = $id");
is(TpcPair::blog_has($blog, $id), 1, 'what was decided is applied');
ok(TpcPair::settled(30, $blog, $reviews), 'nothing stays prepared');
is(TpcPair::blog_has($blog, $voting_id), 0, 'what was not is rolled back');
is($reviews->sql('SELECT count(*) FROM tpc_amqp.branches'),
	0, '... on both');
commits('after a shutdown');

# The participant's server
TpcTest->within($QUICK, sub { $reviews->cluster->stop('fast') },
	'a fast shutdown of a participant');
$reviews->cluster->start;
commits('after its start');

TpcTest->no_incidents('there were no incidents', $blog, $reviews, $stock);

done_testing();

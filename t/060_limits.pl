# Limits, and what is beyond them; what must not wait for what; many sessions,
# many branches in doubt, and what a worker's memory does meanwhile.

use strict;
use warnings;

use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);
use TpcPair;
use TpcTest;

my $broker = TpcTest::Broker->of_this_file;
my ($blog, $reviews) = TpcPair::new_pair(
	conf => <<'EOC',
log_statement = none
log_min_messages = info
max_connections = 350
max_prepared_transactions = 1500
tpc_amqp.max_transactions = 2000
tpc_amqp.prepare_workers = 4
tpc_amqp.resolve_workers = 2
tpc_amqp.lock_timeout = 0
tpc_amqp.forget_after = 1s
EOC
	blog_setup => 'CREATE SEQUENCE public.ids START 100000;',
	reviews_setup => <<'EOS');
CREATE FUNCTION public.big(arg jsonb) RETURNS void LANGUAGE sql AS
	$$INSERT INTO public.reviews (id, note)
	  VALUES ((arg->>'id')::int, length(arg->>'pad'))$$;
SELECT tpc_amqp.register_handler('big', 'public.big(jsonb)');
EOS
my $stock = TpcTest->new_node(
	$blog->cluster, 'stock', 'stock',
	setup => $TpcPair::REVIEWS_SETUP);
my @nodes = ($blog, $reviews, $stock);
my $next_id = 1;

TpcPair::connected(@nodes);

sub outcome_is
{
	my ($id, $expected, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	return is(TpcPair::blog_has($blog, $id)
		  . TpcPair::reviews_has($reviews, $id), $expected, $name);
}

sub works_on
{
	my ($name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $id = $next_id++;

	my (undef, $err) = $blog->try(TpcPair::transaction($id));
	is($err, '', "$name: the next transaction commits");
	return outcome_is($id, '11', "$name: ... on both nodes");
}

sub workers
{
	my ($node) = @_;
	return split /,/, $node->sql("SELECT concat_ws(',', messenger_pid,
		array_to_string(prepare_pids, ','), array_to_string(resolve_pids, ','))
		FROM tpc_amqp.node");
}

# took CODE: how many seconds it took.
sub took
{
	my ($code) = @_;
	my $from = time();
	$code->();
	return time() - $from;
}

sub slow
{
	my ($seconds) = @_;
	my $id = $next_id++;
	return $blog->start(
		TpcPair::transaction(
			$id,
			handler => 'slow',
			arg => qq({"id": $id, "seconds": $seconds})));
}

sub running
{
	my ($count) = @_;
	return $reviews->poll("SELECT count(*) FROM tpc_amqp.branches
		WHERE state = 'running'", $count);
}

sub reload
{
	my ($node, $setting, $value) = @_;
	$node->sql("ALTER SYSTEM SET tpc_amqp.$setting = '$value'");
	$node->cluster->reload;
	$node->poll("SELECT setting = (SELECT regexp_replace('$value', '\\D', '', 'g'))
		FROM pg_settings WHERE name = 'tpc_amqp.$setting'");
	return;
}

# Plain transactions: clients, and each one's number, or seconds.
my $script = "$PostgreSQL::Test::Utils::tmp_check/transaction.sql";
append_to_file($script, <<'EOS');
WITH b AS (INSERT INTO public.blogs VALUES (nextval('public.ids')) RETURNING id) SELECT tpc_amqp.call('reviews', 'add_review', jsonb_build_object('id', id)) FROM b;
EOS

sub pgbench
{
	my ($clients, @options) = @_;
	my $run = { out => '', err => '' };

	$run->{handle} = IPC::Run::start(
		[
			$blog->cluster->installed_command('pgbench'), '-n',
			'-c', $clients, '-j', 2, '-f', $script, @options,
			$blog->connstr
		],
		'<', '/dev/null',
		'>', \$run->{out},
		'2>', \$run->{err},
		IPC::Run::timeout($TpcTest::TIMEOUT));
	$run->{handle}->pump_nb;
	return bless $run, 'TpcTest::Run';
}

sub rate
{
	my ($out) = @_;
	my ($tps) = $out =~ /^tps = ([\d.]+)/m;
	return $tps // 0;
}

sub same_rows
{
	my ($name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my @sums = map {
		$_->[0]->sql("SELECT count(*), count(DISTINCT id), sum(id::bigint)
			FROM public.$_->[1]")
	} ([ $blog, 'blogs' ], [ $reviews, 'reviews' ]);
	return is($sums[1], $sums[0], "$name: both nodes have the same rows");
}

# ---------------------------------------------------------------------------
# What does not wait for what

my $seconds = took(
	sub {
		my @runs = map { slow(1) } 1 .. 4;
		is(($_->finish)[1], '', 'a slow handler finishes') for @runs;
	});
cmp_ok($seconds, '<', 2.5, 'four handlers run at a time with four workers');

my $slow = slow(3);
running(1);
$seconds = took(sub { works_on('beside a slow handler') });
cmp_ok($seconds, '<', 2, 'a slow handler does not delay others');
ok($slow->{handle}->pumpable, '... and still runs');
is(($slow->finish)[1], '', '... and finishes');

# All prepare workers are busy; a decision needs none of them.
my $holder = $blog->session;
$holder->query_safe('BEGIN; LOCK TABLE tpc_amqp.decision IN SHARE MODE');
my $id = $next_id++;
my $decided = $blog->start(TpcPair::transaction($id));
TpcPair::backend($blog, "wait_event_type = 'Lock'");
my @slow = map { slow(3) } 1 .. 4;
running(4);
$seconds = took(
	sub {
		$holder->quit;
		is(($decided->finish)[1], '', 'a decision is applied');
	});
cmp_ok($seconds, '<', 1.5, '... at once, though no prepare worker is free');
running(4);
pass('... meanwhile');
outcome_is($id, '11', '... on both nodes');
$_->finish for @slow;

# A participant stands still.
my @frozen = workers($reviews);
TpcTest->freeze(@frozen);
my $stuck = $blog->start(
	TpcPair::transaction($next_id++, set => { prepare_timeout => '4s' }));
TpcPair::waiting($blog, 'preparing');
$seconds = took(
	sub {
		$blog->sql(TpcPair::transaction($next_id++, to => 'stock'));
	});
cmp_ok($seconds, '<', 1,
	'a participant that stands still does not delay others');
like(($stuck->finish)[1], qr/ERROR:  40000: no vote from node "reviews"/,
	'... but its own transactions');
TpcTest->thaw(@frozen);
$blog->sql('DELETE FROM public.blogs WHERE id = (SELECT max(id)
	FROM public.blogs)');
works_on('participant thawed');

# ---------------------------------------------------------------------------
# Payload

# The largest argument that fits into KB, for "big": what it counts is the
# arguments and handlers, and 64 bytes for each call.
sub big
{
	my ($call_id, $bytes) = @_;
	my $pad = $bytes - 64 - length('big')
	  - length(qq({"id": $call_id, "pad": ""}));
	return "BEGIN;
		INSERT INTO public.blogs VALUES ($call_id);
		SELECT tpc_amqp.call('reviews', 'big', jsonb_build_object(
			'id', $call_id, 'pad', repeat('x', $pad)));
		COMMIT;\n";
}

my $KB = 1024;
my $err = $blog->fails(big($next_id++, 1024 * $KB + 1));
like($err, qr/ERROR:  54000: calls to node "reviews" are too large/,
	'a byte too much for max_payload');
like($err, qr/HINT:  Increase "tpc_amqp.max_payload" on both nodes/,
	'... has a hint');
$blog->sql(big($id = $next_id++, 1024 * $KB));
outcome_is($id, '11', 'a byte less is not');

my $connects = $reviews->counter('connects');
reload($blog, 'max_payload', '8192kB');
my $bad = $reviews->counter('bad_messages');
$seconds = took(
	sub {
		$err = $blog->fails(
			"SET tpc_amqp.prepare_timeout = '2s';\n" . big($id = $next_id++,
				5000 * $KB));
	});
like($err, qr/ERROR:  40000: no vote from node "reviews" within 2000 ms/,
	'a message that is too large for the participant');
cmp_ok($seconds, '<', 3, '... fails in time');
is($reviews->counter('bad_messages'), $bad + 1, '... and is counted');
outcome_is($id, '00', '... is rolled back');
works_on('too large for the participant');

reload($reviews, 'max_payload', '8192kB');
my $rc;
(undef, $err, $rc) =
  $blog->try("SET tpc_amqp.prepare_timeout = '5s';\n"
	  . big($id = $next_id++, 5000 * $KB));
is($err, '', 'some megabytes, once the participant allows it');
outcome_is($id, '11', '... arrive');
is($reviews->counter('connects'),
	$connects, '... over the same connection all the time');

# ---------------------------------------------------------------------------
# Sessions and memory

my $run = pgbench(300, '-T', 4);
$blog->poll("SELECT count(*) >= 300 FROM pg_stat_activity
	WHERE backend_type = 'client backend' AND query ~ '^WITH b'");
is(scalar(my @connections = $broker->connections),
	3, 'one connection per node, with 300 sessions');
my ($out) = $run->finish;
is($run->{handle}->result(0), 0, 'none of 300 sessions failed')
  or diag $run->{err};
diag sprintf '300 sessions: %.0f transactions per second', rate($out);
same_rows('300 sessions');

# What a process has for itself, in kB.
sub memory
{
	my %memory;
	for my $node ($blog, $reviews)
	{
		for my $pid (workers($node))
		{
			my ($kb) = slurp_file("/proc/$pid/status") =~ /^RssAnon:\s+(\d+)/m;
			my $type = $node->sql("SELECT backend_type FROM pg_stat_activity
				WHERE pid = $pid");
			$memory{ $node->name . " $type $pid" } = $kb;
		}
	}
	return %memory;
}

sub commit_until
{
	my ($count) = @_;
	my $left = $count - $blog->counter('commits');

	return if $left <= 0;
	my $pgbench = pgbench(10, '-t', int($left / 10) + 1);
	my ($report) = $pgbench->finish;
	is($pgbench->{handle}->result(0), 0, "$count transactions")
	  or diag $pgbench->{err};
	diag sprintf '10 sessions: %.0f transactions per second', rate($report);
	return;
}

commit_until(5000);
my %before = memory();
commit_until(20000);
my %after = memory();
for my $who (sort keys %before)
{
	cmp_ok($after{$who} // 1e9, '<=', $before{$who} + 3 * $KB,
		"memory of $who stays ($before{$who} kB)");
}
same_rows('20000 transactions');

# ---------------------------------------------------------------------------
# A thousand branches in doubt

my @resolvers = split /,/,
  $reviews->sql("SELECT array_to_string(resolve_pids, ',')
	FROM tpc_amqp.node");
TpcTest->freeze(@resolvers);
{
	local $ENV{PGOPTIONS} = '-c tpc_amqp.commit_wait=decided';
	$run = pgbench(20, '-t', 55);
	$run->finish;
	is($run->{handle}->result(0), 0, '1100 transactions are decided')
	  or diag $run->{err};
}
# ... and some are not.
$holder = $blog->session;
$holder->query_safe('BEGIN; LOCK TABLE tpc_amqp.decision IN SHARE MODE');
$run = pgbench(50, '-t', 1);
$reviews->poll('SELECT count(*) FROM pg_prepared_xacts', 1150);
pass('1150 branches are prepared');
is($blog->sql('SELECT count(*) FROM public.blogs')
	  - $reviews->sql('SELECT count(*) FROM public.reviews'),
	1100, '... of which 1100 are decided');

TpcTest->kill9_server($_->cluster) for $reviews, $blog;
TpcTest->thaw(@resolvers);
eval { $run->finish };
eval { $holder->quit };
$_->cluster->start for $blog, $reviews;
my $from = time();
{
	local $TpcTest::TIMEOUT = 40;
	my $left = '?';
	ok( eval {
			TpcTest::poll_until(
				sub {
					$left = $reviews->sql('SELECT count(*)
						FROM pg_prepared_xacts');
					return $left eq '0';
				},
				'branches to be finished');
		},
		'all branches in doubt are finished without help')
	  or diag "$left are left";
}
diag sprintf '1150 branches in doubt: %.1f s, %.0f per second',
  time() - $from, 1150 / (time() - $from);
same_rows('branches in doubt');
TpcPair::connected(@nodes);
works_on('branches in doubt');

# ---------------------------------------------------------------------------
# Places for transactions, and memory for messages

for my $node ($blog, $reviews)
{
	$node->cluster->append_conf('postgresql.conf', <<'EOC');
tpc_amqp.max_transactions = 10
tpc_amqp.max_memory = 16MB
EOC
	$node->cluster->restart;
}
TpcPair::connected(@nodes);

my @sessions = map { $blog->session } 1 .. 10;
for my $session (@sessions)
{
	$session->query_safe("BEGIN;
		SELECT tpc_amqp.call('reviews', 'add_review', '{\"id\": $next_id}');
		INSERT INTO public.blogs VALUES ($next_id)");
	$next_id++;
}
my $full_at = TpcTest->log_size($blog->cluster);
$seconds = took(
	sub {
		$err = $blog->fails(
			TpcPair::transaction(
				$next_id++, set => { slot_timeout => '500ms' }));
	});
like($err, qr/ERROR:  53400: too many global transactions/,
	'max_transactions is exhausted');
like($err, qr/DETAIL:  All 10 places are taken, and none was free within 500 ms/,
	'... for a time');
cmp_ok($seconds, '>', 0.5, '... that has passed');
like($err, qr/HINT:  Increase "tpc_amqp.max_transactions"/, '... with a hint');
$seconds = took(
	sub {
		$err = $blog->fails(
			TpcPair::transaction($next_id++, set => { slot_timeout => 0 }));
	});
like($err, qr/ERROR:  53400: .*within 0 ms/s, '... or not at all');
cmp_ok($seconds, '<', 0.5, '... which it does not wait for');
my @said = substr(slurp_file($blog->cluster->logfile), $full_at) =~
  /LOG:  all 10 places for global transactions are taken/g;
is(scalar @said, 1, '... and the log says so once');
$blog->sql('BEGIN; INSERT INTO public.blogs VALUES (-1); ROLLBACK');
pass('... local transactions work');
my $patient = $blog->start(
	TpcPair::transaction($next_id++, set => { slot_timeout => '60s' }));
TpcPair::backend($blog, "wait_event_type = 'Extension' AND query ~ 'call'");
my $first = shift @sessions;
$first->query_safe('ROLLBACK');
$first->quit;
is(($patient->finish)[1], '', 'who waits for a place has the next one');
works_on('a place is free');
$_->query_safe('COMMIT') for @sessions;
$_->quit for @sessions;
is($blog->sql("SELECT count(*) FROM tpc_amqp.transactions
	WHERE state <> 'finished' AND state <> 'committed'"),
	0, 'all places are free');
works_on('max_transactions');
same_rows('max_transactions');

# At the coordinator: its messenger takes nothing.
my $messenger = $blog->sql('SELECT messenger_pid FROM tpc_amqp.node');
TpcTest->freeze($messenger);
my @runs = map {
	$blog->start(
		"SET tpc_amqp.prepare_timeout = '4s';\n" . big($next_id++, 6000 * $KB))
} 1 .. 4;
my @errors = map { ($_->finish)[1] } @runs;
ok((grep { /ERROR:  53200: out of shared memory for messages/ } @errors),
	'max_memory is exhausted at the coordinator')
  or diag @errors;
ok(!(grep { !/ERROR:  (?:53200|40000): / } @errors), '... nothing else fails')
  or diag @errors;
TpcTest->thaw($messenger);
TpcPair::connected(@nodes);
works_on('max_memory at the coordinator');
same_rows('max_memory at the coordinator');

# At the participant: its handlers do not come to an end.
$holder = TpcPair::hold_handlers($reviews);
my $big_held = big(0, 4000 * $KB) =~ s/'big'/'held'/r;
@runs = map {
	my $call_id = $next_id++;
	$blog->start("SET tpc_amqp.prepare_timeout = '6s';\n"
		  . $big_held =~ s/VALUES \(0\)/VALUES ($call_id)/r
		  =~ s/'id', 0/'id', $call_id/r)
} 1 .. 6;
$connects = $reviews->counter('connects');
$reviews->poll("SELECT branches_refused > 0 FROM tpc_amqp.stat");
$holder->quit;
@errors = map { ($_->finish)[1] } @runs;
ok((grep { /ERROR:  53200: / } @errors),
	'max_memory is exhausted at the participant')
  or diag @errors;
ok((grep { $_ eq '' } @errors), '... others commit');
is($reviews->counter('connects'), $connects, '... the connection stays');
works_on('max_memory at the participant');
ok(TpcPair::settled(20, $blog, $reviews), 'nothing stays prepared') or diag $@;
same_rows('max_memory at the participant');

is(join(' ', map {
		$_->sql('SELECT string_agg(i::text, chr(10))
			FROM tpc_amqp.incidents i') } @nodes),
	'  ', 'in the end: no incidents');

done_testing();

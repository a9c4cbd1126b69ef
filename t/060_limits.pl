# Many sessions, many branches, limits, and workers that do not get in each
# other's way.

use strict;
use warnings;

use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);
use TpcTest;
use TpcPair;

my $broker = TpcTest::Broker->of_this_file;
my ($blog, $reviews) = TpcPair::new_pair(
	conf => <<'EOC',
max_connections = 350
max_prepared_transactions = 2500
tpc_amqp.max_transactions = 3000
tpc_amqp.prepare_workers = 2
tpc_amqp.resolve_interval = '1s'
log_min_messages = warning
log_statement = none
EOC
	blog_setup => 'CREATE SEQUENCE public.ids START 1000000;');
TpcPair::connected($blog, $reviews);

my $script = $PostgreSQL::Test::Utils::tmp_check . '/load.sql';
append_to_file($script, <<'EOS');
SET tpc_amqp.prepare_timeout = '60s';
SET tpc_amqp.apply_timeout = '60s';
SELECT nextval('public.ids') AS id \gset
BEGIN;
INSERT INTO public.blogs VALUES (:id);
SELECT tpc_amqp.call('reviews', 'add_review', jsonb_build_object('id', :id));
COMMIT;
EOS

# load NAME, OPTIONS: pgbench; all transactions have to succeed.
sub load
{
	my ($name, @options) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my ($out, $err) = ('', '');
	my $start = time();

	IPC::Run::run(
		[
			$blog->cluster->installed_command('pgbench'),
			'-n', '-f', $script, @options, $blog->connstr
		],
		'<', '/dev/null', '>', \$out, '2>', \$err,
		IPC::Run::timeout(2 * $TpcTest::TIMEOUT));
	is($?, 0, $name) or diag($err);
	note(sprintf '%s: %.1f s', $name, time() - $start);
	return;
}

sub all_agree
{
	my ($name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $digest = "SELECT count(*), md5(string_agg(id::text, ' ' ORDER BY id))";

	ok(TpcPair::settled(30, $blog, $reviews), "$name: nothing is in doubt");
	is( $reviews->sql("$digest FROM public.reviews WHERE id >= 1000000"),
		$blog->sql("$digest FROM public.blogs WHERE id >= 1000000"),
		"$name: both nodes have the same rows");
	return;
}

# ---------------------------------------------------------------------------
# Connections

load('300 sessions', '-c', '300', '-j', '2', '-t', '2');
is(scalar($broker->connections),
	2, 'they share one connection per node');
all_agree('300 sessions');

# ---------------------------------------------------------------------------
# Size

my $big = "(SELECT to_jsonb(repeat('x', %d)))";
like(
	$blog->fails(
		"SELECT tpc_amqp.call('reviews', 'look', "
		  . sprintf($big, 1024 * 1024) . ')'),
	qr/54000: calls to node "reviews" are too large/,
	'a payload over max_payload');
like(
	$blog->fails(
		"SELECT tpc_amqp.call('reviews', 'look', "
		  . sprintf($big, 600_000)
		  . ') FROM generate_series(1, 2)'),
	qr/54000: calls to node "reviews" are too large/,
	'... counts all calls to one node');
is($blog->sql("SELECT tpc_amqp.call('reviews', 'look', "
		  . sprintf($big, 1_000_000) . ')'), '', 'one just below');

# ---------------------------------------------------------------------------
# Workers

sub slow
{
	my ($id, $seconds) = @_;
	return $blog->start(
		TpcPair::transaction(
			$id,
			handler => 'slow',
			arg => qq({"id": $id, "seconds": $seconds}),
			set => { prepare_timeout => '60s' }));
}

# The margin is for starting two clients on a busy machine.
my $start = time();
my @runs = map { slow($_, 3) } (1, 2);
my @results = map { [ $_->finish ] } @runs;
my $took = time() - $start;
is(join(' ', map { $_->[2] } @results), '0 0', 'two slow handlers');
cmp_ok($took, '<', 5.5, '... run at the same time');

@runs = (slow(3, 20));
TpcPair::branch_is($reviews, 'running');
$start = time();
$blog->sql(TpcPair::transaction(4));
cmp_ok(time() - $start, '<', 10, 'a slow handler does not delay another');
is($reviews->sql("SELECT count(*) FROM tpc_amqp.branches
	WHERE state = 'running'"), 1, '... and runs still');
my $pid = TpcPair::backend($blog, "query = 'COMMIT;'");
$blog->sql("SELECT pg_cancel_backend($pid)");
(undef, my $err) = $runs[0]->finish;
like($err, qr/57014/, '... until it is cancelled');
$reviews->poll('SELECT count(*) = 0 FROM tpc_amqp.branches');

# All prepare workers wait for a lock that a prepared branch has: its decision
# gets through.
sub take
{
	my ($id) = @_;
	return $blog->start(
		TpcPair::transaction(
			$id,
			handler => 'take',
			arg => '{"item": "apple", "amount": 1}',
			set => { prepare_timeout => '60s', apply_timeout => '60s' }));
}

my $resolver = $reviews->sql('SELECT resolve_pids[1] FROM tpc_amqp.node');
TpcTest->freeze($resolver);
@runs = (take(10));
TpcPair::waiting($blog, 'committed');
push @runs, take(11), take(12), take(13);
$reviews->poll("SELECT count(*) = 2 FROM tpc_amqp.branches
	WHERE state = 'running'");
TpcTest->thaw($resolver);
is(join(' ', map { ($_->finish)[2] } @runs),
	'0 0 0 0', 'handlers that wait for a lock of a prepared branch');
is($reviews->sql("SELECT amount FROM public.stock"), 96, '... all took part');

# ---------------------------------------------------------------------------
# Memory

sub memory
{
	my %rss;

	for my $node ($blog, $reviews)
	{
		for my $pid (
			split /\n/,
			$node->sql(
				'SELECT unnest(messenger_pid || prepare_pids || resolve_pids)
				FROM tpc_amqp.node'))
		{
			my $status = slurp_file("/proc/$pid/status");
			# What is not shared with others.
			my ($kb) = $status =~ /^RssAnon:\s+(\d+) kB/m;
			$rss{ $node->name . " $pid" } = $kb;
		}
	}
	return %rss;
}

load('4,000 transactions', '-c', '16', '-j', '2', '-t', '250');
my %before = memory();
load('16,000 transactions', '-c', '16', '-j', '2', '-t', '1000');
my %after = memory();
is(join(' ', sort keys %after), join(' ', sort keys %before),
	'no worker has ended');
for my $worker (sort keys %before)
{
	cmp_ok($after{$worker} - $before{$worker},
		'<', 3000, 'memory stays what it was');
	note("$worker: $before{$worker} kB, then $after{$worker} kB");
}
all_agree('20,000 transactions');

# ---------------------------------------------------------------------------
# 2,000 branches in doubt, of which half are decided, when a node comes up

# Numbers of transactions that were begun and rolled back.
my $n = 2000;
my @uuids = map { m{^blog/(\S+)$} } split /\n/,
  $blog->sql(
	q{BEGIN; SELECT tpc_amqp.call('reviews', 'look')
		\; SELECT tpc_amqp.gtid(); ROLLBACK;} x $n);
is(scalar(@uuids), $n, "$n transactions");

$reviews->detach;
$reviews->poll('SELECT count(*) = 0 FROM tpc_amqp.node');
my $prepare = '';
for my $i (0 .. $n - 1)
{
	my $uuid = $uuids[$i];
	my $gid = "tpc_amqp:blog/$uuid:reviews";
	$prepare .= "BEGIN; INSERT INTO public.reviews (id) VALUES (-1 - $i);
		INSERT INTO tpc_amqp.branch (coordinator, gtid, gid, sender,
			prepared_at) VALUES ('blog', '$uuid', '$gid', 'guest', now());
		PREPARE TRANSACTION '$gid';\n";
}
$reviews->sql($prepare);
is(scalar(TpcTest->prepared($reviews->cluster)), $n, "$n branches in doubt");
$blog->sql("INSERT INTO tpc_amqp.decision
		(gtid, participants, users, acked, decided_at)
	SELECT uuid, '{reviews}', '{guest}', '{}', now()
	FROM unnest('{" . join(',', @uuids[ map { 2 * $_ } (0 .. $n / 2 - 1) ])
	  . "}'::uuid[]) uuid");
$start = time();
$reviews->attach;
ok(TpcPair::settled(60, $reviews), '... are finished')
  or diag(scalar(TpcTest->prepared($reviews->cluster)));
note(sprintf 'that took %.1f s', time() - $start);
is( $reviews->sql("SELECT count(*), count(*) FILTER (WHERE id % 2 <> 0)
		FROM public.reviews WHERE id < 0"),
	$n / 2 . '|' . $n / 2,
	'... as their coordinator has decided');
TpcPair::connected($reviews);

# ---------------------------------------------------------------------------
# Places for transactions

$blog->cluster->append_conf('postgresql.conf',
	"tpc_amqp.max_transactions = 10\n");
$blog->cluster->restart;
TpcPair::connected($blog);
my @sessions;
for my $i (1 .. 10)
{
	my $session = $blog->session;
	$session->query_safe(
		q{BEGIN; SELECT tpc_amqp.call('reviews', 'look')});
	push @sessions, $session;
}
like($blog->fails(q{SELECT tpc_amqp.call('reviews', 'look')}),
	qr/53400: too many global transactions/, 'max_transactions');
$sessions[0]->query_safe('COMMIT');
TpcTest::poll_until(
	sub {
		my (undef, $e, $rc) =
		  $blog->try(q{SELECT tpc_amqp.call('reviews', 'look')});
		$TpcTest::last_seen = $e;
		return !$rc;
	},
	'a place');
pass('... until one has ended');
$_->quit for @sessions;

unlike(slurp_file($_->cluster->logfile), qr/PANIC|signal 11|TRAP|signal 6/,
	'no crash of ' . $_->name)
  for $blog, $reviews;

done_testing();

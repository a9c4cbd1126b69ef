# The broker goes, comes back, and loses what it knew.

use strict;
use warnings;

use PostgreSQL::Test::Utils;
use Test::More;
use TpcTest;
use TpcPair;

plan skip_all => 'this build has no failpoints'
  unless TpcTest::has_failpoints();

my $SECONDS = 40;

my $broker = TpcTest::Broker->new(own => 1);
my ($blog, $reviews) = TpcPair::new_pair(
	broker => $broker,
	conf => <<'EOC',
tpc_amqp.resolve_interval = '200ms'
tpc_amqp.prepare_workers = 4
EOC
	blog_setup => 'CREATE SEQUENCE public.ids START 100000;');
TpcPair::connected($blog, $reviews);

my $id = 0;

sub works
{
	my ($name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	TpcPair::connected($blog, $reviews);
	my (undef, $err, $rc) = $blog->try(TpcPair::transaction(++$id));
	is("$rc $err", '0 ', "$name: transactions commit again");
	return;
}

# all_agree NAME: every row is on both nodes or on neither, and there once.
sub all_agree
{
	my ($name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $digest = "SELECT count(*), md5(string_agg(id::text, ' ' ORDER BY id))";

	TpcPair::connected($blog, $reviews);
	ok(TpcPair::settled($SECONDS, $blog, $reviews),
		"$name: nothing is in doubt")
	  or diag($TpcTest::last_seen);
	is( $reviews->sql("$digest FROM public.reviews"),
		$blog->sql("$digest FROM public.blogs"),
		"$name: both nodes have the same rows");
	is($_->sql('SELECT string_agg(i::text, chr(10))
		FROM tpc_amqp.incidents i'), '', "$name: no incident on " . $_->name)
	  for $blog, $reviews;
	return;
}

# ---------------------------------------------------------------------------
# Under load

my $script = $PostgreSQL::Test::Utils::tmp_check . '/load.sql';
append_to_file($script, <<'EOS');
SET tpc_amqp.prepare_timeout = '2s';
SET tpc_amqp.apply_timeout = '1s';
SELECT nextval('public.ids') AS id \gset
BEGIN;
INSERT INTO public.blogs VALUES (:id);
SELECT tpc_amqp.call('reviews', 'add_review', jsonb_build_object('id', :id));
COMMIT;
EOS

# Each client ends with its first error, so they are started over and over
# (not as fast as can be while all is refused).
sub under_load
{
	my ($name, $code) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $stop = $PostgreSQL::Test::Utils::tmp_check . '/stop';
	my $pgbench = $blog->cluster->installed_command('pgbench');
	my $load = IPC::Run::start(
		[
			'sh', '-c',
			'while [ ! -e "$1" ]; do'
			  . ' "$2" -n -c 4 -j 1 -T 1 -f "$3" "$4" || sleep 0.2; done',
			'sh', $stop, $pgbench, $script, $blog->connstr
		],
		'<', '/dev/null', '>', '/dev/null', '2>', '/dev/null',
		IPC::Run::timeout(4 * $TpcTest::TIMEOUT));
	my $count = 'SELECT count(*) FROM public.reviews';
	my $before = $reviews->sql($count);

	$reviews->poll("SELECT ($count) > $before + 20");
	$code->();
	TpcPair::connected($blog, $reviews);
	$before = $reviews->sql($count);
	$reviews->poll("SELECT ($count) > $before + 20");
	append_to_file($stop, '');
	$load->finish;
	unlink $stop;
	pass("$name: went on");
	all_agree($name);
	return;
}

under_load('broker restarted', sub { $broker->restart });
under_load('broker killed', sub { $broker->kill9; $broker->start });
under_load('connections closed', sub { $broker->close_connections });

# ---------------------------------------------------------------------------
# It loses everything

sub hold
{
	my ($node, $step) = @_;

	$node->failpoint($step, 'wait');
	my $run = $blog->start(
		TpcPair::transaction(
			++$id,
			set => { prepare_timeout => '60s', apply_timeout => '20s' }));
	$node->failpoint_reached($step);
	return $run;
}

sub finished
{
	my ($name, $run, $row) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my (undef, $err, $rc) = $run->finish;

	is("$rc $err", '0 ', "$name: COMMIT succeeds");
	is(TpcPair::blog_has($blog, $row) . TpcPair::reviews_has($reviews, $row),
		'11', "$name: both nodes have it");
	return;
}

# One is decided and not applied, another is prepared and not decided.
my $decided = hold($reviews, 'P5.before');
my $prepared = hold($reviews, 'P4.before');
$broker->kill9;
$broker->wipe;
$broker->start;
$blog->poll("SELECT state = 'connected' FROM tpc_amqp.node");
$reviews->failpoint_clear($_) for 'P4.before', 'P5.before';
finished('wiped when it was decided', $decided, $id - 1);
finished('wiped while the branch was prepared', $prepared, $id);
works('after the broker was wiped');
all_agree('after the broker was wiped');

# ---------------------------------------------------------------------------
# Queues that go

for my $case ([ $reviews, 'prepare' ], [ $reviews, 'decision' ],
	[ $blog, 'vote' ])
{
	my ($node, $queue) = @$case;
	my $connects = $node->sql('SELECT connects FROM tpc_amqp.stat');

	$queue = 'tpc_amqp.' . $node->name . ".$queue";
	$broker->delete_queue($queue);
	$node->poll("SELECT connects > $connects FROM tpc_amqp.stat");
	pass("queue $queue deleted: its node connects anew");
}
TpcPair::connected($blog, $reviews);
my %queues = $broker->queues;
is( join(' ', map { $queues{$_}{consumers} } sort keys %queues),
	'1 1 1 1 1 1',
	'all queues are back');
works('after queues were deleted');

# Messages that go: a decision is sent again.
my $run = hold($blog, 'C5.before');
TpcTest->freeze($reviews->sql('SELECT messenger_pid FROM tpc_amqp.node'));
$blog->failpoint_clear('C5.before');
TpcPair::waiting($blog, 'committed');
$broker->purge_queue('tpc_amqp.reviews.decision');
$broker->close_connections;
TpcTest->thaw($reviews->sql('SELECT messenger_pid FROM tpc_amqp.node'));
finished('a decision is lost', $run, $id);

# ---------------------------------------------------------------------------
# One node name, two databases

my $other = TpcTest->new_cluster('other');
my $twin = TpcTest->new_node(
	$other, 'twin', 'reviews',
	broker => $broker,
	attach => 0);
my $err = $twin->fails("SELECT tpc_amqp.attach('rabbit', 'reviews')");
like($err, qr/ERROR:  (?:55006|55P03|08004|42501):/,
	'a node name that is taken: refused');
like($err, qr/exclusive/i, '... for the reason the broker gives')
  or diag($err);
is($twin->sql('SELECT count(*) FROM tpc_amqp.node'), 0,
	'... and nothing is left of it');
works('after somebody claimed the name');

# While the rightful one is away it can be had; then that one waits for it.
$reviews->cluster->stop;
$twin->attach;
$reviews->cluster->start;
TpcTest->wait_for_log($reviews->cluster, qr/could not connect to the broker/);
is($reviews->sql('SELECT state FROM tpc_amqp.node'), 'disconnected',
	'the name is taken meanwhile: the node does not connect');
$twin->detach;
works('the name is given back');

# ---------------------------------------------------------------------------

all_agree('in the end');
unlike(slurp_file($_->cluster->logfile), qr/PANIC|signal 11|TRAP|signal 6/,
	'no crash of ' . $_->name)
  for $blog, $reviews;

done_testing();

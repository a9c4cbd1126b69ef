# The broker's objects from SQL: refusals, a broker that does not answer, a
# session, a messenger or a node that goes meanwhile, and no place left.
# Whatever happens, the node's other work goes on, and no place stays taken.

use strict;
use warnings;

use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);
use TpcAmqp;
use TpcTest;

my $PLACES = 4;

my $broker = TpcTest::Broker->new(own => 1);
my $cluster = TpcTest->new_cluster('shop', <<"EOC");
autovacuum = off
log_min_messages = info
tpc_amqp.lock_timeout = 0
tpc_amqp.max_requests = $PLACES
EOC
my $shop = TpcTest->new_node($cluster, 'shop', 'shop', broker => $broker);
my $store = TpcTest->new_node(
	$cluster, 'store', 'store',
	broker => $broker,
	user => 'limited',
	setup => <<'EOS');
CREATE TABLE public.entry (id int);
CREATE FUNCTION public.held(arg jsonb) RETURNS void LANGUAGE sql AS
	$$SELECT pg_catalog.pg_advisory_xact_lock_shared(7);
	  INSERT INTO public.entry VALUES (arg::int)$$;
SELECT tpc_amqp.register_handler('held', 'public.held(jsonb)');
EOS
my @nodes = ($shop, $store);
my $amqp = TpcAmqp->new($broker);

sub connected
{
	$_->poll("SELECT state = 'connected' FROM tpc_amqp.node") for @nodes;
	return;
}

# Nothing is asked of the broker by a session of these nodes.
sub no_requests
{
	my ($name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return ok(
		eval {
			local $TpcTest::TIMEOUT = 10;
			$_->poll('SELECT count(*) = 0 FROM tpc_amqp.requests') for @nodes;
			1;
		},
		"$name: no place stays taken") || diag $@;
}

# Requests in a state, once there are so many.
sub requests_are
{
	my ($node, $count, $state) = @_;
	return $node->poll("SELECT count(*) = $count FROM tpc_amqp.requests
		WHERE state = '$state'");
}

sub fails_like
{
	my ($node, $sql, $pattern, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return like($node->fails($sql), $pattern, $name);
}

connected();

# ---------------------------------------------------------------------------
# Refusals, while a global transaction waits for its votes

my @connects = map { $_->counter('connects') } @nodes;
my $holder = $store->session;
$holder->query_safe('SELECT pg_advisory_lock(7)');
my $global = $shop->start("SET tpc_amqp.prepare_timeout = '60s';
	SELECT tpc_amqp.call('store', 'held', '1')");
$store->poll("SELECT count(*) = 1 FROM tpc_amqp.branches WHERE state = 'running'");

$broker->allow('limited', '^(tpc_amqp|mine)', '.*', '.*');
fails_like($store, "SELECT tpc_amqp.declare_queue('theirs')",
	qr/ERROR:  42501: ACCESS_REFUSED.*DETAIL:  The broker's reply code is 403/s,
	'a broker user without the permission');
is($store->sql("SELECT name FROM tpc_amqp.declare_queue('mine')"),
	'mine', '... which it has for other names');
$amqp->_call(50, 10,
	"\0\0" . TpcAmqp::_short('exclusive') . "\4" . TpcAmqp::_long(''), 11);
fails_like($shop, "SELECT tpc_amqp.$_",
	qr/ERROR:  55006: RESOURCE_LOCKED.*reply code is 405/s,
	"another connection's exclusive queue: $_")
  for "declare_queue('exclusive', passive => true)",
  "purge_queue('exclusive')", "delete_queue('exclusive')",
  "get('exclusive')";
$amqp->send('', 'mine', map { TpcAmqp->user($_) } 1 .. 3);
fails_like($shop, "SELECT tpc_amqp.delete_queue('mine', if_empty => true)",
	qr/ERROR:  55000: PRECONDITION_FAILED/, 'a queue with messages');
is($shop->sql("SELECT messages FROM tpc_amqp.declare_queue('mine')"),
	3, 'the number of messages');
is($shop->sql("SELECT tpc_amqp.purge_queue('mine')"), 3, '... purged');
$shop->sql("SELECT tpc_amqp.declare_exchange('e', 'topic'),
	tpc_amqp.bind_queue('mine', 'e', 'a.#')");
$amqp->send('e', $_, TpcAmqp->user($_)) for 'a.b', 'b.a';
$shop->sql("SELECT tpc_amqp.unbind_queue('mine', 'e', 'a.#')");
$amqp->send('e', 'a.c', TpcAmqp->user('a.c'));
is($shop->sql("SELECT tpc_amqp.delete_queue('mine')"),
	1, 'a binding takes what it is to, as long as it is there');
fails_like($shop, "SELECT tpc_amqp.get('nothing$_')", qr/ERROR:  42704:/,
	'a queue that is not there')
  for 1 .. 3 * $PLACES;
no_requests('refusals');

$holder->quit;
is(($global->finish)[1], '', 'a global transaction goes on meanwhile');
is($store->sql('SELECT id FROM public.entry'), 1, '... and commits');
is_deeply([ map { $_->counter('connects') } @nodes ],
	\@connects, '... over the same connections');

# What this kind of queue cannot do, the broker answers by closing the
# connection.  The node has another one at once.
$shop->sql(q{SELECT tpc_amqp.declare_queue('quorum',
	arguments => '{"x-queue-type": "quorum"}')});
fails_like($shop, "SELECT tpc_amqp.delete_queue('quorum', if_empty => true)",
	qr/ERROR:  0A000: node "shop" has lost its connection.*DETAIL:  .*NOT_IMPLEMENTED/s,
	'what the broker does not do for a quorum queue');
$shop->poll("SELECT state = 'connected' FROM tpc_amqp.node");
is($shop->sql("SELECT tpc_amqp.delete_queue('quorum')"),
	0, '... does not keep the node from going on');

# ---------------------------------------------------------------------------
# The broker does not answer

$broker->freeze;
TpcTest->within(
	2,
	sub {
		fails_like($shop,
			"SET tpc_amqp.broker_timeout = '300ms';
			SELECT tpc_amqp.declare_queue('late')",
			qr/ERROR:  08000: the broker has not answered within 300 ms.*not known whether/s,
			'broker frozen: a time-out');
	},
	'... in time');
fails_like($shop,
	"SET statement_timeout = '300ms';
	SELECT tpc_amqp.declare_queue('late')",
	qr/ERROR:  57014: /, '... or that of the statement');

sub waiting
{
	my ($node) = @_;
	my $run = $node->start(
		"SET tpc_amqp.broker_timeout = '60s';
		 SELECT name FROM tpc_amqp.declare_queue('late')");
	requests_are($node, 1, 'sent');
	return $run;
}

for my $how (qw(cancel terminate))
{
	my $run = waiting($shop);
	TpcTest->within(
		2,
		sub {
			$shop->sql("SELECT pg_${how}_backend(pid) FROM tpc_amqp.requests");
			like(
				($run->finish)[1],
				$how eq 'cancel' ? qr/57014/ : qr/57P01|terminating/,
				"$how: the session ends its wait");
		},
		'... at once');
}
no_requests('broker frozen');

# ---------------------------------------------------------------------------
# All places are taken

my $offset = TpcTest->log_size($cluster);
my @runs = map {
	$shop->start("SET tpc_amqp.broker_timeout = '60s';
		SELECT name FROM tpc_amqp.declare_queue('late')")
} 1 .. $PLACES;
requests_are($shop, $PLACES, 'sent');
TpcTest->within(
	0.9,
	sub {
		fails_like($shop,
			"SET tpc_amqp.slot_timeout = 0; SELECT tpc_amqp.purge_queue('late')",
			qr/ERROR:  53400: too many requests.*All $PLACES places.*HINT:  View/s,
			'all places are taken: nowait');
	},
	'... at once');
my $from = time();
fails_like($store,
	"SET tpc_amqp.slot_timeout = '500ms'; SELECT tpc_amqp.purge_queue('late')",
	qr/ERROR:  53400: .*within 500 ms/s, '... a time-out, of another node, too');
cmp_ok(time() - $from, '>', 0.5, '... after that time');
my @late = map {
	$shop->start("SET tpc_amqp.slot_timeout = '60s';
		SET tpc_amqp.broker_timeout = '60s';
		SELECT tpc_amqp.purge_queue('late')")
} 1 .. 2 * $PLACES;
$shop->poll("SELECT count(*) = 2 * $PLACES FROM pg_stat_activity
	WHERE query LIKE '%purge%' AND wait_event_type = 'Extension'
	AND pid <> pg_backend_pid()");
$broker->thaw;
is(join(' ', map { ($_->finish)[0] } @runs), join(' ', ('late') x $PLACES),
	'broker thawed: all have their answers');
is(join(' ', map { join '', ($_->finish)[ 0, 1 ] } @late),
	join(' ', (0) x (2 * $PLACES)), '... and who has waited for a place');
no_requests('places');
my @said = substr(slurp_file($cluster->logfile), $offset) =~
  /LOG:  all $PLACES places for requests to the broker are taken/g;
is(scalar @said, 1, 'the log says once that all places are taken');

# ---------------------------------------------------------------------------
# The messenger goes, the node, the broker

$broker->freeze;
my $run = waiting($shop);
$shop->sql('SELECT pg_terminate_backend(messenger_pid) FROM tpc_amqp.node');
like(($run->finish)[1],
	qr/ERROR:  08006: node "shop" has lost its connection to the broker.*not known whether/s,
	'messenger ended while the broker works on it');
no_requests('messenger ended');
$broker->thaw;
connected();

$broker->freeze;
$run = waiting($shop);
my $queued = $shop->start("SELECT tpc_amqp.declare_queue('late')");
$shop->detach;
like(($run->finish)[1], qr/ERROR:  (?:08006: node "shop" has lost|55000: this database has been detached)/,
	'detached while the broker works on it');
like(($queued->finish)[1], qr/ERROR:  (?:08006|55000): /, '... or might have');
fails_like($shop, "SELECT tpc_amqp.declare_queue('late')",
	qr/ERROR:  55000: database "shop" is not attached/, '... and not any more');
$broker->thaw;
$shop->poll('SELECT count(*) = 0 FROM tpc_amqp.node');
no_requests('detached');
$shop->attach;
connected();
is($shop->sql("SELECT name FROM tpc_amqp.declare_queue('late')"),
	'late', 'attached again: it works');

$broker->freeze;
$run = waiting($shop);
# (kill9 lets it go on first)
kill 'KILL', $broker->pid;
$broker->kill9;
like(($run->finish)[1],
	qr/ERROR:  08\w{3}: node "shop" has lost its connection.*not known whether/s,
	'broker killed while it works on it');
$shop->poll("SELECT state = 'disconnected' FROM tpc_amqp.node");
TpcTest->within(
	2,
	sub {
		fails_like($shop, "SELECT tpc_amqp.declare_queue('late')",
			qr/ERROR:  08\w{3}: node "shop" could not ask the broker.*DETAIL:  not connected/s,
			'no broker: an error');
	},
	'... at once');
no_requests('broker killed');
$broker->start;
connected();

# It is out of memory, and says so to who publishes.
$broker->block;
TpcTest::poll_until(
	sub {
		$shop->try("SET tpc_amqp.prepare_timeout = '200ms';
			SELECT tpc_amqp.call('store', 'held', '2')");
		return $shop->sql('SELECT blocked FROM tpc_amqp.node') eq 't';
	},
	'the broker to block');
fails_like($shop, "SELECT tpc_amqp.declare_queue('late')",
	qr/ERROR:  53000: .*low on memory/s, 'broker blocked: an error');
$broker->unblock;
$shop->poll('SELECT NOT blocked FROM tpc_amqp.node');
is($shop->sql("SELECT name FROM tpc_amqp.declare_queue('late')"),
	'late', '... until it is not');

# ---------------------------------------------------------------------------
# Many sessions

@runs = map {
	$shop->start(join '',
		"SET tpc_amqp.slot_timeout = '60s';\n",
		("SELECT FROM tpc_amqp.declare_queue('late', passive => true);\n") x 20)
} 1 .. 40;
is(join('', map { ($_->finish)[1] } @runs), '',
	"40 sessions share $PLACES places");
is(scalar(my @connections = $broker->connections),
	2, '... and there is one connection per node');
no_requests('in the end');
TpcTest->no_crash('no crash', $cluster);

done_testing();

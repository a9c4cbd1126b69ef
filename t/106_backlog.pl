# publish(): what the broker does not take for now, be it that a queue rejects or
# that it says nothing at all, costs nobody else anything: neither the node's
# transactions nor messages that go elsewhere.

use strict;
use warnings;

use Test::More;
use TpcAmqp;
use TpcPair;
use TpcTest;

my $broker = TpcTest::Broker->new(own => 1);
my ($blog, $reviews) = TpcPair::new_pair(
	broker => $broker,
	conf => <<'EOC');
tpc_amqp.confirm_timeout = '1s'
tpc_amqp.prepare_timeout = '5s'
EOC
TpcPair::connected($blog, $reviews);
my $amqp = TpcAmqp->new($broker);
$amqp->declare('q');
my $id = 0;

# publish QUEUE, COUNT: bodies 1 to COUNT.
sub publish
{
	my ($queue, $count) = @_;

	$blog->sql("SELECT tpc_amqp.publish('', '$queue', i::text)
		FROM generate_series(1, $count) i");
	return;
}

# others_go_on NAME, SECONDS: the tests of that.
sub others_go_on
{
	my ($name, $seconds) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	$id++;
	TpcTest->within(3, sub {
		$blog->sql(TpcPair::transaction($id));
	}, "$name: distributed transactions go on");
	TpcTest->within($seconds // 1, sub {
		$blog->sql("SELECT tpc_amqp.publish('', 'q', 'other $id')");
		# those before it may come again
		1 while $amqp->get('q')->{body} ne "other $id";
		pass('... messages to another queue arrive');
	}, '... soon');
	return;
}

# is_complete QUEUE, COUNT, COPIES: all have arrived, in order; as many may have
# come more than once.
sub is_complete
{
	my ($queue, $count, $copies, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my (@bodies, %seen, $more);

	$blog->poll(
		"SELECT count(*) = 0 FROM tpc_amqp.publications
		WHERE routing_key = '$queue'");
	while (my $message = $amqp->try_get($queue))
	{
		push @bodies, $message->{body} unless $seen{ $message->{body} }++;
	}
	ok(join(' ', @bodies) eq join(' ', 1 .. $count), $name)
	  or diag substr "@bodies", 0, 1000;
	$more = grep { $_ > 1 } values %seen;
	cmp_ok($more, '<=', $copies, "... $more more than once");
	$copies = (sort { $b <=> $a } values %seen)[0];
	cmp_ok($copies, '<=', 3, "... $copies times at most");
	return;
}

# ---------------------------------------------------------------------------
# A queue that says nothing

$amqp->declare('silent');
$broker->suspend_queues('silent');
my $offset = TpcTest->log_size($blog->cluster);
$blog->sql(q{SELECT tpc_amqp.publish('',
		CASE WHEN i % 10 = 0 THEN 'q' ELSE 'silent' END,
		CASE WHEN i % 10 = 0 THEN i / 10 ELSE i - i / 10 END::text)
	FROM generate_series(1, 3000) i});
$blog->sql(TpcPair::transaction(++$id));
pass('a queue that says nothing, and 2700 messages for it');
for my $i (1 .. 300)
{
	my $body = $amqp->get('q')->{body};

	# what was on its way in the first second is unknown
	redo if $i > 1 && $body < $i;
	is($body, $i, '... those to another queue, between them, arrive')
	  if $i == 300 || $body != $i;
}
others_go_on('... and later');
cmp_ok($blog->counter('overdue'), '>', 0, '... what was overdue is counted');
$blog->poll(q{SELECT count(*) = 1 FROM tpc_amqp.publications
	WHERE routing_key = 'silent' AND state = 'sent'});
pass('... one message tries');
TpcTest->wait_for_log($blog->cluster,
	qr/the broker does not confirm message \d+/, $offset);
others_go_on('... and while that takes long');
$broker->resume_queues('silent');
is_complete('silent', 2700, 200, '... it goes on: all arrive');

# One that has replicas, and those no majority.
$amqp->declare('quorum', 'x-queue-type' => 'quorum');
publish('quorum', 10);
is_complete('quorum', 10, 0, 'a quorum queue');
$broker->suspend_queues('quorum');
publish('quorum', 1000);
# all wait for confirm_timeout, once
others_go_on('... without its majority', 3);
others_go_on('... and later');
$broker->resume_queues('quorum');
is_complete('quorum', 1000, 200, '... it is back: all arrive');

# The same while much is on its way.
my $busy = $blog->start(join ";\n",
	map { "SELECT tpc_amqp.publish('', 'quorum', i::text)
		FROM generate_series(@{[ $_ * 500 - 499 ]}, @{[ $_ * 500 ]}) i" }
	  1 .. 40);
$blog->poll('SELECT confirmed > 10000 FROM tpc_amqp.stat');
$broker->suspend_queues('quorum');
others_go_on('... loses it again under load', 3);
others_go_on('... and later');
$busy->finish;
$broker->resume_queues('quorum');
is_complete('quorum', 20000, 200, '... it is back again: all arrive');

# More of them than can be tried at a time
my @many = map { "many$_" } 1 .. 70;
$amqp->declare($_) for @many;
$broker->suspend_queues(@many);
for my $i (1 .. 3)
{
	publish($_, 10) for @many;
}
others_go_on('70 queues that say nothing', 4);
$blog->poll(q{SELECT count(*) = 70 FROM (SELECT FROM tpc_amqp.publications
	WHERE routing_key ~ 'many' GROUP BY routing_key) s});
$broker->resume_queues(@many);
$blog->poll('SELECT count(*) = 0 FROM tpc_amqp.publications');
my $complete = 0;
for my $queue (@many)
{
	my %seen;

	while (my $message = $amqp->try_get($queue))
	{
		$seen{ $message->{body} }++;
	}
	$complete++ if join(' ', sort { $a <=> $b } keys %seen) eq join(' ', 1 .. 10);
}
is($complete, 70, '... all arrive at each');

# The broker does not read the connection any more, whyever.
my $connects = $blog->counter('connects');
$offset = TpcTest->log_size($blog->cluster);
$broker->ctl('eval', q([sys:suspend(P) || P <- rabbit_networking:connections(),
	[{client_properties, Properties}] <-
		[rabbit_networking:connection_info(P, [client_properties])],
	lists:keymember(<<"tpc_amqp blog publish">>, 3, Properties)].));
publish('q', 1);
$id++;
TpcTest->within(1, sub { $blog->sql(TpcPair::transaction($id)) },
	'the connection for publish() is not read: transactions go on');
is($amqp->get('q')->{body}, 1, '... it is given up, for another one');
TpcTest->wait_for_log($blog->cluster,
	qr/the broker does not read the connection any more/, $offset);
is($blog->counter('connects'), $connects, '... the node\'s connection stays');
others_go_on('... and then');

# Another relay does not begin anew with what is known.
$broker->suspend_queues('silent');
publish('silent', 200);
$blog->poll(q{SELECT count(*) = 1 FROM tpc_amqp.publications
	WHERE routing_key = 'silent' AND state = 'sent'});
my $overdue = $blog->counter('overdue');
my $relay = q{SELECT pid FROM pg_stat_activity
	WHERE backend_type = 'tpc_amqp relay'};
my $pid = $blog->sql($relay);
$blog->sql("SELECT pg_terminate_backend($pid)");
TpcTest::poll_until(sub { my $new = $blog->sql($relay);
	$new ne '' && $new ne $pid }, 'another relay');
others_go_on('another relay');
is($blog->counter('overdue'), $overdue, '... knows where not to send');
$broker->resume_queues('silent');
is_complete('silent', 200, 200, '... and goes on there');

# ---------------------------------------------------------------------------
# What looks at the table cost

# index_entries: of the table's index, read so far by looks.
sub index_entries
{
	my $sql = q{SELECT idx_tup_read FROM pg_stat_user_indexes
		WHERE indexrelname = 'publication_pkey'};
	my $before = $blog->sql($sql);

	# what is reported with this one includes all before it
	$blog->sql(q{SELECT tpc_amqp.publish('', 'q', 'counted')});
	$amqp->get('q');
	$blog->poll("SELECT ($sql) > $before");
	return $blog->sql($sql);
}

# cost: of messages to another queue, index entries for each.
sub cost
{
	my $before = index_entries();
	for my $i (1 .. 50)
	{
		$blog->sql("SELECT tpc_amqp.publish('', 'q', '$i')");
		$amqp->get('q');
	}
	return (index_entries() - $before) / 51;
}

$amqp->declare('full', 'x-max-length' => 1, 'x-overflow' => 'reject-publish');
publish('full', 20000);
$blog->poll('SELECT rejected > 0 FROM tpc_amqp.stat');
others_go_on('20000 messages wait for a queue that is full');
my $cost = cost();
cmp_ok($cost, '<', 20, "... each message to another one looks at few: $cost");
$amqp->purge('full');
TpcTest::poll_until(sub { $amqp->count('full') }, 'a message');
pass('... it gets one again, once it has room');
$amqp->delete_queue('full');
$blog->poll('SELECT count(*) = 0 FROM tpc_amqp.publications');

# As many routing keys as messages, all to one queue; that twice
$amqp->declare_exchange('keys', 'topic');
$amqp->declare('full', 'x-max-length' => 1, 'x-overflow' => 'reject-publish');
$amqp->bind('full', 'keys', '#');
my $rejected = $blog->counter('rejected');
$blog->sql("SELECT tpc_amqp.publish('keys', 'key.' || i, i::text)
	FROM generate_series(1, 20000) i");
$blog->poll("SELECT rejected > $rejected + 19990 FROM tpc_amqp.stat");
others_go_on('20000 routing keys to a queue that is full');
$cost = cost();
cmp_ok($cost, '<', 20, "... each message to another one looks at few: $cost");
$amqp->declare('free');
$amqp->bind('free', 'keys', '#');
$amqp->delete_queue('full');
# those are before the others
others_go_on('... it has room', 3);
$blog->poll('SELECT count(*) = 0 FROM tpc_amqp.publications');
cmp_ok($amqp->count('free'), '>=', 19999, '... and gets them all');

my $old = $blog->client;
$old->run(q{BEGIN; SELECT tpc_amqp.publish('', 'q', 'old')});
publish('q', 20000);
$blog->poll('SELECT count(*) = 0 FROM tpc_amqp.publications');
$amqp->purge('q');
others_go_on('a transaction that publishes and does not end');
$cost = cost();
cmp_ok($cost, '<', 20,
	"... what has been sent since is not looked at again: $cost");
$old->run('COMMIT');
is($amqp->get('q')->{body}, 'old', '... it is sent when it commits');
$old->close;

TpcPair::in_agreement($blog, $reviews);
TpcTest->no_crash('no crash in the log', $blog, $reviews);
done_testing();

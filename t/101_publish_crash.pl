# publish(): a process ends or crashes at each step, the broker restarts, is
# killed, or has no memory.
#
# Whatever happens: what was committed arrives, what was not does not, and what
# arrives twice has the same id.

use strict;
use warnings;

use Cwd;
use File::Basename;
use PostgreSQL::Test::Utils;
use Test::More;
use TpcAmqp;
use TpcPair;
use TpcTest;

my $source;
BEGIN { $source = Cwd::realpath(dirname(__FILE__)) . '/../src' }

plan skip_all => 'this build has no failpoints'
  unless TpcTest::has_failpoints();

# After the commit record nothing may raise.  The relay survives an error, the
# messenger does not.
my $any = [qw(error fatal kill)];
my $end = [qw(fatal kill)];
my @steps = (
	# the client's own process
	[ 'X1.before', ['error'] ],
	[ 'X1.after', ['kill'] ],
	[ 'X2.before', ['kill'] ],
	# the relay
	[ 'X3.before', $any ],
	# nothing comes after it that would help
	[ 'X3.given', $any, 'alone' ],
	[ 'X3.after', $any ],
	# the messenger
	[ 'X4.before', $end ],
	[ 'X4.after', $end ],
	[ 'X5.before', $end ],
	[ 'X5.after', $end ],
	# the relay
	[ 'X6.before', $any ],
	[ 'X6.after', $any ]);

my $broker = TpcTest::Broker->new(own => 1);
my $cluster = TpcTest->new_cluster('blog', "autovacuum = off\n");
my $blog = TpcTest->new_node($cluster, 'blog', 'blog', broker => $broker);
TpcPair::connected($blog);
$blog->sql('CREATE TABLE public.sent (id int)');
my $amqp = TpcAmqp->new($broker);
$amqp->declare('q');

my %in_source;
for my $file (glob "$source/*.c")
{
	$in_source{$_} = 1
	  for grep { /^X/ } slurp_file($file) =~ /TPC_FAILPOINT\("([^"]+)"\)/g;
}
is(join(' ', sort keys %in_source),
	join(' ', sort map { $_->[0] } @steps),
	'every failpoint has a case');

my $id = 0;
my %copies;

# publish COUNT: SQL that records what it publishes, and some that is in vain.
sub publish
{
	my ($count) = @_;
	my ($first, $last) = ($id + 1, $id += $count);

	return "BEGIN;
		INSERT INTO public.sent SELECT generate_series($first, $last);
		SELECT tpc_amqp.publish('', 'q', i::text,
			('{\"message_id\": \"m' || i || '\"}')::jsonb)
		FROM generate_series($first, $last) i;
		SELECT tpc_amqp.publish('', 'nowhere', '$first', mandatory => true);
		SAVEPOINT s;
		SELECT tpc_amqp.publish('', 'q', 'never');
		ROLLBACK TO s;
		COMMIT";
}

# Messages that came more than once, in the last round.
my $repeated;

# alone: the same with one message, and no other.
sub alone
{
	$id++;
	return "BEGIN;
		INSERT INTO public.sent VALUES ($id);
		SELECT tpc_amqp.publish('', 'q', '$id', '{\"message_id\": \"m$id\"}');
		COMMIT";
}

# arrived ANY_ORDER: until all that was to be sent is; what is wrong, or
# nothing.
sub arrived
{
	my ($any_order) = @_;
	my @wrong;
	my %seen;
	my $last = 0;

	eval {
		$blog->ask_for('SELECT count(*) = 0 FROM tpc_amqp.publications');
		1;
	} or push @wrong, $@;
	while (my $message = $amqp->try_get('q'))
	{
		my $body = $message->{body};

		$message->{header} =~ /m$body\b/
		  or push @wrong, "$body has another id";
		push @wrong, "$body comes after $last"
		  if $body < $last && !$seen{$body} && !$any_order;
		$last = $body unless $seen{$body};
		$seen{$body}++;
	}
	my $expected = $blog->ask("SELECT string_agg(id::text, ' ' ORDER BY id)
		FROM public.sent");
	my $got = join ' ', sort { $a <=> $b } keys %seen;
	push @wrong, "expected $expected, got $got" if $got ne $expected;
	my $returned = $blog->ask("SELECT string_agg(DISTINCT format('%s %s',
		kind, routing_key), ',') FROM tpc_amqp.returned_messages");
	push @wrong, "returned: $returned"
	  unless $returned eq 'returned nowhere'
	  || $returned eq '' && $expected !~ / /;
	$blog->ask('SELECT bool_and(tpc_amqp.discard(id))
		FROM tpc_amqp.returned_messages; TRUNCATE public.sent');
	$copies{all} += keys %seen;
	$repeated = grep { $_ > 1 } values %seen;
	$copies{more} += $repeated;
	return join "\n", @wrong;
}

for my $case (@steps)
{
	my ($step, $actions, $alone) = @$case;

	for my $action (@$actions)
	{
		my $offset = TpcTest->log_size($cluster);
		my $sign =
		  $action eq 'kill'
		  ? qr/was terminated by signal 9/
		  : qr/failpoint "\Q$step\E"/;
		my $observer = $blog->observer;

		$observer->run("SELECT public.tpc_test_failpoint('$step', '$action:once')");
		$blog->try($alone ? alone() : publish(5));
		TpcTest->wait_for_log($cluster, $sign, $offset);
		is(arrived(), '', "$action at $step");
		# No confirmation is lost if it is not the messenger that ends.
		is($repeated, 0, '... nothing is sent twice')
		  unless $action eq 'kill' || $step =~ /^X[45]/;
	}
}
diag("$copies{more} of $copies{all} came more than once");

# ---------------------------------------------------------------------------
# The server is gone while messages wait

$blog->failpoint('X4.before', 'wait');
$blog->sql(publish(10));
$blog->failpoint_reached('X4.before');
TpcTest->kill9_server($cluster);
$cluster->start;
is(arrived(), '', 'the server is killed while messages wait');

$blog->sql(q{BEGIN; SELECT tpc_amqp.publish('', 'q', '0',
	'{"message_id": "m0"}'); INSERT INTO public.sent VALUES (0);
	PREPARE TRANSACTION 'p'});
TpcTest->kill9_server($cluster);
$cluster->start;
TpcPair::connected($blog);
$blog->sql(q{COMMIT PREPARED 'p';
	SELECT tpc_amqp.publish('', 'nowhere', '0', mandatory => true)});
is(arrived(), '', '... while their transaction is prepared');

# ---------------------------------------------------------------------------
# The broker is away

$broker->stop;
$blog->poll("SELECT state <> 'connected' FROM tpc_amqp.node");
$blog->sql(publish(3));
$blog->sql(publish(1500));
is($blog->sql("SELECT count(*), string_agg(DISTINCT state, ' ')
	FROM tpc_amqp.publications"), '1505|waiting',
	'broker stopped: messages wait');
like($blog->fails('DROP EXTENSION tpc_amqp CASCADE'),
	qr/ERROR:  55006: cannot drop extension tpc_amqp: 1505 messages have not been/,
	'... and DROP EXTENSION does not drop them');
$broker->start;
$amqp = TpcAmqp->new($broker);
is(arrived(), '', '... until it is back');

my $run = $blog->start(join ";\n", map { publish(20) } 1 .. 100);
$blog->poll('SELECT count(*) > 100 FROM public.sent');
$broker->kill9;
$broker->start;
$run->finish;
$amqp = TpcAmqp->new($broker);
is(arrived(), '', 'broker killed while messages are on their way');

$run = $blog->start(join ";\n", map { publish(20) } 1 .. 100);
$blog->poll('SELECT count(*) > 100 FROM public.sent');
$broker->close_connections;
$amqp = TpcAmqp->new($broker);
$run->finish;
is(arrived(), '', 'connection closed while messages are on their way');

$broker->block;
$blog->sql(publish(1));
$blog->poll('SELECT blocked FROM tpc_amqp.node');
$blog->sql(publish(100));
is($blog->sql(q{SELECT count(*) FROM tpc_amqp.publications
	WHERE state = 'waiting'}), 101, 'broker out of memory: messages wait');
is($amqp->count('q'), 0, '... none is there');
$broker->unblock;
is(arrived(), '', '... until it has some again');

# What commits late has lower ids than what is on its way.
$amqp->declare('late');
my $late = $blog->client;
my $thirty = q{SELECT tpc_amqp.publish('', 'late', i::text)
	FROM generate_series(1, 30) i};
$late->run("BEGIN; $thirty");
$broker->freeze;
$blog->sql($thirty);
my $sent = q{SELECT count(*) FROM tpc_amqp.publications WHERE state = 'sent'};
$blog->poll("SELECT ($sent) = 30");
ok($late->run('COMMIT'), 'broker frozen: lower ids turn up');
$late->close;
# What is sent twice stands there twice.
$blog->poll("SELECT ($sent) >= 60");
$broker->thaw;
$blog->poll('SELECT count(*) = 0 FROM tpc_amqp.publications');
is($amqp->count('late'), 60, '... and the others are not sent again');

# The relay ends when a message that was to find out has been confirmed.
$amqp->declare('full', 'x-max-length' => 1, 'x-overflow' => 'reject-publish');
for my $action ('fatal', 'error')
{
	my $offset = TpcTest->log_size($cluster);

	$blog->sql(q{SELECT tpc_amqp.stat_reset();
		SELECT tpc_amqp.publish('', 'full', i::text)
		FROM generate_series(1, 5) i});
	# by then nothing but what finds out is on its way
	$blog->poll('SELECT rejected > 5 FROM tpc_amqp.stat');
	$blog->failpoint('X6.before', "$action:once");
	$amqp->purge('full');
	TpcTest->wait_for_log($cluster, qr/failpoint "X6\.before"/, $offset);
	TpcTest::poll_until(sub {
		$amqp->purge('full');
		return $blog->ask('SELECT count(*) FROM tpc_amqp.publications') eq '0';
	}, 'all of them');
	pass("$action at X6.before: what was held is sent");
}
$amqp->delete_queue('full');

# ---------------------------------------------------------------------------
# Many at a time

my @runs = map {
	$blog->start(join ";\n", map { publish(1) } 1 .. 50)
} 1 .. 20;
$_->finish for @runs;
is(arrived('any order'), '', '1000 transactions of 20 sessions');

# A message that the broker stumbles over: it closes the whole connection.
$broker->ctl('eval', q{
	Source = ["-module(tpc_stumble).",
		"-behaviour(rabbit_channel_interceptor).",
		"-export([description/0, init/1, intercept/3, applies_to/0]).",
		"description() -> [].",
		"init(_) -> undefined.",
		"applies_to() -> ['basic.publish'].",
		"intercept({'basic.publish', _, _, <<$s, $t, $o, $n, $e>>, _, _}, _, _) ->"
		" rabbit_misc:protocol_error(internal_error, [$o, $h], []);"
		"intercept(Method, Content, _) -> {Method, Content}."],
	Forms = [begin {ok, Tokens, _} = erl_scan:string(Line),
		{ok, Form} = erl_parse:parse_form(Tokens), Form end || Line <- Source],
	{ok, Name, Binary} = compile:forms(Forms),
	{module, Name} = code:load_binary(Name, "tpc_stumble", Binary),
	rabbit_registry:register(channel_interceptor, <<"tpc_stumble">>, Name).});
$broker->close_connections;
$amqp = TpcAmqp->new($broker);
TpcPair::connected($blog);
my $connects = $blog->counter('connects');
$blog->sql(q{BEGIN;
	INSERT INTO public.sent VALUES (-2), (-1);
	SELECT tpc_amqp.publish('', 'q', '-2', '{"message_id": "m-2"}');
	SELECT tpc_amqp.publish('', 'stone', '0');
	SELECT tpc_amqp.publish('', 'q', '-1', '{"message_id": "m-1"}');
	COMMIT});
$blog->poll('SELECT count(*) = 1 FROM tpc_amqp.returned_messages');
is($blog->sql('SELECT kind, code, reason, routing_key
	FROM tpc_amqp.returned_messages'), 'refused|541|INTERNAL_ERROR|stone',
	'a message that the broker closes the connection for is found');
is($blog->counter('connects'), $connects,
	'... the connection of the node\'s transactions stays');
$blog->sql(q{SELECT tpc_amqp.discard(id) FROM tpc_amqp.returned_messages;
	SELECT tpc_amqp.publish('', 'nowhere', '0', mandatory => true)});
is(arrived('any order'), '', '... and the others arrive');


TpcTest->no_crash('no crash in the log', $blog);
done_testing();

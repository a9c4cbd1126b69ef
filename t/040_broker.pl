# The broker is restarted, killed, wiped, frozen, stopped, out of memory, and
# loses its queues; messages come again, or are none of ours.  The outcome is
# always the one that the coordinator has on record, without help.

use strict;
use warnings;

use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);
use TpcAmqp;
use TpcPair;
use TpcTest;

# Bound on getting everything finished once the broker is back.
my $SECONDS = 20;
my $CLIENTS = 4;

my $broker = TpcTest::Broker->new(own => 1);
my ($blog, $reviews) = TpcPair::new_pair(
	broker => $broker,
	conf => <<'EOC');
log_statement = none
log_min_messages = info
tpc_amqp.resolve_interval = '1s'
tpc_amqp.lock_timeout = 0
EOC
my @nodes = ($blog, $reviews);
my $next_id = 1;

TpcPair::connected(@nodes);

sub held_count
{
	my ($count) = @_;
	return $reviews->poll("SELECT count(*) FROM tpc_amqp.branches
		WHERE state = 'running'", $count);
}

sub prepared_count
{
	my ($count) = @_;
	return $reviews->poll('SELECT count(*) FROM pg_prepared_xacts', $count);
}

sub outcome_is
{
	my ($id, $expected, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	return is(TpcPair::blog_has($blog, $id)
		  . TpcPair::reviews_has($reviews, $id), $expected, $name);
}

sub settled_ok
{
	my ($name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	return ok(TpcPair::settled($SECONDS, @nodes),
		"$name: nothing stays prepared")
	  || diag $@;
}

sub same_rows
{
	my ($name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my @rows = map {
		$_->[0]->sql("SELECT string_agg(id::text, ' ' ORDER BY id)
			FROM public.$_->[1]")
	} ([ $blog, 'blogs' ], [ $reviews, 'reviews' ]);

	return ok($rows[0] eq $rows[1], "$name: both nodes have the same rows")
	  || diag "blog: $rows[0]\nreviews: $rows[1]";
}

# Once the nodes are connected, the next transaction commits at the first try.
sub works_on
{
	my ($name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $id = $next_id++;

	TpcPair::connected(@nodes);
	my (undef, $err) = $blog->try(TpcPair::transaction($id));
	is($err, '', "$name: the next transaction commits");
	return outcome_is($id, '11', "$name: ... on both nodes");
}

# fails_within SECONDS, SQLSTATE, NAME, SQL
sub fails_within
{
	my ($seconds, $sqlstate, $name, $sql) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $from = time();
	my $err = $blog->fails($sql);
	my $took = time() - $from;

	like($err, qr/ERROR:  $sqlstate: /, $name);
	cmp_ok($took, '<', $seconds, "$name: in time");
	return $err;
}

sub counts_up
{
	my ($node, $name, $was, $what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	local $TpcTest::TIMEOUT = 10;

	return ok(
		eval { $node->poll("SELECT $name > $was FROM tpc_amqp.stat") },
		"$what: $name moves") || diag $@;
}

sub incidents
{
	return join "\n", map {
		$_->sql('SELECT i FROM tpc_amqp.incidents i')
	} @nodes;
}

# ---------------------------------------------------------------------------
# Under load.  (Clients of pgbench would end at their first error.)

my $load_file = 0;

sub start_load
{
	my @runs;

	for (1 .. $CLIENTS)
	{
		my $file = "$PostgreSQL::Test::Utils::tmp_check/load_" . $load_file++;

		append_to_file(
			$file,
			join "SELECT pg_sleep(0.01);\n",
			"SET tpc_amqp.prepare_timeout = '3s';\n",
			map {
				my $id = $next_id++;
				"WITH b AS (INSERT INTO public.blogs VALUES ($id) RETURNING id) "
				  . "SELECT tpc_amqp.call('reviews', 'add_review', "
				  . "jsonb_build_object('id', id)) FROM b;\n"
			} 1 .. 8000);
		# Into files: nobody reads a pipe while the broker is down.
		push @runs,
		  {
			errors => "$file.err",
			handle => IPC::Run::start(
				[
					$blog->cluster->installed_command('psql'),
					'-XAtq', '-v', 'VERBOSITY=verbose',
					'-d', $blog->connstr, '-f', $file
				],
				'<', '/dev/null', '>', '/dev/null', '2>', "$file.err")
		  };
	}
	return @runs;
}

sub stop_load
{
	my (@runs) = @_;

	for my $run (@runs)
	{
		$run->{handle}->signal('TERM');
		$run->{handle}->finish;
		my $err = slurp_file($run->{errors});
		my %count;
		$count{$_}++ for $err =~ /(?:ERROR|WARNING|FATAL): +(\w+):/g;
		diag 'what a client got: ', join ', ',
		  map { "$_: $count{$_}" } sort keys %count;
		unlike($err, qr/server closed|PANIC|FATAL/,
			'the client had a server all the time');
	}
	$blog->poll("SELECT count(*) = 0 FROM pg_stat_activity
		WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()");
	return;
}

sub more_commits
{
	my $commits = $blog->counter('commits');
	return $blog->poll("SELECT commits > $commits + 50 FROM tpc_amqp.stat");
}

for my $way ('restart', 'kill -9')
{
	my @runs = start_load();

	more_commits();
	if ($way eq 'restart')
	{
		$broker->restart;
	}
	else
	{
		$broker->kill9;
		$broker->start;
	}
	more_commits();
	stop_load(@runs);
	settled_ok("$way under load");
	same_rows("$way under load");
	works_on("$way under load");
}

# ---------------------------------------------------------------------------
# Votes and decisions are lost with all that the broker has

my $handlers = TpcPair::hold_handlers($reviews);
my $decisions = TpcPair::hold_decisions($blog);
my ($late, $short, $decided) = ($next_id++, $next_id++, $next_id++);
my $run_decided = $blog->start(
	TpcPair::transaction($decided, set => { commit_wait => 'decided' }));
TpcPair::backend($blog, "wait_event_type = 'Lock'");
my $run_late = $blog->start(
	TpcPair::transaction(
		$late,
		handler => 'held',
		set => { prepare_timeout => '60s' }));
my $run_short = $blog->start(
	TpcPair::transaction(
		$short,
		handler => 'held',
		set => { prepare_timeout => '4s' }));
held_count(2);

# From here on what is sent does not arrive.
$broker->freeze;
$decisions->quit;
$handlers->quit;
my (undef, $err, $rc) = $run_decided->finish;
is("$rc $err", '0 ', 'a transaction is decided');
prepared_count(3);
pass('three branches are prepared: decided, voted, voted');
(undef, $err, $rc) = $run_short->finish;
like($err, qr/ERROR:  40000: no vote from node "reviews" within 4000 ms/,
	'a vote that does not arrive is a time-out');

$broker->kill9;
$broker->wipe;
my @offsets = map { TpcTest->log_size($_->cluster) } @nodes;
my $down_since = time();

# ---------------------------------------------------------------------------
# There is no broker

my $id = $next_id++;
$blog->poll("SELECT state <> 'connected' FROM tpc_amqp.node");
fails_within(2, '08\w{3}', 'COMMIT without a broker',
	TpcPair::transaction($id));
outcome_is($id, '00', '... is rolled back');
$broker->start;
diag sprintf 'the broker was down for %.1f s', time() - $down_since;
for my $i (0, 1)
{
	my $node = $nodes[$i];
	my $log = substr slurp_file($node->cluster->logfile), $offsets[$i];
	my @about = grep { /LOG: .*the broker/ } split /\n/, $log;

	cmp_ok(scalar(@about), '<=', 3,
		'the log of ' . $node->name . ' is not flooded')
	  or diag join "\n", @about;
}

(undef, $err, $rc) = $run_late->finish;
# Who connects first asks into the void, and asks again later: the commit may
# come with a warning that it is not applied everywhere yet.
is($rc, 0, 'a vote that was lost is asked for')
  or diag $err;
settled_ok('broker wiped');
outcome_is($decided, '11', 'broker wiped: what was decided is applied');
outcome_is($late, '11', '... what had voted is committed');
outcome_is($short, '00', '... what had timed out is rolled back');
works_on('broker wiped');

# ---------------------------------------------------------------------------
# The broker stands still

$_->sql("ALTER SERVER rabbit OPTIONS (ADD heartbeat '1')") for @nodes;
# Options count from the next connection on.
my @connects = map { $_->counter('connects') } @nodes;
$broker->close_connections;
$nodes[$_]->poll("SELECT connects > $connects[$_] FROM tpc_amqp.stat")
  for 0, 1;
works_on('another heartbeat');

$handlers = TpcPair::hold_handlers($reviews);
$id = $next_id++;
my $from = time();
my $run = $blog->start(
	TpcPair::transaction(
		$id,
		handler => 'held',
		set => { prepare_timeout => '5s' }));
held_count(1);
$broker->freeze;
$handlers->quit;
(undef, $err, $rc) = $run->finish;
cmp_ok(time() - $from, '<', 6, 'broker frozen: COMMIT fails in time');
like($err, qr/ERROR:  40000: no vote from node "reviews"/,
	'... and says for what it waited');
$_->poll("SELECT state <> 'connected' FROM tpc_amqp.node") for @nodes;
pass('both nodes have noticed that the broker is silent');
cmp_ok(time() - $from, '<', 8, '... by its heartbeat');
fails_within(2, '(?:08|40)\w{3}', 'COMMIT while the broker is silent',
	TpcPair::transaction($next_id++, set => { prepare_timeout => '1s' }));
$broker->thaw;
settled_ok('broker frozen');
outcome_is($id, '00', 'broker frozen: rolled back on both nodes');
works_on('broker frozen');

# ---------------------------------------------------------------------------
# The broker is out of memory

$decisions = TpcPair::hold_decisions($blog);
$decided = $next_id++;
$run_decided = $blog->start(
	TpcPair::transaction(
		$decided,
		set => { commit_wait => 'decided', prepare_timeout => '60s' }));
TpcPair::backend($blog, "wait_event_type = 'Lock'");
$broker->block;
# It tells who publishes.
TpcTest::poll_until(
	sub {
		$blog->try(
			TpcPair::transaction(
				$next_id++, set => { prepare_timeout => '200ms' }));
		return $blog->sql('SELECT blocked FROM tpc_amqp.node') eq 't';
	},
	'the broker to block');
$err = fails_within(2, '53\w{3}', 'COMMIT while the broker has no memory',
	TpcPair::transaction($next_id++));
like($err, qr/DETAIL:  .*low on memory/, '... which says so');
$decisions->quit;
(undef, $err, $rc) = $run_decided->finish;
is("$rc $err", '0 ', 'a transaction is decided meanwhile');
isnt(TpcPair::unfinished($reviews), '', '... but not applied');
$broker->unblock;
settled_ok('broker unblocked');
outcome_is($decided, '11', 'broker unblocked: what was decided is applied');
works_on('broker unblocked');
same_rows('broker unblocked');

# ---------------------------------------------------------------------------
# Somebody deletes what the nodes declared

my $amqp = TpcAmqp->new($broker);
for my $case (
	[ $reviews, 'tpc_amqp.reviews.prepare' ],
	[ $reviews, 'tpc_amqp.reviews.decision' ],
	[ $blog, 'tpc_amqp.blog.vote' ])
{
	my ($node, $queue) = @$case;
	my $before = $node->counter('connects');

	$amqp->delete_queue($queue);
	$node->poll("SELECT connects > $before FROM tpc_amqp.stat");
	works_on("queue $queue deleted");
}
$amqp->delete_exchange;
{
	local $TpcTest::TIMEOUT = 15;
	my $ok = eval {
		TpcTest::poll_until(
			sub {
				(undef, $err, $rc) = $blog->try(
					TpcPair::transaction(
						$next_id++, set => { prepare_timeout => '1s' }));
				$TpcTest::last_seen = $err;
				return !$rc;
			},
			'a transaction to commit');
	};
	ok($ok, 'exchange deleted: transactions commit again') or diag $@;
	# The rest of the file needs one all the same.
	$broker->close_connections unless $ok;
}
$amqp->close;
settled_ok('exchange deleted');
works_on('exchange deleted');

# ---------------------------------------------------------------------------
# Messages come again

my %key = map { $_ => "tpc_amqp.$_" }
  qw(reviews.prepare reviews.decision blog.vote);
$amqp = TpcAmqp->new($broker);
$amqp->spy("spy.$_", $key{$_}) for keys %key;

$id = $next_id++;
$blog->sql(TpcPair::transaction($id, set => { prepare_timeout => '60s' }));
my %seen = (
	prepare => $amqp->get('spy.reviews.prepare'),
	vote => $amqp->get('spy.blog.vote'),
	commit => $amqp->get('spy.reviews.decision'),
	ack => $amqp->get('spy.blog.vote'));
like($seen{prepare}{body}, qr/add_review/, 'messages can be listened to');
like("$seen{vote}{body} $seen{ack}{body}", qr/"yes".*"committed"/,
	'... votes and acknowledgements, too');

for my $case (
	[ 'prepare', $reviews, 'reviews.prepare', 'duplicates' ],
	[ 'commit', $reviews, 'reviews.decision', 'duplicates' ],
	[ 'vote', $reviews, 'blog.vote', 'duplicates' ],
	[ 'ack', $blog, 'blog.vote', 'acks' ])
{
	my ($what, $node, $queue, $name) = @$case;
	my $was = $node->counter($name);

	$amqp->publish($key{$queue}, $seen{$what});
	counts_up($node, $name, $was, "the same $what again");
	works_on("the same $what again");
	outcome_is($id, '11', "the same $what again: it has no effect");
}
is($blog->sql('SELECT count(*) - count(DISTINCT gtid)
	FROM tpc_amqp.transactions'), 0, 'a transaction is listed once');

# A prepare again while its branch is prepared: it votes again, and that is
# all.
$decisions = TpcPair::hold_decisions($blog);
$id = $next_id++;
1 while $amqp->try_get('spy.reviews.prepare');
$run = $blog->start(
	TpcPair::transaction($id, set => { prepare_timeout => '60s' }));
prepared_count(1);
my $again = $amqp->get('spy.reviews.prepare');
my $was = $reviews->counter('duplicates');
$amqp->publish($key{'reviews.prepare'}, $again) for 1 .. 3;
$reviews->poll("SELECT duplicates >= $was + 3 FROM tpc_amqp.stat");
prepared_count(1);
$decisions->quit;
(undef, $err, $rc) = $run->finish;
is("$rc $err", '0 ', 'a prepare again, of a prepared branch: it commits');
outcome_is($id, '11', '... once');

# Messages of a transaction that the coordinator has forgotten.
$_->cluster->append_conf('postgresql.conf', "tpc_amqp.forget_after = 0\n"),
  $_->cluster->reload
  for @nodes;
$blog->poll('SELECT count(*) = 0 FROM tpc_amqp.decision');
$was = $reviews->counter('messages_received');
$amqp->publish($key{'blog.vote'}, $seen{vote});
counts_up($reviews, 'messages_received', $was,
	'a vote again, of a forgotten transaction');
works_on('a vote again, of a forgotten transaction');
is(incidents(), "\n",
	'a vote again, of a forgotten transaction: no incident');

# ... and of which the participant's row is gone.
my ($uuid) = $seen{prepare}{header} =~ m{blog/([0-9a-f-]{36})}
  or die 'no gtid';
TpcTest::poll_until(
	sub {
		$blog->sql(TpcPair::transaction($next_id++));
		return $reviews->sql("SELECT count(*) FROM tpc_amqp.branch
			WHERE gtid = '$uuid'") == 0;
	},
	'a row of branch to go');
$was = $reviews->counter('branches_refused');
$amqp->publish($key{'reviews.prepare'}, $seen{prepare});
counts_up($reviews, 'branches_refused', $was,
	'a prepare of a closed transaction');
$was = $blog->counter('acks');
$amqp->publish($key{'reviews.decision'}, $seen{commit});
counts_up($blog, 'acks', $was, 'a commit of a closed transaction');
works_on('messages of a closed transaction');
same_rows('messages of a closed transaction');

# ---------------------------------------------------------------------------
# Messages that are none

(my $foreign = $seen{prepare}{header}) =~ s/\x08tpc_amqp/\x08tpc_imap/
  or die 'no app_id';
(my $impostor = $seen{commit}{header}) =~ s/\bblog\//glob\//g
  or die 'no gtid';
for my $case (
	[ 'reviews.prepare', $reviews, TpcAmqp->plain('x'), 'no properties' ],
	[ 'reviews.prepare', $reviews, { header => $foreign, body => '{}' },
		'another application\'s' ],
	[ 'reviews.prepare', $reviews, $seen{vote}, 'a vote' ],
	[ 'reviews.decision', $reviews, TpcAmqp->plain(''), 'empty' ],
	[ 'reviews.decision', $reviews, $seen{prepare}, 'a prepare' ],
	[ 'reviews.decision', $reviews,
		{ header => $impostor, body => '{}' }, 'another coordinator\'s' ],
	[ 'blog.vote', $blog, TpcAmqp->plain("\0" x 100_000), 'zeros' ],
	[ 'blog.vote', $blog, $seen{commit}, 'a commit' ],
	[ 'blog.vote', $blog, { %{ $seen{vote} }, body => '{"vote": "yes"' },
		'cut off' ],
	[ 'blog.vote', $blog, { %{ $seen{ack} }, body => '[]' }, 'an array' ])
{
	my ($queue, $node, $message, $name) = @$case;
	my $before = $node->counter('bad_messages');
	my $connected = $node->counter('connects');

	$amqp->publish($key{$queue}, $message);
	counts_up($node, 'bad_messages', $before, "$name in $queue");
	is($node->counter('connects'), $connected, '... the connection stays');
	$blog->sql(TpcPair::transaction($id = $next_id++));
	outcome_is($id, '11', '... and the next transaction commits');
}

# A prepare that only its body makes malformed is refused.
$blog->sql("BEGIN; SELECT tpc_amqp.call('reviews', 'look'); COMMIT");
my $last;
TpcTest::poll_until(
	sub {
		while (my $message = $amqp->try_get('spy.reviews.prepare'))
		{
			$last = $message;
		}
		return $last && $last->{body} =~ /look/;
	},
	'the last prepare');
my @before = map { $reviews->counter($_) } qw(bad_messages branches_refused);
$amqp->publish($key{'reviews.prepare'}, { %$last, body => '{"calls": 1}' });
counts_up($reviews, 'bad_messages', $before[0], 'a malformed prepare');
counts_up($reviews, 'branches_refused', $before[1], 'a malformed prepare');
works_on('a malformed prepare');

settled_ok('in the end');
same_rows('in the end');

done_testing();

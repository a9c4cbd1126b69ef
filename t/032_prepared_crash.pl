# A process fails, ends or crashes at each step of a transaction that ends by
# PREPARE TRANSACTION and COMMIT PREPARED; a server, or the broker, goes
# between any two of its statements.
#
# "called": its participant runs a handler.  "joined": the application has a
# session at each node and prepares both.  Whatever happens: what the client
# was told is true, both nodes agree, a transaction that stays prepared at the
# coordinator can be finished by anybody, after that nothing stays prepared,
# and the next transaction commits.

use strict;
use warnings;

use Cwd;
use File::Basename;
use PostgreSQL::Test::Utils;
use Test::More;
use TpcTest;
use TpcPair;

my $source;
BEGIN { $source = Cwd::realpath(dirname(__FILE__)) . '/../src' }

plan skip_all => 'this build has no failpoints'
  unless TpcTest::has_failpoints();

# Bound on the recovery from one crash.
$TpcTest::TIMEOUT = 30;

my $any = [qw(error fatal kill)];
my $raise = [qw(error fatal)];
my $error = ['error'];
my $fatal = ['fatal'];
my $kill = ['kill'];

# What the application does, and where processes fail meanwhile: step, whose
# cluster, what may happen there.  After PREPARE or COMMIT PREPARED is durable
# nothing may raise, and nothing does.
my @matrix = (
	[
		'called, prepare_wait on',
		# the client's own process: PREPARE
		[ 'C1.before', 'blog', $error ],
		[ 'C1.after', 'blog', $any ],
		[ 'C2.before', 'blog', $error ],
		[ 'C2.after', 'blog', $any ],
		[ 'C3.before', 'blog', $error ],
		[ 'C3.after', 'blog', $any ],
		[ 'Q1.before', 'blog', $any ],
		[ 'Q1.after', 'blog', $kill ],
		# COMMIT PREPARED
		[ 'Q2.before', 'blog', $any ],
		[ 'Q2.after', 'blog', $any ],
		[ 'Q3.before', 'blog', $any ],
		[ 'Q4.before', 'blog', $kill ],
		[ 'Q4.after', 'blog', $kill ],
		[ 'C6.before', 'blog', $kill ],
		[ 'C6.after', 'blog', $kill ],
		# the coordinator's messenger
		[ 'C2.vote', 'blog', $error ],
		[ 'C5.send', 'blog', $any ],
		[ 'C6.ack', 'blog', $error ],
		# the participant
		[ 'P2.after', 'reviews', $error ],
		[ 'P3.after', 'reviews', $any ],
		[ 'P4.before', 'reviews', $error ],
		[ 'P4.after', 'reviews', $error ],
		[ 'P5.before', 'reviews', $error ],
		[ 'P6.before', 'reviews', $error ],
		[ 'P6.after', 'reviews', $any ],
		[ 'P7.before', 'reviews', $error ],
		[ 'P7.after', 'reviews', $error ],
	],
	[
		'called, prepare_wait off',
		[ 'C3.after', 'blog', $fatal ],
		[ 'Q1.before', 'blog', $raise ],
		[ 'Q1.after', 'blog', $kill ],
		[ 'Q2.before', 'blog', $any ],
		[ 'Q2.after', 'blog', $any ],
		[ 'Q3.before', 'blog', $raise ],
		[ 'Q4.before', 'blog', $kill ],
		[ 'Q4.after', 'blog', $kill ],
		[ 'C2.vote', 'blog', $kill ],
		[ 'P2.before', 'reviews', $any ],
		[ 'P3.before', 'reviews', $error ],
		[ 'P3.after', 'reviews', $any ],
		[ 'P4.before', 'reviews', $error ],
		[ 'P6.after', 'reviews', $error ],
	],
	[
		'called, rolled back',
		[ 'Q3.before', 'blog', $any ],
		[ 'Q4.before', 'blog', $kill ],
		[ 'Q4.after', 'blog', $kill ],
		[ 'P5.before', 'reviews', $error ],
		[ 'P6.before', 'reviews', $any ],
		[ 'P6.after', 'reviews', $error ],
	],
	[
		'joined, coordinator first',
		[ 'J1.before', 'reviews', $raise ],
		[ 'J1.after', 'reviews', $any ],
		[ 'J2.before', 'reviews', $kill ],
		[ 'J2.after', 'reviews', $kill ],
		[ 'C2.vote', 'blog', $kill ],
		[ 'C2.after', 'blog', $any ],
		[ 'C3.after', 'blog', $error ],
		[ 'Q1.before', 'blog', $raise ],
		[ 'Q1.after', 'blog', $kill ],
		[ 'Q2.after', 'blog', $fatal ],
		[ 'Q3.before', 'blog', $any ],
		[ 'Q4.before', 'blog', $kill ],
		[ 'Q4.after', 'blog', $kill ],
		[ 'C5.send', 'blog', $fatal ],
		[ 'C6.ack', 'blog', $kill ],
		[ 'P5.before', 'reviews', $kill ],
		[ 'P6.before', 'reviews', $error ],
		[ 'P6.after', 'reviews', $any ],
		[ 'P7.after', 'reviews', $kill ],
	],
	[
		'joined, participant first',
		[ 'Q1.before', 'blog', $any ],
		[ 'Q1.after', 'blog', $kill ],
		[ 'J2.after', 'reviews', $kill ],
		# COMMIT PREPARED at the participant, and who serves its request
		[ 'J3.before', 'reviews', $any ],
		[ 'J3.after', 'reviews', $any ],
		[ 'Q3.request', 'blog', $any ],
		[ 'P6.before', 'blog', $any ],
		[ 'P6.after', 'blog', $any ],
		[ 'C5.send', 'blog', $kill ],
		[ 'P5.before', 'reviews', $error ],
		[ 'P6.before', 'reviews', $kill ],
		[ 'P6.after', 'reviews', $any ],
		[ 'C6.ack', 'blog', $error ],
	],
	[
		'joined, rolled back, coordinator first',
		[ 'Q3.before', 'blog', $any ],
		[ 'Q4.before', 'blog', $kill ],
		[ 'P5.before', 'reviews', $kill ],
		[ 'P6.after', 'reviews', $any ],
	],
	[
		'joined, rolled back, participant first',
		[ 'J3.before', 'reviews', $raise ],
		[ 'J3.after', 'reviews', $any ],
		[ 'Q3.request', 'blog', $any ],
		[ 'P6.after', 'blog', $raise ],
		[ 'P6.after', 'reviews', $raise ],
	],
	[ 'nobody finishes it', [ 'Q6.before', 'blog', $any ] ],
	[ 'forced', [ 'H2.before', 'reviews', $any ] ],);

my $broker = TpcTest::Broker->new(own => 1);
my ($blog, $reviews) =
  TpcPair::new_pair(broker => $broker, conf => <<'EOC');
tpc_amqp.resolve_interval = '200ms'
tpc_amqp.prepare_timeout = '5s'
tpc_amqp.apply_timeout = '3s'
EOC
my %node = (blog => $blog, reviews => $reviews);
TpcPair::ready($blog, $reviews);

# Every failpoint of these paths has its case here.
my %in_source;
for my $file (glob "$source/*.c")
{
	$in_source{$_} = 1
	  for grep { /^[HJQ]/ }
	  slurp_file($file) =~ /TPC_FAILPOINT\("([^"]+)"\)/g;
}
my %has_case = map { $_->[0] => 1 }
  grep { ref && $_->[0] =~ /^[HJQ]/ } map { @$_ } @matrix;
is(join(' ', sort keys %has_case),
	join(' ', sort keys %in_source),
	'every failpoint has a case');

my $id = 0;

# ---------------------------------------------------------------------------
# An application

# statements PATH, ID: what it does: where, what, and what has then been
# promised ("commit", "rollback").  GTID stands for what enlist() returned.
sub statements
{
	my ($path, $row) = @_;
	my $end = $path =~ /rolled back/ ? 'ROLLBACK' : 'COMMIT';
	my @finish = (
		[ 'blog', "$end PREPARED 'g$row'", lc $end ],
		[ 'reviews', "$end PREPARED 'h$row'", lc $end ]);

	return (
		[
			'blog',
			"BEGIN; INSERT INTO public.blogs VALUES ($row);
			SELECT tpc_amqp.call('reviews', 'add_review', '{\"id\": $row}')"
		],
		[ 'blog', "PREPARE TRANSACTION 'g$row'" ],
		$path =~ /nobody|forced/ ? () : $finish[0])
	  unless $path =~ /joined/;
	return (
		[
			'blog',
			"BEGIN; INSERT INTO public.blogs VALUES ($row);
			SELECT tpc_amqp.enlist('reviews')"
		],
		[ 'reviews', "BEGIN; SELECT tpc_amqp.join('GTID')" ],
		[ 'reviews', "INSERT INTO public.reviews (id) VALUES ($row)" ],
		[ 'reviews', "PREPARE TRANSACTION 'h$row'" ],
		[ 'blog', "PREPARE TRANSACTION 'g$row'" ],
		$path =~ /participant first/ ? reverse @finish : @finish);
}

# begin PATH: one that has done nothing yet.
sub begin
{
	my ($path) = @_;
	my $row = ++$id;
	my @settings =
	  $path =~ /wait off/ ? ('tpc_amqp.prepare_wait = off') : ();
	my @where = $path =~ /joined/ ? ('blog', 'reviews') : ('blog');

	return {
		id => $row,
		path => $path,
		todo => [ statements($path, $row) ],
		wrong => [],
		clients => { map { $_ => $node{$_}->client(@settings) } @where },
		log => ''
	};
}

# advance APPLICATION, UNTIL: its next statements, until one fails or contains
# UNTIL.  What was promised is in {told}, what failed in {failed}.
sub advance
{
	my ($app, $until) = @_;

	while (my $statement = shift @{ $app->{todo} })
	{
		my ($where, $sql, $promise) = @$statement;
		my $client = $app->{clients}{$where};

		$sql =~ s/GTID/$app->{gtid}/;
		my $ok = $client->run($sql);
		$app->{log} .= "$where: $sql: " . ($ok ? "ok\n" : $client->err);
		$app->{done} = $sql;
		$app->{gtid} = $client->out if $sql =~ /enlist/;
		if (!$ok)
		{
			$app->{failed} = $sql;
			$app->{error} = $client->err;
			return 0;
		}
		$app->{told} = $promise if $promise;
		return 1 if defined $until && index($sql, $until) >= 0;
	}
	return 1;
}

sub leave
{
	my ($app) = @_;
	$_->close for values %{ $app->{clients} };
	return;
}

# finish ID, VERB: the coordinator's transaction, from another session, if it
# is still prepared.  Returns the expected rows, and what is wrong.
sub finish
{
	my ($row, $verb) = @_;
	my $any_rows = '^(?:00|11)$';
	my $gtid = $blog->ask("SELECT gtid FROM tpc_amqp.participants
		WHERE gid = 'g$row'");

	return $any_rows
	  if $blog->ask("SELECT count(*) FROM pg_catalog.pg_prepared_xacts
		WHERE gid = 'g$row'") == 0;
	my $branch = $reviews->ask("SELECT count(*) FROM tpc_amqp.branches
		WHERE gtid = '$gtid' AND state = 'prepared'");

	# A worker may be at it, or the crash reaches this session only now.
	my ($ok, $err);
	TpcTest::poll_until(
		sub {
			my $observer = $blog->observer;

			$ok = $observer->run("$verb PREPARED 'g$row'");
			$err = $observer->err;
			return $err !~
			  /is busy|Try again in a moment|because of crash of another/i;
		},
		"$verb PREPARED");
	return $verb eq 'COMMIT' ? '^11$' : '^00$' if $ok;
	return $any_rows if $err =~ /does not exist|has been (?:comm|rolled)/;
	return ($any_rows, "$verb PREPARED failed: $err")
	  if $branch || $verb ne 'COMMIT';

	# It cannot commit: a participant has no branch.
	return ('^00$') if $blog->observer->run("ROLLBACK PREPARED 'g$row'");
	return ('^00$',
		"$err, then ROLLBACK PREPARED failed: " . $blog->observer->err);
}

sub rows_of
{
	my ($row) = @_;

	return $blog->ask("SELECT count(*) FROM public.blogs WHERE id = $row")
	  . $reviews->ask("SELECT count(*) FROM public.reviews WHERE id = $row");
}

# conclude APPLICATION, VERB: what is prepared at the coordinator ends so.
# Returns what is wrong; {expected} says which rows there are now.
sub conclude
{
	my ($app, $verb) = @_;
	my @wrong;

	leave($app);
	eval { ($app->{expected}, @wrong) = finish($app->{id}, $verb); 1 }
	  or push @wrong, $@;
	return @wrong;
}

# judge APPLICATION: what is wrong about its rows, now that all is settled.
sub judge
{
	my ($app) = @_;
	my @wrong;
	my $has = eval { rows_of($app->{id}) } // "unknown: $@";
	my $expected = $app->{expected} // '^(?:00|11)$';
	my %promised = (commit => '11', rollback => '00');

	push @wrong, "rows at blog, at reviews: $has, not $expected"
	  unless $has =~ /$expected/;
	push @wrong, "told $app->{told}, rows: $has"
	  if $app->{told} && $has ne $promised{ $app->{told} };
	push @wrong, "PREPARE raised, rows: $has"
	  if $app->{failed}
	  && $app->{failed} =~ /^PREPARE .*'g/
	  && $app->{error} =~ /ERROR:/
	  && $app->{error} !~ /closed the connection/
	  && $has ne '00';
	return @wrong;
}

sub works_on
{
	my $observer = $blog->observer;

	return () if $observer->run(TpcPair::transaction(++$id));
	return 'next transaction: ' . $observer->err;
}

# ---------------------------------------------------------------------------
# One process

my $cells = 0;

sub set_prepared_timeout
{
	my ($value) = @_;
	$blog->cluster->append_conf('postgresql.conf',
		"tpc_amqp.prepared_timeout = '$value'\n");
	$blog->cluster->reload;
	return;
}

# force APPLICATION: have its branch committed before the decision, which then
# is the same.  Incidents are the point of it, so they are cleared.
sub force
{
	my ($app) = @_;
	my $gtid = $reviews->ask(
		"SELECT gtid FROM tpc_amqp.branches WHERE state = 'prepared'");

	# The server may go before it has said that it did.
	$reviews->observer->run("SELECT tpc_amqp.force('$gtid', 'commit')");
	$reviews->ask_for('SELECT count(*) = 0 FROM pg_prepared_xacts');
	TpcPair::ready($blog, $reviews);
	$blog->ask("COMMIT PREPARED 'g$app->{id}'");
	$_->ask_for("SELECT count(*) > 0 FROM tpc_amqp.incidents
		WHERE gtid = '$gtid'")
	  for $blog, $reviews;
	$_->ask_for("SELECT tpc_amqp.forget('$gtid')") for $blog, $reviews;
	$app->{told} = 'commit';
	return;
}

sub crash
{
	my ($path, $step, $where, $action) = @_;
	my $node = $node{$where};
	my $offset = TpcTest->log_size($node->cluster);
	my @wrong;
	my $app = begin($path);

	$node->ask("SELECT public.tpc_test_failpoint('$step', '$action:once')");
	advance($app);
	if ($path =~ /nobody/)
	{
		set_prepared_timeout('100ms');
		$app->{told} = 'rollback';
	}
	if ($path =~ /forced/)
	{
		eval { force($app); 1 } or push @wrong, $@;
	}

	# It was there?
	my $sign =
	  $action eq 'kill'
	  ? qr/was terminated by signal 9/
	  : qr/failpoint "\Q$step\E"/;
	eval { TpcTest->wait_for_log($node->cluster, $sign, $offset); 1 }
	  or push @wrong, "not reached: $@";
	eval { TpcPair::ready($blog, $reviews); 1 } or push @wrong, $@;

	if ($path =~ /nobody/)
	{
		push @wrong, TpcPair::in_doubt($blog, $reviews) || ();
		set_prepared_timeout('5min');
	}
	push @wrong, conclude($app, $cells % 2 ? 'ROLLBACK' : 'COMMIT');
	push @wrong, TpcPair::in_doubt($blog, $reviews) || ();
	push @wrong, judge($app);
	eval { push @wrong, works_on(); 1 } or push @wrong, $@;
	return @wrong ? (@wrong, $app->{log}) : ();
}

for my $row (@matrix)
{
	my ($path, @steps) = @$row;

	for my $case (@steps)
	{
		my ($step, $where, $actions) = @$case;

		for my $action (@$actions)
		{
			my @wrong = crash($path, $step, $where, $action);
			ok(!@wrong, "$path: $action at $step of $where")
			  or diag(join "\n", @wrong);
			$node{$where}->failpoint_clear($step) if @wrong;
			$cells++;
		}
	}
}

# ---------------------------------------------------------------------------
# A server, or the broker, between any two statements.  One application waits
# at each place, so that one outage is met by all.

# The statement after which the outage comes; the order of COMMIT PREPARED.
my @places = (
	[ 'enlist', 'joined, coordinator first' ],
	[ 'join', 'joined, coordinator first' ],
	[ 'INSERT INTO public.reviews', 'joined, coordinator first' ],
	[ "PREPARE TRANSACTION 'h", 'joined, coordinator first' ],
	[ "PREPARE TRANSACTION 'g", 'joined, coordinator first' ],
	[ "COMMIT PREPARED 'g", 'joined, coordinator first' ],
	[ "COMMIT PREPARED 'h", 'joined, coordinator first' ],
	[ "PREPARE TRANSACTION 'g", 'joined, participant first' ],
	[ "COMMIT PREPARED 'h", 'joined, participant first' ],
	[ "COMMIT PREPARED 'g", 'joined, participant first' ],
	[ 'tpc_amqp.call', 'called' ],
	[ "PREPARE TRANSACTION 'g", 'called' ],
	[ "COMMIT PREPARED 'g", 'called' ],);

# outage NAME, DOWN, UP, NODES…: those lose their sessions.
sub outage
{
	my ($name, $down, $up, @lost) = @_;
	my @apps;

	for my $place (@places)
	{
		my $app = begin($place->[1]);

		push @apps, $app;
		advance($app, $place->[0])
		  or fail("$name: before the outage: $app->{log}");
		$app->{place} = $app->{done};
	}
	$down->();
	$up->();
	TpcPair::ready($blog, $reviews);

	for my $app (@apps)
	{
		# Once both are prepared nothing can be in the way any more: who lost
		# his session opens another.  Else, who has lost one gives up.
		my $must =
		  !@lost || $app->{place} =~ /^(?:PREPARE TRANSACTION 'g|COMMIT)/;

		if ($must)
		{
			for my $where (@lost)
			{
				my $former = $app->{clients}{$where};

				$former->close if $former;
				$app->{clients}{$where} = $node{$where}->client;
			}
		}
		advance($app);
		push @{ $app->{wrong} }, "it failed: $app->{failed}"
		  if $must && $app->{failed};
		push @{ $app->{wrong} },
		  conclude($app, $cells++ % 2 ? 'ROLLBACK' : 'COMMIT');
	}
	is(TpcPair::in_doubt($blog, $reviews),
		'', "$name: nothing stays in doubt");
	for my $app (@apps)
	{
		my @wrong = (@{ $app->{wrong} }, judge($app));

		push @wrong, $app->{log} if @wrong;
		(my $short = "$app->{path}, after $app->{place}") =~ s/\s+/ /g;
		$short =~ s/ VALUES.*//;
		$short =~ s/(?<=')([gh])\d+|blog\/\S+(?=')/$1 || 'gtid'/e;
		ok(!@wrong, "$name: $short") or diag(join "\n", @wrong);
	}
	is(join(' ', works_on()), '', "$name: the next transaction commits");
	return;
}

outage(
	'coordinator killed',
	sub { TpcTest->kill9_server($blog->cluster) },
	sub { $blog->cluster->start }, 'blog');
outage(
	'participant stopped',
	sub { $reviews->cluster->stop('immediate') },
	sub { $reviews->cluster->start }, 'reviews');
outage(
	'both killed',
	sub { TpcTest->kill9_server($_->cluster) for $blog, $reviews },
	sub { $_->cluster->start for $reviews, $blog },
	'blog', 'reviews');
outage(
	'broker killed',
	sub { $broker->kill9 },
	sub { $broker->start });
outage(
	'broker wiped',
	sub { $broker->kill9; $broker->wipe },
	sub { $broker->start });
diag "$cells cells";

# ---------------------------------------------------------------------------
# The application ends it at both nodes at a time, in one way or in two.

for my $step ('Q2.before', 'Q3.before')
{
	for my $end ('COMMIT', 'ROLLBACK')
	{
		my $name = "$end PREPARED at the participant, COMMIT PREPARED at $step";
		my $app = begin('joined, participant first');
		my $row = $app->{id};

		advance($app, "PREPARE TRANSACTION 'g") or fail($app->{log});
		$blog->failpoint($step, 'wait');
		my $run = $blog->start("COMMIT PREPARED 'g$row'");
		$blog->failpoint_reached($step);
		ok($app->{clients}{reviews}->run("$end PREPARED 'h$row'"),
			"$name: the one that is decided first succeeds")
		  or diag($app->{clients}{reviews}->err);
		leave($app);
		$blog->failpoint_clear($step);
		my (undef, $err) =
		  TpcTest->within(4, sub { $run->finish }, '... so that the other ends');
		like(
			$err,
			$end eq 'COMMIT'
			? qr/NOTICE: .*has been committed already/
			: qr/ERROR:  40000: .*has been rolled back/,
			'... and says what has become of it');
		is(rows_of($row), $end eq 'COMMIT' ? '11' : '00',
			'... on both nodes');
	}
}

# ---------------------------------------------------------------------------
# In the end nobody owes anybody anything.

TpcTest->no_prepared($blog->cluster, $reviews->cluster);
$blog->cluster->append_conf('postgresql.conf',
	"tpc_amqp.forget_after = 0\n");
$blog->cluster->reload;
$blog->poll('SELECT count(*) = 0 FROM tpc_amqp.decision');
pass('all decisions are acknowledged and forgotten');
$blog->poll('SELECT count(*) = 0 FROM tpc_amqp.transactions');
pass('no transaction is left in memory');
TpcPair::in_agreement($blog, $reviews);
TpcTest->no_crash('no other crash', $blog, $reviews);

done_testing();

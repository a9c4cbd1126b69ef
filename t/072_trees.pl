# Handlers that call other nodes: all of the tree commits, or none of it.
#
# blog calls reviews, whose handler calls stock, whose handler calls audit.

use strict;
use warnings;

use JSON::PP;
use PostgreSQL::Test::Utils;
use Test::More;
use TpcTest;
use TpcPair;

plan skip_all => 'this build has no failpoints'
  unless TpcTest::has_failpoints();

# Bound on the recovery from one crash.
$TpcTest::TIMEOUT = 30;

# relay: write a row, then call others in turn; "undo" a call by rolling back
# to a savepoint; "fail" with an SQLSTATE; "join" another transaction.
my $SETUP = <<'EOS';
CREATE TABLE public.item (id int NOT NULL, note text);
CREATE FUNCTION public.relay(arg jsonb) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	callee jsonb;
BEGIN
	IF arg ? 'join' THEN
		PERFORM tpc_amqp.join(arg->>'join');
	END IF;
	IF arg ? 'reads' THEN
		PERFORM count(*) FROM public.item;
	ELSE
		INSERT INTO public.item VALUES ((arg->>'id')::int, arg->>'note');
	END IF;
	FOR callee IN SELECT jsonb_array_elements(arg->'calls') LOOP
		IF callee ? 'undo' THEN
			BEGIN
				PERFORM tpc_amqp.call(callee->>'node', 'relay', callee);
				RAISE 'undone';
			EXCEPTION WHEN raise_exception THEN
				NULL;
			END;
		ELSE
			PERFORM tpc_amqp.call(callee->>'node', 'relay', callee);
		END IF;
	END LOOP;
	IF arg ? 'fail' THEN
		RAISE EXCEPTION USING ERRCODE = arg->>'fail',
			MESSAGE = 'relay fails at ' || current_database(),
			DETAIL = 'This is its detail.';
	END IF;
END$$;
SELECT tpc_amqp.register_handler('relay', 'public.relay(jsonb)');
EOS

my %cluster = map {
	$_ => TpcTest->new_cluster("tree_$_", <<'EOC')
autovacuum = off
tpc_amqp.resolve_interval = '200ms'
tpc_amqp.prepare_timeout = '10s'
tpc_amqp.apply_timeout = '5s'
EOC
} qw(top middle leaf);
my %node = map {
	$_->[1] => TpcTest->new_node($cluster{ $_->[0] },
		$_->[1], $_->[1], setup => $SETUP)
  } ([ 'top', 'blog' ], [ 'middle', 'reviews' ],
	[ 'leaf', 'stock' ], [ 'leaf', 'audit' ]);
my @nodes = @node{qw(blog reviews stock audit)};
my ($blog, $reviews, $stock, $audit) = @nodes;
TpcPair::ready(@nodes);

my $id = 0;
my $timeout = '10s';
my $json = JSON::PP->new->canonical;

# callee NODE, CALLEES…: the call of one, with those it makes itself; a hash
# among them is more of its argument.
sub callee
{
	my ($name, @calls) = @_;
	my %more = map { %$_ } grep { ref eq 'HASH' && !$_->{node} } @calls;

	return {
		node => $name,
		id => $id,
		calls => [ grep { $_->{node} } @calls ],
		%more
	};
}

# The tree of most cases.
sub chain
{
	my ($name, @rest) = @_;
	return callee($name, @rest ? chain(@rest) : ());
}

# transaction CALLEES…: SQL, up to its end.
sub transaction
{
	my (@callees) = @_;

	return join "\n", 'BEGIN;', "INSERT INTO public.item VALUES ($id);",
	  map {
		"SELECT tpc_amqp.call('$_->{node}', 'relay', '"
		  . $json->encode($_) . "');"
	  } @callees;
}

# How often each node has it: blog, reviews, stock, audit.
sub rows_of
{
	my ($row) = @_;
	return join '', map {
		$_->ask("SELECT count(*) FROM public.item WHERE id = $row")
	} @nodes;
}

sub settled_ok
{
	my ($name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	return is(TpcPair::in_doubt(@nodes[ 0 .. 2 ]),
		'', "$name: nothing stays prepared");
}

# commits NAME, ROWS, CALLEES…: and each node has it at once.
sub commits
{
	my ($name, $rows, @callees) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my (undef, $err, $rc) = $blog->try(transaction(@callees) . "\nCOMMIT;");

	is("$rc $err", '0 ', "$name: it commits");
	return is(rows_of($id), $rows, "$name: who has it");
}

# fails NAME, REGEXP, CALLEES…: and no node has it.
sub fails
{
	my ($name, $regexp, @callees) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $err = $blog->fails("SET tpc_amqp.prepare_timeout = '$timeout';\n"
		  . transaction(@callees)
		  . "\nCOMMIT;");

	like($err, $regexp, "$name: the client hears why");
	settled_ok($name);
	is(rows_of($id), '0000', "$name: nobody has it");
	return $err;
}

sub counter
{
	my ($node, $name) = @_;
	return $node->ask("SELECT $name FROM tpc_amqp.stat");
}

# ---------------------------------------------------------------------------
# Shapes

$id++;
commits('two levels', '1110', chain('reviews', 'stock'));
$id++;
commits('three levels', '1111', chain('reviews', 'stock', 'audit'));
$id++;
commits('two leaves', '1111',
	callee('reviews', callee('stock'), callee('audit')));
$id++;
commits('a node called by two', '1120',
	chain('reviews', 'stock'), callee('stock'));
$id++;
commits('a node called in turn by whom it called',
	'2100', chain('reviews', 'blog'));
$id++;
my $was = counter($stock, 'branches_read_only');
commits('a leaf that only reads',
	'1100', callee('reviews', callee('stock', { reads => 1 })));
is(counter($stock, 'branches_read_only'), $was + 1, '... has one phase');
$id++;
commits('only a leaf writes',
	'1010', callee('reviews', { reads => 1 }, callee('stock')));
$id++;
commits('nobody writes but the coordinator', '1000',
	callee('reviews', { reads => 1 }, callee('stock', { reads => 1 })));
$id++;
commits('a call in a savepoint that rolls back',
	'1101', callee('reviews', callee('stock', { undo => 1 }),
		callee('audit')));
$id++;
commits('no call but in a savepoint that rolls back',
	'1100', callee('reviews', callee('stock', { undo => 1 })));

# ---------------------------------------------------------------------------
# Refusals

$id++;
my $err = fails(
	'a leaf refuses', qr/ERROR:  22012: /,
	callee('reviews', callee('stock', { fail => '22012' })));
like($err, qr/relay fails at stock/, '... in its own words');
$id++;
$err = fails(
	'the deepest leaf refuses', qr/ERROR:  22012: .*relay fails at audit/s,
	callee('reviews', callee('stock', callee('audit', { fail => '22012' }))));
$id++;
fails('the middle refuses', qr/ERROR:  22012: .*relay fails at reviews/s,
	callee('reviews', { fail => '22012' }, callee('stock')));
$id++;
fails(
	'one of two leaves refuses', qr/ERROR:  22012: /,
	callee('reviews', callee('stock'), callee('audit', { fail => '22012' })));
$id++;
fails(
	'another participant refuses', qr/ERROR:  22012: .*relay fails at audit/s,
	chain('reviews', 'stock'), callee('audit', { fail => '22012' }));
$id++;
fails('a leaf is not known', qr/ERROR:  42704: .*"nowhere" is not known/s,
	callee('reviews', callee('nowhere')));
$id++;
fails('a middle that calls itself', qr/ERROR:  \w{5}: /,
	chain('reviews', 'reviews', 'nowhere'));

# A branch has one coordinator.
my $other = $audit->sql("BEGIN; SELECT tpc_amqp.enlist('reviews'); ROLLBACK");
for my $more ({}, callee('stock'))
{
	$id++;
	fails('a handler that joins another transaction',
		qr/ERROR:  55000: .*a handler cannot join/s,
		callee('reviews', { join => $other }, $more));
}

# A leaf that is slow, or silent: each answers while who called it still
# listens.
$timeout = '3s';
$id++;
$stock->failpoint('P2.before', 'wait');
$err = fails(
	'a leaf is slow', qr/ERROR:  57014: .*deadline.*node "stock"/s,
	chain('reviews', 'stock'));
$stock->failpoint_clear('P2.before');
$id++;
my @pids = split /,/,
  $stock->sql("SELECT array_to_string(prepare_pids, ',') FROM tpc_amqp.node");
TpcTest->freeze(@pids);
$err = $blog->fails("SET tpc_amqp.prepare_timeout = '$timeout';\n"
	  . transaction(chain('reviews', 'stock'))
	  . "\nCOMMIT;");
like($err, qr/ERROR:  40000: .*no vote from node "stock"/s,
	'a leaf is silent: the middle says so');
TpcTest->thaw(@pids);
settled_ok('a leaf is silent');
is(rows_of($id), '0000', '... nobody has it');

$id++;
$blog->sql(transaction(chain('reviews', 'stock')) . "\nROLLBACK;");
is(rows_of($id), '0000', 'ROLLBACK: nobody has it');

# ---------------------------------------------------------------------------
# COMMIT returns when the leaf has applied it

for my $wait ('applied', 'decided')
{
	$id++;
	my $row = $id;
	my $resolved = counter($stock, 'branches_committed');

	$stock->failpoint('P6.before', 'wait');
	my $run = $blog->start("SET tpc_amqp.commit_wait = '$wait';\n"
		  . "SET tpc_amqp.apply_timeout = '60s';\n"
		  . transaction(chain('reviews', 'stock'))
		  . "\nCOMMIT;");
	$stock->failpoint_reached('P6.before');
	$reviews->poll("SELECT count(*) = 1 FROM public.item WHERE id = $row");
	if ($wait eq 'applied')
	{
		# Had the middle acknowledged it, that would have come before this.
		$id++;
		commits('beside it', '1100',
			callee('reviews', callee('stock', { reads => 1 })));
		is( $blog->sql("SELECT count(*) FROM pg_stat_activity
			WHERE query = 'COMMIT;' AND state = 'active'"),
			1, 'commit_wait = applied: COMMIT waits for the leaf');
		is( $blog->sql("SELECT missing FROM tpc_amqp.transactions
			WHERE state = 'committed' AND cardinality(missing) > 0
			AND started IS NOT NULL"),
			'{reviews}', '... of which the middle has not said that it is done');
	}
	else
	{
		my (undef, $said, $rc) = $run->finish;
		is("$rc $said", '0 ', 'commit_wait = decided: COMMIT does not wait');
	}
	is(counter($stock, 'branches_committed'),
		$resolved, '... the leaf has not applied it');
	$stock->failpoint_clear('P6.before');
	if ($wait eq 'applied')
	{
		my (undef, $said, $rc) = $run->finish;
		is("$rc $said", '0 ', 'commit_wait = applied: COMMIT returns');
		is(rows_of($row), '1110', '... when all have it');
	}
	settled_ok("commit_wait = $wait");
	is(rows_of($row), '1110', "commit_wait = $wait: all have it in the end");
}

# ---------------------------------------------------------------------------
# The top is prepared

for my $prepare_wait ('on', 'off')
{
	for my $end ('COMMIT', 'ROLLBACK')
	{
		$id++;
		my $name = "prepare_wait = $prepare_wait, $end PREPARED";

		$blog->sql("SET tpc_amqp.prepare_wait = $prepare_wait;\n"
			  . transaction(chain('reviews', 'stock', 'audit'))
			  . "\nPREPARE TRANSACTION 'g$id';");
		is(rows_of($id), '0000', "$name: nothing is decided");
		$blog->sql("$end PREPARED 'g$id'");
		settled_ok($name);
		is(rows_of($id), $end eq 'COMMIT' ? '1111' : '0000',
			"$name: as was decided");
	}
}
$id++;
$err = $blog->fails(
	transaction(
		callee('reviews', callee('stock', { fail => '22012' })))
	  . "\nPREPARE TRANSACTION 'g$id';");
like($err, qr/ERROR:  22012: /, 'a leaf refuses: PREPARE fails');
settled_ok('a leaf refuses PREPARE');
is(rows_of($id), '0000', '... nobody has it');

# Nobody but its coordinator finishes the middle.
$id++;
$blog->sql(transaction(chain('reviews', 'stock'))
	  . "\nPREPARE TRANSACTION 'g$id';");
for my $node ($reviews, $stock)
{
	my $gid = $node->sql('SELECT gid FROM tpc_amqp.branches');

	for my $end ('COMMIT', 'ROLLBACK')
	{
		like($node->fails("$end PREPARED '$gid'"),
			qr/ERROR:  55000: .*HINT: .*tpc_amqp\.force/s,
			$node->name . " refuses $end PREPARED of its branch");
	}
}
$blog->sql("COMMIT PREPARED 'g$id'");
is(rows_of($id), '1110', '... and it commits');

# Unless by force, and then the leaf ends as the middle does.
for my $forced ('commit', 'rollback')
{
	my $name = "the middle is forced to $forced";

	$id++;
	$blog->sql(transaction(chain('reviews', 'stock'))
		  . "\nPREPARE TRANSACTION 'g$id';");
	my $gtid = $reviews->sql('SELECT gtid FROM tpc_amqp.branches');
	$reviews->sql("SELECT tpc_amqp.force('$gtid', '$forced')");
	is(TpcPair::in_doubt($reviews, $stock), '', "$name: it ends");
	is( rows_of($id),
		$forced eq 'commit' ? '0110' : '0000',
		'... the leaf as well');
	$blog->sql("COMMIT PREPARED 'g$id'");
	is( rows_of($id),
		$forced eq 'commit' ? '1110' : '1000',
		'... and the top as it decides');
	my $kind = $forced eq 'commit' ? 'forced' : 'mismatch';
	$blog->poll("SELECT kind = '$kind' AND node = 'reviews'
		FROM tpc_amqp.incidents WHERE gtid = '$gtid'");
	pass("... which lists it as $kind");
	is($stock->sql('SELECT count(*) FROM tpc_amqp.incidents'),
		0, '... while the leaf knows of none');
	$_->sql("SELECT tpc_amqp.forget('$gtid')") for $blog, $reviews;
}

# ---------------------------------------------------------------------------
# A process of the middle fails, ends or crashes

my $cells = 0;

# check NAME, RUN…: after something went wrong, (messages, status) of psql.
sub check
{
	my ($name, $said, $rc) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my @wrong;

	push @wrong, TpcPair::in_doubt(@nodes[ 0 .. 2 ]) || ();
	TpcPair::ready(@nodes);
	my $rows = rows_of($id);
	push @wrong, "rows: $rows" unless $rows =~ /^(?:1110|0000)$/;
	push @wrong, "COMMIT succeeded, rows: $rows" if !$rc && $rows ne '1110';
	push @wrong, "COMMIT failed, rows: $rows"
	  if $said =~ /ERROR: / && $rows ne '0000';
	$id++;
	$blog->observer->run(
		transaction(chain('reviews', 'stock')) . "\nCOMMIT;")
	  or push @wrong, 'next transaction: ' . $blog->observer->err;
	$cells++;
	return ok(!@wrong, $name)
	  || diag join "\n", @wrong, "the client saw: $rc $said";
}

for my $case (
	[ 'P2.before', 'kill' ],
	[ 'P2.after', 'fatal', 'kill' ],
	[ 'C1.after', 'error', 'kill' ],
	[ 'C2.vote', 'error', 'kill' ],
	[ 'C2.after', 'error', 'kill' ],
	[ 'C3.after', 'error' ],
	[ 'P3.before', 'error' ],
	[ 'Q1.before', 'error', 'kill' ],
	[ 'Q1.after', 'kill' ],
	[ 'P3.after', 'error', 'fatal', 'kill' ],
	[ 'P4.before', 'error', 'kill' ],
	[ 'P4.after', 'error' ],
	[ 'P5.before', 'error', 'kill' ],
	[ 'P6.before', 'error', 'kill' ],
	[ 'P6.after', 'error', 'kill' ],
	[ 'P7.before', 'error', 'kill' ],
	[ 'P7.after', 'error', 'kill' ],
	[ 'C5.send', 'error', 'kill' ],
	[ 'C6.ack', 'error', 'kill' ])
{
	my ($step, @actions) = @$case;

	for my $action (@actions)
	{
		my $offset = TpcTest->log_size($reviews->cluster);
		my $sign =
		  $action eq 'kill'
		  ? qr/was terminated by signal 9/
		  : qr/failpoint "\Q$step\E"/;

		$id++;
		$reviews->ask(
			"SELECT public.tpc_test_failpoint('$step', '$action:once')");
		my (undef, $said, $rc) =
		  $blog->try(transaction(chain('reviews', 'stock')) . "\nCOMMIT;");
		TpcTest->wait_for_log($reviews->cluster, $sign, $offset);
		check("$action at $step of the middle", $said, $rc);
	}
}

# ---------------------------------------------------------------------------
# A whole server goes

# At this step of that node; these servers; what comes of it.
for my $case (
	# the handler of the middle runs: its prepare comes again, and makes new
	# branches of the leaf
	[ 'reviews', 'P2.after', [$reviews], '1110' ],
	[ 'reviews', 'C3.after', [$reviews], '1110' ],
	# its branch is prepared
	[ 'reviews', 'P4.before', [$reviews], '1110' ],
	[ 'reviews', 'P4.before', [$blog], '0000' ],
	# the top has decided
	[ 'blog', 'C5.before', [$reviews], '1110' ],
	[ 'reviews', 'P5.before', [$reviews], '1110' ],
	# the middle has committed, and not told the leaf
	[ 'reviews', 'P6.after', [ $reviews, $blog ], '1110' ],
	# the leaf has been told
	[ 'stock', 'P5.before', [$reviews], '1110' ])
{
	my ($where, $step, $servers, $expected) = @$case;
	my $name = join ', ', "$step of $where",
	  join(' and ', map { $_->name } @$servers) . ' killed';

	$id++;
	$node{$where}->failpoint($step, 'wait');
	my $run = $blog->start("SET tpc_amqp.prepare_timeout = '60s';\n"
		  . "SET tpc_amqp.apply_timeout = '60s';\n"
		  . transaction(chain('reviews', 'stock'))
		  . "\nCOMMIT;");
	$node{$where}->failpoint_reached($step);
	TpcTest->kill9_server($_->cluster) for @$servers;
	$_->cluster->start for @$servers;
	$node{$where}->failpoint_clear($step);
	my $row = $id;
	TpcPair::in_doubt(@nodes[ 0 .. 2 ]);
	my (undef, $said, $rc) = $run->finish;
	check($name, $said, $rc);
	is(rows_of($row), $expected, '... it ends as it has to');
}

# A middle that has committed, and fails before it has told anybody or heard
# that its leaf has, does not say that it is done before the leaf is.
for my $case (
	[ 'error at P6.after of the middle', 'P6.after', 'error' ],
	[ 'error at P7.before of the middle', 'P7.before', 'error' ],
	[ 'kill at P6.after of the middle', 'P6.after', 'kill' ],
	[ 'kill at P7.before of the middle', 'P7.before', 'kill' ],
	[ 'the middle is killed once the leaf is told' ])
{
	my ($name, $step, $action) = @$case;

	$id++;
	my $row = $id;
	my $seen = counter($reviews, 'duplicates');

	$stock->failpoint('P6.before', 'wait');
	$reviews->failpoint($step, "$action:once") if $step;
	my $offset = TpcTest->log_size($reviews->cluster);
	my $run = $blog->start("SET tpc_amqp.apply_timeout = '60s';\n"
		  . transaction(chain('reviews', 'stock'))
		  . "\nCOMMIT;");
	$stock->failpoint_reached('P6.before');
	if (!$step)
	{
		$reviews->poll("SELECT count(*) = 1 FROM public.item WHERE id = $row");
		TpcTest->kill9_server($reviews->cluster);
		$reviews->cluster->start;
	}
	elsif ($action eq 'kill')
	{
		TpcTest->wait_for_log($reviews->cluster, qr/terminated by signal 9/,
			$offset);
	}
	# A worker that failed looks again by itself; then the commit comes again.
	$seen = $step && $action eq 'error' ? $seen + 1 : 0;
	TpcPair::ready(@nodes);
	ok( eval {
			TpcTest::poll_until(
				sub { counter($reviews, 'duplicates') > $seen },
				'a repeated commit');
			1;
		},
		"$name: it is told again");

	# What it has said to that has come before this.
	$id++;
	commits("$name: beside it", '1100',
		callee('reviews', callee('stock', { reads => 1 })));
	is( $blog->sql("SELECT count(*) FROM pg_stat_activity
		WHERE query = 'COMMIT;' AND state = 'active'"),
		1, "$name: COMMIT waits for the leaf");
	$stock->failpoint_clear('P6.before');
	my (undef, $said, $rc) = $run->finish;
	is("$rc $said", '0 ', "$name: COMMIT returns");
	is(rows_of($row), '1110', '... when all have it');
	settled_ok($name);
}
diag "$cells cells";

# ---------------------------------------------------------------------------
# Nobody owes anybody anything

for my $name (qw(top middle leaf))
{
	$cluster{$name}->append_conf('postgresql.conf',
		"tpc_amqp.forget_after = 0\n");
	$cluster{$name}->reload;
}
TpcTest->no_prepared(values %cluster);
for my $node (@nodes)
{
	$node->poll('SELECT count(*) = 0 FROM tpc_amqp.decision');
	$node->poll('SELECT count(*) = 0 FROM tpc_amqp.transactions');
	pass($node->name . ' is owed nothing');
	is($node->sql('SELECT i FROM tpc_amqp.incidents i'),
		'', 'no incident on ' . $node->name);
}
TpcTest->no_crash('no other crash', values %cluster);

done_testing();

# Branches in doubt whose coordinator is away: force() finishes them, and is
# reported when the coordinator is back; nobody else gets to finish them
# against the decision.

use strict;
use warnings;

use PostgreSQL::Test::Utils;
use Test::More;
use TpcTest;
use TpcPair;

plan skip_all => 'this build has no failpoints'
  unless TpcTest::has_failpoints();

my ($blog, $reviews) = TpcPair::new_pair(
	conf => <<'EOC', reviews_setup => 'CREATE ROLE visitor LOGIN;');
tpc_amqp.resolve_interval = '300ms'
tpc_amqp.forget_after = 0
EOC
my @nodes = ($blog, $reviews);
my @settings = (
	"tpc_amqp.prepare_timeout = '5s'",
	"tpc_amqp.apply_timeout = '5s'");
TpcPair::connected(@nodes);

my $id = 0;
my %rows = (commit => '1', rollback => '0');

sub rows_of
{
	my ($row) = @_;
	return $blog->ask("SELECT count(*) FROM public.blogs WHERE id = $row")
	  . $reviews->ask("SELECT count(*) FROM public.reviews WHERE id = $row");
}

# incidents NODE, GTID: their kinds.
sub incidents
{
	my ($node, $gtid) = @_;
	return $node->ask("SELECT string_agg(kind || ' at ' || node, ', '
		ORDER BY kind) FROM tpc_amqp.incidents WHERE gtid = '$gtid'");
}

sub incidents_become
{
	my ($node, $gtid, $expected, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	eval {
		TpcTest::poll_until(sub { incidents($node, $gtid) eq $expected },
			'incidents');
	};
	return is(incidents($node, $gtid), $expected, $name);
}

sub settled_ok
{
	my ($name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	return is(TpcPair::in_doubt(@nodes),
		'', "$name: nothing stays prepared");
}

sub works_on
{
	my ($name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	TpcPair::ready(@nodes);
	my (undef, $err) = $blog->try(TpcPair::transaction(++$id));
	return is($err . rows_of($id), '11', "$name: the next transaction commits");
}

# turn NODE: the lead has been round since, with all it does in a turn.
sub turn
{
	my ($node) = @_;
	my $was = $node->sql('SELECT inquiries_sent FROM tpc_amqp.stat');

	$node->sql('SELECT tpc_amqp.resolve()');
	return $node->poll("SELECT inquiries_sent > $was FROM tpc_amqp.stat");
}

# called_in_doubt STEP: a transaction whose coordinator has gone at that step
# of its COMMIT, and whose branch is prepared; its gtid.
sub called_in_doubt
{
	my ($step) = @_;

	$blog->failpoint($step, 'wait');
	my $run = $blog->start(TpcPair::transaction(++$id));
	$blog->failpoint_reached($step);
	my $gtid = TpcPair::branch_is($reviews, 'prepared');
	$blog->cluster->stop('immediate');
	$run->finish;
	return $gtid;
}

# join_prepared: a transaction in a session at each node, the branch prepared;
# its gtid and the coordinator's session.
sub join_prepared
{
	my $row = ++$id;
	my ($a, $b) = map { $_->client(@settings) } @nodes;

	$a->run("BEGIN; INSERT INTO public.blogs VALUES ($row);
		SELECT tpc_amqp.enlist('reviews')") or die $a->err;
	my $gtid = $a->out;
	for my $sql (
		'BEGIN',
		"SELECT tpc_amqp.join('$gtid')",
		"INSERT INTO public.reviews (id) VALUES ($row)",
		"PREPARE TRANSACTION 'h$row'")
	{
		$b->run($sql) or die $b->err;
	}
	$b->close;
	return ($gtid, $a);
}

# The same, with the coordinator's transaction prepared, too.
sub both_prepared
{
	my ($gtid, $a) = join_prepared();

	$a->run("PREPARE TRANSACTION 'g$id'") or die $a->err;
	$a->close;
	return $gtid;
}

# ---------------------------------------------------------------------------
# All that can have been decided, and all that can be forced

# How its coordinator goes (and what it does when it is back), what that
# means.
my @cases = (
	[ 'called', 'commit', sub { called_in_doubt('C5.before') } ],
	[ 'called', 'rollback', sub { called_in_doubt('C4.before') } ],
	[
		'joined, coordinator prepared',
		'commit',
		sub {
			my $gtid = both_prepared();
			$blog->cluster->stop('immediate');
			return $gtid;
		},
		sub { $blog->sql("COMMIT PREPARED 'g$id'") }
	],
	[
		'joined, coordinator prepared',
		'rollback',
		sub {
			my $gtid = both_prepared();
			$blog->cluster->stop('immediate');
			return $gtid;
		},
		sub { $blog->sql("ROLLBACK PREPARED 'g$id'") }
	],
	[
		'joined', 'rollback',
		sub {
			my ($gtid, $a) = join_prepared();
			$blog->cluster->stop('immediate');
			$a->close;
			return $gtid;
		}
	],);

for my $case (@cases)
{
	my ($kind, $decision, $go, $decide) = @$case;

	for my $forced ('commit', 'rollback')
	{
		my $name = "$kind, decided: $decision, forced: $forced";
		my $gtid = $go->();
		my $row = $id;
		my @offsets = map { TpcTest->log_size($_->cluster) } @nodes;

		$reviews->sql("SELECT tpc_amqp.force('$gtid', '$forced')");
		ok(TpcPair::settled(10, $reviews), "$name: the branch ends");
		is(TpcPair::reviews_has($reviews, $row),
			$rows{$forced}, '... as it was forced to');
		is(incidents($reviews, $gtid), 'forced at reviews', '... is listed');
		like(
			substr(slurp_file($reviews->cluster->logfile), $offsets[1]),
			qr/WARNING: .*branch of transaction \Q$gtid\E was .* by force/,
			'... and logged');

		$blog->cluster->start;
		TpcPair::ready(@nodes);
		$decide->() if $decide;
		settled_ok($name);
		is(rows_of($row), $rows{$decision} . $rows{$forced},
			"$name: each node has what was decided there");
		if ($decision ne $forced)
		{
			incidents_become($blog, $gtid, 'mismatch at reviews',
				"$name: the coordinator lists a mismatch");
			incidents_become(
				$reviews, $gtid,
				'forced at reviews, mismatch at reviews',
				'... the participant, too');
			for my $i (0, 1)
			{
				like(
					substr(
						slurp_file($nodes[$i]->cluster->logfile),
						$offsets[$i]),
					qr/WARNING: .*\Q$gtid\E/,
					'... ' . $nodes[$i]->name . ' logs it');
			}
		}
		elsif ($decision eq 'commit')
		{
			incidents_become($blog, $gtid, 'forced at reviews',
				"$name: the coordinator is told");
		}
		works_on($name);
		if ($decision eq $forced)
		{
			is(incidents($reviews, $gtid),
				'forced at reviews', "$name: no mismatch is listed");
			is( incidents($blog, $gtid),
				$decision eq 'commit' ? 'forced at reviews' : '',
				'... nor at the coordinator');
		}
		$_->sql("SELECT tpc_amqp.forget('$gtid')") for @nodes;
	}
}
TpcTest->no_incidents('forget() takes the incidents off', @nodes);

# ---------------------------------------------------------------------------
# What force() asks for

my $gtid = called_in_doubt('C5.before');
my $gid = $reviews->sql('SELECT gid FROM tpc_amqp.branches');

$reviews->sql("BEGIN; SELECT tpc_amqp.force('$gtid', 'rollback'); ROLLBACK");
turn($reviews) for 1 .. 2;
is(TpcPair::unfinished($reviews), $gid,
	'force() in a transaction that rolls back: the branch stays');
is(incidents($reviews, $gtid), '', '... and nothing is listed');
$reviews->sql("BEGIN; SAVEPOINT s; SELECT tpc_amqp.force('$gtid', 'rollback');
	ROLLBACK TO s; COMMIT");
turn($reviews) for 1 .. 2;
is(TpcPair::unfinished($reviews),
	$gid, 'force() in a savepoint that rolls back: the branch stays');

my ($uuid) = $gtid =~ m{/(.*)};
my $nobody = '0' x 8 . '-0000-8000-8000-000000000001';
for my $case (
	[ "'$gtid', 'maybe'", '22023', qr/HINT:  Use "commit" or "rollback"/,
		'an outcome that is none' ],
	[ "'blog', 'commit'", '22P02', qr/DETAIL:  It has the form/,
		'a gtid that is none' ],
	[ "'blogger/$uuid', 'commit'", '42704', qr/HINT:  View tpc_amqp.branches/,
		'a gtid that nobody knows' ],
	[ "'reviews/$uuid', 'commit'", '22023', qr/coordinated by this node/,
		'a transaction of its own' ])
{
	my ($arguments, $sqlstate, $text, $name) = @$case;
	my $err = $reviews->fails("SELECT tpc_amqp.force($arguments)");

	like($err, qr/ERROR:  $sqlstate: /, "force() of $name is refused");
	like($err, $text, '... which says why');
}
$reviews->sql('GRANT USAGE ON SCHEMA tpc_amqp TO visitor');
like(
	$reviews->fails(
		"SET ROLE visitor; SELECT tpc_amqp.force('$gtid', 'rollback')"),
	qr/ERROR:  42501: permission denied for function force/,
	'force() is not for everybody');
like(
	$reviews->fails("SET default_transaction_read_only = on;
		SELECT tpc_amqp.force('$gtid', 'rollback')"),
	qr/ERROR:  25006: /,
	'force() is refused in a read-only transaction');

for my $end ('COMMIT', 'ROLLBACK')
{
	my $err = $reviews->fails("$end PREPARED '$gid'");

	like($err, qr/ERROR:  55000: prepared transaction .* branch in doubt/,
		"$end PREPARED of a branch that runs handlers is refused");
	like(
		$err,
		qr/HINT: .*tpc_amqp\.force\('\Q$gtid\E', '\L$end\E'\)/,
		'... with a hint at force()');
}
like(
	$reviews->fails('DROP EXTENSION tpc_amqp CASCADE'),
	qr/ERROR:  55006: .*1 branch is in doubt/,
	'DROP EXTENSION is refused while a branch is in doubt');
$blog->cluster->start;
settled_ok('what was tried in vain');
is(rows_of($id), '11', '... and it ends as decided');
works_on('what was tried in vain');

# Twice, and otherwise: what is in force first is.
$gtid = called_in_doubt('C5.before');
$reviews->sql("SELECT tpc_amqp.force('$gtid', 'commit')");
ok(TpcPair::settled(10, $reviews), 'forced');
like($reviews->fails("SELECT tpc_amqp.force('$gtid', 'rollback')"),
	qr/ERROR:  42704: /, 'force() of what has ended is refused');
$blog->cluster->start;
incidents_become($blog, $gtid, 'forced at reviews',
	'... and the coordinator hears of the first');
$_->sql("SELECT tpc_amqp.forget('$gtid')") for @nodes;
works_on('forced twice');

# ---------------------------------------------------------------------------
# A joined branch, a coordinator's prepared transaction: nothing goes round
# them

$blog->poll('SELECT count(*) = 0 FROM tpc_amqp.decision');
$gtid = both_prepared();
my $row = $id;
for my $i (0, 1)
{
	like(
		$nodes[$i]->fails('DROP EXTENSION tpc_amqp CASCADE'),
		qr/ERROR:  55006: .*1 branch is in doubt/,
		'DROP EXTENSION is refused on ' . $nodes[$i]->name);
}
like($blog->fails("SELECT tpc_amqp.force('$gtid', 'commit')"),
	qr/ERROR:  22023: /, 'force() is not for the coordinator');
for my $node (@nodes)
{
	my (undef, $err) = $node->try('SELECT tpc_amqp.detach()');

	like($err, qr/WARNING:  1 branch is in doubt/,
		'detach() of ' . $node->name . ' warns');
}
is(TpcPair::unfinished($blog) . TpcPair::unfinished($reviews),
	"g${row}h$row", 'detached: they stay prepared');
for my $try ([ $blog, "g$row" ], [ $reviews, "h$row" ])
{
	my ($node, $its_gid) = @$try;

	like(
		$node->fails('DROP EXTENSION tpc_amqp CASCADE'),
		qr/ERROR:  55006: .*1 branch is in doubt/,
		"detached: DROP EXTENSION is refused while $its_gid is prepared");
	$node->cluster->restart;
	is(TpcPair::unfinished($node), $its_gid, '... which outlives a restart');
}
for my $node (@nodes)
{
	my $name = $node->name;

	like(
		$node->fails("SELECT tpc_amqp.attach('rabbit', 'other')"),
		qr/ERROR:  55006: .*in doubt of node "$name"/,
		"$name cannot become another node meanwhile");
}
$_->attach for @nodes;
TpcPair::connected(@nodes);
$blog->sql("COMMIT PREPARED 'g$row'");
settled_ok('attached again');
is(rows_of($row), '11', 'attached again: it commits');
works_on('attached again');

# All votes are known, so a coordinator that is detached can commit; its row
# tells the others once it is attached again.
$gtid = both_prepared();
$row = $id;
$blog->detach;
my (undef, $warning) = $blog->try("COMMIT PREPARED 'g$row'");
like($warning, qr/WARNING: .*this database is not attached/,
	'detached: COMMIT PREPARED warns');
is(rows_of($row), '10', '... and commits here only, so far');
$blog->attach;
settled_ok('committed while detached');
is(rows_of($row), '11', 'attached again: it is committed everywhere');
works_on('committed while detached');

# A transaction whose participant has gone on without its coordinator.
$gtid = both_prepared();
$row = $id;
$blog->detach;
my $err = $reviews->fails("SET tpc_amqp.prepare_timeout = '1s';
	ROLLBACK PREPARED 'h$row'");
like($err, qr/ERROR:  55000: node "blog" has not decided transaction/,
	'the coordinator is detached: ROLLBACK PREPARED waits for it in vain');
like($err, qr/HINT: .*tpc_amqp\.force\(\)/, '... with a hint at force()');
$blog->attach;
$reviews->sql("ROLLBACK PREPARED 'h$row'");
settled_ok('attached again, rolled back');
is(rows_of($row), '00', 'attached again: it is rolled back');
works_on('attached again, rolled back');

TpcTest->no_incidents('there were no others', @nodes);
TpcTest->no_crash('no crash', @nodes);

done_testing();

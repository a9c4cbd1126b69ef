# Branches that applications prepare themselves.

use strict;
use warnings;

use PostgreSQL::Test::Utils;
use Test::More;
use TpcTest;
use TpcPair;
use TpcPrepared;

($blog, $reviews) = TpcPair::new_pair(
	conf => <<'EOC',
tpc_amqp.resolve_interval = 500ms
tpc_amqp.lock_timeout = 60s
EOC
);
my $stock = TpcTest->new_node(
	$reviews->cluster, 'stock', 'stock',
	setup => $TpcPair::REVIEWS_SETUP);
my ($run, $session, $branch, $gtid, $err, $rc);

TpcPair::connected($blog, $reviews, $stock);
$_->cluster->safe_psql('postgres', 'CREATE ROLE other') for $blog, $reviews;

# ---------------------------------------------------------------------------
# Branches of the application: COMMIT at the coordinator

($session, $gtid) = enlisted();
like($gtid, qr{^blog/[0-9a-f-]{36}$}, 'enlist() returns the gtid');
is($session->query_safe('SELECT tpc_amqp.gtid()'),
	$gtid, '... which is the transaction\'s');
succeeds($reviews, joined($gtid) . "PREPARE TRANSACTION 'h'",
	'the application prepares the branch');
is(TpcPair::unfinished($reviews), 'h', '... by the name that it likes');
is($reviews->sql("SELECT gtid, coordinator, state FROM tpc_amqp.branches
	WHERE gid = 'h'"), "$gtid|blog|prepared", '... under which it is listed');
(undef, $err) = said($session, 'COMMIT');
is($err, '', '... and COMMIT commits');
on_both('... on both, at once');
is_noop($reviews, "COMMIT PREPARED 'h'",
	'COMMIT PREPARED of the branch: it is done already');
on_both('... and still there');
is_refused($reviews, "ROLLBACK PREPARED 'h'",
	'ROLLBACK PREPARED of it is refused');
on_both('... and it still is there');

# A gtid takes effect once.
$reviews->try(joined($gtid) . "PREPARE TRANSACTION 'again'");
ok(TpcPair::settled(30, $reviews), 'joined again after that: it is no branch');
has('... and has no effect', 1, 1);

($session, $gtid) = enlisted();
$reviews->sql(joined($gtid) . "PREPARE TRANSACTION 'h'");
$session->query_safe('ROLLBACK');
all_rolled_back('ROLLBACK at the coordinator');
is_noop($reviews, "ROLLBACK PREPARED 'h'",
	'ROLLBACK PREPARED of the branch: it is done already');
is_refused($reviews, "COMMIT PREPARED 'h'",
	'COMMIT PREPARED of it is refused');
on_neither('... and it has no effect');

# A transaction that is over
$reviews->try(joined($gtid) . "PREPARE TRANSACTION 'late'");
all_rolled_back('joined after the coordinator has rolled back');

($session, $gtid) = enlisted(%PATIENT);
is_refused($reviews, joined($gtid) . 'COMMIT',
	'COMMIT of a branch that has joined is refused');
session_fails($session, 'COMMIT', '... and fails the coordinator\'s');
$session->quit;
all_rolled_back('... then');

($session, $gtid) = enlisted(%PATIENT);
is_refused($reviews,
	joined($gtid) . "INSERT INTO public.reviews VALUES (DEFAULT, $id, '$LONG')",
	'an error in the branch');
session_fails($session, 'COMMIT', '... fails the coordinator\'s COMMIT');
$session->quit;
all_rolled_back('... then');

($session, $gtid) = enlisted(%PATIENT);
$reviews->sql(joined($gtid) . 'ROLLBACK');
session_fails($session, 'COMMIT', 'ROLLBACK of the branch fails COMMIT');
$session->quit;
all_rolled_back('... then');

($session, $gtid) = enlisted(%PATIENT);
(undef, $err, $rc) = $reviews->try(
	joined($gtid)
	  . "INSERT INTO public.reviews (id, note) VALUES ($id, '$LONG');
	PREPARE TRANSACTION 'h'",
	on_error_stop => 0);
unlike($err, qr/ERROR:.*ERROR:/s,
	'PREPARE TRANSACTION of a branch that has failed');
session_fails($session, 'COMMIT', '... fails the coordinator\'s COMMIT');
$session->quit;
all_rolled_back('... then');

($session, $gtid) = enlisted(%PATIENT);
$reviews->sql(joined($gtid));
session_fails($session, 'COMMIT',
	'a branch that disconnects fails COMMIT');
$session->quit;
all_rolled_back('... then');

# ... and one whose session is terminated
($session, $gtid) = enlisted(%PATIENT);
$branch = $reviews->session;
$branch->query_safe(joined($gtid));
$reviews->sql(
	'SELECT pg_terminate_backend(' . $branch->query_safe('SELECT pg_backend_pid()') . ')');
session_fails($session, 'COMMIT', 'so does one whose session is terminated');
$session->quit;
eval { $branch->quit };
all_rolled_back('... then');

($session, $gtid) = enlisted(prepare_timeout => '300ms');
session_fails($session, 'COMMIT',
	'COMMIT does not wait for ever for a branch that nobody begins',
	qr/ERROR:  40000: .*"reviews"/);
$session->quit;
all_rolled_back('... then');

($session, $gtid) = enlisted(%PATIENT);
$branch = $reviews->session;
$branch->query_safe(joined($gtid));
$session->query_until(qr/begun/, "\\echo begun\nCOMMIT;\n");
is(TpcPair::waiting($blog, 'preparing'), $gtid, 'COMMIT waits for the branch');
$branch->query_safe("PREPARE TRANSACTION 'h'");
$branch->quit;
(undef, $err) = said($session, 'SELECT 1');
is($err, '', '... which is prepared, so it commits');
on_both('... both');
$session->quit;

# The session of the coordinator ends
($session, $gtid) = enlisted();
$reviews->sql(joined($gtid) . "PREPARE TRANSACTION 'h'");
$session->quit;
all_rolled_back('the coordinator\'s session ends before COMMIT');

# enlist() and call(), two nodes
($session, $gtid) = enlisted();
$session->query_safe(qq{SELECT tpc_amqp.call('stock', 'add_review',
	'{"id": $id}')});
$reviews->sql(joined($gtid) . "PREPARE TRANSACTION 'h'");
$session->query_safe('COMMIT');
$session->quit;
on_both('one node is enlisted, another one called');
is(TpcPair::reviews_has($stock, $id), 1, '... and has it, too');

($session, $gtid) = enlisted();
$session->query_safe(qq{SELECT tpc_amqp.call('stock', 'add_review',
	'{"id": $id, "note": "$LONG"}')});
$reviews->sql(joined($gtid) . "PREPARE TRANSACTION 'h'");
session_fails($session, 'COMMIT', 'the called one refuses',
	qr/ERROR:  23514: .*node "stock"/s);
$session->quit;
all_rolled_back('... then');

# ---------------------------------------------------------------------------
# Branches of the application: the coordinator is prepared, too

both_prepared();
succeeds($blog, "COMMIT PREPARED 'g'", 'COMMIT PREPARED at the coordinator');
on_both('... commits both');
is_noop($reviews, "COMMIT PREPARED 'h'", '... then of the branch');
is_refused($reviews, "ROLLBACK PREPARED 'h'",
	'... ROLLBACK PREPARED of it is refused');
on_both('... and both are there');

$gtid = both_prepared();
succeeds($reviews, "COMMIT PREPARED 'h'", 'COMMIT PREPARED of the branch first');
on_both('... commits both');
is($blog->sql("SELECT tpc_amqp.outcome('$gtid')"), 'committed',
	'... which is the outcome');
is_noop($blog, "COMMIT PREPARED 'g'", '... then at the coordinator');
is_refused($blog, "ROLLBACK PREPARED 'g'",
	'... ROLLBACK PREPARED there is refused');
on_both('... and both are there');

both_prepared();
succeeds($blog, "ROLLBACK PREPARED 'g'",
	'ROLLBACK PREPARED at the coordinator');
all_rolled_back('... rolls back both');
is_noop($reviews, "ROLLBACK PREPARED 'h'", '... then of the branch');
is_refused($reviews, "COMMIT PREPARED 'h'",
	'... COMMIT PREPARED of it is refused');
on_neither('... and has no effect');

both_prepared();
succeeds($reviews, "ROLLBACK PREPARED 'h'",
	'ROLLBACK PREPARED of the branch first');
all_rolled_back('... rolls back both');
is_noop($blog, "ROLLBACK PREPARED 'g'", '... then at the coordinator');
is_refused($blog, "COMMIT PREPARED 'g'",
	'... COMMIT PREPARED there is refused');
on_neither('... and has no effect');

# PREPARE TRANSACTION at the coordinator first
($session, $gtid) = enlisted(%PATIENT);
$branch = $reviews->session;
$branch->query_safe(joined($gtid));
$session->query_until(qr/begun/, "\\echo begun\nPREPARE TRANSACTION 'g';\n");
TpcTest::poll_until(
	sub {
		return $blog->sql("SELECT count(*) FROM pg_stat_activity
			WHERE query LIKE 'PREPARE TRANSACTION%' AND (state = 'idle'
				OR wait_event_type = 'Extension')
			AND pid <> pg_backend_pid()");
	},
	'the coordinator to wait or to be prepared');
$branch->query_safe("PREPARE TRANSACTION 'h'");
$branch->quit;
(undef, $err) = said($session, 'SELECT 1');
is($err, '', 'the coordinator is prepared before its branch');
$session->query_safe("COMMIT PREPARED 'g'");
$session->quit;
on_both('... and commits');

($session, $gtid) = enlisted(%OFF);
$session->query_safe("PREPARE TRANSACTION 'g'");
$session->quit;
is($blog->sql("SELECT vote FROM tpc_amqp.participants WHERE gid = 'g'"),
	'waiting', 'prepare_wait = off: prepared while the branch is not');
$reviews->sql(joined($gtid) . "PREPARE TRANSACTION 'h'");
succeeds($blog, "COMMIT PREPARED 'g'", '... and it commits');
on_both('... both');

($session, $gtid) = enlisted(%OFF);
$session->query_safe("PREPARE TRANSACTION 'g'");
$session->quit;
$reviews->sql(joined($gtid) . 'ROLLBACK');
is_refused($blog, "SET tpc_amqp.prepare_timeout = '60s'; COMMIT PREPARED 'g'",
	'... and it does not, if the branch rolls back',
	qr/HINT: .*ROLLBACK PREPARED/s);
succeeds($blog, "ROLLBACK PREPARED 'g'", '... so that it has to roll back');
all_rolled_back('... then');

# One after the other, without a pause for what goes on in between
for my $end (qw(COMMIT ROLLBACK))
{
	for my $order ([ 0, 1 ], [ 1, 0 ])
	{
		my @where = ([ $blog, 'g' ], [ $reviews, 'h' ]);
		my @names = map { $where[$_][0]->name } @$order;
		my $bad = '';

		for my $round (1 .. 10)
		{
			both_prepared();
			for my $of (@where[@$order])
			{
				my (undef, $err, $rc) = $of->[0]->try("$end PREPARED '$of->[1]'");
				$bad .= "round $round, " . $of->[0]->name . ": $err" if $rc;
			}
			ok(TpcPair::settled(30, $blog, $reviews), 'nothing stays prepared')
			  if $bad;
		}
		is($bad, '', "$end PREPARED at $names[0] and at once at $names[1]");
	}
}

# Both at a time
for my $end (qw(COMMIT ROLLBACK))
{
	my ($bad, $wrong) = ('', '');

	for my $round (1 .. 6)
	{
		both_prepared();
		my @runs = (
			$blog->start("$end PREPARED 'g'"),
			$reviews->start("$end PREPARED 'h'"));
		for my $run (@runs)
		{
			my (undef, $err, $rc) = $run->finish;
			$bad .= "round $round: $err" if $rc;
		}
		$wrong .= "round $round "
		  unless TpcPair::settled(30, $blog, $reviews)
		  && TpcPair::blog_has($blog, $id) == ($end eq 'COMMIT')
		  && TpcPair::reviews_has($reviews, $id) == ($end eq 'COMMIT');
	}
	is($bad, '', "$end PREPARED of both at a time succeeds");
	is($wrong, '', '... and does what it says');
}

for my $round (1 .. 6)
{
	my @sql = ("COMMIT PREPARED 'g'", "ROLLBACK PREPARED 'h'");
	@sql = ("ROLLBACK PREPARED 'g'", "COMMIT PREPARED 'h'") if $round % 2;

	both_prepared();
	my @runs = ($blog->start($sql[0]), $reviews->start($sql[1]));
	my @results =
	  TpcTest->within($QUICK, sub { return map { ($_->finish)[2] } @runs },
		"round $round: $sql[0] and $sql[1] at a time");
	ok(TpcPair::settled(30, $blog, $reviews), '... and nothing stays prepared');

	# Who was told of success was told the truth, and somebody was.
	my @told = grep { $results[$_] == 0 } 0, 1;
	is(scalar @told, 1, '... and one of them succeeds') or diag("@results");
	has('... and is right', ($sql[ $told[0] // 0 ] =~ /^COMMIT/ ? (1, 1) : (0, 0)));
}

# ---------------------------------------------------------------------------
# Branches of the application: the coordinator is not that far

($session, $gtid) = enlisted(%PATIENT);
$reviews->sql(joined($gtid) . "PREPARE TRANSACTION 'h'");
succeeds($reviews, "ROLLBACK PREPARED 'h'",
	'ROLLBACK PREPARED of the branch before the coordinator has done anything');
is(TpcPair::unfinished($reviews), '', '... takes its vote back');
session_fails($session, 'COMMIT', '... and fails COMMIT');
$session->quit;
all_rolled_back('... then');

($session, $gtid) = enlisted(%PATIENT);
$reviews->sql(joined($gtid) . "PREPARE TRANSACTION 'h'");
TpcTest->within(
	$QUICK,
	sub {
		is_refused($reviews,
			"SET tpc_amqp.prepare_timeout = '300ms'; COMMIT PREPARED 'h'",
			'COMMIT PREPARED of it fails');
	},
	'... in time');
is(TpcPair::unfinished($reviews), 'h', '... and it stays prepared');
$session->query_safe('COMMIT');
$session->quit;
on_both('... so that the coordinator can commit');
is_noop($reviews, "COMMIT PREPARED 'h'", '... which it learns');

($session, $gtid) = enlisted(%PATIENT);
$reviews->sql(joined($gtid) . "PREPARE TRANSACTION 'h'");
$run = $reviews->start(
	"SET tpc_amqp.prepare_timeout = '60s'; COMMIT PREPARED 'h'");
TpcPair::backend($reviews,
	"query LIKE '%COMMIT PREPARED%' AND wait_event_type = 'Extension'");
$session->query_safe('COMMIT');
$session->quit;
(undef, $err, $rc) =
  TpcTest->within($QUICK, sub { return $run->finish },
	'COMMIT PREPARED of the branch waits for the coordinator');
is($rc, 0, '... and succeeds') or diag($err);
on_both('... then');

# ---------------------------------------------------------------------------
# Savepoints

for my $end ('COMMIT', "PREPARE TRANSACTION 'g'; COMMIT PREPARED 'g'")
{
	$id++;
	succeeds(
		$blog,
		"BEGIN;
		INSERT INTO public.blogs VALUES ($id);
		SAVEPOINT a;
		SELECT tpc_amqp.enlist('reviews') \\g /dev/null
		ROLLBACK TO SAVEPOINT a;
		$end",
		"a branch enlisted, rolled back to a savepoint, then $end");
	has('... commits here alone', 1, 0);
}

($session, $gtid) = enlisted();
$reviews->sql("BEGIN; SELECT tpc_amqp.join('$gtid'); SAVEPOINT a;
	INSERT INTO public.reviews (id) VALUES ($id); ROLLBACK TO SAVEPOINT a;
	INSERT INTO public.reviews (id) VALUES ($id); PREPARE TRANSACTION 'h'");
$session->query_safe('COMMIT');
$session->quit;
on_both('a branch that has gone back to a savepoint');

($session, $gtid) = enlisted(%PATIENT);
$reviews->try("BEGIN; SAVEPOINT a; SELECT tpc_amqp.join('$gtid');
	ROLLBACK TO SAVEPOINT a;
	INSERT INTO public.reviews (id) VALUES ($id); PREPARE TRANSACTION 'h'");
session_fails($session, 'COMMIT',
	'a branch that has gone back to before it joined is none');
$session->quit;
$reviews->try("ROLLBACK PREPARED 'h'");
all_rolled_back('... then');

# ---------------------------------------------------------------------------
# Restarts

($session, $gtid) = enlisted(prepare_wait => 'off');
$session->query_safe("PREPARE TRANSACTION 'g'");
$session->quit;
$blog->cluster->restart;
TpcPair::connected($blog, $reviews);
$reviews->sql(joined($gtid) . "PREPARE TRANSACTION 'h'");
succeeds($blog, "COMMIT PREPARED 'g'",
	'the coordinator restarted before its branch was prepared');
on_both('... and it commits');
is_noop($reviews, "COMMIT PREPARED 'h'", '... which the branch learns');

for my $mode (qw(fast immediate))
{
	$gtid = both_prepared();
	$reviews->cluster->stop($mode);
	$reviews->cluster->start;
	TpcPair::connected($reviews, $stock);
	succeeds($reviews, "COMMIT PREPARED 'h'",
		"COMMIT PREPARED of the branch after a restart ($mode)");
	on_both('... on both');
	is_noop($blog, "COMMIT PREPARED 'g'", '... which the coordinator knows');
}

# ---------------------------------------------------------------------------
# The application does not come back

$gtid = both_prepared();
$id++;
$blog->sql(calling($id) . "PREPARE TRANSACTION 'called'");
$blog->sql("BEGIN; SELECT txid_current(); PREPARE TRANSACTION 'ordinary'");
is(TpcPair::unfinished($blog), "called\ng\nordinary", 'three are prepared');
set_prepared_timeout('1s');
$blog->poll("SELECT string_agg(gid, ' ') FROM pg_prepared_xacts", 'ordinary');
pass('prepared_timeout rolls back what is global');
ok(TpcPair::settled(30, $reviews), '... on all nodes');
on_neither('... and it had no effect');
$id--;
on_neither('... nor had the other one');
is($blog->sql("SELECT tpc_amqp.outcome('$gtid')"), 'aborted',
	'... which is the outcome');
is_refused($blog, "COMMIT PREPARED 'g'", '... and cannot be committed');
is_refused($blog, "COMMIT PREPARED 'called'", '... nor the other one');
set_prepared_timeout('5min');
succeeds($blog, "COMMIT PREPARED 'ordinary'",
	'an ordinary one is nobody else\'s');
$id++;

# ---------------------------------------------------------------------------
# Identifiers that were ours are anybody's afterwards

for my $node ($blog, $reviews)
{
	my $table = $node == $blog ? 'blogs (id)' : 'reviews (id)';
	my $gid = $node == $blog ? 'g' : 'h';

	# The last one of that name was rolled back, then committed.
	for my $last (qw(ROLLBACK COMMIT))
	{
		both_prepared();
		$blog->sql("$last PREPARED 'g'");
		ok(TpcPair::settled(30, $blog, $reviews), 'nothing stays prepared');
		for my $end (qw(COMMIT ROLLBACK))
		{
			$id++;
			succeeds($node,
				"BEGIN; INSERT INTO public.$table VALUES ($id);
				PREPARE TRANSACTION '$gid'; $end PREPARED '$gid'",
				"$end PREPARED of an ordinary transaction after $last of ours");
			my $n = $end eq 'COMMIT' ? 1 : 0;
			has("... at " . $node->name,
				$node == $blog ? ($n, 0) : (0, $n));
		}
	}
}

# ---------------------------------------------------------------------------
# Who may, and where

both_prepared();
for my $end (qw(COMMIT ROLLBACK))
{
	for my $of ([ $blog, 'g' ], [ $reviews, 'h' ])
	{
		my ($node, $gid) = @$of;
		my $where = "$end PREPARED at " . $node->name;

		is_refused($node, "SET ROLE other; $end PREPARED '$gid'",
			"$where by another user", qr/ERROR:  42501: /);
		is_refused($node, "BEGIN; $end PREPARED '$gid'",
			"$where in a transaction block", qr/ERROR:  25001: /);
		(undef, $err) = ('', '');
		$node->cluster->psql(
			'postgres', "\\set VERBOSITY verbose\n$end PREPARED '$gid'",
			stderr => \$err);
		like($err, qr/ERROR:  0A000: /, "$where in another database");
	}
}
is(TpcPair::unfinished($blog) . TpcPair::unfinished($reviews),
	'gh', 'none of that did anything');
succeeds($reviews, "COMMIT PREPARED 'h'", 'who may can');
on_both('... commit both');

# ---------------------------------------------------------------------------

TpcTest->no_prepared($blog->cluster, $reviews->cluster);
$blog->poll("SELECT count(*) FROM tpc_amqp.transactions
	WHERE state NOT IN ('committed', 'finished')", 0);
$reviews->poll('SELECT count(*) FROM tpc_amqp.branches', 0);
pass('no entry is left');
TpcTest->no_incidents('there were no incidents', $blog, $reviews, $stock);

done_testing();

# Global transactions that are prepared: PREPARE TRANSACTION after a call.

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
my ($lock, $run, $session, $gtid, $err, $rc);

TpcPair::connected($blog, $reviews);
$_->cluster->safe_psql('postgres', 'CREATE ROLE other') for $blog, $reviews;

# ---------------------------------------------------------------------------
# Calls: PREPARE TRANSACTION waits for the votes

$id++;
$gtid = $blog->sql(calling($id)
	  . "SELECT tpc_amqp.gtid(); PREPARE TRANSACTION 'g'");
$gtid =~ s/^\n*//;
like($gtid, qr{^blog/}, 'a transaction with a call is prepared');
is(TpcPair::unfinished($blog), 'g', '... at the coordinator');
like(TpcPair::unfinished($reviews), qr/^tpc_amqp:\Q$gtid\E:reviews$/,
	'... and at the participant');
on_neither('... and nobody sees it');
is($blog->sql("SELECT tpc_amqp.outcome('$gtid')"), 'pending',
	'... and it is pending');
is($blog->sql("SELECT gtid, node, vote, sqlstate, message, acked
	FROM tpc_amqp.participants WHERE gid = 'g'"),
	"$gtid|reviews|yes|||f", '... with the vote listed');
succeeds($blog, "COMMIT PREPARED 'g'", 'COMMIT PREPARED in another session');
on_both('... commits on both, at once');
is($blog->sql("SELECT tpc_amqp.outcome('$gtid')"), 'committed',
	'... and the outcome is known');

$id++;
$gtid = $blog->sql(calling($id)
	  . "SELECT tpc_amqp.gtid(); PREPARE TRANSACTION 'g'");
$gtid =~ s/^\n*//;
succeeds($blog, "ROLLBACK PREPARED 'g'", 'ROLLBACK PREPARED');
all_rolled_back('... decides for all');
is($blog->sql("SELECT tpc_amqp.outcome('$gtid')"), 'aborted',
	'... and the outcome is known');

# What is in the way
$session = $blog->session;
$session->query_safe('\set VERBOSITY verbose');
$id++;
$session->query_safe(calling($id, arg => qq({"id": $id, "note": "$LONG"})));
session_fails($session, "PREPARE TRANSACTION 'g'",
	'a participant that refuses fails PREPARE TRANSACTION',
	qr/ERROR:  23514: .*short_note.*node "reviews"/s);
said($session, 'ROLLBACK');
all_rolled_back('... which rolls back');

$id++;
$session->query_safe(calling($id, to => 'nowhere'));
session_fails($session, "PREPARE TRANSACTION 'g'",
	'... and so does one that is not known', qr/ERROR:  42704: /);
said($session, 'ROLLBACK');
all_rolled_back('... which rolls back');

my $messenger = $reviews->sql('SELECT messenger_pid FROM tpc_amqp.node');
TpcTest->freeze($messenger);
$id++;
$session->query_safe(calling($id));
$session->query_safe("SET LOCAL tpc_amqp.prepare_timeout = '300ms'");
session_fails($session, "PREPARE TRANSACTION 'g'",
	'... and one that stays silent',
	qr/ERROR:  40000: no vote from node "reviews"/);
said($session, 'ROLLBACK');
TpcTest->thaw($messenger);
all_rolled_back('... which rolls back');

$lock = lock_stock();
$id++;
$session->query_safe("SET tpc_amqp.prepare_timeout = '60s'");
$session->query_safe(calling($id, @TAKE));
$session->query_safe("SET LOCAL statement_timeout = '300ms'");
session_fails($session, "PREPARE TRANSACTION 'g'",
	'statement_timeout ends the wait', qr/ERROR:  57014: /);
said($session, 'ROLLBACK');
all_rolled_back('... which rolls back');
$lock->quit;

# What PostgreSQL itself finds when the votes are in
$id++;
$session->query_safe(calling($id));
$session->query_safe('CREATE TEMP TABLE mine ()');
session_fails($session, "PREPARE TRANSACTION 'g'",
	'what cannot be prepared is not', qr/ERROR:  0A000: .*temporary/s);
said($session, 'ROLLBACK');
all_rolled_back('... which rolls back');

$blog->sql("BEGIN; SELECT txid_current(); PREPARE TRANSACTION 'taken'");
$id++;
$session->query_safe(calling($id));
session_fails($session, "PREPARE TRANSACTION 'taken'",
	'an identifier that is taken', qr/ERROR:  42710: /);
said($session, 'ROLLBACK');
$blog->sql("ROLLBACK PREPARED 'taken'");
all_rolled_back('... which rolls back');

# The identifier of a transaction with calls that is prepared
$id++;
$blog->sql(calling($id) . "PREPARE TRANSACTION 'g'");
$session->query_safe(calling($id + 1000));
session_fails($session, "PREPARE TRANSACTION 'g'",
	'an identifier that is taken by one with calls', qr/ERROR:  42710: /);
said($session, 'ROLLBACK');
$reviews->poll('SELECT count(*) FROM pg_prepared_xacts', 1);
$blog->sql("COMMIT PREPARED 'g'");
on_both('... which commits unharmed');
is(TpcPair::reviews_has($reviews, $id + 1000), 0, '... the other one does not');

# A failed transaction
$id++;
$session->query_safe(calling($id));
said($session, 'SELECT 1 / 0');
(undef, $err) = said($session, "PREPARE TRANSACTION 'g'");
unlike($err, qr/ERROR/, 'PREPARE TRANSACTION of a failed transaction');
all_rolled_back('... rolls back');

$id++;
$session->query_safe(calling($id));
$session->query_safe("PREPARE TRANSACTION 'g'");
$session->query_safe(
	"BEGIN; INSERT INTO public.blogs VALUES ($id + 1000); COMMIT");
is($session->query_safe('SELECT tpc_amqp.gtid() IS NULL'),
	't', 'the session has another transaction after it');
$session->query_safe("COMMIT PREPARED 'g'");
on_both('... and may commit the first one then');
$session->quit;

# Votes read-only
$id++;
$blog->sql(calling($id, handler => 'look') . "PREPARE TRANSACTION 'g'");
is($blog->sql("SELECT vote FROM tpc_amqp.participants WHERE gid = 'g'"),
	'read-only', 'a branch that wrote nothing votes read-only');
is(TpcPair::unfinished($reviews), '', '... and is not prepared');
succeeds($blog, "COMMIT PREPARED 'g'", '... and the transaction commits');
has('... here', 1, 0);

# Nothing written here but by the call
$blog->sql(qq{BEGIN; SELECT tpc_amqp.call('reviews', 'add_review',
	'{"id": 900}'); PREPARE TRANSACTION 'g'});
$blog->sql("COMMIT PREPARED 'g'");
is(TpcPair::reviews_has($reviews, 900),
	1, 'a transaction that writes nothing at the coordinator');

# ---------------------------------------------------------------------------
# prepare_wait = off

$lock = lock_stock();
$id++;
TpcTest->within(
	$QUICK,
	sub {
		$blog->sql(calling($id, @TAKE, set => \%OFF)
			  . "PREPARE TRANSACTION 'g'");
	},
	'prepare_wait = off: PREPARE TRANSACTION returns at once');
is(TpcPair::unfinished($blog), 'g', '... and it is prepared');
is($blog->sql("SELECT vote FROM tpc_amqp.participants WHERE gid = 'g'"),
	'waiting', '... though a vote is missing');
$lock->quit;
vote_is('g', 'yes');
pass('... which comes later');
succeeds($blog, "COMMIT PREPARED 'g'", '... and COMMIT PREPARED commits');
is(TpcPair::blog_has($blog, $id), 1, '... here');
is($reviews->sql("SELECT amount FROM public.stock WHERE item = 'apple'"),
	99, '... and there');

$lock = lock_stock();
$id++;
$blog->sql(calling($id, @TAKE, set => \%OFF) . "PREPARE TRANSACTION 'g'");
$run = $blog->start(
	"SET tpc_amqp.prepare_timeout = '60s'; COMMIT PREPARED 'g'");
TpcPair::backend($blog,
	"query LIKE 'COMMIT PREPARED%' AND wait_event_type = 'Extension'");
$lock->quit;
(undef, $err, $rc) = $run->finish;
is("$rc $err", '0 ', 'COMMIT PREPARED waits for votes that are missing');
is($reviews->sql("SELECT amount FROM public.stock WHERE item = 'apple'"),
	98, '... and commits');

$lock = lock_stock();
$id++;
$blog->sql(calling($id, @TAKE, set => \%OFF) . "PREPARE TRANSACTION 'g'");
TpcTest->within(
	$QUICK,
	sub {
		is_refused($blog,
			"SET tpc_amqp.prepare_timeout = '300ms'; COMMIT PREPARED 'g'",
			'COMMIT PREPARED fails if they stay missing');
	},
	'... in time');
is(TpcPair::unfinished($blog), 'g', '... and the transaction stays prepared');
$lock->quit;
vote_is('g', 'yes');
succeeds($blog, "COMMIT PREPARED 'g'", '... until they are there');
is($reviews->sql("SELECT amount FROM public.stock WHERE item = 'apple'"),
	97, '... and commits then');

$lock = lock_stock();
$id++;
$blog->sql(calling($id, @TAKE, set => \%OFF) . "PREPARE TRANSACTION 'g'");
succeeds($blog, "ROLLBACK PREPARED 'g'",
	'ROLLBACK PREPARED does not wait for votes');
$reviews->poll("SELECT count(*) = 0 FROM tpc_amqp.branches");
pass('... and ends the branch that has not voted');
$lock->quit;
all_rolled_back('... then');

$id++;
$blog->sql(calling($id, set => \%OFF, arg => qq({"id": $id, "note": "$LONG"}))
	  . "PREPARE TRANSACTION 'g'");
vote_is('g', 'no');
like(
	$blog->sql("SELECT sqlstate, message FROM tpc_amqp.participants
		WHERE gid = 'g'"),
	qr/^23514\|.*short_note/, 'a vote no is listed with its reason');
is_refused($blog, "COMMIT PREPARED 'g'", '... and fails COMMIT PREPARED',
	qr/ERROR:  23514: .*HINT: .*ROLLBACK PREPARED/s);
is(TpcPair::unfinished($blog), 'g', '... and the transaction stays prepared');
succeeds($blog, "ROLLBACK PREPARED 'g'", '... until it is rolled back');
all_rolled_back('... then');

$id++;
$blog->sql(calling($id, set => \%OFF, to => 'nowhere')
	  . "PREPARE TRANSACTION 'g'");
$blog->poll("SELECT vote FROM tpc_amqp.participants WHERE gid = 'g'",
	'unknown node');
is_refused($blog, "COMMIT PREPARED 'g'",
	'a node that is not known fails COMMIT PREPARED',
	qr/HINT: .*ROLLBACK PREPARED/s);
succeeds($blog, "ROLLBACK PREPARED 'g'", '... and it can be rolled back');
all_rolled_back('... then');
is($blog->sql('SELECT count(*) FROM tpc_amqp.participants WHERE gid IS NOT NULL'),
	0, 'what is rolled back is not listed');

# ---------------------------------------------------------------------------
# Savepoints

$id++;
$blog->sql(qq{
	BEGIN;
	INSERT INTO public.blogs VALUES ($id);
	SELECT tpc_amqp.call('reviews', 'add_review', '{"id": $id}');
	SAVEPOINT a;
	SELECT tpc_amqp.call('reviews', 'add_review', '{"id": $id}');
	SELECT tpc_amqp.call('nowhere', 'add_review', '{"id": $id}');
	SELECT tpc_amqp.enlist('elsewhere');
	ROLLBACK TO SAVEPOINT a;
	PREPARE TRANSACTION 'g'});
succeeds($blog, "COMMIT PREPARED 'g'",
	'prepared with what was rolled back to a savepoint');
on_both('... which was not sent');

$id++;
$blog->sql(qq{
	BEGIN;
	INSERT INTO public.blogs VALUES ($id);
	SAVEPOINT a;
	SELECT tpc_amqp.call('reviews', 'add_review', '{"id": $id}');
	ROLLBACK TO SAVEPOINT a;
	PREPARE TRANSACTION 'g'});
succeeds($blog, "COMMIT PREPARED 'g'", 'prepared with no call that is left');
has('... commits here alone', 1, 0);

# ---------------------------------------------------------------------------
# Restarts between PREPARE TRANSACTION and the decision

for my $mode (qw(fast immediate))
{
	for my $end (qw(COMMIT ROLLBACK))
	{
		$id++;
		$blog->sql(calling($id) . "PREPARE TRANSACTION 'g'");
		$blog->cluster->stop($mode);
		$blog->cluster->start;
		TpcPair::connected($blog, $reviews);
		# It asks once it hears of the coordinator again.
		$reviews->sql('SELECT tpc_amqp.resolve()');
		is(TpcPair::unfinished($blog), 'g',
			"the coordinator restarted ($mode): it is prepared there");
		like(TpcPair::unfinished($reviews), qr/^tpc_amqp:/, '... and here');
		succeeds($blog, "$end PREPARED 'g'", "... and $end PREPARED works");
		$end eq 'COMMIT'
		  ? on_both('... on both')
		  : all_rolled_back('... on both');
	}
}

# ... while a vote is missing
$lock = lock_stock();
$id++;
$blog->sql(calling($id, @TAKE, set => \%OFF) . "PREPARE TRANSACTION 'g'");
TpcPair::branch_is($reviews, 'running');
$blog->cluster->restart;
TpcPair::connected($blog, $reviews);
$lock->quit;
succeeds($blog, "SET tpc_amqp.prepare_timeout = '60s'; COMMIT PREPARED 'g'",
	'the coordinator restarted before a vote was there');
has('... which came, and it is committed', 1, 0);
is($reviews->sql("SELECT amount FROM public.stock WHERE item = 'apple'"),
	96, '... on both');

for my $mode (qw(fast immediate))
{
	$id++;
	$blog->sql(calling($id) . "PREPARE TRANSACTION 'g'");
	$reviews->cluster->stop($mode);
	$reviews->cluster->start;
	TpcPair::connected($blog, $reviews);
	succeeds($blog, "COMMIT PREPARED 'g'",
		"the participant restarted ($mode), and it commits");
	on_both('... on both');
}

$id++;
$blog->sql(calling($id) . "PREPARE TRANSACTION 'g'");
$reviews->cluster->stop('fast');
(undef, $err, $rc) =
  $blog->try("SET tpc_amqp.apply_timeout = '300ms'; COMMIT PREPARED 'g'");
is($rc, 0, 'COMMIT PREPARED while the participant is down');
like($err, qr/WARNING: .*node "reviews" has not applied the transaction/,
	'... warns that it has yet to apply it');
is(TpcPair::blog_has($blog, $id), 1, '... and has committed');
$reviews->cluster->start;
$reviews->poll("SELECT count(*) = 1 FROM public.reviews WHERE id = $id");
pass('... which it does');
TpcPair::connected($blog, $reviews);

# ---------------------------------------------------------------------------
# Identifiers that are not ours: what a database without the extension says

# as_without SQL, NAME: on each cluster, compared with its database postgres.
# "GID" in SQL is one of that database's.
sub as_without
{
	my ($sql, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	for my $node ($blog, $reviews)
	{
		my @said;
		for my $db ('postgres', $node->db)
		{
			my ($out, $err) = ('', '');
			# Command tags, too
			(my $mine = "\\set VERBOSITY verbose\n\\set QUIET off\n$sql") =~
			  s/GID/gid of $db/g;
			$node->cluster->psql(
				$db, $mine,
				stdout => \$out,
				stderr => \$err,
				on_error_stop => 0);
			"$out$err" =~ /\S/ or die "nothing said to $mine\n";
			push @said, "$out\n$err" =~ s/gid of \Q$db\E/GID/gr;
		}
		is($said[1], $said[0], "$name, at " . $node->name);
	}
	return;
}

my $prepare = "BEGIN; SELECT 1 FROM txid_current(); PREPARE TRANSACTION 'GID';";
as_without("$prepare COMMIT PREPARED 'GID';", 'prepare and commit');
as_without("$prepare ROLLBACK PREPARED 'GID';", 'prepare and roll back');
as_without("BEGIN; PREPARE TRANSACTION 'GID'; COMMIT PREPARED 'GID';",
	'a transaction that did nothing');
as_without("$prepare $prepare COMMIT PREPARED 'GID'; COMMIT PREPARED 'GID';",
	'a duplicate');
as_without("COMMIT PREPARED 'GID'; ROLLBACK PREPARED 'GID';",
	'one that does not exist');
as_without("$prepare SET ROLE other; COMMIT PREPARED 'GID';
	ROLLBACK PREPARED 'GID'; RESET ROLE; COMMIT PREPARED 'GID';",
	'another owner');
as_without("$prepare BEGIN; COMMIT PREPARED 'GID'; ROLLBACK;
	BEGIN; ROLLBACK PREPARED 'GID'; ROLLBACK; ROLLBACK PREPARED 'GID';",
	'in a transaction block');
as_without("PREPARE TRANSACTION 'GID';", 'outside of one');
as_without("BEGIN; SELECT 1 / 0; PREPARE TRANSACTION 'GID';
	COMMIT PREPARED 'GID';", 'a transaction that failed');
as_without("BEGIN; PREPARE TRANSACTION '" . ('x' x 200) . "'; ROLLBACK;",
	'an identifier that is too long');
as_without("BEGIN; CREATE TEMP TABLE t (); PREPARE TRANSACTION 'GID';",
	'what cannot be prepared');
as_without("COMMIT PREPARED ''; ROLLBACK PREPARED '';", 'an empty one');
as_without("COMMIT PREPARED 'tpc_amqp:nobody/1:here';
	ROLLBACK PREPARED 'tpc_amqp:nobody/1:here';",
	'one that looks like a branch');

# ---------------------------------------------------------------------------

TpcTest->no_prepared($blog->cluster, $reviews->cluster);
$blog->poll("SELECT count(*) FROM tpc_amqp.transactions
	WHERE state NOT IN ('committed', 'finished')", 0);
$reviews->poll('SELECT count(*) FROM tpc_amqp.branches', 0);
pass('no entry is left');
TpcTest->no_incidents('there were no incidents', $blog, $reviews);

done_testing();

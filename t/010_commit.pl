# Transactions that commit on all their nodes, whatever they call from, and
# what that costs.

use strict;
use warnings;

use PostgreSQL::Test::Utils;
use Test::More;
use TpcTest;
use TpcPair;

my ($blog, $reviews) = TpcPair::new_pair(
	# Without fsync nothing is counted.  What is asynchronous shall not be
	# flushed in between, by the background process.
	conf => <<'EOC',
fsync = on
wal_writer_delay = 10s
checkpoint_timeout = 1h
EOC
	blog_setup => <<'EOS',
CREATE FUNCTION public.note(arg jsonb) RETURNS void LANGUAGE sql AS
	$$INSERT INTO public.blogs VALUES ((arg->>'id')::int, 'handled')$$;
SELECT tpc_amqp.register_handler('note', 'public.note(jsonb)');
EOS
);
my $stock = TpcTest->new_node(
	$reviews->cluster, 'stock', 'stock',
	setup => $TpcPair::REVIEWS_SETUP);

TpcPair::connected($blog, $reviews, $stock);

# on_both ID, NAME, COUNT: of the rows there; COUNT is 1 by default.
sub on_both
{
	my ($id, $name, $count) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	$count //= 1;
	return is(TpcPair::blog_has($blog, $id) . ' '
		  . TpcPair::reviews_has($reviews, $id),
		"1 $count", $name);
}

sub on_neither
{
	my ($id, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	return is(TpcPair::blog_has($blog, $id) . ' '
		  . TpcPair::reviews_has($reviews, $id),
		'0 0', $name);
}

# ---------------------------------------------------------------------------
# The plain case, and that it was read as it was written: commit_wait is
# "applied", so the row is there at once.

$blog->sql(TpcPair::transaction(1, arg => '{"id": 1, "note": "good"}'));
on_both(1, 'a transaction committed on both nodes');
is($reviews->sql('SELECT note FROM public.reviews WHERE id = 1'),
	'good', 'the handler had its argument');

$blog->sql("BEGIN; INSERT INTO public.blogs VALUES (2);
	SELECT tpc_amqp.call('reviews', 'add_review', '{\"id\": 2}'); ROLLBACK;");
on_neither(2, 'ROLLBACK is one on both');
is($blog->sql('SELECT prepares_sent FROM tpc_amqp.stat'),
	1, 'nothing is sent before COMMIT');

# ---------------------------------------------------------------------------
# What it costs

# A process reports its share of these when it ends.  (The messenger writes
# none.)
sub wal_syncs
{
	my ($node) = @_;
	my $pids = $node->sql('SELECT prepare_pids || resolve_pids
		FROM tpc_amqp.node');

	$node->sql("SELECT pg_terminate_backend(pid)
		FROM unnest('$pids'::int[]) pid");
	$node->poll("SELECT count(*) = 0 FROM pg_stat_activity
		WHERE pid = ANY ('$pids')");
	my $syncs = $node->sql('SELECT wal_sync FROM pg_stat_wal');
	TpcPair::connected($node);
	return $syncs;
}

# The counters of messages follow within a second: until they have.
sub messages_sent
{
	$blog->poll('SELECT messages_sent = prepares_sent + commits_sent +
		rollbacks_sent FROM tpc_amqp.stat');
	$reviews->poll('SELECT messages_sent = branches_prepared +
		branches_read_only + branches_refused + branches_committed +
		inquiries_sent FROM tpc_amqp.stat');
	return $blog->sql('SELECT messages_sent FROM tpc_amqp.stat') +
	  $reviews->sql('SELECT messages_sent FROM tpc_amqp.stat');
}

my $n = 100;
my $messages = -messages_sent();
$blog->sql(join '', map { TpcPair::transaction($_) } (1001 .. 1000 + $n));
$messages += messages_sent();
is($messages, 4 * $n, 'four messages per participant');

my @syncs = map { -wal_syncs($_) } ($blog, $reviews);
$blog->sql(join '', map { TpcPair::transaction($_) } (1101 .. 1100 + $n));
$syncs[0] += wal_syncs($blog);
$syncs[1] += wal_syncs($reviews);
is($reviews->sql('SELECT count(*) FROM public.reviews WHERE id > 1000'),
	2 * $n, 'all of these transactions are there');

# Background processes have their own now and then, so there is a margin.
cmp_ok($syncs[0], '>=', $n, 'the coordinator flushes its WAL');
cmp_ok($syncs[0], '<=', $n * 1.2, '... once per transaction');
cmp_ok($syncs[1], '>=', 2 * $n, 'the participant flushes its WAL');
cmp_ok($syncs[1], '<=', 2 * $n * 1.15, '... twice per transaction');
note("WAL flushes for $n transactions: @syncs");

# ---------------------------------------------------------------------------
# Several nodes, two of them databases of one cluster

$blog->sql(<<'EOS');
BEGIN;
INSERT INTO public.blogs VALUES (10);
SELECT tpc_amqp.call('reviews', 'add_review', '{"id": 10}');
SELECT tpc_amqp.call('stock', 'take', '{"item": "apple", "amount": 3}');
COMMIT;
EOS
on_both(10, 'three nodes: two have it');
is($stock->sql("SELECT amount FROM public.stock WHERE item = 'apple'"),
	97, '... and the third');

# ---------------------------------------------------------------------------
# Several calls to one node

$blog->sql(<<'EOS');
BEGIN;
INSERT INTO public.blogs VALUES (11);
SELECT tpc_amqp.call('reviews', 'add_review',
	jsonb_build_object('id', 11, 'note', i)) FROM generate_series(1, 20) i;
SELECT tpc_amqp.call('stock', 'take', '{"item": "apple", "amount": 1}');
SELECT tpc_amqp.call('reviews', 'add_review', '{"id": 11, "note": "last"}');
COMMIT;
EOS
is( $reviews->sql(
		"SELECT string_agg(note, ' ' ORDER BY n), count(DISTINCT xmin::text)
		FROM public.reviews WHERE id = 11"),
	join(' ', 1 .. 20, 'last') . '|1',
	'calls to one node run in their order, in one branch');

# ---------------------------------------------------------------------------
# Where it is called from

$blog->sql(<<'EOS');
CREATE FUNCTION public.publish(id int) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO public.blogs VALUES (id);
	PERFORM tpc_amqp.call('reviews', 'add_review',
		jsonb_build_object('id', id));
END$$;
CREATE TABLE public.trig (id int);
CREATE TABLE public.deferred (id int);
CREATE FUNCTION public.publish_trigger() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	PERFORM public.publish(NEW.id);
	RETURN NEW;
END$$;
CREATE TRIGGER t AFTER INSERT ON public.trig
	FOR EACH ROW EXECUTE FUNCTION public.publish_trigger();
CREATE CONSTRAINT TRIGGER t AFTER INSERT ON public.deferred
	DEFERRABLE INITIALLY DEFERRED
	FOR EACH ROW EXECUTE FUNCTION public.publish_trigger();
EOS

$blog->sql('SELECT public.publish(20)');
on_both(20, 'from PL/pgSQL in a single autocommit statement');
$blog->sql('INSERT INTO public.trig VALUES (21)');
on_both(21, 'from a trigger');
$blog->sql('INSERT INTO public.deferred VALUES (22)');
on_both(22, 'from a deferred constraint trigger');
$blog->sql('BEGIN; INSERT INTO public.deferred VALUES (23); ROLLBACK');
on_neither(23, 'the same, rolled back');
$blog->sql(q{SELECT tpc_amqp.call('reviews', 'add_review', '{"id": 24}')});
is(TpcPair::reviews_has($reviews, 24),
	1, 'a transaction that writes nothing at the coordinator');
$blog->sql(q{SELECT tpc_amqp.call('reviews', 'add_review', '{"id": 25}')
	\; INSERT INTO public.blogs VALUES (25)});
on_both(25, 'several statements in one query, without BEGIN');

$blog->sql(<<'EOS');
DO $$
BEGIN
	PERFORM public.publish(30);
	BEGIN
		PERFORM public.publish(31);
		RAISE EXCEPTION 'no';
	EXCEPTION WHEN raise_exception THEN
	END;
	BEGIN
		PERFORM public.publish(32);
		BEGIN
			PERFORM public.publish(33);
			PERFORM 1 / 0;
		EXCEPTION WHEN division_by_zero THEN
			PERFORM public.publish(34);
		END;
	EXCEPTION WHEN OTHERS THEN
	END;
END$$;
EOS
on_both($_, "DO block: call $_ was not rolled back") for 30, 32, 34;
on_neither($_, "DO block: call $_ was rolled back with its block")
  for 31, 33;

$blog->sql(<<'EOS');
BEGIN;
SELECT public.publish(40);
SAVEPOINT a;
SELECT public.publish(41);
SAVEPOINT b;
SELECT public.publish(42);
RELEASE SAVEPOINT b;
ROLLBACK TO SAVEPOINT a;
SELECT public.publish(43);
RELEASE SAVEPOINT a;
SAVEPOINT c;
SELECT public.publish(44);
RELEASE SAVEPOINT c;
COMMIT;
EOS
on_both($_, "savepoints: call $_ was not rolled back") for 40, 43, 44;
on_neither($_, "savepoints: call $_ was rolled back") for 41, 42;

my $before = $blog->sql('SELECT prepares_sent FROM tpc_amqp.stat');
$blog->sql(<<'EOS');
BEGIN;
INSERT INTO public.blogs VALUES (45);
SAVEPOINT a;
SELECT tpc_amqp.call('reviews', 'add_review', '{"id": 45}');
ROLLBACK TO SAVEPOINT a;
COMMIT;
EOS
is(TpcPair::blog_has($blog, 45) . TpcPair::reviews_has($reviews, 45),
	'10', 'all calls rolled back: the transaction commits here alone');
is($blog->sql('SELECT prepares_sent FROM tpc_amqp.stat'),
	$before, '... and nothing is sent');
is($blog->sql("SELECT count(*) FROM tpc_amqp.transactions
	WHERE state = 'active'"), 0, '... and no entry is left');

# ---------------------------------------------------------------------------
# A node that calls itself, alone and with another

$blog->sql(q{SELECT tpc_amqp.call('blog', 'note', '{"id": 50}')});
is($blog->sql('SELECT note FROM public.blogs WHERE id = 50'),
	'handled', 'a node calls itself');
$blog->sql(q{
	BEGIN;
	INSERT INTO public.blogs VALUES (51);
	SELECT tpc_amqp.call('blog', 'note', '{"id": 52}');
	SELECT tpc_amqp.call('reviews', 'add_review', '{"id": 51}');
	COMMIT});
on_both(51, 'a node calls itself and another');
is(TpcPair::blog_has($blog, 52), 1, '... in the same transaction');

# ---------------------------------------------------------------------------
# A branch that writes nothing

my $branches = 'SELECT count(*) FROM tpc_amqp.branch';
my $rows = $reviews->sql($branches);
my $votes = $blog->sql('SELECT votes_read_only FROM tpc_amqp.stat');
$blog->sql(TpcPair::transaction(60, handler => 'look'));
is($blog->sql('SELECT votes_read_only FROM tpc_amqp.stat'),
	$votes + 1, 'a branch that wrote nothing voted read-only');
is($reviews->sql('SELECT branches_read_only FROM tpc_amqp.stat'),
	1, '... which the participant counts too');
cmp_ok($reviews->sql($branches), '<=', $rows, '... and it made no row');
is(TpcPair::unfinished($reviews), '', '... and nothing is prepared');
is(TpcPair::blog_has($blog, 60), 1, '... and the coordinator committed');

$blog->sql(q{
	BEGIN;
	INSERT INTO public.blogs VALUES (61);
	SELECT tpc_amqp.call('stock', 'look');
	SELECT tpc_amqp.call('reviews', 'add_review', '{"id": 61}');
	COMMIT});
on_both(61, 'one branch writes, one does not');

# ---------------------------------------------------------------------------
# gtid(), outcome() and commit_wait at each stage

is($blog->sql('SELECT tpc_amqp.gtid() IS NULL'),
	't', 'gtid() is null outside of a global transaction');

my $out = $blog->sql(q{
	BEGIN;
	SELECT tpc_amqp.gtid() IS NULL;
	SELECT tpc_amqp.call('reviews', 'add_review', '{"id": 70}');
	SELECT tpc_amqp.gtid() AS gtid \gset
	SELECT :'gtid' ~ '^blog/[0-9a-f-]{36}$';
	SELECT tpc_amqp.outcome(:'gtid');
	ROLLBACK;
	SELECT tpc_amqp.outcome(:'gtid');
	SELECT tpc_amqp.gtid() IS NULL;});
is($out, "t\n\nt\npending\naborted\nt",
	'gtid() and outcome() in a transaction that rolls back');

# Held in its handler: a row it needs is locked.
my $locker = $reviews->session;
$locker->query_safe("BEGIN; UPDATE public.stock SET amount = amount
	WHERE item = 'apple'");
my $run = $blog->start(
	TpcPair::transaction(
		71,
		handler => 'take',
		arg => '{"item": "apple", "amount": 1}',
		set => { commit_wait => 'applied', apply_timeout => '60s' }));
my $gtid = TpcPair::waiting($blog, 'preparing');
is(TpcPair::branch_is($reviews, 'running'), $gtid, 'its branch runs');
is($blog->sql("SELECT tpc_amqp.outcome('$gtid')"),
	'pending', 'outcome() at the coordinator before the votes');
is($reviews->sql("SELECT tpc_amqp.outcome('$gtid')"),
	'pending', '... and at the participant');
is($blog->sql("SELECT missing, votes FROM tpc_amqp.transactions
	WHERE gtid = '$gtid'"), '{reviews}|0', '... and whose vote is missing');

# Decided, but not applied: the participant's resolver stands still.
my $resolver = $reviews->sql('SELECT resolve_pids[1] FROM tpc_amqp.node');
TpcTest->freeze($resolver);
$locker->query_safe('COMMIT');
$locker->quit;
is(TpcPair::waiting($blog, 'committed'), $gtid, 'it is decided');
is(TpcPair::blog_has($blog, 71), 1, 'the coordinator has it');
is($blog->sql("SELECT tpc_amqp.outcome('$gtid')"),
	'committed', 'outcome() at the coordinator after the decision');
is($reviews->sql("SELECT tpc_amqp.outcome('$gtid')"),
	'pending', '... and at the participant before it applies it');
is($reviews->sql("SELECT state, waiting FROM tpc_amqp.branches
	WHERE gtid = '$gtid'"),
	'prepared|waiting for the decision of node "blog"',
	'... which is listed');
TpcPair::backend($blog, "query = 'COMMIT;' AND wait_event_type = 'Extension'");
ok($run->{handle}->pumpable, 'COMMIT waits until it is applied');

$blog->sql(TpcPair::transaction(72, set => { commit_wait => 'decided' }));
is(TpcPair::blog_has($blog, 72) . TpcPair::reviews_has($reviews, 72),
	'10', 'commit_wait = decided: COMMIT returns before it is applied');

TpcTest->thaw($resolver);
my (undef, $err, $rc) = $run->finish;
is("$rc $err", '0 ', 'commit_wait = applied: COMMIT returns, no warning');
is($reviews->sql("SELECT tpc_amqp.outcome('$gtid')"),
	'committed', 'outcome() at the participant after that');
$reviews->poll('SELECT count(*) = 1 FROM public.reviews WHERE id = 72');
pass('what was only decided is applied in the end');

# ---------------------------------------------------------------------------
# Nothing is kept for ever

$_->cluster->append_conf('postgresql.conf', "tpc_amqp.forget_after = 0\n"),
  $_->cluster->reload
  for $blog, $reviews;
$blog->poll('SELECT count(*) = 0 FROM tpc_amqp.decision');
pass('the coordinator forgets what is acknowledged');
$blog->poll('SELECT count(*) = 0 FROM tpc_amqp.transactions');
pass('... in memory, too');
my $id = 2000;
TpcTest::poll_until(
	sub {
		$blog->sql(TpcPair::transaction($id++));
		return $reviews->sql($branches) < 30;
	},
	'rows of branch to be deleted');
pass('the participant forgets what is closed');
TpcTest->no_prepared($blog->cluster, $reviews->cluster);

is($blog->sql('SELECT timeouts, votes_no, bad_messages FROM tpc_amqp.stat'),
	'0|0|0', 'the coordinator counted nothing bad');
is($reviews->sql('SELECT branches_refused, bad_messages, branches_rolled_back
	FROM tpc_amqp.stat'), '0|0|0', 'nor did the participant');

done_testing();

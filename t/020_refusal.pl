# Transactions that fail: whoever says no, the client gets the reason, both
# nodes roll back, and nothing is left prepared.

use strict;
use warnings;

use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);
use TpcTest;
use TpcPair;

# It is blocked, frozen and stopped.
my $broker = TpcTest::Broker->new(own => 1);

my ($blog, $reviews) = TpcPair::new_pair(
	broker => $broker,
	conf => <<'EOC',
tpc_amqp.resolve_interval = '500ms'
EOC
	reviews_setup => <<'EOS',
CREATE ROLE worker;
CREATE TABLE public.strict (id int PRIMARY KEY DEFERRABLE INITIALLY DEFERRED);
INSERT INTO public.strict VALUES (1);

CREATE FUNCTION public.refuse(arg jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO public.reviews (id) VALUES ((arg->>'id')::int);
	RAISE EXCEPTION 'no apples for %', arg->>'id'
		USING ERRCODE = 'TP123', DETAIL = 'They are sold.', HINT = 'Try pears.';
END$$;
CREATE FUNCTION public.defer(arg jsonb) RETURNS void LANGUAGE sql AS
	$$INSERT INTO public.reviews (id) VALUES ((arg->>'id')::int);
	  INSERT INTO public.strict VALUES (1)$$;
CREATE FUNCTION public.serialization(arg jsonb) RETURNS void
LANGUAGE plpgsql AS
	$$BEGIN RAISE serialization_failure; END$$;
CREATE FUNCTION public.long_note(arg jsonb) RETURNS void LANGUAGE sql AS
	$$INSERT INTO public.reviews (id, note)
	  VALUES ((arg->>'id')::int, repeat('x', 100))$$;

-- what PREPARE does not allow, with and without work beside
CREATE FUNCTION public.run(arg jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	IF arg ? 'id' THEN
		INSERT INTO public.reviews (id) VALUES ((arg->>'id')::int);
	END IF;
	EXECUTE arg->>'do';
END$$;
CREATE FUNCTION public.run_as_worker(arg jsonb) RETURNS void
LANGUAGE plpgsql AS $$BEGIN EXECUTE arg->>'do'; END$$;
CREATE FUNCTION public.secret(arg jsonb) RETURNS void LANGUAGE sql AS '';

SELECT tpc_amqp.register_handler(f, ('public.' || f || '(jsonb)')::regprocedure)
	FROM unnest('{refuse,defer,serialization,long_note,run}'::text[]) f;
SELECT tpc_amqp.register_handler('run_as_worker',
	'public.run_as_worker(jsonb)', 'worker');
SELECT tpc_amqp.register_handler('secret', 'public.secret(jsonb)',
	callers => '{stock}');
SELECT tpc_amqp.register_handler('gone', 'public.secret(jsonb)');
EOS
);
TpcPair::connected($blog, $reviews);

my $id = 0;

# refused NAME, SQLSTATE, REGEXP, SECONDS, OPTIONS: of a transaction with
# these options; returns its messages.  SECONDS is the bound on its time, with
# a margin for slow machines on top.
my $margin = 8;

sub refused
{
	my ($name, $sqlstate, $regexp, $seconds, %opts) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $start = time();

	$id++;
	my $err = eval { $blog->fails(TpcPair::transaction($id, %opts)) } // $@;
	my $took = time() - $start;

	return check_refused($name, $sqlstate, $regexp, $seconds, $took, $err);
}

# Of a query that was started beside; finish() of it.
sub run_refused
{
	my ($run, $name, $sqlstate, $regexp, $seconds) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $start = time();
	my ($out, $err, $rc) = $run->finish;

	return check_refused($name, $sqlstate, $regexp, $seconds,
		time() - $start, $err);
}

sub check_refused
{
	my ($name, $sqlstate, $regexp, $seconds, $took, $err) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my ($is) = $err =~ /(?:ERROR|FATAL):  ([0-9A-Z]{5}):/;

	like($is // $err, qr/^(?:$sqlstate)$/, "$name: SQLSTATE")
	  or diag($err);
	like($err, $regexp, "$name: message");
	cmp_ok($took, '<=', $seconds + $margin, "$name: within its time");
	return $err;
}

# rolled_back NAME: what the last transaction named is nowhere.
sub rolled_back
{
	my ($name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	ok(TpcPair::settled(30, $blog, $reviews), "$name: nothing is in doubt")
	  or diag($TpcTest::last_seen);
	is(TpcPair::blog_has($blog, $id) . TpcPair::reviews_has($reviews, $id),
		'00', "$name: rolled back on both nodes");
	return;
}

sub works
{
	my ($name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	TpcPair::connected($blog, $reviews);
	$id++;
	my (undef, $err, $rc) = $blog->try(TpcPair::transaction($id));
	is("$rc $err" . TpcPair::reviews_has($reviews, $id),
		'0 1', "$name: transactions commit again");
	return;
}

# Options of a transaction that calls handler run.
sub do_there
{
	my ($sql, %more) = @_;
	my $arg = '{' . (exists $more{id} ? qq("id": $more{id}, ) : '')
	  . qq("do": "$sql"}) ;
	$arg =~ s/'/''/g;
	return (handler => $more{handler} // 'run', arg => $arg);
}

# ---------------------------------------------------------------------------
# The handler says no

my $err = refused('a handler raises', 'TP123', qr/no apples for 1$/m, 0,
	handler => 'refuse');
like($err, qr/^DETAIL:  They are sold\.$/m, '... its detail');
like($err, qr/^HINT:  Try pears\.$/m, '... its hint');
like($err, qr/^CONTEXT: .*PL\/pgSQL function refuse.*node "reviews"/ms,
	'... its context, and which node it was');
rolled_back('a handler raises');
is($blog->sql('SELECT votes_no FROM tpc_amqp.stat'), 1, '... it is counted');

refused('a constraint', 23514, qr/violates check constraint "short_note"/, 0,
	handler => 'long_note');
rolled_back('a constraint');
refused('a deferred constraint', 23505, qr/strict_pkey/, 0,
	handler => 'defer');
rolled_back('a deferred constraint');
refused('a serialization failure', 40001, qr/serialization_failure/, 0,
	handler => 'serialization');
rolled_back('a serialization failure');

# ---------------------------------------------------------------------------
# There is nobody to ask

refused('an unknown node', 42704, qr/node "nowhere" is not known/, 0,
	to => 'nowhere');
rolled_back('an unknown node');
refused('an unknown node among others',
	42704, qr/node "nowhere" is not known/, 0,
	after => q{SELECT tpc_amqp.call('nowhere', 'x');});
rolled_back('an unknown node among others');
refused('an unknown handler', 42883, qr/handler "none" does not exist/, 0,
	handler => 'none');
rolled_back('an unknown handler');
refused('a caller that is not allowed', 42501,
	qr/node "blog" may not call handler "secret"/, 0, handler => 'secret');
rolled_back('a caller that is not allowed');
$reviews->sql("SELECT tpc_amqp.unregister_handler('secret');
	DROP FUNCTION public.secret");
refused('a function that is gone', 42883,
	qr/function public\.secret\(pg_catalog\.jsonb\) does not exist/, 0,
	handler => 'gone');

# ---------------------------------------------------------------------------
# What PREPARE does not allow

# (Background processes are never allowed to LISTEN.)
my $cannot = qr/cannot PREPARE|cannot execute LISTEN/;
my @forbidden = (
	[ 'a temporary table', 'CREATE TEMP TABLE t (x int)' ],
	[ 'NOTIFY', 'NOTIFY n' ],
	[ 'LISTEN', 'LISTEN n' ],
	[ 'a cursor WITH HOLD',
		'DECLARE c CURSOR WITH HOLD FOR SELECT * FROM public.reviews' ]);
for my $case (@forbidden)
{
	my ($name, $sql) = @$case;

	refused("$name in a handler", '0A000', $cannot, 0,
		do_there($sql, id => $id + 1));
	rolled_back("$name in a handler");
	refused("$name in a handler that only reads",
		'0A000', $cannot, 0, do_there($sql));
	rolled_back("$name in a handler that only reads");
}
is($reviews->sql("SELECT count(*) FROM pg_class WHERE relname = 't'"),
	0, 'no temporary table is left');

# A handler keeps its role.
for my $sql ('SET ROLE postgres', 'RESET ROLE',
	'SET SESSION AUTHORIZATION postgres', 'RESET SESSION AUTHORIZATION',
	'SET LOCAL ROLE postgres')
{
	my $superuser = $reviews->sql('SELECT current_user');
	(my $there = $sql) =~ s/postgres/$superuser/;
	refused("$sql in a handler", 42501, qr/cannot set parameter/, 0,
		do_there($there, handler => 'run_as_worker'));
}
rolled_back('roles');
refused('what its role may not do', 42501,
	qr/permission denied for table reviews/, 0,
	do_there('DELETE FROM public.reviews', handler => 'run_as_worker'));
rolled_back('what its role may not do');

refused('a handler that calls a node that refuses', '42883',
	qr/handler "x" does not exist/, 0,
	do_there(
		"SELECT tpc_amqp.call('blog', 'x')",
		id => $id + 1));
rolled_back('a handler that calls a node that refuses');

works('after all that');

# ---------------------------------------------------------------------------
# Time

refused('a handler past the deadline', '57014',
	qr/did not finish before the transaction's deadline/, 2,
	handler => 'slow',
	arg => '{"id": 0, "seconds": 60}',
	set => { prepare_timeout => '2s' });
rolled_back('a handler past the deadline');

my $locker = $reviews->session;
$locker->query_safe("BEGIN; UPDATE public.stock SET amount = amount");
$reviews->cluster->append_conf('postgresql.conf',
	"tpc_amqp.lock_timeout = '500ms'\n");
$reviews->cluster->reload;
TpcTest::poll_until(
	sub { $reviews->sql('SHOW tpc_amqp.lock_timeout') eq '500ms' },
	'the reload');
refused('a lock that is not available', '55P03',
	qr/canceling statement due to lock timeout/, 1,
	handler => 'take',
	arg => '{"item": "apple", "amount": 1}');
rolled_back('a lock that is not available');
$reviews->cluster->append_conf('postgresql.conf',
	"tpc_amqp.lock_timeout = '60s'\n");
$reviews->cluster->reload;

# hold: start a transaction that waits for the votes of a handler that waits
# for that lock.
sub hold
{
	my $run = $blog->start(
		TpcPair::transaction(
			++$id,
			handler => 'take',
			arg => '{"item": "apple", "amount": 1}',
			set => { prepare_timeout => '60s' }));
	TpcPair::branch_is($reviews, 'running');
	return $run;
}

# branch_gone NAME: the participant has heard of it, too.
sub branch_gone
{
	my ($name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	ok( eval {
			$reviews->poll('SELECT count(*) = 0 FROM tpc_amqp.branches');
		},
		"$name: the handler is cancelled")
	  or diag($@);
	return;
}

my $run = hold();
my $pid = TpcPair::backend($blog, "query = 'COMMIT;'");
is($blog->sql("SELECT wait_event_type FROM pg_stat_activity
	WHERE pid = $pid"), 'Extension', 'COMMIT shows as waiting');
$blog->sql("SELECT pg_cancel_backend($pid)");
run_refused($run, 'cancel', '57014', qr/due to user request/, 0);
branch_gone('cancel');
rolled_back('cancel');

$run = hold();
$pid = TpcPair::backend($blog, "query = 'COMMIT;'");
$blog->sql("SELECT pg_terminate_backend($pid)");
run_refused($run, 'terminate', '57P01', qr/administrator command/, 0);
branch_gone('terminate');
rolled_back('terminate');

# The worker that runs the handler ends.
$run = hold();
$pid = $reviews->sql("SELECT pid FROM tpc_amqp.branches
	WHERE state = 'running'");
$reviews->sql("SELECT pg_terminate_backend($pid)");
run_refused($run, 'a prepare worker is terminated', '57P01',
	qr/terminated|terminating/, 0);
branch_gone('a prepare worker is terminated');
rolled_back('a prepare worker is terminated');

$locker->query_safe('ROLLBACK');
$locker->quit;
works('after locks and signals');

# ---------------------------------------------------------------------------
# Places for prepared transactions: 100 of them are taken

$reviews->sql(join '', map { "BEGIN; SELECT txid_current();
	PREPARE TRANSACTION 'taken $_';" } (1 .. 100));
refused('no place for a prepared transaction', 53200,
	qr/maximum number of prepared transactions reached/, 0);
is(TpcPair::blog_has($blog, $id), 0,
	'no place for a prepared transaction: rolled back');
$reviews->sql(join '', map { "ROLLBACK PREPARED 'taken $_';" } (1 .. 100));
rolled_back('no place for a prepared transaction');
works('after that');

# ---------------------------------------------------------------------------
# The participant does not answer

my @short = (set => { prepare_timeout => '1s' });
my $silence = qr/no vote from node "reviews" within 1000 ms/;

$reviews->cluster->stop('fast');
refused('the participant is down', 40000, $silence, 1, @short);
$reviews->cluster->start;
TpcPair::connected($reviews);
rolled_back('the participant is down');

my @pids = split /\n/, $reviews->sql(
	'SELECT unnest(messenger_pid || prepare_pids || resolve_pids)
	FROM tpc_amqp.node');
TpcTest->freeze(@pids);
refused('the participant is frozen', 40000, $silence, 1, @short);
TpcTest->thaw(@pids);
rolled_back('the participant is frozen');

TpcTest->freeze($pids[0]);
refused('its messenger is frozen', 40000, $silence, 1, @short);
TpcTest->thaw(@pids);
rolled_back('its messenger is frozen');
works('after that');

# ---------------------------------------------------------------------------
# The broker does not work

TpcTest->freeze($blog->sql('SELECT messenger_pid FROM tpc_amqp.node'));
refused("the coordinator's messenger is frozen", 40000, $silence, 1, @short);
TpcTest->thaw($blog->sql('SELECT messenger_pid FROM tpc_amqp.node'));
rolled_back("the coordinator's messenger is frozen");

$broker->freeze;
refused('the broker is frozen', '40000|08.*', qr/no vote|not connected/, 1,
	@short);
$broker->thaw;
works('after the broker was frozen');

$broker->block;
# A connection is blocked when it publishes next.
$blog->try(TpcPair::transaction(++$id, @short));
$blog->poll('SELECT blocked FROM tpc_amqp.node');
refused('the broker is out of memory', 53000,
	qr/does not accept messages at present/, 0);
like($blog->sql('SELECT last_error FROM tpc_amqp.node'),
	qr/connection blocked: low on memory/, '... which view node shows');
$broker->unblock;
$blog->poll('SELECT NOT blocked FROM tpc_amqp.node');
rolled_back('the broker is out of memory');
works('after the broker was out of memory');

$broker->stop;
$blog->poll("SELECT state = 'disconnected' FROM tpc_amqp.node");
refused('the broker is down', '08...', qr/node "blog" is not connected/, 0);
is(TpcPair::blog_has($blog, $id), 0, 'the broker is down: rolled back');
is($blog->sql('SELECT string_agg(t::text, chr(10)) FROM tpc_amqp.transactions t
	WHERE state NOT IN ($$committed$$, $$finished$$)'), '', 'the broker is down: no entry is left');
$blog->sql('INSERT INTO public.blogs VALUES (-1)');
pass('the broker is down: other transactions commit');
$broker->start;
works('after the broker was down');

# ---------------------------------------------------------------------------

TpcTest->no_prepared($blog->cluster, $reviews->cluster);
is( $blog->sql("SELECT string_agg(id::text, ' ' ORDER BY id)
		FROM public.blogs WHERE id > 0"),
	$reviews->sql("SELECT string_agg(id::text, ' ' ORDER BY id)
		FROM public.reviews"),
	'both nodes have the same');
is($blog->sql('SELECT string_agg(t::text, chr(10)) FROM tpc_amqp.transactions t
	WHERE state NOT IN ($$committed$$, $$finished$$)'), '', 'no entry is left');
TpcTest->no_crash('no crash', $blog, $reviews);

done_testing();

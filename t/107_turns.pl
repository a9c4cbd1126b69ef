# Who of several subscriptions is worked for: what hangs in some of them holds
# up no other, for those that wait are lent workers; those with workers of their
# own share nothing.

use strict;
use warnings;

use PostgreSQL::Test::Utils;
use Test::More;
use TpcAmqp;
use TpcTest;

my $broker = TpcTest::Broker->of_this_file;
my $amqp = TpcAmqp->new($broker);
my $cluster = TpcTest->new_cluster('turns', <<'EOC');
autovacuum = off
tpc_amqp.lock_timeout = 0
EOC
my $shop = TpcTest->new_node($cluster, 'turns', 'turns', broker => $broker,
	setup => <<'EOS');
CREATE TABLE public.done (
	n bigint GENERATED ALWAYS AS IDENTITY, queue text, body text, pid int);
-- "hang …" waits until the test lets go; "late …" fails first, and hangs then;
-- "flaky …" fails first
CREATE FUNCTION public.take(arg jsonb) RETURNS void LANGUAGE plpgsql AS $$
	DECLARE
		body text := arg->>'body';
		again bool := (arg->>'delivery_count')::int > 1;
	BEGIN
		IF body LIKE 'hang%' OR body LIKE 'late%' AND again THEN
			PERFORM pg_advisory_xact_lock_shared(7);
		ELSIF body LIKE 'late%' OR body LIKE 'flaky%' AND NOT again THEN
			RAISE EXCEPTION 'bad';
		END IF;
		INSERT INTO public.done (queue, body, pid)
			VALUES (arg->>'queue', body, pg_backend_pid());
	END $$;
SELECT tpc_amqp.register_handler('take', 'public.take(jsonb)');
EOS
$shop->poll("SELECT state = 'connected' FROM tpc_amqp.node");

my $serial = 0;
my @sent;

# Send bodies to a queue; none of them is to be lost, or to come twice.
sub send_to
{
	my ($queue, @bodies) = @_;
	$amqp->send('', $queue,
		map { TpcAmqp->user($_, message_id => 'm' . ++$serial) } @bodies);
	push @sent, map { "$queue $_" } @bodies;
	return;
}

sub subscribe
{
	my ($queue, $more) = @_;
	$more = defined $more ? ", $more" : '';
	$shop->sql("SELECT tpc_amqp.subscribe('$queue', 'take',
		on_error => '{\"retries\": 2, \"backoff\": 50}'$more)");
	$shop->poll("SELECT state = 'active' FROM tpc_amqp.subscriptions
		WHERE queue = '$queue'");
	return;
}

sub taken
{
	my ($queue, $body, $what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	$shop->poll("SELECT count(*) = 1 FROM public.done
		WHERE queue = '$queue' AND body = '$body'");
	return pass($what);
}

# Nothing is under way, and all that was sent took effect once.
sub settled
{
	my ($what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $n = @sent;
	$shop->poll("SELECT count(*) >= $n FROM public.done");
	$shop->poll('SELECT bool_and(waiting = 0 AND running = 0 AND lag = 0)
		FROM tpc_amqp.subscriptions');
	$shop->poll('SELECT count(*) = 0 FROM tpc_amqp.failed_messages');
	is($shop->sql("SELECT string_agg(queue || ' ' || body, ',' ORDER BY
			queue COLLATE \"C\", body COLLATE \"C\") FROM public.done"),
		join(',', sort @sent), $what);
	$shop->sql('TRUNCATE public.done');
	@sent = ();
	return;
}

sub workers_are
{
	my ($n, $what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	$shop->poll("SELECT count(*) = $n FROM pg_stat_activity
		WHERE backend_type = 'tpc_amqp consume worker'");
	return pass($what);
}

sub running
{
	my ($queue, $n) = @_;
	return $shop->poll("SELECT running = $n FROM tpc_amqp.subscriptions
		WHERE queue = '$queue'");
}

my $lock;

sub hold
{
	$lock = $shop->session;
	$lock->query_safe('SELECT pg_advisory_lock(7)');
	return;
}

sub let_go
{
	$lock->query_safe('SELECT pg_advisory_unlock(7)');
	$lock->quit;
	return;
}

sub hanging
{
	my ($n) = @_;
	return $shop->poll("SELECT count(*) >= $n FROM pg_locks
		WHERE locktype = 'advisory' AND NOT granted");
}

$amqp->declare($_) for qw(a b c d);
subscribe($_) for qw(a b c d);
workers_are(2, 'two workers');

# ---- one that is alone has all of them

hold();
send_to('a', map { "hang $_" } 1 .. 3);
running('a', 2);
pass('one subscription has all workers while it is alone');
let_go();
settled('and has its messages done');

# ---- three that hang do not hold up a fourth

hold();
send_to('a', map { "hang $_" } 1 .. 3);
running('a', 2);
send_to($_, map { "hang $_" } 1 .. 3) for qw(b c);
running($_, 1) for qw(b c);
send_to('d', 'quick');
taken('d', 'quick', 'handlers that hang in all workers hold up no other');
send_to('d', map { "quick $_" } 1 .. 20);
taken('d', 'quick 20', 'nor those after it');
workers_are(4, 'a worker that has nothing to do is not lent any longer');
is( $shop->sql("SELECT string_agg(running || ' ' || waiting, ', '
		ORDER BY queue) FROM tpc_amqp.subscriptions"),
	'2 1, 1 2, 1 2, 0 0', 'each subscription is lent one at most');
let_go();
settled('all of it is done, once');
is( $shop->sql('SELECT sum(failed), sum(retried), sum(deferred)
		FROM tpc_amqp.subscriptions'),
	'0|0|0', 'and nothing was interrupted');
workers_are(2, 'then there are two workers again');

# ---- nor do their retries, nor do they hold up those of others

hold();
send_to($_, map { "late $_" } 1 .. 3) for qw(a b c);
hanging(2);
send_to('d', 'flaky');
taken('d', 'flaky', 'retries that hang hold up neither a message nor its retry');
let_go();
settled('which are done in the end, once');
is( $shop->sql("SELECT queue, failed, kept FROM tpc_amqp.subscriptions
		WHERE queue <> 'd' ORDER BY queue"),
	"a|3|0\nb|3|0\nc|3|0", 'each failed once');

# A message that a person has run again is found by nobody else then.
hold();
$shop->sql("SELECT tpc_amqp.subscribe('d', 'take',
	on_error => '{\"retries\": 0}')");
send_to('d', 'flaky again');
$shop->poll("SELECT count(*) = 1 FROM tpc_amqp.failed_messages
	WHERE state = 'kept'");
workers_are(2, 'two workers');
send_to('a', map { "hang $_" } 1 .. 2);
hanging(2);
$shop->sql("UPDATE tpc_amqp.failed_message SET body = 'quick again'");
$shop->sql('SELECT tpc_amqp.retry_message(id) FROM tpc_amqp.failed_messages');
$shop->poll("SELECT count(*) = 1 FROM public.done
	WHERE body = 'quick again'");
pass('nor one that is to be run again');
$sent[-3] = 'd quick again';
let_go();
settled('all of it is done');

# ---- workers of one's own

$shop->sql('ALTER SYSTEM SET tpc_amqp.consume_workers = 1');
$cluster->reload;
workers_are(1, 'one shared worker');
subscribe('d', 'workers => 2');
workers_are(3, 'workers of its own');
is( $shop->sql("SELECT string_agg(workers::text, ' ' ORDER BY queue)
		FROM tpc_amqp.subscriptions"),
	'0 0 0 2', 'are shown');
hold();
send_to('a', 'hang');
running('a', 1);
send_to('b', 'quick');
send_to('d', 'quick', 'flaky');
taken('d', 'quick', 'a message is run by workers of its own');
taken('d', 'flaky', '... and so is its retry');
send_to('d', map { "hang $_" } 1 .. 3);
running('d', 2);
pass('they work at a time');
send_to('c', 'last');
taken('b', 'quick', 'who shares one that hangs is lent another one');
taken('c', 'last', '... each');
is( $shop->sql("SELECT count(*) FROM public.done
		WHERE queue IN ('b', 'c') AND pid IN (
			SELECT pid FROM public.done WHERE queue = 'd')"),
	0, 'which is nobody\'s own');

# Who has a run going is lent none.
send_to('a', map { "quick $_" } 1 .. 5);
workers_are(3, 'those that were lent leave');
is( $shop->sql("SELECT waiting FROM tpc_amqp.subscriptions
		WHERE queue = 'a'"),
	5, 'a subscription waits for itself');
let_go();
settled('all of it is done');

# ---- the number changes

subscribe('d', 'workers => 3');
workers_are(4, 'more of them');
subscribe('d', 'workers => 1');
workers_are(2, 'fewer');
send_to('d', 1 .. 20);
settled('it goes on');
hold();
send_to('d', 'hang');
running('d', 1);
my $pid = $shop->sql("SELECT pid FROM pg_locks
	WHERE locktype = 'advisory' AND NOT granted");
$shop->sql("SELECT pg_terminate_backend($pid)");
$shop->poll("SELECT count(*) = 1 FROM pg_locks
	WHERE locktype = 'advisory' AND NOT granted AND pid <> $pid");
let_go();
settled('a worker that is terminated has a successor');
subscribe('d', 'workers => 0');
workers_are(1, 'back to the shared ones');
send_to('d', 'shared');
settled('which work for it');

# Messages in memory go back when workers change, and with them.
subscribe('d', 'workers => 1');
hold();
send_to('d', map { "hang $_" } 1 .. 5);
$shop->poll("SELECT running = 1 AND waiting = 4 FROM tpc_amqp.subscriptions
	WHERE queue = 'd'");
for my $body (1, 2)
{
	send_to('a', $body);
	taken('a', $body, 'a shared worker has nothing to do with that');
}
$shop->sql("SELECT tpc_amqp.subscribe('d', 'take')");
let_go();
settled('what was in memory is run by others');
workers_are(1, 'and the own worker has left');

# ---- over a restart, and detached

subscribe('d', 'workers => 2');
$cluster->restart;
$shop->poll("SELECT bool_and(state = 'active') FROM tpc_amqp.subscriptions");
workers_are(3, 'a restart changes nothing');
send_to('d', 1 .. 5);
settled('it goes on');
$shop->detach;
$shop->poll("SELECT count(*) = 0 FROM pg_stat_activity
	WHERE backend_type = 'tpc_amqp consume worker'");
pass('detached');
$shop->attach;
workers_are(3, 'attached again');
send_to('d', 1 .. 5);
settled('it goes on');

# ---- more than there are worker slots for

my $offset = TpcTest->log_size($cluster);
subscribe('d', 'workers => 64');
TpcTest->wait_for_log($cluster, qr/It needs \d\d processes/, $offset);
send_to('d', 1 .. 5);
settled('those that there are work');
hold();
send_to('a', 'hang');
hanging(1);
$offset = TpcTest->log_size($cluster);
send_to('b', 'quick');
TpcTest->wait_for_log($cluster,
	qr/subscriptions of node "turns" wait for workers/, $offset);
is($shop->sql("SELECT count(*) FROM public.done WHERE queue = 'b'"),
	0, 'without a worker slot, others wait');
let_go();
settled('until a worker is free');
$shop->sql("SELECT tpc_amqp.unsubscribe('d')");
workers_are(1, 'unsubscribed, they leave');

# ---- a duplicate whose first run is not finished does not count as a failure

$shop->sql("SELECT tpc_amqp.subscribe('d', 'take', workers => 2,
	on_error => '{\"retries\": 0}')");
$shop->poll("SELECT state = 'active' FROM tpc_amqp.subscriptions
	WHERE queue = 'd'");
hold();
$amqp->send('', 'd', TpcAmqp->user('hang', message_id => 'twin'));
running('d', 1);
$shop->poll('SELECT count(*) = 1 FROM pg_locks
	WHERE locktype = \'advisory\' AND NOT granted');
$amqp->send('', 'd', TpcAmqp->user('hang', message_id => 'twin'));
$shop->poll("SELECT deferred >= 3 FROM tpc_amqp.subscriptions
	WHERE queue = 'd'");
is( $shop->sql("SELECT queue, state, attempts <= 1, error
		FROM tpc_amqp.failed_messages"),
	'd|retry|t|', 'a duplicate is put off while the first run goes on');
$shop->poll("SELECT next_attempt_at > received_at + '6 s'
	FROM tpc_amqp.failed_messages");
is($shop->sql("SELECT deferred <= 5 FROM tpc_amqp.subscriptions
	WHERE queue = 'd'"), 't', '... twice as long each time');
let_go();
$shop->poll("SELECT duplicates = 1 FROM tpc_amqp.subscriptions
	WHERE queue = 'd'");
$shop->poll('SELECT count(*) = 0 FROM tpc_amqp.failed_messages');
is( $shop->sql("SELECT processed, failed, kept FROM tpc_amqp.subscriptions
		WHERE queue = 'd'"),
	'1|0|0', 'and found to be one when that has committed');

# ... and takes its place if that comes to nothing.
hold();
$amqp->send('', 'd', TpcAmqp->user('hang', message_id => 'other'));
$shop->poll('SELECT count(*) = 1 FROM pg_locks
	WHERE locktype = \'advisory\' AND NOT granted');
$amqp->send('', 'd', TpcAmqp->user('quick', message_id => 'other'));
$shop->poll("SELECT count(*) = 1 FROM tpc_amqp.failed_messages");
$shop->sql("SELECT pg_cancel_backend(pid) FROM pg_locks
	WHERE locktype = 'advisory' AND NOT granted");
$shop->poll("SELECT processed = 2 FROM tpc_amqp.subscriptions
	WHERE queue = 'd'");
is( $shop->sql("SELECT body FROM public.done ORDER BY n DESC LIMIT 1"),
	'quick', 'it takes effect if the first one does not');
let_go();

# ---- workers of one node take no slot that another node's messenger needs

my $other = TpcTest->new_node($cluster, 'turns2', 'turns2', broker => $broker);
$other->poll("SELECT state = 'connected' FROM tpc_amqp.node");
$offset = TpcTest->log_size($cluster);
subscribe('d', 'workers => 64');
TpcTest->wait_for_log($cluster, qr/It needs \d\d processes/, $offset);
$pid = $other->sql('SELECT messenger_pid FROM tpc_amqp.node');
$other->sql("SELECT pg_terminate_backend($pid)");
$other->poll("SELECT messenger_pid <> $pid AND state = 'connected'
	FROM tpc_amqp.node");
pass("another node has its messenger back although slots are short");

done_testing();

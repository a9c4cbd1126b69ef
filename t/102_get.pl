# Messages taken by hand: acknowledged if and only if the transaction commits,
# whatever becomes of the session, the server, the messenger and the broker.

use strict;
use warnings;

use Cwd;
use File::Basename;
use PostgreSQL::Test::Utils;
use Test::More;
use TpcAmqp;
use TpcTest;

my $source;
BEGIN { $source = Cwd::realpath(dirname(__FILE__)) . '/../src' }

my $broker = TpcTest::Broker->of_this_file;
my $amqp = TpcAmqp->new($broker);
my $cluster = TpcTest->new_cluster('shop', <<'EOC');
autovacuum = off
tpc_amqp.max_payload = 64kB
tpc_amqp.resolve_interval = '200ms'
EOC
my $shop = TpcTest->new_node($cluster, 'shop', 'shop', setup => <<'EOS');
CREATE TABLE public.done (n bigint GENERATED ALWAYS AS IDENTITY, body text);
CREATE FUNCTION public.take(queue text DEFAULT 'q') RETURNS text LANGUAGE sql AS
	$$WITH m AS (SELECT convert_from(body, 'UTF8') AS body FROM tpc_amqp.get($1))
	  INSERT INTO public.done (body) SELECT body FROM m RETURNING body$$;
EOS
my $store = TpcTest->new_node($cluster, 'store', 'store', setup => <<'EOS');
CREATE TABLE public.booked (body text);
CREATE FUNCTION public.book(arg jsonb) RETURNS void LANGUAGE sql AS
	$$INSERT INTO public.booked VALUES ($1 #>> '{}')$$;
CREATE FUNCTION public.fetch(arg jsonb) RETURNS void LANGUAGE sql AS
	$$INSERT INTO public.booked
	  SELECT convert_from(body, 'UTF8') FROM tpc_amqp.get('q', ($1->>'auto')::bool)$$;
SELECT tpc_amqp.register_handler('book', 'public.book(jsonb)');
SELECT tpc_amqp.register_handler('fetch', 'public.fetch(jsonb)');
EOS
$_->poll("SELECT state = 'connected' FROM tpc_amqp.node") for $shop, $store;
$shop->sql("SELECT tpc_amqp.declare_queue('q'), tpc_amqp.declare_queue('other')");

my $serial = 0;

# put BODY…: messages with an id
sub put
{
	$amqp->send('', 'q',
		map { TpcAmqp->user($_, message_id => 'm' . ++$serial) } @_);
	return;
}

# What is ready to be delivered.
sub left
{
	my ($queue) = @_;
	return $shop->sql("SELECT messages FROM tpc_amqp.declare_queue('"
		  . ($queue // 'q') . "', passive => true)");
}

sub left_is
{
	my ($count, $name, $queue) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $seen;

	eval {
		TpcTest::poll_until(sub { ($seen = left($queue)) == $count }, $name);
	};
	return is($seen, $count, $name);
}

sub done_is
{
	my ($expected, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return is(
		$shop->sql("SELECT coalesce(string_agg(body, ' ' ORDER BY n), '')
			FROM public.done"), $expected, $name);
}

# afresh BODY…: nothing is done, and that is in the queue
sub afresh
{
	$shop->sql('TRUNCATE public.done');
	$shop->sql("SELECT tpc_amqp.purge_queue('q')");
	$store->sql('TRUNCATE public.booked');
	put(@_);
	return;
}

sub nothing_held
{
	my ($name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return ok(
		eval { $_->poll('SELECT count(*) = 0 FROM tpc_amqp.requests')
			  for $shop, $store; 1 },
		"$name: no place is taken any more") || diag $@;
}

# ---------------------------------------------------------------------------
# The end of the transaction

afresh(qw(a b c));
is($shop->sql('BEGIN; SELECT public.take(); SELECT public.take(); COMMIT'),
	"a\nb", 'two messages are taken');
left_is(1, 'committed: they are gone');
$shop->sql('BEGIN; SELECT public.take(); ROLLBACK');
left_is(1, 'rolled back: it is in its queue again');
is($shop->sql("SELECT redelivered FROM tpc_amqp.get('q')"),
	't', '... and says that it has been delivered before');
left_is(0, 'a statement is a transaction');
is($shop->sql("SELECT count(*) FROM tpc_amqp.get('q')"),
	0, 'an empty queue: no row');
done_is('a b', 'what has committed is done');
nothing_held('ends');

# What one message says
$amqp->send('', 'q', TpcAmqp->user("\0\xff", message_id => 'id',
	content_type => 'application/octet-stream'));
$amqp->send('', 'q', TpcAmqp->plain('plain'));
is($shop->sql("SELECT * FROM tpc_amqp.get('q')"),
	'\x00ff|{"message_id": "id", "content_type": "application/octet-stream"}|q||f|1',
	'a message with properties');
is($shop->sql("SELECT * FROM tpc_amqp.get('q')"),
	'\x706c61696e|{}|q||f|0', '... and one with none');

# A session that goes
afresh('a');
my $client = $shop->client;
$client->run('BEGIN; SELECT public.take()');
is($shop->sql('SELECT state, request, object FROM tpc_amqp.requests'),
	'held|get|q', 'view requests shows who has taken messages');
$shop->sql("SELECT pg_terminate_backend(pid) FROM tpc_amqp.requests");
left_is(1, 'terminated: it is in its queue again');
$client->close;

# Savepoints
afresh(qw(a b c d e));
$client = $shop->client;
$client->run($_)
  for 'BEGIN', 'SELECT public.take()', 'SAVEPOINT s',
  'SELECT public.take()', 'SAVEPOINT t', 'SELECT public.take()',
  'RELEASE t';
left_is(2, 'in a savepoint: three are taken');
$client->run('ROLLBACK TO s');
left_is(4, '... of which two come back with it');
$client->run($_)
  for 'SAVEPOINT u', 'SELECT public.take()', 'RELEASE u',
  'SELECT public.take()', 'SAVEPOINT v', 'SELECT public.take()',
  'ROLLBACK TO v';
$client->run('COMMIT');
left_is(2, '... and can be taken again');
done_is('a b c', '... all in their order');
nothing_held('savepoints');

# A loop with an exception block for each
afresh(1 .. 50);
$shop->sql(<<'EOS');
DO $$
BEGIN
	FOR i IN 1 .. 50 LOOP
		BEGIN
			IF (public.take())::int % 2 = 0 THEN
				RAISE EXCEPTION 'odd ones only';
			END IF;
		EXCEPTION WHEN raise_exception THEN
			-- it comes again at once
			PERFORM FROM tpc_amqp.get('q');
		END;
	END LOOP;
END $$
EOS
is($shop->sql('SELECT count(*), sum(body::int) FROM public.done'),
	'25|625', 'an exception block for each message');
left_is(0, '... of which none is left');

# Without waiting for the commit
afresh(qw(a b));
$shop->sql("BEGIN; SELECT FROM tpc_amqp.get('q', auto_ack => true); ROLLBACK");
left_is(1, 'auto_ack: a rollback does not bring it back');

# ---------------------------------------------------------------------------
# Where it cannot be

like($shop->fails("BEGIN; SELECT public.take(); PREPARE TRANSACTION 'g'"),
	qr/ERROR:  0A000: cannot PREPARE a transaction that has taken messages/,
	'PREPARE TRANSACTION is refused');
$shop->sql("BEGIN; SAVEPOINT s; SELECT public.take(); ROLLBACK TO s;
	PREPARE TRANSACTION 'g'; ROLLBACK PREPARED 'g'");
pass('... but not if they have gone back');
left_is(1, '... which they have');
like($shop->fails("SELECT tpc_amqp.call('store', 'fetch', '{\"auto\": false}')"),
	qr/ERROR:  0A000: cannot take a message in a branch/,
	'a handler that is going to be prepared cannot take one');
$shop->sql("SELECT tpc_amqp.call('store', 'fetch', '{\"auto\": true}')");
is($store->sql('SELECT body FROM public.booked'), 'b', '... unless for good');
like($shop->fails("BEGIN READ ONLY; SELECT tpc_amqp.get('q')"),
	qr/ERROR:  25006: /, 'a read-only transaction is refused');
like($shop->fails("SELECT tpc_amqp.get('tpc_amqp.shop.vote')"),
	qr/ERROR:  42939: queue name "tpc_amqp.shop.vote" is reserved/,
	'the protocol\'s queues are reserved');
like($shop->fails("SELECT tpc_amqp.get('nothing')"),
	qr/ERROR:  42704: NOT_FOUND/, 'a queue that is not there');

# Refusals concern their own queue only
afresh(qw(a b));
$shop->sql(<<'EOS');
DO $$
BEGIN
	PERFORM public.take();
	BEGIN
		PERFORM tpc_amqp.get('nothing');
	EXCEPTION WHEN undefined_object THEN NULL;
	END;
	PERFORM public.take();
END $$
EOS
left_is(0, 'another queue that is not there: what was taken stays so');
done_is('a b', '... and is done');

# Too large
$amqp->send('', 'q', TpcAmqp->user('x' x 70_000));
put('small');
like($shop->fails("SELECT tpc_amqp.get('q')"),
	qr/ERROR:  54000: the next message of queue "q" is too large/,
	'a message that is larger than max_payload');
left_is(2, '... stays');
like($shop->fails("SELECT tpc_amqp.get('q', auto_ack => true)"),
	qr/ERROR:  54000: /, '... with auto_ack, too');
left_is(2, '... stays');

# ---------------------------------------------------------------------------
# The channel is lost before the commit

# reconnects CODE: the node has another connection after it
sub reconnects
{
	my ($code) = @_;
	my $before = $shop->counter('connects');
	$code->();
	return $shop->poll("SELECT connects > $before AND state = 'connected'
		FROM tpc_amqp.stat, tpc_amqp.node");
}

afresh(qw(a b));
$client = $shop->client;
$client->run('BEGIN; SELECT public.take()');
reconnects(sub { $broker->close_connections });
ok(!$client->run('COMMIT'), 'connection lost: COMMIT fails');
like($client->err,
	qr/ERROR:  08006: the messages taken of queue "q" have gone back to it/,
	'... and says why');
done_is('', '... and nothing is done');
left_is(2, '... and nothing taken');
$client->run('BEGIN; SELECT public.take()');
reconnects(
	sub {
		$shop->sql('SELECT pg_terminate_backend(messenger_pid)
			FROM tpc_amqp.node');
	});
ok(!$client->run('SELECT public.take()'),
	'messenger ended: another one cannot be taken');
like($client->err, qr/ERROR:  08006: the messages taken of queue "q"/,
	'... for the transaction cannot commit');
$client->run('ROLLBACK');
# lost, but put back before
$client->run($_) for 'BEGIN', 'SAVEPOINT s', 'SELECT public.take()',
  'ROLLBACK TO s';
reconnects(sub { $broker->close_connections });
$amqp = TpcAmqp->new($broker);
ok($client->run('SELECT public.take()') && $client->run('COMMIT'),
	'connection lost after what was taken went back: it can be taken again')
  or diag $client->err;
done_is('a', '... and is done');
# Such as come again are acknowledged at once; then nothing is unsettled, and
# delivery tags begin anew with the connection.
afresh();
$shop->sql("INSERT INTO tpc_amqp.consumed VALUES ('q', 'again 1'), ('q', 'again 2')");
$client->run('BEGIN');
for my $n (1, 2)
{
	$amqp->send('', 'q', TpcAmqp->user('x', message_id => "again $n"));
	$client->run('SELECT public.take()');
	is($client->out, '', 'one that has taken effect') unless $client->err;
	$client->run('SAVEPOINT s') if $n == 1;
}
reconnects(sub { $broker->close_connections });
$amqp = TpcAmqp->new($broker);
put('a');
$client->run('SELECT public.take()');
is($client->out, 'a', '... and one that has not, on a new connection');
$client->run('ROLLBACK TO s');
$client->run('COMMIT');
left_is(1, '... which comes back with its savepoint');
# the queue is deleted
afresh('a');
$client->run('BEGIN; SELECT public.take()');
$shop->sql("SELECT tpc_amqp.delete_queue('q')");
$client->run('COMMIT');
left_is(0, 'queue deleted: the rest works', 'other');
$shop->sql("SELECT tpc_amqp.declare_queue('q')");
nothing_held('lost');

# ---------------------------------------------------------------------------
# With a global transaction

afresh(qw(a b));
$shop->sql("BEGIN; SELECT tpc_amqp.call('store', 'book', to_jsonb(public.take()));
	COMMIT");
is($store->sql('SELECT body FROM public.booked'), 'a',
	'a call with a message: the other node has it');
left_is(1, '... and it is gone');
$shop->fails("BEGIN; SELECT tpc_amqp.call('store', 'nothing',
	to_jsonb(public.take())); COMMIT");
left_is(1, 'a call that is refused: it is in its queue again');
$client->run("BEGIN; SELECT tpc_amqp.call('store', 'book',
	to_jsonb(public.take()))");
reconnects(sub { $broker->close_connections });
$amqp = TpcAmqp->new($broker);
ok(!$client->run('COMMIT'), 'connection lost: the global transaction fails');
is($store->sql('SELECT count(*) FROM public.booked'), 1, '... everywhere');
left_is(1, '... and it is in its queue again');
$client->close;

# ---------------------------------------------------------------------------
# Once

afresh('a');
$amqp->send('', 'q', TpcAmqp->user('a', message_id => "m$serial"));
put('b');
is($shop->sql('SELECT public.take(); SELECT public.take()'), "a\nb",
	'the same message_id again is passed over');
left_is(0, '... and acknowledged');
$amqp->send('', 'q', TpcAmqp->user('a', message_id => "m$serial"));
is($shop->sql('SELECT public.take()'), '', '... also if it is the last');
left_is(0, '... and acknowledged');
$amqp->send('', 'other', TpcAmqp->user('o', message_id => "m$serial"));
is($shop->sql("SELECT public.take('other')"), 'o',
	'in another queue it is another message');
# While a first one is not committed
afresh('a');
$amqp->send('', 'q', TpcAmqp->user('a', message_id => "m$serial"));
my ($one, $two) = map { $shop->client } 1, 2;
$one->run('BEGIN; SELECT public.take()');
my $waits = $shop->start('SELECT public.take()');
$shop->poll("SELECT count(*) = 1 FROM pg_stat_activity
	WHERE wait_event_type = 'Lock' AND wait_event = 'transactionid'");
$one->run('ROLLBACK');
is(($waits->finish)[0], 'a', 'two at a time: if one rolls back, the other has it');
done_is('a', '... once');
$_->close for $one, $two;

# ---------------------------------------------------------------------------
# Steps

if (TpcTest::has_failpoints())
{
	my ($session, $messenger) = ([qw(error)], [qw(fatal)]);
	my ($session_kill, $messenger_kill) = ([qw(error kill)], [qw(fatal kill)]);
	# where; what may happen; in a savepoint that rolls back
	my @steps = (
		[ 'R1.before', $session ],
		[ 'R1.after', $session ],
		[ 'R2.before', $messenger ],
		[ 'R2.after', $messenger ],
		[ 'R3.before', $messenger ],
		[ 'R3.after', $messenger ],
		[ 'R4.before', $session ],
		[ 'R4.after', $session ],
		[ 'G2.before', $session ],
		[ 'G2.after', $session_kill ],
		[ 'G3.before', $session ],
		[ 'G3.after', $session_kill ],
		[ 'G4.before', $messenger, 1 ],
		[ 'G4.after', $messenger, 1 ],
		[ 'G5.before', ['kill'] ],
		[ 'G5.after', ['kill'] ],
		[ 'G6.before', $messenger_kill ],
		[ 'G6.after', $messenger_kill ]);
	my %in_source;

	for my $file (glob "$source/*.c")
	{
		$in_source{$_} = 1
		  for grep { /^[GR]/ }
		  slurp_file($file) =~ /TPC_FAILPOINT\("([^"]+)"\)/g;
	}
	is(join(' ', sort keys %in_source), join(' ', map { $_->[0] } sort
			{ $a->[0] cmp $b->[0] } @steps), 'every failpoint has a case');

	for my $case (@steps)
	{
		my ($step, $actions, $rolls_back) = @$case;

		for my $action (@$actions)
		{
			my $offset = TpcTest->log_size($cluster);
			my $body = "$step $action";

			$shop->ask("TRUNCATE public.done;
				SELECT tpc_amqp.purge_queue('q');
				SELECT public.tpc_test_failpoint('$step', '$action:once')");
			put($body);
			$shop->try($rolls_back
				? 'BEGIN; SAVEPOINT s; SELECT public.take(); ROLLBACK TO s;
				   SELECT public.take(); COMMIT'
				: 'SELECT public.take()');
			TpcTest->wait_for_log($cluster,
				$action eq 'kill' ? qr/was terminated by signal 9/
				: qr/failpoint "\Q$step\E"/, $offset);
			$shop->ask_for("SELECT state = 'connected' FROM tpc_amqp.node");
			$shop->ask("SELECT public.tpc_test_failpoint_clear('$step')");

			# whoever asks until there is nothing, has done it once
			my $rows = '';
			eval {
				TpcTest::poll_until(
					sub {
						$shop->observer->run('SELECT public.take()');
						$rows = $shop->ask(
							"SELECT string_agg(body, ' ') FROM public.done");
						return $rows ne '' && $shop->ask(
							"SELECT messages FROM tpc_amqp.declare_queue('q', passive => true)"
						) eq '0';
					},
					'the message');
			} or diag $@;
			is($rows, $body, "$action at $step: it takes effect once");
		}
	}
}

nothing_held('in the end');
is(left(), 0, 'nothing is left');
TpcTest->no_crash('no crash', $cluster);

done_testing();

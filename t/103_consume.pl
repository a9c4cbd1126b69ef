# Subscriptions: each message of a queue runs a handler once, whatever becomes
# of the server, the broker and the messages before it.

use strict;
use warnings;

use PostgreSQL::Test::Utils;
use Test::More;
use TpcAmqp;
use TpcTest;

my $broker = TpcTest::Broker->new(own => 1);
my $amqp = TpcAmqp->new($broker);
my $cluster = TpcTest->new_cluster('shop', <<'EOC');
autovacuum = off
tpc_amqp.max_payload = 64kB
tpc_amqp.max_memory = 16MB
EOC
my $setup = <<'EOS';
CREATE TABLE public.done (
	n bigint GENERATED ALWAYS AS IDENTITY, arg jsonb, pid int DEFAULT pg_backend_pid());
CREATE FUNCTION public.take(arg jsonb) RETURNS void LANGUAGE sql AS
	$$INSERT INTO public.done (arg) VALUES ($1)$$;
CREATE FUNCTION public.held(arg jsonb) RETURNS void LANGUAGE sql AS
	$$INSERT INTO public.done (arg) VALUES ($1);
	  SELECT pg_catalog.pg_advisory_xact_lock_shared(7)$$;
CREATE FUNCTION public.picky(arg jsonb) RETURNS void LANGUAGE plpgsql AS
	$$BEGIN
		IF arg->>'body' LIKE 'bad%' THEN
			RAISE EXCEPTION 'cannot take %', arg->>'body'
				USING DETAIL = 'It is bad.', ERRCODE = 'P0042';
		END IF;
		INSERT INTO public.done (arg) VALUES ($1);
	END$$;
CREATE FUNCTION public.temp(arg jsonb) RETURNS void LANGUAGE plpgsql AS
	$$BEGIN
		CREATE TEMP TABLE mine AS SELECT 1;
		INSERT INTO public.done (arg) VALUES ($1);
	END$$;
CREATE FUNCTION public.slow(arg jsonb) RETURNS void LANGUAGE sql AS
	$$SELECT pg_catalog.pg_sleep(60)$$;
CREATE FUNCTION public.catch(arg jsonb) RETURNS void LANGUAGE plpgsql AS
	$$BEGIN
		PERFORM pg_sleep(60);
	EXCEPTION WHEN query_canceled THEN
		INSERT INTO public.done (arg) VALUES ($1);
	END$$;
CREATE FUNCTION public.wrap(arg jsonb) RETURNS void LANGUAGE plpgsql AS
	$$BEGIN
		PERFORM pg_sleep(60);
	EXCEPTION WHEN query_canceled THEN
		RAISE EXCEPTION 'wrapped';
	END$$;
CREATE FUNCTION public.ask(arg jsonb) RETURNS void LANGUAGE sql AS
	$$INSERT INTO public.done (arg) VALUES ($1);
	  SELECT tpc_amqp.call('store', 'book', arg->'body')$$;
SELECT tpc_amqp.register_handler(f, ('public.' || f || '(jsonb)')::regprocedure)
	FROM unnest('{take,held,picky,ask,temp}'::text[]) f;
EOS
my $shop = TpcTest->new_node($cluster, 'shop', 'shop', broker => $broker,
	setup => $setup);
my $store = TpcTest->new_node($cluster, 'store', 'store', broker => $broker,
	setup => <<'EOS');
CREATE TABLE public.booked (id int PRIMARY KEY);
CREATE TABLE public.allowed (id int);
CREATE FUNCTION public.book(arg jsonb) RETURNS void LANGUAGE plpgsql AS
	$$BEGIN
		IF NOT EXISTS (SELECT FROM public.allowed WHERE id = arg::int) THEN
			RAISE EXCEPTION 'out of stock';
		END IF;
		INSERT INTO public.booked VALUES (arg::int);
	END$$;
SELECT tpc_amqp.register_handler('book', 'public.book(jsonb)');
EOS
$_->poll("SELECT state = 'connected' FROM tpc_amqp.node") for $shop, $store;

my $serial = 0;

sub body { return map { TpcAmqp->user($_, message_id => 'm' . ++$serial) } @_ }

# subscribe QUEUE, HANDLER, MORE: and wait until it is active.
sub subscribe
{
	my ($queue, $handler, $more) = @_;
	$more = defined $more ? ", $more" : '';
	$shop->sql("SELECT tpc_amqp.subscribe('$queue', '$handler'$more)");
	active($queue);
}

sub active
{
	my ($queue) = @_;
	$shop->poll("SELECT state = 'active' FROM tpc_amqp.subscriptions
		WHERE queue = '$queue'");
}

sub taken
{
	my ($queue, $n, $what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	$shop->poll("SELECT count(*) = $n FROM public.done
		WHERE arg->>'queue' = '$queue'");
	pass($what) if defined $what;
}

# quiet QUEUE: nothing of it is in the broker or in memory.
sub quiet
{
	my ($queue) = @_;
	$shop->poll("SELECT waiting = 0 AND running = 0 AND lag = 0
		FROM tpc_amqp.subscriptions WHERE queue = '$queue'");
}

$amqp->declare($_)
  for qw(first poison dead parallel kept dropped excl gone tree hostile large auto
  slow);

# ---- what a handler gets

subscribe('first', 'take', "consumer_tag => 'till-1'");
$amqp->send('', 'first',
	TpcAmqp->user('{"a": 1.50}', message_id => 'one',
		content_type => 'application/json',
		headers => TpcAmqp::_short('shelf') . 'S' . TpcAmqp::_long('B')));
taken('first', 1);
is( $shop->sql('SELECT arg FROM public.done'),
	'{"body": {"a": 1.50}, "queue": "first", "exchange": "", '
	  . '"properties": {"headers": {"shelf": "B"}, "message_id": "one", '
	  . '"content_type": "application/json"}, "redelivered": false, '
	  . '"routing_key": "first", "consumer_tag": "till-1", '
	  . '"delivery_count": 1}',
	'the argument of a handler');
$amqp->send('', 'first', TpcAmqp->user('two', message_id => 'one'));
$shop->poll("SELECT duplicates = 1 FROM tpc_amqp.subscriptions
	WHERE queue = 'first'");
is( $shop->sql("SELECT processed, duplicates, failed FROM
		tpc_amqp.subscriptions WHERE queue = 'first'"),
	'1|1|0', 'the same message_id takes effect once');

$amqp->send('', 'first', map { TpcAmqp->user($_, message_id => 'same') } 1 .. 10);
$shop->poll("SELECT processed = 2 AND duplicates = 10 AND failed = 0
	FROM tpc_amqp.subscriptions WHERE queue = 'first'");
pass('however many there are of it at a time');

# ---- poison

$shop->sql('TRUNCATE public.done');
subscribe('poison', 'picky',
	q(prefetch => 3, on_error => '{"retries": 2, "backoff": 100,
	"then": "dead-letter", "exchange": "", "routing_key": "dead"}'));
$amqp->send('', 'poison', body(map { ("bad $_", "good $_") } 1 .. 20));
taken('poison', 20, 'poison does not hold up the rest');
$shop->poll("SELECT dead_lettered = 20 AND failed >= 60
	FROM tpc_amqp.subscriptions WHERE queue = 'poison'");
is( $shop->sql("SELECT failed, retried, processed, last_sqlstate
		FROM tpc_amqp.subscriptions WHERE queue = 'poison'"),
	'60|40|20|P0042', 'each was run three times');
is($shop->sql('SELECT count(*) FROM tpc_amqp.failed_messages'),
	0, 'and no row is left of them');
my @dead = map { $amqp->get('dead') } 1 .. 20;
is(join(' ', sort map { $_->{body} } @dead),
	join(' ', sort map { "bad $_" } 1 .. 20), 'they are dead-lettered');
like(
	$dead[0]{header},
	qr/x-tpc-error.*cannot take bad.*/s,
	'with the error in a header');
like($dead[0]{header}, qr/x-tpc-sqlstate.{5}P0042/s, 'its SQLSTATE');
like($dead[0]{header}, qr/x-tpc-queue.{5}poison/s, 'the queue');
like($dead[0]{header}, qr/\x02?m\d+/, 'and its own message_id');
is($amqp->try_get('dead'), undef, 'each once');

# ---- kept, and run again by hand

subscribe('kept', 'picky', q(on_error => '{"retries": 0}'));
$amqp->send('', 'kept', TpcAmqp->user('bad', message_id => 'bad'));
$shop->poll("SELECT state = 'kept' FROM tpc_amqp.failed_messages");
is( $shop->sql('SELECT queue, message_id, attempts, sqlstate, error, detail,
		size, next_attempt_at IS NULL FROM tpc_amqp.failed_messages'),
	'kept|bad|1|P0042|cannot take bad|It is bad.|3|t', 'a message is kept');
quiet('kept');
my $id = $shop->sql('SELECT id FROM tpc_amqp.failed_messages');
is($shop->sql("SELECT tpc_amqp.retry_message($id)"), 't', 'run it again');
$shop->poll("SELECT failed = 2 FROM tpc_amqp.subscriptions
	WHERE queue = 'kept'");
$shop->poll("SELECT state = 'kept' FROM tpc_amqp.failed_messages");
subscribe('kept', 'take');
$shop->sql("SELECT tpc_amqp.retry_message($id)");
taken('kept', 1, 'with another handler it succeeds');
$shop->poll('SELECT count(*) = 0 FROM tpc_amqp.failed_messages');
$amqp->send('', 'kept', TpcAmqp->user('again', message_id => 'bad'));
$shop->poll("SELECT duplicates = 1 FROM tpc_amqp.subscriptions
	WHERE queue = 'kept'");
taken('kept', 1, 'which counts as its effect');
is($shop->sql('SELECT tpc_amqp.retry_message(0), tpc_amqp.drop_message(0)'),
	'f|f', 'no such message');

# ---- dropped

subscribe('dropped', 'picky',
	q(on_error => '{"retries": 1, "backoff": "50 ms", "then": "drop"}'));
$amqp->send('', 'dropped', body('bad'));
$shop->poll("SELECT state = 'dropped' FROM tpc_amqp.failed_messages");
is( $shop->sql('SELECT attempts, error, size FROM tpc_amqp.failed_messages'),
	'2|cannot take bad|', 'the error is kept, the body is not');
$id = $shop->sql('SELECT id FROM tpc_amqp.failed_messages');
is( $shop->sql("SELECT tpc_amqp.retry_message($id), tpc_amqp.drop_message($id)"),
	'f|t', 'there is nothing to run again');

# ---- a handler that somebody else has registered by the name

$shop->sql(q{CREATE ROLE other;
	GRANT USAGE ON SCHEMA public TO other;
	SELECT tpc_amqp.subscribe('dropped', 'take', on_error => '{"retries": 0}');
	SELECT tpc_amqp.register_handler('take', 'public.take(jsonb)', 'other')});
$amqp->send('', 'dropped', body('x'));
$shop->poll("SELECT state = 'kept' AND sqlstate = '42501' AND error ~
	'handler \"take\" runs as another role than when it was subscribed'
	FROM tpc_amqp.failed_messages");
pass('a handler is not run as a role that nobody subscribed it as');
$shop->sql(q{SELECT tpc_amqp.drop_message(id) FROM tpc_amqp.failed_messages;
	SELECT tpc_amqp.register_handler('take', 'public.take(jsonb)')});

# ---- later and later

subscribe('kept', 'picky', q(on_error => '{"retries": 3, "backoff": "1 h",
	"backoff_max": "90 min"}'));
$amqp->send('', 'kept', body('bad'));
for my $case ([ 1, '01:00' ], [ 2, '01:30' ], [ 3, '01:30' ])
{
	my ($attempts, $wait) = @$case;
	$shop->poll("SELECT count(*) = 1 FROM tpc_amqp.failed_messages
		WHERE attempts = $attempts AND
			to_char(next_attempt_at - failed_at + interval '5 s', 'HH24:MI')
				= '$wait'");
	pass("after run $attempts, the next one in $wait");
	# Again and again: the run that is just ending writes its own time.
	$shop->poll("WITH due AS (UPDATE tpc_amqp.failed_message
			SET next_attempt_at = now()
			WHERE attempts = $attempts AND next_attempt_at > now())
		SELECT count(*) = 1 FROM tpc_amqp.failed_messages
			WHERE attempts > $attempts");
}
$shop->poll("SELECT state = 'kept' AND attempts = 4 AND next_attempt_at IS NULL
	FROM tpc_amqp.failed_messages");
$shop->sql('SELECT tpc_amqp.drop_message(id) FROM tpc_amqp.failed_messages');

$amqp->send('', 'kept', body('bad'));
$shop->poll('SELECT attempts = 1 FROM tpc_amqp.failed_messages');
$shop->sql("SELECT tpc_amqp.unsubscribe('kept')");
$shop->sql('UPDATE tpc_amqp.failed_message SET next_attempt_at = now()');
$shop->poll("SELECT state = 'kept' AND attempts = 1 AND error ~ 'bad'
	FROM tpc_amqp.failed_messages");
pass('one whose subscription is gone is kept');
$shop->sql('SELECT tpc_amqp.drop_message(id) FROM tpc_amqp.failed_messages');

# ---- nothing of a handler's session is left to the next one

subscribe('kept', 'temp');
$amqp->send('', 'kept', body(1 .. 4));
taken('kept', 5, 'temporary tables are gone before the next message');

# ---- a database in another encoding, subscribed before it is attached

$cluster->safe_psql('postgres', "CREATE DATABASE latin ENCODING 'LATIN1'
	TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'");
$amqp->declare("caf\xc3\xa9");
my $latin = TpcTest->new_node($cluster, 'latin', 'latin', broker => $broker,
	create => 0, setup => $setup
	  . "SELECT tpc_amqp.subscribe(U&'caf\\00e9', 'take')");
$latin->poll("SELECT state = 'active' FROM tpc_amqp.subscriptions");
$amqp->send('', "caf\xc3\xa9",
	TpcAmqp->user("caf\xc3\xa9", message_id => "\xc3\xa9"),
	TpcAmqp->user("\xe2\x82\xac", message_id => "\xe2\x82\xac"),
	TpcAmqp->user("[\"\xc3\xa9\"]", content_type => 'application/json'));
$latin->poll('SELECT count(*) = 3 FROM public.done');
is($latin->sql("SELECT length(arg->>'queue'), length(arg->>'body'),
		jsonb_typeof(arg->'body'), arg->>'body_base64'
	FROM public.done ORDER BY 2"),
	"4|4|string|\n4|5|array|\n4|||4oKs", 'bodies in LATIN1');
is($latin->sql('SELECT encode(convert_to(message_id, \'UTF8\'), \'escape\')
	FROM tpc_amqp.consumed ORDER BY 1'),
	"\\\\xc3a9\n\\\\xe282ac", 'their ids');

# ---- a subscription is dumped

my $dump = $PostgreSQL::Test::Utils::tmp_check . '/shop.sql';
$cluster->safe_psql('postgres', 'CREATE DATABASE copy TEMPLATE template0');
$cluster->command_ok([ 'pg_dump', '-f', $dump, $shop->connstr ], 'pg_dump');
$cluster->command_ok(
	[   'psql', '-Xq', '-v', 'ON_ERROR_STOP=1',
		'-d', $cluster->connstr('copy'), '-f', $dump ],
	'psql of it');
my $query = 'SELECT s FROM tpc_amqp.subscription s ORDER BY queue';
is($cluster->safe_psql('copy', $query),
	$shop->sql($query), 'subscriptions are dumped');
is($cluster->safe_psql('copy', 'SELECT count(*) FROM tpc_amqp.consumed'),
	0, 'what has taken effect is not');

# ---- detaching ends what runs, and the message goes back

$latin->sql("SELECT tpc_amqp.subscribe('auto', 'held')");
my $hold = $latin->session;
$hold->query_safe('SELECT pg_advisory_lock(7)');
$amqp->send('', 'auto', body('detached'));
$latin->poll("SELECT running = 1 FROM tpc_amqp.subscriptions
	WHERE queue = 'auto'");
$latin->detach;
is($amqp->get('auto')->{body}, 'detached', 'detached while a handler runs');
$hold->quit;
is($latin->sql("SELECT count(*) FROM public.done
	WHERE arg->>'queue' = 'auto'"), 0, '... which has no effect');
$latin->sql("SELECT tpc_amqp.unsubscribe('auto')");
$latin->attach;

# ---- a copy of the database neither lists nor runs what has failed in it

$latin->sql(q{SELECT tpc_amqp.subscribe('poison', 'picky',
	on_error => '{"retries": 1, "backoff": "1 h"}')});
$shop->sql("SELECT tpc_amqp.unsubscribe('poison')");
$amqp->send('', 'poison', body('bad'));
$latin->poll('SELECT count(*) = 1 FROM tpc_amqp.failed_messages');
$latin->sql(q{SELECT tpc_amqp.unsubscribe('poison');
	SELECT tpc_amqp.unsubscribe(queue) FROM tpc_amqp.subscriptions});
$latin->detach;
$cluster->safe_psql('postgres', 'CREATE DATABASE twin TEMPLATE latin');
my $twin = bless { %$latin, db => 'twin', name => 'twin' }, ref $latin;
is($twin->sql('SELECT count(*) FROM tpc_amqp.failed_messages'),
	0, 'a copy of a database does not list its failed messages');
$twin->attach;
is($twin->sql('SELECT count(*) FROM tpc_amqp.failed_message'),
	0, '... and drops them when attached');
$twin->detach;
is($latin->sql('SELECT count(*) FROM tpc_amqp.failed_messages'),
	1, '... but the original has them');

# ---- two at a time

subscribe('parallel', 'held');
my $lock = $shop->session;
$lock->query_safe('SELECT pg_advisory_lock(7)');
$amqp->send('', 'parallel', body('a', 'b', 'c'));
$shop->poll("SELECT running = 2 AND waiting = 1 FROM tpc_amqp.subscriptions
	WHERE queue = 'parallel'");
pass('two workers run handlers');

# ---- unsubscribing: what runs may finish, the rest stays in its queue

is($shop->sql("SELECT tpc_amqp.unsubscribe('parallel')"),
	't', 'unsubscribe');
$lock->query_safe('SELECT pg_advisory_unlock(7)');
$lock->quit;
taken('parallel', 2, 'those that were running took effect');
is($amqp->get('parallel')->{body}, 'c', 'the third is in its queue');
is($amqp->try_get('parallel'), undef, 'and no other');
is($shop->sql("SELECT tpc_amqp.unsubscribe('parallel')"),
	'f', 'there is no subscription any more');

# ---- refused: another one's exclusive consumer, and a queue that is not there

my $other = TpcAmqp->new($broker);
$other->consume('excl', 1);
$shop->sql("SELECT tpc_amqp.subscribe('excl', 'take', exclusive => true)");
$shop->poll("SELECT state = 'refused' AND last_error ~ '403.*exclusive'
	FROM tpc_amqp.subscriptions WHERE queue = 'excl'");
pass('a refusal is shown');
$other->close;
active('excl');
$amqp->send('', 'excl', body('x'));
taken('excl', 1, 'and tried again');
$amqp->delete_queue('excl');
$shop->poll("SELECT state = 'refused' FROM tpc_amqp.subscriptions
	WHERE queue = 'excl'");
$amqp->declare('excl');
active('excl');
pass('so is a queue that was deleted');

# What was under way in a channel that is gone says nothing about the next one,
# which has the same number and the same delivery tags.
subscribe('gone', 'held');
$hold = $shop->session;
$hold->query_safe('SELECT pg_advisory_lock(7)');
$amqp->send('', 'gone', body('a', 'b'));
$shop->poll("SELECT running = 2 FROM tpc_amqp.subscriptions
	WHERE queue = 'gone'");
$amqp->delete_queue('gone');
$shop->poll("SELECT state = 'refused' FROM tpc_amqp.subscriptions
	WHERE queue = 'gone'");
$amqp->declare('gone');
active('gone');
$amqp->send('', 'gone', body('c' .. 'f'));
$shop->poll("SELECT waiting = 4 FROM tpc_amqp.subscriptions
	WHERE queue = 'gone'");
$hold->query_safe('SELECT pg_advisory_unlock(7)');
$hold->quit;
taken('gone', 6);
quiet('gone');
is( $shop->sql("SELECT processed, state, last_error ~ 'cancelled'
	FROM tpc_amqp.subscriptions WHERE queue = 'gone'"),
	'6|active|t', 'deliveries of a channel that is gone are not acknowledged');

# ---- a handler that calls another node

subscribe('tree', 'ask', q(on_error => '{"retries": 1000, "backoff": 100}'));
$store->sql('INSERT INTO public.allowed VALUES (1)');
$amqp->send('', 'tree', map { TpcAmqp->user($_, message_id => "t$_",
	content_type => 'application/json; charset=utf-8') } 1, 2);
taken('tree', 1);
$shop->poll("SELECT error ~ 'out of stock'
	FROM tpc_amqp.failed_messages WHERE queue = 'tree'");
is($store->sql('SELECT array_agg(id) FROM public.booked'),
	'{1}', 'a message and a call: both or none');
$store->sql('INSERT INTO public.allowed VALUES (2)');
taken('tree', 2);
is($store->sql('SELECT array_agg(id ORDER BY id) FROM public.booked'),
	'{1,2}', 'the second succeeds later');

# ---- hostile messages

$shop->sql('TRUNCATE public.done');
subscribe('hostile', 'take', q(on_error => '{"retries": 0}'));
$amqp->send('', 'hostile',
	TpcAmqp->plain("\xff\0\xfe"),
	TpcAmqp->plain(''),
	TpcAmqp->user('{"a":', content_type => 'application/json'),
	TpcAmqp->user('"\u0000"', content_type => 'application/json'),
	TpcAmqp->user('[' x 30000, content_type => 'application/json'),
	TpcAmqp->user("a\0b", message_id => "i\xff"),
	TpcAmqp->user('x' x 65536),
	TpcAmqp->user('x' x 65537),
	TpcAmqp->user('x' x 3_000_000));
taken('hostile', 7);
$shop->poll("SELECT rejected = 2 FROM tpc_amqp.subscriptions
	WHERE queue = 'hostile'");
quiet('hostile');
is( $shop->sql("SELECT arg->>'body_base64', left(arg->>'body', 10),
		length(arg->>'body') FROM public.done
		ORDER BY length(arg->>'body'), arg->>'body_base64'"),
	join("\n",
		'||0', '|{"a":|5', '|"\u0000"|8', '|[[[[[[[[[[|30000',
		'|xxxxxxxxxx|65536', '/wD+||', 'YQBi||'),
	'bodies that are not what they should be');
like(
	$shop->sql("SELECT last_error FROM tpc_amqp.subscriptions
		WHERE queue = 'hostile'"),
	qr/longer than tpc_amqp.max_payload \(64 kB\) was rejected/,
	'what is too long is rejected');
# headers deeper than anything is decoded
my $deep = TpcAmqp::_short('k') . 'V';
$deep = TpcAmqp::_short('k') . 'F' . TpcAmqp::_long($deep) for 1 .. 100;
$amqp->send('', 'hostile', TpcAmqp->user('deep', headers => $deep));
$shop->poll("SELECT error = 'the properties of the message cannot be decoded'
	FROM tpc_amqp.failed_messages WHERE queue = 'hostile'");
subscribe('hostile', 'take', q(on_error => '{"retries": 0,
	"then": "dead-letter", "exchange": "", "routing_key": "dead"}'));
$shop->sql('SELECT tpc_amqp.retry_message(id) FROM tpc_amqp.failed_messages');
my $dead = $amqp->get('dead');
is($dead->{body}, 'deep', 'such a message can be dead-lettered');
$shop->sql("SELECT tpc_amqp.register_handler('slow', 'public.slow(jsonb)')");
subscribe('hostile', 'slow', q(on_error => '{"retries": 0}'));
$shop->sql('ALTER SYSTEM SET tpc_amqp.consume_timeout = 200');
# not a reload: a worker may take the message before it hears of it
$cluster->restart;
active('hostile');
$amqp->send('', 'hostile', TpcAmqp->user('slow', user_id => $broker->user));
$shop->poll("SELECT state = 'kept'
	AND error = 'the handler did not finish within 200 ms'
	FROM tpc_amqp.failed_messages");
pass('a handler has a time-out');
for my $how ('catch', 'wrap')
{
	$shop->sql("SELECT tpc_amqp.register_handler('slow', 'public.$how(jsonb)')");
	$amqp->send('', 'hostile', TpcAmqp->user($how, message_id => $how));
	$shop->poll("SELECT state = 'kept' AND sqlstate = '57014'
		AND error = 'the handler did not finish within 200 ms'
		FROM tpc_amqp.failed_messages WHERE message_id = '$how'");
	is($shop->sql("SELECT count(*) FROM public.done WHERE arg->>'body' = '$how'"),
		0, "which it cannot evade: $how");
}
$shop->sql('ALTER SYSTEM RESET tpc_amqp.consume_timeout');
$cluster->reload;
subscribe('hostile', 'picky', q(on_error => '{"retries": 0,
	"then": "dead-letter", "exchange": "", "routing_key": "dead"}'));
$amqp->send('', 'hostile', TpcAmqp->user('bad', user_id => $broker->user));
$dead = $amqp->get('dead');
unlike($dead->{header}, qr/\Q@{[ $broker->user ]}\E/,
	"a dead letter does not say that its user's is ours");
subscribe('hostile', 'take');
$amqp->send('', 'hostile', body('after'));
$shop->poll("SELECT count(*) = 1 FROM public.done WHERE arg->>'body' = 'after'");
pass('and the next message is taken');

# ---- more than there is memory for: a quarter of max_memory

$shop->sql('ALTER SYSTEM SET tpc_amqp.lock_timeout = 0');
$cluster->reload;
$shop->sql('TRUNCATE public.done');
$amqp->declare('limited', 'x-queue-type' => 'quorum',
	'x-delivery-limit' => 2);
subscribe('limited', 'held', 'prefetch => 200');
my $full = $shop->session;
$full->query_safe('SELECT pg_advisory_lock(7)');
$amqp->send('', 'limited',
	map { TpcAmqp->user(sprintf('%05d', $_) x 12_000, message_id => "L$_") }
	  1 .. 100);
$shop->poll("SELECT waiting + running BETWEEN 60 AND 70 AND lag = 0
	FROM tpc_amqp.subscriptions WHERE queue = 'limited'");
pass('what finds no room is not taken');
for my $n (1 .. 3)
{
	$amqp->send('', 'first', TpcAmqp->user($n x 60_000));
	$shop->poll("SELECT count(*) = $n FROM public.done
		WHERE arg->>'queue' = 'first'");
}
pass('a subscription that has nothing in memory has room for a message');
# If what is held went back meanwhile, the broker would drop it soon.
my $since = $shop->sql('SELECT clock_timestamp()');
$shop->poll("SELECT lag_at > '$since'::timestamptz + '4 s'
	FROM tpc_amqp.subscriptions WHERE queue = 'limited'");
$full->query_safe('SELECT pg_advisory_unlock(7)');
$full->quit;
$shop->poll("SELECT processed = 100 FROM tpc_amqp.subscriptions
	WHERE queue = 'limited'");
is( $shop->sql("SELECT count(*), count(DISTINCT arg->>'body') FROM public.done
		WHERE arg->>'queue' = 'limited'"),
	'100|100', 'and taken later, once');
$shop->sql('ALTER SYSTEM RESET tpc_amqp.lock_timeout');
$cluster->reload;

# ---- automatic acknowledgement: before the handler runs

subscribe('auto', 'held', 'auto_ack => true, prefetch => 1');
$hold = $shop->session;
$hold->query_safe('SELECT pg_advisory_lock(7)');
$amqp->send('', 'auto', body('a'));
$shop->poll("SELECT running = 1 AND lag = 0 FROM tpc_amqp.subscriptions
	WHERE queue = 'auto'");
$cluster->stop('immediate');
eval { $hold->quit };
$cluster->start;
active('auto');
$amqp->send('', 'auto', body('b'));
taken('auto', 1);
is($shop->sql("SELECT arg->>'body' FROM public.done
	WHERE arg->>'queue' = 'auto'"),
	'b', 'auto_ack: at most once');

# ---- over restarts

$shop->sql('TRUNCATE public.done');
subscribe('slow', 'take');
$amqp->send('', 'slow', body(1 .. 200));
$cluster->stop('immediate');
$amqp->send('', 'slow', body(201 .. 300));
$cluster->start;
taken('slow', 300);
$amqp->send('', 'slow', body(301 .. 400));
$broker->restart;
active('slow');
$amqp = TpcAmqp->new($broker);
$amqp->send('', 'slow', body(401 .. 500));
$shop->poll("SELECT count(DISTINCT arg->>'body') = 500 FROM public.done");
quiet('slow');
$shop->sql("UPDATE tpc_amqp.consumed SET consumed_at = now() - interval '31 days'
	WHERE message_id = 'one'");
$cluster->restart;
active('slow');
$shop->poll("SELECT NOT EXISTS (SELECT FROM tpc_amqp.consumed
	WHERE message_id = 'one')");
is( $shop->sql("SELECT count(*) FROM tpc_amqp.consumed WHERE queue = 'slow'"),
	500, 'what is too old is forgotten, and no more');
is($shop->sql('SELECT count(*) FROM public.done'),
	500, 'each of 500 once, over restarts of server and broker');

done_testing();

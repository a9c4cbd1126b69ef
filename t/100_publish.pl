# publish(): a message is sent if and only if its transaction commits,
# whichever way, in order, with its properties; what nobody takes is kept.

use strict;
use warnings;

use PostgreSQL::Test::Utils;
use Test::More;
use TpcAmqp;
use TpcPair;
use TpcTest;

my ($blog, $reviews) = TpcPair::new_pair(
	conf => <<'EOC',
tpc_amqp.resolve_interval = '200ms'
tpc_amqp.max_memory = 16MB
EOC
	reviews_setup => <<'EOS');
CREATE FUNCTION public.announce(arg jsonb) RETURNS void LANGUAGE sql AS
	$$SELECT tpc_amqp.publish('', 'q', arg->>'text')$$;
CREATE FUNCTION public.announce_and_fail(arg jsonb) RETURNS void
	LANGUAGE plpgsql AS
	$$BEGIN PERFORM tpc_amqp.publish('', 'q', arg->>'text');
	  PERFORM 1 / 0; END$$;
SELECT tpc_amqp.register_handler('announce', 'public.announce(jsonb)');
SELECT tpc_amqp.register_handler('announce_and_fail',
	'public.announce_and_fail(jsonb)');
EOS
TpcPair::connected($blog, $reviews);
my $amqp = TpcAmqp->new($blog->broker);
$amqp->declare('q');

# sent NODE: all that it has to send is confirmed.
sub sent
{
	my ($node) = @_;
	$node->poll('SELECT count(*) = 0 FROM tpc_amqp.publications');
	return;
}

# received NODES…: the bodies of what is in q, once nothing more is to come.
sub received
{
	my @bodies;

	sent($_) for @_ ? @_ : $blog;
	while (my $message = $amqp->try_get('q'))
	{
		push @bodies, $message->{body};
	}
	return join ' ', @bodies;
}

# properties MESSAGE: of one that was received, as jsonb shows them.
sub properties
{
	my ($message) = @_;
	my $hex = unpack 'H*', substr $message->{header}, 12;

	return $blog->sql(
		"SELECT tpc_amqp.properties_jsonb('\\x$hex')");
}

# ---------------------------------------------------------------------------
# If and only if the transaction commits

is($blog->sql('SELECT tpc_amqp.publish(\'\', \'q\', \'alone\')'),
	'', 'a statement publishes');
is(received(), 'alone', '... and it is there');

$blog->sql(q{BEGIN; SELECT tpc_amqp.publish('', 'q', 'no'); ROLLBACK});
$blog->sql(q{BEGIN;
	SELECT tpc_amqp.publish('', 'q', 'a');
	SAVEPOINT s;
	SELECT tpc_amqp.publish('', 'q', 'no');
	ROLLBACK TO s;
	SAVEPOINT t;
	SELECT tpc_amqp.publish('', 'q', 'b');
	RELEASE t;
	SELECT tpc_amqp.publish('', 'q', 'c');
	COMMIT});
is(received(), 'a b c', 'what was rolled back is not sent, the rest in order');

$blog->sql(q{SELECT tpc_amqp.publish('', 'q', i::text)
	FROM generate_series(1, 3000) i});
is(received(), join(' ', 1 .. 3000),
	'more than are under way at a time come in order');

$blog->sql(q{BEGIN; SELECT tpc_amqp.publish('', 'q', 'prepared');
	PREPARE TRANSACTION 'one'});
$blog->sql(q{BEGIN; SELECT tpc_amqp.publish('', 'q', 'no');
	PREPARE TRANSACTION 'two'});
is(received(), '', 'prepared: nothing is sent yet');
$blog->sql(q{ROLLBACK PREPARED 'two'});
$blog->sql(q{SELECT tpc_amqp.publish('', 'q', 'later')});
is(received(), 'later', '... what comes later overtakes it');
TpcTest->within(0.9, sub {
	$blog->sql(q{COMMIT PREPARED 'one'});
	is($amqp->get('q')->{body}, 'prepared',
		'COMMIT PREPARED: it is sent');
}, '... at once');
is(received(), '', '... and nothing of what was rolled back');

# A lower id that is committed later.
my $early = $blog->client;
$early->run(q{BEGIN; SELECT tpc_amqp.publish('', 'q', 'first')});
$blog->sql(q{SELECT tpc_amqp.publish('', 'q', 'second')});
is($amqp->get('q')->{body}, 'second', 'who commits first is sent first');
$early->run(q{SELECT tpc_amqp.publish('', 'q', 'third'); COMMIT});
$early->close;
is(received(), 'first third', '... and an older one is not missed');

# Global transactions
my $call = q{SELECT tpc_amqp.call('reviews', '%s', '{"text": "there"}');};
$blog->sql(q{BEGIN; SELECT tpc_amqp.publish('', 'q', 'here');}
	  . sprintf($call, 'announce') . 'COMMIT');
is(join(' ', sort split / /, received($blog, $reviews)),
	'here there', 'a global transaction: both nodes publish');
$blog->fails(q{BEGIN; SELECT tpc_amqp.publish('', 'q', 'here');}
	  . sprintf($call, 'announce')
	  . sprintf($call, 'announce_and_fail') . 'COMMIT');
$blog->sql('BEGIN;' . sprintf($call, 'announce') . 'ROLLBACK');
TpcTest->no_prepared($blog->cluster, $reviews->cluster);
is(received($blog, $reviews), '', '... or none');

$blog->sql(q{BEGIN; SELECT tpc_amqp.publish('', 'q', 'here');}
	  . sprintf($call, 'announce') . q{PREPARE TRANSACTION 'three'});
is(received($blog, $reviews), '', 'a prepared global one: nothing yet');
$blog->sql(q{COMMIT PREPARED 'three'});
TpcTest->no_prepared($blog->cluster, $reviews->cluster);
is(join(' ', sort split / /, received($blog, $reviews)),
	'here there', '... both when it commits');

my $coordinator = $blog->client;
$coordinator->run(q{BEGIN; SELECT tpc_amqp.enlist('reviews')});
my $gtid = $coordinator->out;
$reviews->sql(qq{BEGIN; SELECT tpc_amqp.join('$gtid');
	SELECT tpc_amqp.publish('', 'q', 'joined'); PREPARE TRANSACTION 'j'});
is(received($reviews), '', 'a joined branch: nothing yet');
ok($coordinator->run('COMMIT'), '... it commits') or diag $coordinator->err;
$coordinator->close;
TpcTest->no_prepared($reviews->cluster);
is(received($reviews), 'joined', '... and is sent');

# Nobody else flushes the log.
TpcTest->freeze(split /\n/, $blog->sql(q{SELECT pid FROM pg_stat_activity
	WHERE backend_type IN ('walwriter', 'tpc_amqp relay')}));
$blog->sql(q{SET synchronous_commit = off;
	SELECT tpc_amqp.publish('', 'q', 'at-ease')});
TpcTest->kill9_server($blog->cluster);
$blog->cluster->start;
TpcPair::connected($blog);
like(received(), qr/^at-ease( at-ease)?$/,
	'synchronous_commit = off: it is durable all the same');

# ---------------------------------------------------------------------------
# Bodies and properties

my $all = q({"app_id": "app", "content_encoding": "none",
	"content_type": "text/x", "correlation_id": "c", "delivery_mode": 1,
	"expiration": "60000", "headers": {"a": 1, "b": {"c": [true, null, 1.5]},
	"d": {"@int8": 3}, "t": {"@timestamp": "2026-11-25T16:00:00Z"}},
	"message_id": "m", "priority": 7, "reply_to": "r",
	"timestamp": "2026-11-25T16:00:00Z", "type": "t", "user_id": "guest"});
$blog->sql(qq{SELECT tpc_amqp.publish('', 'q', 'x', '$all')});
my $message = $amqp->get('q');
is($blog->sql(qq{SELECT '@{[properties($message)]}' = '$all'::jsonb}), 't',
	'all properties arrive')
  or diag properties($message);
$blog->sql(q{SELECT tpc_amqp.publish('', 'q', E'gr\u00fcn')});
$message = $amqp->get('q');
is($message->{body}, "gr\xc3\xbcn", 'a text is sent in UTF-8');
like(properties($message),
	qr{^\{"message_id": "[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "content_type": "text/plain", "delivery_mode": 2\}$},
	'... persistent, with an id');
$blog->sql(q{SELECT tpc_amqp.publish('', 'q', '{"a": [1, 2]}'::jsonb)});
$message = $amqp->get('q');
is($message->{body}, '{"a": [1, 2]}', 'a jsonb is sent as JSON');
like(properties($message), qr{"application/json"}, '... and says so');
$blog->sql(q{SELECT tpc_amqp.publish('', 'q', '\x00ff'::bytea,
	'{"content_type": null, "message_id": null}')});
$message = $amqp->get('q');
is($message->{body}, "\x00\xff", 'bytes are sent as they are');
like(properties($message), qr/^\{"message_id": "[^"]+", "delivery_mode": 2\}$/,
	'... what is null is left out, but for the id');
$blog->sql(q{SELECT tpc_amqp.publish('', 'q', '')});
is($amqp->get('q')->{body}, '', 'a body may be empty');
$blog->sql(q{SELECT tpc_amqp.publish('', 'q', repeat('x', 1024 * 1024))});
is(length $amqp->get('q')->{body}, 1024 * 1024, 'a body of max_payload');

# ---------------------------------------------------------------------------
# What is not taken

my $returned = q{SELECT kind, code, reason, message_id,
	convert_from(body, 'UTF8'), routing_key, mandatory
	FROM tpc_amqp.returned_messages ORDER BY id};
$blog->sql(q{
	SELECT tpc_amqp.publish('', 'nowhere', 'lost');
	SELECT tpc_amqp.publish('', 'nowhere', 'back', '{"message_id": "m1"}',
		true);
	SELECT tpc_amqp.publish('', 'q', 'there', '{"message_id": "m1"}', true)});
is(received(), 'there', 'mandatory: what has a queue arrives');
is($blog->sql($returned), 'returned|312|NO_ROUTE|m1|back|nowhere|t',
	'... what has none comes back, and is kept');
is($blog->sql(q{SELECT properties->>'message_id' FROM
	tpc_amqp.returned_messages}), 'm1', '... its properties are shown');
my $id = $blog->sql('SELECT id FROM tpc_amqp.returned_messages');
$blog->sql("BEGIN; SELECT tpc_amqp.republish($id); ROLLBACK");
is($blog->sql('SELECT id FROM tpc_amqp.returned_messages'), $id,
	'republish() is part of its transaction');
$amqp->declare('nowhere');
is($blog->sql("SELECT tpc_amqp.republish($id)"), 't', '... and publishes');
$message = $amqp->get('nowhere');
is($message->{body}, 'back', '... what came back');
like(properties($message), qr/"message_id": "m1"/, '... under the same id');
is($blog->sql("SELECT tpc_amqp.republish($id)"), 'f',
	'... which is not listed any more');
sent($blog);
$amqp->delete_queue('nowhere');

# Several under one id, one of which comes back.
$blog->sql(q{
	BEGIN;
	SELECT tpc_amqp.publish('', CASE WHEN i % 5 = 0 THEN 'nowhere' ELSE 'q' END,
		i::text, '{"message_id": "same"}', true)
	FROM generate_series(1, 20) i;
	COMMIT});
is(received(), join(' ', grep { $_ % 5 } 1 .. 20),
	'one message_id for all: who has a queue arrives');
is($blog->sql(q{SELECT string_agg(convert_from(body, 'UTF8'), ' ' ORDER BY id)
	FROM tpc_amqp.returned_messages}), '5 10 15 20', '... who has none is kept');
is($blog->sql('SELECT bool_and(tpc_amqp.discard(id))
	FROM tpc_amqp.returned_messages'), 't', 'discard()');
is($blog->sql('SELECT count(*) FROM tpc_amqp.returned_messages'), 0,
	'... deletes them');

# Refused by closing the channel
my @refused = map { $blog->counter($_) } qw(refused connects);
$blog->sql(q{
	BEGIN;
	SELECT tpc_amqp.publish(CASE WHEN i % 40 = 7 THEN 'no such exchange' ELSE
		'' END, 'q', i::text,
		CASE WHEN i = 50 THEN '{"user_id": "somebody else"}' ELSE '{}' END::jsonb)
	FROM generate_series(1, 100) i;
	COMMIT});
sent($blog);
# The first round is unknown, and repeated.
my %seen;
while ($message = $amqp->try_get('q'))
{
	$seen{ $message->{body} }{ $message->{header} } = 1;
}
is(join(' ', sort { $a <=> $b } keys %seen),
	join(' ', grep { $_ != 50 && $_ % 40 != 7 } 1 .. 100),
	'an exchange that is missing: all others arrive');
is((grep { keys %$_ > 1 } values %seen), 0, '... under one id each');
is($blog->sql(q{SELECT string_agg(format('%s:%s:%s', kind, code,
	convert_from(body, 'UTF8')), ' ' ORDER BY id)
	FROM tpc_amqp.returned_messages}),
	'refused:404:7 refused:404:47 refused:406:50 refused:404:87',
	'... it, and a wrong user_id, are listed as refused');
like($blog->sql('SELECT reason FROM tpc_amqp.returned_messages
	ORDER BY id LIMIT 1'), qr/NOT_FOUND - no exchange 'no such exchange'/,
	'... with the words of the broker');
is($blog->counter('refused'), $refused[0] + 4, '... they are counted');
is($blog->counter('connects'), $refused[1], '... the connection stays');
$blog->sql('SELECT tpc_amqp.discard(id) FROM tpc_amqp.returned_messages');

# Rejected, for now: only what goes there waits.
$amqp->declare('full', 'x-max-length' => 1, 'x-overflow' => 'reject-publish');
$blog->sql(q{SELECT tpc_amqp.publish('', 'full', i::text)
	FROM generate_series(1, 1500) i});
$blog->poll('SELECT rejected > 0 FROM tpc_amqp.stat');
$blog->sql(q{SELECT tpc_amqp.publish('', 'q', 'past it')});
is($amqp->get('q')->{body}, 'past it', 'a queue that is full holds nobody up');
is($amqp->get('full')->{body}, 1, '... it has the first');
TpcTest::poll_until(sub { $amqp->count('full') }, 'a rejected one again');
pass('... and gets another one, once it has room');
cmp_ok($blog->sql('SELECT count(*) FROM tpc_amqp.publications'), '<', 1500,
	'... the others wait');
$amqp->delete_queue('full');
sent($blog);

# A queue that says nothing: what is large has to get past it, too.
$amqp->declare('silent');
$blog->cluster->append_conf('postgresql.conf', 'tpc_amqp.max_payload = 4096');
$blog->cluster->reload;
$blog->poll('SHOW tpc_amqp.max_payload', '4MB');
$blog->broker->suspend_queues('silent');
$blog->sql(q{SELECT tpc_amqp.publish('', 'silent', 'not confirmed')});
$blog->poll(q{SELECT state = 'sent' FROM tpc_amqp.publications});
$blog->sql(q{SELECT tpc_amqp.publish('', 'q', repeat('x', 3 * 1024 * 1024));
	SELECT tpc_amqp.publish('', 'q', 'behind it')});
is(length $amqp->get('q')->{body}, 3 * 1024 * 1024,
	'a queue that does not confirm: a large message gets past it');
is($amqp->get('q')->{body}, 'behind it', '... and what is behind that');
$blog->broker->resume_queues('silent');
sent($blog);
$amqp->delete_queue('silent');
$blog->cluster->append_conf('postgresql.conf', 'tpc_amqp.max_payload = 1024');
$blog->cluster->reload;
$blog->poll('SHOW tpc_amqp.max_payload', '1MB');

# Somebody has the table to himself: nothing waits for ever.
my $offset = TpcTest->log_size($blog->cluster);
my $dba = $blog->client;
$dba->run('BEGIN; LOCK TABLE tpc_amqp.publication');
TpcTest->wait_for_log($blog->cluster,
	qr/canceling statement due to lock timeout/, $offset);
$dba->run(q{SELECT tpc_amqp.publish('', 'q', 'unlocked'); COMMIT});
$dba->close;
is($amqp->get('q')->{body}, 'unlocked',
	'the relay gives up a wait for a lock, and goes on later');
sent($blog);

# The relay reads that one every five seconds.
$offset = TpcTest->log_size($blog->cluster);
$dba = $blog->client;
$dba->run('BEGIN; LOCK TABLE tpc_amqp.subscription');
TpcTest->wait_for_log($blog->cluster,
	qr/canceling statement due to lock timeout/, $offset);
$blog->sql(q{SELECT tpc_amqp.publish('', 'q', 'by itself')});
is($amqp->get('q')->{body}, 'by itself',
	'what it cannot do for subscriptions does not hold up messages');
is($blog->sql(q{SELECT count(*) FROM pg_locks WHERE granted AND
	relation = 'tpc_amqp.subscription'::regclass
	AND mode = 'AccessExclusiveLock'}), 1, '... meanwhile');
$dba->run('COMMIT');
$dba->close;
sent($blog);

# ---------------------------------------------------------------------------
# Limits

like($blog->fails(q{SELECT tpc_amqp.publish('', 'q',
	repeat('x', 1024 * 1024 + 1))}),
	qr/ERROR:  54000: message is too large/, 'max_payload');
my $held = $blog->client;
$held->run(q{BEGIN; SELECT tpc_amqp.publish('', 'q', repeat('x', 3000))});
$blog->cluster->append_conf('postgresql.conf', 'tpc_amqp.max_payload = 2');
$blog->cluster->reload;
$blog->poll('SHOW tpc_amqp.max_payload', '2kB');
# the relay has read it, too
$held->run('COMMIT');
$held->close;
$blog->poll(q{SELECT count(*) = 1 FROM tpc_amqp.returned_messages
	WHERE kind = 'refused' AND code IS NULL AND reason ~ 'max_payload'});
pass('max_payload lowered: what is larger now is listed as refused');
$blog->cluster->append_conf('postgresql.conf', 'tpc_amqp.max_payload = 1024');
$blog->cluster->reload;
$blog->sql(q{SELECT tpc_amqp.republish(id) FROM tpc_amqp.returned_messages});
is(length $amqp->get('q')->{body}, 3000, '... and can be published again');

# ---------------------------------------------------------------------------
# Being another node

my $waiting = $blog->client;
$waiting->run(q{BEGIN; SELECT tpc_amqp.publish('', 'q', 'survives')});
$blog->detach;
$blog->poll('SELECT count(*) = 0 FROM tpc_amqp.node');
$waiting->run('COMMIT');
is($waiting->err, '', 'detached meanwhile: the transaction commits');
like($blog->fails(q{SELECT tpc_amqp.publish('', 'q', 'x')}),
	qr/ERROR:  55000: database "blog" is not attached/,
	'... another one cannot publish');
is($blog->sql('SELECT count(*), min(state) FROM tpc_amqp.publications'),
	'1|waiting', '... the message waits');
$waiting->close;

# A copy does not send what its original has.
$blog->cluster->safe_psql('postgres',
	'CREATE DATABASE copy TEMPLATE blog');
my $copy = bless { %$blog, db => 'copy', name => 'copy' }, ref $blog;
is($copy->sql('SELECT count(*) FROM tpc_amqp.publications'), 0,
	'a copy of the database does not list it');
$copy->attach;
is($copy->sql('SELECT count(*) FROM tpc_amqp.publication'), 0,
	'... and drops it when attached');
$copy->sql(q{SELECT tpc_amqp.publish('', 'q', 'copy')});
is($amqp->get('q')->{body}, 'copy', '... but has its own');
$copy->detach;

$blog->{name} = 'other';
$blog->attach;
is($amqp->get('q')->{body}, 'survives', 'attached as another node: it is sent');
sent($blog);

# Another encoding
$blog->cluster->safe_psql('postgres', q{CREATE DATABASE latin TEMPLATE template0
	ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C'});
my $latin = TpcTest->new_node($blog->cluster, 'latin', 'latin', create => 0);
$amqp->declare("gr\xc3\xbcn");
$latin->sql(q{SELECT tpc_amqp.publish('', 'gr' || chr(252) || 'n', chr(228),
	'{"type": "\u00f6"}')});
$message = $amqp->get("gr\xc3\xbcn");
is($message->{body}, "\xc3\xa4", 'from LATIN1: the body is UTF-8');
like($message->{header}, qr/\xc3\xb6/, '... as are properties');
$latin->detach;

# Not dumped
my ($dump) = run_command(
	[ $blog->cluster->installed_command('pg_dump'), '-d', $blog->connstr ]);
unlike($dump, qr/COPY tpc_amqp\.(publication|returned)/,
	'messages are not dumped');

# DROP EXTENSION
$blog->sql(q{SELECT tpc_amqp.publish('', 'q', 'last')});
$blog->sql('DROP EXTENSION tpc_amqp CASCADE');
is($amqp->get('q')->{body}, 'last', 'DROP EXTENSION waits for what is on its way');

TpcTest->no_crash('no crash in the log', $blog, $reviews);
done_testing();

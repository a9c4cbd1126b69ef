# Errors, arguments, names and messages in databases of different encodings.

use strict;
use warnings;

use PostgreSQL::Test::Utils;
use Test::More;
use TpcAmqp;
use TpcTest;

my $cluster = TpcTest->new_cluster('main');
$cluster->safe_psql('postgres',
	"CREATE DATABASE latin TEMPLATE template0 ENCODING 'LATIN1' LOCALE 'C'");
$cluster->safe_psql('postgres',
	"CREATE DATABASE bytes TEMPLATE template0 ENCODING 'SQL_ASCII' LOCALE 'C'");

my $handlers = q{
	CREATE TABLE note (body text);
	CREATE FUNCTION keep(a jsonb) RETURNS void LANGUAGE sql
		AS $$ INSERT INTO public.note VALUES (a->>'body') $$;
	CREATE FUNCTION fail(a jsonb) RETURNS void LANGUAGE plpgsql
		AS $$ BEGIN RAISE 'no %', a->>'body' USING ERRCODE = 'TP001'; END $$;
	CREATE FUNCTION fail_raw(a jsonb) RETURNS void LANGUAGE plpgsql
		AS $$ BEGIN
			RAISE 'raw %', convert_from('\xe9ff'::bytea, 'SQL_ASCII')
				USING ERRCODE = 'TP002';
		END $$;
	SELECT tpc_amqp.register_handler('keep', 'public.keep(jsonb)');
	SELECT tpc_amqp.register_handler('fail', 'public.fail(jsonb)');
};
my $utf8 = TpcTest->new_node($cluster, 'utf8', 'utf8');
my $latin = TpcTest->new_node($cluster, 'latin', 'latin', create => 0);
my $bytes = TpcTest->new_node($cluster, 'bytes', 'bytes', create => 0);
$latin->sql($handlers);
$bytes->sql($handlers);
$bytes->sql(
	q{SELECT tpc_amqp.register_handler('fail_raw', 'public.fail_raw(jsonb)')});

# call NODE, HANDLER, ARGUMENT: SQLSTATE of a COMMIT, '' if it went well.
sub call
{
	my ($node, $handler, $argument) = @_;
	my ($out, $err);

	my $rc = $cluster->psql(
		'utf8',
		"SELECT tpc_amqp.call('$node', '$handler', '$argument')",
		stdout => \$out,
		stderr => \$err,
		extra_params => [ '-v', 'VERBOSITY=sqlstate' ]);
	return $rc == 0 ? '' : $err =~ /ERROR:\s+(\w+)/ ? $1 : $err;
}

is(call('latin', 'keep', '{"body": "caf\u00e9"}'),
	'', 'a character both encodings have');
is( $latin->sql("SELECT encode(convert_to(body, 'UTF8'), 'hex') FROM note"),
	'636166c3a9', 'arrives as itself');
is(call('latin', 'keep', '{"body": "\u20ac"}'),
	'22P05', 'one that the participant cannot represent is its error');
is(call('latin', 'fail', '{"body": "caf\u00e9"}'),
	'TP001', 'an error of a database of another encoding');
is(call('bytes', 'fail_raw', '{}'),
	'TP002', 'an error with bytes that are no UTF-8');
for my $i (1 .. 5)
{
	is(call('latin', 'fail', '{"body": "x"}'), 'TP001', "and again: $i");
}
is(call('latin', 'keep', '{"body": "still here"}'),
	'', 'the node works on');
TpcTest->no_prepared($cluster);

# ---------------------------------------------------------------------------
# Names and messages of the broker: UTF-8, if anything.

my $amqp = TpcAmqp->new(TpcTest::Broker->of_this_file);
my $name = q{'caf' || chr(233)};

is( $latin->sql("SELECT encode(convert_to(name, 'UTF8'), 'hex')
		FROM tpc_amqp.declare_queue($name)"),
	'636166c3a9', 'the name of a queue');
$amqp->send('', "caf\xc3\xa9", TpcAmqp->user('x', message_id => $_))
  for "\xc3\xa9", "\xe2\x82\xac", "\xe2\x82\xac", "\xff", "\xff";
my $get = "SELECT encode(convert_to(concat_ws('|', convert_from(body, 'LATIN1'),
	routing_key, properties->>'message_id'), 'UTF8'), 'escape')
	FROM tpc_amqp.get($name)";
is($latin->sql($get), 'x|caf\303\251|\303\251',
	'a message with an id that the database has characters for');
is($latin->sql($get), 'x|caf\303\251|?', '... with one that it has not');
is($latin->sql($get), 'x|caf\303\251|?',
	'... which comes once, before one that is no text');
is($latin->sql($get), 'x|caf\303\251|?', '... which comes twice');
is($latin->sql($get), '', '... and that was all');
is( $latin->sql(q{SELECT string_agg(encode(convert_to(message_id, 'UTF8'), 'escape'), ' ' ORDER BY message_id)
		FROM tpc_amqp.consumed}),
	'\\\xc3a9 \\\xe282ac', 'the ids that are known');
like($latin->fails('SELECT tpc_amqp.purge_queue(chr(233))'),
	qr/ERROR:  42704: NOT_FOUND - no queue/, 'a refusal');
like($bytes->fails("SELECT tpc_amqp.purge_queue(convert_from('\\xe9ff', 'SQL_ASCII'))"),
	qr/ERROR:  22021: /, 'bytes that are no UTF-8');

done_testing();

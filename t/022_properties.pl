# AMQP's properties and tables, from jsonb to bytes and back, in databases of
# several encodings.

use strict;
use warnings;

use PostgreSQL::Test::Utils;
use Test::More;
use TpcTest;

plan skip_all => 'this build has no functions for tests'
  unless TpcTest::has_failpoints();

my $cluster = TpcTest->new_cluster('main');
my %encoding = (utf8 => 'UTF8', latin => 'LATIN1', bytes => 'SQL_ASCII');
for my $db (sort keys %encoding)
{
	$cluster->safe_psql('postgres',
		"CREATE DATABASE $db TEMPLATE template0 ENCODING '$encoding{$db}' LOCALE 'C'"
	);
	$cluster->safe_psql($db, <<'EOS');
CREATE FUNCTION properties(jsonb) RETURNS bytea LANGUAGE C STRICT
	AS '$libdir/tpc_amqp', 'tpc_test_properties_encode';
CREATE FUNCTION properties(bytea) RETURNS jsonb LANGUAGE C STRICT
	AS '$libdir/tpc_amqp', 'tpc_test_properties_decode';
CREATE FUNCTION arguments(jsonb) RETURNS bytea LANGUAGE C STRICT
	AS '$libdir/tpc_amqp', 'tpc_test_table_encode';
CREATE FUNCTION arguments(bytea) RETURNS jsonb LANGUAGE C STRICT
	AS '$libdir/tpc_amqp', 'tpc_test_table_decode';
-- NULL if the same, else what there is instead
CREATE FUNCTION differs(is_now text, wanted text) RETURNS text LANGUAGE sql
	AS $$ SELECT CASE WHEN is_now IS DISTINCT FROM wanted
		THEN coalesce(is_now, 'null') END $$;
-- SQLSTATE and message of what a jsonb raises
CREATE FUNCTION raised(what text, value jsonb) RETURNS text LANGUAGE plpgsql
	AS $$
	DECLARE
		hint text;
		detail text;
	BEGIN
		EXECUTE format('SELECT %I($1)', what) USING value;
		RETURN 'nothing';
	EXCEPTION WHEN OTHERS THEN
		GET STACKED DIAGNOSTICS hint = PG_EXCEPTION_HINT,
			detail = PG_EXCEPTION_DETAIL;
		RETURN concat_ws(' ', SQLSTATE, SQLERRM, nullif(hint, ''),
			nullif(detail, ''));
	END $$;
EOS
}

sub literal
{
	my ($text) = @_;
	$text =~ s/'/''/g;
	return "'$text'";
}

sub ask
{
	my ($query, $db) = @_;
	return $cluster->safe_psql($db // 'utf8', $query);
}

# hex WHAT, JSON, DATABASE: the bytes
sub hex_of
{
	my ($what, $json, $db) = @_;
	return ask("SELECT encode($what(" . literal($json) . "::jsonb), 'hex')",
		$db);
}

# json_of WHAT, HEX, DATABASE: what the bytes are there, in UTF-8
sub json_of
{
	my ($what, $hex, $db) = @_;
	my $utf8 = ask(
		"SELECT encode(convert_to($what(decode('$hex', 'hex'))::text, "
		  . ($db && $db eq 'bytes' ? "'SQL_ASCII'" : "'UTF8'")
		  . "), 'hex')", $db);
	return pack('H*', $utf8);
}

# same WHAT, JSON, [OTHER JSON]: it comes back as it is, or as the other.
sub same
{
	my ($what, $json, $back) = @_;
	$back //= $json;
	my $differs = ask("SELECT differs($what($what("
		  . literal($json)
		  . "::jsonb))::text, "
		  . literal($back)
		  . "::jsonb::text)");
	is($differs, '', "$what: " . substr($json, 0, 60));
}

# raises WHAT, JSON, PATTERN, NAME
sub raises
{
	my ($what, $json, $pattern, $name) = @_;
	like(
		ask("SELECT raised('$what', " . literal($json) . ')'),
		$pattern, "$what: $name");
}

# ---------------------------------------------------------------------------
# Bytes as they have to be

is(hex_of('properties', '{}'), '0000', 'no properties');
is(hex_of('properties', '{"priority": null, "headers": null}'),
	'0000', 'null is absent');
is( hex_of('properties',
		'{"priority": 7, "content_type": "a", "delivery_mode": 2, "headers": {"b": true}}'
	),
	'b800' . '0161' . '00000004' . '01627401' . '02' . '07',
	'properties in their order');
is(hex_of('arguments', '{}'), '', 'no arguments');
for (
	[ '60000', '490000ea60' ],
	[ '60000.00', '490000ea60' ],
	[ '6e4', '490000ea60' ],
	[ '-1', '49ffffffff' ],
	[ '2147483647', '497fffffff' ],
	[ '2147483648', '6c0000000080000000' ],
	[ '-2147483648', '4980000000' ],
	[ '-2147483649', '6cffffffff7fffffff' ],
	[ '9223372036854775807', '6c7fffffffffffffff' ],
	[ '9223372036854775808', '6443e0000000000000' ],
	[ '0.1', '643fb999999999999a' ],
	[ 'true', '7401' ],
	[ 'false', '7400' ],
	[ 'null', '56' ],
	[ '"a"', '530000000161' ],
	[ '""', '5300000000' ],
	[ '{}', '4600000000' ],
	[ '[]', '4100000000' ],
	[ '[1, [null]]', '410000000b' . '4900000001' . '410000000156' ],
	[ '{"b": []}', '4600000007' . '0162' . '4100000000' ],
	[ '{"@int8": -128}', '6280' ],
	[ '{"@uint8": 255}', '42ff' ],
	[ '{"@int16": -2}', '73fffe' ],
	[ '{"@uint16": 65535}', '75ffff' ],
	[ '{"@int32": 1}', '4900000001' ],
	[ '{"@uint32": 4294967295}', '69ffffffff' ],
	[ '{"@int64": 1}', '6c0000000000000001' ],
	[ '{"@int64": -9223372036854775808}', '6c8000000000000000' ],
	[ '{"@float": 0.5}', '663f000000' ],
	[ '{"@double": 3}', '644008000000000000' ],
	[ '{"@double": "-Infinity"}', '64fff0000000000000' ],
	[ '{"@double": "-0"}', '648000000000000000' ],
	[ '{"@decimal": "12.50"}', '4402000004e2' ],
	[ '{"@decimal": 12.5}', '44010000007d' ],
	[ '{"@timestamp": 1}', '540000000000000001' ],
	[ '{"@timestamp": 1.9}', '540000000000000001' ],
	[ '{"@timestamp": "1970-01-01T01:00:01+01:00"}', '540000000000000001' ],
	[ '{"@timestamp": 18446744073709551615}', '54ffffffffffffffff' ],
	[ '{"@bytes": "AP8="}', '780000000200ff' ],
	[ '{"@bytes": "AP\n8="}', '780000000200ff' ],
	[ '{"@bytes": ""}', '7800000000' ],
	[ '{"@string": "a"}', '530000000161' ],
	[ '{"@@int8": 1}', '460000000b' . '0540696e7438' . '4900000001' ],
	[ '{"@@a": null, "b": null}', '4600000007' . '016256' . '02406156' ],
	[ '{"@@": null}', '4600000003' . '014056' ])
{
	my ($json, $hex) = @$_;
	is(hex_of('arguments', qq({"a": $json})), "0161$hex", "value $json");
}
is( hex_of('properties', '{"timestamp": "2026-11-25T16:00:00Z"}'),
	'0040' . sprintf('%016x', 1795622400),
	'timestamp');
is( ask('SELECT properties(jsonb_build_object($$timestamp$$, '
		  . '$$2026-11-25 16:00:00.5+00$$::timestamptz)) = '
		  . 'properties(jsonb_build_object($$timestamp$$, 1795622400.5))'),
	't', "PostgreSQL's own way of writing a timestamp");
is(hex_of('properties', '{"expiration": 60000.0}'),
	'0100' . '05' . '3630303030', 'expiration as a number');
is(hex_of('properties', '{"expiration": "60000"}'),
	'0100' . '05' . '3630303030', 'expiration as a string');

# ---------------------------------------------------------------------------
# There and back

same('properties', '{}');
same(
	'properties', <<'EOJ');
{"content_type": "application/json", "content_encoding": "gzip",
 "headers": {"a": 1, "b": {"c": [true, null, "z\u00e4\u20ac\ud83d\ude00"]}},
 "delivery_mode": 1, "priority": 255, "correlation_id": "z\u00e4 \"\\\n",
 "reply_to": "r", "expiration": "4294967295", "message_id": "",
 "timestamp": "2026-11-25T16:00:00Z", "type": "t", "user_id": "guest",
 "app_id": "a", "cluster_id": "c"}
EOJ
same('properties', '{"headers": {}}');
same('properties', '{"expiration": 5}', '{"expiration": "5"}');
same('properties',
	'{"timestamp": 0}', '{"timestamp": "1970-01-01T00:00:00Z"}');
same('properties', '{"timestamp": 253402300800}');
same('properties', '{"message_id": "' . 'x' x 255 . '"}');
same('arguments', '{"x-message-ttl": 60000, "x-queue-type": "quorum"}');
same('arguments', qq({"a": $_}))
  for '{"@int8": 1}', '{"@uint8": 1}', '{"@int16": 1}', '{"@uint16": 1}',
  '{"@uint32": 1}', '{"@float": 1}', '{"@float": 0.1}', '{"@double": 1}',
  '{"@double": "NaN"}', '{"@double": "-0"}', '{"@float": "Infinity"}',
  '{"@decimal": "1.50"}', '{"@bytes": "AP8="}',
  '{"@timestamp": "2026-11-25T16:00:00Z"}', '0.1', '1.5e-300',
  '{"@@int8": 1}', '{"@@@int8": 1}', '{"@@a": 1, "b": {"@int8": 2}}';
same('arguments', '{"@@a": 1}');
same('arguments', '{"": null}');
same('arguments', '{"a": {"@int32": 1}}', '{"a": 1}');
same('arguments', '{"a": {"@int64": 1}}', '{"a": 1}');
same('arguments', '{"a": 1e30}',
	'{"a": {"@double": 1000000000000000000000000000000}}');
same('arguments', '{"a": {"@decimal": 1.5}}', '{"a": {"@decimal": "1.5"}}');
same('arguments',
	'{"a": {"@decimal": "0.' . '0' x 254 . '1"}}');
same('arguments', '{"a": ' . '[' x 31 . ']' x 31 . '}');

# ---------------------------------------------------------------------------
# What is not possible

raises('properties', '[]', qr/^22023 .*must be an object/, 'an array');
raises('properties', '1', qr/^22023 .*must be an object/, 'a number');
raises('arguments', '[{}]', qr/^22023 .*must be an object/, 'an array');
raises(
	'properties',
	'{"prio": 1}',
	qr/^22023 unknown AMQP property "prio" .*content_type,.*cluster_id/,
	'an unknown property');
for (
	[ '"priority": 256', 'priority' ],
	[ '"priority": -1', 'priority' ],
	[ '"priority": 1.5', 'priority' ],
	[ '"priority": "1"', 'priority' ],
	[ '"delivery_mode": 0', 'delivery_mode' ],
	[ '"delivery_mode": 3', 'delivery_mode' ],
	[ '"type": 1', 'type' ],
	[ '"type": {}', 'type' ],
	[ '"headers": []', 'headers' ],
	[ '"headers": "a"', 'headers' ],
	[ '"expiration": "5 s"', 'expiration' ],
	[ '"expiration": ""', 'expiration' ],
	[ '"expiration": "-1"', 'expiration' ],
	[ '"expiration": "4294967296"', 'expiration' ],
	[ '"expiration": true', 'expiration' ],
	[ '"timestamp": "now"', 'timestamp' ],
	[ '"timestamp": "2026-11-25T16:00:00"', 'timestamp' ],
	[ '"timestamp": false', 'timestamp' ],
	[ '"headers": {"@int8": 1}', 'headers.@int8' ],
	[ '"headers": {"a": {"@int": 1}}', 'headers.a' ],
	[ '"headers": {"a": {"@": 1}}', 'headers.a' ],
	[ '"headers": {"a": {"@int8": 1, "b": 2}}', 'headers.a.@int8' ],
	[ '"headers": {"a": {"@int8": "1"}}', 'headers.a' ],
	[ '"headers": {"a": {"@int8": [1]}}', 'headers.a' ],
	[ '"headers": {"a": {"@double": "inf"}}', 'headers.a' ],
	[ '"headers": {"a": {"@decimal": "1e5"}}', 'headers.a' ],
	[ '"headers": {"a": {"@bytes": "?"}}', 'headers.a' ],
	[ '"headers": {"a": {"@bytes": 1}}', 'headers.a' ],
	[ '"headers": {"a": {"@string": null}}', 'headers.a' ],
	[ '"headers": {"a": [0, {"b": {"@timestamp": "x"}}]}', 'headers.a[1].b' ])
{
	my ($json, $place) = @$_;
	raises('properties', "{$json}",
		qr/^22023 invalid value for AMQP property "\Q$place\E" \S/, $json);
}
for (
	'{"@int8": 128}', '{"@int8": -129}', '{"@uint8": 256}', '{"@uint8": -1}',
	'{"@int8": 0.5}', '{"@int16": 32768}', '{"@uint16": 65536}',
	'{"@int32": 2147483648}', '{"@uint32": 4294967296}',
	'{"@int64": 9223372036854775808}', '{"@float": 1e39}', '1e400',
	'{"@double": -1e309}', '1e-400', '{"@decimal": 4294967296}',
	'{"@decimal": -1}', '{"@timestamp": -1}', '{"@timestamp": 1e20}')
{
	raises('arguments', qq({"x": $_}),
		qr/^22003 invalid value for AMQP argument "x" \S/, $_);
}
raises('properties', '{"expiration": 4294967296}',
	qr/^22003 .*"expiration"/, 'an expiration');
raises('properties', '{"type": "' . 'x' x 256 . '"}',
	qr/^54000 AMQP property "type" is too long/, '256 bytes');
raises('properties', '{"type": "' . 'x' x 300000 . '"}',
	qr/^54000 /, 'many bytes');
raises('properties', '{"type": "' . '\u00e4' x 128 . '"}',
	qr/^54000 AMQP property "type" is too long/, '128 characters of 2 bytes');
raises('arguments', '{"' . 'x' x 256 . '": 1}',
	qr/^54000 name of AMQP argument "x+" is too long/, 'a name');
raises('arguments', '{"a": ' . '[' x 32 . ']' x 32 . '}',
	qr/^54000 AMQP argument "a(\[0\])+" is nested too deeply/, 'arrays');
raises('arguments', '{"a":' x 33 . '1' . '}' x 33,
	qr/^54000 AMQP argument "a(\.a)+" is nested too deeply/, 'tables');
raises('arguments', '{"a": "' . 'x' x 20000 . '"}',
	qr/^54000 AMQP arguments are too long/, 'one long value');
raises('arguments', '{"a": [' . join(',', (1) x 5000) . ']}',
	qr/^54000 AMQP arguments are too long/, 'many values');
raises('properties', '{"headers": {"a": {"@bytes": "' . 'x' x 40000 . '"}}}',
	qr/^54000 AMQP properties are too long/, 'bytes');
is( ask(
		q{SELECT length(properties(jsonb_build_object('headers',
			jsonb_build_object('a', repeat('x', 16384 - 2 - 4 - 2 - 5)))))}),
	16384,
	'as long as allowed');
raises(
	'properties',
	'{"headers": {"a": "' . 'x' x (16384 - 2 - 4 - 2 - 5 + 1) . '"}}',
	qr/^54000 /,
	'one byte more');

# ---------------------------------------------------------------------------
# Bytes that others have made

is(json_of('properties', '0001'), '', 'bad bytes are NULL');
is(json_of('arguments', '0161ff'), '', 'bad bytes of a table');
is(json_of('arguments', '0161' . '49000000' . '05' . '0161' . '56'),
	'{"a": null}', 'of a name that is there twice the last counts');
is( json_of('properties', '0080' . '04' . '61ff0062'),
	'{"message_id": "a??b"}',
	'a short string that is no text');
is( json_of('arguments', '0161' . '5300000003' . '61ff62'),
	'{"a": {"@bytes": "Yf9i"}}',
	'a long string that is no text');
is( json_of('arguments', '0161' . '5300000003' . '610062'),
	'{"a": {"@bytes": "YQBi"}}',
	'a long string with a NUL');
is( json_of('arguments', '0161' . '4c' . 'ff' x 8),
	'{"a": -1}',
	"the standard's letter of an int64");

# Random tables: what comes out goes in again, and comes out the same.
srand 22;
my @kinds = split //, 'tbBsuIilLfdDSxTVFA';
my %size = (
	t => 1, b => 1, B => 1, s => 2, u => 2, I => 4, i => 4, l => 8, L => 8,
	f => 4, d => 8, D => 5, T => 8, V => 0);

sub random_bytes
{
	my ($n, @from) = @_;
	return join '', map { chr($from[ rand @from ]) } 1 .. $n;
}

sub random_value
{
	my ($depth) = @_;
	my $kind = $kinds[ rand($depth < 4 ? @kinds : @kinds - 2) ];
	my @from = rand() < .3 ? (0 .. 255) : (32 .. 126);

	return 'D' . chr(int rand 12) . random_bytes(4, 0 .. 255) if $kind eq 'D';
	return $kind . random_bytes($size{$kind}, rand() < .3 ? 0 : 0 .. 255)
	  if defined $size{$kind};
	my $value =
	    $kind eq 'F' ? random_table($depth + 1)
	  : $kind eq 'A' ? join('', map { random_value($depth + 1) } 1 .. rand 4)
	  : random_bytes(rand 20, @from);
	return $kind . pack('N', length $value) . $value;
}

sub random_table
{
	my ($depth) = @_;
	my $n = 0;
	return join '', map {
		my $name = (rand() < .2 ? '@' x rand 4 : '')
		  . (rand() < .1 ? 'int8' : 'n' . $n++);
		chr(length $name) . $name . random_value($depth)
	} 1 .. rand 6;
}

my @tables = map { unpack 'H*', random_table(1) } 1 .. 3000;
for my $db (sort keys %encoding)
{
	my ($rc, $out, $err) = $cluster->psql($db, <<EOS);
CREATE TABLE given AS
	SELECT decode(h, 'hex') AS b
	FROM unnest(string_to_array('@{[join ',', @tables]}', ',')) h;
CREATE TABLE got AS
	SELECT b, j, arguments(arguments(j)) AS again, arguments(j) AS e
	FROM (SELECT b, arguments(b) AS j FROM given OFFSET 0) _;
SELECT count(*), count(j), count(*) FILTER (WHERE j = again),
	count(*) FILTER (WHERE length(e) = length(b)) > 2000 FROM got;
EOS
	is($err, '', "$db: random tables raise nothing");
	is($out, '3000|3000|3000|t', "$db: and come back the same");
}

# ---------------------------------------------------------------------------
# Other encodings

is(hex_of('arguments', '{"\u00e4": "caf\u00e9"}', 'latin'),
	'02c3a4' . '5300000005' . '636166c3a9', 'LATIN1: texts travel in UTF-8');
is(json_of('arguments', '02c3a4' . '5300000005' . '636166c3a9', 'latin'),
	"{\"\xc3\xa4\": \"caf\xc3\xa9\"}", 'LATIN1: and come back');
is( json_of(
		'properties',
		'2080' . '0000000d' . '04e282ac7a' . '5300000003' . 'e282ac' . '0461e282ac',
		'latin'),
	'{"headers": {"?z": {"@bytes": "4oKs"}}, "message_id": "a?"}',
	'LATIN1: what it cannot represent');
like(
	ask(q{SELECT raised('properties', jsonb_build_object('type', repeat(chr(228), 128)))},
		'latin'),
	qr/^54000/,
	'LATIN1: 128 characters are 256 bytes of UTF-8');
is(json_of('arguments', '0161' . '5300000003' . 'e282ac', 'bytes'),
	"{\"a\": \"\xe2\x82\xac\"}", 'SQL_ASCII: UTF-8 as it is');
like(
	ask(q{SELECT raised('properties', jsonb_build_object('type', convert_from('\xe9', 'SQL_ASCII')))},
		'bytes'),
	qr/^22021/,
	'SQL_ASCII: what is not UTF-8 cannot be sent');

done_testing();

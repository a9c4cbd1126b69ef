# Each process of a subscription dies before and after each step, by itself or
# with the whole server: every message takes effect exactly once.

use strict;
use warnings;

use Cwd ();
use File::Basename qw(dirname);
use PostgreSQL::Test::Utils;
use Test::More;
use TpcAmqp;
use TpcTest;

plan skip_all => 'this build has no failpoints'
  unless TpcTest::has_failpoints();

my $source;
BEGIN { $source = Cwd::realpath(dirname(__FILE__)) . '/../src' }
my $SECONDS = 30;

# step, the situation it is in, what becomes of who comes by:
#   fresh   the message is new
#   bad     its first run fails
#   last    so do all
#   again   it has been delivered before
#   early   another run of it is not finished
my @steps = (
	[ 'S1.before', 'fresh', qw(kill fatal) ],
	[ 'S1.after', 'fresh', qw(kill fatal) ],
	[ 'S2.before', 'fresh', qw(kill fatal error) ],
	[ 'S2.after', 'fresh', qw(kill fatal error) ],
	[ 'S2.after', 'bad', qw(kill) ],
	[ 'S3.before', 'fresh', qw(kill fatal error) ],
	[ 'S3.after', 'fresh', qw(kill fatal) ],
	[ 'S4.before', 'fresh', qw(kill fatal) ],
	[ 'S4.after', 'fresh', qw(kill fatal) ],
	[ 'S4.before', 'bad', qw(kill) ],
	[ 'S5.before', 'bad', qw(kill fatal error) ],
	[ 'S5.after', 'bad', qw(kill fatal) ],
	[ 'S5.before', 'again', qw(kill fatal) ],
	[ 'S5.after', 'again', qw(kill fatal) ],
	[ 'S5.before', 'early', qw(kill fatal error) ],
	[ 'S5.after', 'early', qw(kill fatal) ],
	[ 'S6.before', 'bad', qw(kill fatal error) ],
	[ 'S6.after', 'bad', qw(kill fatal) ],
	[ 'S7.before', 'last', qw(kill fatal error) ],
	[ 'S7.after', 'last', qw(kill fatal) ],);

my $broker = TpcTest::Broker->of_this_file;
my $amqp = TpcAmqp->new($broker);
my $cluster = TpcTest->new_cluster('crash', "autovacuum = off\n");
my $shop = TpcTest->new_node($cluster, 'crash', 'crash', broker => $broker,
	setup => <<'EOS');
CREATE TABLE public.done (id text, attempt int);
CREATE SEQUENCE public.runs;
CREATE FUNCTION public.take(arg jsonb) RETURNS void LANGUAGE plpgsql AS $$
	DECLARE run bigint := nextval('public.runs');
	BEGIN
		IF arg->>'body' = 'killer' THEN
			PERFORM public.tpc_test_failpoint('S2.after', 'kill');
			RETURN;
		END IF;
		IF arg->>'body' LIKE 'last%' OR
		   arg->>'body' LIKE 'bad%' AND run = 1 THEN
			RAISE EXCEPTION 'bad';
		END IF;
		INSERT INTO public.done VALUES
			(arg->'properties'->>'message_id', (arg->>'delivery_count')::int);
	END $$;
SELECT tpc_amqp.register_handler('take', 'public.take(jsonb)');
EOS
$amqp->declare('work');
$shop->sql(q{SELECT tpc_amqp.subscribe('work', 'take',
	on_error => '{"retries": 2, "backoff": 50, "then": "drop"}')});
my $active = "SELECT state = 'active' FROM tpc_amqp.subscriptions";
$shop->poll($active);

my %in_source;
for my $file (glob "$source/*.c")
{
	$in_source{$_} = 1
	  for grep { /^S/ }
	  slurp_file($file) =~ /TPC_FAILPOINT\("([^"]+)"\)/g;
}
my %have = map { $_->[0] => 1 } @steps;
is( join(' ', sort keys %have),
	join(' ', sort keys %in_source),
	'every failpoint has a case');

my $serial = 0;

# Returns what is wrong, or nothing.
sub crash
{
	my ($step, $situation, $action) = @_;
	my $offset = TpcTest->log_size($cluster);
	my $id = 'c' . ++$serial;
	my @wrong;
	my $other;

	if ($situation eq 'early')
	{
		$other = $shop->session;
		$other->query_safe("BEGIN;
			INSERT INTO tpc_amqp.consumed VALUES ('work', '$id')");
	}
	$shop->ask('ALTER SEQUENCE public.runs RESTART');
	if ($situation eq 'again')
	{
		# one that was in memory when the connection was lost
		$shop->ask("SELECT public.tpc_test_failpoint('S2.before', 'fatal:once')");
	}
	$shop->ask("SELECT public.tpc_test_failpoint('$step', '$action:once')");
	$amqp->send('', 'work', TpcAmqp->user("$situation $id", message_id => $id));
	my $sign =
	  $action eq 'kill'
	  ? qr/was terminated by signal 9/
	  : qr/failpoint "\Q$step\E"/;
	{
		local $TpcTest::TIMEOUT = $SECONDS;
		eval { TpcTest->wait_for_log($cluster, $sign, $offset); 1 }
		  or push @wrong, "not reached: $@";
		# which comes to nothing
		eval { $other->quit } if defined $other;
		if ($situation eq 'last')
		{
			eval {
				$shop->ask_for("SELECT count(*) = 1 FROM tpc_amqp.failed_messages
					WHERE message_id = '$id' AND state = 'dropped'");
			} or push @wrong, "not dropped: $TpcTest::last_seen";
		}
		else
		{
			eval {
				$shop->ask_for(
					"SELECT count(*) = 1 FROM public.done WHERE id = '$id'");
			} or push @wrong, "not taken: $TpcTest::last_seen";
		}
		# another one, after which there is nothing of either left
		$amqp->send('', 'work', TpcAmqp->user("fresh", message_id => "$id+"));
		eval {
			$shop->ask_for(
				"SELECT count(*) = 1 FROM public.done WHERE id = '$id+'");
			$shop->ask_for("SELECT NOT EXISTS (SELECT FROM
				tpc_amqp.failed_messages WHERE state <> 'dropped')");
			$shop->ask_for("SELECT state = 'active' AND waiting = 0 AND
				running = 0 FROM tpc_amqp.subscriptions");
		} or push @wrong, "not settled: $TpcTest::last_seen";
	}
	my $done = $shop->ask("SELECT count(*) FROM public.done
		WHERE id IN ('$id', '$id+')");
	my $expected = $situation eq 'last' ? 1 : 2;
	push @wrong, "$done effects, $expected expected" if $done ne $expected;
	return @wrong;
}

for my $case (@steps)
{
	my ($step, $situation, @actions) = @$case;

	for my $action (@actions)
	{
		my @wrong = crash($step, $situation, $action);
		ok(!@wrong, "$action at $step, $situation")
		  or diag(join "\n", @wrong);
		$shop->ask("SELECT public.tpc_test_failpoint_clear('$_')")
		  for $step, 'S2.before';
	}
}

# ---- a message whose handler ends the server is run a bounded number of times

{
	my $offset = TpcTest->log_size($cluster);
	my $crashes = 0;

	$amqp->send('', 'work', TpcAmqp->user('killer', message_id => 'killer'));
	eval {
		local $TpcTest::TIMEOUT = 60;
		$shop->ask_for("SELECT count(*) = 1 FROM tpc_amqp.failed_messages
			WHERE message_id = 'killer' AND state = 'dropped'
				AND sqlstate = '57P02'");
		1;
	} or diag($@);
	$crashes = () =
	  slurp_file($cluster->logfile, $offset) =~ /terminated by signal 9/g;
	is($crashes, 4, 'a message that ends the server is run retries + 2 times');
}
$amqp->send('', 'work', TpcAmqp->user('fresh', message_id => 'end'));
$shop->ask_for("SELECT count(*) = 1 FROM public.done WHERE id = 'end'");
pass('and the next one is taken');

# ---- until a failure is written down, no other worker has the message …

$amqp->declare($_) for 'late', 'dead';
$shop->sql(q{SELECT tpc_amqp.subscribe('late', 'take',
	on_error => '{"retries": 1, "backoff": "1 h", "then": "dead-letter",
		"exchange": "", "routing_key": "dead"}')});
my $late = "FROM tpc_amqp.failed_message WHERE queue = 'late'";

# Until the last run of a message has failed, but that is not written down.
sub fail_late
{
	my ($id) = @_;

	$amqp->send('', 'late', TpcAmqp->user('last', message_id => $id));
	$shop->ask_for("SELECT count(*) = 1 $late AND attempts = 1");
	$shop->ask("SELECT public.tpc_test_failpoint('S5.before', 'wait')");
	$shop->ask('UPDATE tpc_amqp.failed_message SET next_attempt_at = now()');
	$shop->failpoint_reached('S5.before');
}

# The failure is written down.
sub note_late
{
	my ($failed) = @_;

	$shop->ask("SELECT public.tpc_test_failpoint_clear('S5.before')");
	$shop->ask_for("SELECT failed = $failed AND dead_lettered = 1
		FROM tpc_amqp.subscriptions WHERE queue = 'late'");
	$shop->ask_for("SELECT NOT EXISTS (SELECT $late)");
	$shop->ask_for("SELECT NOT EXISTS (SELECT FROM pg_stat_activity
		WHERE backend_type ~ 'consume worker' AND state <> 'idle')");
	$shop->ask_for('SELECT count(*) = 0 FROM tpc_amqp.publications');
}

fail_late('late');
# the other worker looks twice a second
$shop->ask('UPDATE tpc_amqp.failed_message SET next_attempt_at = now()');
$shop->ask_for("SELECT count(*) = 1 $late
	AND next_attempt_at <= now() - interval '3 s'");
note_late(2);
is($amqp->get('dead')->{body}, 'last', 'a message is dead-lettered');
is($amqp->try_get('dead'), undef, 'once, though its failure was noted late');

# … and who drops it meanwhile has dropped it.

fail_late('dropped');
is($shop->ask("SELECT tpc_amqp.drop_message(id) $late"),
	't', 'a message that has failed is dropped');
note_late(4);
is($amqp->try_get('dead'), undef, 'and not dead-lettered after that');

# ---- nothing twice, ever

is( $shop->ask('SELECT count(*) - count(DISTINCT id) FROM public.done'),
	0, 'no message took effect twice');

done_testing();

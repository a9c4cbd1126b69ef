# The participant of examples/: a ledger in Python and SQLite that commits
# together with two databases, whoever of them dies.

use strict;
use warnings;

use Cwd ();
use File::Basename;
use IPC::Run;
use PostgreSQL::Test::Utils;
use Test::More;
use TpcAmqp;
use TpcPair;
use TpcTest;

my $here = Cwd::realpath(dirname(__FILE__));
my $python = '/usr/bin/python3';
my $db = PostgreSQL::Test::Utils::tempdir() . '/ledger.db';
my $broker = TpcTest::Broker->of_this_file;
my $prepares = 'tpc_amqp.ledger.prepare';
my $decisions = 'tpc_amqp.ledger.decision';
my %ledger;
my $id = 0;

system($python, '-c', 'import pika') == 0
  or BAIL_OUT("this needs python3-pika: scripts/deps run-tests");

my ($blog, $reviews) = TpcPair::new_pair(
	broker => $broker,
	blog_user => 'part_blog',
	reviews_user => 'part_reviews',
	options => { peer_user => 'part_%n' },
	conf => <<'EOC');
tpc_amqp.prepare_timeout = 60s
tpc_amqp.apply_timeout = 60s
tpc_amqp.resolve_interval = 500ms
EOC
my @nodes = ($blog, $reviews);
TpcPair::connected(@nodes);

# Its rights are those of a node.
my $rights = '^tpc_amqp(\.ledger\.|$)';
$broker->add_user($_, "secret of $_") for qw(part_ledger part_stranger);
$broker->allow('part_ledger', ($rights) x 3);

# ---------------------------------------------------------------------------
# The process

sub start_process
{
	my ($database, @command) = @_;
	(my $vhost = $broker->vhost) =~ s{/}{%2F}g;
	local $ENV{AMQP_URL} = sprintf 'amqp://part_ledger:%s@%s:%d/%s',
	  'secret%20of%20part_ledger', $broker->host, $broker->port, $vhost;
	local $ENV{PYTHONDONTWRITEBYTECODE} = 1;
	my $log = "$PostgreSQL::Test::Utils::log_path/090_participant_ledger.log";
	my $from = (-s $log) // 0;

	return {
		log => $log,
		from => $from,
		handle => IPC::Run::start(
			[ $python, @command, 'ledger', $database ],
			'<', '/dev/null', '>>', $log, '2>>', $log)
	};
}

# start_ledger STEP: stops there, if it is given one.
sub start_ledger
{
	my ($step) = @_;

	%ledger = %{
		start_process(
			$db,
			$step
			? ("$here/clients/stopping.py", $step)
			: "$here/../examples/participant.py")
	};
	return;
}

sub pid
{
	my ($process) = @_;
	return $process->{handle}{KIDS}[0]{PID};
}

sub kill9
{
	my ($process) = @_;
	my $handle = delete $process->{handle} or return;

	kill 'KILL', $handle->{KIDS}[0]{PID};
	$handle->finish;
	return;
}

sub thaw_ledger { return kill 'CONT', pid(\%ledger) }

sub stopped
{
	my ($step) = @_;

	TpcTest::poll_until(
		sub {
			slurp_file('/proc/' . pid(\%ledger) . '/stat') =~ /\) T /;
		},
		"the ledger to stop: $step");
	return;
}

sub says
{
	my ($process, $regexp, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	TpcTest::poll_until(
		sub {
			substr(slurp_file($process->{log}), $process->{from}) =~ $regexp;
		},
		"the ledger to say $regexp");
	return pass($name);
}

END
{
	my $status = $?;
	kill9(\%ledger);
	$? = $status;
}

# ledger QUERY: its output, as psql would print it.
sub ledger
{
	my ($query) = @_;
	my ($out, $err) = ('', '');

	IPC::Run::run([ $python, '-c', <<'EOP', $db, $query ], '>', \$out, '2>', \$err)
import sqlite3, sys
for row in sqlite3.connect(sys.argv[1]).execute(sys.argv[2]):
    print("|".join(map(str, row)))
EOP
	  or die "$query: $err";
	chomp $out;
	return $out;
}

sub ledger_is
{
	my ($query, $expected, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return is(ledger($query), $expected, $name);
}

my $IN_DOUBT = "SELECT count(*) FROM branch WHERE state = 'prepared'";
my $COMMITTED = <<'EOS';
SELECT coalesce(sum(amount), 0) FROM booking JOIN branch USING (gtid)
WHERE state = 'committed' AND account =
EOS

sub in_doubt
{
	my ($n) = @_;

	return TpcTest::poll_until(
		sub { ledger($IN_DOUBT) == $n },
		"$n prepared branches of the ledger");
}

# ---------------------------------------------------------------------------
# Transactions: a row in each database, and a booking

my %has = (ann => 0);
my %bad_note = (arg => '{"id": 1, "note": "' . ('x' x 100) . '"}');

# named OPTIONS: account, amount, and those of TpcPair::transaction
sub named
{
	my (%opts) = @_;
	my $account = delete $opts{account} // 'ann';
	my $amount = delete $opts{amount} // 1;
	my $after = delete $opts{after} // '';

	return TpcPair::transaction(
		++$id, %opts,
		after => "SELECT tpc_amqp.call('ledger', 'book',
			'{\"account\": \"$account\", \"amount\": $amount}');\n$after");
}

sub prepared_as
{
	my ($gid, %opts) = @_;
	(my $sql = named(%opts)) =~ s/COMMIT;\n\z/PREPARE TRANSACTION '$gid';/;
	return $sql;
}

sub rows
{
	return TpcPair::blog_has($blog, $id) . TpcPair::reviews_has($reviews, $id);
}

# Tests of what there is afterwards.
sub on_all
{
	my ($name, $amount) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	is(rows(), '11', "$name: both databases have it");
	$has{ann} += $amount // 1;
	return ledger_is("$COMMITTED 'ann'", $has{ann}, '... and the ledger, once');
}

sub on_none
{
	my ($name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	is(rows(), '00', "$name: neither database has it");
	ledger_is("$COMMITTED 'ann'", $has{ann}, '... nor has the ledger');
	in_doubt(0);
	return ledger_is(
		'SELECT count(*) FROM booking LEFT JOIN branch USING (gtid)
			WHERE state IS NULL',
		0,
		'... of which nothing is left');
}

sub commits
{
	my ($name, %opts) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my (undef, $err, $rc) = $blog->try(named(%opts));

	is("$rc $err", '0 ', "$name: it commits");
	return on_all($name, $opts{amount});
}

sub refused
{
	my ($name, $regexp, $sql) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	like($blog->fails($sql), $regexp, $name);
	return on_none($name);
}

# ready: once it takes messages.
sub ready
{
	TpcTest::poll_until(
		sub {
			my (undef, $err, $rc) = $blog->try(
				q{SET tpc_amqp.prepare_timeout = '2s';
				SELECT tpc_amqp.call('ledger', 'left', '{"account": "ann"}')}
			);
			$TpcTest::last_seen = $err;
			return $rc == 0;
		},
		'the ledger to take part');
	return;
}

# finish RUN, NAME: it commits.
sub finish
{
	my ($run, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my (undef, $err, $rc) = $run->finish;

	is("$rc $err", '0 ', "$name: it commits");
	return on_all($name);
}

# stop_at STEP, OPTIONS: the run of a transaction, and the ledger stopped there.
sub stop_at
{
	my ($step, %opts) = @_;

	kill9(\%ledger);
	start_ledger($step);
	my $run = $blog->start(named(%opts));
	stopped($step);
	return $run;
}

sub restart
{
	kill9(\%ledger);
	start_ledger();
	return;
}

# ---------------------------------------------------------------------------
# All, or none

TpcTest->within(
	20,
	sub {
		like($blog->fails(named()),
			qr/42704.*"ledger" is not known/, 'never declared: an error');
	},
	'... at once');
is(rows(), '00', '... on neither database');

start_ledger();
ready();
commits('a deposit', amount => 100);
commits('a withdrawal', amount => -10);

my $no = $blog->fails(named(amount => -91));
like($no, qr/ERROR:  LD001: ann has only 90/, 'its no is the error of COMMIT');
like($no, qr/node "ledger", transaction/, '... and says whose it is');
on_none('too much');

refused(
	'no such handler',
	qr/ERROR:  42883: handler "spend" does not exist/,
	TpcPair::transaction(++$id, to => 'ledger', handler => 'spend'));
refused(
	'an argument that is none',
	qr/ERROR:  22023: bad amount/,
	named(amount => '"all"'));
refused(
	'a no of another participant',
	qr/ERROR:  23514/,
	named(%bad_note));
refused('an error at the coordinator',
	qr/ERROR:  22012/, named(after => 'SELECT 1/0;'));

# ---------------------------------------------------------------------------
# What is promised is kept

$blog->sql(prepared_as('take', amount => -60));
$blog->sql(prepared_as('bring', amount => 500));
ledger_is($IN_DOUBT, 2, 'two branches are prepared');
ledger_is("$COMMITTED 'ann'", 90, '... and have had no effect');
like($blog->fails(named(amount => -31)),
	qr/LD001: ann has only 30/, 'what they take is not there any more');
restart();
ready();
like($blog->fails(named(amount => -31)),
	qr/LD001: ann has only 30/, '... also after it was killed');
ledger_is($IN_DOUBT, 2, '... and they stay prepared');
$blog->sql(q{ROLLBACK PREPARED 'take'});
in_doubt(1);
commits('what was given back', amount => -90);
$blog->sql(q{COMMIT PREPARED 'bring'});
in_doubt(0);
$has{ann} += 500;
ledger_is("$COMMITTED 'ann'", $has{ann}, 'what was promised has been kept');

# Who only looks
$blog->sql(q{BEGIN; SELECT tpc_amqp.call('ledger', 'left',
	'{"account": "ann"}'); PREPARE TRANSACTION 'look'});
is( $blog->sql(q{SELECT vote, results FROM tpc_amqp.participants
		WHERE node = 'ledger'}),
	"read-only|{$has{ann}}",
	'a branch that writes nothing votes read-only, with its result');
$blog->sql(q{COMMIT PREPARED 'look'});
$blog->sql(q{SET tpc_amqp.prepare_wait = off; BEGIN;
	SELECT tpc_amqp.call('ledger', 'left', '{"account": "ann"}');
	PREPARE TRANSACTION 'look'});
in_doubt(1);
pass('... but is prepared where it must be');
$blog->sql(q{COMMIT PREPARED 'look'});
in_doubt(0);

# ---------------------------------------------------------------------------
# It is killed

kill9(\%ledger);
refused(
	'killed before: no vote',
	qr/ERROR:  40000: no vote from node "ledger" within 500 ms/,
	named(set => { prepare_timeout => '500ms' }));
start_ledger();
ready();
commits('killed before');

# What is in its database by then: prepared branches, and what is committed.
my %then = (
	prepare => '0 0',
	prepared => '1 0',
	voted => '1 0',
	decision => '1 0',
	decided => '0 1',
	acknowledged => '0 1');

sub then_is
{
	my ($step, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	return is(
		ledger($IN_DOUBT) . ' '
		  . (ledger("$COMMITTED 'ann'") - $has{ann}),
		$then{$step}, $name);
}

for my $step (qw(prepare prepared voted decision decided acknowledged))
{
	my $run = stop_at($step);

	then_is($step, "killed at $step: this is what has happened");
	restart();
	finish($run, "killed at $step");
	in_doubt(0);
	ready();
}

# Nobody waits for it any more when it comes back.
for my $step (qw(prepare prepared voted))
{
	my $run = stop_at($step, %bad_note);
	my (undef, $err) = $run->finish;

	like($err, qr/ERROR:  23514/, "rolled back while it stood at $step");
	then_is($step, '... this is what had happened');
	restart();
	ready();
	on_none("killed at $step");
}

# A rollback is not repeated: it has to ask.
my $lost = stop_at('voted', %bad_note);

$lost->finish;
kill9(\%ledger);
TpcTest::poll_until(
	sub {
		my %queues = $broker->queues;
		return !grep { $queues{$_}{consumers} } $prepares, $decisions;
	},
	'the broker to notice');
$broker->purge_queue($_) for $prepares, $decisions;
then_is('voted', 'the broker lost the rollback: it is prepared');
start_ledger();
on_none('the broker lost the rollback');

# The coordinator is killed, and asked when it is back.
for my $case (
	[ 'prepared', 'undecided', 0 ],
	[ 'decision', 'committed', 1 ])
{
	my ($step, $when, $committed) = @$case;
	my $run = stop_at($step);
	my $name = "the coordinator was killed when it was $when";

	TpcTest->kill9_server($blog->cluster);
	$blog->cluster->start;
	TpcPair::connected(@nodes);
	then_is($step, "$name: the ledger waits");
	restart();
	$run->finish;
	in_doubt(0);
	$committed ? on_all($name) : on_none($name);
}

$blog->sql(prepared_as('p'));
TpcTest->kill9_server($blog->cluster);
kill9(\%ledger);
start_ledger();
$blog->cluster->start;
TpcPair::connected(@nodes);
ledger_is($IN_DOUBT, 1, 'both killed, undecided: the ledger waits');
$blog->sql(q{COMMIT PREPARED 'p'});
in_doubt(0);
on_all('both killed');

# ---------------------------------------------------------------------------
# Repeated, made up, and not his to say

my $spy = TpcAmqp->new($broker);
my %as = map {
	$_ => TpcAmqp->new(
		$broker,
		user => "part_$_",
		password => "secret of part_$_")
} qw(blog stranger);
my $gtid;

# of_type TYPE, FIELDS: a message of blog's, right but for the fields.
sub of_type
{
	my ($type, %fields) = @_;
	my $body = '{"calls": [{"handler": "book",
		"arg": {"account": "eve", "amount": 1}}]}';

	return TpcAmqp->message(
		type => $type,
		gtid => $gtid,
		from => 'blog',
		user_id => 'part_blog',
		($type eq 'prepare' ? (timeout => 60000, body => $body) : ()),
		%fields);
}

# unused_gtid: of a transaction that sent nothing.
sub unused_gtid
{
	return $blog->sql(q{BEGIN; SELECT tpc_amqp.call('reviews', 'look', '{}');
		SELECT tpc_amqp.gtid(); ROLLBACK}) =~ m{(blog/\S+)} ? $1 : die;
}

# dealt_with QUEUE: once it has taken what is in there.
sub dealt_with
{
	my ($queue) = @_;

	return TpcTest::poll_until(
		sub {
			my %queues = $broker->queues;
			return $queues{$queue}{messages} == 0;
		},
		"the ledger to take what is in $queue");
}

$spy->spy('spy', $prepares, $decisions);
$blog->sql(prepared_as('p'));
my $prepare;
do { $prepare = $spy->get('spy') } until $prepare->{header} =~ /prepare/;
($gtid) = $prepare->{header} =~ m{(blog/[0-9a-f-]{36})} or die;
$as{blog}->publish($prepares, ($prepare) x 3);
dealt_with($prepares);
ledger_is($IN_DOUBT, 1, 'a repeated prepare: it is prepared once');

# Neither the decision nor the question is the stranger's.
$as{stranger}->publish($decisions,
	map { of_type($_, user_id => 'part_stranger') }
	  qw(commit rollback unknown));
$as{stranger}->publish($decisions,
	map { of_type($_, user_id => undef) } qw(commit rollback unknown));
says(\%ledger, qr/dropped: commit of \Q$gtid\E by 'part_stranger'/,
	'a decision of another user is dropped');
dealt_with($decisions);
ledger_is('SELECT state, reason FROM branch ORDER BY rowid DESC LIMIT 1',
	'prepared|None', '... and it stays prepared');

# What the coordinator cannot tell is left to a person, or to a decision yet.
$as{blog}->publish($decisions,
	of_type('unknown', body => '{"reason": "the log went back"}'));
dealt_with($decisions);
ledger_is('SELECT state, reason FROM branch ORDER BY rowid DESC LIMIT 1',
	'prepared|the log went back', 'unknown: it stays prepared, with the reason');
$blog->sql(q{COMMIT PREPARED 'p'});
in_doubt(0);
on_all('the decision that came after all');

my $commit;
do { $commit = $spy->get('spy') }
  until $commit->{header} =~ /\Q$gtid\E.*commit.*part_blog/s;
$as{blog}->publish($prepares, ($prepare) x 3);
$as{blog}->publish($decisions, ($commit) x 3);
restart();
$as{blog}->publish($prepares, ($prepare) x 3);
commits('repeated after the commit');
$as{blog}->publish($decisions, of_type('rollback'));
says(\%ledger, qr/\Q$gtid\E is committed here, and rolled back there/,
	'a rollback of what is committed is reported');

$gtid = substr($gtid, 0, -12) . 'ffffffffffff';
$as{blog}->publish($decisions, of_type('rollback'));
$as{blog}->publish($decisions, of_type('commit'));
says(\%ledger, qr/\Q$gtid\E is committed there, and lost here/,
	'a commit of what is not there is reported');
commits('decisions about nothing');

# A branch that another user had prepared under the same name is no yes to who
# could not commit it.
my $client = $blog->client(q{tpc_amqp.prepare_timeout = '1s'});
(my $work = named()) =~ s/COMMIT;\n\z//;
$client->run($work);
$client->run('SELECT tpc_amqp.gtid()');
$gtid = $client->out;
$as{stranger}->publish($prepares,
	of_type('prepare', user_id => 'part_stranger'));
in_doubt(1);
$client->run('COMMIT');
like($client->err, qr/40000: no vote from node "ledger"/,
	'a branch of another user: no vote');
$client->close;
$as{stranger}->publish($decisions,
	of_type('rollback', user_id => 'part_stranger'));
in_doubt(0);
on_none('a branch of another user');

# A vote of who was not asked does not count.
my $run = stop_at('prepared');
$gtid = TpcPair::waiting($blog, 'preparing');
my $bad = $blog->counter('bad_messages');
$as{stranger}->publish(
	'tpc_amqp.blog.vote',
	map {
		TpcAmqp->message(
			type => 'vote',
			gtid => $gtid,
			from => $_,
			user_id => 'part_stranger',
			body => '{"vote": "no"}')
	} qw(stranger ledger));
$blog->poll("SELECT bad_messages >= $bad + 2 FROM tpc_amqp.stat");
thaw_ledger();
finish($run, 'votes of a stranger');

# ---------------------------------------------------------------------------
# What is no message, and what pika cannot read

sub item
{
	my ($type, %fields) = @_;
	my %item = (
		type => qq("$type"),
		gtid => qq("$gtid"),
		timeout => 60000,
		body => '{"calls": [{"handler": "book",
			"arg": {"account": "eve", "amount": 1}}]}',
		%fields);
	return '{' . join(',', map { qq("$_":$item{$_}) } sort keys %item) . '}';
}

sub batch
{
	my (@items) = @_;
	return of_type(
		'batch',
		timeout => 60000,
		body => '[' . join(',', @items) . ']');
}

my $pid = pid(\%ledger);
$gtid = unused_gtid();
my @bodies = ('x', '[]', '{', "{\"a\":\"\xff\"}", '{"a":NaN}',
	'{"calls":[],"a":"\u0000"}', '{"calls":[],"a":"\ud800"}',
	'{"calls":[],"calls":[]}', '{"calls":{"a":1}}', '{"calls":[1]}',
	'{"calls":[{"handler":"book"}]}', '{"calls":' . '[' x 5000 . ']' x 5000 . '}',
	'{"calls":[{"handler":"book","arg":"ann"}]}',
	'{"calls":[{"handler":"book","arg":{"account":"eve","amount":1e3}}]}',
	'{"calls":[{"handler":"book","arg":{"account":"eve","amount":'
	  . '9' x 30 . '}}]}');
$as{blog}->publish(
	$prepares,
	TpcAmqp->plain(''),
	(map { of_type('prepare', body => $_) } @bodies),
	of_type('prepare', app_id => undef),
	of_type('prepare', version => 2),
	of_type('prepare', version => undef),
	of_type('prepare', timeout => undef),
	of_type('prepare', gtid => undef),
	of_type('prepare', gtid => uc $gtid),
	of_type('prepare', from => 'reviews'),
	of_type('prepare', from => undef),
	of_type('prepare', floor => 'x'),
	of_type('prepare', type => undef),
	of_type('commit'),
	batch(),
	batch((item('prepare')) x 65),
	batch(item('prepare'), '1'),
	batch(item('prepare'), item('prepare', timeout => '"60000"')),
	batch(item('prepare'), item('prepare', body => '[]')),
	batch(item('prepare', timeout => 0), item('batch'),
		item('prepare', gtid => '"blog/1"')));
$as{blog}->publish(
	$decisions,
	TpcAmqp->plain(''),
	of_type('prepare'),
	(map { of_type('commit', body => $_) } @bodies[ 0 .. 6 ]),
	of_type('rollback', body => '{"forgotten": 1}'),
	of_type('unknown', body => '{"reason": 1}'));
commits('bad messages');
dealt_with($decisions);
ledger_is("$COMMITTED 'eve'", 0, '... of which none had an effect');
is(ledger($IN_DOUBT), 0, '... nor is prepared');

# What is good in a batch does not suffer from what is bad.
$gtid = unused_gtid();
my $other = unused_gtid();
$as{blog}->publish(
	$prepares,
	batch(
		item('prepare', timeout => 0),
		item('prepare'),
		item('prepare', gtid => qq("$other")),
		item('prepare')));
says(\%ledger, qr/bad expiration/, 'a batch of good and bad');
dealt_with($prepares);
in_doubt(0);
commits('... of which the good are asked about, and rolled back');

my $nested = '';
$nested = "\1x" . 'F' . pack('N/a*', $nested) for 1 .. 3000;
for my $case (
	[ 'Recursion', 'F', pack 'N/a*', $nested ],
	[ 'Overflow', 'T', "\xff" x 8 ])
{
	my ($error, @header) = @$case;

	$as{blog}->publish($_,
		of_type('prepare', headers => { a => \@header }),
		of_type('commit', headers => { a => \@header }))
	  for $prepares, $decisions;
	says(\%ledger, qr/trying again: StreamLostError.*$error/,
		'what pika cannot read ends a connection');
	ready();
	commits('... but not for long');
}
is(pid(\%ledger), $pid, 'that was one process all the time');
ok(kill(0, $pid), '... which is still there');

# ---------------------------------------------------------------------------
# The broker

$broker->close_connections;
TpcPair::connected(@nodes);
ready();
commits('after it lost its connection');

$broker->delete_queue($prepares);
ready();
commits('after somebody deleted its queue');

my $second = start_process("$db.2", "$here/../examples/participant.py");
says($second, qr/403.*exclusive/, 'a second one of that name is refused');
kill9($second);
commits('... and does no harm');

TpcTest->no_prepared(map { $_->cluster } @nodes);
is( $_->sql("SELECT string_agg(i::text, ' ') FROM tpc_amqp.incidents i"),
	'', 'no incidents on ' . $_->name)
  for @nodes;
is( ledger('SELECT count(*) FROM booking LEFT JOIN branch USING (gtid)
		WHERE state IS NOT \'committed\''),
	0, 'and nothing is left in the ledger');

done_testing();

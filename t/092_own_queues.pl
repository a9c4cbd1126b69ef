# Transactions with queues of their own: txn_<uuid>_prepare, _commit and
# _rollback, by which one participant is reached.  It is the one of examples/,
# told of one transaction.

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
my $broker = TpcTest::Broker->of_this_file;
my $db = PostgreSQL::Test::Utils::tempdir() . '/ledger.db';
my $log = "$PostgreSQL::Test::Utils::log_path/092_own_queues_ledger.log";
my @ledgers;
my $id = 0;

system($python, '-c', 'import pika') == 0
  or BAIL_OUT("this needs python3-pika: scripts/deps run-tests");

my ($blog, $reviews) = TpcPair::new_pair(
	broker => $broker,
	conf => <<'EOC');
tpc_amqp.prepare_timeout = 60s
tpc_amqp.apply_timeout = 60s
tpc_amqp.resolve_interval = 500ms
EOC
TpcPair::connected($blog, $reviews);

END
{
	my $status = $?;
	kill9($_) for @ledgers;
	$? = $status;
}

# A process of the ledger, for one transaction; or as a node.
sub start_ledger
{
	my ($uuid, $step) = @_;
	(my $vhost = $broker->vhost) =~ s{/}{%2F}g;
	local $ENV{AMQP_URL} = sprintf 'amqp://guest:guest@%s:%d/%s',
	  $broker->host, $broker->port, $vhost;
	local $ENV{PYTHONDONTWRITEBYTECODE} = 1;
	my $ledger = {
		handle => IPC::Run::start(
			[
				$python,
				$step
				? ("$here/clients/stopping.py", $step)
				: "$here/../examples/participant.py",
				'ledger', $db, $uuid // ()
			],
			'<', '/dev/null', '>>', $log, '2>>', $log)
	};
	push @ledgers, $ledger;
	return $ledger;
}

sub pid { return $_[0]{handle}{KIDS}[0]{PID} }

sub kill9
{
	my ($ledger) = @_;
	my $handle = delete $ledger->{handle} or return;

	kill 'KILL', $handle->{KIDS}[0]{PID};
	$handle->finish;
	return;
}

# It leaves by itself once the transaction is over.
sub leaves
{
	my ($ledger, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	TpcTest::poll_until(sub { !$ledger->{handle}->pumpable },
		'the ledger to leave');
	$ledger->{handle}->finish;
	is($ledger->{handle}->result(0), 0, $name);
	delete $ledger->{handle};
	return;
}

sub stopped
{
	my ($ledger) = @_;

	return TpcTest::poll_until(
		sub { slurp_file('/proc/' . pid($ledger) . '/stat') =~ /\) T / },
		'the ledger to stop');
}

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

# What ann has, and how many branches are in doubt.
sub ledger_is
{
	my ($expected, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	return is(
		ledger("SELECT
			(SELECT coalesce(sum(amount), 0) FROM booking JOIN branch USING (gtid)
				WHERE state = 'committed'),
			(SELECT count(*) FROM branch WHERE state = 'prepared')"),
		$expected, $name);
}

# The coordinator has all acknowledgements.  What it had not noted when it
# crashed it asks for again; who has left does not hear it, but the node does.
sub forgotten
{
	my $node = start_ledger();

	$blog->poll('SELECT count(*) = 0 FROM tpc_amqp.decision');
	kill9($node);
	return;
}

sub own_queues
{
	my %queues = $broker->queues;
	return grep { /^txn_/ } sort keys %queues;
}

sub no_own_queues
{
	my ($name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	TpcTest::poll_until(sub { !own_queues() }, 'the queues to go');
	return pass($name);
}

# begin AMOUNT: a transaction that has asked for queues: its session, its uuid.
sub begin
{
	my ($amount, %opts) = @_;
	my $session = $blog->client(%opts ? "tpc_amqp.prepare_timeout = '$opts{timeout}'" : ());

	$id++;
	$session->run("BEGIN; INSERT INTO public.blogs VALUES ($id)");
	$session->run("SELECT tpc_amqp.own_queues('ledger')")
	  or die $session->err;
	(my $uuid = $session->out) =~ s/\s//g;
	$session->run("SELECT tpc_amqp.call('ledger', 'book',
		'{\"account\": \"ann\", \"amount\": $amount}');
		SELECT tpc_amqp.call('reviews', 'add_review', '{\"id\": $id}')")
	  or die $session->err;
	return ($session, $uuid);
}

sub rows
{
	return TpcPair::blog_has($blog, $id) . TpcPair::reviews_has($reviews, $id);
}

# ---------------------------------------------------------------------------
# All, or none

my ($session, $uuid) = begin(100);
is(join(' ', own_queues()),
	"txn_${uuid}_commit txn_${uuid}_prepare txn_${uuid}_rollback",
	'the queues are there at once');
like(
	$broker->ctl(
		'--no-table-headers', 'list_queues',
		'-p', $broker->vhost,
		qw(name auto_delete arguments)),
	qr/^txn_${uuid}_commit\ttrue\t.*x-expires.*120000/m,
	'and would go by themselves');
my $ledger = start_ledger($uuid);
ok($session->run('COMMIT'), 'a transaction with a node and its own queues')
  or diag $session->err;
is(rows(), '11', 'committed in both databases');
leaves($ledger, 'the ledger leaves');
ledger_is('100|0', 'and by the ledger');
no_own_queues('the queues are gone');

($session, $uuid) = begin(-200);
$ledger = start_ledger($uuid);
ok(!$session->run('COMMIT'), 'the ledger says no');
like($session->err, qr/LD001: ann has only 100/, 'which is the error');
is(rows(), '00', 'nothing in the databases');
leaves($ledger, 'the ledger leaves after its no');
no_own_queues('no queues after a no');

# It has prepared, and others say no.
($session, $uuid) = begin(1);
$session->run("SELECT tpc_amqp.call('reviews', 'nobody')");
$ledger = start_ledger($uuid);
ok(!$session->run('COMMIT'), 'another one says no');
leaves($ledger, 'the ledger is told to roll back');
ledger_is('100|0', 'and does');
no_own_queues('no queues after a rollback');

($session, $uuid) = begin(1);
$ledger = start_ledger($uuid);
$session->run('ROLLBACK');
leaves($ledger, 'a transaction that never asked for a vote');
no_own_queues('no queues after ROLLBACK');

($session, $uuid) = begin(1);
$session->close;
no_own_queues('nor after a session that has ended');

$session = $blog->client;
$session->run("BEGIN; SELECT tpc_amqp.own_queues('ledger'); COMMIT");
no_own_queues('nor after COMMIT with nothing to do');

# Nobody comes.
($session, $uuid) = begin(1, timeout => '300ms');
ok(!$session->run('COMMIT'), 'nobody takes the prepare');
like($session->err, qr/40000/, 'which ends in the time-out');
no_own_queues('and its queues are gone');

# Prepared by the application.
($session, $uuid) = begin(1);
$ledger = start_ledger($uuid);
ok($session->run("PREPARE TRANSACTION 'own'"), 'PREPARE TRANSACTION')
  or diag $session->err;
ledger_is('100|1', 'the ledger is prepared');
ok($session->run("COMMIT PREPARED 'own'"), 'COMMIT PREPARED');
leaves($ledger, 'tells the ledger');
ledger_is('101|0', 'which commits');
no_own_queues('and the queues are gone');

# ---------------------------------------------------------------------------
# Who dies

# The participant, in doubt: it has the queues made again if they are gone.
($session, $uuid) = begin(1);
$ledger = start_ledger($uuid, 'voted');
$session->run("SET LOCAL tpc_amqp.apply_timeout = '300ms'");
ok($session->run('COMMIT'), 'committed without the ledger');
like($session->err, qr/has not applied/, 'with a warning');
stopped($ledger);
kill9($ledger);
no_own_queues('the queues go with their last consumer');
ledger_is('101|1', 'the ledger is in doubt');
$ledger = start_ledger($uuid);
leaves($ledger, 'the ledger asks');
ledger_is('102|0', 'and commits');
no_own_queues('what it declared is gone, too');
forgotten();
pass('the coordinator has its acknowledgement');

# The coordinator's server, once it is decided.
($session, $uuid) = begin(1);
$ledger = start_ledger($uuid, 'voted');
$session->run("SET LOCAL tpc_amqp.commit_wait = 'decided'");
ok($session->run('COMMIT'), 'decided');
stopped($ledger);
$blog->cluster->stop('immediate');
kill 'CONT', pid($ledger);
$blog->cluster->start;
leaves($ledger, 'the ledger is told after the restart');
ledger_is('103|0', 'and has committed');
no_own_queues('no queues are left of a server that died');

# Meanwhile another node asks, which has no part in it, and wants the answer in
# queues that are not its own.
my $amqp = TpcAmqp->new($broker);
($session, $uuid) = begin(1);
$ledger = start_ledger($uuid, 'voted');
$session->run("SET LOCAL tpc_amqp.commit_wait = 'decided'");
ok($session->run('COMMIT'), 'decided again');
stopped($ledger);
kill9($ledger);
no_own_queues('the ledger is in doubt, without queues');
$blog->cluster->stop('immediate');
$blog->cluster->start;
TpcPair::connected($blog);
$amqp->spy('own', "txn_${uuid}_rollback");
$amqp->spy('standard', 'tpc_amqp.other.decision');
$amqp->publish('tpc_amqp.blog.vote', TpcAmqp->message(
		type => 'inquiry', gtid => "blog/$uuid", from => 'other',
		user_id => $broker->user, reply_to => $_))
  for "txn_${uuid}_vote", 'tpc_amqp.other.vote';
like($amqp->get('standard')->{header}, qr/rollback/,
	'who takes no part is told to roll back');
is($amqp->try_get('own'), undef, 'and the ledger does not hear of it');
$ledger = start_ledger($uuid);
leaves($ledger, 'the ledger asks');
ledger_is('104|0', 'and commits');
forgotten();

# … and before: no record of it.
($session, $uuid) = begin(1);
$ledger = start_ledger($uuid, 'voted');
my $lock = $reviews->session;
$lock->query_safe('BEGIN; LOCK TABLE public.reviews IN ACCESS EXCLUSIVE MODE');
my $run = $session;
$run->{psql}->{stdin} .= "COMMIT;\n";
$run->{psql}->{run}->pump_nb;
stopped($ledger);
$blog->cluster->stop('immediate');
$lock->query_safe('ROLLBACK');
kill 'CONT', pid($ledger);
$blog->cluster->start;
leaves($ledger, 'the ledger is told that it was rolled back');
ledger_is('104|0', 'and has');
no_own_queues('and no queues are left');
$lock->quit;

# ---------------------------------------------------------------------------
# What is refused

TpcPair::connected($blog, $reviews);
like($blog->fails("BEGIN; SELECT tpc_amqp.own_queues('ledger');
		SELECT tpc_amqp.own_queues('other')"),
	qr/0A000: .*are those of "ledger"/, 'two participants');
like($blog->fails("BEGIN; SELECT tpc_amqp.own_queues('ledger');
		SELECT tpc_amqp.call('ledger', 'book', kind => 'slow')"),
	qr/0A000: .*called by the queues of this transaction/, 'a kind');
like($blog->fails("SELECT tpc_amqp.own_queues('a/b')"),
	qr/42602/, 'a name that is none');
like($blog->fails("BEGIN READ ONLY; SELECT tpc_amqp.own_queues('ledger')"),
	qr/25006/, 'a read-only transaction');
is( $blog->sql("BEGIN; SELECT tpc_amqp.own_queues('ledger') =
			tpc_amqp.own_queues('ledger'); ROLLBACK"),
	't', 'again for the same one');

# Taken back with its savepoint, another one may have them.
is( $blog->sql("BEGIN; SAVEPOINT s; SELECT tpc_amqp.own_queues('other');
		ROLLBACK TO s; SELECT tpc_amqp.own_queues('ledger') IS NOT NULL;
		ROLLBACK") =~ /t\z/,
	1, 'after ROLLBACK TO SAVEPOINT');
no_own_queues('no queues are left');

TpcTest->no_prepared($blog->cluster, $reviews->cluster);
forgotten();
TpcPair::in_agreement($blog, $reviews);

done_testing();

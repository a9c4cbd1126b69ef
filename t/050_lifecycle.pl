# Attaching and detaching, starting and stopping, dropping, copying, standbys.

use strict;
use warnings;

use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);
use TpcTest;
use TpcPair;

my $broker = TpcTest::Broker->of_this_file;
my ($blog, $reviews) = TpcPair::new_pair(
	init => { allows_streaming => 1 },
	conf => <<'EOC',
tpc_amqp.resolve_interval = '200ms'
EOC
);
TpcPair::connected($blog, $reviews);

my $id = 0;

sub works
{
	my ($name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	TpcPair::connected($blog, $reviews);
	my (undef, $err, $rc) = $blog->try(TpcPair::transaction(++$id));
	is("$rc $err", '0 ', "$name: transactions commit");
	return;
}

sub workers
{
	my ($cluster, $db) = @_;
	return $cluster->safe_psql('postgres', "SELECT count(*)
		FROM pg_stat_activity WHERE datname = '$db'
		AND backend_type LIKE 'tpc_amqp%'");
}

# hold: a transaction whose handler waits for a lock; release() lets it go.
my $locker;

sub hold
{
	$locker = $reviews->session;
	$locker->query_safe('BEGIN; UPDATE public.stock SET amount = amount');
	my $run = $blog->start(
		TpcPair::transaction(
			++$id,
			handler => 'take',
			arg => '{"item": "apple", "amount": 1}',
			set => { prepare_timeout => '60s', apply_timeout => '60s' }));
	TpcPair::branch_is($reviews, 'running');
	return $run;
}

sub release
{
	$locker->query_safe('COMMIT');
	$locker->quit;
	return;
}

# hold_applied OPTIONS: one that waits to be applied; returns the resolver that
# is frozen, and the run.
sub hold_applied
{
	my (%set) = @_;
	my $resolver =
	  $reviews->sql('SELECT resolve_pids[1] FROM tpc_amqp.node');

	TpcTest->freeze($resolver);
	my $run = $blog->start(
		TpcPair::transaction(++$id, set => { apply_timeout => '60s', %set }));
	TpcPair::waiting($blog, 'committed');
	return ($resolver, $run);
}

sub both_have_it
{
	my ($name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	ok(TpcPair::settled(30, $blog, $reviews), "$name: nothing is in doubt")
	  or diag($TpcTest::last_seen);
	is(TpcPair::blog_has($blog, $id) . TpcPair::reviews_has($reviews, $id),
		'11', "$name: both nodes have it");
	return;
}

# ---------------------------------------------------------------------------
# Attaching

works('attached');
like($blog->fails("SELECT tpc_amqp.attach('rabbit', 'blog')"),
	qr/55006: database "blog" is already attached as node "blog"/,
	'attached already');

# attach_fails NAME, OPTIONS, USER MAPPING, REGEXP
my $lab = TpcTest->new_node(
	$blog->cluster, 'lab', 'lab', attach => 0);

sub attach_fails
{
	my ($name, $options, $mapping, $regexp) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $port = $broker->port;
	my $vhost = $broker->vhost;

	$lab->sql("DROP SERVER IF EXISTS lab CASCADE;
		CREATE SERVER lab FOREIGN DATA WRAPPER tpc_amqp
		OPTIONS (host '127.0.0.1', port '$port', vhost '$vhost');
		CREATE USER MAPPING FOR PUBLIC SERVER lab OPTIONS (
			\"user\" 'guest', password 'guest');
		$options; $mapping");
	my $err = $lab->fails("SELECT tpc_amqp.attach('lab', 'lab')");
	like($err, $regexp, "attach: $name");
	like($err, qr/ERROR:  (?:08...|28...|42...):/, '... with a SQLSTATE')
	  or diag($err);
	unlike($err, qr/geheim/, '... without the password');
	$lab->poll('SELECT count(*) = 0 FROM tpc_amqp.node');
	is($lab->sql("SELECT (SELECT count(*) FROM tpc_amqp.local_node) +
		(SELECT count(*) FROM pg_shseclabel WHERE label = 'lab')"),
		0, '... and nothing is left of it');
	is(workers($lab->cluster, 'lab'), 0, '... nor a worker');
	return;
}

my $nobody = PostgreSQL::Test::Cluster::get_free_port();
attach_fails('wrong port', "ALTER SERVER lab OPTIONS (SET port '$nobody')",
	'', qr/could not attach node "lab"\n.*DETAIL:  .*refused/s);
attach_fails('wrong password', '',
	q{ALTER USER MAPPING FOR PUBLIC SERVER lab
		OPTIONS (SET password 'geheim')}, qr/ACCESS_REFUSED|access refused/i);
attach_fails('unknown virtual host',
	"ALTER SERVER lab OPTIONS (SET vhost 'nowhere')",
	'', qr/vhost.*nowhere|NOT_ALLOWED|not allowed/i);

$lab->sql("BEGIN; SELECT tpc_amqp.attach('rabbit', 'lab'); ROLLBACK");
$lab->poll('SELECT count(*) = 0 FROM tpc_amqp.node');
is(workers($lab->cluster, 'lab'), 0, 'attach rolled back: no workers');
like($lab->fails(q{SELECT tpc_amqp.call('reviews', 'look')}),
	qr/55000: database "lab" is not attached/, '... and no calls');
$lab->sql("BEGIN; SAVEPOINT a; SELECT tpc_amqp.attach('rabbit', 'lab');
	ROLLBACK TO a; COMMIT");
$lab->poll('SELECT count(*) = 0 FROM tpc_amqp.node');
pass('attach rolled back to a savepoint');
$lab->attach;
TpcPair::connected($lab);
$lab->sql(q{SELECT tpc_amqp.call('reviews', 'add_review', '{"id": -1}')});
is(TpcPair::reviews_has($reviews, -1), 1, 'attached then: it works');

$lab->sql('BEGIN; SELECT tpc_amqp.detach(); ROLLBACK');
TpcPair::connected($lab);
pass('detach rolled back: the workers stay');
$lab->detach;
TpcTest::poll_until(sub { workers($lab->cluster, 'lab') == 0 },
	'the workers to leave');
pass('detach: the workers leave');
like($lab->fails(q{SELECT tpc_amqp.call('reviews', 'look')}),
	qr/55000: database "lab" is not attached/, '... and calls are refused');

# ---------------------------------------------------------------------------
# Restarts

$blog->cluster->restart;
$reviews->cluster->restart;
works('after a restart');
is(workers($lab->cluster, 'lab'), 0, 'a detached database stays so');

my $pids = $reviews->sql('SELECT messenger_pid || prepare_pids || resolve_pids
	FROM tpc_amqp.node');
$reviews->sql("SELECT pg_terminate_backend(pid) FROM unnest('$pids'::int[]) pid");
$reviews->poll("SELECT count(*) = 0 FROM pg_stat_activity
	WHERE pid = ANY ('$pids')");
works('after all workers were terminated');

# ---------------------------------------------------------------------------
# Sessions that wait, and stops

my $run = hold();
$blog->cluster->stop('fast');
my ($out, $err, $rc) = $run->finish;
like($err, qr/57P01/, 'fast shutdown while it waits for votes');
release();
$blog->cluster->start;
ok(TpcPair::settled(30, $blog, $reviews), '... nothing is in doubt');
is(TpcPair::blog_has($blog, $id), 0, '... rolled back');
works('after that');

# Smart shutdown waits for sessions, and they for their votes.
$run = hold();
my $stop = IPC::Run::start(
	[ 'pg_ctl', '-D', $blog->cluster->data_dir, '-m', 'smart', '-w', '-t',
		'60', 'stop' ],
	'<', '/dev/null', '>', '/dev/null', '2>', '/dev/null');
TpcTest->wait_for_log($blog->cluster, qr/received smart shutdown request/);
release();
$stop->finish;
($out, $err, $rc) = $run->finish;
ok($rc == 0 || $err =~ /ERROR|FATAL/,
	'smart shutdown while it waits for votes: an answer')
  or diag("$rc $err");
my $told = $rc;
$blog->cluster->_update_pid(0);
$blog->cluster->start;
ok(TpcPair::settled(30, $blog, $reviews), '... nothing is in doubt')
  or diag($TpcTest::last_seen);
is(TpcPair::blog_has($blog, $id), $told ? 0 : 1, '... and it is true');
works('after that');

my $resolver;
($resolver, $run) = hold_applied();
$blog->cluster->stop('fast');
($out, $err, $rc) = $run->finish;
like($err, qr/WARNING: .*canceling the wait for participants and terminating/,
	'fast shutdown while it waits to be applied: a warning');
TpcTest->thaw($resolver);
$blog->cluster->start;
both_have_it('fast shutdown while it waits to be applied');

($resolver, $run) = hold_applied();
my $pid = TpcPair::backend($blog, "query = 'COMMIT;'");
$blog->sql("SELECT pg_cancel_backend($pid)");
($out, $err, $rc) = $run->finish;
like($err, qr/WARNING: .*canceling wait for participants due to user request/,
	'cancel of the wait to be applied: a warning');
like($err, qr/DETAIL:  .*already committed.*"reviews"/,
	'... which names the node');
is($rc, 0, '... and COMMIT succeeds');
TpcTest->thaw($resolver);
both_have_it('cancel of the wait to be applied');

($resolver, $run) = hold_applied(apply_timeout => '300ms');
($out, $err, $rc) = $run->finish;
like($err, qr/WARNING: .*node "reviews" has not applied .* within 300 ms/,
	'apply_timeout: a warning that names the node');
is($rc, 0, '... and COMMIT succeeds');
TpcTest->thaw($resolver);
both_have_it('apply_timeout');

# ---------------------------------------------------------------------------
# Detaching with branches in doubt

($resolver, $run) = hold_applied(apply_timeout => '60s');
($out, $err, $rc) = $reviews->try('SELECT tpc_amqp.detach()');
like($err, qr/WARNING:  1 branch is in doubt/, 'detach warns of branches in doubt');
TpcTest->thaw($resolver);
$reviews->poll('SELECT count(*) = 0 FROM tpc_amqp.node');
SKIP:
{
	# It may have been finished before its worker heard of the end.
	skip 'the branch was finished first', 1
	  if TpcPair::unfinished($reviews) eq '';
	is(scalar(TpcTest->prepared($reviews->cluster)), 1, '... which stay');
}
$reviews->attach;
TpcPair::connected($reviews);
both_have_it('attached again');
(undef, $err, $rc) = $run->finish;
is($rc, 0, '... and COMMIT returned');

# ---------------------------------------------------------------------------
# Commands that need the database to themselves

sub quickly
{
	my ($name, $cluster, $sql, $fails) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $start = time();
	my ($code, $o, $e) = $cluster->psql('postgres', $sql);

	cmp_ok(time() - $start, '<', 10, "$name: takes no time");
	$fails ? like($e, $fails, "$name: fails") : is($e, '', "$name: succeeds");
	return;
}

$lab->attach;
TpcPair::connected($lab);
my $session = $lab->session;
$session->query_safe('SELECT 1');
for my $case (
	[ 'DROP DATABASE', 'DROP DATABASE lab' ],
	[ 'RENAME', 'ALTER DATABASE lab RENAME TO lab2' ],
	[ 'a copy', 'CREATE DATABASE lab2 TEMPLATE lab' ])
{
	quickly("$case->[0] with a session in the way", $blog->cluster,
		$case->[1], qr/being accessed by other users/);
	TpcPair::connected($lab);
	pass('... and the workers come back');
}
$session->quit;
quickly('a copy', $blog->cluster, 'CREATE DATABASE lab3 TEMPLATE lab');
TpcPair::connected($lab);
is(workers($blog->cluster, 'lab3'), 0, 'the copy is not attached');
quickly('DROP of the copy', $blog->cluster, 'DROP DATABASE lab3');
quickly('RENAME', $blog->cluster, 'ALTER DATABASE lab RENAME TO lab2');
$lab->{db} = 'lab2';
TpcPair::connected($lab);
pass('RENAME: the workers come back');

my $start = time();
like($lab->fails('BEGIN; DROP EXTENSION tpc_amqp'), qr/2BP01/,
	'DROP EXTENSION with servers in the way');
TpcPair::connected($lab);
pass('... and the workers come back');
$lab->sql('BEGIN; DROP EXTENSION tpc_amqp CASCADE; ROLLBACK');
TpcPair::connected($lab);
pass('DROP EXTENSION rolled back: the workers come back');
$lab->sql('DROP EXTENSION tpc_amqp CASCADE');
cmp_ok(time() - $start, '<', 30, 'DROP EXTENSION takes no time');
TpcTest::poll_until(sub { workers($lab->cluster, 'lab2') == 0 },
	'the workers to leave');
quickly('DROP DATABASE', $blog->cluster, 'DROP DATABASE lab2');
works('after that');

# ---------------------------------------------------------------------------
# Copies from a dump

my $dump = $PostgreSQL::Test::Utils::tmp_check . '/dump.sql';
$reviews->cluster->command_ok(
	[ 'pg_dump', '-d', $reviews->connstr, '-f', $dump ], 'pg_dump');
$reviews->cluster->safe_psql('postgres', 'CREATE DATABASE copy');
$reviews->cluster->command_ok(
	[
		'psql', '-Xq', '-v', 'ON_ERROR_STOP=1', '-d',
		$reviews->cluster->connstr('copy'), '-f', $dump
	],
	'restored');
is( $reviews->cluster->safe_psql('copy',
		'SELECT count(*) FROM tpc_amqp.node
		UNION ALL SELECT count(*) FROM tpc_amqp.local_node'),
	"0\n0", 'a copy from a dump is not attached');
is( $reviews->cluster->safe_psql('copy',
		"SELECT count(*) FROM tpc_amqp.handlers WHERE name = 'add_review'"),
	1, '... and has the handlers');

# ---------------------------------------------------------------------------
# Servers that are not set up for it

my $plain = TpcTest->new_cluster('plain', { start => 0 });
$plain->append_conf('postgresql.conf', "max_prepared_transactions = 0\n");
$plain->start;
my $bare = TpcTest->new_node($plain, 'bare', 'bare', attach => 0);
like($bare->fails("SELECT tpc_amqp.attach('rabbit', 'bare')"),
	qr/55000: prepared transactions are disabled/,
	'max_prepared_transactions = 0');
$plain->append_conf('postgresql.conf', "shared_preload_libraries = ''\n");
$plain->restart;
like($bare->fails("SELECT tpc_amqp.attach('rabbit', 'bare')"),
	qr/55000: tpc_amqp must be loaded via "shared_preload_libraries"/,
	'not preloaded: attach');
like($bare->fails("SELECT tpc_amqp.call('bare', 'x')"),
	qr/55000: tpc_amqp must be loaded via "shared_preload_libraries"/,
	'not preloaded: call');
$plain->stop;

# ---------------------------------------------------------------------------
# A standby, and its promotion

$blog->cluster->backup('base');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($blog->cluster, 'base', has_streaming => 1);
$standby->start;
$blog->cluster->wait_for_catchup($standby, 'replay');
is(workers($standby, 'blog'), 0, 'no workers on a standby');
my $there = bless { %$blog, cluster => $standby }, 'TpcTest::Node';
like($there->fails(q{SELECT tpc_amqp.call('reviews', 'look')}),
	qr/25006: /, 'no calls on a standby');

# One transaction is prepared there when its coordinator fails over.
my $gtid = $blog->sql(q{BEGIN; SELECT tpc_amqp.call('reviews', 'look')
	\; SELECT tpc_amqp.gtid(); ROLLBACK});
($gtid) = $gtid =~ m{(blog/\S+)};
(my $uuid = $gtid) =~ s{blog/}{};
my $gid = "tpc_amqp:$gtid:reviews";
$blog->cluster->wait_for_catchup($standby, 'replay');
$blog->cluster->stop('fast');
$reviews->sql("BEGIN; INSERT INTO public.reviews (id) VALUES (-5);
	INSERT INTO tpc_amqp.branch VALUES ('blog', '$uuid', '$gid', 'guest', now());
	PREPARE TRANSACTION '$gid'");
$standby->promote;
my $old = $blog;
$blog = $there;
works('after promotion');
is($blog->sql("SELECT tpc_amqp.outcome('$gtid')"),
	'unknown', 'a transaction of the old timeline: unknown');
$reviews->poll("SELECT count(*) = 1 FROM tpc_amqp.incidents
	WHERE kind = 'unknown' AND gtid = '$gtid'");
is(TpcPair::unfinished($reviews), $gid, '... and its branch stays, listed');
$standby->append_conf('postgresql.conf',
	"tpc_amqp.failover_presumes_abort = on\n");
$standby->reload;
ok(TpcPair::settled(30, $reviews),
	'failover_presumes_abort: it is rolled back');
is(TpcPair::reviews_has($reviews, -5), 0, '... and not there');
works('after all');

unlike(slurp_file($_->cluster->logfile), qr/PANIC|signal 11|TRAP|signal 6/,
	'no crash of ' . $_->cluster->name)
  for $old, $blog, $reviews;

done_testing();

# The life of a node: restart, attach, detach, commands that need the database
# to themselves, dumps, servers that are not set up for it.

use strict;
use warnings;

use IO::Socket::INET;
use PostgreSQL::Test::Utils;
use Test::More;
use TpcTest;
use TpcPair;

# Bound on what shall not take long, in seconds.
my $QUICK = 10;

my ($blog, $reviews) = TpcPair::new_pair(
	conf => <<'EOC',
tpc_amqp.resolve_interval = 500ms
tpc_amqp.lock_timeout = 60s
EOC
	blog_setup => <<'EOS',
CREATE FUNCTION public.note(arg jsonb) RETURNS void LANGUAGE sql AS
	$$INSERT INTO public.blogs VALUES ((arg->>'id')::int, 'handled')$$;
SELECT tpc_amqp.register_handler('note', 'public.note(jsonb)',
	callers => '{reviews}');
EOS
);
my $stock = TpcTest->new_node(
	$reviews->cluster, 'stock', 'stock',
	setup => $TpcPair::REVIEWS_SETUP);
my $broker = $blog->broker;
my $id = 0;

TpcPair::connected($blog, $reviews, $stock);

# is_no_node NODE, WHAT: it has no workers, no place, no record.
sub is_no_node
{
	my ($node, $what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	$node->poll('SELECT count(*) = 0 FROM tpc_amqp.node');
	TpcTest::poll_until(
		sub { return TpcTest->workers($node->cluster, $node->db) == 0 },
		'the workers of ' . $node->db . ' to leave');
	return is(
		$node->sql(
			"SELECT (SELECT count(*) FROM tpc_amqp.local_node),
			(SELECT count(*) FROM pg_shseclabel s JOIN pg_database d
				ON d.oid = s.objoid AND s.classoid = 'pg_database'::regclass
				WHERE d.datname = current_database()),
			(SELECT count(*) FROM tpc_amqp.live_transactions())"),
		'0|0|0', "$what: nothing is left behind");
}

# commits NAME: a test that a transaction does.
sub commits
{
	my ($name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	$id++;
	TpcPair::connected($blog, $reviews);
	my (undef, $err, $rc) = $blog->try(TpcPair::transaction($id));
	is("$rc $err", '0 ', "$name: a transaction commits");
	return is(
		TpcPair::blog_has($blog, $id) . TpcPair::reviews_has($reviews, $id),
		'11', '... on both nodes');
}

my %patient = (prepare_timeout => '60s', apply_timeout => '60s');

# ---------------------------------------------------------------------------
# A restart needs no list of databases

my $first = $blog->sql('SELECT incarnation FROM tpc_amqp.node');
$_->cluster->restart for $blog, $reviews;
TpcPair::connected($blog, $reviews, $stock);
pass('workers are back after a restart');
is( $blog->sql(
		"SELECT name, incarnation > $first, broker FROM tpc_amqp.node"),
	'blog|t|127.0.0.1:' . $broker->port . '/' . $broker->vhost,
	'... as the same node, with a new incarnation');
commits('after a restart');
is($blog->sql("SELECT label FROM pg_shseclabel"),
	'blog', 'a label says that the database is attached');

# ---------------------------------------------------------------------------
# Detach, and a second attach

my (undef, $err, $rc) = TpcTest->within($QUICK,
	sub { return $blog->try('SELECT tpc_amqp.detach()') },
	'detach does not take long');
is("$rc $err", '0 ', '... and has nothing to warn of');
is_no_node($blog, 'detach');
like($blog->fails('SELECT tpc_amqp.detach()'),
	qr/55000: database "blog" is not attached/, 'detach again is refused');
like($blog->fails(TpcPair::transaction(9999)),
	qr/55000: database "blog" is not attached/, 'as is call()');

$blog->try("BEGIN; SELECT tpc_amqp.attach('rabbit', 'blog'); ROLLBACK");
is_no_node($blog, 'attach rolled back');
$blog->sql(<<'EOS');
BEGIN;
SAVEPOINT a;
SELECT tpc_amqp.attach('rabbit', 'blog');
ROLLBACK TO SAVEPOINT a;
COMMIT;
EOS
is_no_node($blog, 'attach rolled back to a savepoint');
like($blog->fails("BEGIN; SELECT tpc_amqp.attach('rabbit', 'blog');
	SELECT tpc_amqp.call('reviews', 'add_review'); COMMIT"),
	qr/55000: this transaction has attached the database/,
	'call() has to wait until attach has committed');
is_no_node($blog, 'attach that failed later');

my $session = $blog->session;
$session->query_safe("BEGIN; SELECT tpc_amqp.attach('rabbit', 'blog')");
my $attacher = TpcPair::backend($blog, "state = 'idle in transaction'");
$blog->sql("SELECT pg_terminate_backend($attacher)");
is_no_node($blog, 'attach by a session that was terminated');
eval { $session->quit };

$blog->attach;
commits('attached again');
$blog->sql('BEGIN; SELECT tpc_amqp.detach(); ROLLBACK');
commits('after a detach that was rolled back');
like($blog->fails("SELECT tpc_amqp.attach('rabbit', 'other')"),
	qr/55006: database "blog" is already attached as node "blog"/,
	'a database cannot be two nodes');
$stock->detach;
like($stock->fails("SELECT tpc_amqp.attach('rabbit', 'reviews')"),
	qr/42710: another database of this cluster is attached as node "reviews"/,
	'two databases of a cluster cannot be one node');
is_no_node($stock, 'attach under a name that is taken');
$stock->attach;
TpcPair::connected($stock);

# ---------------------------------------------------------------------------
# Branches in doubt: reviews has voted, stock waits for a lock

my $lock = TpcPair::lock_stock($stock);
$id++;
my $run = $blog->start(
	TpcPair::transaction(
		$id,
		set => \%patient,
		after =>
		  q{SELECT tpc_amqp.call('stock', 'take', '{"item": "apple", "amount": 1}');}
	));
TpcPair::branch_is($reviews, 'prepared');
(undef, $err, $rc) = TpcTest->within($QUICK,
	sub {
		return $reviews->try("\\set VERBOSITY verbose
			DROP EXTENSION tpc_amqp CASCADE");
	},
	'DROP EXTENSION with a branch in doubt fails quickly');
like($err, qr/55006: cannot drop extension tpc_amqp: 1 branch/,
	'... and says why');
(undef, $err, $rc) = $stock->cluster->psql('postgres', 'DROP DATABASE reviews');
TpcPair::connected($reviews);
pass('workers are back after DROP DATABASE failed for a prepared transaction');

(undef, $err, $rc) = $reviews->try('SELECT tpc_amqp.detach()');
like($err, qr/WARNING: +1 branch is in doubt\n.*as node "reviews"/,
	'detach warns of branches in doubt');
is_no_node($reviews, 'detach with a branch in doubt');
isnt(TpcPair::unfinished($reviews), '', '... but the branch is');
(undef, $err, $rc) = $reviews->try("\\set VERBOSITY verbose
	SET statement_timeout = '5s'; DROP EXTENSION tpc_amqp CASCADE");
like($err, qr/55006: cannot drop extension tpc_amqp/,
	'DROP EXTENSION is refused for it while detached, too');
$lock->quit;
TpcPair::waiting($blog, 'committed');
pass('the transaction is decided meanwhile');
$reviews->attach;
(undef, $err, $rc) = $run->finish;
is("$rc $err", '0 ', 'attached again, the branch is finished');
is(TpcPair::reviews_has($reviews, $id), 1, '... and committed');
TpcTest->no_prepared($blog->cluster, $reviews->cluster);
TpcPair::connected($blog, $reviews, $stock);

# ---------------------------------------------------------------------------
# Attaches that fail

my $silent = IO::Socket::INET->new(
	Listen => 5,
	LocalAddr => '127.0.0.1') or die "socket: $!";
my $closed = IO::Socket::INET->new(
	Listen => 5,
	LocalAddr => '127.0.0.1') or die "socket: $!";
my $closed_port = $closed->sockport;
close $closed;
my $lonely = TpcTest->new_node($blog->cluster, 'lonely', 'lonely', attach => 0);

for my $case (
	[   'a port where nobody listens',
		"ALTER SERVER rabbit OPTIONS (SET port '$closed_port')",
		"ALTER SERVER rabbit OPTIONS (SET port '" . $broker->port . "')",
		qr/DETAIL: .*[Cc]onnection refused/ ],
	[   'a peer that is silent',
		"ALTER SERVER rabbit OPTIONS (SET port '" . $silent->sockport
		  . "', ADD connect_timeout '1')",
		"ALTER SERVER rabbit OPTIONS (SET port '" . $broker->port
		  . "', DROP connect_timeout)",
		qr/DETAIL: .*time.?out|DETAIL: .*timed out/i ],
	[   'a wrong password',
		"ALTER USER MAPPING FOR PUBLIC SERVER rabbit
			OPTIONS (SET password 'wrong')",
		"ALTER USER MAPPING FOR PUBLIC SERVER rabbit
			OPTIONS (SET password '" . $broker->password . "')",
		qr/DETAIL: .*403 .*ACCESS_REFUSED/ ],
	[   'a virtual host that is missing',
		"ALTER SERVER rabbit OPTIONS (SET vhost 'missing')",
		"ALTER SERVER rabbit OPTIONS (SET vhost '" . $broker->vhost . "')",
		qr/DETAIL: .*530 NOT_ALLOWED.*missing/ ],
	[   'a host that is none',
		"ALTER SERVER rabbit OPTIONS (SET host 'no-such-host.invalid')",
		"ALTER SERVER rabbit OPTIONS (SET host '" . $broker->host . "')",
		qr/DETAIL: .*no-such-host\.invalid/ ])
{
	my ($name, $break, $mend, $expected) = @$case;

	$lonely->sql($break);
	my ($out, $said) = TpcTest->within($QUICK,
		sub {
			return $lonely->try("\\set VERBOSITY verbose
				SELECT tpc_amqp.attach('rabbit', 'lonely')");
		},
		"attach to $name fails quickly");
	like($said, qr/could not attach node "lonely"/, '... says so');
	like($said, $expected, '... and why');
	unlike($said, qr/wrong/, '... and tells no secret');
	is_no_node($lonely, "attach to $name");
	$lonely->sql($mend);
}
for my $bad (
	[ 'no_such', 'lonely', qr/42704: server "no_such" does not exist/ ],
	[ 'rabbit', 'a b', qr/42602: invalid node name "a b"/ ],
	[ 'rabbit', '', qr/42602: invalid node name ""/ ])
{
	my ($server, $name, $expected) = @$bad;
	like($lonely->fails("SELECT tpc_amqp.attach('$server', '$name')"),
		$expected, "attach('$server', '$name')");
}
is_no_node($lonely, 'attach that cannot be tried');

# A session that gives up on it
$lonely->sql("ALTER SERVER rabbit OPTIONS (SET port '"
	  . $silent->sockport
	  . "', ADD connect_timeout '60')");
$run = $lonely->start("SELECT tpc_amqp.attach('rabbit', 'lonely');\n");
my $pid = TpcPair::backend($lonely, "query LIKE '%attach%'
	AND wait_event_type = 'Extension'");
TpcTest->within($QUICK,
	sub {
		$lonely->sql("SELECT pg_cancel_backend($pid)");
		(undef, $err, $rc) = $run->finish;
		like($err, qr/57014/, 'attach can be cancelled');
		is_no_node($lonely, 'attach that was cancelled');
	},
	'... in no time');
$lonely->sql("ALTER SERVER rabbit OPTIONS (SET port '"
	  . $broker->port
	  . "', DROP connect_timeout)");
$lonely->attach;
TpcPair::connected($lonely);
pass('after all this the database can be attached');

# ---------------------------------------------------------------------------
# Commands that want the database for themselves

sub command
{
	my ($sql, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	return TpcTest->within(
		$QUICK,
		sub {
			my ($out, $said) = ('', '');
			my $status = $blog->cluster->psql(
				'postgres', $sql,
				stdout => \$out,
				stderr => \$said,
				on_error_stop => 1);
			is("$status $said", '0 ', $name);
		},
		'... and does not take long');
}

command('ALTER DATABASE lonely RENAME TO alone',
	'ALTER DATABASE RENAME of an attached database');
$lonely->{db} = 'alone';
TpcPair::connected($lonely);
is($lonely->sql('SELECT name FROM tpc_amqp.node'),
	'lonely', 'it is the same node afterwards');
$lonely->sql('CREATE TABLE public.reviews (id int);
	CREATE FUNCTION public.add_review(arg jsonb) RETURNS void LANGUAGE sql AS
		$$INSERT INTO public.reviews VALUES ((arg->>\'id\')::int)$$;
	SELECT tpc_amqp.register_handler(\'add_review\',
		\'public.add_review(jsonb)\')');
$blog->sql(TpcPair::transaction(++$id, to => 'lonely'));
is(TpcPair::reviews_has($lonely, $id), 1, '... and works');

$lonely->sql(q{SELECT tpc_amqp.call('reviews', 'add_review', '{"id": 9000}')});
command('CREATE DATABASE twin TEMPLATE alone',
	'CREATE DATABASE with an attached template');
TpcPair::connected($lonely);
pass('the template works on');
my $twin = bless { %$lonely, db => 'twin', name => 'twin' }, ref $lonely;
is($twin->sql('SELECT count(*) FROM tpc_amqp.node'),
	0, 'the copy is not a node');
is($twin->sql('SELECT name FROM tpc_amqp.handlers'),
	'add_review', '... but has the handlers');
(undef, $err, $rc) = $twin->try("SELECT tpc_amqp.attach('rabbit', 'twin')");
is("$rc $err", '0 ', 'the copy can be attached under a name of its own')
  or do { $twin->sql('DELETE FROM tpc_amqp.decision'); $twin->attach };
TpcPair::connected($twin);
$blog->sql(TpcPair::transaction(++$id, to => 'twin'));
is( TpcPair::reviews_has($twin, $id) . TpcPair::reviews_has($lonely, $id),
	'10', 'it is a node of its own once it is attached');
ok( $twin->sql('SELECT incarnation FROM tpc_amqp.node') !=
	  $lonely->sql('SELECT incarnation FROM tpc_amqp.node'),
	'... with an incarnation of its own');

# Somebody is connected: the command fails, and the workers come back.
$session = $lonely->session;
$session->query_safe('SELECT 1');
for my $sql ('DROP DATABASE alone', 'ALTER DATABASE alone RENAME TO other')
{
	my $said = '';
	TpcTest->within(
		$QUICK,
		sub {
			$blog->cluster->psql('postgres', $sql, stderr => \$said);
		},
		"$sql with a session connected fails in time");
	like($said, qr/is being accessed by other users/, '... as it should');
	like($said, qr/There is 1 other session/, '... for that session alone');
	TpcPair::connected($lonely);
	$blog->sql(TpcPair::transaction(++$id, to => 'lonely'));
	is(TpcPair::reviews_has($lonely, $id), 1,
		'... and the node works as before');
}
$session->quit;

# Who may not do it cannot stop the workers.
my $pids = $lonely->sql('SELECT messenger_pid || resolve_pids FROM tpc_amqp.node');
$blog->cluster->psql('postgres', 'CREATE ROLE nobody; SET ROLE nobody;
	DROP DATABASE alone', on_error_stop => 0);
is($lonely->sql('SELECT messenger_pid || resolve_pids FROM tpc_amqp.node'),
	$pids, 'who may not drop the database cannot stop its workers');

# DROP EXTENSION ends being a node.
$twin->sql('BEGIN; DROP EXTENSION tpc_amqp CASCADE; ROLLBACK');
TpcPair::connected($twin);
pass('workers are back after DROP EXTENSION was rolled back');
TpcTest->within($QUICK,
	sub { $twin->sql('DROP EXTENSION tpc_amqp CASCADE') },
	'DROP EXTENSION does not take long');
TpcTest::poll_until(
	sub { return TpcTest->workers($blog->cluster, 'twin') == 0 },
	'the workers to leave');
is( $blog->sql("SELECT count(*) FROM pg_shseclabel s JOIN pg_database d
	ON d.oid = s.objoid WHERE d.datname = 'twin'"), 0,
	'DROP EXTENSION ends being a node');
command('DROP DATABASE twin', 'DROP DATABASE after DROP EXTENSION');
command('DROP DATABASE alone', 'DROP DATABASE of an attached database');
is($blog->sql('SELECT string_agg(label, \' \') FROM pg_shseclabel'),
	'blog', 'its label went with it');

# The name is free again.
$lonely = TpcTest->new_node($blog->cluster, 'lonely', 'lonely');
TpcPair::connected($lonely);
pass('its name can be used by another database');
command('DROP DATABASE lonely WITH (FORCE)', 'DROP DATABASE WITH (FORCE)');
commits('after all these commands');

# ---------------------------------------------------------------------------
# Dump and restore

my $dump = $PostgreSQL::Test::Utils::tmp_check . '/blog.dump';
my $created = $PostgreSQL::Test::Utils::tmp_check . '/blog.sql';
$blog->cluster->command_ok(
	[ 'pg_dump', '-Fc', '-f', $dump, $blog->connstr ],
	'pg_dump of a node');
$blog->cluster->command_ok(
	[ 'pg_dump', '-C', '-f', $created, $blog->connstr ],
	'pg_dump -C of a node');
$blog->cluster->safe_psql('postgres', 'CREATE DATABASE copy');
$blog->cluster->command_ok(
	[   'pg_restore', '-d', $blog->cluster->connstr('copy'),
		'--exit-on-error', $dump ],
	'pg_restore beside it');
$reviews->cluster->command_ok(
	[   'psql', '-Xq', '-v', 'ON_ERROR_STOP=1',
		'-d', $reviews->cluster->connstr('postgres'),
		'-f', $created ],
	'psql of a dump with CREATE DATABASE on another cluster');
my $copy = bless { %$blog, db => 'copy', name => 'copy' }, ref $blog;
my $other = bless {
	%$blog,
	cluster => $reviews->cluster,
	name => 'other'
  },
  ref $blog;
my $incarnation = $blog->sql('SELECT incarnation FROM tpc_amqp.node');
my $handlers = 'SELECT * FROM tpc_amqp.handlers';
for my $restored ($copy, $other)
{
	my $name = $restored->name;
	is($restored->sql('SELECT count(*) FROM tpc_amqp.node WHERE state
		= \'connected\''), 0, "restored copy $name is not a node");
	is($restored->sql($handlers), $blog->sql($handlers),
		'... but it has the handlers');
	is( $restored->sql('SELECT count(*) FROM tpc_amqp.decision')
		  . $restored->sql('SELECT count(*) FROM tpc_amqp.branch')
		  . $restored->sql('SELECT count(*) FROM tpc_amqp.incarnation'),
		'000', '... and no records of transactions');
	like($restored->fails(TpcPair::transaction(9000)),
		qr/is not attached/, '... and it can call nobody');
}
like($other->fails("SELECT tpc_amqp.attach('rabbit', 'blog')"),
	qr/could not attach node "blog"\n.*DETAIL: .*exclusive/s,
	'a copy cannot be attached under the name of the original');
$copy->attach;
TpcPair::connected($copy, $blog);
is($blog->sql('SELECT incarnation FROM tpc_amqp.node'),
	$incarnation, 'the original did not notice');
$reviews->sql(q{SELECT tpc_amqp.call('copy', 'note', '{"id": 9001}')});
is( TpcPair::blog_has($copy, 9001) . TpcPair::blog_has($blog, 9001),
	'10', 'a copy attached anew works');
$copy->detach;
is_no_node($copy, 'detached copy');
# The dump has the label that the database had.
$other->poll("SELECT count(*) = 0 FROM pg_shseclabel s JOIN pg_database d
	ON d.oid = s.objoid WHERE d.datname = current_database()");
is_no_node($other, 'copy restored with its label');

# Messages for the "lonely" that was dropped may have reached its successor.
is( join(' ',
		map { $_->sql("SELECT count(*) FROM tpc_amqp.incidents
			WHERE node <> 'lonely'") } $blog, $reviews, $stock),
	'0 0 0', 'there were no incidents');

# ---------------------------------------------------------------------------
# Servers that are not set up for it

$stock->cluster->stop('fast');
my $bare = $blog->cluster;
sub reconfigure
{
	my ($conf) = @_;
	$bare->append_conf('postgresql.conf', $conf);
	$bare->restart;
	return;
}

reconfigure("shared_preload_libraries = ''\n");
for my $sql (
	"SELECT tpc_amqp.attach('rabbit', 'blog')", 'SELECT tpc_amqp.detach()',
	"SELECT tpc_amqp.call('reviews', 'add_review')",
	'SELECT * FROM tpc_amqp.node',
	'SELECT * FROM tpc_amqp.transactions',
	'SELECT * FROM tpc_amqp.branches',
	'SELECT * FROM tpc_amqp.stat',
	"SELECT tpc_amqp.outcome('blog/00000000-0000-8000-8000-000000000000')",
	'SELECT tpc_amqp.resolve()')
{
	like(
		$blog->fails($sql),
		qr/55000: tpc_amqp must be loaded via "shared_preload_libraries"/,
		"library not preloaded: $sql");
}
$bare->safe_psql('postgres', 'CREATE DATABASE plain');
is($bare->psql('plain', 'CREATE EXTENSION tpc_amqp; DROP EXTENSION tpc_amqp'),
	0, 'CREATE EXTENSION and DROP EXTENSION work without');

reconfigure("shared_preload_libraries = 'tpc_amqp'
	max_prepared_transactions = 0\n");
$lonely = TpcTest->new_node($bare, 'lonely', 'lonely', attach => 0);
like($lonely->fails("SELECT tpc_amqp.attach('rabbit', 'lonely')"),
	qr/55000: prepared transactions are disabled\nHINT: .*max_prepared_transactions/,
	'attach without prepared transactions is refused');
is_no_node($lonely, 'attach without prepared transactions');

# Two for the launchers (the server has one itself), one for a messenger.
my $offset = TpcTest->log_size($bare);
reconfigure("max_prepared_transactions = 100\nmax_worker_processes = 3\n");
TpcTest->wait_for_log($bare,
	qr/WARNING: .*out of background worker slots for node "blog"\n.*It needs 4 processes.*\n.*max_worker_processes/,
	$offset);
pass('too few worker slots: the log says which node lacks them');
like($lonely->fails("SELECT tpc_amqp.attach('rabbit', 'lonely')"),
	qr/53400: out of background worker slots\nHINT: .*max_worker_processes/,
	'... and attach fails for it');
is_no_node($lonely, 'attach without worker slots');
is( () = slurp_file($bare->logfile, $offset) =~
	  /out of background worker slots for node/g,
	1, 'the log does not repeat it');

reconfigure("max_worker_processes = 32\n");
$reviews->cluster->start;
commits('once there are enough');

done_testing();

# TpcTest: clusters, nodes and brokers for the TAP tests.
#
#   use TpcTest;
#   use Test::More;
#
#   my $broker  = TpcTest::Broker->new;          # this file's vhost, or
#   my $own     = TpcTest::Broker->new(own => 1);    # one that may be harmed
#   my $cluster = TpcTest->new_cluster('blog');
#   my $blog    = TpcTest->new_node($cluster, 'blog', 'blog',
#                                   broker => $broker);
#   $blog->sql("...");
#   $blog->poll("SELECT count(*) = 0 FROM tpc_amqp.branches");
#
# Nothing here sleeps for a time that is hoped to be enough: helpers poll for
# a state and have a bound ($TpcTest::TIMEOUT).

package TpcTest;

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More ();
use Time::HiRes qw(usleep time);

our $TIMEOUT = $ENV{PG_TEST_TIMEOUT_DEFAULT} || 120;

# The interrupted test ends what it started, as one that dies does.
$SIG{INT} = $SIG{TERM} = sub { die "interrupted by a signal\n" };

# Is this the build in which failpoints can be set?
sub has_failpoints
{
	return $ENV{TPC_FAILPOINTS} ? 1 : 0;
}

# poll_until CODE, WHAT: until CODE returns true, which is returned.  Dies
# after $TIMEOUT seconds, with what CODE left in $TpcTest::last_seen.
our $last_seen;

sub poll_until
{
	my ($code, $what) = @_;
	my $end = time() + $TIMEOUT;

	$last_seen = undef;
	while (1)
	{
		my $result = $code->();
		return $result if $result;
		last if time() > $end;
		usleep(50_000);
	}
	die "timed out waiting for $what"
	  . (defined $last_seen ? ", last seen: $last_seen" : '') . "\n";
}

# new_cluster NAME, CONF…: a running server with the extension loaded.  CONF
# are lines of postgresql.conf; a hash ref among them is passed to init()
# (allows_streaming => 1, …), with "start => 0" it is not started.
sub new_cluster
{
	my ($class, $name, @conf) = @_;
	my %init = map { %$_ } grep { ref } @conf;
	my $start = delete $init{start} // 1;
	my $cluster = PostgreSQL::Test::Cluster->new($name);

	$cluster->init(%init);
	$cluster->append_conf('postgresql.conf', <<'EOC');
shared_preload_libraries = 'tpc_amqp'
max_prepared_transactions = 100
max_worker_processes = 32
max_connections = 100
shared_buffers = 32MB
restart_after_crash = on
log_min_messages = debug1
EOC
	$cluster->append_conf('postgresql.conf', $_) for grep { !ref } @conf;
	$cluster->start if $start;
	return $cluster;
}

# new_node CLUSTER, DATABASE, NODE, OPTIONS: make the database a node of the
# broker's.  Options:
#   broker    where; the one of this file by default
#   user, password    instead of the broker's own; the user is made there
#   options   more options of the server, as a hash
#   attach    0: leave that to the caller
#   create    0: the database is there already
#   setup     SQL to run before attaching (tables, handlers)
sub new_node
{
	my ($class, $cluster, $db, $name, %opts) = @_;
	my $broker = $opts{broker} // TpcTest::Broker->of_this_file;
	my $user = $opts{user} // $broker->user;
	my $password = $opts{password} // ($opts{user} ? "secret of $user" :
		  $broker->password);
	my $node = bless {
		cluster => $cluster,
		db => $db,
		name => $name,
		broker => $broker
	}, 'TpcTest::Node';

	$broker->add_user($user, $password) if defined $opts{user};
	$cluster->safe_psql('postgres', qq{CREATE DATABASE "$db"})
	  if $opts{create} // 1;
	$node->sql('CREATE EXTENSION tpc_amqp');
	$node->create_failpoint_functions if has_failpoints();
	$node->create_server($broker, $user, $password,
		%{ $opts{options} // {} });
	$node->sql($opts{setup}) if defined $opts{setup};
	$node->attach if $opts{attach} // 1;
	return $node;
}

# prepared CLUSTER: gids of all prepared transactions.
sub prepared
{
	my ($class, $cluster) = @_;

	return split /\n/,
	  $cluster->safe_psql('postgres',
		'SELECT gid FROM pg_prepared_xacts ORDER BY gid');
}

# no_prepared CLUSTERS…: a test that passes once nothing is prepared there.
sub no_prepared
{
	my ($class, @clusters) = @_;

	for my $cluster (@clusters)
	{
		local $Test::Builder::Level = $Test::Builder::Level + 1;
		my $gone = eval {
			poll_until(
				sub {
					$last_seen = join ', ', $class->prepared($cluster);
					return $last_seen eq '';
				},
				'prepared transactions to go');
		};
		Test::More::ok($gone,
			'no prepared transaction is left on ' . $cluster->name)
		  or Test::More::diag($@);
	}
	return;
}

# no_crash NAME, NODES or CLUSTERS…: a test of that name for each, that its
# log tells of no crash but those a test makes (SIGKILL, immediate shutdown).
sub no_crash
{
	my ($class, $name, @servers) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	for my $server (@servers)
	{
		my $cluster = $server->can('cluster') ? $server->cluster : $server;

		Test::More::unlike(
			slurp_file($cluster->logfile),
			qr/PANIC|signal 11|TRAP|signal 6/,
			"$name of " . $server->name);
	}
	return;
}

# no_incidents NAME, NODES…: a test that none of them lists any.
sub no_incidents
{
	my ($class, $name, @nodes) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	return Test::More::is(
		join('', map { $_->sql('SELECT i FROM tpc_amqp.incidents i') } @nodes),
		'', $name);
}

# workers CLUSTER, DATABASE: how many of ours there are.
sub workers
{
	my ($class, $cluster, $db) = @_;
	return $cluster->safe_psql('postgres',
		"SELECT count(*) FROM pg_stat_activity
		WHERE datname = '$db' AND backend_type LIKE 'tpc_amqp %'");
}

# log_size CLUSTER: where wait_for_log() shall begin.
sub log_size
{
	my ($class, $cluster) = @_;
	return (-s $cluster->logfile) // 0;
}

# wait_for_log CLUSTER, REGEXP, OFFSET: returns the offset of the log's end.
sub wait_for_log
{
	my ($class, $cluster, $regexp, $offset) = @_;

	return poll_until(
		sub {
			my $log = slurp_file($cluster->logfile, $offset // 0);
			return $log =~ $regexp ? ($offset // 0) + length $log : 0;
		},
		"$regexp in the log of " . $cluster->name);
}

# kill9_server CLUSTER: what loss of power is to the processes: the
# postmaster and all its children are gone at once.  start() brings it back.
sub kill9_server
{
	my ($class, $cluster) = @_;
	my $data_dir = Cwd::realpath($cluster->data_dir);
	my $postmaster = $cluster->{_pid};
	my $give_up = time() + 5;

	$cluster->kill9;
	# They work in the data directory.
	poll_until(
		sub {
			my @pids = TpcTest::_pids_in($data_dir);
			kill 'KILL', @pids if @pids;
			return !@pids;
		},
		'the processes of ' . $cluster->name . ' to end');

	# The postmaster's lock files count as long as there is such a pid, be it
	# a zombie's.  Where nobody collects those, take the files away.
	usleep(10_000) while kill(0, $postmaster) && time() < $give_up;
	if (kill 0, $postmaster)
	{
		unlink "$data_dir/postmaster.pid",
		  $cluster->host . '/.s.PGSQL.' . $cluster->port . '.lock';
	}
	return;
}

sub _pids_in
{
	my ($dir) = @_;
	my @pids;

	for my $link (glob '/proc/[0-9]*/cwd')
	{
		my $cwd = readlink $link;
		next unless defined $cwd && $cwd eq $dir;
		my ($pid) = $link =~ m{/proc/(\d+)/};
		push @pids, $pid if $pid != $$;
	}
	return @pids;
}

# within SECONDS, CODE, NAME: a test that CODE takes less time than that.
# Returns what CODE does.
sub within
{
	my ($class, $seconds, $code, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $start = time();
	my @result = $code->();
	my $took = time() - $start;

	Test::More::ok($took < $seconds, $name)
	  or Test::More::diag("it took $took s");
	return @result;
}

my %frozen;

sub freeze
{
	my ($class, @pids) = @_;
	kill 'STOP', @pids;
	@frozen{@pids} = ();
	return;
}

sub thaw
{
	my ($class, @pids) = @_;
	kill 'CONT', @pids;
	delete @frozen{@pids};
	return;
}

# Before the ends of PostgreSQL::Test::Cluster, which waits for servers to
# stop: END blocks run last defined first, and this file's come after its.
END
{
	my $status = $?;
	kill 'CONT', keys %frozen;
	$? = $status;
}

# ---------------------------------------------------------------------------
# A database that is a node.
package TpcTest::Node;

use strict;
use warnings;

use File::Temp;
use PostgreSQL::Test::Utils;

sub cluster { return $_[0]{cluster} }
sub db { return $_[0]{db} }
sub name { return $_[0]{name} }
sub broker { return $_[0]{broker} }
sub connstr { return $_[0]{cluster}->connstr($_[0]{db}) }

# sql QUERY: its output; dies if it fails.
sub sql
{
	my ($self, $query, %params) = @_;
	return $self->{cluster}->safe_psql($self->{db}, $query, %params);
}

# try QUERY: (output, messages, exit status of psql); an error is 3.
sub try
{
	my ($self, $query, %params) = @_;
	my ($out, $err) = ('', '');
	my $rc = eval {
		$self->{cluster}->psql(
			$self->{db}, $query,
			stdout => \$out,
			stderr => \$err,
			on_error_stop => 1,
			%params);
	};

	# A psql that finds no server may be gone before it is given the query,
	# which the module that writes it takes for a failure of its own.
	return ($out, $err . $@, 2) unless defined $rc;
	return ($out, $err, $rc);
}

# fails QUERY: its messages, with the SQLSTATE; dies if it succeeds.
sub fails
{
	my ($self, $query) = @_;
	my ($out, $err, $rc) = $self->try("\\set VERBOSITY verbose\n$query");
	die "this did not fail: $query\n" unless $rc;
	return $err;
}

# poll QUERY, EXPECTED: until its output is that ("t" by default).
sub poll
{
	my ($self, $query, $expected) = @_;

	$expected //= 't';
	TpcTest::poll_until(
		sub {
			my ($out, $err) = $self->try($query);
			$TpcTest::last_seen = "$out $err";
			return $out eq $expected;
		},
		"\"$expected\" from $query on $self->{name}");
	return 1;
}

# session: a psql that stays, to run things in and look at later.
sub session
{
	my ($self, %params) = @_;
	return $self->{cluster}
	  ->background_psql($self->{db}, on_error_stop => 0, %params);
}

# client SETTINGS…: a session that may see its server crash: TpcTest::Client.
sub client
{
	my ($self, @settings) = @_;
	my $client = bless { node => $self, psql => $self->session },
	  'TpcTest::Client';

	# The bound is one on each query.
	$client->{psql}->set_query_timer_restart;
	$client->run('\set VERBOSITY verbose');
	$client->run("SET $_") for @settings;
	return $client;
}

# observer: a client that is there, and opened again if its server crashed.
sub observer
{
	my ($self) = @_;

	delete $self->{observer} if $self->{observer} && $self->{observer}->gone;
	return $self->{observer} //= TpcTest::poll_until(
		sub { eval { $self->client } }, "a session at $self->{name}");
}

# counter NAME: a column of view stat.
sub counter
{
	my ($self, $name) = @_;
	return $self->sql("SELECT $name FROM tpc_amqp.stat");
}

# ask QUERY: its output, as soon as there is one.  As sql(), but in a session
# that stays, and patient with a server that restarts.
sub ask
{
	my ($self, $query) = @_;
	my $out;

	TpcTest::poll_until(
		sub {
			my $observer = $self->observer;
			my $ok = $observer->run($query);

			$out = $observer->out;
			$TpcTest::last_seen = $observer->err;
			return $ok;
		},
		"an answer to $query from $self->{name}");
	return $out;
}

# ask_for QUERY: until its answer is "t".
sub ask_for
{
	my ($self, $query) = @_;

	return TpcTest::poll_until(
		sub {
			$TpcTest::last_seen = $self->ask($query);
			return $TpcTest::last_seen eq 't';
		},
		"\"t\" from $query on $self->{name}");
}

# start QUERY: run it in a psql of its own; finish() says what became of it.
# The query is read from a file: a server that is started meanwhile would hold
# the other end of a pipe open, so that psql would wait for more.
sub start
{
	my ($self, $query) = @_;
	my $run = { out => '', err => '', file => File::Temp->new };

	$run->{file}->print($query);
	$run->{file}->close;
	$run->{handle} = IPC::Run::start(
		[
			$self->{cluster}->installed_command('psql'),
			'-XAtq', '-v', 'ON_ERROR_STOP=1', '-v', 'VERBOSITY=verbose',
			'-d', $self->connstr, '-f', $run->{file}->filename
		],
		'<', '/dev/null',
		'>', \$run->{out},
		'2>', \$run->{err},
		IPC::Run::timeout($TpcTest::TIMEOUT));
	$run->{handle}->pump_nb;
	return bless $run, 'TpcTest::Run';
}

sub create_server
{
	my ($self, $broker, $user, $password, %options) = @_;
	my %all = (
		host => $broker->host,
		port => $broker->port,
		vhost => $broker->vhost,
		%options);
	my $list = join ', ',
	  map { "$_ " . _literal($all{$_}) } sort keys %all;

	$self->sql("CREATE SERVER rabbit FOREIGN DATA WRAPPER tpc_amqp
		OPTIONS ($list)");
	$self->sql('CREATE USER MAPPING FOR PUBLIC SERVER rabbit OPTIONS ("user" '
		  . _literal($user) . ', password ' . _literal($password) . ')');
	return;
}

sub attach
{
	my ($self) = @_;
	return $self->sql(
		"SELECT tpc_amqp.attach('rabbit', " . _literal($self->{name}) . ')');
}

sub detach
{
	my ($self) = @_;
	return $self->sql('SELECT tpc_amqp.detach()');
}

sub _literal
{
	my ($text) = @_;
	$text =~ s/'/''/g;
	return "'$text'";
}

# Failpoints belong to the whole cluster; a crash of the server clears them.
sub create_failpoint_functions
{
	my ($self) = @_;
	return $self->sql(<<'EOS');
CREATE FUNCTION public.tpc_test_failpoint(name text, action text)
	RETURNS void LANGUAGE C STRICT
	AS '$libdir/tpc_amqp', 'tpc_failpoint_set';
CREATE FUNCTION public.tpc_test_failpoint_clear(name text)
	RETURNS void LANGUAGE C STRICT
	AS '$libdir/tpc_amqp', 'tpc_failpoint_clear';
CREATE FUNCTION public.tpc_test_failpoint_waiters(name text)
	RETURNS int LANGUAGE C STRICT
	AS '$libdir/tpc_amqp', 'tpc_failpoint_waiters';
CREATE FUNCTION public.tpc_test_failpoint_pid(name text)
	RETURNS int LANGUAGE C STRICT
	AS '$libdir/tpc_amqp', 'tpc_failpoint_pid';
CREATE FUNCTION public.tpc_test_failpoint_trace()
	RETURNS void LANGUAGE C STRICT
	AS '$libdir/tpc_amqp', 'tpc_failpoint_trace';
CREATE FUNCTION public.tpc_test_failpoint_traced()
	RETURNS text LANGUAGE C STRICT
	AS '$libdir/tpc_amqp', 'tpc_failpoint_traced';
EOS
}

# failpoint NAME, ACTION: error, fatal, kill, stop or wait, each also with
# ":once".
sub failpoint
{
	my ($self, $name, $action) = @_;
	return $self->sql('SELECT public.tpc_test_failpoint('
		  . _literal($name) . ', ' . _literal($action) . ')');
}

sub failpoint_clear
{
	my ($self, $name) = @_;
	return $self->sql(
		'SELECT public.tpc_test_failpoint_clear(' . _literal($name) . ')');
}

# failpoint_reached NAME: until somebody waits there.
sub failpoint_reached
{
	my ($self, $name) = @_;
	return $self->poll(
		'SELECT public.tpc_test_failpoint_waiters(' . _literal($name)
		  . ') > 0');
}

# ---------------------------------------------------------------------------
# A session whose failures are looked at, its end included.
package TpcTest::Client;

use strict;
use warnings;

sub out { return $_[0]{out} }
sub err { return $_[0]{err} }
sub gone { return !$_[0]{psql} }

# run QUERY: whether it succeeded.  What it said is in out() and err().
sub run
{
	my ($self, $query) = @_;
	my $psql = $self->{psql};
	local $SIG{PIPE} = 'IGNORE';

	@$self{ 'out', 'err' } = ('', 'the session is gone');
	return 0 unless $psql;
	$psql->{stderr} = '';
	my $out = eval { $psql->query($query) };
	my $died = $@;
	$self->{out} = $out // '';
	$self->{err} = $psql->{stderr};

	# One that has lost its connection says so, and ends at the next query.
	if (!defined $out || $self->{err} =~ /server closed the connection/)
	{
		$self->{err} .= $died;
		$self->close;
		return 0;
	}
	return $self->succeeded;
}

# succeeded: whether the last query did.
sub succeeded
{
	my ($self) = @_;
	return !$self->gone
	  && $self->{err} !~ /^(?:\S+: )?(?:ERROR|FATAL|PANIC):/m;
}

# post QUERY: begin to run it.  answered() says whether that has ended; then
# succeeded(), out() and err() tell how.
sub post
{
	my ($self, $query) = @_;
	my $psql = $self->{psql};
	local $SIG{PIPE} = 'IGNORE';

	@$self{ 'out', 'err' } = ('', 'the session is gone');
	return unless $psql;
	$self->{end} = 'answered ' . ++$self->{posted};
	$psql->{stdout} = $psql->{stderr} = '';
	$psql->{timeout}->start;
	$psql->{stdin} .=
	  "$query\n;\n\\echo '$self->{end}'\n\\warn '$self->{end}'\n";
	$self->close unless eval { $psql->{run}->pump_nb; 1 };
	return;
}

sub answered
{
	my ($self) = @_;
	my $psql = $self->{psql};
	local $SIG{PIPE} = 'IGNORE';

	return 1 unless $psql;
	my $end = qr/\n?$self->{end}\n/;
	my $alive = eval { $psql->{run}->pump_nb; $psql->{run}->pumpable };
	my $ended = $psql->{stdout} =~ $end && $psql->{stderr} =~ $end;

	return 0 if $alive && !$ended;
	@$self{ 'out', 'err' } = @$psql{ 'stdout', 'stderr' };
	s/$end// for @$self{ 'out', 'err' };
	@$psql{ 'stdout', 'stderr' } = ('', '');
	$self->close
	  if !$ended || $self->{err} =~ /server closed the connection/;
	return 1;
}

sub close
{
	my ($self) = @_;
	my $psql = delete $self->{psql} or return;
	local $SIG{PIPE} = 'IGNORE';

	eval { $psql->quit; 1 } or eval { $psql->{run}->kill_kill };
	return;
}

# ---------------------------------------------------------------------------
# A query that runs beside the test.
package TpcTest::Run;

use strict;
use warnings;

# finish: (output, messages, exit status)
sub finish
{
	my ($self) = @_;
	$self->{handle}->finish;
	chomp(my $out = $self->{out});
	return ($out, $self->{err}, $self->{handle}->result(0));
}

sub pid
{
	my ($self) = @_;
	return $self->{handle}{KIDS}[0]{PID};
}

# ---------------------------------------------------------------------------
# A broker, or, by default, a virtual host on the one that all test files
# share (TPC_TEST_BROKER_DIR, TPC_TEST_BROKER_PORT).
package TpcTest::Broker;

use strict;
use warnings;

use Cwd ();
use File::Basename;
use PostgreSQL::Test::Utils;

my $tool =
  Cwd::realpath(dirname(__FILE__)) . '/../scripts/broker';
my @own;
my $of_this_file;
my $count = 0;

# new OPTIONS: own => 1 for a broker of this test's own; start => 0 to do that
# later.
sub new
{
	my ($class, %opts) = @_;
	my $self = bless {
		host => '127.0.0.1',
		user => 'guest',
		password => 'guest',
		vhost => '/',
		own => $opts{own} || !$ENV{TPC_TEST_BROKER_PORT}
	}, $class;
	(my $file = basename($0)) =~ s/\.[^.]+$//;

	$count++;
	if ($self->{own})
	{
		$self->{dir} = Cwd::realpath($PostgreSQL::Test::Utils::tmp_check)
		  . "/broker_${file}_$count";
		push @own, $self;
		$self->start if $opts{start} // 1;
	}
	else
	{
		$self->{dir} = $ENV{TPC_TEST_BROKER_DIR};
		$self->{port} = $ENV{TPC_TEST_BROKER_PORT};
		$self->{vhost} = "${file}_$count";
		$self->ctl('add_vhost', $self->{vhost});
		$self->allow($self->{user});
	}
	return $self;
}

# of_this_file: the one of nodes that name none.
sub of_this_file
{
	my ($class) = @_;
	return $of_this_file //= $class->new;
}

sub host { return $_[0]{host} }
sub vhost { return $_[0]{vhost} }
sub user { return $_[0]{user} }
sub password { return $_[0]{password} }
sub dir { return $_[0]{dir} }
sub logfile { return "$_[0]{dir}/log/broker.log" }

sub port
{
	my ($self) = @_;
	return $self->{port} //= $self->_tool('port');
}

sub pid
{
	my ($self) = @_;
	return $self->_tool('pid');
}

# What harms it is only for those who own it.
sub _owned
{
	my ($self, @command) = @_;
	die "this broker is shared: use own => 1\n" unless $self->{own};
	return $self->_tool(@command);
}

sub start { return $_[0]->_owned('start') }
sub stop { return $_[0]->_owned('stop') }
sub kill9 { return $_[0]->_owned('kill') }
sub freeze { return $_[0]->_owned('freeze') }
sub thaw { return $_[0]->_owned('thaw') }

sub restart
{
	my ($self) = @_;
	$self->stop;
	return $self->start;
}

# wipe: it loses all it ever stored, users included.  Of a stopped broker.
sub wipe { return $_[0]->_owned('wipe') }

# block: the memory alarm goes off, publishers are not read from any more.
sub block
{
	my ($self) = @_;
	$self->_owned('ctl', '-q', 'set_vm_memory_high_watermark', '0');
	return;
}

sub unblock
{
	my ($self) = @_;
	$self->_owned('ctl', '-q', 'set_vm_memory_high_watermark', '0.4');
	return;
}

# ctl ARGUMENTS: rabbitmqctl.
sub ctl
{
	my ($self, @arguments) = @_;
	return $self->_tool('ctl', '-q', @arguments);
}

# add_user NAME, PASSWORD: with all rights in this virtual host.
sub add_user
{
	my ($self, $name, $password) = @_;

	$self->ctl('add_user', $name, $password)
	  unless grep { $_ eq $name }
	  map { (split /\t/)[0] } split /\n/,
	  $self->ctl('--no-table-headers', 'list_users');
	$self->allow($name);
	return;
}

# allow NAME, CONFIGURE, WRITE, READ: regular expressions, ".*" by default.
sub allow
{
	my ($self, $name, @patterns) = @_;
	$patterns[$_] //= '.*' for 0 .. 2;
	return $self->ctl('set_permissions', '-p', $self->{vhost}, $name,
		@patterns);
}

# queues: a hash of name => { messages => n, consumers => n }.
sub queues
{
	my ($self) = @_;
	my %queues;

	for my $line (
		split /\n/,
		$self->ctl(
			'--no-table-headers', 'list_queues',
			'-p', $self->{vhost},
			qw(name messages consumers)))
	{
		my ($name, $messages, $consumers) = split /\t/, $line;
		$queues{$name} = { messages => $messages, consumers => $consumers };
	}
	return %queues;
}

sub delete_queue
{
	my ($self, $name) = @_;
	return $self->ctl('delete_queue', '-p', $self->{vhost}, $name);
}

sub purge_queue
{
	my ($self, $name) = @_;
	return $self->ctl('purge_queue', '-p', $self->{vhost}, $name);
}

# suspend_queues NAMES, resume_queues NAMES: what serves them does nothing, as a
# quorum queue without its majority.
sub suspend_queues { return shift->_each_queue('suspend', @_) }
sub resume_queues { return shift->_each_queue('resume', @_) }

sub _each_queue
{
	my ($self, $how, @names) = @_;
	my $names = join ', ', map { qq(<<"$_">>) } @names;

	return $self->ctl('eval', qq([begin
		{ok, Q} = rabbit_amqqueue:lookup(
			rabbit_misc:r(<<"$self->{vhost}">>, queue, N)),
		sys:$how(amqqueue:get_pid(Q)) end || N <- [$names]].));
}

# connections: of this virtual host, a list of { user, state, pid, … }.
sub connections
{
	my ($self) = @_;
	my @names = qw(pid user vhost state peer_port);

	return grep { $_->{vhost} eq $self->{vhost} } map {
		my %row;
		@row{@names} = split /\t/;
		\%row;
	} split /\n/,
	  $self->ctl('--no-table-headers', 'list_connections', @names);
}

# close_connections: the broker closes those of this virtual host.
sub close_connections
{
	my ($self, $reason) = @_;
	return $self->ctl('close_all_connections', '-p', $self->{vhost},
		$reason // 'closed by the test');
}

sub _tool
{
	my ($self, $command, @arguments) = @_;
	my ($out, $err) = ('', '');

	# Not through pipes of ours: what it starts would hold them open.
	my $log = $PostgreSQL::Test::Utils::tmp_check . "/broker_tool_$$";
	my $ok = IPC::Run::run(
		[ $tool, $command, $self->{dir}, @arguments ],
		'<', '/dev/null', '>', "$log.out", '2>', "$log.err",
		IPC::Run::timeout(300));
	$out = slurp_file("$log.out");
	$err = slurp_file("$log.err");
	unlink "$log.out", "$log.err";
	die "broker $command @arguments: $err$out\n" unless $ok;
	chomp $out;
	return $out;
}

END
{
	my $status = $?;
	for my $broker (@own)
	{
		eval { $broker->stop; 1 } or warn $@;
	}
	$? = $status;
}

1;

# TpcMatrix: whatever happens to whichever process at whichever step.
#
#   use TpcMatrix;
#   my $matrix = TpcMatrix->new(paths => ['plain', 'plain, vote lost']);
#   $matrix->run;
#   $matrix->print_table;
#
# The steps are the failpoints of the sources.  Which of them an application
# comes by, and in which process, is seen when it runs undisturbed; so is where
# a process may not raise.  What shall come of each cell is read from the crash
# table of src/README.
#
# A cell is an application (TpcApplication), a failpoint it comes by, and what
# happens there:
#
#   error, fatal, kill    the process that is there ends so
#   stop       it stands still until all time-outs concerned are over; a
#              messenger, until the broker has given it up
#   client     the sessions of the application are ended
#   workers    the prepare and resolve workers of both nodes are
#   messenger  the messenger of its node is
#   frozen     ... or it stands still until the broker has given it up
#   server     the server is killed, all its processes at once
#   peer       that of the other node is
#   cut        both nodes lose their connections to the broker
#   restart    the broker is killed and started
#   wiped      ... and has lost all it ever stored
#
# But for the first three the process is held at the failpoint meanwhile.
#
# TPC_MATRIX=full runs the whole product, but that "frozen", "restart" and
# "wiped" are done once at each failpoint, not in all applications.  Otherwise
# every end and stop of every process at every failpoint is run once, in one of
# the applications that come by, and of the rest, which costs more, a part.

package TpcMatrix;

use strict;
use warnings;

use Cwd ();
use File::Basename;
use List::Util qw(max);
use PostgreSQL::Test::Utils;
use Test::More ();
use Time::HiRes qw(usleep time);
use TpcApplication;
use TpcPair;
use TpcProxy;
use TpcTest;

my $source = Cwd::realpath(dirname(__FILE__)) . '/../src';

my @ACTIONS =
  qw(error fatal kill stop client workers messenger frozen server peer cut
  restart wiped);
my %RAISES = map { $_ => 1 } qw(error fatal);
my %ENDS = map { $_ => 1 } qw(error fatal kill);
my %CRASHES = map { $_ => 1 } qw(kill server);

# Where a message of each kind has arrived and is not dealt with.
my %ARRIVED = map { $_ => 1 }
  ('P1.before', 'C2.vote', 'P5.before', 'C6.ack', 'I2.before', 'Q3.request');

# Of every so many cells, one is run if not all are.
my %SHARE =
  (client => 5, workers => 5, messenger => 4, server => 4, cut => 2);

# ... of those again that are run in another file as well.
my $ELSEWHERE = 3;

# What takes so long that it is done in one of the applications that come by.
my %ONCE = map { $_ => 1 } qw(frozen restart wiped);

# Comes by only by chance elsewhere, for it is a matter of time.
my %ONLY_IN = (
	'C2.vote' => qr/^(?!abandoned|nobody|forced)/,
	'I1.before' => qr/lost|abandoned/,
	'I2.before' => qr/abandoned/,
	'J3.before' => qr/participant first/,
	'J3.after' => qr/participant first/);

# Where the point is what happens once the statements have ended.
my $LATE = qr/nobody|forced/;

# Bound on the recovery from one cell.
my $SECONDS = 30;

# Time-outs that a stopped process shall outlast.
my $PREPARE_MS = 2500;
my $APPLY_MS = 300;

# failpoints: the names of all in the sources.
sub failpoints
{
	my %names;

	for my $file (glob "$source/*.c")
	{
		$names{$_} = 1 for slurp_file($file) =~ /TPC_FAILPOINT\("([^"]+)"\)/g;
	}
	return sort keys %names;
}

# ---------------------------------------------------------------------------
# The crash table of src/README

my @COLUMNS = qw(at who ends stops parted client);

sub crash_table
{
	my ($text) = slurp_file("$source/README") =~ /^(Crash table\n-+\n.*?)\n\n\n/ms
	  or die "src/README has no crash table\n";
	my ($header) = $text =~ /^( at +who .*)$/m
	  or die "the crash table has no header\n";
	my @starts = map { index $header, " $_" } @COLUMNS;
	my @rows;

	for my $line (grep { /^ [CPQJHI]\d/ } split /\n/, $text)
	{
		my %row = (cells => 0);

		for my $i (0 .. $#COLUMNS)
		{
			my $next = $starts[ $i + 1 ] // index $header, ' what is left';
			my $value = substr $line, $starts[$i], $next - $starts[$i];

			$value =~ s/^\s+|\s+$//g;
			$row{ $COLUMNS[$i] } = $value;
		}
		for my $column (qw(ends stops parted))
		{
			die "crash table: \"$row{$column}\" in $line\n"
			  unless $row{$column} =~ /^(?:done|abort|open|either|-)$/;
		}
		die "crash table: \"$row{client}\" in $line\n"
		  unless $row{client} =~ /^(?:ok|error|any|-)$/;
		@row{ 'step', 'side' } = $row{at} =~ /^(\w+)([<>]?)$/
		  or die "crash table: \"$row{at}\" in $line\n";
		$row{processes} =
		  { map { (s/^lead$/resolve worker/r => 1) } split /, */, $row{who} };
		push @rows, \%row;
	}
	return @rows;
}

# place CELL: its step in the crash table, and the side of it.
sub place
{
	my ($cell) = @_;
	my ($step, $word) = $cell->{failpoint} =~ /^(\w+)\.(\w+)$/;
	my %sides = (before => '<', after => '>', send => '>', request => '<');

	# The same code serves other steps as well.
	$step =~ s/^C5/Q4/, $step =~ s/^C6/Q5/ if $cell->{path} !~ /plain/;
	$step = $cell->{path} =~ /nobody/ ? 'Q6' : 'Q3'
	  if $step eq 'P6' && $cell->{where} eq 'blog';
	# PREPARE TRANSACTION of a joined branch is that of a coordinator, too.
	$step = $word eq 'before' ? 'J1' : 'J2'
	  if $step eq 'Q1' && $cell->{where} eq 'reviews';
	$step = 'H2' if $step eq 'P6' && $cell->{path} =~ /forced/;
	return ($step, $sides{$word} // '');
}

# rows CELL, PROCESS: those of its place that name the process.
sub rows
{
	my ($self, $cell, $process) = @_;
	my ($step, $side) = place($cell);

	return grep {
			 $_->{step} eq $step
		  && ($_->{side} eq '' || $side eq '' || $_->{side} eq $side)
		  && $_->{processes}{$process}
	} @{ $self->{table} };
}

# prediction CELL: (row, column) of the crash table.
sub prediction
{
	my ($self, $cell) = @_;
	my ($action, $process) = @$cell{ 'action', 'process' };
	my @found;

	if ($CRASHES{$action})
	{
		@found = $self->rows($cell, 'server');
		my @both = grep { $_->{processes}{$process} } @found;
		@found = @both if @both;
		return ($found[0], 'ends') if @found;
	}
	if ($action eq 'messenger')
	{
		@found = $self->rows($cell, 'messenger');
		return ($found[0], 'ends') if @found;
	}

	# Who waits for the vote goes.
	if ($action =~ /^(?:peer|client)$/
		&& $cell->{where} eq 'reviews'
		&& (place($cell))[0] =~ /^(?:P[123]|J[12])$/
		&& $cell->{failpoint} ne 'P3.after'
		&& $cell->{path} !~ /wait off/)
	{
		@found = grep { $_->{step} eq 'C2' && $_->{processes}{backend} }
		  @{ $self->{table} };
		return ($found[0], 'ends');
	}
	@found = $self->rows($cell, $process);
	die "the crash table has no row for "
	  . "$action of $process at $cell->{failpoint}\n"
	  unless @found;
	return (
		$found[0],
		$ENDS{$action} || $action eq 'server' ? 'ends'
		: $action eq 'stop' ? 'stops'
		: 'parted');
}

# ---------------------------------------------------------------------------
# The nodes

# new OPTIONS:
#   paths      of the applications, a list
#   own        matches failpoints ("C1.before") and rows of the crash table
#              ("C1< backend, server") that have their places here
#   conf       lines of postgresql.conf
sub new
{
	my ($class, %opts) = @_;
	my $broker = TpcTest::Broker->new(own => 1);
	my $proxy = TpcProxy->new($broker);
	my $self = bless {
		paths => $opts{paths},
		own => $opts{own},
		full => ($ENV{TPC_MATRIX} // '') eq 'full',
		broker => $broker,
		proxy => $proxy,
		table => [ crash_table() ],
		cells => [],
		began => time()
	}, $class;

	($blog, $reviews) = TpcPair::new_pair(
		broker => $broker,
		options => { port => $proxy->port, heartbeat => 1 },
		conf => "tpc_amqp.resolve_interval = '1s'
			tpc_amqp.prepare_timeout = '15s'
			tpc_amqp.apply_timeout = '3s'\n" . ($opts{conf} // ''));
	TpcPair::ready($blog, $reviews);
	return $self;
}

sub broker { return $_[0]{broker} }

# What belongs to an application, beyond its statements.

sub set_prepared_timeout
{
	my ($value) = @_;
	$blog->cluster->append_conf('postgresql.conf',
		"tpc_amqp.prepared_timeout = '$value'\n");
	$blog->cluster->reload;
	return;
}

# Once it has said all it had to say.
sub after_statements
{
	my ($app) = @_;

	if ($app->{path} =~ /nobody/)
	{
		set_prepared_timeout('100ms');
		$app->{told} = 'rollback';
	}
	if ($app->{path} =~ /forced/)
	{
		$app->{gtid} = $reviews->ask(
			"SELECT gtid FROM tpc_amqp.branches WHERE state = 'prepared'");
		# The server may go before it has said that it did.
		$reviews->observer->run(
			"SELECT tpc_amqp.force('$app->{gtid}', 'commit')");
	}
	return;
}

# Once all processes are there again.
sub after_recovery
{
	my ($app) = @_;

	if ($app->{path} =~ /nobody/)
	{
		my $left = TpcPair::in_doubt($blog, $reviews);

		set_prepared_timeout('5min');
		die "$left\n" if $left;
	}

	# Its branch was committed before the decision, which then is the same.
	# Incidents are the point of it, so they are cleared.
	if ($app->{path} =~ /forced/)
	{
		my $gtid = $app->{gtid};

		$reviews->ask_for('SELECT count(*) = 0 FROM pg_prepared_xacts');
		$blog->ask("COMMIT PREPARED 'g$app->{id}'");
		$_->ask_for("SELECT count(*) > 0 FROM tpc_amqp.incidents
			WHERE gtid = '$gtid'")
		  for $blog, $reviews;
		$_->ask_for("SELECT tpc_amqp.forget('$gtid')") for $blog, $reviews;
		$app->{told} = 'commit';
	}
	return;
}

# prepare PATH, FAILPOINT: what has to be so before.
sub prepare
{
	my ($path, $failpoint) = @_;

	$blog->ask_for('SELECT count(*) = 0 FROM tpc_amqp.decision')
	  && $blog->ask_for(
		'SELECT count(*) = 0 FROM tpc_amqp.finished_transactions()')
	  if $failpoint =~ /^C7/;
	# The last transaction has passed all failpoints.
	$_->ask_for("SELECT coalesce(bool_and(wait_event_type = 'Extension'), true)
		FROM pg_catalog.pg_stat_activity
		WHERE backend_type LIKE 'tpc_amqp % worker'")
	  for $blog, $reviews;

	# So that the participant has to inquire.
	set_failpoint($reviews, 'P4.before', 'fatal:once') if $path =~ /lost/;
	return;
}

sub set_failpoint
{
	my ($node, $name, $action) = @_;
	return $node->ask("SELECT public.tpc_test_failpoint('$name', '$action')");
}

sub clear_failpoint
{
	my ($node, $name) = @_;
	return $node->ask("SELECT public.tpc_test_failpoint_clear('$name')");
}

# ---------------------------------------------------------------------------
# Which failpoints an application comes by

# undisturbed PATH: { "blog C1.before backend" => may raise, … }
sub undisturbed
{
	my ($path) = @_;
	my $late = $path =~ $LATE;
	my %seen;

	prepare($path, '');
	my $app = begin($path);
	trace() unless $late;
	advance($app) or die "$path fails undisturbed: $app->{log}\n";
	trace() if $late;
	after_statements($app);
	if ($path =~ /forced/)
	{
		$reviews->ask_for('SELECT count(*) = 0 FROM pg_prepared_xacts');
		traced(\%seen);
	}
	after_recovery($app);
	my @wrong = (
		conclude($app, 'COMMIT'),
		TpcPair::in_doubt($blog, $reviews) || (),
		judge($app));
	die "$path fails undisturbed: @wrong\n" if @wrong;
	$blog->ask_for('SELECT count(*) = 0 FROM tpc_amqp.decision')
	  if $path =~ /plain/;
	traced(\%seen) unless $path =~ /forced/;
	TpcPair::ready($blog, $reviews);
	return \%seen;
}

sub trace
{
	$_->ask('SELECT public.tpc_test_failpoint_trace()') for $blog, $reviews;
	return;
}

sub traced
{
	my ($seen) = @_;

	for my $node ($blog, $reviews)
	{
		for my $line (split /\n/,
			$node->ask('SELECT public.tpc_test_failpoint_traced()'))
		{
			my ($failpoint, $process, $may_raise) = split /,/, $line;

			$process =~ s/^tpc_amqp //;
			$seen->{ join "\t", $node->name, $failpoint, $process } =
			  $may_raise eq 'yes';
		}
	}
	return;
}

# places: all failpoints that the applications come by whenever they run, as
# { path, where, failpoint, process, may_raise }.
sub places
{
	my ($self) = @_;
	my @places;

	for my $path (@{ $self->{paths} })
	{
		my ($once, $again) = map { undisturbed($path) } 1 .. 2;

		for my $key (sort keys %$once)
		{
			my ($where, $failpoint, $process) = split /\t/, $key;
			my $only_in = $ONLY_IN{$failpoint};

			next unless exists $again->{$key};
			next if $only_in && $path !~ $only_in;
			# All else is as without that.
			next if $path =~ /lost/ && $failpoint !~ /^I1|^C2.vote/;
			push @places,
			  {
				path => $path,
				where => $where,
				failpoint => $failpoint,
				process => $process,
				may_raise => $once->{$key} && $again->{$key}
			  };
		}
	}
	return @places;
}

# applies PLACE, ACTION: whether that can be done there.
sub applies
{
	my ($place, $action) = @_;

	return 0 if $RAISES{$action} && !$place->{may_raise};
	return 0
	  if $action =~ /^(?:messenger|frozen)$/
	  && $place->{process} eq 'messenger';
	return 0 if $action eq 'client' && $place->{process} eq 'backend';
	return 0
	  if $action =~ /^(?:restart|wiped)$/ && !$ARRIVED{ $place->{failpoint} };
	return 1;
}

# cells: the product of places and actions, or what is to be run of it.
sub cells
{
	my ($self) = @_;
	my @places = $self->places;
	my %of;
	my @order;
	my @cells;
	my ($n, $m) = (0, 0);

	$self->{places} = \@places;
	for my $place (@places)
	{
		my $key = "$place->{failpoint} $place->{process}";

		push @order, $key unless $of{$key};
		push @{ $of{$key} }, $place;
	}
	$self->{order} = [ sort @order ];
	for my $action (@ACTIONS)
	{
		for my $key (@{ $self->{order} })
		{
			my @where = grep { applies($_, $action) } @{ $of{$key} };

			next unless @where;
			if (!$self->{full})
			{
				next if $action =~ /^(?:frozen|peer|restart|wiped)$/;
				$n++;
				my $share = $SHARE{$action} // 1;
				$share *= $ELSEWHERE if $key !~ $self->{own};
				next if $n % $share;
				@where = ($where[ ($n / $share) % @where ]);
			}
			@where = ($where[ $m++ % @where ]) if $ONCE{$action};
			push @cells, map { { %$_, action => $action } } @where;
		}
	}

	# By application, so that what goes wrong in one shows together.
	my %rank;
	@rank{ @{ $self->{paths} } } = 0 .. $#{ $self->{paths} };
	return sort { $rank{ $a->{path} } <=> $rank{ $b->{path} } } @cells;
}

# ---------------------------------------------------------------------------
# What happens to a process that is held at a failpoint

# What takes its time, while the application goes on.

# until_given_up APPLICATION, BROKER, OFFSET: until the broker has closed a
# connection that was silent.
sub until_given_up
{
	my ($app, $broker, $offset) = @_;

	return TpcTest::poll_until(
		sub {
			step($app);
			return slurp_file($broker->logfile, $offset) =~
			  /missed heartbeats from client/;
		},
		'the broker to miss a heartbeat');
}

# pass APPLICATION, MILLISECONDS: until that time is over.
sub pass
{
	my ($app, $ms) = @_;
	my $end = time() + $ms / 1000;

	return TpcTest::poll_until(
		sub {
			step($app);
			return time() > $end;
		},
		'time to pass');
}

sub connects
{
	my ($node) = @_;
	return $node->ask('SELECT connects FROM tpc_amqp.stat');
}

my %happens = (
	stop => sub {
		my ($self, $cell, $node, $app) = @_;
		my $pid = $node->ask(
			"SELECT public.tpc_test_failpoint_pid('$cell->{failpoint}')");
		my $offset = -s $self->{broker}->logfile;
		my $connects = connects($node);

		TpcTest->freeze($pid);
		pass($app, max($PREPARE_MS, $APPLY_MS) + 500);
		if ($cell->{process} ne 'messenger')
		{
			TpcTest->thaw($pid);
			return;
		}
		until_given_up($app, $self->{broker}, $offset);
		TpcTest->thaw($pid);
		$node->ask_for("SELECT connects > $connects FROM tpc_amqp.stat");
	},
	client => sub {
		my ($self, $cell, $node) = @_;

		$_->ask("SELECT count(pg_catalog.pg_terminate_backend(pid))
			FROM pg_catalog.pg_stat_activity
			WHERE application_name = 'application'")
		  for $blog, $reviews;
		$_->ask_for("SELECT count(*) = 0 FROM pg_catalog.pg_stat_activity
			WHERE application_name = 'application'")
		  for $blog, $reviews;
	},
	workers => sub {
		my ($self, $cell, $node) = @_;
		my $held = $node->ask(
			"SELECT public.tpc_test_failpoint_pid('$cell->{failpoint}')");
		my @pids = map {
			$_->ask("SELECT array_remove(prepare_pids || resolve_pids, $held)
				FROM tpc_amqp.node")
		} $blog, $reviews;

		for my $i (0, 1)
		{
			($blog, $reviews)[$i]->ask(
				"SELECT count(pg_catalog.pg_terminate_backend(pid))
				FROM unnest('$pids[$i]'::int[]) pid");
		}
		for my $i (0, 1)
		{
			($blog, $reviews)[$i]->ask_for(
				"SELECT NOT (prepare_pids || resolve_pids) && '$pids[$i]'
				AND cardinality(prepare_pids || resolve_pids) >= 3
				FROM tpc_amqp.node");
		}
	},
	messenger => sub {
		my ($self, $cell, $node) = @_;
		my $pid = $node->ask('SELECT messenger_pid FROM tpc_amqp.node');

		$node->ask("SELECT pg_terminate_backend($pid)");
		$node->ask_for("SELECT state = 'connected' AND messenger_pid <> $pid
			FROM tpc_amqp.node");
	},
	frozen => sub {
		my ($self, $cell, $node, $app) = @_;
		my $pid = $node->ask('SELECT messenger_pid FROM tpc_amqp.node');
		my $offset = -s $self->{broker}->logfile;
		my $connects = connects($node);

		TpcTest->freeze($pid);
		until_given_up($app, $self->{broker}, $offset);
		TpcTest->thaw($pid);
		$node->ask_for("SELECT connects > $connects FROM tpc_amqp.stat");
	},
	server => sub {
		my ($self, $cell, $node) = @_;

		TpcTest->kill9_server($node->cluster);
		$node->cluster->start;
	},
	peer => sub {
		my ($self, $cell, $node) = @_;
		my $peer = $node == $blog ? $reviews : $blog;

		TpcTest->kill9_server($peer->cluster);
		$peer->cluster->start;
	},
	cut => sub {
		my ($self, $cell, $node) = @_;
		my @free = grep {
			!($_ == $node && $cell->{process} eq 'messenger')
		} $blog, $reviews;
		my @before = map { connects($_) } @free;

		$self->{proxy}->cut;
		for my $i (0 .. $#free)
		{
			$free[$i]->ask_for("SELECT connects > $before[$i]
				FROM tpc_amqp.stat");
		}
	},
	restart => sub {
		my ($self) = @_;

		$self->{broker}->kill9;
		$self->{broker}->start;
	},
	wiped => sub {
		my ($self) = @_;

		$self->{broker}->kill9;
		$self->{broker}->wipe;
		$self->{broker}->start;
	});

# ---------------------------------------------------------------------------
# One cell

# hold CELL, APPLICATION: until a process is held at the failpoint.
sub hold
{
	my ($cell, $app) = @_;
	my $node = node_named($cell->{where});
	my $end = time() + $SECONDS;
	my $rest = 0;

	while (1)
	{
		my $busy = step($app);

		if (!$busy && !$rest++)
		{
			die "it failed before: $app->{log}\n" if $app->{failed};
			after_statements($app);
		}
		next if $busy && !$app->{statement};
		return
		  if $node->ask("SELECT public.tpc_test_failpoint_pid(
				'$cell->{failpoint}') IS NOT NULL") eq 't';
		die "not reached: $app->{log}\n" if time() > $end;
		usleep(5_000);
	}
}

# try CELL: what is wrong, or nothing.
sub try
{
	my ($self, $cell) = @_;
	my ($failpoint, $action) = @$cell{ 'failpoint', 'action' };
	my $node = node_named($cell->{where});
	my $offset = TpcTest->log_size($node->cluster);
	my @wrong;
	my @settings =
	  $action eq 'stop'
	  ? (
		"tpc_amqp.prepare_timeout = $PREPARE_MS",
		"tpc_amqp.apply_timeout = $APPLY_MS")
	  : ();

	push @settings, 'application_name = application';
	prepare($cell->{path}, $failpoint);
	my $app = begin($cell->{path}, @settings);
	advance($app) if $cell->{path} =~ $LATE;
	set_failpoint($node, $failpoint,
		$ENDS{$action} || $action eq 'stop' ? "$action:once" : 'wait');
	if ($ENDS{$action})
	{
		advance($app);
		eval { after_statements($app); 1 } or push @wrong, $@;
		my $sign =
		  $action eq 'kill'
		  ? qr/was terminated by signal 9/
		  : qr/failpoint "\Q$failpoint\E"/;
		eval { TpcTest->wait_for_log($node->cluster, $sign, $offset); 1 }
		  or push @wrong, "not reached: $@";
	}
	else
	{
		eval {
			hold($cell, $app);
			$happens{$action}->($self, $cell, $node, $app);
			1;
		} or push @wrong, $@;
		eval { clear_failpoint($node, $failpoint); 1 } or push @wrong, $@;
		advance($app);
	}
	eval {
		clear_failpoint($reviews, 'P4.before') if $cell->{path} =~ /lost/;
		TpcPair::ready($blog, $reviews);
		after_recovery($app);
		$self->wait_for_workers($cell, $app);
		1;
	} or push @wrong, $@;

	push @wrong,
	  conclude($app, $self->{run}++ % 2 ? 'ROLLBACK' : 'COMMIT'),
	  TpcPair::in_doubt($blog, $reviews) || (), judge($app);
	eval { push @wrong, $self->compare($cell, $app); 1 } or push @wrong, $@;
	eval { push @wrong, works_on(); 1 } or push @wrong, $@;
	return @wrong ? (@wrong, $app->{log}) : ();
}

# wait_for_workers CELL, APPLICATION: where what is prepared shall be finished
# without us, do not be quicker.
sub wait_for_workers
{
	my ($self, $cell, $app) = @_;
	my ($row, $column) = $self->prediction($cell);
	my $end = time() + 5;

	return
	  if $row->{$column} ne 'done' || $app->{path} =~ /plain|abandoned/;
	TpcTest::poll_until(
		sub {
			return time() > $end
			  || $blog->ask("SELECT count(*) = 0 FROM pg_prepared_xacts
				WHERE gid = 'g$app->{id}'") eq 't';
		},
		'workers to finish it');
	return;
}

# compare CELL, APPLICATION: in what it is not as the crash table says.
sub compare
{
	my ($self, $cell, $app) = @_;
	my ($row, $column) = $self->prediction($cell);
	my $expected = $row->{$column};
	my $outcome = $app->{outcome};
	my $client =
	    !$app->{failed} ? 'ok'
	  : $app->{lost} ? 'lost'
	  : 'error';
	my @wrong;

	$row->{cells}++;
	$cell->{row} = $row;
	$cell->{predicted} = $expected;
	$cell->{outcome} = $outcome;
	$cell->{client} = $client;

	# It was not waited for, so that it cannot have failed at PREPARE.
	$expected = 'open'
	  if $expected eq 'abort'
	  && $cell->{path} =~ /wait off/
	  && $cell->{process} ne 'backend';

	# It was about to ask the other node, where its session has gone.
	$expected = 'open'
	  if $expected eq 'done'
	  && $cell->{action} eq 'peer'
	  && (place($cell))[0] =~ /^(?:C\d|Q1)$/
	  && $cell->{path} =~ /participant first/
	  && ($app->{failed} // '') =~ /^(?:COMMIT|ROLLBACK) PREPARED 'h/;

	# To be rolled back is what it has asked for.
	$outcome = 'abort'
	  if $outcome eq 'done'
	  && $app->{asked} eq 'rollback'
	  && $expected eq 'abort';
	push @wrong, "outcome: $outcome, not $expected as row $row->{at} "
	  . "($row->{who}) of the crash table says"
	  unless $expected eq $outcome || $expected eq 'either';

	# A session that ended with its process has been told nothing.
	my $lost = $cell->{action} eq 'fatal' && $cell->{process} eq 'backend'
	  || $cell->{action} =~ /^(?:client|peer)$/
	  || $CRASHES{ $cell->{action} };
	push @wrong,
	  "the client was told: $client, not $row->{client} as the crash table says"
	  if $column eq 'ends'
	  && $row->{client} ne 'any'
	  && $row->{client} ne $client
	  && !($lost && $client eq 'lost');
	return @wrong;
}

# run: all cells, each a test.
sub run
{
	my ($self) = @_;
	local $TpcTest::TIMEOUT = $SECONDS;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	$self->{cells} = [ $self->cells ];
	Test::More::note(scalar(@{ $self->{cells} }) . ' cells to run');
	for my $cell (@{ $self->{cells} })
	{
		my $start = time();
		my @wrong = $self->try($cell);
		my $took = time() - $start;

		$cell->{ok} = !@wrong;
		Test::More::ok(!@wrong, "$cell->{path}: "
			  . "$cell->{action} at $cell->{failpoint} of $cell->{where}")
		  or Test::More::diag(join "\n", @wrong);
		Test::More::note(sprintf '%s: predicted %s, was %s, client %s, %.1f s',
			map({ $_ // '' } @$cell{qw(process predicted outcome client)}),
			$took);
		next unless @wrong;
		for my $node ($blog, $reviews)
		{
			eval { clear_failpoint($node, $_) }
			  for $cell->{failpoint}, 'P4.before';
		}
	}
	return;
}

# complete: tests that our own failpoints and rows of the crash table have
# their places here.
sub complete
{
	my ($self) = @_;
	my $regexp = $self->{own};
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my @failpoints = grep { $_ =~ $regexp } failpoints();
	my %here = map { $_->{failpoint} => 1 } @{ $self->{places} };
	my %row_has;
	my $unforeseen = '';

	for my $place (@{ $self->{places} })
	{
		for my $action (grep { applies($place, $_) } @ACTIONS)
		{
			eval {
				my ($row) =
				  $self->prediction({ %$place, action => $action });
				$row_has{$row} = 1;
			} or $unforeseen .= $@;
		}
	}
	Test::More::is(
		join(' ', grep { $here{$_} } @failpoints),
		join(' ', @failpoints),
		'applications come by every failpoint');
	Test::More::is($unforeseen, '', 'the crash table foresees all cells');
	Test::More::is(
		join(
			', ',
			map { "$_->{at} $_->{who}" } grep {
				"$_->{at} $_->{who}" =~ $regexp
				  && $_->{ends} ne '-'
				  && !$row_has{$_}
			} @{ $self->{table} }),
		'',
		'every row of the crash table has cells');
	return;
}

# in_the_end: tests that nobody owes anybody anything.
sub in_the_end
{
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	TpcTest->no_prepared($blog->cluster, $reviews->cluster);
	$blog->cluster->append_conf('postgresql.conf',
		"tpc_amqp.forget_after = 0\n");
	$blog->cluster->reload;
	$blog->poll('SELECT count(*) = 0 FROM tpc_amqp.decision');
	Test::More::pass('all decisions are acknowledged and forgotten');
	$blog->poll('SELECT count(*) = 0 FROM tpc_amqp.transactions');
	Test::More::pass('no transaction is left in memory');
	TpcPair::in_agreement($blog, $reviews);
	TpcTest->no_crash('no other crash', $blog, $reviews);
	return;
}

# ---------------------------------------------------------------------------
# The table

# print_table: one line for each failpoint and process, one column for each
# action: ok, FAILED, or - where it does not apply or is not run.  A number is
# that of the applications it was run in.
sub print_table
{
	my ($self) = @_;
	my (%count, %bad);
	my $cells = $self->{cells};

	for my $cell (@$cells)
	{
		my $key = "$cell->{failpoint} $cell->{process}";

		$count{$key}{ $cell->{action} }++;
		$bad{$key}{ $cell->{action} }++ unless $cell->{ok};
	}
	my $format = '%-11s%-15s' . '%-10s' x @ACTIONS;
	my @lines = sprintf $format, 'failpoint', 'process', @ACTIONS;

	for my $key (@{ $self->{order} })
	{
		my ($failpoint, $process) = split / /, $key, 2;

		push @lines, sprintf $format, $failpoint, $process, map {
			my $n = $count{$key}{$_};
			!$n ? '-'
			  : $bad{$key}{$_} ? "FAILED $bad{$key}{$_}"
			  : $n == 1 ? 'ok'
			  : "ok $n"
		} @ACTIONS;
	}
	my $failed = grep { !$_->{ok} } @$cells;
	push @lines, sprintf '%d cells%s, %d ok, %d failed, %d s',
	  scalar @$cells, $self->{full} ? '' : ' (make matrix runs all)',
	  @$cells - $failed, $failed, time() - $self->{began};
	s/\s+$// for @lines;
	Test::More::diag(join "\n", '', @lines);
	return;
}

1;

# Whatever happens to whichever process at whichever step of a transaction that
# ends by PREPARE TRANSACTION and COMMIT PREPARED (TpcMatrix; 033 has those
# that prepare their branches themselves); a server, or the broker, goes
# between any two of its statements.  Whatever happens: what the client
# was told is true, both nodes agree, a transaction that stays prepared at the
# coordinator can be finished by anybody, after that nothing stays prepared,
# and the next transaction commits.

use strict;
use warnings;

use PostgreSQL::Test::Utils;
use Test::More;
use TpcTest;
use TpcApplication;
use TpcMatrix;
use TpcPair;

plan skip_all => 'this build has no failpoints'
  unless TpcTest::has_failpoints();

# Bound on the recovery from one crash.
$TpcTest::TIMEOUT = 30;

my $matrix = TpcMatrix->new(
	# What serves a participant's application is in 033.
	own => qr/^H|^Q(?!3.\s?re)/,
	paths => [
		'called, prepare_wait on',
		'called, prepare_wait off',
		'called, rolled back',
		'nobody finishes it',
		'forced'
	]);
my $broker = $matrix->broker;

$matrix->run;
$matrix->complete;
$matrix->print_table;

# ---------------------------------------------------------------------------
# A server, or the broker, between any two statements.  One application waits
# at each place, so that one outage is met by all.

# The statement after which the outage comes; the order of COMMIT PREPARED.
my @places = (
	[ 'enlist', 'joined, coordinator first' ],
	[ 'join', 'joined, coordinator first' ],
	[ 'INSERT INTO public.reviews', 'joined, coordinator first' ],
	[ "PREPARE TRANSACTION 'h", 'joined, coordinator first' ],
	[ "PREPARE TRANSACTION 'g", 'joined, coordinator first' ],
	[ "COMMIT PREPARED 'g", 'joined, coordinator first' ],
	[ "COMMIT PREPARED 'h", 'joined, coordinator first' ],
	[ "PREPARE TRANSACTION 'g", 'joined, participant first' ],
	[ "COMMIT PREPARED 'h", 'joined, participant first' ],
	[ "COMMIT PREPARED 'g", 'joined, participant first' ],
	[ 'tpc_amqp.call', 'called' ],
	[ "PREPARE TRANSACTION 'g", 'called' ],
	[ "COMMIT PREPARED 'g", 'called' ],);

my $outages = 0;

# outage NAME, DOWN, UP, NODES…: those lose their sessions.
sub outage
{
	my ($name, $down, $up, @lost) = @_;
	my @apps;

	for my $place (@places)
	{
		my $app = begin($place->[1]);

		push @apps, $app;
		advance($app, $place->[0])
		  or fail("$name: before the outage: $app->{log}");
		$app->{place} = $app->{done};
	}
	$down->();
	$up->();
	TpcPair::ready($blog, $reviews);

	for my $app (@apps)
	{
		# Once both are prepared nothing can be in the way any more: who lost
		# his session opens another.  Else, who has lost one gives up.
		my $must =
		  !@lost || $app->{place} =~ /^(?:PREPARE TRANSACTION 'g|COMMIT)/;

		if ($must)
		{
			for my $where (@lost)
			{
				my $former = $app->{clients}{$where};

				$former->close if $former;
				$app->{clients}{$where} = node_named($where)->client;
			}
		}
		advance($app);
		push @{ $app->{wrong} }, "it failed: $app->{failed}"
		  if $must && $app->{failed};
		push @{ $app->{wrong} },
		  conclude($app, $outages++ % 2 ? 'ROLLBACK' : 'COMMIT');
	}
	is(TpcPair::in_doubt($blog, $reviews),
		'', "$name: nothing stays in doubt");
	for my $app (@apps)
	{
		my @wrong = (@{ $app->{wrong} }, judge($app));

		push @wrong, $app->{log} if @wrong;
		(my $short = "$app->{path}, after $app->{place}") =~ s/\s+/ /g;
		$short =~ s/ VALUES.*//;
		$short =~ s/(?<=')([gh])\d+|blog\/\S+(?=')/$1 || 'gtid'/e;
		ok(!@wrong, "$name: $short") or diag(join "\n", @wrong);
	}
	is(join(' ', works_on()), '', "$name: the next transaction commits");
	return;
}

outage(
	'coordinator killed',
	sub { TpcTest->kill9_server($blog->cluster) },
	sub { $blog->cluster->start }, 'blog');
outage(
	'participant stopped',
	sub { $reviews->cluster->stop('immediate') },
	sub { $reviews->cluster->start }, 'reviews');
outage(
	'both killed',
	sub { TpcTest->kill9_server($_->cluster) for $blog, $reviews },
	sub { $_->cluster->start for $reviews, $blog },
	'blog', 'reviews');
outage(
	'broker killed',
	sub { $broker->kill9 },
	sub { $broker->start });
outage(
	'broker wiped',
	sub { $broker->kill9; $broker->wipe },
	sub { $broker->start });

# ---------------------------------------------------------------------------
# The application ends it at both nodes at a time, in one way or in two.

for my $step ('Q2.before', 'Q3.before')
{
	for my $end ('COMMIT', 'ROLLBACK')
	{
		my $name = "$end PREPARED at the participant, COMMIT PREPARED at $step";
		my $app = begin('joined, participant first');
		my $row = $app->{id};

		advance($app, "PREPARE TRANSACTION 'g") or fail($app->{log});
		$blog->failpoint($step, 'wait');
		my $run = $blog->start("COMMIT PREPARED 'g$row'");
		$blog->failpoint_reached($step);
		ok($app->{clients}{reviews}->run("$end PREPARED 'h$row'"),
			"$name: the one that is decided first succeeds")
		  or diag($app->{clients}{reviews}->err);
		leave($app);
		$blog->failpoint_clear($step);
		my (undef, $err) =
		  TpcTest->within(4, sub { $run->finish }, '... so that the other ends');
		like(
			$err,
			$end eq 'COMMIT'
			? qr/NOTICE: .*has been committed already/
			: qr/ERROR:  40000: .*has been rolled back/,
			'... and says what has become of it');
		is(rows_of($row), $end eq 'COMMIT' ? '11' : '00',
			'... on both nodes');
	}
}

# ---------------------------------------------------------------------------

$matrix->in_the_end;

done_testing();

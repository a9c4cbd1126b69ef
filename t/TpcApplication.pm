# TpcApplication: applications that commit on nodes blog and reviews of
# TpcPair in one of several ways, and may see anything fail meanwhile.
#
#   use TpcApplication;
#   ($blog, $reviews) = TpcPair::new_pair();
#   my $app = begin('joined, coordinator first');
#   advance($app, 'PREPARE');          # its next statements, up to that
#   push @wrong, conclude($app, 'COMMIT'), judge($app);
#
# "plain": it calls reviews, and says COMMIT.  "called": it says PREPARE
# TRANSACTION instead.  "joined": it has a session at each node and prepares
# both.

package TpcApplication;

use strict;
use warnings;

use Exporter 'import';
use TpcTest;
use TpcPair;
use Time::HiRes qw(usleep time);

our @EXPORT = qw($blog $reviews node_named begin step advance leave conclude
  judge rows_of works_on);

# The test sets them.
our ($blog, $reviews);

my $id = 0;

sub node_named
{
	my ($name) = @_;
	return $name eq 'blog' ? $blog : $reviews;
}

# statements PATH, ID: what it does: where, what, and what has then been
# promised ("commit", "rollback").  GTID stands for what a statement that
# contains "gtid" or "enlist" has returned.
sub statements
{
	my ($path, $row) = @_;
	my $end = $path =~ /rolled back/ ? 'ROLLBACK' : 'COMMIT';
	my $called =
	  "BEGIN; INSERT INTO public.blogs VALUES ($row);
		SELECT tpc_amqp.call('reviews', 'add_review', '{\"id\": $row}')";
	my @finish = (
		[ 'blog', "$end PREPARED 'g$row'", lc $end ],
		[ 'reviews', "$end PREPARED 'h$row'", lc $end ]);

	return ([ 'blog', $called ], [ 'blog', 'COMMIT', 'commit' ])
	  if $path =~ /plain/;

	# A branch of a transaction that its coordinator has rolled back, of which
	# the participant will never be told.
	return (
		[
			'blog', "BEGIN; SELECT tpc_amqp.call('reviews', 'look')
			\\; SELECT tpc_amqp.gtid(); ROLLBACK"
		],
		[
			'reviews', "BEGIN; INSERT INTO public.reviews (id) VALUES ($row);
			INSERT INTO tpc_amqp.branch VALUES ('blog', 'UUID',
			'tpc_amqp:GTID:reviews', 'guest', now());
			PREPARE TRANSACTION 'tpc_amqp:GTID:reviews'", 'rollback'
		]) if $path eq 'abandoned';

	return (
		[ 'blog', $called ],
		[ 'blog', "PREPARE TRANSACTION 'g$row'" ],
		$path =~ /nobody|forced/ ? () : $finish[0])
	  unless $path =~ /joined/;
	return (
		[
			'blog',
			"BEGIN; INSERT INTO public.blogs VALUES ($row);
			SELECT tpc_amqp.enlist('reviews')"
		],
		[ 'reviews', "BEGIN; SELECT tpc_amqp.join('GTID')" ],
		[ 'reviews', "INSERT INTO public.reviews (id) VALUES ($row)" ],
		[ 'reviews', "PREPARE TRANSACTION 'h$row'" ],
		[ 'blog', "PREPARE TRANSACTION 'g$row'" ],
		$path =~ /participant first/ ? reverse @finish : @finish);
}

# begin PATH, SETTINGS…: one that has done nothing yet.
sub begin
{
	my ($path, @settings) = @_;
	my $row = ++$id;
	my @where =
	  $path =~ /joined|abandoned/ ? ('blog', 'reviews') : ('blog');

	push @settings, 'tpc_amqp.prepare_wait = off' if $path =~ /wait off/;
	return {
		id => $row,
		path => $path,
		asked => $path =~ /rolled back|nobody|abandoned/ ? 'rollback' : 'commit',
		todo => [ statements($path, $row) ],
		wrong => [],
		clients =>
		  { map { $_ => node_named($_)->client(@settings) } @where },
		log => ''
	};
}

# step APPLICATION: give its next statement, or look whether the last one has
# been answered.  False when there is nothing left to do: what was promised is
# in {told}, what failed in {failed}.
sub step
{
	my ($app) = @_;

	if (!$app->{statement})
	{
		return 0 if $app->{failed};
		my $statement = $app->{statement} = shift @{ $app->{todo} };
		return 0 unless $statement;
		my $sql = $statement->[1];

		if (defined $app->{gtid})
		{
			my ($uuid) = $app->{gtid} =~ m{/(.*)};

			$sql =~ s/GTID/$app->{gtid}/g;
			$sql =~ s/UUID/$uuid/g;
		}
		$statement->[1] = $sql;
		$app->{clients}{ $statement->[0] }->post($sql);
		return 1;
	}

	my ($where, $sql, $promise) = @{ $app->{statement} };
	my $client = $app->{clients}{$where};

	return 1 unless $client->answered;
	my $ok = $client->succeeded;
	$app->{log} .= "$where: $sql: " . ($ok ? "ok\n" : $client->err . "\n");
	$app->{done} = $sql;
	($app->{gtid}) = $client->out =~ m{(\S+/\S+)} if $sql =~ /enlist|gtid\(/;
	delete $app->{statement};
	if (!$ok)
	{
		$app->{failed} = $sql;
		$app->{error} = $client->err;
		$app->{lost} = $client->gone || $client->err =~ /FATAL:/;
		return 0;
	}
	$app->{told} = $promise if $promise;
	return 1;
}

# advance APPLICATION, UNTIL: its next statements, until one fails or contains
# UNTIL.
sub advance
{
	my ($app, $until) = @_;
	my $end = time() + $TpcTest::TIMEOUT;

	while (step($app))
	{
		return 1
		  if defined $until
		  && !$app->{statement}
		  && index($app->{done}, $until) >= 0;
		usleep(2_000) if $app->{statement};
		next if time() < $end;
		$app->{failed} = "no answer: $app->{statement}[1]";
		$app->{error} = '';
		$app->{log} .= "$app->{failed}\n";
		return 0;
	}
	return !$app->{failed};
}

sub leave
{
	my ($app) = @_;
	$_->close for values %{ $app->{clients} };
	return;
}

# finish ID, VERB: the coordinator's transaction, from another session, if it
# is still prepared.  Returns whether it was, the expected rows, and what is
# wrong.
sub finish
{
	my ($row, $verb) = @_;
	my $any_rows = '^(?:00|11)$';
	my $gtid = $blog->ask("SELECT gtid FROM tpc_amqp.participants
		WHERE gid = 'g$row'");

	return (0, $any_rows)
	  if $blog->ask("SELECT count(*) FROM pg_catalog.pg_prepared_xacts
		WHERE gid = 'g$row'") == 0;
	my $branch = $reviews->ask("SELECT count(*) FROM tpc_amqp.branches
		WHERE gtid = '$gtid' AND state = 'prepared'");

	# A worker may be at it, or the crash reaches this session only now.
	my ($ok, $err);
	TpcTest::poll_until(
		sub {
			my $observer = $blog->observer;

			$ok = $observer->run("$verb PREPARED 'g$row'");
			$err = $observer->err;
			return $err !~
			  /is busy|Try again in a moment|because of crash of another/i;
		},
		"$verb PREPARED");
	return (1, $verb eq 'COMMIT' ? '^11$' : '^00$') if $ok;
	return (0, $any_rows) if $err =~ /does not exist|has been (?:comm|rolled)/;
	return (1, $any_rows, "$verb PREPARED failed: $err")
	  if $branch || $verb ne 'COMMIT';

	# It cannot commit: a participant has no branch.
	return (1, '^00$')
	  if $blog->observer->run("ROLLBACK PREPARED 'g$row'");
	return (1, '^00$',
		"$err, then ROLLBACK PREPARED failed: " . $blog->observer->err);
}

sub rows_of
{
	my ($row) = @_;

	return $blog->ask("SELECT count(*) FROM public.blogs WHERE id = $row")
	  . $reviews->ask("SELECT count(*) FROM public.reviews WHERE id = $row");
}

# conclude APPLICATION, VERB: what is prepared at the coordinator ends so.
# Returns what is wrong; {open} says whether it still was, {expected} which
# rows there are now.
sub conclude
{
	my ($app, $verb) = @_;
	my @wrong;

	leave($app);
	eval {
		(@$app{ 'open', 'expected' }, @wrong) = finish($app->{id}, $verb);
		1;
	} or push @wrong, $@;
	return @wrong;
}

# judge APPLICATION: what is wrong about its rows, now that all is settled.
# {outcome} then says what has become of it.
sub judge
{
	my ($app) = @_;
	my @wrong;
	my $has = eval { rows_of($app->{id}) } // "unknown: $@";
	my $expected = $app->{expected} // '^(?:00|11)$';
	my %promised = (commit => '11', rollback => '00');

	push @wrong, "rows at blog, at reviews: $has, not $expected"
	  unless $has =~ /$expected/;
	push @wrong, "told $app->{told}, rows: $has"
	  if $app->{told} && $has ne $promised{ $app->{told} };
	push @wrong, "$app->{failed} raised, rows: $has"
	  if $app->{failed}
	  && $app->{failed} =~ /^(?:PREPARE .*'g|COMMIT$)/
	  && $app->{error} =~ /ERROR:/
	  && !$app->{lost}
	  && $has ne '00';
	$app->{outcome} =
	    $app->{open} ? 'open'
	  : $has eq $promised{ $app->{asked} } ? 'done'
	  : 'abort';
	return @wrong;
}

# works_on: what is wrong about another transaction.  It is repeated until one
# was quick, so that nothing that was asked or told twice is still under way.
sub works_on
{
	for (1 .. 5)
	{
		my $observer = $blog->observer;
		my $start = time();

		$observer->run(TpcPair::transaction(++$id))
		  or return 'next transaction: ' . $observer->err;
		last if time() - $start < 0.7;
	}
	return ();
}

1;

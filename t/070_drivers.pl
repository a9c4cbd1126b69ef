# Applications that hold a connection to both databases: psycopg2, psycopg 3,
# SQLAlchemy and JDBC, each with the two-phase interface that it has.

use strict;
use warnings;

use Cwd ();
use File::Basename;
use PostgreSQL::Test::Utils;
use Test::More;
use TpcTest;
use TpcPair;

my $clients = Cwd::realpath(dirname(__FILE__)) . '/clients';
my $examples = Cwd::realpath(dirname(__FILE__)) . '/../doc/examples';
my $jar = '/usr/share/java/postgresql.jar';

# JDBC knows no sockets but those of TCP.
my ($blog, $reviews) = TpcPair::new_pair(
	conf => <<'EOC',
listen_addresses = '127.0.0.1'
tpc_amqp.resolve_interval = 500ms
EOC
	# As in the README
	reviews_setup => <<'EOS',
CREATE SCHEMA app;
CREATE TABLE app.reviews (
	blog_id int NOT NULL,
	rating int NOT NULL CONSTRAINT rating_is_1_to_5 CHECK (rating BETWEEN 1 AND 5),
	body text NOT NULL);
EOS
	blog_setup => 'ALTER TABLE public.blogs ADD title text',
);
TpcPair::connected($blog, $reviews);

my $id = 0;

sub url
{
	my ($node) = @_;
	return sprintf 'jdbc:postgresql://127.0.0.1:%d/%s?user=%s',
	  $node->cluster->port, $node->db, scalar getpwuid($>);
}

# A JVM that is cheap to start and leaves nothing in /tmp.
my $classes = PostgreSQL::Test::Utils::tempdir();
my @jvm = qw(-XX:-UsePerfData -XX:+UseSerialGC -Xshare:auto);
my @java = ('java', @jvm, '-XX:TieredStopAtLevel=1', '-cp', "$jar:$classes");
my @python = '/usr/bin/python3';

my %client = (
	map({ $_ => [
				@python, "$clients/client.py",
				$_, $blog->connstr,
				$reviews->connstr ] } qw(psycopg2 psycopg sqlalchemy session)),
	jdbc => [ @java, 'Client', url($blog), url($reviews) ]);

# run_program COMMAND: (output, messages, status as in $?)
sub run_program
{
	my (@command) = @_;
	my ($out, $err) = ('', '');

	IPC::Run::run(
		\@command,
		'<', '/dev/null',
		'>', \$out,
		'2>', \$err,
		IPC::Run::timeout($TpcTest::TIMEOUT));
	my $status = $?;
	note("$command[0] said:\n$out$err");
	return ($out, $err, $status);
}

# scenarios CLIENT, SCENARIO…: run them all, each "WHAT:PREPARE:FINISH:DIE" as
# in client.py.  Returns a list of { id, name, error, end, decided, listed }.
sub scenarios
{
	my ($client, @what) = @_;
	my @all = map {
		{ id => ++$id, name => "$client $_", scenario => $_, error => [] }
	} @what;
	my %by_id = map { $_->{id} => $_ } @all;
	my ($out, $err, $status) = run_program(@{ $client{$client} },
		map { "$_->{id}:$_->{scenario}" } @all);

	for my $line (split /\n/, $out)
	{
		my ($row, $word, $rest) = split / /, $line, 3;
		my $run = $by_id{$row};

		push @{ $run->{error} }, $rest if $word eq 'error';
		$run->{decided} = 1 if $word eq 'decided';
		$run->{listed} .= "$rest " if $word eq 'listed';
		$run->{steps}++ if $word eq 'step';
		$run->{end} = $word
		  if $word =~ /^(?:committed|rolled|killed|failed)$/;
	}
	# It cannot say itself that it has died.
	$all[-1]{end} //= 'killed' if ($status & 127) == 9;
	return @all;
}

# rows RUN…: how many each has, as "blog reviews", by id.
sub rows
{
	my (@runs) = @_;
	my $ids = join ',', map { $_->{id} } @runs;
	my %rows = map { $_->{id} => [ 0, 0 ] } @runs;

	$rows{$_}[0]++
	  for split /\n/,
	  $blog->sql("SELECT id FROM public.blogs WHERE id IN ($ids)");
	$rows{$_}[1]++
	  for split /\n/,
	  $reviews->sql("SELECT id FROM public.reviews WHERE id IN ($ids)");
	return map { $_ => "@{ $rows{$_} }" } keys %rows;
}

# ---------------------------------------------------------------------------
# What happens while the application lives

my @orders = map {
	my $prepare = $_;
	map { "$prepare:$_:0" } qw(rb br)
} qw(rb br);
my @live = (
	(map { "commit:$_" } @orders),
	'plain:rb:br:0',
	(map { "rollback:rb:$_:0" } qw(rb br)),
	(map { "undo:$_" } @orders),
	'fail:rb:br:0',
	(map { "ignore:$_:0" } 'rb:br', 'rb:rb', 'br:br', 'br:rb'),
	(map { "recover:rb:$_:0" } qw(rb br)));
my %live = (
	psycopg2 => \@live,
	psycopg => \@live,
	sqlalchemy => \@live,
	# It has an order of its own.
	session => [ map { "$_:br:br:0" } qw(commit rollback undo fail) ],
	jdbc => \@live);

my %expected = (
	commit => 'committed 1 1',
	plain => 'committed 1 1',
	recover => 'committed 1 1',
	rollback => 'rolled 0 0',
	undo => 'rolled 0 0',
	fail => 'rolled 0 0',
	ignore => 'rolled 0 0');

($_, my $compile_errors, my $compiled) = run_program('javac',
	(map { "-J$_" } @jvm), '-cp', $jar, '-d', $classes,
	"$clients/Client.java", "$examples/TransactionXA.java");
is($compiled, 0, 'the Java programs compile') or diag($compile_errors);

# What transaction managers find beside what is theirs: a prepared
# transaction of another kind at either.
$blog->sql(q{BEGIN; INSERT INTO public.blogs VALUES (0);
	SELECT tpc_amqp.call('reviews', 'add_review', '{"id": 0}');
	PREPARE TRANSACTION 'held'});
like(TpcPair::unfinished($reviews), qr/^tpc_amqp:/, 'a branch is held');

my @killed;
for my $client (qw(psycopg2 psycopg sqlalchemy session jdbc))
{
	# A JVM runs all of this, and one it does not survive.
	my @runs = scenarios($client, @{ $live{$client} },
		$client eq 'jdbc' ? 'commit:rb:rb:6' : ());
	push @killed, pop @runs if $client eq 'jdbc';
	my %rows = rows(@runs);

	for my $run (@runs)
	{
		my ($what) = $run->{scenario} =~ /^(\w+)/;
		my @errors = @{ $run->{error} };

		is(($run->{end} // 'nothing') . " $rows{$run->{id}}",
			$expected{$what}, "$run->{name}: on both or on neither");
		if ($what eq 'fail')
		{
			is($errors[0] =~ /^(\d+)/ ? $1 : "@errors",
				'23514', '... and the application got the error');
		}
		elsif ($what eq 'ignore')
		{
			cmp_ok(scalar @errors, '>=', 2,
				'... and the application could not but notice');
			like($errors[1] // '', qr/ (?:prepare|commit) /,
				'... before it believed in success');
		}
		else
		{
			is("@errors", '', '... without an error');
		}
		if ($what eq 'recover')
		{
			# JDBC lists what can be one of its own.
			my $n = $client eq 'jdbc' ? 1 : 2;
			is($run->{listed}, "b $n r $n ",
				'... and recovery found what there was');
		}
	}
}

$blog->sql(q{ROLLBACK PREPARED 'held'});

# ---------------------------------------------------------------------------
# The application is killed after each of its statements

my @both = map {
	my $n = $_;
	map { "commit:$_:$n" } 'rb:br', 'br:rb'
} 1 .. 8;
my @plain = map { "plain:rb:br:$_" } 1 .. 7;

push @killed, scenarios($_, @both, @plain) for qw(psycopg2 psycopg sqlalchemy);
push @killed, scenarios('session', map { "commit:br:br:$_" } 1 .. 11);
# Each a JVM
push @killed, scenarios('jdbc', 'commit:rb:rb:7');
push @killed, scenarios('jdbc', 'commit:br:br:5');

is(join(', ', map { $_->{name} } grep { ($_->{end} // '') ne 'killed' } @killed),
	'', 'all were killed that should be');
is( join(', ',
		map { "$_->{name}: @{ $_->{error} }" }
		grep { @{ $_->{error} } } @killed),
	'', '... and none had an error before');

# What has been decided does not wait for anything.
my @decided = grep { $_->{decided} } @killed;
cmp_ok(scalar @decided, '>=', 16, 'some were killed after the decision');
my $ids = join ',', map { $_->{id} } @decided;
for my $query ([ $blog, 'blogs' ], [ $reviews, 'reviews' ])
{
	my ($node, $table) = @$query;
	$node->poll("SELECT count(*) FROM public.$table WHERE id IN ($ids)",
		scalar @decided);
}
pass('they commit on both nodes');

# What was prepared and left alone is not: now it has been for long enough.
cmp_ok(TpcPair::unfinished($blog), 'ne', '', 'some are left prepared');
$blog->cluster->append_conf('postgresql.conf',
	"tpc_amqp.prepared_timeout = 1s\n");
$blog->cluster->reload;
ok(TpcPair::settled(30, $blog, $reviews), 'nothing stays prepared')
  or diag(map { $_->name . ":\n" . TpcPair::unfinished($_) . "\n" } $blog, $reviews);

my %rows = rows(@killed);
for my $run (@killed)
{
	is($rows{ $run->{id} }, $run->{decided} ? '1 1' : '0 0',
		"$run->{name}, killed: on both if it was decided, else on neither");
}

# ---------------------------------------------------------------------------
# The examples in the documentation

$blog->cluster->append_conf('postgresql.conf',
	"tpc_amqp.prepared_timeout = 5min\n");
$blog->cluster->reload;

# sqlalchemy_url NODE: the address of its socket
sub sqlalchemy_url
{
	my ($node) = @_;
	return sprintf 'postgresql+psycopg2:///%s?host=%s&port=%d',
	  $node->db, $node->cluster->host, $node->cluster->port;
}

my @dsns = map { $_->connstr } $blog, $reviews;
for my $example (
	[ 'psycopg2', @python, "$examples/transaction_psycopg2.py", @dsns ],
	[ 'psycopg 3', @python, "$examples/transaction_psycopg3.py", @dsns ],
	[
		'SQLAlchemy', @python, "$examples/transaction_sqlalchemy.py",
		map { sqlalchemy_url($_) } $blog, $reviews
	],
	[ 'JDBC', @java, 'TransactionXA', url($blog), url($reviews) ])
{
	my ($name, @command) = @$example;
	my $there = sub {
		return $blog->sql("SELECT count(*) FROM blogs WHERE id = $id") . ' '
		  . $reviews->sql(
			"SELECT count(*) FROM app.reviews WHERE blog_id = $id");
	};

	$id++;
	my ($out, $err, $status) = run_program(@command, $id, 5);
	is("$status $err", '0 ', "the example for $name runs");
	like($out, qr{^committed blog/[0-9a-f-]{36}$}, '... and says so');
	is($there->(), '1 1', '... and committed on both');

	$id++;
	(undef, $err, $status) = run_program(@command, $id, 6);
	cmp_ok($status, '!=', 0, '... and fails on both');
	like($err, qr/rating_is_1_to_5/, '... for the reason there is');
	is($there->(), '0 0', '... and nothing is left of that');
}

TpcTest->no_prepared($blog->cluster, $reviews->cluster);
TpcTest->no_incidents('there were no incidents', $blog, $reviews);

done_testing();

# A prepared transaction that cannot be finished does not keep a node from
# finishing the others.
#
# What keeps it: the file that holds it after a checkpoint is away, or a row that
# cannot be read.

use strict;
use warnings;

use PostgreSQL::Test::Utils;
use Test::More;
use TpcTest;
use TpcPair;

my ($blog, $reviews) = TpcPair::new_pair(conf => <<'EOC');
tpc_amqp.resolve_interval = '200ms'
tpc_amqp.forget_after = 0
EOC
TpcPair::connected($blog, $reviews);

my $id = 0;

# prepare_some COUNT: so many transactions that are prepared on both.
sub prepare_some
{
	my ($count) = @_;

	$blog->sql(
		TpcPair::transaction(++$id) =~ s/COMMIT;/PREPARE TRANSACTION 'g$id';/r)
	  for 1 .. $count;
	return;
}

# take_files NODE, HOW: of every other one, by when they were prepared, the
# first one among them; (their gids, a hash of what was moved to where).
sub take_files
{
	my ($node) = @_;
	my $dir = $node->cluster->data_dir . '/pg_twophase';
	my (@gids, %moved);
	my $n = 0;

	$node->sql('CHECKPOINT');
	for my $row (
		split /\n/,
		$node->sql("SELECT transaction, gid FROM pg_prepared_xacts
			ORDER BY transaction::text::bigint"))
	{
		my ($xid, $gid) = split /\|/, $row, 2;
		my ($file) = glob sprintf('%s/*%08X', $dir, $xid);

		next if $n++ % 2;
		push @gids, $gid;
		$moved{$file} = $node->cluster->data_dir . "/away_$xid";
		rename $file, $moved{$file} or die "$file: $!";
	}
	return (join("\n", sort @gids), %moved);
}

sub put_back
{
	my (%moved) = @_;

	rename $moved{$_}, $_ or die "$_: $!" for keys %moved;
	return;
}

# those_left NODE, GIDS: only they stay prepared.
sub those_left
{
	my ($node, $gids, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	eval {
		local $TpcTest::TIMEOUT = 30;
		TpcTest::poll_until(
			sub { TpcPair::unfinished($node) eq $gids },
			'those that can be finished');
	};
	return is(TpcPair::unfinished($node), $gids, $name);
}

sub says_why
{
	my ($node, $offset, $name) = @_;

	TpcTest->wait_for_log($node->cluster,
		qr/WARNING:  node .* could not look after .*pg_twophase/, $offset);
	return pass($name);
}

# ---------------------------------------------------------------------------
# Forced

prepare_some(4);
my $offset = TpcTest->log_size($reviews->cluster);
my ($stuck, %moved) = take_files($reviews);
$reviews->sql("SELECT tpc_amqp.force(gtid, 'commit') FROM tpc_amqp.branches");
those_left($reviews, $stuck, 'forced: all others are finished');
says_why($reviews, $offset, '... and the log says what is the matter');
put_back(%moved);
those_left($reviews, '', '... it is tried again');
is($reviews->sql('SELECT count(*) FROM public.reviews'),
	4, '... and all are committed');
$blog->sql("COMMIT PREPARED 'g$_'") for 1 .. 4;

# ---------------------------------------------------------------------------
# Left behind by the application

prepare_some(8);
$offset = TpcTest->log_size($blog->cluster);
($stuck, %moved) = take_files($blog);
$blog->cluster->append_conf('postgresql.conf',
	"tpc_amqp.prepared_timeout = '100ms'\n");
$blog->cluster->reload;
those_left($blog, $stuck, 'prepared_timeout: all others are rolled back');
says_why($blog, $offset, '... and the log says what is the matter');

# It still does the rest of its work.
$blog->sql(TpcPair::transaction(++$id));
$blog->poll('SELECT count(*) = 0 FROM tpc_amqp.decision');
pass('... what has committed is forgotten');
put_back(%moved);
those_left($_, '', '... and all of them at last, on ' . $_->name)
  for $blog, $reviews;
is($reviews->sql('SELECT count(*) FROM public.reviews'),
	5, '... on both nodes');
# ---------------------------------------------------------------------------
# After a start, what was prepared before cannot be found

$blog->cluster->append_conf('postgresql.conf',
	"tpc_amqp.prepared_timeout = '5min'\n");
$blog->cluster->reload;
prepare_some(1);
$reviews->sql("INSERT INTO tpc_amqp.decision
	(gtid, participants, users, acked, decided_at)
	VALUES (gen_random_uuid(), '{NULL}', '{guest}', '{}', now())");
$offset = TpcTest->log_size($reviews->cluster);
TpcTest->kill9_server($reviews->cluster);
$reviews->cluster->start;
TpcPair::connected($blog, $reviews);
my (undef, $err, $rc) = $blog->try("SET tpc_amqp.apply_timeout = '60s';
	COMMIT PREPARED 'g$id'");
is("$rc $err", '0 ', 'a row that cannot be read: commits wait for a while');
is(TpcPair::reviews_has($reviews, $id), 1, '... and are carried out');
TpcTest->wait_for_log(
	$reviews->cluster,
	qr/WARNING:  node "reviews" could not look after "prepared transactions"/,
	$offset);
pass('... and the log says what is the matter');
$reviews->sql("DELETE FROM tpc_amqp.decision WHERE participants = '{NULL}'");
$blog->sql(TpcPair::transaction(++$id));
is(TpcPair::reviews_has($reviews, $id), 1, '... and then all is well again');

TpcTest->no_crash('no crash', $blog, $reviews);

done_testing();

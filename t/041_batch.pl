# Several messages in one of the broker's: they form when a messenger finds
# more than one, come back for all that is in them, are acknowledged when the
# last of it is done, and a bad one harms nobody.

use strict;
use warnings;

use PostgreSQL::Test::Utils;
use Test::More;
use TpcAmqp;
use TpcPair;
use TpcTest;

my $N = 3;

my $broker = TpcTest::Broker->new(own => 1);
my ($blog, $reviews) = TpcPair::new_pair(
	broker => $broker,
	conf => "tpc_amqp.prepare_timeout = '60s'\ntpc_amqp.lock_timeout = 0\n");
my @nodes = ($blog, $reviews);
my $next_id = 1;

TpcPair::connected(@nodes);

my $amqp = TpcAmqp->new($broker);
$amqp->spy("spy.$_", "tpc_amqp.$_")
  for qw(reviews.prepare reviews.decision blog.vote);

# together TRANSACTION…: start them so that the coordinator's messenger finds
# the prepares of all at once.
sub together
{
	my @runs;
	my $messenger = $blog->sql('SELECT messenger_pid FROM tpc_amqp.node');

	TpcTest->freeze($messenger);
	push @runs, $blog->start($_) for @_;
	$blog->poll('SELECT count(*) = '
		  . @runs
		  . " FROM tpc_amqp.transactions WHERE state = 'preparing'");
	TpcTest->thaw($messenger);
	return @runs;
}

sub commit_all
{
	my ($name, @runs) = @_;
	my @ends = map { my (undef, $err, $rc) = $_->finish; "$rc $err" } @runs;

	return is_deeply(\@ends, [ ('0 ') x @runs ], $name);
}

# The message in a spy's queue that is a batch, and how many are in it.
sub next_batch
{
	my ($queue) = @_;

	while (my $message = $amqp->try_get("spy.$queue"))
	{
		next unless $message->{body} =~ /^\[/;
		return ($message, scalar(() = $message->{body} =~ /"gtid"/g));
	}
	return (undef, 0);
}

sub forget_spied
{
	for my $queue (qw(reviews.prepare reviews.decision blog.vote))
	{
		1 while $amqp->try_get("spy.$queue");
	}
	return;
}

sub queued_prepares
{
	my %queues = $broker->queues;
	return $queues{'tpc_amqp.reviews.prepare'}{messages};
}

sub queued_prepares_are
{
	my ($n, $name) = @_;
	my $seen;

	ok( eval {
			TpcTest::poll_until(
				sub {
					$TpcTest::last_seen = $seen = queued_prepares();
					return $seen == $n;
				},
				"$n in the queue");
		},
		$name) or diag "there are $seen";
	return;
}

# ---------------------------------------------------------------------------
# They form, and every message of them counts as one

my $sent = $blog->counter('messages_sent');
my $received = $reviews->counter('prepares');
my @ids = map { $next_id++ } 1 .. $N;
commit_all('transactions whose prepares come in one batch',
	together(map { TpcPair::transaction($_) } @ids));
my ($batch, $n) = next_batch('reviews.prepare');
is($n, $N, 'there was one');
like($batch->{header}, qr/\x05batch/, '... of that type');
unlike($batch->{header}, qr/blog\//, '... and of no transaction');
is($blog->counter('messages_sent') - $sent,
	2 * $N, 'each of its messages counts as sent');
is($reviews->counter('prepares') - $received, $N, '... and as received');
$blog->poll('SELECT publishes BETWEEN 1 AND messages_sent - 2
	FROM tpc_amqp.stat');
queued_prepares_are(0, 'it is acknowledged');

# ---------------------------------------------------------------------------
# One that is returned is a refusal to each

my @runs = together(
	map { TpcPair::transaction($next_id++, to => 'nowhere') } 1 .. $N);
for my $run (@runs)
{
	my (undef, $err, $rc) = $run->finish;
	like($err, qr/42704: node "nowhere" is not known to the broker/,
		'a prepare of a batch that is returned');
}
is($blog->counter('prepares_returned'), $N, 'each counts as returned');

# ---------------------------------------------------------------------------
# It is acknowledged when the last of it is done

forget_spied();
my $lock = $reviews->session;
$lock->query_safe('SELECT pg_advisory_lock(7)');
@ids = map { $next_id++ } 1 .. $N;
my ($held, @others) =
  together(TpcPair::transaction($ids[0], handler => 'held'),
	map { TpcPair::transaction($_) } @ids[ 1 .. $#ids ]);
commit_all('the others of a batch do not wait for the one that does',
	@others);
(undef, $n) = next_batch('reviews.prepare');
is($n, $N, '... which came in one');
is(queued_prepares(), 1, 'it is not acknowledged');
$lock->query_safe('SELECT pg_advisory_unlock(7)');
commit_all('the last of a batch', $held);
queued_prepares_are(0, 'it is acknowledged');

# What it came with comes again, if the connection is lost meanwhile.
forget_spied();
$lock->query_safe('SELECT pg_advisory_lock(7)');
@ids = map { $next_id++ } 1 .. $N;
($held, @others) =
  together(TpcPair::transaction($ids[0], handler => 'held'),
	map { TpcPair::transaction($_) } @ids[ 1 .. $#ids ]);
commit_all('the others of a batch again', @others);
my $duplicates = $reviews->counter('duplicates');
$broker->close_connections;
$reviews->poll(
	"SELECT duplicates >= $duplicates + $N FROM tpc_amqp.stat");
$lock->quit;
commit_all('the last of a batch that came twice', $held);
queued_prepares_are(0, 'it is acknowledged');
is($reviews->sql("SELECT count(*) FROM public.reviews
	WHERE id BETWEEN $ids[0] AND $ids[-1]"), $N, '... and took effect once');

# ---------------------------------------------------------------------------
# Bad ones

$amqp = TpcAmqp->new($broker);
$amqp->spy('spy.commit', 'tpc_amqp.reviews.decision');
$blog->sql(TpcPair::transaction($next_id++));
my $commit = $amqp->get('spy.commit');
my ($gtid) = $commit->{header} =~ m{(blog/[0-9a-f-]{36})} or die 'no gtid';
(my $header = $commit->{header}) =~ s/\x06commit/\x05batch/ or die 'no type';
my $item = qq({"type":"commit","gtid":"$gtid","body":{}});

for my $case (
	[ '[]', 1, 0, 'an empty one' ],
	[ '{}', 1, 0, 'an object' ],
	[ "[$item,", 1, 0, 'one that is cut off' ],
	[ '[' . join(',', ($item) x 65) . ']', 1, 0, 'one of too many' ],
	[ "[$item" . ' ' x 65536 . ']', 1, 0, 'one that is too long' ],
	[ '[' x 60000, 1, 0, 'brackets' ],
	[ "\0" x 60000, 1, 0, 'zeros' ],
	[ qq([{"type":"batch","gtid":"$gtid","body":{}},$item]),
		1, 1, 'one with a batch in it' ],
	[ qq([$item,{"type":"vote","gtid":"$gtid","body":{"vote":"yes"}},$item]),
		1, 2, 'one with a vote in it' ],
	[ qq([$item,{"type":"commit","gtid":"glob/x"}]),
		1, 1, 'one with a bad gtid' ],
	[ '[' . join(',', ($item) x 64) . ']', 0, 64, 'a full one' ])
{
	my ($body, $bad, $good, $name) = @$case;
	my @before =
	  map { $reviews->counter($_) } qw(bad_messages duplicates connects);

	$amqp->publish('tpc_amqp.reviews.decision',
		{ header => $header, body => $body });
	$reviews->poll("SELECT bad_messages >= $before[0] + $bad AND
		duplicates >= $before[1] + $good FROM tpc_amqp.stat");
	is_deeply(
		[ map { $reviews->counter($_) } qw(bad_messages duplicates connects) ],
		[ $before[0] + $bad, $before[1] + $good, $before[2] ],
		"$name: what was bad is dropped, the rest is not");
}
my $id = $next_id++;
$blog->sql(TpcPair::transaction($id));
is(TpcPair::reviews_has($reviews, $id), 1, 'the next transaction commits');
my %queues = $broker->queues;
is($queues{'tpc_amqp.reviews.decision'}{messages},
	0, 'all are acknowledged');

ok(TpcPair::settled(20, @nodes), 'nothing is left prepared');
is($reviews->sql('SELECT count(*) FROM tpc_amqp.incidents'),
	0, 'nor is there an incident');

done_testing();

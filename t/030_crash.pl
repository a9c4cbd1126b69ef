# A process fails, ends or crashes at each step of the protocol.
#
# "error" and "fatal" are its own ends; "kill" is SIGKILL, upon which its
# server restarts all processes.  Whatever the step: within a bound no branch
# is left prepared, both nodes agree on the transaction, what the client was
# told is true, and the next transaction commits.

use strict;
use warnings;

use Cwd;
use File::Basename;
use PostgreSQL::Test::Utils;
use Test::More;
use TpcTest;
use TpcPair;

my $source;
BEGIN { $source = Cwd::realpath(dirname(__FILE__)) . '/../src' }

plan skip_all => 'this build has no failpoints'
  unless TpcTest::has_failpoints();

# Bound on the recovery from one crash.
my $SECONDS = 30;

# Step, whose cluster, and what may happen there.  After the commit record
# nothing may raise, and nothing does.
my $any = [qw(error fatal kill)];
my $kill = ['kill'];
my @steps = (
	# the client's own process
	[ 'C1.before', 'blog', $any ],
	[ 'C1.after', 'blog', $any ],
	[ 'C2.before', 'blog', $any ],
	[ 'C2.after', 'blog', $any ],
	[ 'C3.before', 'blog', $any ],
	[ 'C3.after', 'blog', $any ],
	[ 'C4.before', 'blog', $any ],
	[ 'C5.before', 'blog', $kill ],
	[ 'C5.after', 'blog', $kill ],
	[ 'C6.before', 'blog', $kill ],
	[ 'C6.after', 'blog', $kill ],
	# the coordinator's messenger and resolve worker
	[ 'C2.vote', 'blog', $any ],
	[ 'C5.send', 'blog', $any ],
	[ 'C6.ack', 'blog', $any ],
	[ 'C7.before', 'blog', $any ],
	[ 'C7.after', 'blog', $any ],
	[ 'I2.before', 'blog', $any, 'abandoned' ],
	# the participant's messenger, prepare worker and resolve worker
	[ 'P1.before', 'reviews', $any ],
	[ 'P1.after', 'reviews', $any ],
	[ 'P2.before', 'reviews', $any ],
	[ 'P2.after', 'reviews', $any ],
	[ 'P3.before', 'reviews', $any ],
	[ 'P3.after', 'reviews', $any ],
	[ 'P4.before', 'reviews', $any ],
	[ 'P4.after', 'reviews', $any ],
	[ 'P5.before', 'reviews', $any ],
	[ 'P6.before', 'reviews', $any ],
	[ 'P6.after', 'reviews', $any ],
	[ 'P7.before', 'reviews', $any ],
	[ 'P7.after', 'reviews', $any ],
	[ 'I1.before', 'reviews', $any, 'voteless' ],);

my ($blog, $reviews) = TpcPair::new_pair(conf => <<'EOC');
tpc_amqp.resolve_interval = '200ms'
tpc_amqp.forget_after = 0
EOC
my %node = (blog => $blog, reviews => $reviews);
TpcPair::connected($blog, $reviews);

# Every failpoint of the source has its case here, or in 032_prepared_crash.pl.
my %in_source;
for my $file (glob "$source/*.c")
{
	$in_source{$_} = 1
	  for grep { !/^[GHJQRSX]/ }
	  slurp_file($file) =~ /TPC_FAILPOINT\("([^"]+)"\)/g;
}
is(join(' ', sort keys %in_source),
	join(' ', sort map { $_->[0] } @steps),
	'every failpoint has a case');

my $id = 0;

# abandon ID: a prepared branch of a transaction that its coordinator has
# rolled back, of which the participant will never be told.
sub abandon
{
	my ($row) = @_;
	my $gtid = $blog->sql(q{BEGIN; SELECT tpc_amqp.call('reviews', 'look')
		\; SELECT tpc_amqp.gtid(); ROLLBACK});
	my ($uuid) = $gtid =~ m{blog/(\S+)};
	my $gid = "tpc_amqp:blog/$uuid:reviews";

	$reviews->sql("BEGIN;
		INSERT INTO public.reviews (id) VALUES ($row);
		INSERT INTO tpc_amqp.branch
			VALUES ('blog', '$uuid', '$gid', 'guest', now());
		PREPARE TRANSACTION '$gid'");
	return ('', 'abandoned', 3);
}

# Returns what is wrong, or nothing.
sub crash
{
	my ($step, $where, $action, $situation) = @_;
	my $node = $node{$where};
	my $offset = TpcTest->log_size($node->cluster);
	my @wrong;

	$id++;
	# The vote is lost, so that the participant has to inquire.
	$reviews->failpoint('P4.before', 'fatal:once')
	  if $situation && $situation eq 'voteless';

	$node->failpoint($step, "$action:once");
	my ($out, $err, $rc) =
	    $situation && $situation eq 'abandoned'
	  ? abandon($id)
	  : $blog->try(
		TpcPair::transaction($id, set => { apply_timeout => '3s' }));

	# It was there?
	my $sign =
	  $action eq 'kill'
	  ? qr/was terminated by signal 9/
	  : qr/failpoint "\Q$step\E"/;
	{
		local $TpcTest::TIMEOUT = $SECONDS;
		eval { TpcTest->wait_for_log($node->cluster, $sign, $offset); 1 }
		  or push @wrong, "not reached: $@";
	}

	TpcPair::settled($SECONDS, $blog, $reviews)
	  or push @wrong, "in doubt: $TpcTest::last_seen";
	eval {
		local $TpcTest::TIMEOUT = $SECONDS;
		TpcPair::connected($blog, $reviews);
		1;
	} or push @wrong, $@;

	my $has = eval {
		TpcPair::blog_has($blog, $id) . TpcPair::reviews_has($reviews, $id);
	} // "unknown: $@";
	push @wrong, "rows at blog, at reviews: $has"
	  unless $has eq '00' || $has eq '11';
	push @wrong, "COMMIT succeeded, rows: $has" if !$rc && $has ne '11';
	push @wrong, "COMMIT failed, rows: $has"
	  if $err =~ /ERROR: / && $has ne '00';

	my ($next_out, $next_err, $next_rc) =
	  $blog->try(TpcPair::transaction(++$id));
	push @wrong, "next transaction: $next_err" if $next_rc;
	push @wrong, 'next transaction is not there'
	  unless $next_rc || TpcPair::reviews_has($reviews, $id);

	push @wrong, "the client saw: rc $rc $err" if @wrong;
	return @wrong;
}

for my $case (@steps)
{
	my ($step, $where, $actions, $situation) = @$case;

	for my $action (@$actions)
	{
		my @wrong = crash($step, $where, $action, $situation);
		ok(!@wrong, "$action at $step") or diag(join "\n", @wrong);
		for my $node ($blog, $reviews)
		{
			$node->failpoint_clear($_) for $step, 'P4.before';
		}
	}
}

# In the end nobody owes anybody anything.
TpcTest->no_prepared($blog->cluster, $reviews->cluster);
$blog->poll('SELECT count(*) = 0 FROM tpc_amqp.decision');
pass('all decisions are acknowledged and forgotten');
is($blog->sql('SELECT count(*) FROM tpc_amqp.transactions'),
	0, 'no transaction is left in memory');
TpcPair::in_agreement($blog, $reviews);

done_testing();

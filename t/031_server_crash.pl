# A whole server goes while a transaction is under way: killed, or stopped in
# one of the ways there are, and started again.

use strict;
use warnings;

use PostgreSQL::Test::Utils;
use Test::More;
use TpcTest;
use TpcPair;

plan skip_all => 'this build has no failpoints'
  unless TpcTest::has_failpoints();

my $SECONDS = 30;

my ($blog, $reviews) = TpcPair::new_pair(conf => <<'EOC');
tpc_amqp.resolve_interval = '3s'
EOC
my %node = (blog => $blog, reviews => $reviews);
TpcPair::connected($blog, $reviews);

my $id = 0;

# hold NODE, STEP: a transaction that stands there.
sub hold
{
	my ($where, $step) = @_;

	$node{$where}->failpoint($step, 'wait');
	my $run = $blog->start(
		TpcPair::transaction(
			++$id,
			set => { prepare_timeout => '60s', apply_timeout => '60s' }));
	$node{$where}->failpoint_reached($step);
	return $run;
}

# check NAME, OUTCOME, RUN: "both", "neither", or "any" for either of these.
sub check
{
	my ($name, $outcome, $run) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my %rows = (both => '11', neither => '00', any => '11|00');

	ok(TpcPair::settled($SECONDS, $blog, $reviews),
		"$name: nothing is in doubt")
	  or diag($TpcTest::last_seen);
	my ($out, $err, $rc) = $run->finish;
	my $has =
	  TpcPair::blog_has($blog, $id) . TpcPair::reviews_has($reviews, $id);
	like($has, qr/^(?:$rows{$outcome})$/, "$name: $outcome has it")
	  or diag("the client saw: $rc $err");
	ok($rc || $has eq '11', "$name: what the client was told is true")
	  or diag("$has, the client saw: $rc $err");

	TpcPair::connected($blog, $reviews);
	(undef, $err, $rc) = $blog->try(TpcPair::transaction(++$id));
	is("$rc $err", '0 ', "$name: the next transaction commits");
	return;
}

sub crash
{
	TpcTest->kill9_server($_->cluster) for @_;
	return;
}

sub start
{
	$_->cluster->start for @_;
	return;
}

# ---------------------------------------------------------------------------
# The branch is prepared, its vote has not arrived.  (It would inquire, which
# says yes as well, but not before resolve_interval is over.)

my $run = hold('reviews', 'P4.before');
crash($blog);
is(scalar(TpcTest->prepared($reviews->cluster)),
	1, 'voting, coordinator killed: the branch waits for it');
start($blog);
check('voting, coordinator killed', 'neither', $run);
$reviews->failpoint_clear('P4.before');

$run = hold('reviews', 'P4.before');
crash($reviews);
start($reviews);
check('voting, participant killed', 'both', $run);

$run = hold('reviews', 'P4.before');
crash($blog, $reviews);
start($blog, $reviews);
check('voting, both killed', 'neither', $run);

$run = hold('reviews', 'P4.before');
crash($blog, $reviews);
start($reviews);
is(scalar(TpcTest->prepared($reviews->cluster)),
	1, 'voting, participant back first: the branch waits');
start($blog);
check('voting, participant back first', 'neither', $run);

# It learns when it comes back that nobody has waited for it.
$run = hold('reviews', 'P4.before');
crash($reviews);
my $pid = TpcPair::backend($blog, "query = 'COMMIT;'");
$blog->sql("SELECT pg_cancel_backend($pid)");
$blog->poll("SELECT count(*) = 0 FROM pg_stat_activity WHERE pid = $pid");
start($reviews);
check('rolled back while the participant was away', 'neither', $run);

# ---------------------------------------------------------------------------
# All have voted yes; the coordinator is about to commit

$run = hold('blog', 'C4.before');
is(scalar(TpcTest->prepared($reviews->cluster)),
	1, 'before the commit record: the branch is prepared');
crash($blog);
start($blog);
check('before the commit record, coordinator killed', 'neither', $run);

$run = hold('blog', 'C5.before');
crash($blog);
start($blog);
check('after the commit record, coordinator killed', 'both', $run);

$run = hold('blog', 'C5.before');
crash($blog, $reviews);
start($reviews, $blog);
check('after the commit record, both killed', 'both', $run);

# ---------------------------------------------------------------------------
# Decided, not applied

$run = hold('reviews', 'P5.before');
is(TpcPair::blog_has($blog, $id) . TpcPair::reviews_has($reviews, $id),
	'10', 'decided, not applied');
crash($reviews);
start($reviews);
check('decided, participant killed', 'both', $run);

$run = hold('reviews', 'P5.before');
crash($blog);
start($blog);
$reviews->failpoint_clear('P5.before');
check('decided, coordinator killed', 'both', $run);

$run = hold('reviews', 'P5.before');
crash($blog, $reviews);
start($blog, $reviews);
check('decided, both killed', 'both', $run);

# Applied, and not known to be.
$run = hold('reviews', 'P6.after');
crash($reviews);
start($reviews);
check('applied, participant killed', 'both', $run);

# ---------------------------------------------------------------------------
# Servers that are stopped

for my $mode ('fast', 'immediate')
{
	$run = hold('reviews', 'P4.before');
	$reviews->cluster->stop($mode);
	start($reviews);
	check("voting, participant stopped ($mode)", 'any', $run);

	$run = hold('reviews', 'P4.before');
	$blog->cluster->stop($mode);
	start($blog);
	check("voting, coordinator stopped ($mode)", 'neither', $run);
	$reviews->failpoint_clear('P4.before');

	$run = hold('reviews', 'P5.before');
	$reviews->cluster->stop($mode);
	start($reviews);
	check("decided, participant stopped ($mode)", 'both', $run);

	$run = hold('reviews', 'P5.before');
	$blog->cluster->stop($mode);
	start($blog);
	$reviews->failpoint_clear('P5.before');
	check("decided, coordinator stopped ($mode)", 'both', $run);
}

# ---------------------------------------------------------------------------

TpcPair::in_agreement($blog, $reviews);
TpcTest->no_crash('no other crash', $blog, $reviews);

done_testing();

# TpcPrepared: what tests of prepared global transactions say, about nodes blog
# and reviews of TpcPair.
#
#   use TpcPrepared;
#   ($blog, $reviews) = TpcPair::new_pair();
#   my $gtid = both_prepared();        # with rows of a new $id
#   succeeds($blog, "COMMIT PREPARED 'g'", 'at the coordinator');
#   on_both('... commits on both');

package TpcPrepared;

use strict;
use warnings;

use Exporter 'import';
use Test::More;
use TpcTest;
use TpcPair;

our @EXPORT = qw($blog $reviews $id $QUICK @TAKE %PATIENT %OFF $LONG
  has on_both on_neither all_rolled_back succeeds is_noop is_refused said
  session_fails calling enlisted joined both_prepared lock_stock
  vote_is set_prepared_timeout);

# The test sets them.
our ($blog, $reviews);

# Of the rows of the current transaction.
our $id = 0;

# Bound on what shall not take long, in seconds.
our $QUICK = 10;

# Options of calling(): a handler that waits for lock_stock(), and inserts no
# row.
our @TAKE = (handler => 'take', arg => '{"item": "apple", "amount": 1}');

# Settings
our %PATIENT = (prepare_timeout => '60s', apply_timeout => '60s');
our %OFF = (%PATIENT, prepare_wait => 'off');

# A note that the reviews' constraint refuses.
our $LONG = 'x' x 200;

# has NAME, BLOG, REVIEWS: a test of how many rows of the current id are there.
sub has
{
	my ($name, @expected) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	return is(TpcPair::blog_has($blog, $id) . ' '
		  . TpcPair::reviews_has($reviews, $id),
		"@expected", $name);
}

sub on_both { return has($_[0], 1, 1) }
sub on_neither { return has($_[0], 0, 0) }

# all_rolled_back NAME: nothing is prepared any more, and there are no rows.
sub all_rolled_back
{
	my ($name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	ok(TpcPair::settled(30, $blog, $reviews), "$name: nothing stays prepared");
	return on_neither('... and it is rolled back on both');
}

# succeeds NODE, SQL, NAME: without any message.
sub succeeds
{
	my ($node, $sql, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my (undef, $err, $rc) = $node->try("\\set VERBOSITY verbose\n$sql");

	return is("$rc $err", '0 ', $name);
}

# is_noop NODE, SQL, NAME: it succeeds, and says that there was nothing to do.
sub is_noop
{
	my ($node, $sql, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my (undef, $err, $rc) = $node->try("\\set VERBOSITY verbose\n$sql");

	is($rc, 0, $name) or diag($err);
	return like($err, qr/NOTICE: /, '... with a notice');
}

# is_refused NODE, SQL, NAME, REGEXP: it is an error that a user can reach.
sub is_refused
{
	my ($node, $sql, $name, $regexp) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my (undef, $err, $rc) = $node->try("\\set VERBOSITY verbose\n$sql");

	isnt($rc, 0, $name);
	unlike($err, qr/XX000/, '... by an error that is foreseen');
	return like($err, $regexp // qr/ERROR: /, '... which says so');
}

# said SESSION, SQL: (output, messages)
sub said
{
	my ($session, $sql) = @_;

	$session->{stderr} = '';
	my $out = $session->query($sql);
	my $err = $session->{stderr};
	$session->{stderr} = '';
	return ($out, $err);
}

# session_fails SESSION, SQL, NAME, REGEXP
sub session_fails
{
	my ($session, $sql, $name, $regexp) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my (undef, $err) =
	  TpcTest->within($QUICK, sub { return said($session, $sql) }, $name);

	unlike($err, qr/XX000/, '... by an error that is foreseen');
	return like($err, $regexp // qr/ERROR: /, '... which says so');
}

# calling ID, OPTIONS: SQL of a transaction that calls, up to its end.
sub calling
{
	my ($id, %opts) = @_;
	(my $sql = TpcPair::transaction($id, %opts)) =~ s/COMMIT;\n\z//;
	return $sql;
}

# enlisted OPTIONS: (session, gtid) of a transaction of a new id with a branch
# expected at reviews.
sub enlisted
{
	my (%opts) = @_;
	my $session = $blog->session;

	$id++;
	$session->query_safe('\set VERBOSITY verbose');
	$session->query_safe("SET tpc_amqp.$_ = '$opts{$_}'") for sort keys %opts;
	$session->query_safe("BEGIN; INSERT INTO public.blogs VALUES ($id)");
	return ($session,
		$session->query_safe("SELECT tpc_amqp.enlist('reviews')"));
}

# joined GTID: SQL of its branch, up to its end.
sub joined
{
	my ($gtid) = @_;
	return "BEGIN; SELECT tpc_amqp.join('$gtid');
		INSERT INTO public.reviews (id) VALUES ($id);\n";
}

# both_prepared OPTIONS: gtid of a transaction of a new id that is prepared at
# both, as g and h.
sub both_prepared
{
	my (%opts) = @_;
	my ($session, $gtid) = enlisted(%opts);

	$reviews->sql(joined($gtid) . "PREPARE TRANSACTION 'h'");
	$session->query_safe("PREPARE TRANSACTION 'g'");
	$session->quit;
	return $gtid;
}

sub lock_stock
{
	return TpcPair::lock_stock($reviews);
}

# vote_is GID, EXPECTED: until that is the vote of reviews.
sub vote_is
{
	my ($gid, $expected) = @_;
	return $blog->poll(
		"SELECT vote FROM tpc_amqp.participants
		WHERE gid = '$gid' AND node = 'reviews'", $expected);
}

sub set_prepared_timeout
{
	my ($value) = @_;

	$blog->cluster->append_conf('postgresql.conf',
		"tpc_amqp.prepared_timeout = $value\n");
	$blog->cluster->reload;
	return;
}

1;

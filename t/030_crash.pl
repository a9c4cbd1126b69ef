# Whatever happens to whichever process at whichever step of a COMMIT: the
# outcome is that of the crash table in src/README, within a bound no branch is
# left prepared, both nodes agree on the transaction, what the client was told
# is true, and the next transaction commits.  See TpcMatrix.

use strict;
use warnings;

use Test::More;
use TpcTest;
use TpcMatrix;

plan skip_all => 'this build has no failpoints'
  unless TpcTest::has_failpoints();

my $matrix = TpcMatrix->new(
	own => qr/^[CPI]/,
	paths => [ 'plain', 'plain, vote lost', 'abandoned' ],
	conf => "tpc_amqp.forget_after = 0\n");

$matrix->run;
$matrix->complete;

$matrix->in_the_end;
$matrix->print_table;

done_testing();

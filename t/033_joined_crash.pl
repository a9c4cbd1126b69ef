# Whatever happens to whichever process at whichever step of a transaction
# whose application prepares and finishes it at both nodes.  See TpcMatrix.

use strict;
use warnings;

use Test::More;
use TpcTest;
use TpcMatrix;

plan skip_all => 'this build has no failpoints'
  unless TpcTest::has_failpoints();

my $matrix = TpcMatrix->new(
	own => qr/^J|^Q3.\s?re/,
	paths => [
		'joined, coordinator first',
		'joined, participant first',
		'joined, rolled back, coordinator first',
		'joined, rolled back, participant first'
	]);

$matrix->run;
$matrix->complete;
$matrix->in_the_end;
$matrix->print_table;

done_testing();

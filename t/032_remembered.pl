# What resolve workers remember of prepared branches does not decide who may
# decide.

use strict;
use warnings;

use Test::More;
use TpcAmqp;
use TpcTest;
use TpcPair;

plan skip_all => 'this build has no failpoints'
  unless TpcTest::has_failpoints();

my ($blog, $reviews) = TpcPair::new_pair(conf => <<'EOC');
tpc_amqp.resolve_interval = '60s'
EOC
TpcPair::connected($blog, $reviews);
my $broker = $reviews->broker;
my $decisions = 'tpc_amqp.reviews.decision';
my %patient = (prepare_timeout => '60s', apply_timeout => '60s');

# ---------------------------------------------------------------------------
# A decision from another broker user than the prepare

my $amqp = TpcAmqp->new($broker);
$amqp->spy('spy', $decisions);
$blog->sql(TpcPair::transaction(1, set => \%patient));
my $commit = $amqp->get('spy');
my $uuid = qr/[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}/;

$blog->failpoint('C5.before', 'wait');
my $run = $blog->start(TpcPair::transaction(2, set => \%patient));
$blog->failpoint_reached('C5.before');
my ($gid) = TpcTest->prepared($reviews->cluster);
my ($gtid) = $gid =~ /($uuid)/;

# The same length as the user's name, so that the header stays well-formed.
my $name = 'other';
$broker->add_user($name, $name);
my %forged = %$commit;
ok($forged{header} =~ s/blog\/\K$uuid/$gtid/, 'a commit names its transaction');
is($forged{header} =~ s/\Q@{[ $broker->user ]}\E/$name/g,
	1, '... and who sends it');
my $other = TpcAmqp->new(bless { %$broker, user => $name, password => $name },
	ref $broker);
$other->publish($decisions, \%forged);
$reviews->poll('SELECT bad_messages = 1 FROM tpc_amqp.stat');
is(join(' ', TpcTest->prepared($reviews->cluster)),
	$gid, 'who did not send the prepare does not decide');
$blog->failpoint_clear('C5.before');
my ($out, $err, $rc) = $run->finish;
is("$rc $err", '0 ', 'who did, does');
is(TpcPair::reviews_has($reviews, 2), 1, '... and it is applied');
$other->close;
$amqp->close;

done_testing();

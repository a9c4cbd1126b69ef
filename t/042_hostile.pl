# Whoever may publish sends what he likes to the nodes' queues: what is no
# message, what was sent before, and what is not his to say.  It is counted,
# hardly logged, and decides nothing; and the next transaction commits.

use strict;
use warnings;

use PostgreSQL::Test::Utils;
use Test::More;
use TpcAmqp;
use TpcPair;
use TpcPrepared;
use TpcTest;

my $BURST = 10_000;

# Bound on what a burst may add to a process, in kB.
my $GROWTH = 16 * 1024;

my $broker = TpcTest::Broker->of_this_file;
($blog, $reviews) = TpcPair::new_pair(
	broker => $broker,
	blog_user => 'hostile_blog',
	reviews_user => 'hostile_reviews',
	conf => <<'EOC');
log_statement = none
log_min_messages = info
tpc_amqp.prepare_timeout = 60s
tpc_amqp.apply_timeout = 60s
tpc_amqp.lock_timeout = 0
tpc_amqp.max_payload = 64kB
EOC
my @nodes = ($blog, $reviews);
my %node_of = (
	'reviews.prepare' => $reviews,
	'reviews.decision' => $reviews,
	'blog.vote' => $blog);

TpcPair::connected(@nodes);
$broker->add_user('mallory', 'mallory');

my $spy = TpcAmqp->new($broker);
my $mallory = TpcAmqp->new($broker, user => 'mallory', password => 'mallory');
my %as = map {
	$_ => TpcAmqp->new(
		$broker,
		user => "hostile_$_",
		password => "secret of hostile_$_")
} qw(blog reviews);
$spy->spy("spy.$_", "tpc_amqp.$_") for keys %node_of;

sub counts
{
	my ($node, $name, $expected, $what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	local $TpcTest::TIMEOUT = 20;

	eval { $node->poll("SELECT $name >= $expected FROM tpc_amqp.stat") }
	  or diag $@;
	return is($node->counter($name), $expected, $what);
}

sub workers
{
	return join ' ', map {
		$_->sql('SELECT messenger_pid, prepare_pids, resolve_pids
			FROM tpc_amqp.node')
	} @nodes;
}

sub connects
{
	return join ' ', map { $_->counter('connects') } @nodes;
}

# A transaction that commits.  What was in the queues before it has been dealt
# with then: there is one resolve worker.
sub works_on
{
	my ($name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my (undef, $err) = $blog->try(TpcPair::transaction(++$id));

	is($err, '', "$name: the next transaction commits");
	return on_both("$name: ... on both nodes");
}

# are_bad QUEUE, NAME, MESSAGE…: mallory's; all are counted, and no others.
sub are_bad
{
	my ($queue, $name, @messages) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	return are_bad_of($mallory, $queue, $name, @messages);
}

# are_bad_of WHO, QUEUE, NAME, MESSAGE…: the same of another connection's.
sub are_bad_of
{
	my ($who, $queue, $name, @messages) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $node = $node_of{$queue};
	my $was = $node->counter('bad_messages');

	$who->publish("tpc_amqp.$queue", @messages);
	return counts($node, 'bad_messages', $was + @messages, $name);
}

# taken WHO, QUEUE, MESSAGE…: until the node's messenger has them.
sub taken
{
	my ($who, $queue, @messages) = @_;
	my $node = $node_of{$queue};
	my $was = $node->counter('messages_received');

	$who->publish("tpc_amqp.$queue", @messages);
	return $node->poll("SELECT messages_received >= $was + "
		  . scalar(@messages)
		  . ' FROM tpc_amqp.stat');
}

# The next message in a spy's queue that is this.
sub spied
{
	my ($queue, $regexp) = @_;
	my $message;

	do { $message = $spy->get("spy.$queue") }
	  until "$message->{header}$message->{body}" =~ $regexp;
	return $message;
}

sub forget_spied
{
	for my $queue (keys %node_of)
	{
		1 while $spy->try_get("spy.$queue");
	}
	return;
}

sub gtid_of
{
	my ($message) = @_;
	my ($gtid) = $message->{header} =~ m{(blog/[0-9a-f-]{36})}
	  or die 'no gtid';
	return $gtid;
}

# (run, gtid) of a transaction whose branch is held while it runs.
sub start_held
{
	forget_spied();
	my $run = $blog->start(TpcPair::transaction(++$id, handler => 'held'));
	branches_are('running', 1);
	my $prepare = spied('reviews.prepare', qr/held/);
	return ($run, gtid_of($prepare), $prepare);
}

sub branches_are
{
	my ($state, $n) = @_;
	return $reviews->poll("SELECT count(*) FROM tpc_amqp.branches
		WHERE state = '$state'", $n);
}

sub commits
{
	my ($run, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my (undef, $err, $rc) = $run->finish;

	is("$rc $err", '0 ', "$name: it commits");
	return on_both("$name: ... on both nodes, once");
}

sub refused
{
	my ($run, $regexp, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my (undef, $err) = $run->finish;

	like($err, $regexp, $name);
	return on_neither("$name: ... on neither node");
}

# of_type TYPE, FIELDS: such a message of mallory's, right but for the fields.
my $gtid;

sub of_type
{
	my ($type, %fields) = @_;
	my %bodies = (
		prepare => '{"calls": []}',
		vote => '{"vote": "yes"}',
		ack => '{"outcome": "committed"}',
		request => '{"wish": "commit"}');

	return TpcAmqp->message(
		type => $type,
		gtid => $gtid,
		from => $type =~ /^(?:vote|ack|inquiry|request)$/ ? 'reviews' : 'blog',
		($type eq 'prepare' ? (timeout => '10000') : ()),
		user_id => 'mallory',
		body => $bodies{$type} // '{}',
		%fields);
}

sub item
{
	my ($type, $gtid, $body) = @_;
	return qq({"type":"$type","gtid":"$gtid","timeout":9000,"body":$body});
}

sub batch
{
	my ($from, @items) = @_;
	return of_type('batch',
		from => $from,
		body => '[' . join(',', @items) . ']');
}

# A gtid of blog's incarnation that is not given out for long.
sub made_up_gtid
{
	my ($n) = @_;
	return substr($gtid, 0, -12) . sprintf '%012x', 0x7000000 + $n;
}

my $old_workers = workers();
my $old_connects = connects();
my %log_from = map { $_->name => TpcTest->log_size($_->cluster) } @nodes;

$blog->sql(TpcPair::transaction(++$id));
$gtid = gtid_of(spied('reviews.prepare', qr/add_review/));
(my $uuid = $gtid) =~ s/.*\///;

# ---------------------------------------------------------------------------
# Envelopes and batches that are none

my $nested = '';
$nested = "\1x" . 'F' . pack('N/a*', $nested) for 1 .. 3000;

for my $case (
	[ 'reviews.prepare', 'prepare' ],
	[ 'reviews.decision', 'commit' ],
	[ 'blog.vote', 'vote' ])
{
	my ($queue, $type) = @$case;
	my $sender = $type eq 'vote' ? 'reviews' : 'blog';

	are_bad(
		$queue,
		"$queue: envelopes",
		TpcAmqp->plain(''),
		TpcAmqp->plain('x' x 1000),
		of_type($type, app_id => undef),
		of_type($type, app_id => 'tpc_imap'),
		of_type($type, version => undef),
		of_type($type, version => 0),
		of_type($type, version => 2),
		of_type($type, version => 0xffffffff),
		of_type($type,
			headers => { 'tpc-version' => [ 'S', "\0\0\0\1" . '1' ] }),
		of_type($type, type => undef),
		of_type($type, type => ''),
		of_type($type, type => uc $type),
		of_type($type, type => "$type\0"),
		of_type($type, type => 'x' x 255),
		of_type($type eq 'vote' ? 'commit' : 'vote'),
		of_type($type, gtid => undef),
		of_type($type, gtid => ''),
		of_type($type, gtid => 'blog/'),
		of_type($type, gtid => uc $gtid),
		of_type($type, gtid => substr $gtid, 0, -1),
		of_type($type, gtid => "${gtid}0"),
		of_type($type, gtid => ('n' x 64) . "/$uuid"),
		of_type($type, gtid => "blog/$gtid"),
		of_type($type, gtid => "glob/$uuid"),
		of_type($type, from => undef),
		of_type($type, from => ''),
		of_type($type, from => '*'),
		of_type($type, from => 'n' x 64),
		of_type($type, from => "blog\0"),
		of_type($type, headers => { 'tpc-from' => [ 't', "\1" ] }),
		of_type($type, floor => ''),
		of_type($type, floor => "$uuid "),
		of_type($type,
			headers => { a => [ 'S', pack 'N/a*', 'x' x 100_000 ] }),
		of_type($type, headers => { a => [ 'F', pack 'N/a*', $nested ] }));
	are_bad(
		$queue,
		"$queue: batches",
		batch($sender),
		batch($sender, '[]', '[]'),
		batch($sender, ('{') x 1000),
		batch($sender, (item($type, $gtid, '{}')) x 65),
		batch($sender, qq({"type":"$type","type":"$type","gtid":"$gtid"})),
		batch($sender, item($type, $gtid, '[]')),
		batch($sender, item('batch', $gtid, '{}')),
		batch($sender, item($type, "blog/x", '{}')),
		batch($sender, item($type, "glob/$uuid", '{}')));
}
are_bad(
	'reviews.prepare',
	'time-outs, and what is too large',
	of_type('prepare', timeout => undef),
	of_type('prepare', timeout => '1073741824'),
	of_type('prepare', body => '{"a":"' . 'x' x 200_000 . '"}'));
are_bad('reviews.decision', 'decisions of other nodes',
	map { of_type($_, from => 'reviews'), of_type($_, from => 'glob') }
	  qw(commit rollback unknown));
are_bad('blog.vote', 'a vote that is too large',
	of_type('vote', body => '{"vote":"yes","a":"' . 'x' x 20_000 . '"}'));
works_on('messages that are none');

# ---------------------------------------------------------------------------
# Bodies that are none

my @bodies = (
	'x', '[]', '1', '{', '{"a":', '{"a":1}}', "{\"a\":\"\xff\"}",
	'{"a":"\u0000"}', '{"a":"\ud800"}',
	'{"a":' . '[' x 5000 . ']' x 5000 . '}');
for my $type (qw(commit rollback unknown))
{
	are_bad('reviews.decision', "bodies of a $type",
		map { of_type($type, body => $_) } @bodies);
}
are_bad('reviews.decision', 'fields of decisions',
	of_type('rollback', body => '{"forgotten": 1}'),
	of_type('rollback', body => '{"forgotten":true,"forgotten":true}'),
	of_type('unknown', body => '{"reason": 1}'));
for my $type (qw(vote ack inquiry request))
{
	are_bad('blog.vote', "bodies of a $type",
		map { of_type($type, body => $_) } @bodies,
		($type eq 'inquiry' ? () : '{}'));
}
are_bad(
	'blog.vote',
	'fields of answers',
	(map { of_type('vote', body => $_) } '{"vote": "maybe"}',
		'{"vote": 1}', '{"vote": "no", "error": []}',
		'{"vote": "yes", "vote": "no"}', '{"vote": "yes", "results": [1]}'),
	of_type('ack', body => '{"outcome": "found"}'),
	of_type('request', body => '{"wish": true}'));

# Of a new transaction, the process that would run it finds it out.
my $refusals = $reviews->counter('branches_refused');
are_bad('reviews.prepare', 'bodies of a prepare',
	map { of_type('prepare', gtid => made_up_gtid($_), body => $bodies[$_]) }
	  0 .. $#bodies);
counts($reviews, 'branches_refused', $refusals + @bodies, '... and refused');
works_on('bodies that are none');

# What is good in a batch does not suffer from what is bad.
my $duplicates = $reviews->counter('duplicates');
are_bad(
	'reviews.decision',
	'a batch of good and bad',
	batch(
		'blog',
		item('commit', $gtid, '{}'),
		item('commit', $gtid, '{"a":"\u0000"}'),
		item('commit', $gtid, '{}')))
  and counts($reviews, 'duplicates', $duplicates + 2, '... counts the good');
works_on('a batch of good and bad');
TpcTest->no_incidents(
	'messages that are none: nobody has to look at anything', @nodes);

# ---------------------------------------------------------------------------
# What was sent before: all of a transaction's messages at each later point,
# from who sent them

my %queue_of = (
	prepare => 'reviews.prepare',
	commit => 'reviews.decision',
	vote => 'blog.vote',
	ack => 'blog.vote');
my %seen;

sub replay
{
	my ($point) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my @bad = map { $_->counter('bad_messages') } @nodes;

	for my $what (sort keys %seen)
	{
		taken($as{ $what =~ /vote|ack/ ? 'reviews' : 'blog' },
			$queue_of{$what}, ($seen{$what}) x 2);
	}
	return is_deeply([ map { $_->counter('bad_messages') } @nodes ],
		\@bad, "repeated $point: nothing is wrong with that");
}

my $handlers = TpcPair::hold_handlers($reviews);
my $decisions = TpcPair::hold_decisions($blog);
my $run;
($run, $gtid, $seen{prepare}) = start_held();
replay('while the branch runs');
branches_are('running', 1);
$handlers->quit;
branches_are('prepared', 1);
$seen{vote} = spied('blog.vote', qr/"yes"/);
replay('while the branch is prepared');
branches_are('prepared', 1);
$decisions->quit;
commits($run, 'repeated before the decision');
$seen{commit} = spied('reviews.decision', qr/\Q$gtid/);
$seen{ack} = spied('blog.vote', qr/committed/);
replay('after the commit');
works_on('repeated after the commit');

for my $node (@nodes)
{
	$node->cluster->append_conf('postgresql.conf',
		"tpc_amqp.forget_after = 0\n");
	$node->cluster->reload;
}
$blog->poll('SELECT count(*) = 0 FROM tpc_amqp.decision');
replay('after the coordinator has forgotten it');
works_on('repeated after the coordinator has forgotten it');
($uuid) = $gtid =~ /([^\/]*)$/;
TpcTest::poll_until(
	sub {
		$blog->sql(TpcPair::transaction(++$id));
		return $reviews->sql("SELECT count(*) FROM tpc_amqp.branch
			WHERE gtid = '$uuid'") == 0;
	},
	'a row of branch to go');
$refusals = $reviews->counter('branches_refused');
replay('after the participant has forgotten it');
# the second one may have found the first still waiting
$reviews->poll("SELECT branches_refused > $refusals FROM tpc_amqp.stat");
works_on('repeated after the participant has forgotten it');
ok(TpcPair::settled(20, @nodes), 'repeated: nothing is prepared')
  or diag $@;
is( $reviews->sql("SELECT count(*) - count(DISTINCT id) FROM public.reviews"),
	0, 'repeated: nothing took effect twice');
TpcTest->no_incidents('repeated: nobody has to look at anything', @nodes);

# ---------------------------------------------------------------------------
# Decisions that are not his

$handlers = TpcPair::hold_handlers($reviews);
$decisions = TpcPair::hold_decisions($blog);
($run, $gtid) = start_held();
are_bad('reviews.decision', 'a decision about a branch that runs: bad',
	of_type('commit'), of_type('rollback'));
branches_are('running', 1);
$handlers->quit;
branches_are('prepared', 1);
are_bad(
	'reviews.decision',
	'a decision about a branch that is prepared: bad',
	map { of_type($_), of_type($_, user_id => undef) }
	  qw(commit rollback unknown));
are_bad('reviews.decision', '... also in a batch',
	batch('blog', map { item($_, $gtid, '{}') } qw(commit)));
branches_are('prepared', 1);

# Votes, acknowledgements and inquiries that are not his.  The vote is in, so
# that a second one says nothing, whoever it comes from.
are_bad(
	'blog.vote',
	'answers of nodes that were not asked: bad',
	(map { of_type($_, from => 'glob') } qw(vote inquiry ack request)),
	of_type('vote', from => 'glob', body => '{"vote":"no"}'),
	of_type('ack'));
is( $blog->sql('SELECT votes, missing FROM tpc_amqp.transactions
		WHERE state = \'preparing\''),
	'1|{}', '... and do not count');
taken($mallory, 'blog.vote', of_type('vote', body => '{"vote":"no"}'),
	of_type('request', body => '{"wish":"rollback"}'),
	of_type('request'), of_type('inquiry'));
TpcTest->freeze(my $resolver =
	  $reviews->sql('SELECT resolve_pids[1] FROM tpc_amqp.node'));
$decisions->quit;
$blog->poll("SELECT count(*) = 1 FROM tpc_amqp.transactions
	WHERE gtid = '$gtid' AND state = 'committed'");
are_bad(
	'blog.vote',
	'acknowledgements that are not his: bad',
	of_type('ack'),
	of_type('ack', user_id => undef),
	of_type('ack', body => '{"outcome":"lost"}'),
	of_type('ack', body => '{"outcome":"rolled back","forced":true}'),
	of_type('ack', from => 'glob'));
is( $blog->sql("SELECT missing FROM tpc_amqp.transactions
		WHERE gtid = '$gtid'"),
	'{reviews}', '... and the transaction waits for those that are');
taken($mallory, 'blog.vote', of_type('request', body => '{"wish":"rollback"}'));
TpcTest->thaw($resolver);
commits($run, 'answers that are not his');
are_bad('reviews.decision', 'a rollback of what is committed: bad',
	of_type('rollback'), of_type('rollback', user_id => undef));
on_both('... and stays so');
taken($mallory, 'blog.vote',
	map { of_type('ack', gtid => made_up_gtid(100 + $_)) } 1 .. 10);
works_on('acknowledgements of nothing');
TpcTest->no_incidents(
	'what is not his: nobody has to look at anything', @nodes);

# Requests count only from nodes that are enlisted.
$blog->sql(calling(++$id) . "PREPARE TRANSACTION 'g'");
$gtid = $blog->sql("SELECT gtid FROM tpc_amqp.transactions
	WHERE state = 'prepared'");
for my $who ('mallory', 'reviews')
{
	taken(
		$who eq 'mallory' ? $mallory : $as{$who},
		'blog.vote',
		map {
			of_type(
				'request',
				user_id => $who eq 'mallory' ? $who : "hostile_$who",
				body => qq({"wish":"$_"}))
		} qw(rollback commit));
}
are_bad('blog.vote', 'a request from a node that is not there: bad',
	of_type('request', from => 'glob', body => '{"wish":"rollback"}'));
works_on('requests from nodes that are not enlisted');
is($blog->sql('SELECT gid FROM pg_prepared_xacts'),
	'g', '... decide nothing');
$blog->sql("COMMIT PREPARED 'g'");

# ... and from who has voted for them.
$gtid = both_prepared();
taken($mallory, 'blog.vote',
	map { of_type('request', body => qq({"wish":"$_"})) }
	  qw(rollback commit));
works_on('requests from another user');
is($blog->sql('SELECT gid FROM pg_prepared_xacts'),
	'g', '... decide nothing');
succeeds($reviews, "COMMIT PREPARED 'h'", '... and it can be committed');

# ---------------------------------------------------------------------------
# Many at once

sub size
{
	my ($pid) = @_;
	return slurp_file("/proc/$pid/status") =~ /^RssAnon:\s+(\d+)/m ? $1 : die;
}

my @pids = map {
	split /,/, $_->sql("SELECT concat_ws(',', messenger_pid, resolve_pids[1])
		FROM tpc_amqp.node")
} @nodes;
my @burst = (
	TpcAmqp->plain('x' x 100),
	of_type('commit', body => '[' x 1000),
	of_type('vote', from => 'glob', version => 7),
	of_type('prepare', gtid => 'x'));

sub burst
{
	my ($n, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	are_bad($_, "$n bad messages in " . $_,
		map { $burst[ $_ % @burst ] } 1 .. $n)
	  for keys %node_of;
	return;
}

burst(1000);
my @size = map { size($_) } @pids;
burst(int $BURST / 3);
for my $i (0 .. $#pids)
{
	my $grown = size($pids[$i]) - $size[$i];
	cmp_ok($grown, '<', $GROWTH, 'a burst does not make a process larger');
}
works_on('a burst');
TpcTest->no_incidents('a burst: nobody has to look at anything', @nodes);

# Commits of what never was are what a node has to tell a person, but it does
# not fill the log with them.
taken($mallory, 'reviews.decision',
	map { of_type('commit', gtid => made_up_gtid(1000 + $_)) } 1 .. 300);
works_on('commits of what never was');
is( $reviews->sql("SELECT count(*) FROM tpc_amqp.incidents
		WHERE kind = 'lost'"),
	300, '... are listed');
is($blog->sql('SELECT count(*) FROM tpc_amqp.incidents'),
	0, '... but not where it is known that they never were');

# ---------------------------------------------------------------------------
# A floor that closes all there will ever be.  It is that of its user, and
# closes nothing of others'.

my $end_of_time = 'ffffffff-ffff-8fff-bfff-ffffffffffff';
taken($mallory, 'reviews.decision',
	map {
		of_type('rollback',
			gtid => made_up_gtid(500),
			floor => $end_of_time,
			user_id => $_)
	} 'mallory', undef);
$reviews->poll("SELECT count(*) = 2 FROM tpc_amqp.floor
	WHERE gtid = '$end_of_time'");
works_on('a floor in the future');

# ---------------------------------------------------------------------------

is(workers(), $old_workers, 'no worker has ended');
is(connects(), $old_connects, '... nor a connection');
for my $node (@nodes)
{
	my $log = substr slurp_file($node->cluster->logfile),
	  $log_from{ $node->name };
	my %lines;

	$lines{$1}++
	  while $log =~ /(dropped a message|dropped a decision|is lost|malformed prepare|is committed here)/g;
	# a minute may have passed, not more
	ok( !(grep { $_ > 2 } values %lines),
		$node->name . ': all that is hardly logged')
	  or diag explain \%lines;
}

# ---------------------------------------------------------------------------
# Where it is told who speaks for a node, nobody else does: not before it has
# voted, nor for what it has joined, nor in its name to handlers.

# with_options SQL…: on all nodes, which connect anew with them.
sub with_options
{
	my (@sql) = @_;

	for my $node (@nodes)
	{
		my $before = $node->counter('connects');

		$node->sql($_) for @sql;
		$node->sql("SELECT pg_terminate_backend(messenger_pid)
			FROM tpc_amqp.node");
		$node->poll("SELECT connects > $before FROM tpc_amqp.stat");
	}
	TpcPair::connected(@nodes);
	return;
}

with_options(
	"ALTER SERVER rabbit OPTIONS (ADD peer_user 'hostile_%n')",
	"DELETE FROM tpc_amqp.floor
		WHERE sender <> 'hostile_' || coordinator");
works_on('only peers');
$gtid = made_up_gtid(5000);
are_bad(
	'reviews.prepare',
	'a prepare in the name of another: bad',
	map {
		of_type(
			'prepare',
			user_id => $_,
			floor => $end_of_time,
			body =>
			  '{"calls":[{"handler":"add_review","arg":{"id":-1}}]}')
	} 'mallory', undef);
$handlers = TpcPair::hold_handlers($reviews);
($run, $gtid) = start_held();
are_bad(
	'blog.vote',
	'a vote before the one that is asked for: bad',
	of_type('vote'),
	of_type('vote', body => '{"vote":"no"}'),
	of_type('inquiry'),
	of_type('inquiry', user_id => undef));
is( $blog->sql("SELECT votes FROM tpc_amqp.transactions
		WHERE gtid = '$gtid'"),
	0, '... and does not count');
$handlers->quit;
commits($run, 'a vote before the one that is asked for');

my ($session, $joined) = enlisted();
$gtid = $joined;
$reviews->sql(joined($gtid) . "PREPARE TRANSACTION 'h'");
are_bad(
	'reviews.decision',
	'a decision about a joined branch: bad',
	map {
		my $type = $_;
		map { of_type($type, user_id => $_) } 'mallory', undef
	} qw(commit rollback unknown));
branches_are('prepared', 1);
$session->query_safe('COMMIT');
$session->quit;
ok(TpcPair::settled(20, @nodes), '... and it commits') or diag $@;
on_both('... on both nodes');

# That other nodes share a user, or one node's name begins another's, opens
# nothing: of these nodes each has its own.

for my $user ('hostile_all', 'hostile_', 'hostile_blogs', 'hostile_blog')
{
	$broker->add_user($user, "secret of $user");
	$as{$user} = TpcAmqp->new(
		$broker,
		user => $user,
		password => "secret of $user");
}

# liars NAME, USER…: none of them speaks for blog, or for reviews.
sub liars
{
	my ($name, @users) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	for my $user (@users)
	{
		my $who = $as{$user} // $mallory;

		are_bad_of(
			$who,
			'reviews.prepare',
			"$name: a prepare of $user",
			of_type(
				'prepare',
				gtid => made_up_gtid(6000),
				user_id => $user,
				body =>
				  '{"calls":[{"handler":"add_review","arg":{"id":-1}}]}'));
		are_bad_of($who, 'reviews.decision', "$name: decisions of $user",
			map { of_type($_, user_id => $user) } qw(commit rollback unknown));
		are_bad_of(
			$who,
			'blog.vote',
			"$name: answers of $user",
			of_type('vote', user_id => $user),
			of_type('vote', user_id => $user, body => '{"vote":"no"}'),
			map { of_type($_, user_id => $user) } qw(inquiry ack request));
	}
	return;
}

$gtid = both_prepared();
liars('a user each', 'hostile_all', 'hostile_', 'hostile_blogs');
works_on('a user each');
is($blog->sql('SELECT gid FROM pg_prepared_xacts'),
	'g', '... decide nothing');
succeeds($blog, "COMMIT PREPARED 'g'", '... and it can be committed');
ok(TpcPair::settled(20, @nodes), '... on both nodes') or diag $@;

# All nodes share one user: they work together, and nobody else is one of
# them, not even who was before.

$blog->poll('SELECT count(*) = 0 FROM tpc_amqp.decision');
with_options(
	q{ALTER SERVER rabbit OPTIONS (SET peer_user 'hostile_all')},
	q{ALTER USER MAPPING FOR PUBLIC SERVER rabbit OPTIONS
		(SET "user" 'hostile_all', SET password 'secret of hostile_all')});
works_on('a shared user');
$handlers = TpcPair::hold_handlers($reviews);
($run, $gtid) = start_held();
liars('a shared user', 'mallory', 'hostile_', 'hostile_blog');
$handlers->quit;
commits($run, 'a shared user');
$gtid = both_prepared();
liars('a shared user, prepared', 'mallory', 'hostile_blog');
is($blog->sql('SELECT gid FROM pg_prepared_xacts'),
	'g', '... decide nothing');
succeeds($reviews, "COMMIT PREPARED 'h'",
	'... and whoever shares it can commit');
ok(TpcPair::settled(20, @nodes), '... on both nodes') or diag $@;
on_both('... both rows');

# Where the others know it under that user, one that connects as another is
# none of them.
$reviews->sql(q{ALTER USER MAPPING FOR PUBLIC SERVER rabbit OPTIONS
	(SET "user" 'hostile_reviews', SET password 'secret of hostile_reviews')});
my $before = $reviews->counter('connects');
$reviews->sql('SELECT pg_terminate_backend(messenger_pid) FROM tpc_amqp.node');
$reviews->poll("SELECT connects > $before FROM tpc_amqp.stat");
like(
	$blog->fails(
		TpcPair::transaction(++$id, set => { prepare_timeout => '1s' })),
	qr/no vote from node "reviews"/,
	'a vote of a node that does not share the user does not count');
ok(TpcPair::settled(20, $blog), '... and it is rolled back') or diag $@;

ok(TpcPair::settled(20, @nodes), 'nothing is left prepared') or diag $@;
is($reviews->sql('SELECT count(*) FROM public.reviews WHERE id < 0'),
	0, 'and nothing has run that nobody called');

done_testing();

# Copies of a running node: a standby that takes over, and copies and
# namesakes that the broker keeps out.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use TpcTest;
use TpcPair;

# Bound on what shall not take long, in seconds.
my $QUICK = 10;

my ($blog, $reviews) = TpcPair::new_pair(
	init => { allows_streaming => 1 },
	conf => <<'EOC',
wal_keep_size = 1GB
tpc_amqp.resolve_interval = 500ms
tpc_amqp.forget_after = 1h
EOC
);
my $primary = $blog->cluster;

TpcPair::connected($blog, $reviews);

sub on_both
{
	my ($id, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	return is(
		TpcPair::blog_has($blog, $id) . TpcPair::reviews_has($reviews, $id),
		'11', $name);
}

# of_cluster NODE, CLUSTER: the same database there.
sub of_cluster
{
	my ($node, $cluster) = @_;
	return bless { %$node, cluster => $cluster }, ref $node;
}

sub copy_of
{
	my ($cluster, $name, %options) = @_;
	my $copy = PostgreSQL::Test::Cluster->new($name);

	$cluster->backup($name);
	$copy->init_from_backup($cluster, $name, %options);
	return $copy;
}

# gtid of a transaction that is given its end.
sub transaction_of
{
	my ($id, $end) = @_;
	return $blog->sql("BEGIN;
		INSERT INTO public.blogs VALUES ($id);
		DO \$\$BEGIN PERFORM tpc_amqp.call('reviews', 'add_review',
			'{\"id\": $id}'); END\$\$;
		SELECT tpc_amqp.gtid();
		$end;");
}

sub outcome
{
	my ($node, $gtid) = @_;
	return $node->sql("SELECT tpc_amqp.outcome('$gtid')");
}

# ---------------------------------------------------------------------------
# Another cluster claims the name

my $namesake =
  TpcTest->new_node($reviews->cluster, 'namesake', 'blog', attach => 0);
my ($said) =
  $namesake->fails("SELECT tpc_amqp.attach('rabbit', 'blog')");
like($said, qr/could not attach node "blog"\nDETAIL: .*40[35] .*exclusive/,
	'a second cluster cannot attach under a name that is in use');
is($namesake->sql('SELECT count(*) FROM tpc_amqp.node'), 0,
	'... and is no node');
is($blog->sql('SELECT state, connects FROM tpc_amqp.node, tpc_amqp.stat'),
	'connected|1', '... while the first did not notice');
$blog->sql(TpcPair::transaction(1));
on_both(1, '... and works');

# ---------------------------------------------------------------------------
# A standby has no workers and takes no calls

my $standby_cluster = copy_of($primary, 'standby', has_streaming => 1);
$standby_cluster->start;
my $standby = of_cluster($blog, $standby_cluster);
my $committed = transaction_of(2, 'COMMIT');
my $aborted = transaction_of(3, 'ROLLBACK');
my $late = transaction_of(4, 'COMMIT');
$primary->wait_for_catchup($standby_cluster);

is( $standby->sql("SELECT count(*) FROM pg_stat_activity
	WHERE backend_type LIKE 'tpc_amqp%'"), 0, 'a standby has no workers');
is($standby->sql('SELECT count(*) FROM tpc_amqp.node'), 0, '... and is no node');
for my $sql (
	q{SELECT tpc_amqp.call('reviews', 'add_review', '{"id": 5}')},
	"SELECT tpc_amqp.attach('rabbit', 'standby')",
	'SELECT tpc_amqp.detach()')
{
	like($standby->fails($sql),
		qr/25006: cannot execute tpc_amqp\.\w+\(\) /,
		"on a standby: $sql");
}
TpcTest->within($QUICK, sub {
		my ($out, $err, $rc) =
		  $standby->try("\\set VERBOSITY verbose
			SELECT tpc_amqp.outcome('$committed')");
		like($err, qr/55000: recovery is in progress/,
			'outcome() on a standby is refused');
	},
	'... and does not take long');
my ($views, $error, $rc) = $standby->try('SELECT count(*) FROM tpc_amqp.transactions;
	SELECT count(*) FROM tpc_amqp.branches; SELECT count(*) FROM tpc_amqp.stat;
	SELECT count(*) FROM tpc_amqp.handlers');
is($rc, 0, 'views can be read on a standby') or diag($error);

# ---------------------------------------------------------------------------
# A physical copy that runs beside the original

my $copy_cluster = copy_of($primary, 'copy');
$copy_cluster->start;
my $copy = of_cluster($blog, $copy_cluster);
$copy->poll("SELECT state = 'disconnected' AND last_error ~ 'exclusive'
	FROM tpc_amqp.node");
pass('a physical copy of a running node is refused by the broker');
like($copy->fails(TpcPair::transaction(6)),
	qr/node "blog" is not connected to the broker\nDETAIL: .*exclusive/,
	'... so it can call nobody');
my $last = '';
for (1 .. 3)
{
	$copy->poll("SELECT last_error_at::text <> '$last' FROM tpc_amqp.node");
	$last = $copy->sql('SELECT last_error_at FROM tpc_amqp.node');
}
pass('it keeps trying');
is( () = slurp_file($copy_cluster->logfile) =~ /could not connect to the broker/g,
	1, '... and logs that once');
is($blog->sql('SELECT state, connects FROM tpc_amqp.node, tpc_amqp.stat'),
	'connected|1', 'the original did not notice');
$blog->sql(TpcPair::transaction(7));
on_both(7, '... and works');
is($copy->sql('SELECT count(*) FROM public.blogs WHERE id = 7'),
	0, '... on its own');
is(outcome($copy, $committed), 'committed',
	'the copy knows what it was copied with');
$copy->detach;
$copy->poll('SELECT count(*) = 0 FROM tpc_amqp.node');
pass('detached, it gives up');
like($copy->fails("SELECT tpc_amqp.attach('rabbit', 'copy')"),
	qr/55006: node "blog" has committed transactions/,
	'under another name it cannot speak for the transactions it was copied with'
);
$copy_cluster->stop('fast');

# ---------------------------------------------------------------------------
# Failover

# A branch of ours that is in doubt when the primary ends: decided, and
# reviews has not heard of it.
my $resolver = $reviews->sql('SELECT resolve_pids[1] FROM tpc_amqp.node');
TpcTest->freeze($resolver);
$blog->sql(TpcPair::transaction(10, set => { commit_wait => 'decided' }));
is(TpcPair::blog_has($blog, 10), 1, 'a transaction is decided, not applied');
# And one of another node's that we have prepared.
$blog->sql('CREATE FUNCTION public.note(arg jsonb) RETURNS void LANGUAGE sql AS
	$$INSERT INTO public.blogs VALUES ((arg->>\'id\')::int, \'handled\')$$;
	SELECT tpc_amqp.register_handler(\'note\', \'public.note(jsonb)\')');
$primary->wait_for_catchup($standby_cluster);
my $old_timeline = $blog->sql('SELECT timeline FROM tpc_amqp.node');

TpcTest->within($QUICK, sub { $primary->stop('fast') }, 'the primary stops quickly');
TpcTest->thaw($resolver);
$standby_cluster->promote;
$blog = $standby;
TpcPair::connected($blog, $reviews);
pass('after promotion workers come up by themselves');
is($blog->sql('SELECT name, timeline > '
	  . $old_timeline . ' FROM tpc_amqp.node'),
	'blog|t', '... as the same node, on another timeline');
$blog->sql(TpcPair::transaction(11));
on_both(11, 'the promoted node calls');
$reviews->sql(q{SELECT tpc_amqp.call('blog', 'note', '{"id": 12}')});
is(TpcPair::blog_has($blog, 12), 1, '... and is called');
$reviews->poll('SELECT count(*) = 1 FROM public.reviews WHERE id = 10');
on_both(10, 'what was decided before is applied');
ok(TpcPair::settled(30, $blog, $reviews), 'no branch stays prepared');

is(outcome($blog, $committed), 'committed',
	'committed before the failover: known');
is(outcome($blog, $late), 'committed', '... also the last one');
is(outcome($blog, $aborted), 'unknown',
	'no record from before the failover: unknown');
$standby_cluster->append_conf('postgresql.conf',
	"tpc_amqp.failover_presumes_abort = on\n");
$standby_cluster->reload;
$blog->poll("SELECT tpc_amqp.outcome('$aborted')", 'aborted');
pass('... aborted, with failover_presumes_abort');
is(outcome($blog, $committed), 'committed',
	'... which is not said of what has a record');
my $new = transaction_of(13, 'ROLLBACK');
is(outcome($blog, $new), 'aborted',
	'rolled back after the failover: aborted');
is(outcome($blog, 'blog/00000000-0000-8000-8000-000000000001'),
	'unknown', 'never heard of: unknown');

$standby_cluster->restart;
TpcPair::connected($blog);
$blog->sql(TpcPair::transaction(14));
on_both(14, 'the promoted node works after a restart');
is(outcome($blog, $committed), 'committed', '... and remembers');
TpcTest->no_incidents('there were no incidents', $blog, $reviews);

# The old primary, started by mistake, is a copy like any other.
$primary->start;
my $old = of_cluster($blog, $primary);
$old->poll("SELECT state = 'disconnected' AND last_error ~ 'exclusive'
	FROM tpc_amqp.node");
pass('the old primary, started by mistake, is refused by the broker');
$blog->sql(TpcPair::transaction(15));
on_both(15, '... and the new one works on');

done_testing();

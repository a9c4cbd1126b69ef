# Traffic for "make valgrind": every kind of message between two servers, all
# kinds of workers, and sessions at both ends.

use strict;
use warnings;

use PostgreSQL::Test::Utils;
use Test::More;
use TpcAmqp;
use TpcPair;
use TpcPrepared;
use TpcTest;

my $conf = slurp_file($ENV{TPC_SLOW_CONF});

($blog, $reviews) = TpcPair::new_pair(
	conf => <<"EOC",
$conf
fsync = off
authentication_timeout = 600
log_min_messages = info
tpc_amqp.resolve_workers = 2
tpc_amqp.resolve_interval = 1s
tpc_amqp.forget_after = 1s
EOC
	blog_setup => <<'EOS',
CREATE FUNCTION public.note(arg jsonb) RETURNS void LANGUAGE sql AS
	$$INSERT INTO public.blogs VALUES ((arg->>'id')::int, 'handled')$$;
SELECT tpc_amqp.register_handler('note', 'public.note(jsonb)');
EOS
	reviews_setup => <<'EOS');
CREATE FUNCTION public.onward(arg jsonb) RETURNS int LANGUAGE plpgsql AS
	$$BEGIN
		INSERT INTO public.reviews (id) VALUES ((arg->>'id')::int);
		PERFORM tpc_amqp.call('blog', 'note', jsonb_build_object('id', 1000 + (arg->>'id')::int));
		RETURN (arg->>'id')::int;
	END$$;
SELECT tpc_amqp.register_handler('onward', 'public.onward(jsonb)');
EOS
my @nodes = ($blog, $reviews);
TpcPair::connected(@nodes);

# Calls
for (1 .. 3)
{
	$blog->sql(TpcPair::transaction(++$id));
	on_both('a call commits');
}
$blog->sql(TpcPair::transaction(++$id, handler => 'onward'));
on_both('a tree commits');
$blog->sql("BEGIN; SELECT tpc_amqp.call('reviews', 'look'); COMMIT");
pass('a call that only reads commits');

my $refused = $blog->fails(
	TpcPair::transaction(++$id, arg => qq({"id": $id, "note": "$LONG"})));
like($refused, qr/23514/, 'a refused call says why');
on_neither('... and rolls back');
like($blog->fails(TpcPair::transaction(++$id, handler => 'nobody')),
	qr/ERROR/, 'so does an unknown handler');
like($blog->fails(TpcPair::transaction(++$id, to => 'nowhere')),
	qr/42704/, '... and an unknown node');
like(
	$blog->fails(
		TpcPair::transaction(
			++$id,
			handler => 'slow',
			arg => qq({"id": $id, "seconds": 60}),
			set => { prepare_timeout => '2s' })),
	qr/ERROR/,
	'... and one that takes too long');

# Many at a time, so that batches form
my @runs = map { $blog->start(TpcPair::transaction(++$id)) } 1 .. 6;
is(scalar(grep { ($_->finish)[2] == 0 } @runs), 6, 'many at a time commit');

# Prepared
$blog->sql(calling(++$id) . "PREPARE TRANSACTION 'g'");
succeeds($blog, "COMMIT PREPARED 'g'", 'a prepared one is committed');
on_both('... on both');
$blog->sql(calling(++$id) . "PREPARE TRANSACTION 'g'");
succeeds($blog, "ROLLBACK PREPARED 'g'", 'a prepared one is rolled back');
all_rolled_back('rolled back');
$blog->sql(calling(++$id, set => { prepare_wait => 'off' })
	  . "PREPARE TRANSACTION 'g'");
succeeds($blog, "COMMIT PREPARED 'g'", 'one that does not wait is committed');
on_both('... on both');

# Joined
both_prepared();
succeeds($reviews, "COMMIT PREPARED 'h'", 'committed at the participant');
on_both('... commits on both');
both_prepared();
succeeds($blog, "ROLLBACK PREPARED 'g'", 'rolled back at the coordinator');
$reviews->try("ROLLBACK PREPARED 'h'");
all_rolled_back('joined');

# Views, and what is bad
for my $node (@nodes)
{
	$node->sql("SELECT count(*) FROM tpc_amqp.$_")
	  for qw(node transactions participants branches incidents handlers stat);
}
my $amqp = TpcAmqp->new($blog->broker);
for my $queue (
	map { ("tpc_amqp.blog.$_", "tpc_amqp.reviews.$_") }
	qw(prepare decision vote))
{
	$amqp->publish($queue, TpcAmqp->plain($_))
	  for 'x', '', '{}', '[]', "\0" x 70000;
}
$_->poll('SELECT bad_messages >= 15 FROM tpc_amqp.stat') for @nodes;
pass('bad messages are counted');

# The connection is lost, and the server is restarted
$blog->broker->close_connections;
TpcPair::connected(@nodes);
$blog->sql(TpcPair::transaction(++$id));
on_both('after reconnecting');
both_prepared();
$_->cluster->restart for @nodes;
TpcPair::connected(@nodes);
succeeds($blog, "COMMIT PREPARED 'g'", 'after a restart');
ok(TpcPair::settled(300, @nodes), 'nothing stays prepared');
on_both('... and it is committed');

$_->detach for @nodes;
$_->cluster->stop for @nodes;

done_testing();

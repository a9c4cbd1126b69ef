# TpcPair: two clusters, node blog on the one and node reviews on the other,
# with a table each and the handlers that most test files call.
#
#   my ($blog, $reviews) = TpcPair::new_pair(blog_conf => '…');
#   $blog->sql(TpcPair::transaction(1));
#   TpcPair::agree($blog, $reviews, 1);    # on both or on neither

package TpcPair;

use strict;
use warnings;

use Test::More ();
use TpcTest;

my $serial = 0;

our $BLOG_SETUP = <<'EOS';
CREATE TABLE public.blogs (id int PRIMARY KEY, note text);
EOS

our $REVIEWS_SETUP = <<'EOS';
CREATE TABLE public.reviews (
	n bigint GENERATED ALWAYS AS IDENTITY,
	id int NOT NULL,
	note text,
	CONSTRAINT short_note CHECK (length(note) < 100));
CREATE INDEX ON public.reviews (id);
CREATE TABLE public.stock (item text PRIMARY KEY, amount int NOT NULL);
INSERT INTO public.stock VALUES ('apple', 100);

CREATE FUNCTION public.add_review(arg jsonb) RETURNS void LANGUAGE sql AS
	$$INSERT INTO public.reviews (id, note)
	  VALUES ((arg->>'id')::int, arg->>'note')$$;
CREATE FUNCTION public.look(arg jsonb) RETURNS void LANGUAGE plpgsql AS
	$$BEGIN PERFORM count(*) FROM public.reviews; END$$;
CREATE FUNCTION public.take(arg jsonb) RETURNS void LANGUAGE sql AS
	$$UPDATE public.stock SET amount = amount - (arg->>'amount')::int
	  WHERE item = arg->>'item'$$;
CREATE FUNCTION public.slow(arg jsonb) RETURNS void LANGUAGE sql AS
	$$SELECT pg_catalog.pg_sleep((arg->>'seconds')::float8);
	  INSERT INTO public.reviews (id, note)
	  VALUES ((arg->>'id')::int, 'slow')$$;
CREATE FUNCTION public.held(arg jsonb) RETURNS void LANGUAGE sql AS
	$$SELECT pg_catalog.pg_advisory_xact_lock_shared(7);
	  INSERT INTO public.reviews (id, note)
	  VALUES ((arg->>'id')::int, 'held')$$;
SELECT tpc_amqp.register_handler(f, ('public.' || f || '(jsonb)')::regprocedure)
	FROM unnest('{add_review,look,take,slow,held}'::text[]) f;
EOS

# new_pair OPTIONS: (node blog, node reviews).  Options:
#   broker                      of both
#   conf, blog_conf, reviews_conf    lines of postgresql.conf
#   init                        of both clusters, a hash
#   blog_setup, reviews_setup   more SQL
#   blog_user, reviews_user     broker users of their own
#   options                     more options of both's servers, a hash
sub new_pair
{
	my (%opts) = @_;
	my $broker = $opts{broker} // TpcTest::Broker->of_this_file;
	my $conf = "autovacuum = off\n" . ($opts{conf} // '') . "\n";
	my $suffix = $serial++ ? "_$serial" : '';
	my @nodes;

	for my $name ('blog', 'reviews')
	{
		my $cluster = TpcTest->new_cluster("$name$suffix",
			$opts{init} // {}, $conf . ($opts{"${name}_conf"} // ''));
		push @nodes,
		  TpcTest->new_node(
			$cluster, $name, "$name$suffix",
			broker => $broker,
			user => $opts{"${name}_user"},
			options => $opts{options} // {},
			setup => ($name eq 'blog' ? $BLOG_SETUP : $REVIEWS_SETUP)
			  . ($opts{"${name}_setup"} // ''));
	}
	return @nodes;
}

# transaction ID, OPTIONS: SQL that inserts a row here and one there.
# Options: handler, to, arg (JSON), set (settings, before), before and after
# (more SQL, in the transaction).
sub transaction
{
	my ($id, %opts) = @_;
	my $handler = $opts{handler} // 'add_review';
	my $to = $opts{to} // 'reviews';
	my $arg = $opts{arg} // qq({"id": $id});
	my $set = '';

	$set .= "SET tpc_amqp.$_ = '$opts{set}{$_}';\n"
	  for sort keys %{ $opts{set} // {} };
	return $set
	  . "BEGIN;\n"
	  . ($opts{before} // '')
	  . "INSERT INTO public.blogs VALUES ($id);\n"
	  . "SELECT tpc_amqp.call('$to', '$handler', '$arg');\n"
	  . ($opts{after} // '')
	  . "COMMIT;\n";
}

# Sessions that keep something back until they quit:
# handler "held" of a node,
sub hold_handlers
{
	my ($node) = @_;
	my $session = $node->session;

	$session->query_safe('SELECT pg_advisory_lock(7)');
	return $session;
}

# its handler "take",
sub lock_stock
{
	my ($node) = @_;
	my $session = $node->session;

	$session->query_safe("BEGIN; UPDATE public.stock SET amount = amount
		WHERE item = 'apple'");
	return $session;
}

# its transactions that would write their decision down.
sub hold_decisions
{
	my ($node) = @_;
	my $session = $node->session;

	$session->query_safe(
		'BEGIN; LOCK TABLE tpc_amqp.decision IN SHARE MODE');
	return $session;
}

sub blog_has
{
	my ($blog, $id) = @_;
	return $blog->sql("SELECT count(*) FROM public.blogs WHERE id = $id");
}

sub reviews_has
{
	my ($reviews, $id) = @_;
	return $reviews->sql(
		"SELECT count(*) FROM public.reviews WHERE id = $id");
}

# in_agreement BLOG, REVIEWS: tests of what holds whenever all is finished.
sub in_agreement
{
	my ($blog, $reviews) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	TpcTest->no_incidents('there were no incidents', $blog, $reviews);
	Test::More::is(
		$reviews->sql(
			'SELECT count(*) - count(DISTINCT id) FROM public.reviews'),
		0,
		'nothing was applied twice');
	Test::More::is(
		$blog->sql(
			"SELECT string_agg(id::text, ' ' ORDER BY id) FROM public.blogs"),
		$reviews->sql(
			"SELECT string_agg(id::text, ' ' ORDER BY id) FROM public.reviews"
		),
		'both nodes have the same');
	return;
}

# unfinished NODE: gids of the branches prepared in its cluster.
sub unfinished
{
	my ($node) = @_;
	my ($rc, $out, $err) = (0, '', '');

	($out, $err, $rc) = $node->try(
		"SELECT gid FROM pg_catalog.pg_prepared_xacts ORDER BY 1");
	return $rc ? "($err)" : $out;
}

# settled SECONDS, NODES…: whether nothing is prepared there any more, within
# that time.  Servers may be restarting meanwhile.
sub settled
{
	my ($seconds, @nodes) = @_;
	local $TpcTest::TIMEOUT = $seconds;

	return eval {
		TpcTest::poll_until(
			sub {
				$TpcTest::last_seen = join ' ',
				  map { $_->name . ': ' . unfinished($_) } @nodes;
				return !grep { unfinished($_) ne '' } @nodes;
			},
			'prepared transactions to go');
	};
}

my $CONNECTED = <<'EOS';
SELECT state = 'connected' AND messenger_pid IS NOT NULL
	AND cardinality(prepare_pids) >=
		current_setting('tpc_amqp.prepare_workers')::int
	AND cardinality(resolve_pids) =
		current_setting('tpc_amqp.resolve_workers')::int
FROM tpc_amqp.node
EOS

# connected NODE…: until they are, with all their workers.
sub connected
{
	$_->poll($CONNECTED) for @_;
	return;
}

# ready NODE…, in_doubt NODE…: as connected() and settled(), in sessions that
# stay.  in_doubt() returns what is still prepared after a while, or "".
sub ready
{
	$_->ask_for($CONNECTED) for @_;
	return;
}

sub in_doubt
{
	my (@nodes) = @_;
	my @left;
	my $settled = eval {
		TpcTest::poll_until(
			sub {
				@left = map {
					split /\n/,
					  $_->ask('SELECT gid FROM pg_catalog.pg_prepared_xacts')
				} @nodes;
				return !@left;
			},
			'prepared transactions to go');
	};
	return $settled ? '' : "in doubt: @left $@";
}

# backend NODE, CONDITION: pid of the session in it, once there is one.
sub backend
{
	my ($node, $condition) = @_;
	my $db = $node->db;

	return TpcTest::poll_until(
		sub {
			return $node->sql("SELECT pid FROM pg_catalog.pg_stat_activity
				WHERE datname = '$db' AND backend_type = 'client backend'
				AND pid <> pg_catalog.pg_backend_pid()
				AND ($condition) LIMIT 1");
		},
		"a session with $condition");
}

# waiting NODE, STATE: gtid of a transaction in that state, once there is one.
sub waiting
{
	my ($node, $state) = @_;

	return TpcTest::poll_until(
		sub {
			my ($out) = $node->try("SELECT gtid FROM tpc_amqp.transactions
				WHERE state = '$state' LIMIT 1");
			return $out;
		},
		"a transaction that is $state on " . $node->name);
}

# branch_is NODE, STATE: the same of a branch.
sub branch_is
{
	my ($node, $state) = @_;

	return TpcTest::poll_until(
		sub {
			my ($out) = $node->try("SELECT gtid FROM tpc_amqp.branches
				WHERE state = '$state' LIMIT 1");
			return $out;
		},
		"a branch that is $state on " . $node->name);
}

1;

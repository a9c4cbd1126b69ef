# TpcAmqp: the few words of AMQP 0-9-1 that tests need to listen in on the
# nodes of a broker, and to send what a node would not.
#
#   my $amqp = TpcAmqp->new($broker);
#   $amqp->spy('spy', 'tpc_amqp.reviews.prepare');
#   my $message = $amqp->get('spy');       # { header => bytes, body => bytes }
#   $amqp->publish('tpc_amqp.reviews.prepare', $message);
#   $amqp->publish('tpc_amqp.reviews.decision', TpcAmqp->message(
#       type => 'commit', gtid => $gtid, from => 'blog'));
#
# A content header is kept as it came, so that what is published again is what
# was published first.

package TpcAmqp;

use strict;
use warnings;

use IO::Select;
use IO::Socket::INET;
use TpcTest;

my $EXCHANGE = 'tpc_amqp';

# new BROKER, OPTIONS: connected, as the broker's own user or as another
# (user, password).
sub new
{
	my ($class, $broker, %opts) = @_;
	my $user = $opts{user} // $broker->user;
	my $password = $opts{password} // $broker->password;
	my $self = bless { input => '', published => 0 }, $class;

	$self->{socket} = IO::Socket::INET->new(
		PeerAddr => $broker->host,
		PeerPort => $broker->port) or die "cannot connect to the broker: $!";
	binmode $self->{socket};
	$self->_write("AMQP\0\0\11\1");
	$self->_expect(0, 10, 10);
	$self->_method(
		0, 10, 11,
		_long('')
		  . _short('PLAIN')
		  . _long("\0$user\0$password")
		  . _short('C'));
	my $tune = $self->_expect(0, 10, 30);
	my ($channel_max, $frame_max) = unpack 'n N', $tune;
	$self->{frame_max} = $frame_max;
	$self->_method(0, 10, 31, pack 'n N n', $channel_max, $frame_max, 0);
	$self->_method(0, 10, 40, _short($broker->vhost) . "\0\0");
	$self->_expect(0, 10, 41);
	$self->_call(20, 10, "\0", 11);
	return $self;
}

# spy QUEUE, KEY…: a queue of this connection that gets a copy of what is
# published with these routing keys.
sub spy
{
	my ($self, $queue, @keys) = @_;

	$self->_call(50, 10, "\0\0" . _short($queue) . "\2" . _long(''), 11);
	$self->_call(50, 20,
		"\0\0" . _short($queue) . _short($EXCHANGE) . _short($_) . "\0"
		  . _long(''), 21)
	  for @keys;
	return;
}

# declare QUEUE, ARGUMENTS: a durable one, whose arguments are numbers and
# texts.  Returns how many messages are in it.
sub declare
{
	my ($self, $queue, %arguments) = @_;
	my $table = '';

	for my $name (sort keys %arguments)
	{
		my $value = $arguments{$name};

		$table .= _short($name)
		  . ($value =~ /^\d+$/ ? 'I' . pack('N', $value) : 'S' . _long($value));
	}
	my $ok = $self->_call(50, 10,
		"\0\0" . _short($queue) . "\2" . _long($table), 11);
	my (undef, $count) = unpack 'C/a N', $ok;
	return $count;
}

# count QUEUE: how many messages are in it.
sub count
{
	my ($self, $queue) = @_;
	my $ok = $self->_call(50, 10,
		"\0\0" . _short($queue) . "\3" . _long(''), 11);
	my (undef, $count) = unpack 'C/a N', $ok;

	return $count;
}

# declare_exchange NAME, TYPE: a durable one.
sub declare_exchange
{
	my ($self, $exchange, $type) = @_;
	$self->_call(40, 10,
		"\0\0" . _short($exchange) . _short($type) . "\2" . _long(''), 11);
	return;
}

# bind QUEUE, EXCHANGE, KEY
sub bind
{
	my ($self, $queue, $exchange, $key) = @_;
	$self->_call(50, 20,
		"\0\0" . _short($queue) . _short($exchange) . _short($key) . "\0"
		  . _long(''), 21);
	return;
}

# purge QUEUE
sub purge
{
	my ($self, $queue) = @_;
	$self->_call(50, 30, "\0\0" . _short($queue) . "\0", 31);
	return;
}

# consume QUEUE, EXCLUSIVE: and leave what comes unacknowledged.
sub consume
{
	my ($self, $queue, $exclusive) = @_;
	$self->_call(
		60, 20,
		"\0\0"
		  . _short($queue)
		  . _short('')
		  . ($exclusive ? "\4" : "\0")
		  . _long(''),
		21);
	return;
}

sub delete_queue
{
	my ($self, $queue) = @_;
	$self->_call(50, 40, "\0\0" . _short($queue) . "\0", 41);
	return;
}

sub close
{
	my ($self) = @_;
	return CORE::close($self->{socket});
}

sub delete_exchange
{
	my ($self) = @_;
	$self->_call(40, 20, "\0\0" . _short($EXCHANGE) . "\0", 21);
	return;
}

# get QUEUE: the next message, once there is one.
sub get
{
	my ($self, $queue) = @_;

	return TpcTest::poll_until(sub { $self->try_get($queue) },
		"a message in $queue");
}

sub try_get
{
	my ($self, $queue) = @_;

	$self->_method(1, 60, 70, "\0\0" . _short($queue) . "\1");
	my ($class, $method) = $self->_next_method(1);
	return if $method == 72;
	die "unexpected method $class.$method\n" unless $method == 71;

	my (undef, undef, $header) = $self->_frame;
	my $left = unpack 'x4 Q>', $header;
	my $body = '';
	while (length $body < $left)
	{
		my (undef, undef, $part) = $self->_frame;
		$body .= $part;
	}
	return { header => $header, body => $body };
}

# publish KEY, MESSAGE…: to the nodes' exchange, and wait until the broker has
# them.
sub publish
{
	my ($self, $key, @messages) = @_;
	return $self->send($EXCHANGE, $key, @messages);
}

# send EXCHANGE, KEY, MESSAGE…: the same to any exchange; '' takes them to the
# queue of that name.
sub send
{
	my ($self, $exchange, $key, @messages) = @_;
	my $method = pack('n n', 60, 40) . "\0\0" . _short($exchange)
	  . _short($key) . "\0";
	my %waiting;

	$self->_call(85, 10, "\0", 11) unless $self->{confirms}++;
	while (my @some = splice @messages, 0, 500)
	{
		my $bytes = '';

		for my $message (@some)
		{
			my $body = $message->{body};
			my $header = $message->{header};

			substr($header, 4, 8) = pack 'Q>', length $body;
			$waiting{ ++$self->{published} } = 1;
			$bytes .= _frame_of(1, 1, $method) . _frame_of(2, 1, $header);
			for (my $at = 0; $at < length $body; $at += $self->{frame_max} - 8)
			{
				$bytes .= _frame_of(3, 1,
					substr $body, $at, $self->{frame_max} - 8);
			}
		}
		$self->_write($bytes);
		while (%waiting)
		{
			# one confirmation may be for all up to its number
			my ($tag, $all) = unpack 'Q> C', $self->_expect(1, 60, 80);
			delete @waiting{ $all ? grep { $_ <= $tag } keys %waiting : $tag };
		}
	}
	return;
}

# plain BODY: a message with no properties at all.
sub plain
{
	my ($class, $body) = @_;
	return { header => pack('n n Q> n', 60, 0, 0, 0), body => $body };
}

# user BODY, PROPERTIES: a user's message: message_id, content_type, user_id and
# headers (the bytes of the table).
sub user
{
	my ($class, $body, %p) = @_;
	my ($flags, $properties) = (0, '');

	for my $property (
		[ 0x8000, $p{content_type}, \&_short ],
		[ 0x2000, $p{headers}, \&_long ],
		[ 0x0080, $p{message_id}, \&_short ],
		[ 0x0010, $p{user_id}, \&_short ])
	{
		my ($flag, $value, $code) = @$property;
		next unless defined $value;
		$flags |= $flag;
		$properties .= $code->($value);
	}
	return {
		header => pack('n n Q> n', 60, 0, 0, $flags) . $properties,
		body => $body
	};
}

# message FIELDS: as a node would make it, from type, gtid, from, floor,
# user_id, timeout and body; app_id and version are right unless given.  What
# is undef is left out.  headers are more of them, as name => [kind, bytes].
sub message
{
	my ($class, %f) = @_;
	my ($flags, $properties, $table) = (0, '', '');
	my %header = (
		'tpc-version' =>
		  [ 'I', pack 'N', exists $f{version} ? $f{version} // 0 : 1 ],
		%{ $f{headers} // {} });

	delete $header{'tpc-version'} if exists $f{version} && !defined $f{version};
	$header{'tpc-from'} //= [ 'S', _long($f{from}) ] if defined $f{from};
	$header{'tpc-floor'} //= [ 'S', _long($f{floor}) ] if defined $f{floor};
	$table .= _short($_) . $header{$_}[0] . $header{$_}[1]
	  for grep { defined $header{$_} } sort keys %header;
	$flags |= 0x2000;
	$properties .= _long($table);
	for my $property (
		[ 0x0400, $f{gtid} ],
		[ 0x0200, $f{reply_to} ],
		[ 0x0100, $f{timeout} ],
		[ 0x0020, $f{type} ],
		[ 0x0010, $f{user_id} ],
		[ 0x0008, exists $f{app_id} ? $f{app_id} : 'tpc_amqp' ])
	{
		my ($flag, $value) = @$property;
		next unless defined $value;
		$flags |= $flag;
		$properties .= _short($value);
	}
	return {
		header => pack('n n Q> n', 60, 0, 0, $flags) . $properties,
		body => $f{body} // '{}'
	};
}

sub _short { return pack 'C/a*', $_[0] }
sub _long { return pack 'N/a*', $_[0] }

sub _write
{
	my ($self, $bytes) = @_;
	local $SIG{PIPE} = 'IGNORE';

	while (length $bytes)
	{
		my $n = syswrite $self->{socket}, $bytes;
		die "the broker has closed the connection\n" unless $n;
		substr($bytes, 0, $n) = '';
	}
	return;
}

sub _frame_of
{
	my ($type, $channel, $payload) = @_;
	return
	  pack('C n N', $type, $channel, length $payload) . $payload . "\xce";
}

sub _send
{
	my ($self, $type, $channel, $payload) = @_;
	return $self->_write(_frame_of($type, $channel, $payload));
}

sub _method
{
	my ($self, $channel, $class, $method, $arguments) = @_;
	return $self->_send(1, $channel, pack('n n', $class, $method) . $arguments);
}

sub _read
{
	my ($self, $size) = @_;

	while (length $self->{input} < $size)
	{
		IO::Select->new($self->{socket})->can_read($TpcTest::TIMEOUT)
		  or die "the broker does not answer\n";
		sysread $self->{socket}, $self->{input}, 65536, length $self->{input}
		  or die "the broker has closed the connection\n";
	}
	return substr $self->{input}, 0, $size, '';
}

# The next frame that is no heartbeat: type, channel, payload.
sub _frame
{
	my ($self) = @_;

	while (1)
	{
		my ($type, $channel, $size) = unpack 'C n N', $self->_read(7);
		my $payload = $self->_read($size);
		$self->_read(1);
		return ($type, $channel, $payload) if $type != 8;
	}
}

sub _next_method
{
	my ($self, $channel) = @_;
	my ($type, $got, $payload) = $self->_frame;
	my ($class, $method) = unpack 'n n', $payload;

	die "unexpected frame of type $type\n" unless $type == 1;
	die "the broker says: $1\n"
	  if $method == ($class == 10 ? 50 : 40)
	  && ($class == 10 || $class == 20)
	  && $payload =~ /^.{6}.(.*)/s;
	die "unexpected channel $got\n" unless $got == $channel;
	return ($class, $method, substr $payload, 4);
}

sub _expect
{
	my ($self, $channel, $class, $method) = @_;
	my ($got_class, $got_method, $arguments) = $self->_next_method($channel);

	die "unexpected method $got_class.$got_method\n"
	  unless $got_class == $class && $got_method == $method;
	return $arguments;
}

sub _call
{
	my ($self, $class, $method, $arguments, $answer) = @_;
	$self->_method(1, $class, $method, $arguments);
	return $self->_expect(1, $class, $answer);
}

1;

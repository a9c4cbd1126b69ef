# TpcAmqp: the few words of AMQP 0-9-1 that tests need to listen in on the
# nodes of a broker, and to send what a node would not.
#
#   my $amqp = TpcAmqp->new($broker);
#   $amqp->spy('spy', 'tpc_amqp.reviews.prepare');
#   my $message = $amqp->get('spy');       # { header => bytes, body => bytes }
#   $amqp->publish('tpc_amqp.reviews.prepare', $message);
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

sub new
{
	my ($class, $broker) = @_;
	my $self = bless { input => '' }, $class;

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
		  . _long("\0" . $broker->user . "\0" . $broker->password)
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

# publish KEY, MESSAGE: and wait until the broker has it.
sub publish
{
	my ($self, $key, $message) = @_;
	my $body = $message->{body};
	my $header = $message->{header};

	substr($header, 4, 8) = pack 'Q>', length $body;
	$self->_call(85, 10, "\0", 11) unless $self->{confirms}++;
	$self->_method(1, 60, 40,
		"\0\0" . _short($EXCHANGE) . _short($key) . "\0");
	$self->_send(2, 1, $header);
	for (my $at = 0; $at < length $body; $at += $self->{frame_max} - 8)
	{
		$self->_send(3, 1, substr $body, $at, $self->{frame_max} - 8);
	}
	$self->_expect(1, 60, 80);
	return;
}

# plain BODY: a message with no properties at all.
sub plain
{
	my ($class, $body) = @_;
	return { header => pack('n n Q> n', 60, 0, 0, 0), body => $body };
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

sub _send
{
	my ($self, $type, $channel, $payload) = @_;
	return $self->_write(
		pack('C n N', $type, $channel, length $payload) . $payload . "\xce");
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

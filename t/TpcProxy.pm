# TpcProxy: stands between nodes and their broker, so that a test can sever
# their connections: at once, without a word, and without the broker's help.
#
#   my $proxy = TpcProxy->new($broker);
#   … options => { port => $proxy->port } …
#   $proxy->cut;

package TpcProxy;

use strict;
use warnings;

use IO::Select;
use IO::Socket::INET;
use POSIX ();
use Socket qw(AF_UNIX SOCK_STREAM PF_UNSPEC IPPROTO_TCP TCP_NODELAY);

my @running;

# new BROKER: a running one.  Before any server is started: what it inherits
# it would hold open.
sub new
{
	my ($class, $broker) = @_;
	my $listener = IO::Socket::INET->new(
		LocalAddr => '127.0.0.1',
		Listen => 16) or die "proxy: $!\n";
	socketpair(my $ours, my $theirs, AF_UNIX, SOCK_STREAM, PF_UNSPEC)
	  or die "proxy: $!\n";
	my @to = ($broker->host, $broker->port);
	my $pid = fork() // die "proxy: $!\n";

	if ($pid == 0)
	{
		# Nothing of the test's own end runs here.
		$SIG{$_} = 'IGNORE' for qw(INT TERM PIPE);
		close $ours;
		eval { _serve($listener, $theirs, @to) };
		POSIX::_exit(0);
	}
	close $theirs;
	my $self = bless {
		port => $listener->sockport,
		control => $ours,
		pid => $pid
	}, $class;
	close $listener;
	push @running, $self;
	return $self;
}

sub port { return $_[0]{port} }

# cut: close all connections.  Those that come later are served.
sub cut
{
	my ($self) = @_;

	syswrite $self->{control}, 'c';
	sysread($self->{control}, my $answer, 1) or die "the proxy is gone\n";
	return;
}

sub _serve
{
	my ($listener, $control, @to) = @_;
	my $select = IO::Select->new($listener, $control);
	my %peer;

	my $drop = sub {
		for my $socket (@_)
		{
			delete $peer{$socket};
			$select->remove($socket);
			close $socket;
		}
	};
	while (1)
	{
		for my $from ($select->can_read)
		{
			if ($from == $control)
			{
				# The test has ended.
				sysread($control, my $command, 1) or return;
				$drop->(grep { $peer{$_} } $select->handles);
				syswrite $control, 'k';
				last;
			}
			if ($from == $listener)
			{
				my $client = $listener->accept or next;
				my $server = IO::Socket::INET->new(
					PeerAddr => $to[0],
					PeerPort => $to[1]);

				if (!$server)
				{
					close $client;
					next;
				}
				setsockopt $_, IPPROTO_TCP, TCP_NODELAY, 1 for $client, $server;
				$peer{$client} = $server;
				$peer{$server} = $client;
				$select->add($client, $server);
				next;
			}
			my $to = $peer{$from} or next;
			my $got = sysread $from, my $bytes, 65536;
			my $sent = 0;

			while ($got && $sent < $got)
			{
				my $n = syswrite $to, $bytes, $got - $sent, $sent;
				last unless $n;
				$sent += $n;
			}
			$drop->($from, $to) if !$got || $sent < $got;
		}
	}
}

END
{
	my $status = $?;
	for my $proxy (@running)
	{
		close $proxy->{control};
		waitpid $proxy->{pid}, 0;
	}
	$? = $status;
}

1;

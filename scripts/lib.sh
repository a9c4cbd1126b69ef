# lib.sh: what the scripts share.  Sourced by bash with set -eu -o pipefail.
# shellcheck shell=bash

say()
{
	printf '%s\n' "$*"
}

warn()
{
	printf '%s: %s\n' "${0##*/}" "$*" >&2
}

die()
{
	warn "$@"
	exit 1
}

# poll_pause: the pause between two looks at a state that is waited for.
poll_pause()
{
	read -r -t 0.1 <> <(:) || true
}

# free_port: a TCP port nobody listens on, below those the kernel hands out
# to outgoing connections.  It may be taken by the time it is used; callers
# try again.
free_port()
{
	local port

	while :; do
		port=$((20000 + (RANDOM * 32768 + RANDOM) % 12000))
		(: < "/dev/tcp/127.0.0.1/$port") 2>/dev/null || break
	done
	echo "$port"
}

# ---------------------------------------------------------------------------
# Processes

# process_started PID: when it started, in the kernel's ticks; empty if there
# is no such process or only its zombie.  (A zombie with threads still is a
# process of which the first thread has ended.)
process_started()
{
	local stat fields

	stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 0
	read -r -a fields <<< "${stat##*) }"
	[ "${fields[0]}" != Z ] || [ "${fields[17]}" -gt 1 ] || return 0
	echo "${fields[19]}"
}

# processes_under DIR: pids of the processes that work in DIR or below it.
# Servers change into their data directory, and we start everything else
# there, so this finds what a crashed or interrupted test left behind, and
# nothing of anybody else's.
processes_under()
{
	local link cwd pid

	for link in /proc/[0-9]*/cwd; do
		cwd=$(readlink "$link" 2>/dev/null) || continue
		case $cwd/ in
			"$1"/*)
				pid=${link#/proc/}
				pid=${pid%/cwd}
				[ "$pid" = "$$" ] || [ "$pid" = "$BASHPID" ] || echo "$pid"
				;;
		esac
	done
}

# end_processes_under DIR: none of them is left when it returns 0.
end_processes_under()
{
	local pids pid deadline=$((SECONDS + 30))

	while pids=$(processes_under "$1") && [ -n "$pids" ]; do
		for pid in $pids; do
			kill -KILL "$pid" 2>/dev/null || true
		done
		[ $SECONDS -lt $deadline ] || return 1
		poll_pause
	done
}

# ---------------------------------------------------------------------------
# The stage: one temporary directory in which a run lives altogether: a copy
# of this tree, private copies of PostgreSQL, servers, brokers, logs.  Ending
# what works in it and removing it leaves nothing behind.

# run_staged SCRIPT [ARGUMENT…]: make a stage and run scripts/SCRIPT in it
# with TPC_STAGE set to it.  Servers refuse to run as root, so as root the
# script runs as the user postgres that came with the package.
run_staged()
{
	local script=$1 tree user=() rc=0
	shift

	tree=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
	# Not ours: the settings of a make that called us.
	unset MAKEFLAGS MFLAGS MAKELEVEL MAKEOVERRIDES GNUMAKEFLAGS
	"$tree/scripts/deps" "$script"

	staged_child=
	TPC_STAGE=$(mktemp -d "${TPC_TMPDIR:-/tmp}/tpc_amqp.XXXXXX")
	trap 'end_stage $?' EXIT
	trap 'exit 129' HUP
	trap 'exit 130' INT
	trap 'exit 143' TERM

	mkdir "$TPC_STAGE/src" "$TPC_STAGE/tmp" "$TPC_STAGE/home"
	tar -C "$tree" --exclude=./.git --exclude='*.o' --exclude='*.d' \
		--exclude='*.so' --exclude='*.bc' --exclude=./.build-flags -cf - . |
		tar -C "$TPC_STAGE/src" --no-same-owner -xf -
	chmod 755 "$TPC_STAGE"
	if [ "$(id -u)" = 0 ]; then
		chown -R postgres: "$TPC_STAGE"
		user=(setpriv --reuid=postgres --regid=postgres --init-groups
			env 'PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin')
	fi

	cd /
	# In the background, so that a signal is heeded at once.  The shell lets
	# such processes ignore interrupts; the tests need to have them.
	"${user[@]}" env --default-signal=INT --default-signal=QUIT \
		TPC_STAGE="$TPC_STAGE" HOME="$TPC_STAGE/home" \
		TMPDIR="$TPC_STAGE/tmp" LC_ALL=C.UTF-8 LANG=C.UTF-8 \
		bash "$TPC_STAGE/src/scripts/$script" "$@" &
	staged_child=$!
	wait "$staged_child" || rc=$?
	staged_child=
	exit "$rc"
}

# Bound on the orderly end of a run that was told to stop.
STAGE_END_SECONDS=30

end_stage()
{
	local rc=$1 deadline

	trap '' HUP INT TERM
	trap - EXIT
	if [ -n "$staged_child" ]; then
		kill -TERM "$staged_child" 2>/dev/null || true
		deadline=$((SECONDS + STAGE_END_SECONDS))
		while [ -n "$(process_started "$staged_child")" ] &&
			[ $SECONDS -lt $deadline ]; do
			poll_pause
		done
		kill -KILL "$staged_child" 2>/dev/null || true
	fi
	if [ -e "$TPC_STAGE/keep" ]; then
		exit "$rc"
	fi
	end_processes_under "$TPC_STAGE" ||
		warn "some processes in $TPC_STAGE did not end"
	if [ "${KEEP:-0}" != 0 ]; then
		say "kept: $TPC_STAGE"
	else
		rm -rf "$TPC_STAGE"
	fi
	exit "$rc"
}

# run_bounded SECONDS COMMAND…: run it with a bound, and so that a signal to
# this script is heeded while it runs.
bounded_child=
run_bounded()
{
	local rc=0

	timeout --kill-after=20 "$@" < /dev/null &
	bounded_child=$!
	wait "$bounded_child" || rc=$?
	bounded_child=
	[ $rc != 124 ] || warn "took longer than $1 s: ${*:2}"
	return $rc
}

# For the traps of scripts that use run_bounded.
end_bounded()
{
	[ -z "$bounded_child" ] || {
		kill -TERM "$bounded_child" 2>/dev/null || true
		wait "$bounded_child" 2>/dev/null || true
	}
}

# stop_servers SECONDS: for the traps of scripts that test with the server in
# TPC_STAGE/regress, of $bindir, and the broker in TPC_STAGE/broker.
stop_servers()
{
	end_bounded
	# shellcheck disable=SC2154
	[ ! -e "$TPC_STAGE/regress/data/postmaster.pid" ] ||
		"$bindir/pg_ctl" -D "$TPC_STAGE/regress/data" -m immediate -t "$1" \
			-s stop || true
	# shellcheck disable=SC2154
	"$here/broker" stop "$TPC_STAGE/broker" || true
}

# clang_with_fuzzer: a compiler that brings a fuzzer and sanitizers.
clang_with_fuzzer()
{
	local cc

	for cc in "${FUZZ_CC:-clang}" clang-14 clang-19; do
		if echo 'int LLVMFuzzerTestOneInput(void) { return 0; }' |
			"$cc" -fsanitize=fuzzer,address,undefined -x c - -o /dev/null; then
			echo "$cc"
			return
		fi
	done 2>/dev/null
	return 1
}

# ---------------------------------------------------------------------------
# PostgreSQL

# copy_postgres PG_CONFIG DIR: make a private copy of a PostgreSQL
# installation in DIR and print the path of its pg_config.
#
# Servers look for extensions in directories of their installation, which is
# the machine's.  But they find those directories from where their own binary
# is.  So: real copies of the binaries, links for the rest, in the same places
# relative to each other.  What is installed into the copy stays there.
copy_postgres()
{
	local pg_config=$1 copy=$2 bindir dir

	bindir=$("$pg_config" --bindir)
	mkdir -p "$copy$bindir"
	cp -aL "$bindir/." "$copy$bindir/"
	for dir in "$("$pg_config" --pkglibdir)" "$("$pg_config" --sharedir)"; do
		mkdir -p "$copy$dir"
		cp -as --remove-destination "$dir/." "$copy$dir/"
	done
	for dir in "$("$pg_config" --includedir)" \
		"$("$pg_config" --includedir-server)"; do
		mkdir -p "$copy${dir%/*}"
		[ -e "$copy$dir" ] || ln -s "$dir" "$copy$dir"
	done
	# Not the machine's build of this extension, should it have one.
	rm -f "$copy$("$pg_config" --pkglibdir)/tpc_amqp.so" \
		"$copy$("$pg_config" --sharedir)"/extension/tpc_amqp[.-]*
	echo "$copy$bindir/pg_config"
}

# install_tpc SRC PG_CONFIG LOG [MAKE VARIABLE…]: build and install.
install_tpc()
{
	local src=$1 pg_config=$2 log=$3
	shift 3

	run_bounded 600 make -C "$src" -j"$(nproc)" PG_CONFIG="$pg_config" \
		"$@" all install > "$log" 2>&1
}

#!/bin/bash
# What a peer does once it has started: what the word bench= of the kernel's command line
# asks for. It tells of it through the kernel's log, which comes to the serial console
# with the kernel's own time. The engine's part is in the file beside this one.
set -uo pipefail
exec 2> /run/bench.err

say() { printf '<2>bench: %s\n' "$*" > /dev/kmsg; }
die() {
	say "failed line=$1 why=$(tail -c 500 /run/bench.err | tr -s '\n\t ' '___')"
	systemctl poweroff --force --force
	exit 1
}
must() { "$@" > /run/bench.out || die "${BASH_LINENO[0]}"; }

word() {
	local w
	for w in $(< /proc/cmdline); do
		case $w in "$1"=*) echo "${w#*=}" ;; esac
	done
}

. /usr/lib/bench/engine

# off ends a machine whose disk is thrown away.
off() {
	say done
	systemctl poweroff --force --force
}

# tell says how a container is; its times are the wall clock's.
tell() {
	local name
	for name; do
		if [ -n "$(state "$name")" ]; then say "container name=$name $(state "$name")"; else say "container name=$name absent=1"; fi
	done
}

clock() { say "clock now=$EPOCHREALTIME up=$(cut -d ' ' -f 1 /proc/uptime)"; }

# used sets the memory that nothing else can have, in KiB.
used() {
	local key value unit total=0 available=0
	while read -r key value unit; do
		case $key in MemTotal:) total=$value ;; MemAvailable:) available=$value ;; esac
	done < /proc/meminfo
	used=$((total - available))
}

# settled waits until it changes no more: two readings 10 s apart, for 3 minutes at most.
settled() {
	local before try
	used
	for try in {1..18}; do
		before=$used
		sleep 10
		used
		if ((used - before < 512 && before - used < 512)); then
			say "used what=$1 kib=$used"
			return
		fi
	done
	say "failed line=settled why=the_memory_does_not_settle"
}

# serves waits until the published port answers, for two minutes.
serves() {
	local try
	for try in {1..480}; do
		if (exec 3<> /dev/tcp/127.0.0.1/8080 && printf 'GET / HTTP/1.0\r\n\r\n' >&3 && grep -q Hello <&3); then
			say serves
			return
		fi
		sleep 0.25
	done
	say "silent"
	return 1
}

# runs waits until a container runs; that one does not is told by tell.
runs() {
	local try
	for try in {1..60}; do
		case $(state "$1") in *running=true*) return ;; esac
		sleep 1
	done
}

# timed tells the beginning and the end of a command.
timed() {
	say "begin what=$1"
	must "${@:2}"
	say "end what=$1"
}

# booted waits until all that starts with the machine has, and then a little.
booted() {
	systemctl is-system-running --wait > /dev/null
	sleep 10
}

able() { say "able init=$(systemctl show -P UserspaceTimestampMonotonic) at=$(since)"; }

case $(word bench) in
setup)
	must load
	say done
	systemctl poweroff
	;;
boot)
	able
	timed first start c-0
	tell c-0
	off
	;;
start)
	booted
	for i in {0..5}; do
		timed "c-$i" start "c-$i"
		tell "c-$i"
	done
	off
	;;
memory)
	booted
	settled 0
	for i in {1..5}; do
		must start "c-$i"
		case $i in 1 | 5) settled "$i" ;; esac
	done
	off
	;;
fifty)
	booted
	settled 0
	say "begin what=fifty"
	for i in {1..50}; do must start "c-$i"; done
	say "end what=fifty"
	settled 50
	for i in 1 50; do tell "c-$i"; done
	say "running count=$(count)"
	off
	;;
daemon)
	booted
	for i in {1..5}; do must keep "c-$i"; done
	sleep 10
	daemons
	off
	;;
reboot)
	booted
	must keep web -p 8080:8080
	serves || die "$LINENO"
	sleep 10
	say ordered
	systemctl reboot
	;;
back)
	serves || die "$LINENO"
	able
	tell web
	clock
	off
	;;
cut)
	# The containers that were acknowledged before are named; one more is now.
	kept=$(word names | tr , ' ')
	if [ -n "$kept" ]; then serves; fi
	for name in $kept; do runs "$name"; done
	able
	tell $kept
	clock
	new=$(word new)
	case $new in
	"") off ;;
	web) booted; must keep web -p 8080:8080; serves || die "$LINENO"; sleep 10; must keep late-1; say acknowledged ;;
	*) must keep "$new"; say acknowledged ;;
	esac
	;;
esac

# SPDX-License-Identifier: GPL-2.0
# The network lab: client - router - server, each a network namespace of the guest.
#
#   client c0 ---- r0 router r1 ---- s0 server
#   10.0.1.1     10.0.1.2  10.0.2.2    10.0.2.1
#
# The bottleneck is r1, towards the server: htb at a given rate with a queue below it. ACKs
# are delayed at r0. Segments leave the hosts one by one (no GSO), so that the router sees
# packets of the MTU and nothing larger. Sourced by the scripts beside it; runs in a guest
# only: it changes network namespaces, never the ones of the machine that builds.

LAB_PORT=5201
lab_tmp=

lab_need() {
	local c
	for c in "$@"; do
		command -v "$c" >/dev/null || { echo "lab: $c is missing" >&2; exit 1; }
	done
}

on() { ip netns exec "$@"; }

lab_down() {
	local ns
	[ -n "$lab_tmp" ] && on server pkill iperf3 2>/dev/null
	for ns in client router server; do
		ip netns del $ns 2>/dev/null
	done
	[ -n "$lab_tmp" ] && rm -rf "$lab_tmp"
	lab_tmp=
}

# lab_up [RTT]: the namespaces and their links, no bottleneck yet.
lab_up() {
	local rtt=${1:-10ms} ns

	lab_need ip tc iperf3 awk sysctl
	lab_tmp=$(mktemp -d)
	for ns in client router server; do
		ip netns add $ns || return 1
		on $ns ip link set lo up
		# The last connection's measurements are not to colour the next one's start.
		on $ns sysctl -qw net.ipv4.tcp_no_metrics_save=1 net.ipv4.tcp_ecn=1
	done
	ip link add c0 netns client type veth peer name r0 netns router || return 1
	ip link add r1 netns router type veth peer name s0 netns server || return 1
	lab_addr client c0 10.0.1.1/24
	lab_addr router r0 10.0.1.2/24
	lab_addr router r1 10.0.2.2/24
	lab_addr server s0 10.0.2.1/24
	on client ip route add default via 10.0.1.2
	on server ip route add default via 10.0.2.2
	on router sysctl -qw net.ipv4.ip_forward=1
	[ "$rtt" = 0 ] || on router tc qdisc add dev r0 root netem delay "$rtt" limit 10000
}

lab_addr() {
	on "$1" ip addr add "$3" dev "$2"
	on "$1" ip link set "$2" gso_max_segs 1 up
}

# lab_bottleneck RATE QUEUE...: QUEUE is a qdisc with its options, see lab_marking.
lab_bottleneck() {
	local rate=$1
	shift
	on router tc qdisc del dev r1 root 2>/dev/null
	on router tc qdisc add dev r1 root handle 1: htb default 10 &&
	on router tc class add dev r1 parent 1: classid 1:10 htb rate "$rate" ceil "$rate" \
		burst 3000 cburst 3000 quantum 1514 &&
	on router tc qdisc add dev r1 parent 1:10 handle 10: "$@"
}

# The queue of RFC 8257: marks every packet that finds more than K packets before it. A
# probability of 1 from min = max = K on, over the average of the last two arrivals.
lab_marking() {
	local k=$1
	echo red limit 600000 min $((k * 1514)) max $((k * 1514)) avpkt 1514 \
		burst "$k" probability 1 bandwidth 1000mbit ecn
}

lab_server() {
	on server iperf3 -s -D -p $LAB_PORT --pidfile "$lab_tmp/iperf3.pid" >/dev/null
	lab_wait "on server ss -Hltn 'sport = :$LAB_PORT' | grep -q ."
}

lab_wait() {
	local i
	for i in $(seq 100); do
		eval "$1" && return
		sleep 0.05
	done
	echo "lab: gave up waiting for: $1" >&2
	return 1
}

lab_server_stop() {
	kill "$(tr -d '\0' <"$lab_tmp/iperf3.pid")" 2>/dev/null
	lab_wait "! on server ss -Hltn 'sport = :$LAB_PORT' | grep -q ."
}

# lab_sample FILE MS: one line of the bottleneck's queue length, in packets, every MS
# milliseconds until lab_sample_stop. One tc takes all samples: starting one costs more than
# what it measures.
lab_sample() {
	local file=$1 nap=$2
	mkfifo "$lab_tmp/never" 2>/dev/null
	(
		exec {never}<>"$lab_tmp/never"
		while [ ! -e "$lab_tmp/enough" ]; do
			echo "qdisc show dev r1"
			read -r -t "0.$(printf %03d "$nap")" -u $never
		done
	) | on router tc -s -b - 2>"$lab_tmp/tc.err" |
		awk '$1 == "qdisc" { leaf = $3 == "10:" }
			$1 == "backlog" && leaf { sub("p", "", $3); print $3 }' >"$file" &
	lab_sampler=$!
}

lab_sample_stop() {
	touch "$lab_tmp/enough"
	wait "$lab_sampler"
	rm -f "$lab_tmp/enough"
}

# lab_flow SECONDS FLOWS [IPERF_OPTION...]: bulk from client to server; prints the received
# kbit/s once it is over. The first two seconds don't count.
lab_flow() {
	local secs=$1 flows=$2
	shift 2
	on client iperf3 -c 10.0.2.1 -p $LAB_PORT -t "$secs" -O 2 -P "$flows" -f k "$@" \
		>"$lab_tmp/iperf3.out" 2>&1 || { cat "$lab_tmp/iperf3.out" >&2; return 1; }
	awk -v n="$flows" '/receiver$/ && (n == 1 || /SUM/) {
		for (i = 2; i <= NF; i++) if ($i == "Kbits/sec") print $(i - 1)
	}' "$lab_tmp/iperf3.out"
}

# What the bottleneck's queue says of itself: lab_count sent|dropped|marked
lab_count() {
	on router tc -s qdisc show dev r1 parent 1:10 | awk -v what="$1" '
		$1 == "Sent" { sent = $4; sub(",", "", $7); dropped = $7 }
		$1 == "marked" { marked = $2 }
		END { print (what == "sent" ? sent : what == "dropped" ? dropped : marked) + 0 }'
}

# lab_queue FILE SKIP: mean, median, 99th percentile and maximum of a sampled queue, without
# the first SKIP samples. The percentile lies where it would if a queue of N packets stood for all
# from N - 0.5 to N + 0.5: whole packets are too coarse to compare short queues by.
lab_queue() {
	tail -n +"$(($2 + 1))" "$1" | sort -n | awk '
		{ q[NR] = $1; sum += $1; n[$1]++ }
		END {
			if (!NR) { print "0 0 0 0"; exit }
			want = 0.99 * NR
			for (at = 0; below + n[at] < want; at++)
				below += n[at]
			printf "%.1f %d %.2f %d\n", sum / NR, q[int((NR + 1) / 2)],
				at - 0.5 + (want - below) / n[at], q[NR]
		}'
}

# lab_spark FILE MAX [COLUMNS]: the queue over time as one line of text, MAX is full height.
lab_spark() {
	awk -v max="$2" -v cols="${3:-60}" '
		BEGIN { n = split("▁ ▂ ▃ ▄ ▅ ▆ ▇ █", bar, " ") }
		{ q[NR] = $1 }
		END {
			if (NR < cols) cols = NR
			for (c = 0; c < cols; c++) {
				from = int(c * NR / cols) + 1; to = int((c + 1) * NR / cols)
				sum = 0
				for (i = from; i <= to; i++) sum += q[i]
				v = int(sum / (to - from + 1) / max * n) + 1
				if (v > n) v = n
				printf "%s", bar[v]
			}
			print ""
		}' "$1"
}
